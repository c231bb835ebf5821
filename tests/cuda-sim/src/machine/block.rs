//! A block (CTA): its shared memory and barriers.

use super::async_queue::Queue;
use super::cluster::Peers;
use super::fault::{Fault, Kind};
use super::grid::Grid;
use super::schedule::Rng;
use crate::check::race;
use crate::device::RESERVED_SHARED;

/// Hardware barriers of a block.
pub const BARRIERS: usize = 16;

/// The barrier of the cluster comes behind them: each block counts its own threads there.
pub const CLUSTER_BARRIER: usize = BARRIERS;

/// A hardware barrier (PTX ISA, `barrier`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Barrier {
    /// How often it has completed.
    pub generation: u32,
    /// Threads that have arrived in this generation.
    pub threads: u32,
    /// The same with whole warps counted as 32 threads, as an explicit count has it.
    pub arrived: u32,
    /// The explicit count of this generation; 0 for all threads of the block.
    pub expected: u32,
    /// Threads whose predicate was true (`barrier.red`).
    pub count: u32,
    /// What `barrier.red` gave in the last generation: the count and how many took part.
    pub result: (u32, u32),
}

/// A block that runs.
pub struct Block {
    /// `%ctaid`
    pub ctaid: [u32; 3],
    /// Its number in the grid, x first.
    pub index: u64,
    /// Its rank in its cluster.
    pub rank: u32,
    /// The blocks of its cluster.
    pub peers: Peers,
    /// Threads that have not exited.
    pub live_threads: u32,
    /// Its shared memory.
    pub shared: Shared,
    /// Its barriers.
    pub barriers: [Barrier; BARRIERS + 1],
    /// Its asynchronous copies.
    pub queue: Queue,
    /// What the race check remembers.
    pub race: Option<Box<race::State>>,
    /// Decides its schedule.
    pub rng: Rng,
    /// Operations that its warps have run: what `%clock` counts.
    pub clock: u64,
    /// Grows with every effect that a waiting thread could wait for; a block in which it stands still is stuck.
    pub progress: u64,
    /// Grows with every effect that a thread of another block could wait for. Threads that poll one another between
    /// barriers make progress, but nothing for others.
    pub outward: u64,
}

impl Block {
    /// Counts an effect that threads of this block and of others could wait for.
    pub fn advance(&mut self) {
        self.progress += 1;
        self.outward += 1;
    }

    /// A block of a grid, before its threads start.
    pub fn new(grid: &Grid<'_>, index: u64) -> Block {
        let mut block = Block {
            ctaid: [0; 3],
            index: 0,
            rank: 0,
            peers: Peers::default(),
            live_threads: 0,
            shared: Shared::default(),
            barriers: Default::default(),
            queue: Queue::default(),
            race: None,
            rng: Rng::new(0),
            clock: 0,
            progress: 0,
            outward: 0,
        };
        block.restart(grid, index);
        block
    }

