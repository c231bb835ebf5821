//! What an access moves: sectors of global memory, passes over the banks of shared memory.

use crate::counters::SECTOR;
use crate::machine::access::{Effect, Region};
use crate::machine::async_queue::active;
use crate::machine::{Cx, LANES, Row};

/// Banks of shared memory, 4 bytes wide each.
const BANKS: usize = 32;

/// Counts one access of a warp.
pub fn count(cx: &mut Cx<'_>, region: Region, addresses: &Row<u64>, size: u64, effect: Effect) {
    match region {
        Region::Global => global(cx, addresses, size, effect),
        Region::Shared => {
            let (passes, least) = passes(cx.mask, addresses, size, effect);
            cx.counters.sums.shared_passes += passes;
            cx.counters.sums.bank_conflicts += passes - least;
        }
        _ => {}
    }
}

/// Counts `length` neighbouring bytes of global memory that an asynchronous operation moves, if that is wanted.
pub fn range(cx: &mut Cx<'_>, address: u64, length: u64, effect: Effect) {
    let Some(traffic) = &cx.grid.traffic else { return };
    if length == 0 {
        return;
    }
    if let Ok(index) = cx.grid.memory.locate(address, length) {
        let allocation = cx.grid.memory.get(index);
        let sectors = (address + length).div_ceil(SECTOR) - address / SECTOR;
        cx.counters.asked[index].add(effect, length, sectors);
        traffic.touch(index, allocation, address - allocation.base, length, effect);
    }
}

/// An access of a warp to global memory: its bytes, its distinct sectors, and the stretches without a gap that they are.
fn global(cx: &mut Cx<'_>, addresses: &Row<u64>, size: u64, effect: Effect) {
    let Some(traffic) = &cx.grid.traffic else { return };
    let memory = &cx.grid.memory;
    let (mut seen, mut count) = ([0; LANES], 0);
    // A stretch and its allocation.
    let mut open: Option<(usize, u64, u64)> = None;
    let touch = |(index, start, end): (usize, u64, u64)| {
        let allocation = memory.get(index);
        traffic.touch(index, allocation, start - allocation.base, end - start, effect);
    };
    for lane in active(cx.mask) {
        let address = addresses[lane];
        let index = match open {
            Some((index, ..)) if holds(memory.get(index), address, size) => index,
            // What is in no allocation is a fault, which others report.
            _ => match memory.locate(address, size) {
                Ok(index) => index,
                Err(_) => continue,
            },
        };
        // An access is aligned, hence in one sector.
        let sector = address / SECTOR;
        let new = !seen[..count].contains(&sector);
        if new {
            seen[count] = sector;
            count += 1;
        }
        cx.counters.asked[index].add(effect, size, u64::from(new));
        open = match open {
            Some((_, start, end)) if start <= address && address + size <= end => open,
            Some((at, start, end)) if address == end && at == index => Some((index, start, end + size)),
            _ => {
                open.map(touch);
                Some((index, address, address + size))
            }
        };
    }
    open.map(touch);
}

fn holds(allocation: &crate::memory::Allocation, address: u64, size: u64) -> bool {
    allocation.base <= address && address + size <= allocation.base + allocation.size
}

