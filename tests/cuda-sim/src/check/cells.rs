//! Who last read and wrote each byte of a stretch of memory.
//!
//! A cell stands for 16 bytes, the unit in which warps mostly access memory. It names a list of writes (the last weak one of
//! every byte, and strong ones since) and a list of reads since, weak ones first. Lists only grow at their head, and cells
//! that are accessed together share them, so that an access of a whole warp costs one list and a comparison per cell. This is
//! FastTrack (Flanagan and Freund, PLDI 2009) with sets of readers for its vector clocks: nothing is forgotten that a later
//! access could race with.

use std::collections::HashMap;

use super::clock::{Clock, Key};

/// Bytes of a cell.
pub const UNIT: usize = 16;

/// The bytes of a cell: a bit each.
type Bytes = u16;
const ALL: Bytes = Bytes::MAX;

/// Where an access stands in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// PTX line.
    pub line: u32,
    /// Whether it is strong: strong accesses do not race with each other.
    pub strong: bool,
}

/// An access: by whom, when on the agent's own clock, and where in the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The agent.
    pub agent: Key,
    /// Its clock then.
    pub clock: u32,
    /// The PTX line; the highest bit is set if it was strong.
    site: u32,
}

const STRONG: u32 = 1 << 31;

impl Event {
    /// An access by an agent.
    pub fn new(agent: Key, clock: u32, site: Site) -> Event {
        Event { agent, clock, site: site.line & !STRONG | if site.strong { STRONG } else { 0 } }
    }

    /// PTX line.
    pub fn line(self) -> u32 {
        self.site & !STRONG
    }

    /// See [`Site::strong`].
    pub fn strong(self) -> bool {
        self.site & STRONG != 0
    }
}

/// What the agent of an access knows.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    /// Its block.
    pub block: u64,
    /// What it knows, itself included: an agent whose own accesses are not in order does not know them all.
    pub clock: &'a Clock,
}

impl Who<'_> {
    /// Whether an access comes before what it does now.
    #[inline(always)]
    pub fn knows(&self, event: Event) -> bool {
        self.clock.knows(self.block, event.agent, event.clock)
    }
}

/// An earlier access that nothing orders before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clash {
    /// The first byte that both touch, in this stretch of memory.
    pub at: u64,
    /// The earlier access.
    pub other: Event,
    /// Whether it is a write.
    pub write: bool,
}

impl Clash {
    /// One that was found in a cell, whose number is this.
    fn of(self, cell: usize) -> Clash {
        Clash { at: (cell * UNIT) as u64 + self.at, ..self }
    }
}

/// An element of a list; element 0 is none.
#[derive(Clone, Copy, Default)]
struct Node {
    event: Event,
    next: u32,
    bytes: Bytes,
    /// What is in the list that begins here: see below.
    has: u8,
}

/// The list has a weak read of all bytes by an agent of whom nobody will learn any more.
const SETTLED: u8 = 1;

/// First elements of the lists of a cell: writes below, reads above.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Cell(u64);

impl Cell {
    /// None.
    const NO: Cell = Cell(u64::MAX);

    fn new(writes: u32, reads: u32) -> Cell {
        Cell(u64::from(writes) | u64::from(reads) << 32)
    }

    fn writes(self) -> u32 {
        self.0 as u32
    }

