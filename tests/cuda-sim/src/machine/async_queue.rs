//! Asynchronous copies in flight. One queue per block, so that they land late, early or in between as the schedule says.
//!
//! An operation's addresses are checked when it is issued. Its bytes move when it lands: late, in the wait that needs it
//! (or when the block would stand still); early, at once; or at a random time between.

use std::collections::VecDeque;

use super::block::Block;
use super::fault::{Fault, Kind};
use super::grid::Grid;
use super::schedule::AsyncTiming;
use super::{LANES, Row};
use crate::isa::bulk::{Transfer, Work};
use crate::isa::mbarrier;
use crate::isa::wgmma::Warpgroup;
use crate::memory::Missing;

/// The asynchronous operations of a block that have not completed.
#[derive(Default)]
pub struct Queue {
    /// The mbarrier objects in the block's shared memory.
    pub mbarriers: mbarrier::Table,
    /// `wgmma.mma_async` of each warpgroup.
    pub warpgroups: Vec<Warpgroup>,
    /// `cp.async` of each warp.
    warps: Vec<Copies>,
    /// Bulk copies, oldest first.
    bulk: VecDeque<Transfer>,
}

/// What a warp remembers of its asynchronous operations: those whose results go to its registers.
pub use crate::isa::wgmma::WarpState;

/// The `cp.async` operations of a warp.
#[derive(Default)]
struct Copies {
    flying: Vec<Flight>,
    /// How many groups each lane has committed. The open group has this number.
    committed: Row<u32>,
    /// As `committed`, for bulk copies.
    bulk_committed: Row<u32>,
}

/// A `cp.async` of lanes that are in the same group.
pub struct Copy {
    /// The lanes that have not landed.
    pub lanes: u32,
    /// Bytes that each lane writes.
    pub size: u64,
    /// Where, in shared memory.
    pub to: Row<u64>,
    /// The bytes of the source on the host.
    pub from: Row<*const u8>,
    /// Bytes that each lane reads; the others become zero.
    pub take: Row<u8>,
    /// PTX line.
    pub line: u32,
}

enum Action {
    Copy(Box<Copy>),
    /// `cp.async.mbarrier.arrive`: the lanes and the mbarrier of each.
    Arrive(u32, Box<Row<u64>>),
}

struct Flight {
    group: u32,
    action: Action,
}

impl Flight {
    fn lanes(&mut self) -> &mut u32 {
        match &mut self.action {
            Action::Copy(copy) => &mut copy.lanes,
            Action::Arrive(lanes, _) => lanes,
        }
    }
}

// SAFETY: the pointers are into device memory, which lives as long as the launch and may be read from any thread.
unsafe impl Send for Copy {}

impl Queue {
    fn warp(&mut self, warp: u32) -> &mut Copies {
        let warp = warp as usize;
        if self.warps.len() <= warp {
            self.warps.resize_with(warp + 1, Copies::default);
        }
        &mut self.warps[warp]
    }

    /// The number of the open group of bulk copies of a thread.
    pub fn bulk_group(&mut self, warp: u32, lane: u32) -> u32 {
        self.warp(warp).bulk_committed[lane as usize]
    }

    /// `cp.async.bulk.commit_group`
    pub fn bulk_commit(&mut self, warp: u32, lanes: u32) {
        let committed = &mut self.warp(warp).bulk_committed;
        each(lanes, |lane| committed[lane] += 1);
    }

    /// `cp.async.commit_group`
    pub fn commit(&mut self, warp: u32, lanes: u32) {
        let committed = &mut self.warp(warp).committed;
        each(lanes, |lane| committed[lane] += 1);
    }
}

/// Calls `f` with the number of each lane.
#[inline(always)]
pub fn each(mut lanes: u32, mut f: impl FnMut(usize)) {
    while lanes != 0 {
        f(lanes.trailing_zeros() as usize);
        lanes &= lanes - 1;
    }
}

/// Puts a `cp.async` in flight.
pub fn issue_copy(block: &mut Block, grid: &Grid<'_>, warp: u32, copy: Copy) -> Result<(), Fault> {
    if grid.schedule.async_timing == AsyncTiming::Early {
        let lanes = copy.lanes;
        return land_copy(block, grid, &copy, lanes);
    }
    split(block.queue.warp(warp), copy.lanes, |lanes| {
        Action::Copy(Box::new(Copy { lanes, to: copy.to, from: copy.from, take: copy.take, ..copy }))
    });
    Ok(())
}