    /// Makes it another block of the grid, reusing its memory.
    pub fn restart(&mut self, grid: &Grid<'_>, index: u64) {
        let (x, y) = (grid.dim[0] as u64, grid.dim[1] as u64);
        self.ctaid = [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32];
        self.index = index;
        self.rank = 0;
        self.peers = Peers::default();
        self.live_threads = grid.block_dim.iter().product();
        self.shared.reset(grid.shared_size, grid.checks.init);
        self.barriers = Default::default();
        if grid.shared_size > grid.shared_bytes {
            // What CUDA reserves for itself is zero at first.
            let (from, length) = (u64::from(grid.reserved_shared(0)), u64::from(RESERVED_SHARED));
            self.shared.get_mut(from, length).into_iter().for_each(|bytes| bytes.fill(0));
            self.shared.mark_init(from, length);
        }
        self.queue = Queue::default();
        let warps = self.live_threads.div_ceil(32);
        let (barriers, clustered) = (self.barriers.len(), grid.cluster_blocks() > 1);
        let lanes = self.race.take().map(|race| race.into_lanes()).unwrap_or_default();
        self.race = grid
            .checks
            .race
            .then(|| Box::new(race::State::new(warps, grid.shared_size, barriers, clustered).with_lanes(lanes)));
        self.rng = Rng::new(grid.schedule.seed ^ (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.clock = 0;
        self.progress = 0;
        self.outward = 0;
    }
}

impl Block {
    /// Completes the barriers at which all threads that it waits for have arrived.
    pub fn complete_barriers(&mut self) {
        for barrier in &mut self.barriers[..BARRIERS] {
            let all = barrier.expected == 0 && barrier.threads != 0 && barrier.threads >= self.live_threads;
            if all || barrier.expected != 0 && barrier.arrived >= barrier.expected {
                barrier.result = (barrier.count, barrier.threads);
                *barrier = Barrier { generation: barrier.generation + 1, result: barrier.result, ..Barrier::default() };
                self.progress += 1;
            }
        }
        self.complete_cluster_barrier();
    }
}

/// The shared memory of a block.
#[derive(Default)]
pub struct Shared {
    /// 16-byte units, for alignment.
    data: Vec<u128>,
    size: u32,
    /// A bit per byte that was written; empty when it is not tracked.
    init: Vec<u64>,
}

impl Shared {
    /// Fresh memory of `size` bytes, filled with NaN.
    fn reset(&mut self, size: u32, track_init: bool) {
        self.size = size;
        self.data.clear();
        self.data.resize((size as usize).div_ceil(16), u128::MAX);
        self.init.clear();
        self.init.resize(if track_init { (size as usize).div_ceil(64) } else { 0 }, 0);
    }

    /// Bytes.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The memory, for accesses whose bounds the caller has checked.
    #[inline(always)]
    pub fn as_ptr(&mut self) -> *mut u8 {
        self.data.as_mut_ptr().cast()
    }

    /// The bytes of a range, if it is inside.
    #[inline(always)]
    pub fn get(&self, address: u64, length: u64) -> Option<&[u8]> {
        let inside = address.checked_add(length).is_some_and(|end| end <= u64::from(self.size));
        // SAFETY: the range is inside the vector's bytes, all of which are initialised.
        inside.then(|| unsafe {
            std::slice::from_raw_parts(self.data.as_ptr().cast::<u8>().add(address as usize), length as usize)
        })
    }

    /// The bytes of a range, to be written, if it is inside.
    #[inline(always)]
    pub fn get_mut(&mut self, address: u64, length: u64) -> Option<&mut [u8]> {
        let inside = address.checked_add(length).is_some_and(|end| end <= u64::from(self.size));
        // SAFETY: the range is inside the vector's bytes, all of which are initialised; `self` is borrowed mutably.
        inside.then(|| unsafe {
            std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast::<u8>().add(address as usize), length as usize)
        })
    }

    /// The fault of an access that is not inside.
    pub fn outside(&self, address: u64, length: u64) -> Fault {
        let message = format!("{length} bytes of shared memory");
        Fault::new(Kind::OutOfBounds, message).at_address(address, format!("shared memory of {} bytes", self.size))
    }

    /// Whether initialised bytes are tracked.
    #[inline(always)]
    pub fn tracks_init(&self) -> bool {
        !self.init.is_empty()
    }

    /// Marks a range, which must be inside, as initialised.
    pub fn mark_init(&mut self, address: u64, length: u64) {
        if self.tracks_init() {
            crate::memory::each_word(address, length, |word, bits| self.init[word] |= bits);
        }
    }

    /// The first byte of a range, which must be inside, that nothing has written.
    pub fn first_uninitialised(&self, address: u64, length: u64) -> Option<u64> {
        let mut first = None;
        // Rows of matrices lie in one word each.
        let inside = address % 64 + length <= 64 && length != 0;
        if inside && let Some(word) = self.init.get((address / 64) as usize) {
            let missing = u64::MAX >> (64 - length) << (address % 64) & !word;
            return (missing != 0).then(|| address / 64 * 64 + u64::from(missing.trailing_zeros()));
        }
        if self.tracks_init() {
            crate::memory::each_word(address, length, |word, bits| {
                let missing = bits & !self.init[word];
                if first.is_none() && missing != 0 {
                    first = Some(word as u64 * 64 + u64::from(missing.trailing_zeros()));
                }
            });
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::Shared;

    #[test]
    fn the_first_byte_that_nothing_wrote_is_found() {
        let mut shared = Shared::default();
        shared.reset(256, true);
        for (at, length) in [(0, 20), (30, 50), (128, 64)] {
            shared.mark_init(at, length);
        }
        let written = |at: u64| at < 20 || (30..80).contains(&at) || (128..192).contains(&at);
        for at in 0..200 {
            for length in 1..50 {
                let first = (at..at + length).find(|&at| !written(at));
                assert_eq!(shared.first_uninitialised(at, length), first, "{length} bytes at {at}");
            }
        }
        shared.reset(256, false);
        assert_eq!(shared.first_uninitialised(0, 256), None);
    }
}
