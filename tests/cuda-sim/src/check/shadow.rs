//! Who last read and wrote each word of memory.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use super::clock::{Clock, Foreign, Key, key};
use super::race::race;
use crate::machine::fault::Fault;

/// Who accesses memory, and what it knows.
pub struct Who<'a> {
    /// Its block.
    pub block: u64,
    /// Its number in the block.
    pub agent: u32,
    /// What it knows.
    pub clock: &'a Clock,
}

/// Where an access stands in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// PTX line.
    pub line: u32,
    /// Whether it is strong: strong accesses do not race with each other.
    pub strong: bool,
}

/// An access that happened. Clock 0 means none.
#[derive(Clone, Copy, Default)]
struct Event {
    clock: u32,
    /// The PTX line; the highest bit is set if it was strong.
    site: u32,
}

const STRONG: u32 = 1 << 31;

impl Event {
    fn new(clock: u32, site: Site) -> Event {
        Event { clock, site: site.line & !STRONG | if site.strong { STRONG } else { 0 } }
    }

    fn line(self) -> u32 {
        self.site & !STRONG
    }

    fn strong(self) -> bool {
        self.site & STRONG != 0
    }
}

/// The last write of a word and the bytes it wrote. Of writes by several agents to different bytes of a word, only the
/// last is remembered.
#[derive(Clone, Copy, Default)]
struct Write {
    agent: Key,
    event: Event,
    bytes: u8,
}

/// The bytes of a word that a range has: a bit each.
fn bytes(word: u64, address: u64, size: u64) -> u8 {
    let (from, to) = (address.max(word * 4), (address + size).min(word * 4 + 4));
    (((1u32 << (to - from)) - 1) << (from % 4)) as u8
}

/// The shadow of a block's shared memory.
pub struct Shared {
    size: u64,
    agents: usize,
    writes: Vec<Write>,
    /// For every word, the last read of every agent that reads.
    reads: Vec<Event>,
}

impl Shared {
    /// Untouched memory.
    pub fn new(size: u32, warps: u32) -> Shared {
        let words = (size as usize).div_ceil(4);
        // Warps, and the matrix and bulk engines: the copy engine only writes.
        let agents = warps as usize * 4;
        Shared {
            size: u64::from(size),
            agents,
            writes: vec![Write::default(); words],
            reads: vec![Event::default(); words * agents],
        }
    }

    /// An access by a warp.
    pub fn access(&mut self, who: &Who<'_>, address: u64, size: u64, write: bool, site: Site) -> Result<(), Fault> {
        self.access_at(who, who.clock.own[who.agent as usize], address, size, write, site)
    }

    /// An access at a given time of its agent.
    pub fn access_at(
        &mut self,
        who: &Who<'_>,
        clock: u32,
        address: u64,
        size: u64,
        write: bool,
        site: Site,
    ) -> Result<(), Fault> {
        if size == 0 || address.checked_add(size).is_none_or(|end| end > self.size) {
            return Ok(());
        }
        let me = key(who.block, who.agent);
        let event = Event::new(clock, site);
        for word in address / 4..=(address + size - 1) / 4 {
            let touched = bytes(word, address, size);
            let last = &mut self.writes[word as usize];
            let foreign = last.agent != me || last.event.clock > clock;
            if last.event.clock != 0 && last.bytes & touched != 0 && foreign && !(last.event.strong() && site.strong) {
                let (other, at, line) = (last.agent, last.event.clock, last.event.line());
                if !who.clock.knows(who.block, other, at) {
                    return Err(in_shared(race(write, true, who, other, line, word * 4), self.size));
                }
            }
            let reads = &mut self.reads[word as usize * self.agents..][..self.agents];
            if write {
                for (agent, read) in reads.iter().enumerate() {
                    let unknown = who.clock.own[agent] < read.clock && agent != who.agent as usize;
                    if unknown && !(read.strong() && site.strong) {
                        let other = key(who.block, agent as u32);
                        return Err(in_shared(race(true, false, who, other, read.line(), word * 4), self.size));
                    }
                }
                let same = last.agent == me && last.event.clock == clock;
                let before = if same { last.bytes } else { 0 };
                *last = Write { agent: me, event, bytes: before | touched };
            } else if let Some(read) = reads.get_mut(who.agent as usize) {
                *read = event;
            }
        }
        Ok(())
    }