/// Puts a `cp.async.mbarrier.arrive` behind the copies of its lanes.
pub fn issue_arrive(block: &mut Block, grid: &Grid<'_>, warp: u32, lanes: u32, on: Row<u64>) -> Result<(), Fault> {
    split(block.queue.warp(warp), lanes, |lanes| Action::Arrive(lanes, Box::new(on)));
    if grid.schedule.async_timing == AsyncTiming::Early {
        return land_where(block, grid, warp, |_, lanes| lanes);
    }
    Ok(())
}

/// Appends an action, once for each group number among its lanes.
fn split(copies: &mut Copies, mut lanes: u32, action: impl Fn(u32) -> Action) {
    while lanes != 0 {
        let group = copies.committed[lanes.trailing_zeros() as usize];
        let mut same = 0;
        each(lanes, |lane| same |= ((copies.committed[lane] == group) as u32) << lane);
        copies.flying.push(Flight { group, action: action(same) });
        lanes &= !same;
    }
}

/// Lands, of every operation of the warp, the lanes that `due` picks of its group and lanes.
fn land_where(
    block: &mut Block,
    grid: &Grid<'_>,
    warp: u32,
    mut due: impl FnMut(u32, u32) -> u32,
) -> Result<(), Fault> {
    let mut flying = std::mem::take(&mut block.queue.warp(warp).flying);
    let mut result = Ok(());
    flying.retain_mut(|flight| {
        let lanes = due(flight.group, *flight.lanes());
        if lanes == 0 || result.is_err() {
            return true;
        }
        result = match &flight.action {
            Action::Copy(copy) => land_copy(block, grid, copy, lanes),
            Action::Arrive(_, on) => land_arrive(block, on, lanes),
        };
        block.progress += 1;
        *flight.lanes() &= !lanes;
        *flight.lanes() != 0
    });
    block.queue.warp(warp).flying = flying;
    result
}

fn land_copy(block: &mut Block, grid: &Grid<'_>, copy: &Copy, lanes: u32) -> Result<(), Fault> {
    let (size, mut result) = (copy.size, Ok(()));
    each(lanes, |lane| {
        let (to, take) = (copy.to[lane], copy.take[lane] as usize);
        let Some(bytes) = block.shared.get_mut(to, size) else {
            result = Err(block.shared.outside(to, size));
            return;
        };
        // SAFETY: the source range was found in a live allocation when the copy was issued, and none is freed during
        // a launch; shared memory is the simulator's own.
        unsafe { copy_bytes(copy.from[lane], bytes.as_mut_ptr(), take) };
        bytes[take..].fill(0);
    });
    if grid.checks.init {
        each(lanes, |lane| block.shared.mark_init(copy.to[lane], size));
    }
    result
}

/// Copies bytes of which there are mostly as many as an instruction moves.
///
/// # Safety
/// Both ranges must be valid and must not overlap.
#[inline(always)]
unsafe fn copy_bytes(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: the caller's.
    unsafe {
        match count {
            16 => std::ptr::copy_nonoverlapping(from, to, 16),
            8 => std::ptr::copy_nonoverlapping(from, to, 8),
            4 => std::ptr::copy_nonoverlapping(from, to, 4),
            _ => std::ptr::copy_nonoverlapping(from, to, count),
        }
    }
}

fn land_arrive(block: &mut Block, on: &Row<u64>, lanes: u32) -> Result<(), Fault> {
    let mut result = Ok(());
    each(lanes, |lane| {
        if result.is_ok() {
            result = mbarrier::arrive_on(block, on[lane], 1).map(|_| ()).map_err(|f| f.at_lane(lane as u32));
        }
    });
    result
}

/// `cp.async.wait_group`: lands what is not in the last `allowed` groups of each lane.
pub fn wait(block: &mut Block, grid: &Grid<'_>, warp: u32, lanes: u32, allowed: u32) -> Result<(), Fault> {
    let committed = block.queue.warp(warp).committed;
    land_where(block, grid, warp, |group, of| {
        let mut due = 0;
        each(of & lanes, |lane| due |= ((group + allowed.min(committed[lane]) < committed[lane]) as u32) << lane);
        due
    })
}

/// `cp.async.wait_all`: lands what the lanes have issued, whether or not it was committed.
pub fn wait_all(block: &mut Block, grid: &Grid<'_>, warp: u32, lanes: u32) -> Result<(), Fault> {
    land_where(block, grid, warp, |_, of| of & lanes)
}

