//! Which bytes of an allocation a launch has read and written, each counted once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::SECTOR;
use crate::memory::each_word;

/// A set of bits that all host threads of a launch add to; empty until something is in it.
#[derive(Default)]
struct Bits(OnceLock<Box<[AtomicU64]>>);

impl Bits {
    /// Adds bits of a word; the set is for `capacity` bits.
    fn add(&self, capacity: u64, word: usize, bits: u64) {
        let make = || (0..capacity.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let place = &self.0.get_or_init(make)[word];
        // Most bits are there already; reading first leaves the line with the other threads.
        if place.load(Ordering::Relaxed) & bits != bits {
            place.fetch_or(bits, Ordering::Relaxed);
        }
    }

    fn remove(&self, word: usize, bits: u64) {
        if let Some(words) = self.0.get() {
            words[word].fetch_and(!bits, Ordering::Relaxed);
        }
    }

    fn word(&self, word: usize) -> u64 {
        self.0.get().map_or(0, |words| words[word].load(Ordering::Relaxed))
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        self.0.get().into_iter().flatten().map(|word| word.load(Ordering::Relaxed))
    }

    fn count(&self) -> u64 {
        self.words().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// The footprint of a launch in one allocation.
#[derive(Default)]
pub struct Footprint {
    /// A bit per byte.
    read: Bits,
    /// A bit per byte.
    written: Bits,
    /// A bit per sector that was read when the launch had not written what was read: memory must deliver it.
    filled: Bits,
    /// A bit per sector of which a byte was written and not discarded since: memory must take it.
    dirty: Bits,
}

/// Distinct bytes and sectors of an allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distinct {
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Sectors of which a byte was read.
    pub read_sectors: u64,
    /// Sectors of which a byte was written.
    pub written_sectors: u64,
    /// Sectors of which a byte was read or written.
    pub sectors: u64,
    /// Sectors of which a byte was read that the launch had not written before.
    pub filled_sectors: u64,
    /// Sectors of which a byte was written and not discarded since.
    pub dirty_sectors: u64,
}

/// Bytes of a word of a bitmap.
const SPAN: u64 = 64;

/// Whether any of the bytes of each of the two sectors of a word is in it.
fn halves(bits: u64) -> u64 {
    const { assert!(SECTOR * 2 == SPAN) };
    u64::from(bits as u32 != 0) | u64::from(bits >> SECTOR != 0) << 1
}

impl Footprint {
    /// Reads a range of an allocation of `size` bytes.
    pub fn read(&self, size: u64, offset: u64, length: u64) {
        each_word(offset, length, |word, bits| {
            let missing = halves(bits & !self.written.word(word));
            if missing != 0 {
                self.filled.add(size.div_ceil(SECTOR), word / 32, missing << (word % 32 * 2));
            }
            self.read.add(size, word, bits);
        });
    }

    /// Writes a range of an allocation of `size` bytes.
    pub fn write(&self, size: u64, offset: u64, length: u64) {
        each_word(offset, length, |word, bits| {
            self.dirty.add(size.div_ceil(SECTOR), word / 32, halves(bits) << (word % 32 * 2));
            self.written.add(size, word, bits);
        });
    }

    /// Gives the whole sectors of a range up.
    pub fn discard(&self, offset: u64, length: u64) {
        let (first, end) = (offset.div_ceil(SECTOR), (offset + length) / SECTOR);
        each_word(first, end.saturating_sub(first), |word, bits| self.dirty.remove(word, bits));
    }

    /// What was touched.
    pub fn distinct(&self) -> Distinct {
        let sectors = |bits: &Bits| bits.words().map(|word| u64::from(halves(word).count_ones())).sum();
        let words = self.read.0.get().or(self.written.0.get()).map_or(0, |words| words.len());
        let both = (0..words).map(|word| halves(self.read.word(word) | self.written.word(word)));
        Distinct {
            read_bytes: self.read.count(),
            written_bytes: self.written.count(),
            read_sectors: sectors(&self.read),
            written_sectors: sectors(&self.written),
            sectors: both.map(|bits| u64::from(bits.count_ones())).sum(),
            filled_sectors: self.filled.count(),
            dirty_sectors: self.dirty.count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_sectors_are_counted_once() {
        let footprint = Footprint::default();
        for _ in 0..2 {
            footprint.read(1000, 30, 4);
            footprint.read(1000, 996, 4);
            footprint.write(1000, 64, 1);
        }
        let want = Distinct {
            read_bytes: 8,
            written_bytes: 1,
            read_sectors: 3,
            written_sectors: 1,
            sectors: 4,
            filled_sectors: 3,
            dirty_sectors: 1,
        };
        assert_eq!(footprint.distinct(), want);
    }

    #[test]
    fn what_the_launch_wrote_before_need_not_come_from_memory() {
        let footprint = Footprint::default();
        footprint.write(256, 0, 64);
        footprint.read(256, 16, 32);
        assert_eq!(footprint.distinct().filled_sectors, 0);
        // One byte more than was written.
        footprint.read(256, 60, 5);
        let distinct = footprint.distinct();
        assert_eq!((distinct.filled_sectors, distinct.read_sectors), (1, 3));
        // A write that comes later changes nothing.
        footprint.write(256, 64, 32);
        assert_eq!(footprint.distinct().filled_sectors, 1);
        assert_eq!(Footprint::default().distinct(), Distinct::default());
    }
}
