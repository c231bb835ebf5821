//! What an access moves: sectors of global memory, passes over the banks of shared memory.

use crate::counters::SECTOR;
use crate::machine::access::{Effect, Region};
use crate::machine::{Cx, LANES, Row};

/// Banks of shared memory, 4 bytes wide each.
const BANKS: usize = 32;

/// Counts one access of a warp.
pub fn count(cx: &mut Cx<'_>, region: Region, addresses: &Row<u64>, size: u64, effect: Effect) {
    match region {
        Region::Global => {
            let sectors = sectors(cx, addresses, size);
            if effect != Effect::Store {
                cx.counters.load_sectors += sectors;
            }
            if effect != Effect::Load {
                cx.counters.store_sectors += sectors;
            }
        }
        Region::Shared => {
            let (passes, least) = passes(cx.mask, addresses, size);
            cx.counters.shared_passes += passes;
            cx.counters.bank_conflicts += passes - least;
        }
        _ => {}
    }
}

/// Counts `length` neighbouring bytes of global memory that an asynchronous operation moves.
pub fn range(cx: &mut Cx<'_>, address: u64, length: u64, effect: Effect) {
    let sectors = (address + length).div_ceil(SECTOR) - address / SECTOR;
    if effect == Effect::Load {
        cx.counters.load_sectors += sectors;
    } else {
        cx.counters.store_sectors += sectors;
    }
    if let Ok(index) = cx.grid.memory.locate(address, length) {
        let offset = address - cx.grid.memory.get(index).base;
        cx.counters.touch(cx.grid, index, offset, length);
    }
}

/// Distinct sectors of global memory that the lanes touch.
fn sectors(cx: &mut Cx<'_>, addresses: &Row<u64>, size: u64) -> u64 {
    let mut seen = [0; LANES];
    let mut count = 0;
    for lane in (0..LANES).filter(|lane| cx.mask >> lane & 1 != 0) {
        // An access is aligned, hence in one sector.
        let sector = addresses[lane] / SECTOR;
        if !seen[..count].contains(&sector) {
            seen[count] = sector;
            count += 1;
            if let Ok(index) = cx.grid.memory.locate(addresses[lane], size) {
                let offset = addresses[lane] - cx.grid.memory.get(index).base;
                cx.counters.touch(cx.grid, index, offset, size);
            }
        }
    }
    count as u64
}

/// Passes that an access to shared memory takes, and would take without conflicts. Lanes are served in as many parts as
/// they have words; within a part, each bank gives one word a pass, to all lanes that want it.
fn passes(mask: u32, addresses: &Row<u64>, size: u64) -> (u64, u64) {
    let words = size.div_ceil(4) as usize;
    let lanes = LANES / words.clamp(1, LANES);
    let (mut passes, mut least) = (0, 0);
    for part in (0..LANES).step_by(lanes) {
        // The words that the part wants, and how many of them each bank has.
        let (mut wanted, mut count, mut banks) = ([0; LANES], 0, [0; BANKS]);
        for lane in (part..part + lanes).filter(|lane| mask >> lane & 1 != 0) {
            for word in addresses[lane] / 4..addresses[lane] / 4 + words as u64 {
                if !wanted[..count].contains(&word) {
                    wanted[count] = word;
                    count += 1;
                    banks[word as usize % BANKS] += 1;
                }
            }
        }
        let most = banks.into_iter().max().unwrap_or(0);
        passes += most;
        least += most.min(1);
    }
    (passes, least)
}