    fn reads(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// An access that is being noted, and what of it is dealt with already: neighbouring cells mostly share their lists.
pub struct Visit<'a> {
    /// Who accesses.
    pub who: Who<'a>,
    /// The access.
    pub event: Event,
    /// Whether it writes.
    pub write: bool,
    /// A cell of which some bytes are accessed, and which: lanes that follow one another mostly access one cell.
    open: (usize, Bytes),
    memo: Memo,
}

/// What became of the cells that an access has met last.
#[derive(Clone, Copy)]
struct Memo {
    bytes: Bytes,
    /// A cell, and what it becomes.
    cell: [Cell; 2],
    /// Writes and reads that it does not race with.
    passed: [u32; 2],
    /// A list, and what it becomes.
    read: [u32; 2],
    wrote: [u32; 2],
}

const NONE: u32 = u32::MAX;

impl Memo {
    /// Nothing was dealt with.
    const NEW: Memo = Memo { bytes: 0, cell: [Cell::NO; 2], passed: [0; 2], read: [NONE; 2], wrote: [NONE; 2] };
}

impl<'a> Visit<'a> {
    /// An access of which nothing was noted yet.
    #[inline(always)]
    pub fn new(who: Who<'a>, event: Event, write: bool) -> Visit<'a> {
        Visit { who, event, write, open: (0, 0), memo: Memo::NEW }
    }

    /// What the access makes of a cell, unless it races with an earlier one.
    #[inline(always)]
    fn next(&mut self, nodes: &mut Vec<Node>, cell: Cell) -> Result<Cell, Clash> {
        if self.memo.cell[0] != cell {
            let next = if self.write { self.written(nodes, cell)? } else { self.read(nodes, cell)? };
            self.memo.cell = [cell, next];
        }
        Ok(self.memo.cell[1])
    }

    #[inline(never)]
    fn read(&mut self, nodes: &mut Vec<Node>, cell: Cell) -> Result<Cell, Clash> {
        self.check(nodes, cell.writes(), true)?;
        let memo = &mut self.memo;
        if memo.read[0] != cell.reads() {
            memo.read = [cell.reads(), push(nodes, cell.reads(), self.event, memo.bytes)];
        }
        Ok(Cell::new(cell.writes(), memo.read[1]))
    }

    #[inline(never)]
    fn written(&mut self, nodes: &mut Vec<Node>, cell: Cell) -> Result<Cell, Clash> {
        self.check(nodes, cell.writes(), true)?;
        self.check(nodes, cell.reads(), false)?;
        let Visit { who, event, memo, .. } = self;
        let (bytes, strong) = (memo.bytes, event.strong());
        // A weak write covers and follows what it touches; of a whole cell, all that was there. A strong one stands for
        // nothing else: a strong access that it does not order may race with what is before.
        let list = if bytes == ALL && !strong { 0 } else { cell.writes() };
        let over = |node: &Node| !strong && node.bytes & !bytes == 0 && who.knows(node.event);
        if memo.wrote[0] != list {
            let rest = if list == 0 || strong { list } else { without(nodes, list, over) };
            memo.wrote = [list, push(nodes, rest, *event, bytes)];
        }
        let covered = elements(nodes, cell.reads()).all(|(_, node)| over(node));
        Ok(Cell::new(memo.wrote[1], if covered { 0 } else { cell.reads() }))
    }

    /// Whether it races with what is in a list of writes, or of reads.
    #[inline(always)]
    fn check(&mut self, nodes: &[Node], list: u32, write: bool) -> Result<(), Clash> {
        let passed = &mut self.memo.passed[usize::from(!write)];
        if list != *passed {
            ordered(nodes, self.who, self.event, self.memo.bytes, list, write)?;
            *passed = list;
        }
        Ok(())
    }
}

/// What is remembered of a stretch of memory.
pub struct Cells {
    size: usize,
    /// Empty as long as nothing was accessed.
    cells: Vec<Cell>,
    nodes: Vec<Node>,
    /// Elements at which it is time for [`Cells::tidy`].
    limit: usize,
}

/// Elements that are never too many.
const FEW: usize = 1 << 11;

impl Cells {
    /// Untouched memory.
    pub fn new(size: usize) -> Cells {
        Cells { size, cells: Vec::new(), nodes: vec![Node::default()], limit: FEW }
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Notes an access to bytes, which must be inside, up to the first of which it races with an earlier one. What is
    /// noted of a cell of which but a part is accessed waits for [`Cells::close`], or for an access to another one.
    #[inline(always)]
    pub fn access(&mut self, visit: &mut Visit<'_>, from: usize, size: usize) -> Result<(), Clash> {
        // A row of a matrix, or a vector: mostly it becomes what its neighbour has become.
        if size == UNIT
            && from.is_multiple_of(UNIT)
            && visit.memo.bytes == ALL
            && let Some(cell) = self.cells.get_mut(from / UNIT)
            && *cell == visit.memo.cell[0]
        {
            *cell = visit.memo.cell[1];
            return Ok(());
        }
        each_piece(from, size, |first, count, bytes| {
            if bytes != ALL {
                if visit.open.0 != first {
                    self.close(visit)?;
                }
                visit.open = (first, visit.open.1 | bytes);
                return Ok(());
            }
            self.note(visit, first, count, ALL)
        })
    }

    /// Notes what [`Cells::access`] has left open.
    #[inline(always)]
    pub fn close(&mut self, visit: &mut Visit<'_>) -> Result<(), Clash> {
        let (cell, bytes) = std::mem::take(&mut visit.open);
        if bytes == 0 { Ok(()) } else { self.note(visit, cell, 1, bytes) }
    }

    /// Ends a visit of these cells: it goes on with others.
    pub fn leave(&mut self, visit: &mut Visit<'_>) -> Result<(), Clash> {
        let closed = self.close(visit);
        visit.memo = Memo::NEW;
        closed
    }

    #[inline(always)]
    fn note(&mut self, visit: &mut Visit<'_>, first: usize, count: usize, bytes: Bytes) -> Result<(), Clash> {
        if self.cells.is_empty() {
            self.cells.resize(self.size.div_ceil(UNIT), Cell::default());
        }
        if visit.memo.bytes != bytes {
            visit.memo = Memo { bytes, ..Memo::NEW };
        }
        let Cells { cells, nodes, .. } = self;
        let cells = &mut cells[first..first + count];
        if count > 1 && uniform(cells) {
            cells.fill(visit.next(nodes, cells[0]).map_err(|clash| clash.of(first))?);
            return Ok(());
        }
        for (at, cell) in cells.iter_mut().enumerate() {
            *cell = visit.next(nodes, *cell).map_err(|clash| clash.of(first + at))?;
        }
        Ok(())
    }

    /// The read with which a write of bytes, which must be inside, races.
    pub fn read_unknown(&self, who: Who<'_>, event: Event, from: usize, size: usize) -> Option<Clash> {
        let read = each_piece(from, size, |first, count, bytes| {
            let cells = self.cells.get(first..first + count).unwrap_or_default();
            cells.iter().enumerate().try_for_each(|(at, cell)| {
                ordered(&self.nodes, who, event, bytes, cell.reads(), false).map_err(|clash| clash.of(first + at))
            })
        });
        read.err()
    }

    /// Notes a write of bytes, which must be inside, that nothing orders with earlier ones and that does no harm.
    pub fn add_write(&mut self, event: Event, from: usize, size: usize) {
        let Cells { cells, nodes, .. } = self;
        let _ = each_piece::<()>(from, size, |first, count, bytes| {
            let cells = cells.get_mut(first..first + count).unwrap_or_default();
            cells.iter_mut().for_each(|c| *c = Cell::new(push(nodes, c.writes(), event, bytes), c.reads()));
            Ok(())
        });
    }

    /// The first byte of a range, which must be inside, whose last write `wanted` picks, and that write. `passed` is the
    /// list of which that is known not to be so.
    pub fn find_write(
        &self,
        from: usize,
        size: usize,
        passed: &mut u32,
        mut wanted: impl FnMut(Event) -> bool,
    ) -> Option<(u64, Event)> {
        if self.cells.is_empty() {
            return None;
        }
        let found = each_piece(from, size, |first, count, bytes| {
            for (at, cell) in self.cells[first..first + count].iter().enumerate() {
                let list = cell.writes();
                if list == *passed {
                    continue;
                }
                for (_, node) in elements(&self.nodes, list) {
                    if node.bytes & bytes != 0 && wanted(node.event) {
                        let byte = (node.bytes & bytes).trailing_zeros() as usize;
                        return Err((((first + at) * UNIT + byte) as u64, node.event));
                    }
                }
                // Of a part of a cell this says nothing about the other part.
                if bytes == ALL {
                    *passed = list;
                }
            }
            Ok(())
        });
        found.err()
    }

    /// Whether there is much to tidy up.
    #[inline(always)]
    pub fn crowded(&self) -> bool {
        self.nodes.len() >= self.limit
    }

    /// Drops what no list needs: reads that everybody knows (`known`), all but one of the reads by agents of whom nobody
    /// will learn any more (`settled`), and what later accesses of the same agent stand for.
    pub fn tidy(&mut self, known: impl Fn(Event) -> bool, settled: impl Fn(Key) -> bool) {
        let count = self.nodes.len();
        // Elements that lists of writes and of reads have: a list goes on with older elements only.
        let mut used = vec![[false; 2]; count];
        for cell in &self.cells {
            used[cell.writes() as usize][0] = true;
            used[cell.reads() as usize][1] = true;
        }
        for at in (1..count).rev() {
            let next = self.nodes[at].next as usize;
            for kind in 0..2 {
                used[next][kind] |= used[at][kind];
            }
        }
        let mut now = vec![0; count];
        let mut kept = vec![Node::default()];
        for at in 1..count {
            let [written, read] = used[at];
            if !written && !read {
                continue;
            }
            let node = self.nodes[at];
            let next = now[node.next as usize];
            let settled = !written && settled(node.event.agent);
            if !written && known(node.event) || settled && kept[next as usize].has & SETTLED != 0 {
                now[at] = next;
                continue;
            }
            now[at] = push(&mut kept, next, node.event, node.bytes);
            if settled && !node.event.strong() && node.bytes == ALL {
                kept[now[at] as usize].has |= SETTLED;
            }
        }
        self.nodes = kept;
        for cell in &mut self.cells {
            *cell = Cell::new(now[cell.writes() as usize], now[cell.reads() as usize]);
        }
        if self.nodes.len() > self.limit / 2 {
            self.tidy_lists();
        }
        self.limit = FEW.max(2 * self.nodes.len());
    }

    /// Leaves in every list only the latest of an agent's alike accesses, if that is worth the sharing that it ends.
    fn tidy_lists(&mut self) {
        let mut now = HashMap::from([(0, 0)]);
        let mut kept = vec![Node::default()];
        for list in self.cells.iter().flat_map(|cell| [cell.writes(), cell.reads()]) {
            if now.contains_key(&list) {
                continue;
            }
            let mut latest: HashMap<(Key, Bytes, bool), u32> = HashMap::new();
            for (_, node) in elements(&self.nodes, list) {
                let clock = latest.entry((node.event.agent, node.bytes, node.event.strong())).or_default();
                *clock = node.event.clock.max(*clock);
            }
            let chosen = elements(&self.nodes, list).map(|(_, node)| *node).filter(|node| {
                let alike = (node.event.agent, node.bytes, node.event.strong());
                latest.get(&alike) == Some(&node.event.clock) && latest.remove(&alike).is_some()
            });
            let mut chosen: Vec<Node> = chosen.collect();
            chosen.reverse();
            let mut head = 0;
            for node in chosen {
                head = push(&mut kept, head, node.event, node.bytes);
                kept[head as usize].has |= node.has & SETTLED;
            }
            now.insert(list, head);
            if kept.len() > self.nodes.len() / 2 {
                return;
            }
        }
        for cell in &mut self.cells {
            *cell = Cell::new(now[&cell.writes()], now[&cell.reads()]);
        }
        self.nodes = kept;
    }
}

/// Whether an access to bytes of a cell races with what is in a list of writes, or of reads.
fn ordered(nodes: &[Node], who: Who<'_>, event: Event, bytes: Bytes, list: u32, write: bool) -> Result<(), Clash> {
    for (_, node) in elements(nodes, list) {
        if event.strong() && node.event.strong() {
            // So are the others.
            break;
        }
        let both = node.bytes & bytes;
        if both != 0 && !who.knows(node.event) {
            return Err(Clash { at: both.trailing_zeros().into(), other: node.event, write });
        }
    }
    Ok(())
}

/// Calls `f` with the cells of a range of bytes: the first, how many, and the bytes of each; those at its ends may be
/// touched in part.
#[inline(always)]
fn each_piece<E>(from: usize, size: usize, mut f: impl FnMut(usize, usize, Bytes) -> Result<(), E>) -> Result<(), E> {
    if size == 0 {
        return Ok(());
    }
    let end = from + size - 1;
    let (first, last) = (from / UNIT, end / UNIT);
    let (head, tail) = (ALL << (from % UNIT), ALL >> (UNIT - 1 - end % UNIT));
    if first == last {
        return f(first, 1, head & tail);
    }
    let (mut a, mut b) = (first, last + 1);
    if head != ALL {
        f(first, 1, head)?;
        a += 1;
    }
    if tail != ALL {
        b -= 1;
    }
    if a < b {
        f(a, b - a, ALL)?;
    }
    if tail != ALL { f(last, 1, tail) } else { Ok(()) }
}

/// Whether all cells have the same lists.
#[inline(always)]
fn uniform(cells: &[Cell]) -> bool {
    let first = cells[0];
    cells.iter().fold(0, |differs, cell| differs | (cell.0 ^ first.0)) == 0
}

/// A list with an access more, without what that stands for.
fn push(nodes: &mut Vec<Node>, list: u32, event: Event, bytes: Bytes) -> u32 {
    if !event.strong() || list == 0 || nodes[list as usize].event.strong() {
        return put(nodes, list, event, bytes);
    }
    // Weak accesses stay in front.
    let weak: Vec<Node> =
        elements(nodes, list).map(|(_, node)| *node).take_while(|node| !node.event.strong()).collect();
    let rest = weak.last().map_or(0, |node| node.next);
    let with = put(nodes, rest, event, bytes);
    if with == rest {
        return list;
    }
    weak.into_iter().rev().fold(with, |next, node| append(nodes, Node { next, ..node }))
}

/// An access before a list, whose head it may stand for.
fn put(nodes: &mut Vec<Node>, list: u32, event: Event, mut bytes: Bytes) -> u32 {
    let head = nodes[list as usize];
    let mut next = list;
    if list != 0 && head.event.agent == event.agent && head.event.strong() == event.strong() {
        if head.event.clock >= event.clock && head.bytes | bytes == head.bytes {
            return list;
        }
        if head.event.clock == event.clock {
            bytes |= head.bytes;
        }
        if head.event.clock <= event.clock && head.bytes & !bytes == 0 && head.has & SETTLED == 0 {
            next = head.next;
        }
    }
    append(nodes, Node { event, next, bytes, has: nodes[next as usize].has })
}

fn append(nodes: &mut Vec<Node>, node: Node) -> u32 {
    nodes.push(node);
    (nodes.len() - 1) as u32
}

/// A list less what `drop` picks.
fn without(nodes: &mut Vec<Node>, list: u32, drop: impl Fn(&Node) -> bool) -> u32 {
    let kept: Vec<Node> = elements(nodes, list).map(|(_, node)| *node).filter(|node| !drop(node)).collect();
    kept.into_iter().rev().fold(0, |list, node| push(nodes, list, node.event, node.bytes))
}

/// The elements of a list.
fn elements(nodes: &[Node], list: u32) -> impl Iterator<Item = (u32, &Node)> {
    let mut at = list;
    std::iter::from_fn(move || {
        let here = at;
        let node = (here != 0).then(|| &nodes[here as usize])?;
        at = node.next;
        Some((here, node))
    })
}

#[cfg(test)]
mod tests {
    use super::super::clock::key;
    use super::*;
    use crate::machine::schedule::Rng;

