//! Instructions that tell the hardware what the simulator needs no telling: proxy fences, register counts, dependent
//! launches and prefetches of tensor maps. Their operands are checked all the same.

use crate::check::race;
use crate::code::{Class, Flow, Op};
use crate::isa::async_copy::immediate;
use crate::isa::matrix::aligned;
use crate::isa::pointer::{self, Into};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::Cx;
use crate::ptx::ast::Instruction;

/// Lowers the instructions of this family.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    let first = i.modifiers.first().map(String::as_str);
    match i.opcode.as_str() {
        "fence" if matches!(first, Some("proxy" | "mbarrier_init")) => Some(proxy_fence(cx, i)),
        "setmaxnreg" => Some(register_count(cx, i)),
        "griddepcontrol" => Some(dependents(cx, i)),
        "prefetch" if i.modifiers.last().is_some_and(|m| m == "tensormap") => Some(prefetch(cx, i)),
        _ => None,
    }
}

fn nothing(_: &mut Cx<'_>, _: &Op) -> Flow {
    Flow::Next
}

/// `fence.proxy` and `fence.mbarrier_init`: all proxies see the same memory here, but the race check wants the fences.
fn proxy_fence(cx: &mut Lower, i: &Instruction) -> Result<()> {
    const SCOPES: &[(&str, ())] = &[("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())];
    let mut m = Modifiers::new(i);
    let (mut operands, mut kind) = (0, 0);
    if m.take("mbarrier_init") {
        m.expect(&[("release", ())])?;
        m.expect(&[("cluster", ())])?;
    } else {
        m.expect(&[("proxy", ())])?;
        kind = m.expect(&[("alias", 0), ("async", 1), ("tensormap::generic", 2), ("async::generic", 3)])?;
        match kind {
            0 => {}
            1 => drop(m.one_of(&[("global", ()), ("shared::cta", ()), ("shared::cluster", ())])),
            2 => {
                operands = m.expect(&[("release", 0), ("acquire", 2)])?;
                m.expect(SCOPES)?;
            }
            _ => {
                let space = m.expect(&[("acquire", "cluster"), ("release", "cta")])?;
                m.expect(&[(&*format!("sync_restrict::shared::{space}"), ())])?;
                m.expect(&[("cluster", ())])?;
            }
        }
    }
    m.finish()?;
    cx.arity(i, &[operands])?;
    if operands == 2 {
        pointer::lower(cx, i, &[(&i.operands[0], Into::Global)])?;
        if immediate(cx, i, &i.operands[1])? != 128 {
            return cx.error(i, "a tensor map has 128 bytes");
        }
    }
    let op = cx.op(i, Class::Async, if kind == 1 { async_fence } else { nothing });
    cx.emit(op);
    Ok(())
}

fn async_fence(cx: &mut Cx<'_>, _: &Op) -> Flow {
    race::proxy_fence(cx.block, cx.warp.id);
    Flow::Next
}

/// `setmaxnreg`: registers are not scarce here.
fn register_count(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.expect(&[("inc", ()), ("dec", ())])?;
    for name in ["sync", "aligned", "u32"] {
        m.expect(&[(name, ())])?;
    }
    m.finish()?;
    cx.arity(i, &[1])?;
    let count = immediate(cx, i, &i.operands[0])?;
    if !(24..=256).contains(&count) || count % 8 != 0 {
        return cx.error(i, format_args!("{count} registers: the number must be 24 to 256 in steps of 8"));
    }
    let op = cx.op(i, Class::Warp, warp_wide);
    cx.emit(op);
    Ok(())
}

fn warp_wide(cx: &mut Cx<'_>, _: &Op) -> Flow {
    aligned(cx).unwrap_or(Flow::Next)
}

/// `griddepcontrol`: a grid starts when those before it have ended, so there is nothing to wait for.
fn dependents(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.expect(&[("launch_dependents", ()), ("wait", ())])?;
    m.finish()?;
    cx.arity(i, &[0])?;
    let op = cx.op(i, Class::Control, nothing);
    cx.emit(op);
    Ok(())
}

/// `prefetch.tensormap`
fn prefetch(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.one_of(&[("param", ()), ("const", ())]);
    m.expect(&[("tensormap", ())])?;
    m.finish()?;
    cx.arity(i, &[1])?;
    pointer::lower(cx, i, &[(&i.operands[0], Into::Global)])?;
    let op = cx.op(i, Class::Async, nothing);
    cx.emit(op);
    Ok(())
}
