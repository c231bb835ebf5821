//! A step in device memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::abi::{self, WeftCounts, WeftStep};
use super::device::Device;
use super::graph::Graphs;
use super::kernels::Held;
use super::memory::{Buffer, Pinned};
use crate::backend::{Capacity, Error, Step};

/// A list of a step whose length the kernels read from device memory, by its place in `WeftCounts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// Rows of the pass.
    Rows = 0,
    /// Branches of images.
    Sequences = 1,
    /// Tiles of the attention.
    Tiles = 2,
    /// Input rows of the spatial heads.
    Sources = 3,
    /// Rows whose distributions are wanted.
    Predictions = 4,
    /// Tokens to draw from the heads.
    Drafts = 5,
    /// Tokens to draw from the pass.
    Verdicts = 6,
    /// Rows of logits to keep.
    Copies = 7,
}

impl Count {
    /// Its value.
    pub(super) fn of(self, counts: &WeftCounts) -> usize {
        use Count::*;
        let value = match self {
            Rows => counts.rows,
            Sequences => counts.sequences,
            Tiles => counts.tiles,
            Sources => counts.sources,
            Predictions => counts.predictions,
            Drafts => counts.drafts,
            Verdicts => counts.verdicts,
            Copies => counts.copies,
        };
        value as usize
    }
}

/// The lengths that grids are made for: those of the current step, rounded up so that few graphs serve all steps.
#[derive(Debug, Default)]
pub(super) struct Limits([AtomicUsize; 8]);

impl Limits {
    /// No more than this of these.
    pub(super) fn get(&self, which: Count) -> usize {
        self.0[which as usize].load(Ordering::Relaxed)
    }
}

/// Room for a step on the device, what it was last set to, and the graphs recorded for it.
pub struct DeviceStep {
    memory: Buffer<u8>,
    counts: Buffer<WeftCounts>,
    limits: Arc<Limits>,
    pointers: WeftStep,
    pub(super) graphs: Graphs,
}

impl DeviceStep {
    /// The kernel's parameter, a `WeftStep`.
    pub(super) fn arg(&self) -> Held<'_, WeftStep> {
        Held { value: self.pointers, memory: Some(self.memory.allocation()) }
    }

    /// What it was set to.
    pub(super) fn host(&self) -> &Step {
        &self.host
    }

    /// No more than this of these: what a grid is made for.
    pub(super) fn most(&self, which: Count) -> usize {
        self.limits.get(which)
    }
}
