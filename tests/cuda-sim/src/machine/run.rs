//! The execution loop of a warp.

use super::Cx;
use super::block::Block;
use super::fault::{Fault, Kind};
use super::grid::Grid;
use super::warp::{Group, Wait, Warp};
use crate::check::race;
use crate::code::{Code, Flow, Guard};
use crate::counters::Counters;

/// How a warp's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Its budget is used up.
    Ran,
    /// It waits: for a barrier, or it polled something in vain.
    Waiting,
    /// All its threads have exited.
    Exited,
}

/// Lets a warp run about `budget` operations.
pub fn turn(
    warp: &mut Warp,
    block: &mut Block,
    grid: &Grid<'_>,
    counters: &mut Counters,
    budget: u32,
) -> Result<Turn, Box<Fault>> {
    let Some(group) = warp.groups.first() else {
        return Ok(Turn::Exited);
    };
    let code = &*grid.program.functions[group.function as usize];
    let mut cx = Cx::new(warp, code, block, grid, counters);
    let mut left = i64::from(budget);
    let groups = cx.warp.groups.len();
    while left > 0 {
        if !choose(&mut cx) {
            return rest(&mut cx);
        }
        if let Flow::Fault = stretch(&mut cx, &mut left) {
            return Err(complete(&mut cx));
        }
    }
    cx.warp.wake();
    if groups != 1 && cx.warp.groups.len() == groups {
        rotate(cx.warp, budget);
    } else {
        cx.warp.hogged = 0;
    }
    Ok(Turn::Ran)
}

/// Operations for which the first group in the program may keep the others waiting.
const HOG: u32 = 1 << 12;

/// Lets the other groups run after a long time: the first one may spin for what they have to do (a lock).
fn rotate(warp: &mut Warp, ran: u32) {
    warp.hogged += ran;
    if warp.hogged >= HOG {
        warp.hogged = 0;
        if let Some(group) = warp.groups.get_mut(warp.current)
            && group.wait == Wait::No
        {
            group.wait = Wait::Yielded;
        }
    }
}

/// The end of a turn in which no group can go on.
fn rest(cx: &mut Cx<'_>) -> Result<Turn, Box<Fault>> {
    if cx.warp.groups.is_empty() {
        return Ok(Turn::Exited);
    }
    // A group at a barrier of the block may be released by other warps (if not, that is a deadlock), and lanes that have
    // exited since are no longer waited for.
    let live = cx.warp.live();
    let absent = |g: &Group| match g.wait {
        Wait::Converge(members) | Wait::Team(members) => members & live & !g.mask,
        _ => 0,
    };
    if cx.warp.groups.iter().all(|g| absent(g) != 0) {
        let group = &cx.warp.groups[0];
        let message = format!("lanes {:#010x} are here, lanes {:#010x} do not come", group.mask, absent(group));
        cx.code = &cx.grid.program.functions[group.function as usize];
        cx.pc = group.pc;
        cx.mask = group.mask;
        let _ = cx.fault(Kind::DivergentBarrier, message);
        return Err(complete(cx));
    }
    cx.warp.wake();
    Ok(Turn::Waiting)
}

/// Makes the group current that runs next: the deepest in calls, then the first in the program, joined with those that
/// are at the same place. False if all wait.
fn choose(cx: &mut Cx<'_>) -> bool {
    let warp = &mut *cx.warp;
    release(warp, cx.block);
    let runs = |wait| matches!(wait, Wait::No | Wait::Released(_));
    let key = |warp: &Warp, i: usize| {
        let g: &Group = &warp.groups[i];
        (usize::MAX - g.frames.len(), g.pc)
    };
    let Some(mut best) = (0..warp.groups.len()).filter(|&i| runs(warp.groups[i].wait)).min_by_key(|&i| key(warp, i))
    else {
        return false;
    };
    let mut other = 0;
    while other < warp.groups.len() && warp.groups.len() > 1 {
        let (a, b) = (&warp.groups[best], &warp.groups[other]);
        let together = other != best
            && (a.pc, a.function, a.window) == (b.pc, b.function, b.window)
            && (a.wait == b.wait || a.wait == Wait::No && matches!(b.wait, Wait::Yielded | Wait::Converge(_)))
            && a.frames == b.frames;
        if together {
            warp.groups[best].mask |= warp.groups[other].mask;
            warp.groups.swap_remove(other);
            if best == warp.groups.len() {
                best = other;
            }
        } else {
            other += 1;
        }
    }
    warp.current = best;
    true
}

/// Lets groups go on whose barrier has completed.
fn release(warp: &mut Warp, block: &mut Block) {
    for group in &mut warp.groups {
        if let Wait::Barrier(id, generation) = group.wait
            && block.barriers[id as usize].generation != generation
        {
            group.wait = Wait::Released(generation);
        }
    }
    release_teams(warp, block);
}

/// Lets groups go on all of whose team wait at a `bar.warp.sync`.
fn release_teams(warp: &mut Warp, block: &mut Block) {
    let live = warp.live();
    let here = |warp: &Warp, team| {
        warp.groups.iter().filter(|g| g.wait == Wait::Team(team)).fold(0, |mask, group| mask | group.mask)
    };
    for index in 0..warp.groups.len() {
        if let Wait::Team(team) = warp.groups[index].wait
            && team & live & !here(warp, team) == 0
        {
            let together = here(warp, team);
            race::warp_sync(block, warp, together);
            for group in warp.groups.iter_mut().filter(|g| g.wait == Wait::Team(team)) {
                group.wait = Wait::Released(0);
            }
        }
    }
}

