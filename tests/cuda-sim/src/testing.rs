//! Runs a few instructions on one warp, for the unit tests of the families.

use crate::check::Checks;
use crate::code::Flow;
use crate::counters::Counters;
use crate::lower::{Lower, Symbol};
use crate::machine::block::Block;
use crate::machine::grid::{Grid, Launch};
use crate::machine::warp::{Group, Warp};
use crate::machine::{Cx, FULL, LANES, Row};
use crate::memory::GlobalMemory;
use crate::program::{Entry, Program};
use crate::ptx::{Result, parse_body};

/// Declarations and straight-line code, with the registers of the warp that runs it.
///
/// ```ignore
/// let mut s = Snippet::new(".reg .b32 %a, %d; add.u32 %d, %a, 1;").unwrap();
/// s.set_b32("%a", [41; 32]);
/// s.run();
/// assert_eq!(s.b32("%d"), [42; 32]);
/// ```
pub struct Snippet {
    lower: Lower,
    warp: Warp,
    block: Option<Block>,
    /// Global memory that the code may use.
    pub memory: GlobalMemory,
}

/// Shared memory of a snippet.
const SHARED_BYTES: u32 = 48 << 10;

impl Snippet {
    /// Parses and lowers; the error is the one that loading a module would give.
    pub fn new(text: &str) -> Result<Snippet> {
        let mut lower = Lower::default();
        lower.statements(&parse_body(text)?)?;
        let (b32, b64, preds) = lower.code.registers;
        let warp = Warp {
            b32: vec![[0; LANES]; b32 as usize],
            b64: vec![[0; LANES]; b64 as usize],
            preds: vec![0; preds as usize],
            tid: [std::array::from_fn(|lane| lane as u32), [0; LANES], [0; LANES]],
            threads: FULL,
            groups: vec![Group { mask: FULL, ..Group::default() }],
            ..Warp::default()
        };
        Ok(Snippet { lower, warp, block: None, memory: GlobalMemory::new(1 << 30, false) })
    }

    fn row(&self, name: &str) -> usize {
        match self.lower.lookup(name) {
            Some(Symbol::Register(row, _)) => row as usize,
            other => panic!("`{name}` is {other:?}"),
        }
    }

    /// Sets a register of 32 bits or less.
    pub fn set_b32(&mut self, name: &str, value: Row<u32>) {
        let row = self.row(name);
        self.warp.b32[row] = value;
    }

    /// Sets a 64-bit register, or the low half of a 128-bit one.
    pub fn set_b64(&mut self, name: &str, value: Row<u64>) {
        let row = self.row(name);
        self.warp.b64[row] = value;
    }

    /// Sets a predicate, a bit per lane.
    pub fn set_pred(&mut self, name: &str, value: u32) {
        let row = self.row(name);
        self.warp.preds[row] = value;
    }

    /// Reads a register of 32 bits or less.
    pub fn b32(&self, name: &str) -> Row<u32> {
        self.warp.b32[self.row(name)]
    }

    /// Reads a 64-bit register, or the low half of a 128-bit one.
    pub fn b64(&self, name: &str) -> Row<u64> {
        self.warp.b64[self.row(name)]
    }

    /// Reads a predicate.
    pub fn pred(&self, name: &str) -> u32 {
        self.warp.preds[self.row(name)]
    }

    /// The shared memory.
    pub fn shared(&mut self) -> &mut [u8] {
        if self.block.is_none() {
            self.run_lanes(0);
        }
        let block = self.block.as_mut().expect("a run makes it");
        block.shared.get_mut(0, u64::from(SHARED_BYTES)).expect("the whole of it")
    }

    /// Runs everything once with all lanes.
    pub fn run(&mut self) {
        self.run_lanes(FULL);
    }

    /// Runs everything once with the lanes of `lanes`.
    pub fn run_lanes(&mut self, lanes: u32) {
        let (program, entry) = (Program::default(), Entry::default());
        let launch = Launch {
            dynamic_shared: SHARED_BYTES,
            checks: Checks::NONE,
            ..Launch::of(&program, "snippet", &entry, &self.memory)
        };
        let grid = Grid::new(&launch).expect("one block of one warp");
        let block = self.block.get_or_insert_with(|| Block::new(&grid, 0));
        let code = &self.lower.code;
        for (pc, op) in code.ops.iter().enumerate() {
            let mask = self.warp.guarded(op.guard, lanes);
            if mask == 0 {
                continue;
            }
            let counters = &mut Counters::default();
            let mut cx = Cx { mask, pc: pc as u32, ..Cx::new(&mut self.warp, code, block, &grid, counters) };
            // SAFETY: `run` was chosen by `simd::choose` on this machine.
            let flow = unsafe { (op.run)(&mut cx, op) };
            assert_eq!(flow, Flow::Next, "PTX line {}: {:?}", op.line, cx.fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_and_a_mask_limit_what_is_written() {
        let mut s = Snippet::new(".reg .b32 %r<3>; .reg .pred %p; @!%p add.s32 %r2, %r0, -1;").unwrap();
        s.set_b32("%r0", std::array::from_fn(|lane| lane as u32));
        s.set_b32("%r2", [77; LANES]);
        s.set_pred("%p", 0b0110);
        s.run_lanes(0b1111);
        let expected = std::array::from_fn(|lane| match lane {
            0 => u32::MAX,
            3 => 2,
            _ => 77,
        });
        assert_eq!(s.b32("%r2"), expected);
    }

    #[test]
    fn a_snippet_is_refused_like_a_module() {
        let refused = |text: &str| Snippet::new(text).err().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(refused("\nfrob.u32 %a;"), "PTX line 2: `frob.u32`: unknown instruction");
        assert_eq!(refused("add.u32 %a, %b, %c;"), "PTX line 1: `add.u32`: `%a` is not declared");
    }
}
