//! Barriers and fences (PTX ISA 9.0, sections 9.7.13.1 to 9.7.13.4: `bar`, `barrier`, `membar`, `fence`; `nanosleep`).

use super::lanes::predicate;
use crate::check;
use crate::code::{Class, Flow, Op, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::block::{BARRIERS, CLUSTER_BARRIER};
use crate::machine::fault::Kind;
use crate::machine::warp::Wait;
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Type};

/// Lowers barriers and fences; proxy fences and those of mbarriers belong to the asynchronous operations.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    let first = i.modifiers.first().map(String::as_str);
    match i.opcode.as_str() {
        "bar" | "barrier" if first == Some("warp") => Some(warp_barrier(cx, i)),
        "barrier" if first == Some("cluster") => Some(cluster_barrier(cx, i)),
        "bar" | "barrier" => Some(barrier(cx, i)),
        "membar" if first != Some("proxy") => Some(fence(cx, i)),
        "fence" if !matches!(first, Some("proxy" | "mbarrier_init")) => Some(fence(cx, i)),
        "nanosleep" => Some(nanosleep(cx, i)),
        _ => None,
    }
}

/// The forms of `barrier`, in [`Op::imm`].
const SYNC: u64 = 0;
const ARRIVE: u64 = 1;
const POPC: u64 = 2;
const AND: u64 = 3;
const OR: u64 = 4;
const FORM: u64 = 7;
const ALIGNED: u64 = 8;
/// The arrival at a cluster's barrier orders nothing but what was fenced before.
const RELAXED: u64 = 1 << 62;
const COUNTED: u64 = 16;
const NEGATED: u64 = 32;

fn barrier(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.take("cta");
    let mut form = m.expect(&[("sync", SYNC), ("arrive", ARRIVE), ("red", POPC)])?;
    let red = form == POPC;
    if red {
        form = m.expect(&[("popc", POPC), ("and", AND), ("or", OR)])?;
    }
    let aligned = m.take("aligned") || i.opcode == "bar";
    let ty = if red { Some(m.ty(&[if form == POPC { Type::U32 } else { Type::Pred }])?) } else { None };
    m.finish()?;
    let mut op = cx.op(i, Class::Barrier, arrive as Run);
    let mut operands = &i.operands[..];
    cx.arity(
        i,
        if red {
            &[3, 4]
        } else if form == ARRIVE {
            &[2]
        } else {
            &[1, 2]
        },
    )?;
    op.imm = form | if aligned { ALIGNED } else { 0 };
    if let Some(ty) = ty {
        op.dst[0] = cx.dst(i, &operands[0], ty)?;
        let (src, negated) = predicate(cx, i, &operands[operands.len() - 1])?;
        op.src[2] = src;
        op.imm |= if negated { NEGATED } else { 0 };
        operands = &operands[1..operands.len() - 1];
    }
    op.src[0] = cx.src(i, &operands[0], Type::U32)?;
    if let Some(count) = operands.get(1) {
        op.src[1] = cx.src(i, count, Type::U32)?;
        op.imm |= COUNTED;
    }
    cx.emit(op);
    Ok(())
}

/// The value that all executing lanes have.
fn uniform(cx: &Cx<'_>, row: &Row<u32>) -> Option<u32> {
    let value = row[cx.mask.trailing_zeros() as usize];
    (0..LANES).all(|lane| cx.mask >> lane & 1 == 0 || row[lane] == value).then_some(value)
}

