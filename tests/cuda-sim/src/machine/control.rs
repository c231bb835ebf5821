//! Control flow: branches, calls, exits and traps (PTX ISA 9.0, sections 9.7.12 and 9.7.19), on the groups of a warp.

use super::fault::{Fault, Kind};
use super::warp::{Frame, Group, Wait};
use super::{Cx, LANES};
use crate::code::{FUNCTION_STRIDE, FUNCTION_WINDOW, Flow, Op};

/// Calls that may be open at once in a thread.
const DEEPEST: usize = 1024;

/// `bra`: [`Op::imm`] is the operation to go on with.
pub fn branch(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let (mask, pc) = (cx.mask, cx.pc);
    jump(cx, mask, pc, op.imm as u32);
    Flow::Regroup
}

/// `brx.idx`: the 32-bit `src[0]` chooses among the operations whose indexes stand in the list as plain numbers.
pub fn branch_indexed(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let index = cx.b32(op.src[0]);
    let targets = &cx.code.list[op.list.0 as usize..op.list.1 as usize];
    let (mut left, pc) = (cx.mask, cx.pc);
    while left != 0 {
        let lane = left.trailing_zeros() as usize;
        let Some(target) = targets.get(index[lane] as usize) else {
            let message = format!("branch index {} of {} targets", index[lane], targets.len());
            return cx.fail(Fault::new(Kind::InvalidOperation, message).at_lane(lane as u32));
        };
        let mut mask = 0;
        for other in 0..LANES {
            mask |= u32::from(index[other] == index[lane]) << other;
        }
        jump(cx, mask & left, pc, target.0);
        left &= !mask;
    }
    Flow::Regroup
}

/// Sends lanes of the current group to `target`; those that stay go on after `pc`.
fn jump(cx: &mut Cx<'_>, lanes: u32, pc: u32, target: u32) {
    let group = &mut cx.warp.groups[cx.warp.current];
    if group.mask == lanes {
        group.pc = target;
    } else {
        group.mask &= !lanes;
        group.pc = pc + 1;
        let gone = Group { mask: lanes, pc: target, ..group.clone() };
        cx.warp.groups.push(gone);
    }
}

/// Takes the executing lanes into a group of their own, which becomes the current one; the others go on behind them.
fn separate(cx: &mut Cx<'_>) {
    let (mask, pc) = (cx.mask, cx.pc);
    let group = &mut cx.warp.groups[cx.warp.current];
    if group.mask != mask {
        let mut rest = group.clone();
        rest.mask &= !mask;
        rest.pc = pc + 1;
        group.mask = mask;
        cx.warp.groups.push(rest);
    }
}

/// `call`: [`Op::imm`] is the function. The list has triples (caller's offset, callee's offset, bytes) in local memory,
/// as plain numbers: first `src[0]` arguments, then the return values.
pub fn call(cx: &mut Cx<'_>, op: &Op) -> Flow {
    separate(cx);
    enter(cx, op, op.imm as u32)
}

/// An indirect `call`: the 64-bit `src[1]` holds the function's address.
pub fn call_indirect(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let targets = cx.b64(op.src[1]);
    let first = cx.mask.trailing_zeros() as usize;
    let function = targets[first];
    let mut mask = 0;
    for lane in 0..LANES {
        mask |= u32::from(targets[lane] == function) << lane;
    }
    let all = cx.mask;
    let index = function.wrapping_sub(FUNCTION_WINDOW);
    if !index.is_multiple_of(FUNCTION_STRIDE) || index / FUNCTION_STRIDE >= cx.grid.program.functions.len() as u64 {
        let message = format!("call of {function:#x}, which is no function");
        return cx.fail(Fault::new(Kind::InvalidOperation, message).at_lane(first as u32));
    }
    separate(cx);
    if mask & all != all {
        // Lanes that call another function try again from here.
        let group = &mut cx.warp.groups[cx.warp.current];
        let rest = Group { mask: all & !mask, pc: cx.pc, ..group.clone() };
        group.mask = all & mask;
        cx.warp.groups.push(rest);
        cx.mask = all & mask;
    }
    enter(cx, op, (index / FUNCTION_STRIDE) as u32)
}