/// Puts a bulk copy in flight to the block of the cluster whose shared memory it writes or, if it writes global memory,
/// reads.
pub fn issue_bulk(block: &mut Block, grid: &Grid<'_>, owner: u32, mut transfer: Transfer) -> Result<(), Fault> {
    let now = match grid.schedule.async_timing {
        AsyncTiming::Early => true,
        AsyncTiming::Late => false,
        AsyncTiming::Random => block.rng.below(4) == 0,
    };
    if now && transfer.reads_from(block.rank) {
        let read = transfer.read(block, grid);
        read.map_err(|fault| issued_by(&transfer, fault, block, grid))?;
    }
    let issuer = block.rank;
    let Some(owner) = block.peer(owner) else { return Ok(()) };
    owner.queue.bulk.push_back(transfer);
    // What reads this block's memory into another's lands when that one waits for it.
    if now { land_bulk(owner, grid, |t| !t.reads_from(issuer)).map(|_| ()) } else { Ok(()) }
}

/// Lands the bulk copies that `due` picks, oldest first; how many.
fn land_bulk(block: &mut Block, grid: &Grid<'_>, due: impl Fn(&Transfer) -> bool) -> Result<usize, Fault> {
    let (mut at, mut landed) = (0, 0);
    while let Some(transfer) = block.queue.bulk.get(at) {
        if !due(transfer) {
            at += 1;
            continue;
        }
        let transfer = block.queue.bulk.remove(at).expect("it was just seen");
        land_one(block, grid, transfer)?;
        landed += 1;
    }
    Ok(landed)
}

fn land_one(block: &mut Block, grid: &Grid<'_>, mut transfer: Transfer) -> Result<(), Fault> {
    block.advance();
    let result = transfer.land(block, grid);
    result.map_err(|fault| issued_by(&transfer, fault, block, grid))
}

/// A fault of a transfer, at the place where it was issued.
fn issued_by(t: &Transfer, fault: Fault, block: &Block, grid: &Grid<'_>) -> Fault {
    let (kernel, block) = (grid.name.to_string(), Some(block.ctaid));
    Fault { kernel, block, line: t.line, warp: Some(t.warp), ..fault }.at_lane(t.lane)
}

/// `cp.async.bulk.wait_group`: completes what is not in the last `allowed` groups of the lanes. With `read`, only the
/// reads of shared memory have to be over.
pub fn bulk_wait(
    block: &mut Block,
    grid: &Grid<'_>,
    warp: u32,
    lanes: u32,
    allowed: u32,
    read: bool,
) -> Result<(), Fault> {
    let committed = block.queue.warp(warp).bulk_committed;
    let due = |t: &Transfer| {
        t.warp == warp
            && lanes >> t.lane & 1 != 0
            && t.group.is_some_and(|g| {
                let committed = committed[t.lane as usize];
                g + allowed.min(committed) < committed
            })
    };
    if !read {
        return land_bulk(block, grid, due).map(|_| ());
    }
    let mut bulk = std::mem::take(&mut block.queue.bulk);
    let result = bulk.iter_mut().filter(|t| due(t)).try_for_each(|t| {
        let read = t.read(block, grid);
        read.map_err(|fault| issued_by(t, fault, block, grid))
    });
    block.queue.bulk = bulk;
    result
}

/// A thread has found that the current phase of an mbarrier is not complete. Lands what completes on it, one operation
/// after the other, until the phase is.
pub fn poll(block: &mut Block, grid: &Grid<'_>, address: u64) -> Result<(), Fault> {
    let before = mbarrier::phase(block, address)?;
    loop {
        if let Some(at) = block.queue.bulk.iter().position(|t| t.signals() == Some(address)) {
            let transfer = block.queue.bulk.remove(at).expect("it was just seen");
            land_one(block, grid, transfer)?;
        } else if !land_arrivals(block, grid, address)? {
            return Ok(());
        }
        if mbarrier::phase(block, address)? != before {
            return Ok(());
        }
    }
}