    const AGENTS: usize = 5;
    const SIZE: usize = 56;

    /// Every access that was ever made, and what each agent knows: the definition of a race.
    struct History {
        accesses: Vec<(Event, usize, usize, bool)>,
        clocks: Vec<Clock>,
        /// Of an agent that has ended and told nobody anything.
        silent: Option<usize>,
    }

    impl History {
        fn new() -> History {
            let mut clocks = vec![Clock::new(AGENTS); AGENTS];
            clocks.iter_mut().enumerate().for_each(|(agent, clock)| clock.own[agent] = 1);
            History { accesses: Vec::new(), clocks, silent: None }
        }

        /// The earlier accesses with which one races: those that it does not know and of which one is a write.
        fn races(&self, agent: usize, strong: bool, (from, size): (usize, usize), write: bool) -> Vec<Event> {
            let mut found = Vec::new();
            for &(event, at, length, other) in &self.accesses {
                let together = at < from + size && from < at + length && (write || other);
                let unknown = !self.clocks[agent].knows(0, event.agent, event.clock);
                if together && unknown && !(strong && event.strong()) {
                    found.push(event);
                }
            }
            found
        }
    }

    /// A random program: accesses of ranges of bytes, and agents that learn from one another. Whether it raced.
    fn play(seed: u64) -> bool {
        let mut rng = Rng::new(seed);
        let mut history = History::new();
        let mut cells = Cells::new(SIZE);
        let (learning, strength) = (rng.below(79), rng.below(3));
        for step in 0..20 + rng.below(200) as u32 {
            let agent = rng.below(AGENTS as u64) as usize;
            if history.silent == Some(agent) {
                continue;
            }
            if rng.below(100) < 20 + learning {
                let from = rng.below(AGENTS as u64) as usize;
                // Agent 0 never tells anything.
                if from != 0 && history.silent != Some(from) {
                    let known = history.clocks[from].clone();
                    history.clocks[agent].join(&known);
                    history.clocks[from].own[from] += 1;
                }
                continue;
            }
            if agent == 0 && rng.below(20) == 0 {
                history.silent = Some(0);
            }
            let size = [1, 2, 4, 8, 16, 24, 48][rng.below(7) as usize];
            let from = rng.below((SIZE - size + 1) as u64) as usize;
            let (write, strong) = (rng.below(4) == 0, rng.below(3) < strength);
            let clock = history.clocks[agent].own[agent];
            let event = Event::new(key(0, agent as u32), clock, Site { line: step, strong });
            let expected = history.races(agent, strong, (from, size), write);
            if !expected.is_empty() && rng.below(12) != 0 {
                // Long histories without a race are to be had too.
                continue;
            }
            let who = Who { block: 0, clock: &history.clocks[agent] };
            match once(&mut cells, who, event, (from, size), write) {
                Ok(()) => assert!(expected.is_empty(), "seed {seed}, step {step}: {event:?} races with {expected:?}"),
                Err(clash) => {
                    let same = |e: &&Event| (e.agent, e.clock) == (clash.other.agent, clash.other.clock);
                    assert!(expected.iter().any(|e| same(&e)), "seed {seed}, step {step}: {clash:?}, not {expected:?}");
                    assert!((from..from + size).contains(&(clash.at as usize)), "{clash:?}");
                    return true;
                }
            }
            history.accesses.push((event, from, size, write));
            if rng.below(16) == 0 {
                cells.limit = rng.below(8) as usize;
                let History { clocks, silent, .. } = &history;
                let heeded = || clocks.iter().enumerate().filter(|(agent, _)| *silent != Some(*agent));
                cells.tidy(
                    |e| heeded().all(|(_, clock)| clock.knows(0, e.agent, e.clock)),
                    |agent| *silent == Some(agent as usize),
                );
            }
        }
        false
    }