/// Runs the current group until the control flow needs a new choice or the budget is used up.
fn stretch(cx: &mut Cx<'_>, left: &mut i64) -> Flow {
    loop {
        let current = cx.warp.current;
        let group = &cx.warp.groups[current];
        let (start, mask, function) = (group.pc, group.mask, group.function);
        let code: &Code = &cx.grid.program.functions[function as usize];
        cx.code = code;
        cx.warp.window = group.window.registers;
        cx.warp.local_base = group.window.local;
        let end = meeting(cx.warp, start).min(start.saturating_add(*left as u32)).min(code.ops.len() as u32);
        let (pc, flow) = straight(cx, start, end, mask);
        let count = pc - start + u32::from(flow != Flow::Retry && flow != Flow::Next);
        *left -= i64::from(count.max(1));
        cx.block.clock += u64::from(count);
        cx.counters.ran(function, start, count, mask);
        match flow {
            Flow::Next if pc as usize == code.ops.len() => {
                // The end of the text returns. It has no operation of its own; `ret` reads nothing of this one.
                let Some(op) = code.ops.last() else { return cx.fault(Kind::InvalidOperation, "empty function") };
                (cx.mask, cx.pc) = (mask, pc - 1);
                let _ = super::control::ret(cx, op);
            }
            Flow::Next => cx.warp.groups[current].pc = pc,
            Flow::Retry => {
                retry(cx, pc);
                return Flow::Next;
            }
            Flow::Yield => {
                cx.warp.groups[current].pc = pc + 1;
                cx.warp.groups[current].wait = Wait::Yielded;
                return Flow::Next;
            }
            Flow::Regroup => {}
            Flow::Fault => return Flow::Fault,
        }
        if cx.warp.groups.len() != 1 || *left <= 0 {
            return Flow::Next;
        }
        cx.warp.current = 0;
    }
}

/// Runs operations one after the other; where it stopped, and why: at `end`, or at the operation that asked for it.
#[inline(always)]
fn straight(cx: &mut Cx<'_>, start: u32, end: u32, mask: u32) -> (u32, Flow) {
    let mut pc = start;
    for op in &cx.code.ops[start as usize..end as usize] {
        let mut active = mask;
        if op.guard != Guard::ALWAYS {
            active = cx.warp.guarded(op.guard, mask);
            cx.counters.masked[op.class as usize] += u64::from((mask & !active).count_ones());
            if active == 0 {
                pc += 1;
                continue;
            }
        }
        cx.mask = active;
        cx.pc = pc;
        // SAFETY: `run` was chosen for this machine when the operation was lowered.
        let flow = unsafe { (op.run)(cx, op) };
        if flow != Flow::Next {
            return (pc, flow);
        }
        pc += 1;
    }
    (pc, Flow::Next)
}

/// Where the current group, if it runs on from `start`, first meets another of the same function.
fn meeting(warp: &Warp, start: u32) -> u32 {
    if warp.groups.len() == 1 {
        return u32::MAX;
    }
    let current = &warp.groups[warp.current];
    let meets = |g: &&Group| {
        g.pc > start && g.function == current.function && !matches!(g.wait, Wait::Barrier(..) | Wait::Team(_))
    };
    warp.groups.iter().filter(meets).map(|g| g.pc).min().unwrap_or(u32::MAX)
}

/// The operation at `pc` could not complete: its lanes try again later, those that its guard left out go on.
fn retry(cx: &mut Cx<'_>, pc: u32) {
    let mask = cx.mask;
    let group = &mut cx.warp.groups[cx.warp.current];
    group.pc = pc;
    if matches!(group.wait, Wait::No | Wait::Released(_)) {
        group.wait = Wait::Yielded;
    }
    if group.mask != mask {
        let mut rest = group.clone();
        group.mask = mask;
        rest.mask &= !mask;
        rest.pc = pc + 1;
        rest.wait = Wait::No;
        cx.warp.groups.push(rest);
    }
}

/// Says where the fault that an operation recorded happened.
#[cold]
fn complete(cx: &mut Cx<'_>) -> Box<Fault> {
    let mut fault = cx.fault.take().unwrap_or_else(|| Box::new(Fault::new(Kind::InvalidOperation, "unknown fault")));
    fault.kernel = cx.grid.name.to_string();
    if cx.code.name != cx.grid.name {
        fault.function = Some(cx.code.name.clone());
    }
    let pc = cx.pc as usize;
    // The fault of an asynchronous operation has the line where it was issued.
    let issued = (fault.line != 0).then(|| cx.code.ops.iter().position(|op| op.line == fault.line));
    fault.line = if fault.line == 0 { cx.code.ops.get(pc).map_or(0, |op| op.line) } else { fault.line };
    let source = issued.unwrap_or(Some(pc)).and_then(|pc| cx.code.sources.get(pc)).filter(|s| s.1 != 0);
    if fault.source.is_none() {
        fault.source = source.map(|&(file, line)| (cx.grid.program.file(file).unwrap_or("?").to_string(), line));
    }
    fault.block = Some(cx.block.ctaid);
    fault.warp = fault.warp.or(Some(cx.warp.id));
    if fault.lane.is_none() && cx.mask.count_ones() == 1 {
        fault.lane = Some(cx.mask.trailing_zeros());
    }
    fault
}
