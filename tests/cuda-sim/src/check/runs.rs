//! The bytes that the lanes of a warp access, as few ranges as possible.

use crate::machine::{FULL, LANES, Row};

/// Ranges of bytes, each accessed by lanes that follow one another. It lives on the stack for one access.
#[allow(clippy::large_enum_variant)]
pub enum Runs {
    /// All lanes access one range: address and bytes.
    One(u64, u64),
    /// So many ranges.
    Many([(u64, u64); LANES], usize),
}

impl Runs {
    /// Those of the executing lanes, `size` bytes at each of their addresses.
    #[inline(always)]
    pub fn of(mask: u32, addresses: &Row<u64>, size: u64) -> Runs {
        if mask == FULL {
            let (mut steps, mut differs) = (0, 0);
            for lane in 0..LANES {
                steps |= addresses[lane] ^ addresses[0].wrapping_add(lane as u64 * size);
                differs |= addresses[lane] ^ addresses[0];
            }
            if steps == 0 {
                return Runs::One(addresses[0], size * LANES as u64);
            }
            if differs == 0 {
                return Runs::One(addresses[0], size);
            }
        }
        let (mut ranges, mut count) = ([(0u64, 0u64); LANES], 0);
        let mut left = mask;
        while left != 0 {
            let address = addresses[left.trailing_zeros() as usize];
            left &= left - 1;
            if let Some((at, length)) = ranges[..count].last_mut() {
                if address == at.wrapping_add(*length) {
                    *length += size;
                    continue;
                }
                if address.wrapping_add(size) == at.wrapping_add(*length) {
                    continue;
                }
            }
            ranges[count] = (address, size);
            count += 1;
        }
        Runs::Many(ranges, count)
    }

    /// Address and bytes of each, in the order of the lanes.
    #[inline(always)]
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let (first, more) = match self {
            Runs::One(address, length) => (Some((*address, *length)), &[][..]),
            Runs::Many(ranges, count) => (None, &ranges[..*count]),
        };
        first.into_iter().chain(more.iter().copied())
    }
}

/// The first executing lane whose `size` bytes hold an address.
pub fn lane_of(mask: u32, addresses: &Row<u64>, size: u64, at: u64) -> Option<u32> {
    (0..LANES as u32).find(|&lane| mask >> lane & 1 != 0 && at.wrapping_sub(addresses[lane as usize]) < size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(mask: u32, size: u64, address: impl Fn(u64) -> u64) -> Vec<(u64, u64)> {
        let addresses = std::array::from_fn(|lane| address(lane as u64));
        Runs::of(mask, &addresses, size).iter().collect()
    }

    #[test]
    fn neighbours_and_equals_are_joined() {
        assert_eq!(runs(FULL, 4, |lane| 64 + lane * 4), [(64, 128)]);
        assert_eq!(runs(FULL, 8, |_| 64), [(64, 8)]);
        assert_eq!(runs(0xf0, 4, |lane| 64 + lane * 4), [(80, 16)]);
        assert_eq!(runs(0x5, 4, |lane| 64 + lane * 4), [(64, 4), (72, 4)]);
        assert_eq!(runs(FULL, 16, |lane| lane / 8 * 128 + lane % 8 * 16), [(0, 512)]);
        assert_eq!(
            runs(FULL, 16, |lane| lane / 8 * 256 + lane % 8 * 16),
            [(0, 128), (256, 128), (512, 128), (768, 128)]
        );
        // Pairs of lanes read one place.
        assert_eq!(runs(FULL, 4, |lane| lane / 2 * 4), [(0, 64)]);
        assert_eq!(runs(FULL, 4, |lane| (31 - lane) * 8).len(), LANES);
    }

    #[test]
    fn lanes_are_found_again() {
        let addresses = std::array::from_fn(|lane| 64 + lane as u64 / 2 * 8);
        assert_eq!(lane_of(FULL, &addresses, 4, 75), Some(2));
        assert_eq!(lane_of(0xfff8, &addresses, 4, 75), Some(3));
        assert_eq!(lane_of(FULL, &addresses, 4, 76), None);
    }
}
