//! Races between lanes of one warp.
//!
//! Since Volta nothing orders the lanes of a warp but `bar.warp.sync` and what orders threads of different warps too. The
//! instructions that only exchange registers (`shfl.sync`, `vote.sync`, `match.sync`, `redux.sync`, `elect.sync`) let lanes
//! wait for one another but order no memory (CUDA C++ Programming Guide, warp vote, match and shuffle functions).
//!
//! A warp's time is cut into intervals, at every point that orders some of its lanes. For each word of shared memory (byte,
//! once a kernel has accessed less than a word) three layers hold which lanes have last read it, written it, and written it
//! by strong accesses, and in which interval. Two lanes race if one of them comes to a word that the other has marked in an
//! interval that nothing has told it of. Mostly that is the warp's present interval, because all lanes were ordered at its
//! beginning. Where only some were, a table says up to which interval each lane knows each other one; of two accesses before
//! the last that a lane does not know, the older may be forgotten then.
//!
//! Words are marked only when they must be: the accesses of an interval are listed, and as long as none comes near another
//! one with which it could race, no lane races. Most intervals end before.
//!
//! Global memory has no such layers: there, an access is compared with the last ones since the lanes met, of each kind so
//! many ([`REMEMBERED`]).
//!
//! What orders lanes by way of memory is taken generously: a lane that comes behind a barrier of the block, finds the phase
//! of an mbarrier complete, or reads by an acquiring access, or by a strong one with a fence after it, knows all that its
//! warp has done until then, whoever told it.

use std::collections::VecDeque;

use super::recent::{Entry, Reach, Recent};
use super::runs::Runs;
use crate::machine::{FULL, LANES, Row};

/// Whose the bytes of an access are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Each lane accesses those at its address.
    Own,
    /// The addresses are of rows of 8x8 matrices of 16-bit elements, a word of which goes to each lane.
    Rows,
    /// The same of transposed matrices: a row goes to every fourth lane.
    Columns,
}

/// The bytes that lanes access.
#[derive(Clone, Copy)]
pub struct Touch<'a> {
    /// The lanes, or those that give the address of a row.
    pub mask: u32,
    /// Their addresses; those of other lanes equal one of them.
    pub addresses: &'a Row<u64>,
    /// Bytes at each.
    pub size: u64,
    /// The same as ranges.
    pub runs: &'a Runs,
    /// Whose they are.
    pub part: Part,
}

/// How lanes access memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// Whether they write.
    pub write: bool,
    /// Whether strongly.
    pub strong: bool,
    /// PTX line.
    pub line: u32,
}

/// An earlier access of another lane that nothing orders before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clash {
    /// The address.
    pub at: u64,
    /// The lane that accesses it now.
    pub lane: u32,
    /// The other lane.
    pub other: u32,
    /// Whether that one has written, and the PTX line then.
    pub wrote: Option<u32>,
    /// Whether that was a strong access.
    pub strong: bool,
}

/// What lanes did last: the interval, which is that of one warp, and the lanes. Empty as long as it was not needed.
#[derive(Default)]
struct Layer {
    interval: Vec<u32>,
    lanes: Vec<u32>,
}

impl Layer {
    fn resize(&mut self, marks: usize) {
        self.interval.resize(marks, 0);
        self.lanes.resize(marks, 0);
    }

    /// Makes each mark so many.
    fn refine(&mut self, by: usize) {
        for list in [&mut self.interval, &mut self.lanes] {
            *list = list.iter().flat_map(|&mark| std::iter::repeat_n(mark, by)).collect();
        }
    }

    /// Whether marks of this interval are of other lanes than `masks` says.
    #[inline(always)]
    fn differs(&self, now: u32, first: usize, masks: &[u32]) -> bool {
        let range = first..first + masks.len();
        let (Some(interval), Some(lanes)) = (self.interval.get(range.clone()), self.lanes.get(range)) else {
            return false;
        };
        let mut hit = 0;
        for ((&interval, &lanes), &mask) in interval.iter().zip(lanes).zip(masks) {
            let all = lanes | mask;
            hit |= if interval == now { all & all.wrapping_sub(1) } else { 0 };
        }
        hit != 0
    }

