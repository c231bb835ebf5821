//! A launch and the grid that it makes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::fault::{Fault, Kind};
use super::schedule::Schedule;
use crate::check::Checks;
use crate::check::race::Global;
use crate::counters::traffic::Traffic;
use crate::device::RESERVED_SHARED;
use crate::memory::{GlobalMemory, View};
use crate::program::{Entry, Program};

/// What `cuLaunchKernel` asks for.
pub struct Launch<'a> {
    /// The module.
    pub program: &'a Program,
    /// The kernel's name, for reports.
    pub name: &'a str,
    /// The kernel.
    pub entry: &'a Entry,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameter space.
    pub params: &'a [u8],
    /// Whether all blocks must be resident at once.
    pub cooperative: bool,
    /// The device's memory.
    pub memory: &'a GlobalMemory,
    /// Multiprocessors of the device.
    pub multiprocessors: u32,
    /// What is checked.
    pub checks: Checks,
    /// The schedule.
    pub schedule: Schedule,
    /// The level 2 cache's bytes, if the costly counters are wanted: sectors, bank conflicts, distinct bytes, memory.
    pub count: Option<u64>,
    /// Whether what the kernel prints is left out: another run of the launch prints it.
    pub silent: bool,
    /// Global memory, zero at first, in which CUDA's `grid.sync()` counts; 0 without.
    pub workspace: u64,
    /// Global memory from which the kernel's `malloc` takes: address and bytes.
    pub heap: (u64, u64),
}

impl<'a> Launch<'a> {
    /// A launch of one warp with nothing special, to be changed.
    pub fn of(program: &'a Program, name: &'a str, entry: &'a Entry, memory: &'a GlobalMemory) -> Launch<'a> {
        Launch {
            program,
            name,
            entry,
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [1; 3],
            dynamic_shared: 0,
            params: &[],
            cooperative: false,
            memory,
            multiprocessors: 1,
            checks: Checks::default(),
            schedule: Schedule::default(),
            count: None,
            silent: false,
            workspace: 0,
            heap: (0, 0),
        }
    }
}

/// Blocks of a cluster at most, if the kernel allows sizes that not every device has.
const LARGEST_CLUSTER: u64 = 16;

/// The memory from which a kernel's `malloc` takes.
pub struct Heap {
    base: u64,
    bytes: u64,
    taken: AtomicU64,
}

impl Heap {
    /// Memory of `size` bytes, aligned to 16; 0 if there is no more.
    pub fn take(&self, size: u64) -> u64 {
        let Some(size) = size.max(1).checked_next_multiple_of(16) else { return 0 };
        let fits = |taken: u64| taken.checked_add(size).filter(|&end| end <= self.bytes);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_or(0, |taken| self.base + taken)
    }

    /// Whether an address may be one that [`Heap::take`] gave.
    pub fn gave(&self, address: u64) -> bool {
        address >= self.base && address - self.base < self.taken.load(Ordering::Relaxed) && address.is_multiple_of(16)
    }
}

/// A launch as its threads see it.
pub struct Grid<'a> {
    /// The module.
    pub program: &'a Program,
    /// The kernel's name.
    pub name: &'a str,
    /// The kernel.
    pub entry: &'a Entry,
    /// `%nctaid`
    pub dim: [u32; 3],
    /// `%ntid`
    pub block_dim: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Where the dynamic shared memory begins.
    pub dynamic_shared_offset: u32,
    /// Bytes of dynamic shared memory: `%dynamic_smem_size`.
    pub dynamic_shared: u32,
    /// Bytes of shared memory, static and dynamic: `%total_smem_size`.
    pub shared_bytes: u32,
    /// The same with the shared memory that CUDA reserves for itself, if the program asks for it.
    pub shared_size: u32,
    /// The parameter space.
    pub params: &'a [u8],
    /// Global memory.
    pub memory: View,
    /// `%nsmid`
    pub multiprocessors: u32,
    /// What is checked.
    pub checks: Checks,
    /// The schedule.
    pub schedule: Schedule,
    /// What is moved to and from global memory, if the costly counters are wanted.
    pub traffic: Option<Traffic>,
    /// Whether what the kernel prints is left out.
    pub silent: bool,
    /// Whether accesses to memory are looked at one by one.
    pub watched: bool,
    /// Whether all blocks are resident at once.
    pub cooperative: bool,
    /// Global memory in which CUDA's `grid.sync()` counts; 0 without.
    pub workspace: u64,
    /// The kernel's heap.
    pub heap: Heap,
    /// What the race check remembers of global memory.
    pub race: Option<Global>,
}