/// Lands the first `cp.async.mbarrier.arrive` on `address` that is in flight, and the copies before it; whether there
/// was one.
fn land_arrivals(block: &mut Block, grid: &Grid<'_>, address: u64) -> Result<bool, Fault> {
    for warp in 0..block.queue.warps.len() {
        let flying = &block.queue.warps[warp].flying;
        let found = flying.iter().enumerate().find_map(|(at, flight)| match &flight.action {
            Action::Arrive(lanes, on) => {
                let mut here = 0;
                each(*lanes, |lane| here |= ((on[lane] == address) as u32) << lane);
                (here != 0).then_some((at, here))
            }
            Action::Copy(_) => None,
        });
        if let Some((last, lanes)) = found {
            let mut at = 0;
            land_where(block, grid, warp as u32, |_, of| {
                at += 1;
                if at <= last + 1 { of & lanes } else { 0 }
            })?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Called between the turns of warps: lands what the schedule lets land now.
pub fn turn(block: &mut Block, grid: &Grid<'_>) -> Result<(), Fault> {
    if grid.schedule.async_timing != AsyncTiming::Random {
        return Ok(());
    }
    for warp in 0..block.queue.warps.len() {
        if !block.queue.warps[warp].flying.is_empty() && block.rng.below(4) == 0 {
            let upto = block.rng.below(block.queue.warps[warp].flying.len() as u64 + 1);
            let mut at = 0;
            land_where(block, grid, warp as u32, |_, of| {
                at += 1;
                if at <= upto { of } else { 0 }
            })?;
        }
    }
    if !block.queue.bulk.is_empty() && block.rng.below(4) == 0 {
        // Bulk copies are not ordered among each other.
        let at = block.rng.below(block.queue.bulk.len() as u64) as usize;
        let transfer = block.queue.bulk.remove(at).expect("the index is below the length");
        land_one(block, grid, transfer)?;
    }
    Ok(())
}

/// Called when no warp of the block can go on: lands at least one copy if any is in flight; whether it did.
pub fn idle(block: &mut Block, grid: &Grid<'_>) -> Result<bool, Fault> {
    if let Some(transfer) = block.queue.bulk.pop_front() {
        return land_one(block, grid, transfer).map(|_| true);
    }
    match block.queue.warps.iter().position(|copies| !copies.flying.is_empty()) {
        Some(warp) => land_where(block, grid, warp as u32, |_, of| of).map(|_| true),
        None => Ok(false),
    }
}

/// Called when all threads of the block have exited.
pub fn finish(block: &mut Block, grid: &Grid<'_>) -> Result<(), Fault> {
    // A write of memory that no one will read races with the next block to have that memory. Without the check for races it
    // is dropped: kernels there are that end so.
    if !grid.checks.race {
        block.queue.bulk.retain(|t| t.signals().is_none());
    }
    if let Some(t) = block.queue.bulk.iter().find(|t| t.uses_shared()) {
        let message = match t.work {
            Work::Store { .. } | Work::StoreTile { .. } => {
                "the block ends while a bulk copy reads its shared memory: cp.async.bulk.wait_group.read is missing"
            }
            _ => "the block ends while a bulk copy writes its shared memory: no thread waits for its mbarrier",
        };
        return Err(issued_by(t, Fault::new(Kind::Async, message), block, grid));
    }
    let (rank, mut found) = (block.rank, Ok(()));
    block.others(|peer| {
        if let Some(t) = peer.queue.bulk.iter().find(|t| t.reads_from(rank)) {
            let message = "the block ends while a bulk copy reads its shared memory for another block of the cluster";
            found = Err(issued_by(t, Fault::new(Kind::Async, message), peer, grid));
        }
    });
    found?;
    land_bulk(block, grid, |_| true).map(|_| ())
}

/// The bytes of device memory at `address`, checked and, for reads, known to be initialised. `last` remembers the
/// allocation between calls.
pub fn global(grid: &Grid<'_>, address: u64, length: u64, write: bool, last: &mut usize) -> Result<*mut u8, Fault> {
    let host = located(grid, address, length, write, last)?;
    let view = &grid.memory;
    let allocation = view.get(*last);
    let offset = address - allocation.base;
    if write && let Some(race) = &grid.race {
        race.preserve(view, address, length);
    }
    if grid.checks.init {
        if write {
            allocation.mark_init(offset, length);
        } else if let Some(first) = allocation.first_uninitialised(offset, length) {
            let message = format!("{length} bytes of global memory read by an asynchronous copy");
            let fault = Fault::new(Kind::UninitialisedRead, message);
            return Err(fault.at_address(allocation.base + first, allocation.describe()));
        }
    }
    Ok(host)
}

/// The bytes of device memory at `address`, checked to be there.
#[inline(always)]
pub fn located(grid: &Grid<'_>, address: u64, length: u64, write: bool, last: &mut usize) -> Result<*mut u8, Fault> {
    let view = &grid.memory;
    let holds = |index: usize| {
        let a = view.get(index);
        a.is_live() && address >= a.base && length <= a.size && address - a.base <= a.size - length
    };
    if *last >= view.len() || !holds(*last) {
        *last = view.locate(address, length).map_err(|missing| {
            let kind = if matches!(missing, Missing::Freed(_)) { Kind::UseAfterFree } else { Kind::OutOfBounds };
            let what = if write { "written" } else { "read" };
            Fault::new(kind, format!("{length} bytes of global memory {what} by an asynchronous copy"))
                .at_address(address, missing.to_string())
        })?;
    }
    let allocation = view.get(*last);
    Ok(allocation.host().wrapping_add((address - allocation.base) as usize))
}

/// Lanes whose bit is set, in a row.
pub fn active(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask >> lane & 1 != 0)
}
