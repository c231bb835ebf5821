//! Clusters: blocks that are resident together, on one host thread, and reach each other's shared memory.
//!
//! An address of the cluster's shared memory (`shared::cluster`) is an offset into the executing block's own memory, or,
//! made by `mapa`, an offset with the rank of a block above it.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::block::{Block, CLUSTER_BARRIER};
use super::fault::{Fault, Kind};

/// Bits of an offset in a block's shared memory; above them is the rank plus 1.
const OFFSET_BITS: u32 = 24;

/// The address that stands for a block's shared memory everywhere in its cluster.
pub fn address(rank: u32, offset: u64) -> u64 {
    u64::from(rank + 1) << OFFSET_BITS | offset
}

/// The rank of the block that an address names, if it names one, and the offset in its shared memory.
#[inline(always)]
pub fn split(address: u64) -> (Option<u32>, u64) {
    let rank = u32::try_from(address >> OFFSET_BITS).unwrap_or(u32::MAX);
    (rank.checked_sub(1), address & ((1 << OFFSET_BITS) - 1))
}

/// The owner of a block. Others of its cluster point to it, so it is no `Box`, which would be theirs alone.
pub struct Home(NonNull<Block>);

impl Home {
    /// Puts a block where it stays.
    pub fn new(block: Block) -> Home {
        Home(NonNull::from(Box::leak(Box::new(block))))
    }
}

impl Deref for Home {
    type Target = Block;
    fn deref(&self) -> &Block {
        // SAFETY: the block lives as long as its home. Its cluster's other blocks use it only while they run, which they do
        // one after the other on this thread, from a borrow of their own home.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for Home {
    fn deref_mut(&mut self) -> &mut Block {
        // SAFETY: as above.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // SAFETY: `new` made it of a box; the worker drops the homes of a cluster when none of its blocks runs any more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Makes blocks, in the order of their ranks, a cluster.
pub fn join<'a>(homes: impl Iterator<Item = &'a mut Home>) {
    let mut homes: Vec<&mut Home> = homes.collect();
    let all: Vec<NonNull<Block>> = homes.iter().map(|home| home.0).collect();
    for (rank, home) in homes.iter_mut().enumerate() {
        home.rank = rank as u32;
        home.peers = Peers(all.clone());
    }
}

/// The blocks of a cluster by rank, the block itself among them; none outside of clusters.
#[derive(Default)]
pub struct Peers(Vec<NonNull<Block>>);

impl Peers {
    /// Blocks of the cluster.
    pub fn count(&self) -> u32 {
        self.0.len().max(1) as u32
    }
}

impl Block {
    /// A block of the cluster.
    pub fn peer(&mut self, rank: u32) -> Option<&mut Block> {
        if rank == self.rank {
            return Some(self);
        }
        let peer = self.peers.0.get(rank as usize)?;
        // SAFETY: the worker keeps the blocks of a cluster until all have ended and runs them on this thread, one at a
        // time; it is not this one, and it is reached from this one alone while the borrow lasts.
        Some(unsafe { &mut *peer.as_ptr() })
    }

    /// Calls `each` with the other blocks of the cluster.
    pub fn others(&mut self, mut each: impl FnMut(&mut Block)) {
        let own = self.rank;
        for rank in (0..self.peers.count()).filter(|&rank| rank != own) {
            self.peer(rank).into_iter().for_each(&mut each);
        }
    }

    /// The block in whose shared memory an address of the cluster lies, and the offset there.
    pub fn at(&mut self, address: u64) -> Result<(&mut Block, u64), Fault> {
        let (rank, offset) = match split(address) {
            (None, offset) => return Ok((self, offset)),
            (Some(rank), offset) => (rank, offset),
        };
        let (own, count) = (self.rank, self.peers.count());
        let Some(block) = self.peer(rank) else {
            let message = format!("the shared memory of block {rank} of a cluster of {count}");
            return Err(Fault::new(Kind::OutOfBounds, message).at_address(address, "shared memory of the cluster"));
        };
        if block.live_threads == 0 && rank != own {
            let message = format!("the shared memory of block {rank} of the cluster, which has exited");
            return Err(Fault::new(Kind::UseAfterFree, message).at_address(offset, "shared memory of the cluster"));
        }
        Ok((block, offset))
    }

    /// Completes the barrier of the cluster if all its threads that have not exited have arrived.
    pub fn complete_cluster_barrier(&mut self) {
        let (mut arrived, mut all) = (0, true);
        let mut look = |block: &mut Block| {
            arrived += block.barriers[CLUSTER_BARRIER].threads;
            all &= block.barriers[CLUSTER_BARRIER].threads >= block.live_threads;
        };
        look(self);
        self.others(look);
        if arrived == 0 || !all {
            return;
        }
        let complete = |block: &mut Block| {
            let barrier = &mut block.barriers[CLUSTER_BARRIER];
            barrier.generation += 1;
            barrier.threads = 0;
            block.advance();
        };
        complete(self);
        self.others(complete);
    }
}
