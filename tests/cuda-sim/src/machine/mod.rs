//! The machine: lanes in warps, warps in blocks, blocks in a grid.

pub mod access;
pub mod async_queue;
pub mod block;
pub mod cluster;
pub mod control;
pub mod fault;
pub mod grid;
#[cfg(test)]
pub(crate) mod harness;
mod launch;
mod resident;
mod run;
pub mod schedule;
pub mod simd;
#[cfg(test)]
mod tests;
pub mod warp;

use std::sync::MutexGuard;

use crate::code::{Code, Dst, Flow, Src};
use crate::counters::Counters;
use block::Block;
use fault::{Fault, Kind};
use grid::Grid;
pub use launch::{Report, launch};
use warp::Warp;

/// Lanes in a warp.
pub const LANES: usize = 32;

/// A value of every lane.
pub type Row<T> = [T; LANES];

/// All lanes.
pub const FULL: u32 = u32::MAX;

/// What an operation sees.
pub struct Cx<'a> {
    /// The warp that runs.
    pub warp: &'a mut Warp,
    /// The function that runs.
    pub code: &'a Code,
    /// The lanes that execute: the current group, less those whose guard is false.
    pub mask: u32,
    /// Index of the operation that runs.
    pub pc: u32,
    /// The block that runs.
    pub block: &'a mut Block,
    /// The launch.
    pub grid: &'a Grid<'a>,
    /// What this host thread counts.
    pub counters: &'a mut Counters,
    /// Why the launch ends, after [`Flow::Fault`].
    pub fault: Option<Box<Fault>>,
    /// The turn of a strong access, see [`Cx::reached`].
    pub turn: Option<MutexGuard<'a, ()>>,
    /// Whether the operation compares what it stores with what is there, and the race that it is if they differ.
    pub repeats: Repeats,
}

/// A store to shared memory that nothing orders with an earlier one does no harm if it stores the same.
#[derive(Default)]
pub enum Repeats {
    /// The operation does not compare.
    #[default]
    No,
    /// It would.
    Asked,
    /// It must: else this is the fault.
    Doubted(Box<Fault>),
}

impl<'a> Cx<'a> {
    /// Before the first operation.
    pub fn new(
        warp: &'a mut Warp,
        code: &'a Code,
        block: &'a mut Block,
        grid: &'a Grid<'a>,
        counters: &'a mut Counters,
    ) -> Cx<'a> {
        Cx { warp, code, mask: 0, pc: 0, block, grid, counters, fault: None, turn: None, repeats: Repeats::No }
    }

    /// Records a fault at the current operation.
    #[cold]
    pub fn fail(&mut self, fault: Fault) -> Flow {
        self.fault = Some(Box::new(fault));
        Flow::Fault
    }

    /// Records a fault of the whole warp at the current operation.
    #[cold]
    pub fn fault(&mut self, kind: Kind, message: impl Into<String>) -> Flow {
        self.fail(Fault::new(kind, message))
    }

    /// A 32-bit operand. 16-bit values are zero-extended.
    #[inline(always)]
    pub fn b32(&self, src: Src) -> Row<u32> {
        match src.as_constant() {
            Some(i) => [self.code.constants[i] as u32; LANES],
            None => self.warp.b32[self.warp.window.0 + src.0 as usize],
        }
    }

    /// A 64-bit operand.
    #[inline(always)]
    pub fn b64(&self, src: Src) -> Row<u64> {
        match src.as_constant() {
            Some(i) => [self.code.constants[i]; LANES],
            None => self.warp.b64[self.warp.window.1 + src.0 as usize],
        }
    }

    /// A predicate operand, one bit per lane.
    #[inline(always)]
    pub fn pred(&self, src: Src) -> u32 {
        match src.as_constant() {
            Some(i) => 0u32.wrapping_sub((self.code.constants[i] != 0) as u32),
            None => self.warp.preds[self.warp.window.2 + src.0 as usize],
        }
    }

    /// Writes a 32-bit register in the executing lanes.
    #[inline(always)]
    pub fn set_b32(&mut self, dst: Dst, value: Row<u32>) {
        if dst == Dst::SINK {
            return;
        }
        let row = &mut self.warp.b32[self.warp.window.0 + dst.0 as usize];
        if self.mask == FULL {
            *row = value;
        } else {
            for lane in 0..LANES {
                row[lane] = if self.mask >> lane & 1 != 0 { value[lane] } else { row[lane] };
            }
        }
    }

    /// Writes a 64-bit register in the executing lanes.
    #[inline(always)]
    pub fn set_b64(&mut self, dst: Dst, value: Row<u64>) {
        if dst == Dst::SINK {
            return;
        }
        let row = &mut self.warp.b64[self.warp.window.1 + dst.0 as usize];
        if self.mask == FULL {
            *row = value;
        } else {
            for lane in 0..LANES {
                row[lane] = if self.mask >> lane & 1 != 0 { value[lane] } else { row[lane] };
            }
        }
    }

    /// Writes a predicate in the executing lanes.
    #[inline(always)]
    pub fn set_pred(&mut self, dst: Dst, value: u32) {
        if dst == Dst::SINK {
            return;
        }
        let row = &mut self.warp.preds[self.warp.window.2 + dst.0 as usize];
        *row = *row & !self.mask | value & self.mask;
    }
}