impl<'a> Grid<'a> {
    /// The grid of a launch, if its shape makes sense.
    pub fn new(launch: &Launch<'a>) -> Result<Grid<'a>, Fault> {
        let invalid =
            |message: String| Err(Fault { kernel: launch.name.into(), ..Fault::new(Kind::InvalidLaunch, message) });
        let threads = launch.block.iter().map(|&n| u64::from(n)).product::<u64>();
        if threads == 0 || threads > 1024 || launch.block[2] > 64 {
            return invalid(format!("block of {:?} threads", launch.block));
        }
        if launch.grid.contains(&0)
            || launch.grid[1] > 65535
            || launch.grid[2] > 65535
            || launch.grid[0] > i32::MAX as u32
        {
            return invalid(format!("grid of {:?} blocks", launch.grid));
        }
        if launch.params.len() < launch.entry.param_bytes as usize {
            return invalid(format!("{} bytes of parameters, not {}", launch.params.len(), launch.entry.param_bytes));
        }
        let whole =
            (0..3).all(|axis| launch.cluster[axis] != 0 && launch.grid[axis].is_multiple_of(launch.cluster[axis]));
        if !whole || launch.cluster.iter().map(|&n| u64::from(n)).product::<u64>() > LARGEST_CLUSTER {
            return invalid(format!("clusters of {:?} blocks in a grid of {:?}", launch.cluster, launch.grid));
        }
        let memory = launch.memory.view();
        let align = launch.entry.shared_align.clamp(16, 1024);
        let dynamic_shared_offset = launch.entry.static_shared.next_multiple_of(align);
        let shared_bytes = dynamic_shared_offset + launch.dynamic_shared;
        let reserved = launch.program.functions.iter().any(|function| function.reserved_shared);
        let reserved_end = shared_bytes.next_multiple_of(16) + RESERVED_SHARED;
        let blocks = launch.grid.iter().map(|&n| u64::from(n)).product();
        let race = launch.checks.race.then(|| Global::new(memory.len(), blocks));
        Ok(Grid {
            program: launch.program,
            name: launch.name,
            entry: launch.entry,
            dim: launch.grid,
            block_dim: launch.block,
            cluster: launch.cluster,
            dynamic_shared_offset,
            dynamic_shared: launch.dynamic_shared,
            shared_bytes,
            shared_size: if reserved { reserved_end } else { shared_bytes },
            params: launch.params,
            multiprocessors: launch.multiprocessors,
            checks: launch.checks,
            schedule: launch.schedule,
            traffic: launch.count.map(|l2| Traffic::new(&memory, l2)),
            memory,
            silent: launch.silent,
            watched: launch.count.is_some() || launch.checks.init || launch.checks.race,
            cooperative: launch.cooperative,
            race,
            workspace: launch.workspace,
            heap: Heap { base: launch.heap.0, bytes: launch.heap.1, taken: AtomicU64::new(0) },
        })
    }

    /// An offset into the shared memory that CUDA reserves for itself, as one into the block's. On hardware it comes before
    /// what the program declares, here after it.
    pub fn reserved_shared(&self, offset: u32) -> u32 {
        self.shared_bytes.next_multiple_of(16) + offset
    }

    /// Blocks of a cluster.
    pub fn cluster_blocks(&self) -> u64 {
        self.cluster.iter().map(|&n| u64::from(n)).product()
    }

    /// The number in the grid of a cluster's block of some rank.
    pub fn block_of(&self, cluster: u64, rank: u64) -> u64 {
        let [x, y, z] = self.cluster.map(u64::from);
        let [width, height, _] = self.dim.map(u64::from);
        let (across, down) = (width / x, height / y);
        let at = [
            cluster % across * x + rank % x,
            cluster / across % down * y + rank / x % y,
            cluster / across / down * z + rank / x / y,
        ];
        at[0] + width * (at[1] + height * at[2])
    }

    /// Blocks that the device can hold at once, by the threads and shared memory of a multiprocessor.
    pub fn residency(&self) -> u64 {
        let threads = u64::from(self.block_dim.iter().product::<u32>().next_multiple_of(32));
        let shared = u64::from(self.shared_bytes) + 1024;
        let each = (2048 / threads).min((228 << 10) / shared).clamp(1, 32);
        each * u64::from(self.multiprocessors.max(1))
    }
}