    /// The first word of a range that a warp, or a `cp.async` for it, wrote without a proxy fence that knows of it; and the
    /// line of that write. `generic` is the number of agents that write through the generic proxy.
    pub fn unfenced(&self, who: &Who<'_>, generic: u32, address: u64, size: u64) -> Option<(u64, u32)> {
        if size == 0 || address.checked_add(size).is_none_or(|end| end > self.size) {
            return None;
        }
        (address / 4..=(address + size - 1) / 4).find_map(|word| {
            let last = &self.writes[word as usize];
            let agent = last.agent.wrapping_sub(key(who.block, 0));
            let unknown = last.event.clock != 0 && !who.clock.knows(who.block, last.agent, last.event.clock);
            let found = unknown && agent < u64::from(generic) && last.bytes & bytes(word, address, size) != 0;
            found.then(|| (word * 4, last.event.line()))
        })
    }
}

fn in_shared(fault: Fault, size: u64) -> Fault {
    Fault { allocation: Some(format!("shared memory of {size} bytes")), ..fault }
}

/// Words of a page of global memory.
const PAGE_WORDS: u64 = 1024;
/// Locks among which the pages are spread.
const SHARDS: usize = 64;

/// A word of global memory: its last write, the last read, and the last read by another block than that.
#[derive(Clone, Copy, Default)]
struct Cell {
    write: Write,
    reads: [(Key, Event); 2],
}

/// The shadow of global memory.
pub struct Global {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    pages: HashMap<u64, Vec<Cell>>,
    places: HashMap<u64, Foreign>,
}

impl Default for Global {
    fn default() -> Self {
        Global { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Global {
    fn shard(&self, page: u64) -> MutexGuard<'_, Shard> {
        self.shards[page as usize % SHARDS].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// For a few accesses one after the other.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { global: self, held: None }
    }

    /// Gives `f` what was published at addresses near this one.
    pub fn places<T>(&self, address: u64, f: impl FnOnce(&mut HashMap<u64, Foreign>) -> T) -> T {
        f(&mut self.shard(address / 4 / PAGE_WORDS).places)
    }
}

/// Holds the lock of the page that was accessed last.
pub struct Cursor<'a> {
    global: &'a Global,
    held: Option<(usize, MutexGuard<'a, Shard>)>,
}

impl Cursor<'_> {
    /// An access by a warp.
    pub fn access(&mut self, who: &Who<'_>, address: u64, size: u64, write: bool, site: Site) -> Result<(), Fault> {
        if size == 0 {
            return Ok(());
        }
        let clock = who.clock.own[who.agent as usize];
        let me = key(who.block, who.agent);
        let event = Event::new(clock, site);
        let unknown = |other: Key, e: Event| {
            e.clock != 0 && other != me && !(e.strong() && site.strong) && !who.clock.knows(who.block, other, e.clock)
        };
        let last_word = (address + size - 1) / 4;
        let mut word = address / 4;
        while word <= last_word {
            let page = word / PAGE_WORDS;
            let end = last_word.min(page * PAGE_WORDS + PAGE_WORDS - 1);
            let cells = self.page(page);
            for at in word..=end {
                let cell = &mut cells[(at % PAGE_WORDS) as usize];
                let touched = bytes(at, address, size);
                let last = cell.write;
                if last.bytes & touched != 0 && unknown(last.agent, last.event) {
                    return Err(race(write, true, who, last.agent, last.event.line(), at * 4));
                }
                if write {
                    if let Some((other, e)) = cell.reads.iter().find(|(other, e)| unknown(*other, *e)) {
                        return Err(race(true, false, who, *other, e.line(), at * 4));
                    }
                    let same = last.agent == me && last.event.clock == clock;
                    let before = if same { last.bytes } else { 0 };
                    cell.write = Write { agent: me, event, bytes: before | touched };
                } else if cell.reads[0].0 == me || cell.reads[0].1.clock == 0 {
                    cell.reads[0] = (me, event);
                } else {
                    cell.reads[1] = (me, event);
                }
            }
            word = end + 1;
        }
        Ok(())
    }

    fn page(&mut self, page: u64) -> &mut Vec<Cell> {
        let index = page as usize % SHARDS;
        if self.held.as_ref().is_none_or(|(held, _)| *held != index) {
            // Never two locks at once.
            self.held = None;
            self.held = Some((index, self.global.shard(page)));
        }
        let (_, shard) = self.held.as_mut().expect("taken above");
        shard.pages.entry(page).or_insert_with(|| vec![Cell::default(); PAGE_WORDS as usize])
    }
}
