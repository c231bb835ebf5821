//! `cp.async` and its groups (PTX ISA 9.0, section 9.7.9.25.3).

use crate::check;
use crate::check::lanes::Part;
use crate::check::race::{self, Engine};
use crate::check::traffic;
use crate::code::{Class, Flow, Op, Src};
use crate::isa::mbarrier;
use crate::isa::pointer::{self, Into};
use crate::lower::{File, Lower, Modifiers, Result, Symbol};
use crate::machine::access::{Access, Effect, Region};
use crate::machine::async_queue::{self, Copy, active, each};
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
    let copy = match gather(cx, op) {
        Ok(copy) => copy,
        Err(fault) => return cx.fail(fault),
    };
    cx.counters.sums.load_bytes += active(copy.lanes).map(|lane| u64::from(copy.take[lane])).sum::<u64>();
    if cx.grid.watched
        && let Some(flow) = watch(cx, op, &copy)
    {
        return flow;
    }
    match async_queue::issue_copy(cx.block, cx.grid, cx.warp.id, copy) {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}

/// Shows the copies of a warp to the checks and counters.
#[cold]
#[inline(never)]
fn watch(cx: &mut Cx<'_>, op: &Op, copy: &Copy) -> Option<Flow> {
    let issued = race::copy_issue(cx.block, cx.warp.id, copy.lanes, &copy.to, copy.size, op.line);
    if let Err(fault) = issued {
        return Some(cx.fail(fault));
    }
    if cx.grid.traffic.is_some() {
        traffic::count(cx, Region::Shared, &copy.to, copy.size, Effect::Store);
    }
    let mut addresses = pointer::read(cx, op, 1).ok()?;
    // Lanes that read less than they write are rare, and checked as if they read it all or nothing.
    for lane in active(copy.lanes).filter(|&lane| u64::from(copy.take[lane]) < copy.size) {
        traffic::range(cx, addresses[lane], copy.take[lane].into(), Effect::Load);
    }
    let reads = active(copy.lanes).filter(|&lane| u64::from(copy.take[lane]) == copy.size);
    let mask = reads.fold(0u32, |mask, lane| mask | 1 << lane);
    if mask == 0 {
        return None;
    }
    let first = addresses[mask.trailing_zeros() as usize];
    addresses.iter_mut().enumerate().filter(|(lane, _)| mask >> lane & 1 == 0).for_each(|(_, a)| *a = first);
    let all = std::mem::replace(&mut cx.mask, mask);
    let access = Access::new(Region::Global);
    let flow = check::observe(cx, Region::Global, &addresses, copy.size, Effect::Load, access, Part::Own);
    cx.mask = all;
    flow
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
    let last = &mut cx.warp.allocation;
    // Whole reads are looked at together, in `watch`.
    let host = if take == size {
        async_queue::located(cx.grid, from, take, false, last)
    } else {
        async_queue::global(cx.grid, from, take, false, last)
    };
    host.map(|host| host.cast_const())
}

fn commit(cx: &mut Cx<'_>, _: &Op) -> Flow {
    cx.block.queue.commit(cx.warp.id, cx.mask);
    race::commit(cx.block, cx.warp.id, Engine::Copy);
    Flow::Next
}

fn wait_group(cx: &mut Cx<'_>, op: &Op) -> Flow {
    match async_queue::wait(cx.block, cx.grid, cx.warp.id, cx.mask, op.imm as u32) {
        Ok(()) => {
            race::wait_groups(cx, Engine::Copy, op.imm as usize, false);
            Flow::Next
        }
        Err(fault) => cx.fail(fault),
    }
}

