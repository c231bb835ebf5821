//! Checks and costly counts: what is looked for beside the results.

mod cells;
mod clock;
mod knowledge;
pub mod lanes;
pub mod race;
mod recent;
mod runs;
mod shadow;
#[cfg(test)]
mod tests;
pub mod traffic;

use std::iter::once;

use crate::code::Flow;
pub use crate::device::Checks;
use crate::machine::access::{Access, Effect, Region};
use crate::machine::async_queue::active;
use crate::machine::cluster;
use crate::machine::fault::{Fault, Kind};
use crate::machine::{Cx, Repeats, Row};
use cells::Site;
use lanes::{Part, Touch};
use runs::{Runs, lane_of};

/// Watches an access of the executing lanes before it happens: `size` bytes at every address, which are inside memory or
/// will be refused. Those of lanes that do not execute equal that of one that does. `part` says which bytes are whose.
#[inline(never)]
pub fn observe(
    cx: &mut Cx<'_>,
    region: Region,
    addresses: &Row<u64>,
    size: u64,
    effect: Effect,
    access: Access,
    part: Part,
) -> Option<Flow> {
    if !matches!(region, Region::Global | Region::Shared) {
        return None;
    }
    if region == Region::Shared && addresses.iter().any(|&address| cluster::split(address).0.is_some()) {
        return in_cluster(cx, addresses, size, effect, access).err();
    }
    if cx.grid.traffic.is_some() {
        traffic::count(cx, region, addresses, size, effect);
    }
    let runs = Runs::of(cx.mask, addresses, size);
    let Checks { init, race, .. } = cx.grid.checks;
    let mut found = Ok(());
    if init && effect != Effect::Store {
        found = initialised(cx, region, &runs, size);
    }
    if race && found.is_ok() {
        let touch = Touch { mask: cx.mask, addresses, size, runs: &runs, part };
        found = race::lanes(cx, region, touch, effect, access);
    }
    if race && found.is_ok() {
        let touch = Touch { mask: cx.mask, addresses, size, runs: &runs, part };
        found = race::access(cx, region, touch, effect, access);
    }
    if let Err(mut fault) = found {
        fault.lane = fault.lane.or_else(|| fault.address.and_then(|at| lane_of(cx.mask, addresses, size, at)));
        return Some(cx.fail(fault));
    }
    if init && effect != Effect::Load {
        written(cx, region, &runs);
    }
    None
}

/// Watches a store that is about to happen at checked addresses: `parts` elements of some bytes each, whose bits `bits` gives
/// by lane and element. `distinct` says that no two lanes write to one place.
#[inline(never)]
pub fn stored(
    cx: &mut Cx<'_>,
    addresses: &Row<u64>,
    distinct: bool,
    (size, parts): (usize, usize),
    bits: &dyn Fn(usize, usize) -> u64,
) -> Option<Flow> {
    if let Repeats::Doubted(fault) = std::mem::take(&mut cx.repeats)
        && !repeats(cx, addresses, (size, parts), bits)
    {
        return Some(cx.fail(*fault));
    }
    if distinct {
        return None;
    }
    let same = |a: usize, b: usize| (0..parts).all(|k| bits(a, k) == bits(b, k));
    let (other, lane) = quarrel(cx.mask, addresses, &same)?;
    let message = format!("lanes {other} and {lane} of a store write different values to one place");
    let fault = Fault { address: Some(addresses[lane]), ..Fault::new(Kind::Race, message) };
    Some(cx.fail(fault.at_lane(lane as u32)))
}

/// Whether a store to shared memory would change nothing.
fn repeats(
    cx: &mut Cx<'_>,
    addresses: &Row<u64>,
    (size, parts): (usize, usize),
    bits: &dyn Fn(usize, usize) -> u64,
) -> bool {
    active(cx.mask).all(|lane| {
        let there = cx.block.at(addresses[lane]).ok();
        there.and_then(|(block, at)| block.shared.get(at, (size * parts) as u64)).is_some_and(|bytes| {
            bytes.chunks(size).enumerate().all(|(k, part)| part == &bits(lane, k).to_le_bytes()[..size])
        })
    })
}

/// Two lanes that store different values to one place: which of them stays is left open (PTX ISA, `st`).
fn quarrel(mask: u32, addresses: &Row<u64>, same: &dyn Fn(usize, usize) -> bool) -> Option<(usize, usize)> {
    if active(mask).is_sorted_by(|a, b| addresses[*a] < addresses[*b]) {
        return None;
    }
    let mut pairs =
        active(mask).flat_map(|lane| active(mask).take_while(move |&other| other < lane).map(move |o| (o, lane)));
    pairs.find(|&(other, lane)| addresses[other] == addresses[lane] && !same(other, lane))
}