    #[test]
    fn exactly_the_races_are_found() {
        let raced = (0..4000).filter(|&seed| play(seed)).count();
        assert!((1000..3999).contains(&raced), "{raced} of the programs race: they show little");
    }

    fn event(agent: u32, clock: u32) -> Event {
        Event::new(key(0, agent), clock, Site { line: 7, strong: false })
    }

    fn once(
        cells: &mut Cells,
        who: Who<'_>,
        event: Event,
        (from, size): (usize, usize),
        write: bool,
    ) -> Result<(), Clash> {
        let mut visit = Visit::new(who, event, write);
        cells.access(&mut visit, from, size)?;
        cells.leave(&mut visit)
    }

    #[test]
    fn cells_of_one_access_share_one_list() {
        let mut cells = Cells::new(4096);
        let clock = Clock { own: vec![1; 4], ..Clock::default() };
        let who = Who { block: 0, clock: &clock };
        once(&mut cells, who, event(0, 1), (0, 4096), true).unwrap();
        for agent in 0..4 {
            let mut visit = Visit::new(who, event(agent, 1), false);
            for from in (0..4096).step_by(512) {
                cells.access(&mut visit, from, 512).unwrap();
            }
        }
        assert_eq!(cells.nodes.len(), 1 + 1 + 4);
    }