    #[inline(always)]
    fn mark(&mut self, now: u32, first: usize, masks: &[u32]) {
        let range = first..first + masks.len();
        let (Some(interval), Some(lanes)) = (self.interval.get_mut(range.clone()), self.lanes.get_mut(range)) else {
            return;
        };
        for ((interval, lanes), &mask) in interval.iter_mut().zip(lanes).zip(masks) {
            *lanes = if *interval == now { *lanes | mask } else { mask };
            *interval = now;
        }
    }
}

/// What the lanes of a warp know of each other.
#[derive(Default)]
struct Order {
    /// The present interval.
    now: u32,
    /// Pieces of shared memory whose layers were marked in it.
    marked: [u64; 3],
    /// Accesses in it that are not marked.
    recent: [Recent; 3],
    /// The last accesses to global memory since all lanes were ordered.
    global: [Recent; 3],
    /// Since some lanes were ordered and not all.
    partly: Option<Box<Partly>>,
    /// Lanes that have read strongly and made no fence since.
    heard: u32,
    /// Asynchronous operations of its lanes that were not waited for.
    flying: VecDeque<Flight>,
}

/// Intervals at the end of which not all lanes were ordered.
struct Partly {
    /// Those, ascending.
    past: Vec<u32>,
    /// Up to which interval a lane knows another one.
    known: [Row<u32>; LANES],
}

/// Intervals after which nobody tries to tell apart who knows what.
const LONG: usize = 1 << 12;

/// An asynchronous operation of lanes that will be theirs when they wait for it.
struct Flight {
    /// Its number among those of the engine and the warp.
    number: u32,
    /// The interval in which it was issued.
    issued: u32,
    line: u32,
    what: Flown,
}

enum Flown {
    /// `cp.async` of lanes to these addresses, so many bytes each.
    Copy(u32, Row<u32>, u64),
    /// A bulk copy of a lane from a range of shared memory.
    Store(u32, u64, u64),
}

/// Operations in flight beyond which the oldest is forgotten.
const MANY: usize = 1 << 8;

/// Accesses that wait to be marked: beyond them, they are.
const WAITING: usize = 1 << 5;

/// Accesses of each kind to global memory that are remembered.
const REMEMBERED: usize = 1 << 6;

/// Pieces of global memory of 2 to this power bytes are told apart, modulo 64.
const PIECE: u32 = 9;

const WRITES: usize = 0;
const READS: usize = 1;
const STRONG: usize = 2;

impl How {
    /// The layer in which it is noted.
    #[inline(always)]
    fn layer(self) -> Option<usize> {
        match (self.write, self.strong) {
            (true, true) => Some(STRONG),
            (true, false) => Some(WRITES),
            (false, false) => Some(READS),
            // What a strong read needs is told apart by what it has read.
            (false, true) => None,
        }
    }

    /// The layers with which it may race. A race with a weak write is found last.
    #[inline(always)]
    fn rivals(self) -> impl Iterator<Item = usize> {
        let layers = [(READS, self.write), (STRONG, !self.strong), (WRITES, true)];
        layers.into_iter().filter_map(|(layer, rival)| rival.then_some(layer))
    }
}

/// What the check remembers of the lanes of a block.
#[derive(Default)]
pub struct Lanes {
    size: u64,
    /// A mark stands for 2 to this power bytes.
    shift: u32,
    /// Shared memory has at most 64 pieces of 2 to this power bytes.
    piece: u32,
    layers: [Layer; 3],
    /// PTX lines of the writes.
    lines: Vec<u32>,
    orders: Vec<Order>,
    /// The last interval that was begun.
    last: u32,
}

/// The lane of each mark where all lanes access so many marks each, one after the other.
fn masks(marks: usize) -> &'static [u32] {
    const fn table<const N: usize>() -> [u32; N] {
        let (mut out, mut at) = ([0; N], 0);
        while at < N {
            out[at] = 1 << (at / (N / LANES));
            at += 1;
        }
        out
    }
    static TABLES: [&[u32]; 6] =
        [&table::<32>(), &table::<64>(), &table::<128>(), &table::<256>(), &table::<512>(), &table::<1024>()];
    TABLES[marks.max(1).ilog2().min(5) as usize]
}

