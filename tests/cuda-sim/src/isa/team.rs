//! Runs straight-line code on several warps of a block, for the tests of collective and asynchronous instructions.

use crate::check::{Checks, race};
use crate::code::Flow;
use crate::counters::Counters;
use crate::lower::{Lower, Symbol};
use crate::machine::async_queue;
use crate::machine::block::Block;
use crate::machine::fault::{Fault, Kind};
use crate::machine::grid::{Grid, Launch};
use crate::machine::schedule::{AsyncTiming, Schedule};
use crate::machine::warp::{Group, Warp};
use crate::machine::{Cx, FULL, LANES, Row};
use crate::memory::{GlobalMemory, Origin};
use crate::program::{Entry, Program};
use crate::ptx::parse_body;

pub const SHARED_BYTES: u32 = 160 << 10;

/// Warps that run the same code.
pub struct Team {
    lower: Lower,
    pub warps: Vec<Warp>,
    pub block: Option<Block>,
    pub memory: GlobalMemory,
    pub timing: AsyncTiming,
    pub params: Vec<u8>,
    pub checks: Checks,
    /// Operations done by each warp.
    at: Vec<usize>,
}

impl Team {
    pub fn new(text: &str, warps: usize, timing: AsyncTiming) -> Team {
        let mut lower = Lower::default();
        let body = parse_body(text).unwrap_or_else(|e| panic!("{e}"));
        lower.statements(&body).unwrap_or_else(|e| panic!("{e}"));
        let (b32, b64, preds) = lower.code.registers;
        let warp = |id: usize| Warp {
            id: id as u32,
            b32: vec![[0; LANES]; b32 as usize],
            b64: vec![[0; LANES]; b64 as usize],
            preds: vec![0; preds as usize],
            threads: FULL,
            groups: vec![Group { mask: FULL, ..Group::default() }],
            ..Warp::default()
        };
        Team {
            lower,
            warps: (0..warps).map(warp).collect(),
            block: None,
            memory: GlobalMemory::new(1 << 24, true),
            timing,
            params: Vec::new(),
            checks: Checks::NONE,
            at: vec![0; warps],
        }
    }

    fn row(&self, name: &str) -> usize {
        match self.lower.lookup(name) {
            Some(Symbol::Register(row, _)) => row as usize,
            other => panic!("`{name}` is {other:?}"),
        }
    }

    pub fn set_b32(&mut self, name: &str, value: Row<u32>) {
        let row = self.row(name);
        self.warps.iter_mut().for_each(|warp| warp.b32[row] = value);
    }

    pub fn set_b64(&mut self, name: &str, value: u64) {
        let row = self.row(name);
        self.warps.iter_mut().for_each(|warp| warp.b64[row] = [value; LANES]);
    }

    pub fn set_pred(&mut self, name: &str, value: u32) {
        let row = self.row(name);
        self.warps.iter_mut().for_each(|warp| warp.preds[row] = value);
    }

    pub fn b32(&self, warp: usize, name: &str) -> Row<u32> {
        self.warps[warp].b32[self.row(name)]
    }

    pub fn pred(&self, warp: usize, name: &str) -> u32 {
        self.warps[warp].preds[self.row(name)]
    }

    /// Device memory with these bytes.
    pub fn allocate(&self, bytes: &[u8]) -> u64 {
        let address = self.memory.allocate(bytes.len() as u64, 512, Origin::Alloc).expect("it fits");
        self.memory.write(address, bytes).expect("just allocated");
        address
    }

    pub fn shared(&mut self) -> &mut [u8] {
        self.run_to(0).expect("nothing runs");
        let block = self.block.as_mut().expect("a run makes it");
        block.shared.get_mut(0, SHARED_BYTES as u64).expect("the whole of it")
    }

    /// Turns the race check on, before the code touches memory.
    pub fn check_races(&mut self) {
        self.checks.race = true;
        if let Some(block) = &mut self.block {
            let warps = self.warps.len() as u32;
            block.race = Some(Box::new(race::State::new(warps, SHARED_BYTES, block.barriers.len(), false)));
        }
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Result<(), Fault> {
        self.run_to(usize::MAX)
    }

    /// Runs every warp, in turn, up to its operation `end`. All warps waiting is a deadlock.
    pub fn run_to(&mut self, end: usize) -> Result<(), Fault> {
        let order: Vec<usize> = (0..self.warps.len()).collect();
        self.run_warps(&order, end)
    }

    /// As [`Team::run_to`] for some of the warps.
    pub fn run_warps(&mut self, order: &[usize], end: usize) -> Result<(), Fault> {
        let (program, entry) = (Program::default(), Entry::default());
        let launch = Launch {
            block: [32 * self.warps.len() as u32, 1, 1],
            dynamic_shared: SHARED_BYTES,
            checks: self.checks,
            schedule: Schedule { seed: 1, async_timing: self.timing, threads: 1 },
            params: &self.params,
            ..Launch::of(&program, "team", &entry, &self.memory)
        };
        let grid = Grid::new(&launch)?;
        let block = self.block.get_or_insert_with(|| Block::new(&grid, 0));
        let code = &self.lower.code;
        let end = end.min(code.ops.len());
        loop {
            let mut moved = false;
            for &w in order {
                let (warp, counters) = (&mut self.warps[w], &mut Counters::default());
                while self.at[w] < end {
                    let pc = self.at[w];
                    let op = &code.ops[pc];
                    let mask = warp.guarded(op.guard, FULL);
                    if mask != 0 {
                        let mut cx = Cx { mask, pc: pc as u32, ..Cx::new(warp, code, block, &grid, counters) };
                        // SAFETY: `run` was chosen by `simd::choose` on this machine.
                        match unsafe { (op.run)(&mut cx, op) } {
                            Flow::Next | Flow::Yield => {}
                            Flow::Retry => break,
                            Flow::Fault => return Err(*cx.fault.expect("a fault says why")),
                            Flow::Regroup => panic!("the code must be straight"),
                        }
                    }
                    self.at[w] += 1;
                    moved = true;
                }
                async_queue::turn(block, &grid)?;
            }
            if order.iter().all(|&w| self.at[w] >= end) {
                return Ok(());
            }
            if !moved && !async_queue::idle(block, &grid)? {
                return Err(Fault::new(Kind::Deadlock, "every warp waits"));
            }
        }
    }

    /// What the end of the block finds.
    pub fn finish(&mut self) -> Result<(), Fault> {
        let (program, entry) = (Program::default(), Entry::default());
        let launch = Launch { checks: self.checks, ..Launch::of(&program, "team", &entry, &self.memory) };
        let grid = Grid::new(&launch)?;
        async_queue::finish(self.block.as_mut().expect("it ran"), &grid)
    }
}