fn arrive(cx: &mut Cx<'_>, op: &Op) -> Flow {
    if matches!(cx.warp.groups[cx.warp.current].wait, Wait::Released(_)) {
        return released(cx, op);
    }
    if op.imm & ALIGNED != 0
        && let Some(flow) = cx.whole_warp()
    {
        return flow;
    }
    let count = if op.imm & COUNTED != 0 { cx.b32(op.src[1]) } else { [0; LANES] };
    let (Some(id), Some(count)) = (uniform(cx, &cx.b32(op.src[0])), uniform(cx, &count)) else {
        return cx.fault(Kind::InvalidOperation, "lanes of a warp name different barriers or counts");
    };
    if id as usize >= BARRIERS {
        return cx.fault(Kind::InvalidOperation, format!("barrier {id} of {BARRIERS}"));
    }
    let threads = cx.grid.block_dim.iter().product::<u32>().next_multiple_of(LANES as u32);
    let counted = op.imm & COUNTED != 0;
    if counted && (count == 0 || !count.is_multiple_of(LANES as u32) || count > threads) {
        return cx.fault(Kind::InvalidOperation, format!("barrier {id} of {count} threads in a block of {threads}"));
    }
    let yes =
        if op.imm & FORM >= POPC { cx.pred(op.src[2]) ^ if op.imm & NEGATED != 0 { u32::MAX } else { 0 } } else { 0 };
    let lanes = cx.mask.count_ones();
    let whole = cx.mask == cx.warp.live();
    cx.counters.sums.barriers += 1;
    let barrier = &mut cx.block.barriers[id as usize];
    if barrier.threads != 0 && barrier.expected != count {
        let message = format!("barrier {id} waits for {} threads, this warp names {count}", barrier.expected);
        return cx.fault(Kind::DivergentBarrier, message);
    }
    barrier.expected = count;
    barrier.threads += lanes;
    barrier.arrived += if whole { LANES as u32 } else { lanes };
    barrier.count += (yes & cx.mask).count_ones();
    let generation = barrier.generation;
    cx.block.progress += 1;
    check::race::barrier_arrive(cx, id, generation, false);
    if op.imm & FORM == ARRIVE {
        cx.block.complete_barriers();
        return Flow::Next;
    }
    cx.warp.groups[cx.warp.current].wait = Wait::Barrier(id as u8, generation);
    cx.block.complete_barriers();
    Flow::Retry
}

/// The barrier has completed.
fn released(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let wait = std::mem::replace(&mut cx.warp.groups[cx.warp.current].wait, Wait::No);
    let id = cx.b32(op.src[0])[cx.mask.trailing_zeros() as usize];
    if let Wait::Released(generation) = wait {
        check::race::barrier_leave(cx, id, generation);
    }
    let (yes, threads) = cx.block.barriers[id as usize].result;
    match op.imm & FORM {
        POPC => cx.set_b32(op.dst[0], [yes; LANES]),
        AND => cx.set_pred(op.dst[0], if yes == threads { u32::MAX } else { 0 }),
        OR => cx.set_pred(op.dst[0], if yes != 0 { u32::MAX } else { 0 }),
        _ => {}
    }
    Flow::Next
}

fn warp_barrier(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.expect(&[("warp", ())])?;
    m.expect(&[("sync", ())])?;
    m.finish()?;
    cx.arity(i, &[1])?;
    let mut op = cx.op(i, Class::Warp, warp_sync);
    op.src[0] = cx.src(i, &i.operands[0], Type::B32)?;
    cx.emit(op);
    Ok(())
}

fn warp_sync(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let live = cx.warp.live();
    let masks = cx.b32(op.src[0]);
    let members = (0..LANES).filter(|lane| cx.mask >> lane & 1 != 0).fold(0, |all, lane| all | masks[lane]);
    let group = &mut cx.warp.groups[cx.warp.current];
    if matches!(group.wait, Wait::Released(_)) || members & live & !cx.mask == 0 {
        if std::mem::take(&mut group.wait) == Wait::No {
            teams(cx, &masks);
        }
        return Flow::Next;
    }
    group.wait = Wait::Team(members);
    Flow::Retry
}

/// Tells the race check of the executing lanes, which are ordered with those that name the same mask.
fn teams(cx: &mut Cx<'_>, masks: &Row<u32>) {
    let mut left = cx.mask;
    while left != 0 {
        let mask = masks[left.trailing_zeros() as usize];
        let team = (0..LANES).fold(0, |team, lane| team | u32::from(masks[lane] == mask) << lane) & cx.mask;
        check::race::warp_sync(cx.block, cx.warp, team);
        left &= !team;
    }
}