impl Lanes {
    /// Begins another block. Its intervals are new ones, so that what is marked from the last means nothing.
    pub fn restart(&mut self, warps: u32, bytes: u32) {
        if self.size != u64::from(bytes) || self.last > u32::MAX / 2 {
            let (piece, orders) =
                (bytes.div_ceil(64).max(1).next_power_of_two().ilog2(), std::mem::take(&mut self.orders));
            *self = Lanes { size: bytes.into(), shift: 2, piece, orders, ..Lanes::default() };
        }
        self.orders.resize_with(warps as usize, Order::default);
        for warp in 0..warps {
            self.begin(warp);
            let order = &mut self.orders[warp as usize];
            (order.partly, order.heard) = (None, 0);
            order.flying.clear();
            order.global.iter_mut().for_each(Recent::clear);
        }
    }

    /// Begins an interval of a warp.
    fn begin(&mut self, warp: u32) {
        self.last += 1;
        let order = &mut self.orders[warp as usize];
        order.now = self.last;
        order.marked = [0; 3];
        order.recent.iter_mut().for_each(Recent::clear);
    }

    /// Notes an access of lanes of a warp to shared memory, unless it races with an earlier one of another lane. A race with
    /// a weak write is found last.
    pub fn access(&mut self, warp: u32, touch: Touch<'_>, how: How) -> Result<(), Clash> {
        let reach = Reach::of(touch.runs, self.piece);
        if self.is_near(warp, &reach, how) {
            self.settle(warp);
            self.compare(warp, touch, how)?;
            self.mark(warp, touch, how);
        } else {
            self.list(warp, touch, reach, how);
        }
        Ok(())
    }

    /// Whether an access races with an earlier one of another lane.
    fn check(&mut self, warp: u32, touch: Touch<'_>, how: How) -> Result<(), Clash> {
        if self.is_near(warp, &Reach::of(touch.runs, self.piece), how) {
            self.settle(warp);
            self.compare(warp, touch, how)?;
        }
        Ok(())
    }

    /// Notes an access of lanes to shared memory.
    pub fn note(&mut self, warp: u32, touch: Touch<'_>, how: How) {
        if self.orders[warp as usize].partly.is_some() {
            return self.mark(warp, touch, how);
        }
        self.list(warp, touch, Reach::of(touch.runs, self.piece), how);
    }

    /// Whether an access comes near an earlier one with which it could race.
    #[inline(always)]
    fn is_near(&self, warp: u32, reach: &Reach, how: How) -> bool {
        let order = &self.orders[warp as usize];
        order.partly.is_some()
            || how.rivals().any(|layer| order.marked[layer] & reach.pieces != 0 || order.recent[layer].meets(reach))
    }

    /// Puts an access on the list of those that are not marked.
    #[inline(always)]
    fn list(&mut self, warp: u32, touch: Touch<'_>, reach: Reach, how: How) {
        let Some(layer) = how.layer() else { return };
        if self.orders[warp as usize].recent[layer].len() == WAITING {
            self.settle(warp);
        }
        let order = &mut self.orders[warp as usize];
        order.recent[layer].push(Entry::new(touch, reach, order.now, how.line), touch.addresses, WAITING);
    }

    /// Marks the accesses that are not.
    #[cold]
    fn settle(&mut self, warp: u32) {
        for layer in [WRITES, READS, STRONG] {
            let mut recent = std::mem::take(&mut self.orders[warp as usize].recent[layer]);
            for (entry, addresses) in recent.iter() {
                let runs = Runs::of(entry.mask, &addresses, entry.size);
                let touch =
                    Touch { mask: entry.mask, addresses: &addresses, size: entry.size, runs: &runs, part: entry.part };
                self.mark(warp, touch, How { write: layer != READS, strong: layer == STRONG, line: entry.line });
            }
            recent.clear();
            self.orders[warp as usize].recent[layer] = recent;
        }
    }

    /// Notes an access of lanes of a warp to global memory, unless it races with an earlier one of another lane.
    pub fn global(&mut self, warp: u32, touch: Touch<'_>, how: How) -> Result<(), Clash> {
        let reach = Reach::of(touch.runs, PIECE);
        let order = &mut self.orders[warp as usize];
        for layer in how.rivals() {
            if !order.global[layer].meets(&reach) {
                continue;
            }
            let unknown = |interval: u32, lane: usize, other: usize| {
                interval == order.now || order.partly.as_ref().is_none_or(|partly| partly.known[lane][other] < interval)
            };
            if let Some((at, lane, other, entry)) = order.global[layer].clash(touch, &reach, unknown) {
                let wrote = (layer != READS).then_some(entry.line);
                return Err(Clash { at, lane, other, wrote, strong: layer == STRONG });
            }
        }
        if let Some(layer) = how.layer() {
            order.global[layer].push(Entry::new(touch, reach, order.now, how.line), touch.addresses, REMEMBERED);
        }
        Ok(())
    }

