//! The last accesses of a warp's lanes to memory, one by one: mostly nothing near them is accessed before the warp meets,
//! and then nobody needs to know which lane has accessed which word.

use super::lanes::{Part, Touch};
use super::runs::Runs;
use crate::machine::{LANES, Row};

/// Where an access reaches.
#[derive(Clone, Copy)]
pub struct Reach {
    /// A bit for each of 64 pieces of memory, or of all those that are so many apart.
    pub pieces: u64,
    /// The same of pieces of 16 bytes: columns of a matrix whose rows are a power of two apart.
    columns: u64,
    /// The first byte.
    low: u64,
    /// The one after the last.
    high: u64,
}

impl Reach {
    /// Of an access to ranges, in pieces of 2 to this power bytes.
    #[inline(always)]
    pub fn of(runs: &Runs, piece: u32) -> Reach {
        let mut reach = Reach { pieces: 0, columns: 0, low: u64::MAX, high: 0 };
        for (at, length) in runs.iter() {
            let last = at.wrapping_add(length.saturating_sub(1));
            reach.pieces |= between(at >> piece, last >> piece);
            reach.columns |= between(at >> COLUMN, last >> COLUMN);
            reach.low = reach.low.min(at);
            reach.high = reach.high.max(last.wrapping_add(1));
        }
        reach
    }
}

/// Bytes of a column: 2 to this power.
const COLUMN: u32 = 4;

/// Bits from one to another, modulo 64.
#[inline(always)]
fn between(first: u64, last: u64) -> u64 {
    let more = last.wrapping_sub(first);
    let bits = if more < 63 { (2 << more) - 1 } else { u64::MAX };
    bits.rotate_left(first as u32 & 63)
}

/// An access.
#[derive(Clone, Copy)]
pub struct Entry {
    reach: Reach,
    /// The lanes.
    pub mask: u32,
    /// Bytes of each.
    pub size: u64,
    /// The interval.
    pub interval: u32,
    /// PTX line.
    pub line: u32,
    /// Whose the bytes are.
    pub part: Part,
    /// From the address of a lane to that of the next; of others, the addresses are remembered.
    step: Option<u64>,
}

impl Entry {
    /// An access to runs that reach so far.
    #[inline(always)]
    pub fn new(touch: Touch<'_>, reach: Reach, interval: u32, line: u32) -> Entry {
        let step = match *touch.runs {
            Runs::One(_, length) if length == touch.size => Some(0),
            Runs::One(..) => Some(touch.size),
            Runs::Many(..) => None,
        };
        Entry { reach, mask: touch.mask, size: touch.size, interval, line, part: touch.part, step }
    }
}

/// Accesses of one kind.
#[derive(Default)]
pub struct Recent {
    pieces: u64,
    list: Vec<Entry>,
    /// Their addresses, where they are remembered.
    rows: Vec<Row<u64>>,
    /// The oldest, once there are as many as are remembered.
    oldest: usize,
}