/// `barrier.cluster`: one more barrier of each block, which completes for all of the cluster at once.
fn cluster_barrier(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.expect(&[("cluster", ())])?;
    let wait = m.expect(&[("arrive", false), ("wait", true)])?;
    let mut relaxed = false;
    if wait {
        m.take("acquire");
    } else {
        relaxed = m.one_of(&[("release", false), ("relaxed", true)]).unwrap_or(false);
    }
    let aligned = m.take("aligned");
    m.finish()?;
    cx.arity(i, &[0])?;
    let mut op = cx.op(i, Class::Barrier, if wait { cluster_wait as Run } else { cluster_arrive as Run });
    op.imm = if aligned { ALIGNED } else { 0 } | if relaxed { RELAXED } else { 0 };
    cx.emit(op);
    Ok(())
}

fn cluster_arrive(cx: &mut Cx<'_>, op: &Op) -> Flow {
    if op.imm & ALIGNED != 0
        && let Some(flow) = cx.whole_warp()
    {
        return flow;
    }
    cx.counters.sums.barriers += 1;
    let lanes = cx.mask.count_ones();
    let barrier = &mut cx.block.barriers[CLUSTER_BARRIER];
    barrier.threads += lanes;
    let generation = barrier.generation;
    cx.warp.cluster_generation = generation;
    cx.block.advance();
    let relaxed = op.imm & RELAXED != 0;
    // What the warp does after the arrival is told to nobody: the other blocks are told before its clock goes on.
    check::race::cluster_arrive(cx, CLUSTER_BARRIER as u32, generation, relaxed);
    check::race::barrier_arrive(cx, CLUSTER_BARRIER as u32, generation, relaxed);
    cx.block.complete_cluster_barrier();
    Flow::Next
}

fn cluster_wait(cx: &mut Cx<'_>, op: &Op) -> Flow {
    if op.imm & ALIGNED != 0
        && let Some(flow) = cx.whole_warp()
    {
        return flow;
    }
    if cx.block.barriers[CLUSTER_BARRIER].generation == cx.warp.cluster_generation {
        return Flow::Retry;
    }
    let generation = cx.warp.cluster_generation;
    check::race::barrier_leave(cx, CLUSTER_BARRIER as u32, generation);
    Flow::Next
}

/// `membar` and `fence`: memory is sequentially consistent here, so that only the race check sees them.
fn fence(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let block_scope = if i.opcode == "membar" {
        m.expect(&[("cta", true), ("gl", false), ("sys", false)])?
    } else {
        let order = m.one_of(&[("sc", 0), ("acq_rel", 0), ("acquire", 1), ("release", 2)]);
        let restricted = match order {
            Some(1) => m.take("sync_restrict::shared::cluster"),
            Some(2) => m.take("sync_restrict::shared::cta"),
            _ => false,
        };
        if restricted { m.expect(&[("cluster", false)])? } else { m.expect(super::load_store::SCOPES)? }
    };
    m.finish()?;
    cx.arity(i, &[0])?;
    let mut op = cx.op(i, Class::Barrier, run_fence);
    op.imm = u64::from(block_scope);
    cx.emit(op);
    Ok(())
}

fn run_fence(cx: &mut Cx<'_>, op: &Op) -> Flow {
    check::race::fence(cx, op.imm != 0);
    Flow::Next
}

fn nanosleep(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.ty(&[Type::U32])?;
    m.finish()?;
    cx.arity(i, &[1])?;
    let mut op = cx.op(i, Class::Control, sleep);
    op.src[0] = cx.src(i, &i.operands[0], Type::U32)?;
    cx.emit(op);
    Ok(())
}

fn sleep(_cx: &mut Cx<'_>, _op: &Op) -> Flow {
    Flow::Yield
}