    #[test]
    fn parts_of_one_cell_are_one_access() {
        let mut cells = Cells::new(256);
        let clock = Clock { own: vec![1; 4], ..Clock::default() };
        let mut visit = Visit::new(Who { block: 0, clock: &clock }, event(0, 1), true);
        for from in (0..256).step_by(4) {
            cells.access(&mut visit, from, 2).unwrap();
        }
        cells.leave(&mut visit).unwrap();
        assert_eq!(cells.nodes.len(), 1 + 1);
        // Nobody knows of them, and the bytes between were not touched.
        let unknowing = Clock::new(4);
        let who = Who { block: 0, clock: &unknowing };
        for from in 0..256 {
            let read = once(&mut cells, who, event(1, 1), (from, 1), false);
            assert_eq!(read.is_err(), from % 4 < 2, "byte {from}");
        }
    }

    #[test]
    fn a_whole_cell_does_not_become_what_a_part_has() {
        let mut cells = Cells::new(64);
        let clock = Clock { own: vec![1; 4], ..Clock::default() };
        let mut visit = Visit::new(Who { block: 0, clock: &clock }, event(0, 1), true);
        for (from, size) in [(0, 4), (16, 4), (32, 16), (48, 16)] {
            cells.access(&mut visit, from, size).unwrap();
        }
        cells.leave(&mut visit).unwrap();
        let none = Clock::new(4);
        let who = Who { block: 0, clock: &none };
        for from in 0..64 {
            let read = once(&mut cells, who, event(1, 1), (from, 1), false);
            assert_eq!(read.is_err(), from >= 32 || from % 16 < 4, "byte {from}");
        }
    }