    /// Whether an access races with what other lanes have marked.
    fn compare(&mut self, warp: u32, touch: Touch<'_>, how: How) -> Result<(), Clash> {
        self.prepare(touch.size);
        let order = &self.orders[warp as usize];
        for layer in how.rivals() {
            if order.marked[layer] == 0 && order.partly.is_none() {
                continue;
            }
            let marks = &self.layers[layer];
            let mut found = None;
            if let Some(partly) = &order.partly {
                self.each(touch, |first, masks| {
                    found = found.or_else(|| unknown(marks, order.now, partly, first, masks));
                });
            } else {
                let mut hit = false;
                self.each(touch, |first, masks| hit |= marks.differs(order.now, first, masks));
                if hit {
                    self.each(touch, |first, masks| found = found.or_else(|| present(marks, order.now, first, masks)));
                }
            }
            if let Some((mark, lane, other)) = found {
                let at = (mark as u64) << self.shift;
                let wrote = (layer != READS).then(|| self.lines.get(mark).copied().unwrap_or(0));
                return Err(Clash { at, lane, other, wrote, strong: layer == STRONG });
            }
        }
        Ok(())
    }

    /// Marks what lanes access.
    fn mark(&mut self, warp: u32, touch: Touch<'_>, how: How) {
        let Some(layer) = how.layer() else { return };
        self.prepare(touch.size);
        let count = (self.size >> self.shift) as usize;
        let order = &mut self.orders[warp as usize];
        order.marked[layer] |= Reach::of(touch.runs, self.piece).pieces;
        let now = order.now;
        let mut marks = std::mem::take(&mut self.layers[layer]);
        if marks.interval.is_empty() {
            marks.resize(count);
        }
        self.each(touch, |first, masks| marks.mark(now, first, masks));
        self.layers[layer] = marks;
        if how.write {
            let mut lines = std::mem::take(&mut self.lines);
            lines.resize(count, 0);
            self.each(touch, |first, masks| {
                lines.get_mut(first..first + masks.len()).into_iter().for_each(|lines| lines.fill(how.line));
            });
            self.lines = lines;
        }
    }

    /// Makes the marks fine enough for accesses of so many bytes.
    #[inline(always)]
    fn prepare(&mut self, size: u64) {
        if size < 1 << self.shift {
            self.refine(size);
        }
    }

    #[cold]
    fn refine(&mut self, size: u64) {
        let shift = size.max(1).ilog2();
        let by = 1 << (self.shift - shift);
        self.shift = shift;
        self.layers.iter_mut().for_each(|layer| layer.refine(by));
        self.lines = self.lines.iter().flat_map(|&line| std::iter::repeat_n(line, by)).collect();
    }

    /// Calls `f` with the marks that lanes access, from the first on, and the lanes of each.
    #[inline(always)]
    fn each(&self, touch: Touch<'_>, mut f: impl FnMut(usize, &[u32])) {
        let Touch { mask, addresses, size, runs, part } = touch;
        let mark = |at: u64| (at >> self.shift) as usize;
        let marks = (size >> self.shift) as usize;
        if part != Part::Own {
            let lanes = LANES - mask.leading_zeros() as usize;
            for (row, &at) in addresses[..lanes].iter().enumerate() {
                let all: [u32; 16] =
                    if part == Part::Rows { self.row(row % LANES % 8) } else { self.column(row % LANES % 8) };
                f(mark(at), &all[..marks.min(16)]);
            }
            return;
        }
        match *runs {
            Runs::One(at, length) if length == size => f(mark(at), &[mask; LANES][..marks.min(LANES)]),
            Runs::One(at, _) => f(mark(at), masks(marks)),
            Runs::Many(..) => {
                let (masks, mut left) = (masks(marks), mask);
                while left != 0 {
                    let lane = left.trailing_zeros() as usize;
                    f(mark(addresses[lane]), &masks[lane * marks..][..marks]);
                    left &= left - 1;
                }
            }
        }
    }

