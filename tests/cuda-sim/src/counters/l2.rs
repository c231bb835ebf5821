//! A model of the level 2 cache: what of a launch's traffic reaches memory.
//!
//! Lines of 128 bytes in four sectors, sixteen ways, the least recently used line replaced, empty when the launch begins.
//! A read brings the sectors that are not there; a write brings nothing and leaves its bytes in the cache, which goes to
//! memory when the line is replaced or the launch ends. Replacement, hashing and the split into two halves of real parts
//! are not published: this is the textbook's cache of the same size. What reaches it is what warps ask for, as if there
//! were no level 1 cache, in the order in which the host runs the blocks.

use std::sync::{Mutex, MutexGuard};

use super::SECTOR;

const LINE: u64 = 128;
const SECTORS: u64 = LINE / SECTOR;
const WAYS: usize = 16;
/// Locks: neighbouring sets are in different ones, so that host threads seldom wait.
const SHARDS: u64 = 64;

/// The cache of a device.
pub struct L2 {
    shards: Vec<Mutex<Shard>>,
    sets: u64,
}

/// Every 64th set. Rows of plain numbers, which the system gives as zeros without their being touched.
struct Shard {
    /// The number of the line and one; 0 is an empty way.
    tags: Vec<u64>,
    /// When the line was used.
    used: Vec<u64>,
    /// A bit per byte that is there.
    valid: Vec<u128>,
    /// A bit per sector that memory does not know.
    dirty: Vec<u8>,
    now: u64,
    moved: Moved,
}

/// Sectors that were moved between the cache and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From memory.
    pub read: u64,
    /// To memory.
    pub written: u64,
}

impl L2 {
    /// An empty cache of about `bytes`.
    pub fn new(bytes: u64) -> L2 {
        let sets = (bytes / LINE / WAYS as u64).max(1);
        let ways = |shard| (sets.saturating_sub(shard)).div_ceil(SHARDS) as usize * WAYS;
        let shards = (0..SHARDS.min(sets)).map(|shard| Mutex::new(Shard::new(ways(shard)))).collect();
        L2 { shards, sets }
    }

    /// Reads or writes, or both, `length` bytes.
    pub fn access(&self, address: u64, length: u64, read: bool, write: bool) {
        let (mut at, end) = (address, address + length);
        while at < end {
            let count = (LINE - at % LINE).min(end - at);
            let bytes = (u128::MAX >> (LINE - count)) << (at % LINE);
            let line = at / LINE;
            let set = self.set(line);
            let mut shard = lock(&self.shards[(set % SHARDS) as usize]);
            let way = shard.find((set / SHARDS) as usize * WAYS, line + 1);
            if read {
                shard.fill(way, bytes);
            }
            if write {
                shard.valid[way] |= bytes;
                shard.dirty[way] |= sectors(bytes).fold(0, |set, sector| set | 1 << sector);
            }
            at += count;
        }
    }

    /// Gives the whole lines of a range up: nothing of them is owed to memory.
    pub fn discard(&self, address: u64, length: u64) {
        for line in address.div_ceil(LINE)..(address + length) / LINE {
            let set = self.set(line);
            let mut shard = lock(&self.shards[(set % SHARDS) as usize]);
            let first = (set / SHARDS) as usize * WAYS;
            if let Some(way) = (first..first + WAYS).find(|&way| shard.tags[way] == line + 1) {
                shard.dirty[way] = 0;
            }
        }
    }

    /// A set for a line: spread, so that rows of a matrix whose length is a power of two do not share few sets.
    fn set(&self, line: u64) -> u64 {
        let spread = line.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((u128::from(spread) * u128::from(self.sets)) >> 64) as u64
    }

    /// What was moved once everything is in memory.
    pub fn moved(&self) -> Moved {
        let mut sum = Moved::default();
        for shard in &self.shards {
            let shard = lock(shard);
            let dirty: u64 = shard.dirty.iter().map(|bits| u64::from(bits.count_ones())).sum();
            sum.read += shard.moved.read;
            sum.written += shard.moved.written + dirty;
        }
        sum
    }
}