    #[test]
    fn writes_are_found_in_every_cell_of_a_list() {
        let mut cells = Cells::new(64);
        let clock = Clock { own: vec![1; 4], ..Clock::default() };
        let mut visit = Visit::new(Who { block: 0, clock: &clock }, event(0, 1), true);
        for from in (0..64).step_by(16) {
            cells.access(&mut visit, from, 4).unwrap();
        }
        cells.leave(&mut visit).unwrap();
        let found = |from, size| cells.find_write(from, size, &mut 0, |_| true).map(|(at, _)| at);
        assert_eq!((found(4, 12), found(4, 28), found(4, 60)), (None, Some(16), Some(16)));
    }

    #[test]
    fn other_bytes_of_a_cell_are_not_covered() {
        let mut cells = Cells::new(16);
        let clock = Clock { own: vec![1, 0, 1], ..Clock::default() };
        let who = Who { block: 0, clock: &clock };
        // Agent 0 does not know that agent 1 has read the last bytes, and covers what it knows of the first.
        once(&mut cells, who, event(1, 1), (8, 8), false).unwrap();
        once(&mut cells, who, event(2, 1), (0, 4), false).unwrap();
        once(&mut cells, who, event(0, 1), (0, 4), true).unwrap();
        assert_eq!(once(&mut cells, who, event(0, 1), (8, 4), true).unwrap_err().other, event(1, 1));
    }