    /// The lanes to which the marks of a row of a matrix go.
    fn row(&self, row: usize) -> [u32; 16] {
        std::array::from_fn(|mark| 1 << ((4 * row + (mark << self.shift) / 4) & 31))
    }

    /// The same of a transposed matrix, where a word goes to two lanes.
    fn column(&self, row: usize) -> [u32; 16] {
        let lane = |half: usize| 1 << ((4 * half + row / 2) & 31);
        std::array::from_fn(|mark| {
            let half = (mark << self.shift) / 2;
            if self.shift < 2 { lane(half) } else { lane(half) | lane(half + 1) }
        })
    }

    /// `bar.warp.sync` of lanes of a warp, of whose lanes `live` have not exited.
    pub fn sync(&mut self, warp: u32, lanes: u32, live: u32) {
        if live & !lanes == 0 {
            return self.all(warp);
        }
        if lanes.count_ones() < 2 {
            return;
        }
        self.part(warp, |known, now| {
            let mut joined = [0; LANES];
            for lane in each_of(lanes) {
                joined.iter_mut().zip(known[lane]).for_each(|(all, known)| *all = known.max(*all));
            }
            each_of(lanes).for_each(|lane| joined[lane] = now);
            each_of(lanes).for_each(|lane| known[lane] = joined);
        });
    }

    /// Lanes have learned all that their warp has done.
    pub fn learn(&mut self, warp: u32, lanes: u32, live: u32) {
        if live & !lanes == 0 {
            return self.all(warp);
        }
        self.part(warp, |known, now| each_of(lanes).for_each(|lane| known[lane] = [now; LANES]));
    }

    /// Lanes have read by strong accesses that acquire or do not.
    pub fn hear(&mut self, warp: u32, lanes: u32, live: u32, acquires: bool) {
        if acquires {
            self.learn(warp, lanes, live);
        } else {
            self.orders[warp as usize].heard |= lanes;
        }
    }

    /// Lanes have executed a fence.
    pub fn fence(&mut self, warp: u32, lanes: u32, live: u32) {
        let heard = &mut self.orders[warp as usize].heard;
        let acquired = *heard & lanes;
        *heard &= !lanes;
        if acquired != 0 {
            self.learn(warp, acquired, live);
        }
    }

    /// All lanes of a warp are ordered.
    fn all(&mut self, warp: u32) {
        let order = &mut self.orders[warp as usize];
        order.global.iter_mut().for_each(Recent::clear);
        if order.partly.take().is_some() || order.marked != [0; 3] || order.recent.iter().any(|list| list.len() != 0) {
            self.begin(warp);
        }
    }

    /// Some lanes of a warp are ordered: `f` says what is known then, given the interval that ends.
    fn part(&mut self, warp: u32, f: impl FnOnce(&mut [Row<u32>; LANES], u32)) {
        self.settle(warp);
        let order = &mut self.orders[warp as usize];
        let new = || Box::new(Partly { past: Vec::new(), known: [[0; LANES]; LANES] });
        let partly = order.partly.get_or_insert_with(new);
        f(&mut partly.known, order.now);
        partly.past.push(order.now);
        if partly.past.len() > LONG {
            return self.all(warp);
        }
        self.begin(warp);
    }

    /// A lane of those of the warp's that have not exited has written a byte, and some other does not know it.
    pub fn written_by(&mut self, warp: u32, at: u64) -> Option<u32> {
        self.settle(warp);
        let (order, mark) = (&self.orders[warp as usize], (at >> self.shift) as usize);
        let layer = &self.layers[WRITES];
        match &order.partly {
            None => present(layer, order.now, mark, &[FULL]),
            Some(partly) => unknown(layer, order.now, partly, mark, &[FULL]),
        }
        .map(|(_, _, other)| other)
    }

    /// Lanes have issued copies: their writes, now and when the lanes have waited for them.
    pub fn copy(&mut self, warp: u32, number: u32, touch: Touch<'_>, line: u32) -> Result<(), Clash> {
        self.access(warp, touch, How { write: true, strong: false, line })?;
        self.fly(warp, number, line, Flown::Copy(touch.mask, touch.addresses.map(|at| at as u32), touch.size));
        Ok(())
    }

