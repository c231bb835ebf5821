//! Instructions that tell the hardware what the simulator needs no telling: proxy fences, register counts, dependent
//! launches, prefetches of tensor maps and cache policies. Their operands are checked all the same.

use crate::code::{Class, Flow, Op};
use crate::isa::async_copy::immediate;
use crate::isa::matrix::aligned;
use crate::isa::pointer::{self, Into};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::Cx;
use crate::ptx::ast::{Instruction, Operand, Type};

/// Lowers the instructions of this family.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    let first = i.modifiers.first().map(String::as_str);
    match i.opcode.as_str() {
        "fence" if matches!(first, Some("proxy" | "mbarrier_init")) => Some(proxy_fence(cx, i)),
        "setmaxnreg" => Some(register_count(cx, i)),
        "griddepcontrol" => Some(dependents(cx, i)),
        "prefetch" if i.modifiers.last().is_some_and(|m| m == "tensormap") => Some(prefetch(cx, i)),
        "createpolicy" => Some(policy(cx, i)),
        _ => None,
    }
}

fn nothing(_: &mut Cx<'_>, _: &Op) -> Flow {
    Flow::Next
}

/// `fence.proxy` and `fence.mbarrier_init`: all proxies see the same memory here.
fn proxy_fence(cx: &mut Lower, i: &Instruction) -> Result<()> {
    const SCOPES: &[(&str, ())] = &[("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())];
    let mut m = Modifiers::new(i);
    let mut operands = 0;
    if m.take("mbarrier_init") {
        m.expect(&[("release", ())])?;
        m.expect(&[("cluster", ())])?;
    } else {
        m.expect(&[("proxy", ())])?;
        match m.expect(&[("alias", 0), ("async", 1), ("tensormap::generic", 2), ("async::generic", 3)])? {
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
    let op = cx.op(i, Class::Async, nothing);
    cx.emit(op);
    Ok(())
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

/// `createpolicy`: the caches are not modelled, so every policy is 0.
fn policy(cx: &mut Lower, i: &Instruction) -> Result<()> {
    const PRIORITIES: &[(&str, ())] =
        &[("L2::evict_last", ()), ("L2::evict_normal", ()), ("L2::evict_first", ()), ("L2::evict_unchanged", ())];
    let mut m = Modifiers::new(i);
    let kind = m.expect(&[("fractional", 0), ("range", 1), ("cvt", 2)])?;
    match kind {
        2 => m.expect(&[("L2", ())])?,
        _ => {
            if kind == 1 {
                m.one_of(&[("global", ())]);
            }
            m.expect(PRIORITIES)?;
            m.one_of(PRIORITIES);
        }
    }
    m.expect(&[("b64", ())])?;
    m.finish()?;
    cx.arity(
        i,
        match kind {
            0 => &[1, 2],
            1 => &[4],
            _ => &[2],
        },
    )?;
    match (kind, i.operands.get(1)) {
        (0, Some(fraction)) => drop(cx.src(i, fraction, Type::F32)?),
        (1, Some(Operand::Address { .. })) => {
            pointer::lower(cx, i, &[(&i.operands[1], Into::Global)])?;
            cx.src(i, &i.operands[2], Type::B32)?;
            cx.src(i, &i.operands[3], Type::B32)?;
        }
        (2, Some(property)) => drop(cx.src(i, property, Type::B64)?),
        (0, None) => {}
        _ => return cx.error(i, "the address of a range is missing"),
    }
    let mut op = cx.op(i, Class::Move, zero);
    op.dst[0] = cx.dst(i, &i.operands[0], Type::B64)?;
    cx.emit(op);
    Ok(())
}

fn zero(cx: &mut Cx<'_>, op: &Op) -> Flow {
    cx.set_b64(op.dst[0], [0; 32]);
    Flow::Next
}
