//! A step in device memory: what varies from step to step, sent there in one copy.
//!
//! The lists of a step follow each other in one region. Where each begins depends on the step's [`Bucket`] alone, so a
//! graph recorded for a bucket finds them in every step of that bucket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::abi::{WeftCounts, WeftStep};
use super::device::Device;
use super::graph::Graphs;
use super::kernels::Held;
use super::lists::Lists;
use super::memory::{Buffer, Event, Pinned};
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
    /// Tokens that the host chose.
    Puts = 8,
    /// Drafts that are children in draft trees.
    DraftChildren = 9,
    /// Verdicts that are.
    Children = 10,
    /// Verdicts that are siblings in draft trees.
    Siblings = 11,
    /// Positions to denoise.
    Goals = 12,
}

/// Lists that [`Count`] names.
pub(super) const COUNTS: usize = 13;

/// What the entries of a step index, and a step cannot know by itself: an op that is run with the step says how large it
/// is, and steps that reach further are refused from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// Pages of the cache.
    Pages = 0,
    /// Tokens of the canvas, of all images.
    Tokens = 1,
    /// Rows of the kept states.
    States = 2,
    /// Rows of the logits that drafts are drawn from.
    DraftLogits = 3,
    /// Rows of the logits that verdicts are drawn from.
    VerdictLogits = 4,
    /// Rows of the logits that copies are made in.
    CopyLogits = 5,
    /// Images of the canvas.
    Images = 6,
    /// Positions of an image of the canvas.
    Positions = 7,
    /// Tokens of the vocabulary.
    Vocabulary = 8,
    /// Kinds of laws that the canvas keeps: one if it has room for any.
    Laws = 9,
    /// Nearest others that a codebook knows of each token.
    Neighbours = 10,
    /// Codebooks.
    Codebooks = 11,
    /// Places of an image of the canvas: its positions and the nodes of its tree.
    Places = 12,
    /// Sequences with states for the positions of their grids.
    Grids = 13,
    /// Sequences with states for the nodes of their trees.
    Trees = 14,
    /// Rows of the tables that inputs are gathered from.
    Inputs = 15,
}

/// Bounds that [`Bound`] names.
pub(super) const BOUNDS: usize = 16;

/// Names of the bounds, in their order.
const NAMES: [&str; BOUNDS] = [
    "page",
    "token",
    "state",
    "row of drafts",
    "row of verdicts",
    "row to copy",
    "image",
    "position",
    "token of the vocabulary",
    "kept law",
    "neighbour",
    "codebook",
    "place",
    "sequence with states",
    "sequence with states of a tree",
    "input",
];

/// Lengths of the lists of the current step.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Those that grids are made for: rounded up so that few graphs serve all steps.
    pub(super) most: [AtomicUsize; COUNTS],
    /// As the device reads them.
    pub(super) exact: [AtomicUsize; COUNTS],
}

/// What a step's lists are padded to: steps of one bucket have their lists at the same addresses and run the same graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    /// By [`Count`].
    pub(super) counts: [usize; COUNTS],
    /// Entries of the page tables.
    pub(super) pages: usize,
    /// Frontiers.
    pub(super) frontiers: usize,
    /// Inputs of rows.
    pub(super) inputs: usize,
    /// Groups of sources, and one.
    pub(super) groups: usize,
    /// Images.
    pub(super) images: usize,
    /// Whether there are drafts, and verdicts, that are no draft tree's.
    pub(super) tokens: [bool; 2],
}

/// Room for a step on the device, what it was last set to, and the graphs recorded for it.
pub struct DeviceStep {
    capacity: Capacity,
    host: Step,
    bucket: Bucket,
    memory: Buffer<u8>,
    counts: Buffer<WeftCounts>,
    pointers: WeftStep,
    limits: Arc<Limits>,
    /// What may be indexed, by [`Bound`], and what the current step indexes.
    bounds: [AtomicUsize; BOUNDS],
    reach: [usize; BOUNDS],
    /// Two, so that the host writes one while the other is copied.
    staging: [Staging; 2],
    turn: usize,
    pub(super) graphs: Graphs,
}

// SAFETY: the pointers are addresses of the device, which no thread follows.
unsafe impl Send for DeviceStep {}
// SAFETY: as above.
unsafe impl Sync for DeviceStep {}