/// Makes the current group, all of whose lanes execute, go into a function.
fn enter(cx: &mut Cx<'_>, op: &Op, function: u32) -> Flow {
    let group = &mut cx.warp.groups[cx.warp.current];
    if group.frames.len() >= DEEPEST {
        return cx.fault(Kind::StackOverflow, format!("{DEEPEST} calls deep"));
    }
    let caller = group.window;
    let window = caller.callee(cx.code);
    group.frames.push(Frame { function: group.function, pc: cx.pc, window: caller });
    group.function = function;
    group.window = window;
    group.pc = 0;
    let arguments = op.src[0].0 as usize;
    let triples = &cx.code.list[op.list.0 as usize..op.list.1 as usize];
    for triple in triples.chunks_exact(3).take(arguments) {
        copy_local(cx, window.local + triple[1].0, caller.local + triple[0].0, triple[2].0);
    }
    let code = &cx.grid.program.functions[function as usize];
    cx.warp.enter(window, code);
    Flow::Regroup
}

/// `ret`: back to the caller; in a kernel, the end of the thread.
pub fn ret(cx: &mut Cx<'_>, op: &Op) -> Flow {
    separate(cx);
    let group = &mut cx.warp.groups[cx.warp.current];
    let Some(frame) = group.frames.pop() else {
        return exit(cx, op);
    };
    let callee = group.window;
    group.function = frame.function;
    group.window = frame.window;
    group.pc = frame.pc + 1;
    let program = cx.grid.program;
    let caller = &program.functions[frame.function as usize];
    let call = &caller.ops[frame.pc as usize];
    let triples = &caller.list[call.list.0 as usize..call.list.1 as usize];
    for triple in triples.chunks_exact(3).skip(call.src[0].0 as usize) {
        copy_local(cx, frame.window.local + triple[0].0, callee.local + triple[1].0, triple[2].0);
    }
    Flow::Regroup
}

/// Copies local memory of the executing lanes.
fn copy_local(cx: &mut Cx<'_>, to: u32, from: u32, bytes: u32) {
    cx.warp.local.reserve_to(to.max(from) + bytes);
    for i in 0..bytes {
        for lane in 0..LANES as u32 {
            if cx.mask >> lane & 1 != 0 {
                let byte = cx.warp.local.byte(from + i, lane);
                cx.warp.local.set_byte(to + i, lane, byte);
            }
        }
    }
}

/// `exit`
pub fn exit(cx: &mut Cx<'_>, _op: &Op) -> Flow {
    let (mask, pc) = (cx.mask, cx.pc);
    let warp = &mut *cx.warp;
    let group = &mut warp.groups[warp.current];
    group.mask &= !mask;
    group.pc = pc + 1;
    if group.mask == 0 {
        warp.groups.swap_remove(warp.current);
    }
    cx.block.live_threads -= mask.count_ones();
    cx.block.advance();
    cx.block.complete_barriers();
    Flow::Regroup
}

/// `trap`
pub fn trap(cx: &mut Cx<'_>, _op: &Op) -> Flow {
    cx.fault(Kind::Trap, "trap instruction")
}

/// `brkpt`
pub fn breakpoint(cx: &mut Cx<'_>, _op: &Op) -> Flow {
    cx.fault(Kind::Breakpoint, "brkpt instruction")
}

impl Cx<'_> {
    /// For collective instructions: none if all threads of the warp that have not exited are here, else what to return.
    /// They are waited for; if they cannot come, the launch ends with a fault.
    pub fn whole_warp(&mut self) -> Option<Flow> {
        let live = self.warp.live();
        self.lanes(live)
    }

    /// The same for the lanes of a member mask.
    pub fn lanes(&mut self, members: u32) -> Option<Flow> {
        if members & self.warp.live() & !self.mask == 0 {
            return None;
        }
        separate(self);
        self.warp.groups[self.warp.current].wait = Wait::Converge(members);
        Some(Flow::Retry)
    }
}