impl Recent {
    /// Forgets all.
    #[inline(always)]
    pub fn clear(&mut self) {
        (self.pieces, self.oldest) = (0, 0);
        self.list.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether one of them may touch what is in reach.
    #[inline(always)]
    pub fn meets(&self, reach: &Reach) -> bool {
        self.pieces & reach.pieces != 0 && self.list.iter().any(|entry| overlap(&entry.reach, reach))
    }

    /// Adds one, in the place of the oldest where there are `most`.
    #[inline(always)]
    pub fn push(&mut self, entry: Entry, addresses: &Row<u64>, most: usize) {
        self.pieces |= entry.reach.pieces;
        let at = if self.list.len() < most {
            self.list.push(entry);
            self.list.len() - 1
        } else {
            let at = self.oldest;
            self.list[at] = entry;
            self.oldest = (at + 1) % most;
            at
        };
        if entry.step.is_none() {
            if self.rows.len() <= at {
                self.rows.resize(at + 1, [0; LANES]);
            }
            self.rows[at] = *addresses;
        }
    }

    /// The accesses, with the addresses of their lanes.
    pub fn iter(&self) -> impl Iterator<Item = (&Entry, Row<u64>)> {
        self.list.iter().enumerate().map(|(at, entry)| (entry, self.addresses(at)))
    }

    fn addresses(&self, at: usize) -> Row<u64> {
        let entry = &self.list[at];
        match entry.step {
            Some(step) => std::array::from_fn(|lane| entry.reach.low.wrapping_add(lane as u64 * step)),
            None => self.rows[at],
        }
    }

    /// An access of another lane that touches what a lane touches now, where `unknown` says that this lane does not know of
    /// that one's interval: the address, the lanes and the access.
    #[cold]
    pub fn clash(
        &self,
        touch: Touch<'_>,
        reach: &Reach,
        unknown: impl Fn(u32, usize, usize) -> bool,
    ) -> Option<(u64, u32, u32, &Entry)> {
        let mut ranges = None;
        (0..self.list.len()).filter(|&at| overlap(&self.list[at].reach, reach)).find_map(|at| {
            let (entry, theirs) = (&self.list[at], self.addresses(at));
            // Lanes that come back to their own places are the rule.
            let back = entry.size == touch.size && theirs == *touch.addresses;
            if back && touch.addresses.is_sorted_by(|a, b| a.wrapping_add(touch.size) <= *b) {
                return None;
            }
            let ours = ranges.get_or_insert_with(|| sorted(touch.runs));
            if !any_overlap(ours, &sorted(&Runs::of(entry.mask, &theirs, entry.size))) {
                return None;
            }
            let mine = (0..LANES).filter(|lane| touch.mask >> lane & 1 != 0);
            let pairs = mine.flat_map(|lane| (0..LANES).map(move |other| (lane, other)));
            let found =
                pairs.filter(|&(lane, other)| other != lane && entry.mask >> other & 1 != 0).find(|&(lane, other)| {
                    let (a, b) = (touch.addresses[lane], theirs[other]);
                    a < b + entry.size && b < a + touch.size && unknown(entry.interval, lane, other)
                });
            found.map(|(lane, other)| (touch.addresses[lane].max(theirs[other]), lane as u32, other as u32, entry))
        })
    }
}

/// Ranges, ascending.
fn sorted(runs: &Runs) -> Vec<(u64, u64)> {
    let mut ranges: Vec<_> = runs.iter().collect();
    ranges.sort_unstable();
    ranges
}

/// Whether one of some ascending ranges touches one of others.
fn any_overlap(a: &[(u64, u64)], b: &[(u64, u64)]) -> bool {
    let (mut i, mut j) = (0, 0);
    while let (Some(&(from, length)), Some(&(other, more))) = (a.get(i), b.get(j)) {
        if from < other + more && other < from + length {
            return true;
        }
        // Which ends before the other begins, ends before all that follow that one.
        if from + length <= other { i += 1 } else { j += 1 }
    }
    false
}

#[inline(always)]
fn overlap(a: &Reach, b: &Reach) -> bool {
    a.low < b.high && b.low < a.high && a.columns & b.columns != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::FULL;

    fn reach(piece: u32, ranges: &[(u64, u64)]) -> Reach {
        let mut row = [(0, 0); LANES];
        row[..ranges.len()].copy_from_slice(ranges);
        Reach::of(&Runs::Many(row, ranges.len()), piece)
    }

    #[test]
    fn pieces_cover_what_is_touched() {
        assert_eq!(reach(4, &[(0, 16)]).pieces, 1);
        assert_eq!(reach(4, &[(15, 2)]).pieces, 3);
        assert_eq!(reach(4, &[(16, 512)]).pieces, 0xffff_ffff << 1);
        assert_eq!(reach(4, &[(0, 4), (1020, 4)]).pieces, 1 | 1 << 63);
        // Pieces repeat after 64 of them, and a range may be all.
        assert_eq!(reach(4, &[(1024 + 32, 4)]).pieces, 4);
        assert_eq!(reach(4, &[(1016, 16)]).pieces, 1 << 63 | 1);
        assert_eq!(reach(0, &[(5, 64)]).pieces, u64::MAX);
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut recent = Recent::default();
        for n in 0..5u64 {
            let addresses = std::array::from_fn(|lane| 4096 * n + lane as u64 * 8);
            let runs = Runs::of(FULL, &addresses, 4);
            let touch = Touch { mask: FULL, addresses: &addresses, size: 4, runs: &runs, part: Part::Own };
            recent.push(Entry::new(touch, Reach::of(&runs, 9), 1, n as u32), &addresses, 3);
        }
        assert_eq!(recent.len(), 3);
        let meets = |at: u64| recent.meets(&reach(9, &[(at, 4)]));
        assert_eq!([0, 1, 2, 3, 4].map(|n| meets(4096 * n)), [false, false, true, true, true]);
        let found: Vec<_> = recent.iter().map(|(entry, addresses)| (entry.line, addresses[2])).collect();
        assert_eq!(found, [(3, 3 * 4096 + 16), (4, 4 * 4096 + 16), (2, 2 * 4096 + 16)]);
    }
}
