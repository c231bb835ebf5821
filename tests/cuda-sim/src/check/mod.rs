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