fn wait_all(cx: &mut Cx<'_>, _: &Op) -> Flow {
    match async_queue::wait_all(cx.block, cx.grid, cx.warp.id, cx.mask) {
        Ok(()) => {
            race::wait_groups(cx, Engine::Copy, 0, true);
            Flow::Next
        }
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
        each(cx.mask, |lane| race::mbarrier_arrive_copies(cx.block, cx.warp.id, on[lane]));
        async_queue::issue_arrive(cx.block, cx.grid, cx.warp.id, cx.mask, on)
    });
    match result {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::team::Team;
    use crate::machine::schedule::AsyncTiming::{Early, Late, Random};

    const REGISTERS: &str = ".reg .b32 %s, %n, %m; .reg .b64 %g, %st; .reg .pred %p, %done; ";

    /// One warp; lane i copies from `%g` to `%s` + 16 i.
    fn warp(text: &str, timing: crate::machine::schedule::AsyncTiming) -> Team {
        let mut team = Team::new(&format!("{REGISTERS}{text}"), 1, timing);
        team.set_b32("%s", std::array::from_fn(|lane| 1024 + 16 * lane as u32));
        team.set_b32("%m", [64; LANES]);
        let address = team.allocate(&[7; 64]);
        team.set_b64("%g", address);
        team.shared().fill(1);
        team
    }

    fn value(team: &mut Team, lane: usize, byte: usize) -> u8 {
        team.shared()[1024 + 16 * lane + byte]
    }

    const COPY: &str = "cp.async.cg.shared.global [%s], [%g], 16; ";
    const COMMIT: &str = "cp.async.commit_group; ";

    #[test]
    fn copies_land_in_their_wait() {
        for timing in [Late, Early, Random] {
            let mut team = warp(&format!("{COPY}{COMMIT}cp.async.wait_group 0;"), timing);
            team.run_to(2).unwrap();
            match timing {
                Late => assert_eq!(value(&mut team, 3, 5), 1),
                Early => assert_eq!(value(&mut team, 3, 5), 7),
                Random => {}
            }
            team.run().unwrap();
            assert_eq!(value(&mut team, 3, 5), 7);
        }
    }

    #[test]
    fn the_last_groups_may_stay_in_flight() {
        let second = COPY.replace("[%s]", "[%s + 512]").replace("[%g]", "[%g + 32]");
        let open = COPY.replace("[%s]", "[%s + 1024]");
        let text = format!(
            "{COPY}{COMMIT}{second}{COMMIT}{open}cp.async.wait_group 1; cp.async.wait_group 0; cp.async.wait_all;"
        );
        let mut team = warp(&text, Late);
        let landed = |team: &mut Team| [value(team, 0, 0), value(team, 32, 0), value(team, 64, 0)];
        team.run_to(6).unwrap();
        assert_eq!(landed(&mut team), [7, 1, 1]);
        team.run_to(7).unwrap();
        assert_eq!(landed(&mut team), [7, 7, 1], "the open group is not waited for");
        team.run().unwrap();
        assert_eq!(landed(&mut team), [7, 7, 7]);
    }

    #[test]
    fn an_allowance_beyond_the_groups_waits_for_nothing() {
        let mut team = warp(&format!("{COPY}{COMMIT}cp.async.wait_group 4000000000;"), Late);
        team.run().unwrap();
        assert_eq!(value(&mut team, 0, 0), 1);
    }

    #[test]
    fn groups_belong_to_lanes() {
        // Only the lanes of %p commit and wait; then they commit once more, so that the others' copy is in a later group.
        let text = format!(
            "{COPY}@%p {COMMIT}@%p cp.async.wait_group 0; {COMMIT}cp.async.wait_group 1; cp.async.wait_group 0;"
        );
        let mut team = warp(&text, Late);
        team.set_pred("%p", 0xff);
        team.run_to(3).unwrap();
        assert_eq!((value(&mut team, 7, 0), value(&mut team, 8, 0)), (7, 1));
        team.run_to(5).unwrap();
        assert_eq!(value(&mut team, 8, 0), 1, "its one group is allowed to be in flight");
        team.run().unwrap();
        assert_eq!(value(&mut team, 31, 15), 7);
    }

    #[test]
    fn lanes_that_copy_together_may_be_in_different_groups() {
        // The lanes of %p have committed a group more than the others when all of them copy.
        let text = format!("@%p {COMMIT}{COPY}{COMMIT}cp.async.wait_group 0;");
        for first in [0xff, 0xff00] {
            let mut team = warp(&text, Late);
            team.set_pred("%p", first);
            team.run().unwrap();
            for lane in 0..LANES {
                assert_eq!(value(&mut team, lane, 0), 7, "lane {lane}");
            }
        }
    }

    #[test]
    fn what_a_short_source_leaves_zero_is_initialised() {
        let text = "cp.async.ca.shared.global [%s], [%g], 16, %n; cp.async.wait_all; ld.shared.u32 %m, [%s + 12];";
        let mut team = Team::new(&format!("{REGISTERS}{text}"), 1, Late);
        team.checks.init = true;
        team.set_b32("%s", std::array::from_fn(|lane| 1024 + 16 * lane as u32));
        team.set_b32("%n", [4; LANES]);
        let address = team.allocate(&[7; 64]);
        team.set_b64("%g", address);
        team.run().unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(team.b32(0, "%m"), [0; LANES]);
    }

    #[test]
    fn short_and_ignored_sources_become_zero() {
        let text = "cp.async.ca.shared.global [%s], [%g], 16, %n; cp.async.wait_all;";
        let mut team = warp(text, Late);
        team.set_b32("%n", std::array::from_fn(|lane| lane as u32 % 17));
        team.run().unwrap();
        for lane in 0..17 {
            for byte in 0..16 {
                assert_eq!(value(&mut team, lane, byte), if byte < lane { 7 } else { 0 }, "lane {lane}, byte {byte}");
            }
        }
        let mut team = warp("cp.async.cg.shared.global [%s], [%g], 16, %p; cp.async.wait_all;", Late);
        team.set_pred("%p", 0b10);
        team.run().unwrap();
        assert_eq!((value(&mut team, 0, 0), value(&mut team, 1, 0)), (7, 0));
    }

    #[test]
    fn a_source_of_no_bytes_may_be_anywhere() {
        let mut team = warp("cp.async.cg.shared.global [%s], [%g], 16, 0; cp.async.wait_all;", Late);
        team.set_b64("%g", 3);
        team.run().unwrap();
        assert_eq!(value(&mut team, 9, 9), 0);
    }

    #[test]
    fn misuse_is_a_fault() {
        let kind = |text: &str| warp(text, Late).run().err().map(|fault| fault.kind);
        assert_eq!(kind("cp.async.cg.shared.global [%s + 8], [%g], 16;"), Some(Kind::Misaligned));
        assert_eq!(kind("cp.async.cg.shared.global [%s], [%g + 8], 16;"), Some(Kind::Misaligned));
        assert_eq!(kind("cp.async.cg.shared.global [%s], [%g + 64], 16;"), Some(Kind::OutOfBounds));
        assert_eq!(kind("cp.async.cg.shared.global [%s + 163840], [%g], 16;"), Some(Kind::OutOfBounds));
        assert_eq!(kind("cp.async.ca.shared.global [%s], [%g], 8, 9;"), Some(Kind::InvalidOperation));
        assert_eq!(kind("cp.async.ca.shared.global [%s + 4], [%g + 60], 4;"), None);
    }

    #[test]
    fn other_forms_are_refused() {
        let refused = |text: &str| crate::testing::Snippet::new(&format!("{REGISTERS}{text}")).is_err();
        assert!(!refused("cp.async.ca.shared::cta.global.L2::128B [%s], [%g], 4;"));
        assert!(!refused("cp.async.cg.shared.global.L2::cache_hint.L2::256B [%s], [%g], 16, %n, %st;"));
        assert!(refused("cp.async.cg.shared.global [%s], [%g], 8;"));
        assert!(refused("cp.async.ca.shared.global [%s], [%g], 12;"));
        assert!(refused("cp.async.ca.shared.global [%s], [%g], %n;"));
        assert!(refused("cp.async.ca.global.shared [%g], [%s], 4;"));
        assert!(refused("cp.async.wait_group %n;"));
    }

    #[test]
    fn an_mbarrier_learns_of_landed_copies() {
        for (text, count) in [
            ("cp.async.mbarrier.arrive.noinc.shared.b64 [%m];", 32),
            ("cp.async.mbarrier.arrive.shared::cta.b64 [%m]; mbarrier.arrive.shared.b64 _, [%m];", 32),
        ] {
            for timing in [Late, Early, Random] {
                let text = format!(
                    "@%p mbarrier.init.shared.b64 [%m], {count}; {COPY}{text} \
                     mbarrier.test_wait.parity.shared.b64 %done, [%m], 0;"
                );
                let mut team = warp(&text, timing);
                team.set_pred("%p", 1);
                team.run().unwrap_or_else(|fault| panic!("{fault}"));
                assert_eq!(team.pred(0, "%done"), u32::MAX, "{text}");
                assert_eq!(value(&mut team, 31, 0), 7);
            }
        }
    }
}
