//! `cp.async` and its groups (PTX ISA 9.0, section 9.7.9.25.3).

use crate::code::{Class, Flow, Op, Src};
use crate::isa::mbarrier;
use crate::isa::pointer::{self, Into};
use crate::lower::{File, Lower, Modifiers, Result, Symbol};
use crate::machine::async_queue::{self, Copy, each};
use crate::machine::fault::{Fault, Kind};
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Operand, Type};

/// Lowers the `cp.async` instructions that are not bulk copies.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    let is = |n: usize, name: &str| i.modifiers.get(n).is_some_and(|m| m == name);
    if i.opcode != "cp" || !is(0, "async") || is(1, "bulk") {
        return None;
    }
    let mut m = Modifiers::new(i);
    m.take("async");
    Some(if m.take("commit_group") {
        lower_group(cx, i, m, commit, false)
    } else if m.take("wait_group") {
        lower_group(cx, i, m, wait_group, true)
    } else if m.take("wait_all") {
        lower_group(cx, i, m, wait_all, false)
    } else if m.take("mbarrier") {
        lower_arrive(cx, i, m)
    } else {
        lower_copy(cx, i, m)
    })
}

fn lower_group(
    cx: &mut Lower,
    i: &Instruction,
    m: Modifiers<'_>,
    run: fn(&mut Cx<'_>, &Op) -> Flow,
    count: bool,
) -> Result<()> {
    m.finish()?;
    cx.arity(i, &[count as usize])?;
    let mut op = cx.op(i, Class::Async, run);
    op.imm = if count { immediate(cx, i, &i.operands[0])? } else { 0 };
    cx.emit(op);
    Ok(())
}

/// An operand that must be an integer constant.
pub fn immediate(cx: &mut Lower, i: &Instruction, operand: &Operand) -> Result<u64> {
    match operand {
        Operand::Int(value) if (0..=u32::MAX as i128).contains(value) => Ok(*value as u64),
        _ => cx.error(i, format_args!("operand {operand:?} is not an integer constant")),
    }
}

fn lower_arrive(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>) -> Result<()> {
    m.expect(&[("arrive", ())])?;
    let no_increment = m.take("noinc");
    let into = if m.take("shared") || m.take("shared::cta") { Into::Shared } else { Into::GenericShared };
    m.expect(&[("b64", ())])?;
    m.finish()?;
    cx.arity(i, &[1])?;
    let (list, imm) = pointer::lower(cx, i, &[(&i.operands[0], into)])?;
    let mut op = cx.op(i, Class::Async, arrive);
    (op.list, op.imm) = (cx.list(list), imm | (no_increment as u64) << 8);
    cx.emit(op);
    Ok(())
}

/// Bits of [`Op::imm`] above the two pointers': the size, and what the optional operand is.
const SIZE: u32 = 8;
const SOURCE_SIZE: u64 = 1 << 16;
const IGNORE_SOURCE: u64 = 1 << 17;

fn lower_copy(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>) -> Result<()> {
    let all_levels = m.expect(&[("ca", true), ("cg", false)])?;
    m.expect(&[("shared", ()), ("shared::cta", ())])?;
    m.expect(&[("global", ())])?;
    let hint = m.take("L2::cache_hint");
    m.one_of(&[("L2::64B", ()), ("L2::128B", ()), ("L2::256B", ())]);
    m.finish()?;
    let least = 3 + hint as usize;
    cx.arity(i, &[least, least + 1])?;
    let pointers = [(&i.operands[0], Into::Shared), (&i.operands[1], Into::Global)];
    let (list, mut imm) = pointer::lower(cx, i, &pointers)?;
    let size = immediate(cx, i, &i.operands[2])?;
    if !matches!((size, all_levels), (4 | 8, true) | (16, _)) {
        return cx.error(i, format_args!("a copy of {size} bytes"));
    }
    imm |= size << SIZE;
    let mut op = cx.op(i, Class::Async, copy);
    if i.operands.len() > least {
        let operand = &i.operands[3];
        let predicate = matches!(operand, Operand::Name(name)
            if matches!(cx.lookup(name), Some(Symbol::Register(_, ty)) if File::of(ty) == File::Pred));
        op.src[0] = cx.src(i, operand, if predicate { Type::Pred } else { Type::B32 })?;
        imm |= if predicate { IGNORE_SOURCE } else { SOURCE_SIZE };
    }
    if hint && let Some(policy) = i.operands.last() {
        cx.src(i, policy, Type::B64)?;
    }
    (op.list, op.imm) = (cx.list(list), imm);
    cx.emit(op);
    Ok(())
}

fn copy(cx: &mut Cx<'_>, op: &Op) -> Flow {
    match gather(cx, op).and_then(|copy| async_queue::issue_copy(cx.block, cx.grid, cx.warp.id, copy)) {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}

/// The copies of the executing lanes, checked.
fn gather(cx: &mut Cx<'_>, op: &Op) -> std::result::Result<Copy, Fault> {
    let size = op.imm >> SIZE & 0xff;
    let (to, from) = (pointer::read(cx, op, 0)?, pointer::read(cx, op, 1)?);
    let take = source_sizes(cx, op, op.src[0], size);
    let mut copy = Copy { lanes: cx.mask, size, to, from: [std::ptr::null(); LANES], take: [0; LANES], line: op.line };
    let mut result = Ok(());
    each(cx.mask, |lane| {
        if result.is_ok() {
            result = check(cx, to[lane], from[lane], take[lane], size)
                .map(|host| (copy.from[lane], copy.take[lane]) = (host, take[lane] as u8))
                .map_err(|fault| fault.at_lane(lane as u32));
        }
    });
    result.map(|()| copy)
}

fn source_sizes(cx: &Cx<'_>, op: &Op, operand: Src, size: u64) -> Row<u64> {
    if op.imm & IGNORE_SOURCE != 0 {
        let ignored = cx.pred(operand);
        std::array::from_fn(|lane| if ignored >> lane & 1 != 0 { 0 } else { size })
    } else if op.imm & SOURCE_SIZE != 0 {
        cx.b32(operand).map(u64::from)
    } else {
        [size; LANES]
    }
}

/// Checks one lane's copy and finds its source on the host.
fn check(cx: &mut Cx<'_>, to: u64, from: u64, take: u64, size: u64) -> std::result::Result<*const u8, Fault> {
    if take > size {
        let message = format!("cp.async reads {take} bytes to write {size}");
        return Err(Fault::new(Kind::InvalidOperation, message).at_address(from, "global memory"));
    }
    if !to.is_multiple_of(size) {
        let message = format!("the destination of a cp.async of {size} bytes");
        return Err(Fault::new(Kind::Misaligned, message).at_address(to, "shared memory"));
    }
    if cx.block.shared.get(to, size).is_none() {
        return Err(cx.block.shared.outside(to, size));
    }
    if take == 0 {
        // Nothing is read, so the address may be anything: that is how kernels guard their edges.
        return Ok(std::ptr::NonNull::dangling().as_ptr());
    }
    if !from.is_multiple_of(size) {
        let message = format!("the source of a cp.async of {size} bytes");
        return Err(Fault::new(Kind::Misaligned, message).at_address(from, "global memory"));
    }
    async_queue::global(cx.grid, from, take, false, &mut cx.warp.allocation).map(|host| host.cast_const())
}

fn commit(cx: &mut Cx<'_>, _: &Op) -> Flow {
    cx.block.queue.commit(cx.warp.id, cx.mask);
    Flow::Next
}

fn wait_group(cx: &mut Cx<'_>, op: &Op) -> Flow {
    match async_queue::wait(cx.block, cx.grid, cx.warp.id, cx.mask, op.imm as u32) {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}

fn wait_all(cx: &mut Cx<'_>, _: &Op) -> Flow {
    match async_queue::wait_all(cx.block, cx.grid, cx.warp.id, cx.mask) {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}

/// `cp.async.mbarrier.arrive`: the mbarrier is told when the thread's earlier copies have landed.
fn arrive(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let result = pointer::read(cx, op, 0).and_then(|on| {
        let mut result = Ok(());
        if op.imm >> 8 & 1 == 0 {
            each(cx.mask, |lane| {
                if result.is_ok() {
                    result = mbarrier::increment_pending(cx.block, on[lane]).map_err(|f| f.at_lane(lane as u32));
                }
            });
        }
        result?;
        async_queue::issue_arrive(cx.block, cx.grid, cx.warp.id, cx.mask, on)
    });
    match result {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}