    #[test]
    fn a_visit_of_other_memory_begins_anew() {
        // Lists of the same numbers, and different accesses in them.
        let clock = Clock { own: vec![1, 1, 0], ..Clock::default() };
        let who = Who { block: 0, clock: &clock };
        let mut pages = [Cells::new(16), Cells::new(16)];
        for (page, agent) in pages.iter_mut().zip([1, 2]) {
            once(page, who, event(agent, 1), (0, 16), true).unwrap();
        }
        let mut visit = Visit::new(who, event(0, 1), false);
        let [known, unknown] = &mut pages;
        known.access(&mut visit, 0, 16).unwrap();
        known.leave(&mut visit).unwrap();
        assert_eq!(unknown.access(&mut visit, 0, 16).unwrap_err().other, event(2, 1));
    }

    #[test]
    fn one_settled_read_stands_for_those_of_its_bytes_alone() {
        let none = Clock::new(4);
        let who = Who { block: 0, clock: &none };
        let mut cells = Cells::new(16);
        for agent in 0..2 {
            once(&mut cells, who, event(agent, 1), (8 * agent as usize, 8), false).unwrap();
        }
        cells.tidy(|_| false, |_| true);
        for agent in 0..2 {
            let clash = once(&mut cells, who, event(3, 1), (8 * agent as usize, 8), true).unwrap_err();
            assert_eq!(clash.other, event(agent, 1));
        }
    }