/// Passes that an access to shared memory takes, and would take without conflicts. Lanes are served in as many parts as
/// they have words: 64-bit accesses by half-warps, 128-bit accesses and rows of matrices by eight lanes. Within a part,
/// each bank gives one word a pass, to all lanes that want it; atomics change a word once a pass.
fn passes(mask: u32, addresses: &Row<u64>, size: u64, effect: Effect) -> (u64, u64) {
    let words = size.div_ceil(4) as usize;
    let lanes = LANES / words.clamp(1, LANES);
    let (mut passes, mut least) = (0, 0);
    for part in (0..LANES).step_by(lanes) {
        // The words that the part wants, and how many of them each bank has.
        let (mut wanted, mut count, mut banks) = ([0; LANES], 0, [0; BANKS]);
        for lane in (part..part + lanes).filter(|lane| mask >> lane & 1 != 0) {
            for word in addresses[lane] / 4..addresses[lane] / 4 + words as u64 {
                if matches!(effect, Effect::Atomic | Effect::Reduction) || !wanted[..count].contains(&word) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn conflicts(mask: u32, size: u64, address: impl Fn(u64) -> u64) -> (u64, u64) {
        let (passes, least) = passes(mask, &std::array::from_fn(|lane| address(lane as u64)), size, Effect::Load);
        (passes, passes - least)
    }

    const ALL: u32 = u32::MAX;

    #[test]
    fn words_of_one_bank_take_a_pass_each() {
        assert_eq!(conflicts(ALL, 4, |lane| lane * 4), (1, 0));
        assert_eq!(conflicts(ALL, 4, |lane| lane * 8), (2, 1));
        assert_eq!(conflicts(ALL, 4, |lane| lane * 128), (32, 31));
        // Odd strides meet every bank once; an XOR does too.
        assert_eq!(conflicts(ALL, 4, |lane| lane * 132), (1, 0));
        assert_eq!(conflicts(ALL, 4, |lane| (lane ^ 21) * 4), (1, 0));
        // Lanes that do not execute want nothing.
        assert_eq!(conflicts(0xffff, 4, |lane| lane * 8), (1, 0));
    }

    #[test]
    fn equal_words_are_free() {
        assert_eq!(conflicts(ALL, 4, |_| 64), (1, 0));
        assert_eq!(conflicts(ALL, 4, |lane| lane / 8 * 4), (1, 0));
        // Bytes and halves of one word too; but two words of a bank are two.
        assert_eq!(conflicts(ALL, 1, |lane| lane), (1, 0));
        assert_eq!(conflicts(ALL, 2, |lane| lane * 2), (1, 0));
        assert_eq!(conflicts(ALL, 2, |lane| lane * 4), (1, 0));
        assert_eq!(conflicts(ALL, 4, |lane| lane % 2 * 128), (2, 1));
        assert_eq!(conflicts(ALL, 16, |_| 0), (4, 0));
    }

    #[test]
    fn wide_accesses_are_served_in_parts() {
        // 256 bytes: a pass for each half-warp.
        assert_eq!(conflicts(ALL, 8, |lane| lane * 8), (2, 0));
        assert_eq!(conflicts(ALL, 8, |lane| lane * 16), (4, 2));
        // 512 bytes: a pass for each eight lanes.
        assert_eq!(conflicts(ALL, 16, |lane| lane * 16), (4, 0));
        assert_eq!(conflicts(ALL, 16, |lane| lane * 32), (8, 4));
        assert_eq!(conflicts(ALL, 16, |lane| lane * 128), (32, 28));
        // Lanes of different parts do not conflict.
        assert_eq!(conflicts(ALL, 16, |lane| lane % 8 * 16 + lane / 8 * 128), (4, 0));
        assert_eq!(conflicts(0xff00, 16, |lane| lane * 128), (8, 7));
    }

    #[test]
    fn rows_of_matrices_are_served_by_eight() {
        // Rows of 128 bytes without a swizzle, and with one.
        assert_eq!(conflicts(ALL, 16, |lane| lane % 8 * 128 + lane / 8 * 16), (32, 28));
        assert_eq!(conflicts(ALL, 16, |lane| lane % 8 * 128 + ((lane / 8) ^ (lane % 8)) * 16), (4, 0));
        // Rows of 16 bytes more than a multiple of 128.
        assert_eq!(conflicts(0xffff, 16, |lane| lane % 8 * 144 + lane / 8 * 16), (2, 0));
    }

    #[test]
    fn atomics_of_one_word_take_a_pass_each() {
        let atomics =
            |address: fn(u64) -> u64| passes(ALL, &std::array::from_fn(|lane| address(lane as u64)), 4, Effect::Atomic);
        assert_eq!(atomics(|lane| lane * 4), (1, 1));
        assert_eq!(atomics(|lane| lane / 4 * 4), (4, 1));
    }
}
