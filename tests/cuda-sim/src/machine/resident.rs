//! A resident block: its warps take turns.

use super::async_queue;
use super::block::Block;
use super::cluster::Home;
use super::fault::{Fault, Kind};
use super::grid::Grid;
use super::run::{self, Turn};
use super::warp::Warp;
use crate::check::race;
use crate::counters::Counters;

/// Operations of a warp's turn: at least and at most.
const TURN: (u64, u64) = (64, 1024);
/// Rounds in which all warps only wait, before a block counts as stuck.
const IDLE_ROUNDS: u32 = 64;
/// Operations without any effect, before a block counts as stuck.
const IDLE_OPERATIONS: u64 = 1 << 27;

/// How far a block came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It used its slice up.
    Running,
    /// Nothing it could do by itself helps it on.
    Stuck,
    /// All its threads have exited.
    Done,
}

/// A block and its warps.
pub struct Resident {
    /// The block.
    pub block: Home,
    /// Its place in the order in which blocks start.
    pub position: u64,
    warps: Vec<Warp>,
    order: Vec<u32>,
    idle_rounds: u32,
    /// [`Block::progress`] and [`Block::clock`] when progress was last seen.
    seen: (u64, u64),
}

impl Resident {
    /// A block that has not run.
    pub fn new(grid: &Grid<'_>, index: u64, position: u64) -> Resident {
        let block = Home::new(Block::new(grid, index));
        let mut resident =
            Resident { block, position, warps: Vec::new(), order: Vec::new(), idle_rounds: 0, seen: (0, 0) };
        resident.start(grid);
        resident
    }

    /// Makes it another block, reusing its memory.
    pub fn restart(&mut self, grid: &Grid<'_>, index: u64, position: u64) {
        self.block.restart(grid, index);
        self.position = position;
        self.start(grid);
    }

    fn start(&mut self, grid: &Grid<'_>) {
        let threads = grid.block_dim.iter().product::<u32>();
        self.warps.resize_with(threads.div_ceil(32) as usize, Warp::default);
        let function = grid.entry.function;
        let code = &grid.program.functions[function];
        for (id, warp) in self.warps.iter_mut().enumerate() {
            warp.start(id as u32, grid.block_dim, function as u32, code);
        }
        self.order.clear();
        self.order.extend(0..self.warps.len() as u32);
        self.idle_rounds = 0;
        self.seen = (0, 0);
    }

    /// Runs about `budget` operations.
    pub fn slice(&mut self, grid: &Grid<'_>, counters: &mut Counters, budget: u64) -> Result<State, Box<Fault>> {
        let end = self.block.clock + budget;
        if self.block.progress != self.seen.0 {
            // Another block of the cluster has arrived, or copied, here.
            self.hope();
        }
        loop {
            let before = self.block.progress;
            let waiting = self.round(grid, counters)?;
            if self.order.is_empty() {
                async_queue::finish(&mut self.block, grid).map_err(|fault| self.place(fault, grid))?;
                race::finish(&self.block, grid);
                return Ok(State::Done);
            }
            if self.block.progress != before {
                self.idle_rounds = 0;
                self.seen = (self.block.progress, self.block.clock);
            } else if waiting {
                let landed = async_queue::idle(&mut self.block, grid).map_err(|fault| self.place(fault, grid))?;
                self.idle_rounds += u32::from(!landed);
            }
            let spun = self.block.clock - self.seen.1;
            if self.idle_rounds >= IDLE_ROUNDS || spun >= IDLE_OPERATIONS {
                return Ok(State::Stuck);
            }
            if self.block.clock >= end {
                return Ok(State::Running);
            }
        }
    }

    /// One turn for every warp, in an order of chance. Whether all of them waited.
    fn round(&mut self, grid: &Grid<'_>, counters: &mut Counters) -> Result<bool, Box<Fault>> {
        self.block.rng.shuffle(&mut self.order);
        let mut waiting = true;
        let mut i = 0;
        while i < self.order.len() {
            let budget = TURN.0 + self.block.rng.below(TURN.1 - TURN.0 + 1);
            let warp = &mut self.warps[self.order[i] as usize];
            match run::turn(warp, &mut self.block, grid, counters, budget as u32)? {
                Turn::Ran => waiting = false,
                Turn::Waiting => {}
                Turn::Exited => {
                    self.order.swap_remove(i);
                    continue;
                }
            }
            async_queue::turn(&mut self.block, grid).map_err(|fault| self.place(fault, grid))?;
            i += 1;
        }
        Ok(waiting)
    }

    /// Completes the fault of an asynchronous operation, which no warp runs.
    fn place(&self, mut fault: Fault, grid: &Grid<'_>) -> Fault {
        fault.kernel = grid.name.to_string();
        fault.block = fault.block.or(Some(self.block.ctaid));
        fault
    }

    /// Forgets that it was stuck: another block may have helped it.
    pub fn hope(&mut self) {
        self.idle_rounds = 0;
        self.seen = (self.block.progress, self.block.clock);
    }

    /// The fault of a block that nothing can help any more.
    pub fn deadlock(&self, grid: &Grid<'_>) -> Box<Fault> {
        let mut waits = Vec::new();
        for &id in self.order.iter().take(4) {
            waits.push(self.warps[id as usize].describe_wait(grid));
        }
        waits.sort();
        let more = self.order.len().saturating_sub(waits.len());
        let more = if more == 0 { String::new() } else { format!(" and {more} more warps") };
        let first = self.order.iter().min().map_or(0, |&id| id);
        let (line, source) = self.warps[first as usize].place(grid);
        Box::new(Fault {
            kernel: grid.name.to_string(),
            line,
            source,
            block: Some(self.block.ctaid),
            warp: Some(first),
            ..Fault::new(Kind::Deadlock, format!("nothing can make progress: {}{more}", waits.join("; ")))
        })
    }
}