/// Pinned memory and the end of the copy from it.
struct Staging {
    memory: Pinned,
    sent: Event,
}

impl DeviceStep {
    /// An empty step, with room for any up to the capacity.
    pub(super) fn new(device: &Arc<Device>, capacity: Capacity) -> Result<DeviceStep, Error> {
        let bytes = Bucket::largest(capacity).region().end;
        let what = "a step";
        let memory: Buffer<u8> = Buffer::zeroed(device, bytes, what)?;
        let staging = || Ok(Staging { memory: Pinned::new(device, bytes, what)?, sent: Event::new(device)? });
        let bucket = Bucket::default();
        Ok(DeviceStep {
            capacity,
            host: Step::default(),
            bucket,
            counts: memory.part(0, 1),
            pointers: bucket.region().pointers(memory.address()),
            memory,
            limits: Arc::default(),
            bounds: std::array::from_fn(|_| AtomicUsize::new(usize::MAX)),
            reach: [0; BOUNDS],
            staging: [staging()?, staging()?],
            turn: 0,
            graphs: Graphs::default(),
        })
    }

    /// Replaces the step.
    ///
    /// # Panics
    /// If it exceeds the capacity, or something in it points to nowhere.
    pub(super) fn set(&mut self, device: &Device, host: Step) -> Result<(), Error> {
        device.check()?;
        let lists = Lists::of(&host, self.capacity);
        for (index, (&reach, bound)) in lists.reach.iter().zip(&self.bounds).enumerate() {
            check(index, reach, bound.load(Ordering::Relaxed));
        }
        let bucket = lists.bucket(self.capacity);
        let region = bucket.region();
        let staging = &mut self.staging[self.turn];
        self.turn = 1 - self.turn;
        // The copy of the step before the last: long done.
        staging.sent.wait()?;
        let bytes = lists.write(&region, staging.memory.bytes_mut());
        // SAFETY: the memory is written again after the wait above.
        unsafe { staging.memory.send(bytes, &self.memory) };
        staging.sent.record();
        device.check()?;
        self.pad_to(bucket);
        for (length, count) in self.limits.exact.iter().zip(lists.lengths()) {
            length.store(count, Ordering::Relaxed);
        }
        self.reach = lists.reach;
        self.host = host;
        Ok(())
    }

    /// Makes its lists as long as a bucket's.
    pub(super) fn pad_to(&mut self, bucket: Bucket) {
        for (limit, count) in self.limits.most.iter().zip(bucket.counts) {
            limit.store(count, Ordering::Relaxed);
        }
        self.pointers = bucket.region().pointers(self.memory.address());
        self.bucket = bucket;
    }

    /// What it has room for.
    pub(super) fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The kernel's parameter, a `WeftStep`.
    pub(super) fn arg(&self) -> Held<'_, WeftStep> {
        Held { value: self.pointers, memory: Some(self.memory.allocation()) }
    }

    /// Where its groups of sources begin, as a kernel's parameter.
    pub(super) fn groups(&self) -> Held<'_, *const u32> {
        Held { value: self.pointers.groups, memory: Some(self.memory.allocation()) }
    }

    /// What it was set to.
    pub(super) fn host(&self) -> &Step {
        &self.host
    }

    /// No more than this of these: what a grid is made for.
    pub(super) fn most(&self, which: Count) -> usize {
        self.bucket.counts[which as usize]
    }

    /// Says how many of these there are.
    ///
    /// # Panics
    /// If the step reaches further.
    pub(super) fn require(&self, bound: Bound, size: usize) {
        check(bound as usize, self.reach[bound as usize], size);
        self.bounds[bound as usize].fetch_min(size, Ordering::Relaxed);
    }

    /// The step's counts, on the device.
    pub(super) fn counts(&self) -> &Buffer<WeftCounts> {
        &self.counts
    }

    /// What its lists are padded to; it changes with [`DeviceStep::set`].
    pub(super) fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// The bucket of what it was set to.
    pub(super) fn bucket(&self) -> Bucket {
        self.bucket
    }
}

fn check(bound: usize, reach: usize, size: usize) {
    assert!(reach <= size, "the step uses {} {} where there are {size}", NAMES[bound], reach.saturating_sub(1));
}
