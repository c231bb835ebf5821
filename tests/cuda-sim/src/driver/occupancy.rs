//! Occupancy: how many blocks a multiprocessor holds, by threads, blocks and shared memory. Registers are ptxas's
//! business and never limit here.

use std::ffi::c_int;

use super::abi::{In, Out, entries};
use super::errors::{Error, Result};
use super::function::Function;
use super::handles::Handle;
use super::launch::attributed;
use super::state::current;
use super::types::{BlockToShared, LaunchConfig};
use crate::device::{Device, RESERVED_SHARED};

const WARP: u32 = 32;
/// Shared memory is given in pieces of this size, from compute capability 8.0.
const SHARED_UNIT: u32 = 128;

/// Blocks of a kernel that are resident on one multiprocessor.
pub fn blocks_per_sm(device: &Device, function: &Function, threads: u32, dynamic_shared: u32) -> u32 {
    if threads == 0 || threads > function.max_threads() {
        return 0;
    }
    let shared = function.entry.static_shared.saturating_add(dynamic_shared);
    if shared > device.shared_per_block_optin {
        return 0;
    }
    let by_threads = device.threads_per_sm / threads.next_multiple_of(WARP);
    let by_shared = device.shared_per_sm / (shared.next_multiple_of(SHARED_UNIT) + RESERVED_SHARED);
    by_threads.min(by_shared).min(device.blocks_per_sm)
}

/// Dynamic shared memory that a block may have when `blocks` are to be resident.
fn available_shared(device: &Device, function: &Function, blocks: u32) -> u32 {
    let share = device.shared_per_sm / blocks / SHARED_UNIT * SHARED_UNIT;
    let per_block = share.saturating_sub(RESERVED_SHARED).min(device.shared_per_block_optin);
    per_block.saturating_sub(function.entry.static_shared)
}

/// The block size that keeps most threads resident, and the blocks that fill the device with it.
fn potential(device: &Device, function: &Function, shared: impl Fn(u32) -> u32, limit: u32) -> Option<(u32, u32)> {
    let limit = if limit == 0 { function.max_threads() } else { limit.min(function.max_threads()) };
    let mut best = None;
    // From the largest, so that of equals the largest is taken, as the API does.
    for threads in (1..=limit / WARP).rev().map(|warps| warps * WARP) {
        let blocks = blocks_per_sm(device, function, threads, shared(threads));
        let resident = blocks * threads;
        if blocks > 0 && best.is_none_or(|(most, _, _)| resident > most) {
            best = Some((resident, threads, blocks * device.sms));
        }
    }
    best.map(|(_, threads, grid)| (grid, threads))
}

/// `CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE` has no effect.
fn check_flags(flags: u32) -> Result<()> {
    if flags > 1 { Err(Error::invalid(format!("occupancy flags {flags:#x}"))) } else { Ok(()) }
}

fn count(out: Out<c_int>, function: Handle, threads: c_int, shared: usize) -> Result<()> {
    let (driver, _) = current()?;
    out.check()?;
    let function = driver.functions.get(function)?;
    let threads = u32::try_from(threads).ok().filter(|&n| n > 0);
    let threads = threads.ok_or_else(|| Error::invalid("a block of no threads"))?;
    let shared = u32::try_from(shared).unwrap_or(u32::MAX);
    out.set(blocks_per_sm(&driver.config.device, function, threads, shared) as c_int)
}

fn suggest(
    grid: Out<c_int>,
    block: Out<c_int>,
    handle: Handle,
    per_block: BlockToShared,
    shared: usize,
    limit: c_int,
) -> Result<()> {
    let (driver, _) = current()?;
    grid.check()?;
    block.check()?;
    driver.functions.get(handle)?;
    drop(driver);
    // The program's function is called without the lock, for it is the program's.
    let shared_of: Vec<u32> = (0..=1024 / WARP)
        .map(|warps| match per_block {
            // SAFETY: the program gave the function for this.
            Some(function) => u32::try_from(unsafe { function((warps * WARP) as c_int) }).unwrap_or(u32::MAX),
            None => u32::try_from(shared).unwrap_or(u32::MAX),
        })
        .collect();
    let (driver, _) = current()?;
    let function = driver.functions.get(handle)?;
    let limit = u32::try_from(limit).map_err(|_| Error::invalid("a negative limit"))?;
    let shared = |threads: u32| shared_of[(threads / WARP) as usize];
    let Some((blocks, threads)) = potential(&driver.config.device, function, shared, limit) else {
        return Err(Error::invalid(format!("kernel {}: no block size fits", function.name())));
    };
    grid.set(blocks as c_int)?;
    block.set(threads as c_int)
}

entries! {
    /// Blocks resident on a multiprocessor.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(out: Out<c_int>, function: Handle, threads: c_int, shared: usize) {
        count(out, function, threads, shared)
    }

    /// Blocks resident on a multiprocessor.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        out: Out<c_int>, function: Handle, threads: c_int, shared: usize, flags: u32,
    ) {
        check_flags(flags)?;
        count(out, function, threads, shared)
    }

    /// A block size that keeps most threads resident.
    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<c_int>, block: Out<c_int>, function: Handle, per_block: BlockToShared, shared: usize, limit: c_int,
    ) {
        suggest(grid, block, function, per_block, shared, limit)
    }

    /// A block size that keeps most threads resident.
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<c_int>, block: Out<c_int>, function: Handle, per_block: BlockToShared, shared: usize, limit: c_int,
        flags: u32,
    ) {
        check_flags(flags)?;
        suggest(grid, block, function, per_block, shared, limit)
    }

    /// Dynamic shared memory that a block may have with so many blocks resident.
    fn cuOccupancyAvailableDynamicSMemPerBlock(out: Out<usize>, function: Handle, blocks: c_int, threads: c_int) {
        let (driver, _) = current()?;
        out.check()?;
        let (device, function) = (&driver.config.device, driver.functions.get(function)?);
        let (Ok(blocks @ 1..), Ok(threads @ 1..)) = (u32::try_from(blocks), u32::try_from(threads)) else {
            return Err(Error::invalid(format!("{blocks} blocks of {threads} threads")));
        };
        if blocks > blocks_per_sm(device, function, threads, 0) {
            return Err(Error::invalid(format!("{blocks} blocks of {threads} threads are never resident together")));
        }
        out.set(available_shared(device, function, blocks) as usize)
    }

    /// Clusters resident on the device.
    fn cuOccupancyMaxActiveClusters(out: Out<c_int>, function: Handle, config: In<LaunchConfig>) {
        let (driver, _) = current()?;
        out.check()?;
        let (device, function) = (&driver.config.device, driver.functions.get(function)?);
        let shape = attributed(&config.get()?)?;
        let cluster = if shape.cluster == [0; 3] { function.cluster } else { shape.cluster };
        let blocks = cluster.iter().map(|&n| n.max(1)).product::<u32>();
        let threads = shape.block.iter().product();
        out.set((blocks_per_sm(device, function, threads, shape.shared) * device.sms / blocks) as c_int)
    }

    /// The largest cluster.
    fn cuOccupancyMaxPotentialClusterSize(out: Out<c_int>, function: Handle, _config: In<LaunchConfig>) {
        let (driver, _) = current()?;
        let function = driver.functions.get(function)?;
        let largest = if function.non_portable_cluster { 16 } else { 8 };
        out.set(if driver.config.device.capability >= (9, 0) { largest } else { 1 })
    }
}