/// [`observe`] in the shared memory of blocks of the cluster.
#[cold]
fn in_cluster(cx: &mut Cx<'_>, addresses: &Row<u64>, size: u64, effect: Effect, access: Access) -> Result<(), Flow> {
    let own = cx.block.rank;
    let (ranks, offsets) =
        (addresses.map(|at| cluster::split(at).0.unwrap_or(own)), addresses.map(|at| cluster::split(at).1));
    let mut left = cx.mask;
    while left != 0 {
        let rank = ranks[left.trailing_zeros() as usize];
        let here = active(left).filter(|&lane| ranks[lane] == rank).fold(0, |lanes, lane| lanes | 1 << lane);
        if let Err(mut fault) = in_block(cx, rank, here, &offsets, size, effect, access) {
            fault.lane = fault.address.and_then(|at| lane_of(here, &offsets, size, at));
            return Err(cx.fail(fault));
        }
        left &= !here;
    }
    Ok(())
}

/// The same of lanes that access one of the blocks.
fn in_block(
    cx: &mut Cx<'_>,
    rank: u32,
    lanes: u32,
    offsets: &Row<u64>,
    size: u64,
    effect: Effect,
    access: Access,
) -> Result<(), Fault> {
    let runs = Runs::of(lanes, offsets, size);
    let Checks { init, race, .. } = cx.grid.checks;
    // What is not there is the access's own fault.
    let Some(block) = cx.block.peer(rank) else { return Ok(()) };
    if init && effect != Effect::Store {
        let missing = runs.iter().find_map(|(at, length)| block.shared.first_uninitialised(at, length));
        if let Some(at) = missing {
            let message = format!("load of {size} bytes that nothing has written");
            let place = format!("shared memory of block {rank} of the cluster");
            return Err(Fault::new(Kind::UninitialisedRead, message).at_address(at, place));
        }
    }
    if race {
        race::peer_access(cx, rank, lanes, &runs, offsets, effect, access)?;
    }
    if init
        && effect != Effect::Load
        && let Some(block) = cx.block.peer(rank)
    {
        runs.iter().for_each(|(at, length)| block.shared.mark_init(at, length));
    }
    Ok(())
}

/// Watches ranges of global memory, address and bytes, that a bulk copy moves for a warp, and counts them.
pub fn bulk(cx: &mut Cx<'_>, ranges: impl Iterator<Item = (u64, u64)> + Clone, effect: Effect) -> Result<(), Fault> {
    for (address, length) in ranges.clone() {
        if effect != Effect::Store {
            cx.counters.sums.load_bytes += length;
        }
        if effect != Effect::Load {
            cx.counters.sums.store_bytes += length;
        }
        traffic::range(cx, address, length, effect);
    }
    let site = Site { line: cx.code.ops[cx.pc as usize].line, strong: effect == Effect::Atomic };
    race::global_ranges(cx, ranges, effect != Effect::Load, site)
}

/// Watches a warp give `length` bytes of global memory up, which is a write after which nothing is there.
pub fn discard(cx: &mut Cx<'_>, address: u64, length: u64) -> Result<(), Fault> {
    // First, as it saves what is there if the launch may have to run again.
    let site = Site { line: cx.code.ops[cx.pc as usize].line, strong: false };
    race::global_ranges(cx, once((address, length)), true, site)?;
    if let Ok(index) = cx.grid.memory.locate(address, length) {
        let allocation = cx.grid.memory.get(index);
        if let Some(traffic) = &cx.grid.traffic {
            traffic.discard(index, allocation, address - allocation.base, length);
        }
        allocation.forget_init(address - allocation.base, length);
    }
    Ok(())
}

/// Reads must find written bytes.
fn initialised(cx: &mut Cx<'_>, region: Region, runs: &Runs, size: u64) -> Result<(), Fault> {
    let fault = |at: u64, place: String| {
        let message = format!("load of {size} bytes that nothing has written");
        Err(Fault::new(Kind::UninitialisedRead, message).at_address(at, place))
    };
    for (address, length) in runs.iter() {
        if region == Region::Shared {
            let shared = &cx.block.shared;
            let inside = address.checked_add(length).is_some_and(|end| end <= u64::from(shared.size()));
            if inside && let Some(at) = shared.first_uninitialised(address, length) {
                return fault(at, "shared memory".to_string());
            }
            continue;
        }
        for (index, offset, length) in cx.grid.memory.parts(&mut cx.warp.allocation, address, length) {
            let found = cx.grid.memory.get(index);
            if let Some(at) = found.first_uninitialised(offset, length) {
                return fault(found.base + at, found.describe());
            }
        }
    }
    Ok(())
}

/// Writes make bytes initialised.
fn written(cx: &mut Cx<'_>, region: Region, runs: &Runs) {
    for (address, length) in runs.iter() {
        if region == Region::Shared {
            let shared = &mut cx.block.shared;
            if address.checked_add(length).is_some_and(|end| end <= u64::from(shared.size())) {
                shared.mark_init(address, length);
            }
            continue;
        }
        for (index, offset, length) in cx.grid.memory.parts(&mut cx.warp.allocation, address, length) {
            cx.grid.memory.get(index).mark_init(offset, length);
        }
    }
}