    /// A lane has issued a bulk copy from a range of shared memory: it reads now, and until the lane has waited for it.
    pub fn store(&mut self, warp: u32, number: u32, lane: u32, range: (u64, u64), line: u32) -> Result<(), Clash> {
        self.range(range, lane, |lanes, touch| lanes.check(warp, touch, How { write: false, strong: false, line }))?;
        self.fly(warp, number, line, Flown::Store(lane, range.0, range.1));
        Ok(())
    }

    fn fly(&mut self, warp: u32, number: u32, line: u32, what: Flown) {
        let order = &mut self.orders[warp as usize];
        order.flying.push_back(Flight { number, issued: order.now, line, what });
        if order.flying.len() > MANY {
            order.flying.pop_front();
        }
    }

    /// Calls `f` with the parts of a range that a lane accesses.
    fn range(
        &mut self,
        (from, length): (u64, u64),
        lane: u32,
        mut f: impl FnMut(&mut Lanes, Touch<'_>) -> Result<(), Clash>,
    ) -> Result<(), Clash> {
        (from..from.saturating_add(length).min(self.size)).step_by(UNIT as usize).try_for_each(|at| {
            let (addresses, runs) = ([at; LANES], Runs::One(at, UNIT));
            f(self, Touch { mask: 1 << lane, addresses: &addresses, size: UNIT, runs: &runs, part: Part::Own })
        })
    }

    /// Lanes of a warp have waited for their copies, or bulk stores, up to a number: what those did is the lanes' own.
    pub fn waited(&mut self, warp: u32, lanes: u32, stores: bool, done: u32) {
        let order = &mut self.orders[warp as usize];
        let now = order.now;
        let mine = |flight: &mut Flight| {
            flight.number <= done
                && match flight.what {
                    Flown::Copy(..) => !stores,
                    Flown::Store(lane, ..) => stores && lanes >> lane & 1 != 0,
                }
        };
        let mut over = Vec::new();
        let mut at = 0;
        while let Some(flight) = order.flying.get_mut(at) {
            if !mine(flight) {
                at += 1;
            } else if let Some(flight) = order.flying.remove(at) {
                over.push(flight);
            }
        }
        for Flight { issued, line, what, .. } in over {
            match what {
                Flown::Copy(mask, addresses, size) if issued != now && mask & lanes != 0 => {
                    let mask = mask & lanes;
                    let any = addresses[mask.trailing_zeros() as usize];
                    let place = |lane: usize| if mask >> lane & 1 != 0 { addresses[lane] } else { any };
                    let addresses = std::array::from_fn(|lane| u64::from(place(lane)));
                    let runs = Runs::of(mask, &addresses, size);
                    let touch = Touch { mask, addresses: &addresses, size, runs: &runs, part: Part::Own };
                    self.note(warp, touch, How { write: true, strong: false, line });
                }
                Flown::Copy(..) => {}
                Flown::Store(lane, from, length) => {
                    let how = How { write: false, strong: false, line };
                    let _ = self.range((from, length), lane, |lanes, touch| {
                        lanes.note(warp, touch, how);
                        Ok(())
                    });
                }
            }
        }
    }

    /// The copies that a warp has issued so far will tell an mbarrier, and not it, that they are done.
    pub fn told_elsewhere(&mut self, warp: u32) {
        self.orders[warp as usize].flying.retain(|flight| matches!(flight.what, Flown::Store(..)));
    }
}

/// The unit in which ranges are looked at: bulk copies move so many bytes at least.
const UNIT: u64 = 16;

/// The lanes of a mask.
fn each_of(lanes: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| lanes >> lane & 1 != 0)
}

/// The first mark of the present interval that is of other lanes than `masks` says: it, a lane that comes there now, and
/// another one.
#[cold]
fn present(layer: &Layer, now: u32, first: usize, masks: &[u32]) -> Option<(usize, u32, u32)> {
    let pair = |(k, &mask): (usize, &u32)| {
        let (interval, lanes) = (*layer.interval.get(first + k)?, *layer.lanes.get(first + k)?);
        if interval == now {
            apart(mask, lanes, |_, _| true).map(|(lane, other)| (first + k, lane, other))
        } else {
            None
        }
    };
    masks.iter().enumerate().find_map(pair)
}

