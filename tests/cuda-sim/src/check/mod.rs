//! Checks and costly counts: what is looked for beside the results.

mod clock;
pub mod race;
mod shadow;
#[cfg(test)]
mod tests;
pub mod traffic;

use crate::code::Flow;
pub use crate::device::Checks;
use crate::machine::access::{Access, Effect, Region};
use crate::machine::cluster;
use crate::machine::fault::{Fault, Kind};
use crate::machine::{Cx, LANES, Row};

/// Watches an access of the executing lanes before it happens: `size` bytes at every address. Those of lanes that do not
/// execute equal that of one that does.
#[inline(never)]
pub fn observe(
    cx: &mut Cx<'_>,
    region: Region,
    addresses: &Row<u64>,
    size: u64,
    effect: Effect,
    access: Access,
) -> Option<Flow> {
    if region == Region::Shared && addresses.iter().any(|&address| cluster::split(address).0.is_some()) {
        return if cx.grid.checks.init { in_cluster(cx, addresses, size, effect).err() } else { None };
    }
    if cx.grid.traffic.is_some() {
        traffic::count(cx, region, addresses, size, effect);
    }
    if cx.grid.checks.init
        && let Err(fault) = initialised(cx, region, addresses, size, effect)
    {
        return Some(cx.fail(fault));
    }
    if cx.grid.checks.race { race::access(cx, region, addresses, size, effect, access) } else { None }
}

/// The same in the shared memory of other blocks of the cluster, where only uninitialised reads are looked for.
fn in_cluster(cx: &mut Cx<'_>, addresses: &Row<u64>, size: u64, effect: Effect) -> Result<(), Flow> {
    for lane in (0..LANES).filter(|lane| cx.mask >> lane & 1 != 0) {
        let missing = match cx.block.at(addresses[lane]) {
            // What is not there is the access's own fault.
            Ok((block, offset)) if block.shared.get(offset, size).is_some() => {
                let missing =
                    (effect != Effect::Store).then(|| block.shared.first_uninitialised(offset, size)).flatten();
                if effect != Effect::Load {
                    block.shared.mark_init(offset, size);
                }
                missing.map(|at| (at, format!("shared memory of block {} of the cluster", block.rank)))
            }
            _ => None,
        };
        if let Some((at, place)) = missing {
            let message = format!("load of {size} bytes that nothing has written");
            let fault = Fault::new(Kind::UninitialisedRead, message).at_address(at, place);
            return Err(cx.fail(fault.at_lane(lane as u32)));
        }
    }
    Ok(())
}

/// Watches `length` neighbouring bytes of global memory that a bulk copy moves for a warp, and counts them.
pub fn bulk(cx: &mut Cx<'_>, address: u64, length: u64, effect: Effect) -> Result<(), Fault> {
    if effect != Effect::Store {
        cx.counters.load_bytes += length;
    }
    if effect != Effect::Load {
        cx.counters.store_bytes += length;
    }
    traffic::range(cx, address, length, effect);
    if effect == Effect::Atomic {
        // It races with no other, and the race check has no word for it.
        return Ok(());
    }
    let line = cx.code.ops[cx.pc as usize].line;
    race::global_range(cx.block, cx.grid, cx.warp.id, address, length, effect != Effect::Load, line)
}

/// Watches a warp give `length` bytes of global memory up, which is a write after which nothing is there.
pub fn discard(cx: &mut Cx<'_>, address: u64, length: u64) -> Result<(), Fault> {
    if let Ok(index) = cx.grid.memory.locate(address, length) {
        let allocation = cx.grid.memory.get(index);
        if let Some(traffic) = &cx.grid.traffic {
            traffic.discard(index, allocation, address - allocation.base, length);
        }
        allocation.forget_init(address - allocation.base, length);
    }
    let line = cx.code.ops[cx.pc as usize].line;
    race::global_range(cx.block, cx.grid, cx.warp.id, address, length, true, line)
}

/// Reads must find written bytes; writes make them so.
fn initialised(cx: &mut Cx<'_>, region: Region, addresses: &Row<u64>, size: u64, effect: Effect) -> Result<(), Fault> {
    for lane in 0..LANES {
        if cx.mask >> lane & 1 == 0 {
            continue;
        }
        let address = addresses[lane];
        let missing = match region {
            Region::Shared => {
                let shared = &mut cx.block.shared;
                if address + size > u64::from(shared.size()) {
                    return Ok(());
                }
                let missing = (effect != Effect::Store).then(|| shared.first_uninitialised(address, size)).flatten();
                if effect != Effect::Load {
                    shared.mark_init(address, size);
                }
                missing.map(|at| (at, "shared memory".to_string()))
            }
            Region::Global => {
                let Ok(index) = cx.grid.memory.locate(address, size) else { return Ok(()) };
                let found = cx.grid.memory.get(index);
                let offset = address - found.base;
                let missing = (effect != Effect::Store).then(|| found.first_uninitialised(offset, size)).flatten();
                if effect != Effect::Load {
                    found.mark_init(offset, size);
                }
                missing.map(|at| (found.base + at, found.describe()))
            }
            _ => None,
        };
        if let Some((at, place)) = missing {
            let message = format!("load of {size} bytes that nothing has written");
            return Err(Fault::new(Kind::UninitialisedRead, message).at_address(at, place).at_lane(lane as u32));
        }
    }
    Ok(())
}
