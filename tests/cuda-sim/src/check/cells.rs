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
    #[inline(always)]
    fn knows(&self, event: Event) -> bool {
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

/// Lists that an access has dealt with already: neighbouring cells mostly share theirs.
#[derive(Clone, Copy)]
pub struct Memo {
    bytes: Bytes,
    /// Writes and reads that it does not race with.
    passed: [u32; 2],
    /// A list, and what it becomes.
    read: [u32; 2],
    wrote: [u32; 2],
}

const NONE: u32 = u32::MAX;

impl Memo {
    /// Nothing was dealt with.
    pub const NEW: Memo = Memo { bytes: 0, passed: [0; 2], read: [NONE; 2], wrote: [NONE; 2] };
}

/// What is remembered of a stretch of memory.
pub struct Cells {
    size: usize,
    /// First elements of the lists of all cells; empty as long as all lists are.
    writes: Vec<u32>,
    reads: Vec<u32>,
    nodes: Vec<Node>,
    /// Elements at which it is time for [`Cells::tidy`].
    limit: usize,
}

/// Elements that are never too many.
const FEW: usize = 1 << 11;

impl Cells {
    /// Untouched memory.
    pub fn new(size: usize) -> Cells {
        Cells { size, writes: Vec::new(), reads: Vec::new(), nodes: vec![Node::default()], limit: FEW }
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Notes an access of bytes, which must be inside, unless it races with an earlier one. One memo serves the accesses
    /// of one event, one after the other.
    #[inline(always)]
    pub fn access(
        &mut self,
        who: Who<'_>,
        event: Event,
        from: usize,
        size: usize,
        write: bool,
        memo: &mut Memo,
    ) -> Result<(), Clash> {
        each_piece(from, size, |first, count, bytes| {
            if memo.bytes != bytes {
                *memo = Memo { bytes, ..Memo::NEW };
            }
            if write { self.write(who, event, first, count, memo) } else { self.read(who, event, first, count, memo) }
        })
    }

    /// The read with which a write of bytes, which must be inside, races.
    pub fn read_unknown(&self, who: Who<'_>, event: Event, from: usize, size: usize) -> Option<Clash> {
        let read = each_piece(from, size, |first, count, bytes| {
            self.check(false, who, event, first, count, &mut Memo { bytes, ..Memo::NEW })
        });
        read.err()
    }

    /// Notes a write of bytes, which must be inside, that nothing orders with earlier ones and that does no harm.
    pub fn add_write(&mut self, event: Event, from: usize, size: usize) {
        let Cells { writes, nodes, .. } = self;
        let _ = each_piece::<()>(from, size, |first, count, bytes| {
            let lists = writes.get_mut(first..first + count).unwrap_or_default();
            lists.iter_mut().for_each(|list| *list = push(nodes, *list, event, bytes));
            Ok(())
        });
    }

    fn read(&mut self, who: Who<'_>, event: Event, first: usize, count: usize, memo: &mut Memo) -> Result<(), Clash> {
        self.check(true, who, event, first, count, memo)?;
        let Cells { reads, nodes, .. } = self;
        if reads.is_empty() {
            reads.resize(self.size.div_ceil(UNIT), 0);
        }
        let bytes = memo.bytes;
        replace(&mut reads[first..first + count], &mut memo.read, |list| push(nodes, list, event, bytes));
        Ok(())
    }

    fn write(&mut self, who: Who<'_>, event: Event, first: usize, count: usize, memo: &mut Memo) -> Result<(), Clash> {
        self.check(true, who, event, first, count, memo)?;
        self.check(false, who, event, first, count, memo)?;
        let Cells { writes, reads, nodes, .. } = self;
        if writes.is_empty() {
            writes.resize(self.size.div_ceil(UNIT), 0);
        }
        let bytes = memo.bytes;
        let writes = &mut writes[first..first + count];
        let mut none = Vec::new();
        let reads = if reads.is_empty() { &mut none[..] } else { &mut reads[first..first + count] };
        if bytes == ALL && !event.strong() {
            // It covers and follows all that was there.
            if memo.wrote[0] == NONE {
                memo.wrote = [0, push(nodes, 0, event, bytes)];
            }
            writes.fill(memo.wrote[1]);
            reads.fill(0);
            return Ok(());
        }
        let over = |node: &Node| node.bytes & !bytes == 0 && who.knows(node.event);
        replace(writes, &mut memo.wrote, |list| {
            // A strong write stands for nothing else: a strong access that it does not order may race with what is before.
            let rest = if event.strong() { list } else { without(nodes, list, over) };
            push(nodes, rest, event, bytes)
        });
        for list in reads.iter_mut().filter(|list| **list != 0 && !event.strong()) {
            if elements(nodes, *list).all(|(_, node)| over(node)) {
                *list = 0;
            }
        }
        Ok(())
    }

    /// Whether an access of whole or partial cells races with what is in their lists of writes, or of reads.
    #[inline(always)]
    fn check(
        &self,
        write: bool,
        who: Who<'_>,
        event: Event,
        first: usize,
        count: usize,
        memo: &mut Memo,
    ) -> Result<(), Clash> {
        let lists = if write { &self.writes } else { &self.reads };
        let Some(lists) = lists.get(first..first + count) else { return Ok(()) };
        let passed = &mut memo.passed[usize::from(!write)];
        if uniform(lists) && lists[0] == *passed {
            return Ok(());
        }
        for (at, &list) in lists.iter().enumerate() {
            if list == *passed || list == 0 {
                continue;
            }
            for (_, node) in elements(&self.nodes, list) {
                if event.strong() && node.event.strong() {
                    // So are the others.
                    break;
                }
                let both = node.bytes & memo.bytes;
                if both != 0 && !who.knows(node.event) {
                    let at = ((first + at) * UNIT) as u64 + u64::from(both.trailing_zeros());
                    return Err(Clash { at, other: node.event, write });
                }
            }
            *passed = list;
        }
        Ok(())
    }

    /// The first byte of a range, which must be inside, whose last write `wanted` picks, and that write. `passed` is the
    /// list of which that is known not to be so.
    pub fn find_write(
        &self,
        from: usize,
        size: usize,
        passed: &mut u32,
        wanted: impl Fn(Event) -> bool,
    ) -> Option<(u64, Event)> {
        if self.writes.is_empty() {
            return None;
        }
        let found = each_piece(from, size, |first, count, bytes| {
            for (at, &list) in self.writes[first..first + count].iter().enumerate() {
                if list == *passed {
                    continue;
                }
                for (_, node) in elements(&self.nodes, list) {
                    if node.bytes & bytes != 0 && wanted(node.event) {
                        let byte = (node.bytes & bytes).trailing_zeros() as usize;
                        return Err((((first + at) * UNIT + byte) as u64, node.event));
                    }
                }
                *passed = list;
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
        for (kind, heads) in [&self.writes, &self.reads].into_iter().enumerate() {
            heads.iter().for_each(|&list| used[list as usize][kind] = true);
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
        for heads in [&mut self.writes, &mut self.reads] {
            heads.iter_mut().for_each(|list| *list = now[*list as usize]);
        }
        if self.nodes.len() > self.limit / 2 {
            self.tidy_lists();
        }
        self.limit = FEW.max(2 * self.nodes.len());
    }

    /// Leaves in every list only the latest of an agent's alike accesses, if that is worth the sharing that it ends.
    fn tidy_lists(&mut self) {
        let mut now = HashMap::new();
        let mut kept = vec![Node::default()];
        for heads in [&self.writes, &self.reads] {
            for &list in heads {
                if list == 0 || now.contains_key(&list) {
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
        }
        for heads in [&mut self.writes, &mut self.reads] {
            heads.iter_mut().filter(|list| **list != 0).for_each(|list| *list = now[list]);
        }
        self.nodes = kept;
    }
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

/// Whether all cells have one list.
#[inline(always)]
fn uniform(lists: &[u32]) -> bool {
    let first = lists[0];
    lists.iter().fold(0, |differs, &list| differs | (list ^ first)) == 0
}

/// Gives every cell what `f` makes of its list.
#[inline(always)]
fn replace(lists: &mut [u32], memo: &mut [u32; 2], mut f: impl FnMut(u32) -> u32) {
    let mut next = |list: u32| {
        if memo[0] != list {
            *memo = [list, f(list)];
        }
        memo[1]
    };
    if uniform(lists) {
        let to = next(lists[0]);
        if to != lists[0] {
            lists.fill(to);
        }
    } else {
        lists.iter_mut().for_each(|list| *list = next(*list));
    }
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
            match cells.access(who, event, from, size, write, &mut { Memo::NEW }) {
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

    #[test]
    fn cells_of_one_access_share_one_list() {
        let mut cells = Cells::new(4096);
        let clock = Clock { own: vec![1; 4], ..Clock::default() };
        let who = Who { block: 0, clock: &clock };
        cells.access(who, event(0, 1), 0, 4096, true, &mut { Memo::NEW }).unwrap();
        for agent in 0..4 {
            let mut memo = Memo::NEW;
            for from in (0..4096).step_by(512) {
                cells.access(who, event(agent, 1), from, 512, false, &mut memo).unwrap();
            }
        }
        assert_eq!(cells.nodes.len(), 1 + 1 + 4);
    }

    #[test]
    fn reads_again_and_again_do_not_pile_up() {
        let mut cells = Cells::new(256);
        for clock in 1..20_000 {
            let agent = clock % 100;
            let known = Clock { own: vec![0; 100], ..Clock::default() };
            let who = Who { block: 0, clock: &known };
            cells.access(who, event(agent, clock), (clock as usize * 4) % 256, 4, false, &mut { Memo::NEW }).unwrap();
            if cells.crowded() {
                cells.tidy(|_| false, |_| false);
            }
        }
        assert!(cells.nodes.len() < 2 * FEW.max(100 * 64), "{}", cells.nodes.len());
        // All of them are still there.
        let known = Clock { own: (0..100).map(|agent| 19_900 + agent - 1).collect(), ..Clock::default() };
        let who = Who { block: 0, clock: &known };
        assert!(cells.access(who, event(0, 1), 0, 256, true, &mut { Memo::NEW }).is_err());
    }

    #[test]
    fn strong_reads_do_not_stand_for_weak_ones() {
        let mut cells = Cells::new(16);
        let known = Clock { own: vec![0; 4], ..Clock::default() };
        let who = Who { block: 0, clock: &known };
        let strong = |agent, clock| Event::new(key(0, agent), clock, Site { line: 7, strong: true });
        cells.access(who, event(0, 1), 0, 16, false, &mut { Memo::NEW }).unwrap();
        for clock in 2..200 {
            cells.access(who, strong(clock % 3, clock), 0, 16, false, &mut { Memo::NEW }).unwrap();
        }
        cells.limit = 0;
        cells.tidy(|_| false, |_| false);
        assert_eq!(cells.nodes.len(), 1 + 1 + 3);
        let clash = cells.access(who, strong(3, 1), 0, 16, true, &mut { Memo::NEW }).unwrap_err();
        assert_eq!((clash.other, clash.write), (event(0, 1), false));
    }
}