/// The first mark that a lane which comes there now does not know, as [`present`].
fn unknown(layer: &Layer, now: u32, partly: &Partly, first: usize, masks: &[u32]) -> Option<(usize, u32, u32)> {
    let pair = |(k, &mask): (usize, &u32)| {
        let (interval, lanes) = (*layer.interval.get(first + k)?, *layer.lanes.get(first + k)?);
        if interval != now && partly.past.binary_search(&interval).is_err() {
            return None;
        }
        let unknown = |lane: usize, other: usize| interval == now || partly.known[lane][other] < interval;
        apart(mask, lanes, unknown).map(|(lane, other)| (first + k, lane, other))
    };
    masks.iter().enumerate().find_map(pair)
}

/// A lane of the first set and another one of the second for which `f` holds.
fn apart(these: u32, others: u32, f: impl Fn(usize, usize) -> bool) -> Option<(u32, u32)> {
    each_of(these).find_map(|lane| {
        let other = each_of(others).find(|&other| other != lane && f(lane, other))?;
        Some((lane as u32, other as u32))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::schedule::Rng;

    const SIZE: u64 = 64;

    /// The definition: every access of every lane, and which of them each lane knows.
    struct History {
        accesses: Vec<(usize, u32, u64, u64, How)>,
        known: [Row<u32>; LANES],
        time: u32,
    }

    impl History {
        /// Lanes that earlier accesses race with: this lane's access to bytes.
        fn races(&self, lane: usize, from: u64, size: u64, how: How) -> Vec<(u64, u32)> {
            let before = |&&(other, time, at, length, then): &&(usize, u32, u64, u64, How)| {
                other != lane
                    && at < from + size
                    && from < at + length
                    && (how.write || then.write)
                    && !(how.strong && then.strong)
                    // Strong reads are not looked at again.
                    && (then.write || !then.strong)
                    && time > self.known[lane][other]
            };
            self.accesses.iter().filter(before).map(|a| (a.2.max(from), a.0 as u32)).collect()
        }

        fn sync(&mut self, lanes: u32) {
            let mut joined = [0; LANES];
            for lane in each_of(lanes) {
                joined.iter_mut().zip(self.known[lane]).for_each(|(all, known)| *all = known.max(*all));
                joined[lane] = self.time;
            }
            each_of(lanes).for_each(|lane| self.known[lane] = joined);
            self.time += 1;
        }

        fn learn(&mut self, lanes: u32) {
            each_of(lanes).for_each(|lane| self.known[lane] = [self.time; LANES]);
            self.time += 1;
        }
    }

    #[derive(Debug, PartialEq)]
    enum End {
        Found,
        Missed,
        Silent,
    }

    /// Plays a random program of four lanes in shared or in global memory, until it races.
    fn play(seed: u64, global: bool, partly: bool, finest: u32) -> End {
        let mut rng = Rng::new(seed);
        let mut lanes = Lanes::default();
        lanes.restart(3, SIZE as u32);
        let mut history = History { accesses: Vec::new(), known: [[0; LANES]; LANES], time: 1 };
        const LIVE: u32 = 0x8421;
        let some = |rng: &mut Rng| {
            let picks = rng.below(16) as u32;
            (0..4).fold(0, |mask, k| mask | (picks >> k & 1) << (5 * k))
        };
        // Of accesses to global memory only so many are remembered.
        for line in 0..if global { REMEMBERED as u32 } else { 200 } {
            let mask = if partly { some(&mut rng) } else { LIVE };
            match rng.below(8) {
                0 | 1 if mask != 0 => {
                    lanes.sync(1, mask, LIVE);
                    history.sync(mask);
                    continue;
                }
                2 if mask != 0 => {
                    lanes.learn(1, mask, LIVE);
                    history.learn(mask);
                    continue;
                }
                _ => {}
            }
            let mask = match some(&mut rng) {
                0 => continue,
                mask => mask,
            };
            let size = 1 << (finest + rng.below(5 - u64::from(finest)) as u32);
            let mut addresses = [0; LANES];
            for lane in each_of(mask) {
                addresses[lane] = rng.below(SIZE / size) * size;
            }
            let how = How { write: rng.below(3) == 0, strong: rng.below(4) == 0, line };
            let want: Vec<_> = each_of(mask)
                .flat_map(|lane| {
                    let races = history.races(lane, addresses[lane], size, how);
                    races.into_iter().map(move |(_, other)| (lane as u32, other))
                })
                .collect();
            // Long histories without a race are to be had too.
            if !want.is_empty() && rng.below(8) != 0 {
                continue;
            }
            let runs = Runs::of(mask, &addresses, size);
            let touch = Touch { mask, addresses: &addresses, size, runs: &runs, part: Part::Own };
            match if global { lanes.global(1, touch, how) } else { lanes.access(1, touch, how) } {
                Ok(()) if want.is_empty() => {}
                Ok(()) => return End::Missed,
                Err(clash) => {
                    assert!(want.contains(&(clash.lane, clash.other)), "seed {seed}, {line}: {clash:?}, not {want:?}");
                    return End::Found;
                }
            }
            let time = history.time;
            history.accesses.extend(each_of(mask).map(|lane| (lane, time, addresses[lane], size, how)));
        }
        End::Silent
    }

    #[test]
    fn exactly_the_races_are_found_where_all_lanes_meet() {
        let ends: Vec<End> = (0..3000).map(|seed| play(seed, false, false, seed as u32 % 4)).collect();
        let count = |end| ends.iter().filter(|e| **e == end).count();
        assert_eq!(count(End::Missed), 0);
        assert!(count(End::Found) > 1000, "they show little");
    }

    #[test]
    fn nothing_but_races_is_found_where_some_lanes_meet() {
        let ends: Vec<End> = (0..6000).map(|seed| play(seed, false, true, seed as u32 % 4)).collect();
        let count = |end| ends.iter().filter(|e| **e == end).count();
        let (found, missed) = (count(End::Found), count(End::Missed));
        assert!(found > 1000 && missed < found / 5, "{found} found, {missed} missed");
    }

    #[test]
    fn exactly_the_races_are_found_in_global_memory() {
        let ends: Vec<End> = (0..6000).map(|seed| play(seed, true, seed % 2 == 0, seed as u32 % 4)).collect();
        let count = |end| ends.iter().filter(|e| **e == end).count();
        assert_eq!(count(End::Missed), 0);
        assert!(count(End::Found) > 1000, "they show little");
    }

    #[test]
    fn accesses_that_are_not_near_wait_to_be_marked() {
        let mut lanes = Lanes::default();
        lanes.restart(1, 64 << 10);
        let at = |base: u64| std::array::from_fn::<u64, LANES, _>(|lane| base + lane as u64 * 64);
        let mut access = |base: u64, write: bool| {
            let addresses = at(base);
            let runs = Runs::of(FULL, &addresses, 4);
            let touch = Touch { mask: FULL, addresses: &addresses, size: 4, runs: &runs, part: Part::Own };
            let found = lanes.access(0, touch, How { write, strong: false, line: 1 });
            (found.is_ok(), lanes.orders[0].marked.iter().any(|&pieces| pieces != 0))
        };
        // Reads, as many as may wait, and writes elsewhere.
        for n in 0..WAITING as u64 {
            assert_eq!(access(if n == 0 { 0 } else { 4096 }, false), (true, false));
        }
        assert_eq!(access(16 << 10, true), (true, false));
        assert_eq!(access(4096, false), (true, true), "one more");
        // Between words that were read; one word on, what another lane has read.
        assert_eq!(access(4, true), (true, true));
        assert_eq!(access(64, true), (false, true));
    }

    #[test]
    fn blocks_begin_with_nothing() {
        let mut lanes = Lanes::default();
        for (block, warps) in [1, 1, 2, 2, 1].into_iter().enumerate() {
            lanes.restart(warps, 256);
            let addresses = std::array::from_fn(|lane| (lane + block) as u64 % 32 * 4);
            let runs = Runs::of(FULL, &addresses, 4);
            let touch = Touch { mask: FULL, addresses: &addresses, size: 4, runs: &runs, part: Part::Own };
            for warp in 0..warps {
                // Where each has read it writes, so that there are marks.
                for write in [false, true] {
                    assert_eq!(lanes.access(warp, touch, How { write, strong: false, line: 1 }), Ok(()));
                }
                assert_ne!(lanes.orders[warp as usize].marked, [0; 3]);
            }
        }
    }

    #[test]
    fn masks_name_the_lanes_of_marks() {
        for marks in [1, 2, 4, 8, 16, 32] {
            assert_eq!(masks(marks).len(), 32 * marks);
            assert!(masks(marks).iter().enumerate().all(|(at, &mask)| mask == 1 << (at / marks)));
        }
    }
}