    #[test]
    fn settled_writes_are_all_remembered() {
        let clock = Clock { own: vec![1, 0, 0], ..Clock::default() };
        let who = Who { block: 0, clock: &clock };
        let mut cells = Cells::new(16);
        once(&mut cells, who, event(0, 1), (0, 16), true).unwrap();
        once(&mut cells, who, event(1, 1), (4, 4), true).unwrap();
        cells.tidy(|_| false, |_| true);
        let clash = once(&mut cells, who, event(2, 1), (0, 16), false).unwrap_err();
        assert_eq!((clash.other, clash.at), (event(1, 1), 4));
    }

    #[test]
    fn writes_that_all_know_are_still_the_last() {
        let clock = Clock { own: vec![1; 2], ..Clock::default() };
        let mut cells = Cells::new(16);
        once(&mut cells, Who { block: 0, clock: &clock }, event(0, 1), (0, 16), true).unwrap();
        cells.tidy(|_| true, |_| true);
        assert_eq!(cells.find_write(0, 16, &mut 0, |_| true), Some((0, event(0, 1))));
    }

    #[test]
    fn reads_of_different_bytes_are_not_alike() {
        let none = Clock::new(2);
        let who = Who { block: 0, clock: &none };
        let mut cells = Cells::new(16);
        for clock in 1..100 {
            once(&mut cells, who, event(0, clock), (8 * (clock as usize % 2), 8), false).unwrap();
        }
        cells.limit = 0;
        cells.tidy(|_| false, |_| false);
        assert_eq!(cells.nodes.len(), 1 + 2);
        for (from, clock) in [(0, 98), (8, 99)] {
            assert_eq!(once(&mut cells, who, event(1, 1), (from, 8), true).unwrap_err().other, event(0, clock));
        }
    }

    #[test]
    fn reads_again_and_again_do_not_pile_up() {
        let mut cells = Cells::new(256);
        for clock in 1..20_000 {
            let agent = clock % 100;
            let known = Clock { own: vec![0; 100], ..Clock::default() };
            let who = Who { block: 0, clock: &known };
            once(&mut cells, who, event(agent, clock), ((clock as usize * 4) % 256, 4), false).unwrap();
            if cells.crowded() {
                cells.tidy(|_| false, |_| false);
            }
        }
        assert!(cells.nodes.len() < 2 * FEW.max(100 * 64), "{}", cells.nodes.len());
        // All of them are still there.
        let known = Clock { own: (0..100).map(|agent| 19_900 + agent - 1).collect(), ..Clock::default() };
        let who = Who { block: 0, clock: &known };
        assert!(once(&mut cells, who, event(0, 1), (0, 256), true).is_err());
    }

    #[test]
    fn strong_reads_do_not_stand_for_weak_ones() {
        let mut cells = Cells::new(16);
        let known = Clock { own: vec![0; 4], ..Clock::default() };
        let who = Who { block: 0, clock: &known };
        let strong = |agent, clock| Event::new(key(0, agent), clock, Site { line: 7, strong: true });
        once(&mut cells, who, event(0, 1), (0, 16), false).unwrap();
        for clock in 2..200 {
            once(&mut cells, who, strong(clock % 3, clock), (0, 16), false).unwrap();
        }
        cells.limit = 0;
        cells.tidy(|_| false, |_| false);
        assert_eq!(cells.nodes.len(), 1 + 1 + 3);
        let clash = once(&mut cells, who, strong(3, 1), (0, 16), true).unwrap_err();
        assert_eq!((clash.other, clash.write), (event(0, 1), false));
    }
}