/// A mutex is only poisoned by a panic, which ends the launch anyway.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The sectors that have one of these bytes of a line.
fn sectors(bytes: u128) -> impl Iterator<Item = u64> {
    (0..SECTORS).filter(move |sector| (bytes >> (sector * SECTOR)) as u32 != 0)
}

impl Shard {
    fn new(ways: usize) -> Shard {
        Shard {
            tags: vec![0; ways],
            used: vec![0; ways],
            valid: vec![0; ways],
            dirty: vec![0; ways],
            now: 0,
            moved: Moved::default(),
        }
    }

    /// The way that holds a line from now on; it replaces another if it must.
    fn find(&mut self, first: usize, tag: u64) -> usize {
        self.now += 1;
        let ways = first..first + WAYS;
        let found = ways.clone().find(|&way| self.tags[way] == tag);
        let way = found.or_else(|| ways.min_by_key(|&way| self.used[way])).unwrap_or(first);
        if found.is_none() {
            self.moved.written += u64::from(self.dirty[way].count_ones());
            (self.tags[way], self.valid[way], self.dirty[way]) = (tag, 0, 0);
        }
        self.used[way] = self.now;
        way
    }

    /// Reads bytes of a line: sectors that do not have them all are brought.
    fn fill(&mut self, way: usize, bytes: u128) {
        for sector in sectors(bytes & !self.valid[way]) {
            self.moved.read += 1;
            self.valid[way] |= u128::from(u32::MAX) << (sector * SECTOR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `bytes` from address 0 on, 32 at a time, `times` over.
    fn stream(l2: &L2, bytes: u64, times: u32) {
        for _ in 0..times {
            (0..bytes / 32).for_each(|sector| l2.access(sector * 32, 32, true, false));
        }
    }

    #[test]
    fn what_fits_is_read_once() {
        let l2 = L2::new(1 << 20);
        // Half of the cache: hashed into the sets, some are full before others.
        stream(&l2, 1 << 19, 5);
        let read = l2.moved().read;
        assert!((1 << 14..(1 << 14) + (1 << 14) / 50).contains(&read), "{read}");
        let tiny = L2::new(1);
        stream(&tiny, 16 * 128, 3);
        assert_eq!(tiny.moved(), Moved { read: 64, written: 0 });
    }

    #[test]
    fn what_does_not_fit_is_read_again() {
        // The last used lines stay; a stream of twice the size finds none of them.
        let l2 = L2::new(1 << 20);
        stream(&l2, 2 << 20, 3);
        let read = l2.moved().read as f64 / (2 << 15) as f64;
        assert!(read > 2.9, "{read}");
        let set = L2::new(16 * 128);
        (0..17).for_each(|line| set.access(line * 128, 4, true, false));
        set.access(16 * 128, 4, true, false);
        assert_eq!(set.moved().read, 17);
        // The first line was replaced, and replaces the second.
        set.access(0, 4, true, false);
        set.access(2 * 128, 4, true, false);
        assert_eq!(set.moved().read, 18);
        set.access(128, 4, true, false);
        assert_eq!(set.moved().read, 19);
    }

    #[test]
    fn writes_reach_memory_once_and_bring_nothing() {
        let l2 = L2::new(16 * 128);
        l2.access(100, 61, false, true);
        l2.access(100, 61, false, true);
        // Three sectors; the first and last in part.
        assert_eq!(l2.moved(), Moved { read: 0, written: 3 });
        l2.access(104, 24, true, false);
        assert_eq!(l2.moved().read, 0);
        l2.access(96, 4, true, false);
        assert_eq!(l2.moved(), Moved { read: 1, written: 3 });
        // Given up, it is not owed; the line that is given up in part is.
        let given_up = L2::new(16 * 128);
        given_up.access(0, 256, false, true);
        given_up.discard(0, 255);
        assert_eq!(given_up.moved(), Moved { read: 0, written: 4 });
        // Replaced once, then written again.
        (2..18).for_each(|line| l2.access(line * 128, 32, true, false));
        l2.access(100, 4, true, true);
        assert_eq!(l2.moved(), Moved { read: 18, written: 4 });
    }
}
