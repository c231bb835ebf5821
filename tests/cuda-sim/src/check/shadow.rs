//! The shadow of global memory, which the host threads of a launch share.
//!
//! Blocks that hear nothing of each other do the same on several host threads as on one, and what races does not depend on
//! who comes first. As soon as one block would learn of another, or anything is found, the launch is given up, memory is
//! put back, and it runs again on one thread: so what is reported never depends on the number of host threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use super::cells::{Cells, Clash, Visit};
use super::clock::{AGENT_BITS, Foreign};
use crate::memory::{Part, View};

/// Bytes of a page.
const PAGE: u64 = 1 << 14;
/// Locks among which published clocks are spread.
const SHARDS: u64 = 64;
/// Blocks of whose end note is taken.
const SETTLED: u64 = 1 << 24;

/// What is remembered of a page.
struct Page {
    cells: Cells,
    /// What it held before the launch, once something writes to it.
    before: Option<Part>,
}

type Pages = Box<[OnceLock<Box<Mutex<Page>>>]>;

/// The shadow of global memory.
pub struct Global {
    /// The pages of every allocation, as far as they were accessed.
    areas: Vec<OnceLock<Pages>>,
    /// What was published at each address.
    places: Vec<Mutex<HashMap<u64, Foreign>>>,
    /// A bit for each block that has ended and of which no other block will ever know.
    settled: Vec<AtomicU64>,
    /// Whether several host threads run the launch.
    threaded: bool,
    /// Held by a strong access: it and what is published with it are one step.
    turn: Mutex<()>,
    /// Whether a block would have heard of another one while several host threads ran.
    heard: AtomicBool,
}

/// A mutex is only poisoned by a panic, which ends the launch anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Global {
    /// Nothing was accessed, of `allocations`, by `blocks`.
    pub fn new(allocations: usize, blocks: u64) -> Global {
        Global {
            areas: (0..allocations).map(|_| OnceLock::new()).collect(),
            places: (0..SHARDS).map(|_| Mutex::default()).collect(),
            settled: (0..blocks.min(SETTLED).div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            threaded: false,
            turn: Mutex::new(()),
            heard: AtomicBool::new(false),
        }
    }

    /// Several host threads will run the launch.
    pub fn share(&mut self) {
        self.threaded = true;
    }

    /// Whether several host threads run the launch.
    pub fn is_shared(&self) -> bool {
        self.threaded
    }

    /// Whether something is about to happen whose order among blocks can be seen, while several host threads run: the launch
    /// must be given up.
    pub fn would_be_heard(&self) -> bool {
        self.heard.fetch_or(self.threaded, Ordering::Relaxed);
        self.threaded
    }

    /// Whether [`Global::would_be_heard`] was ever true.
    pub fn was_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Waits for the turn of a strong access, if other host threads may have theirs.
    pub fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.threaded.then(|| lock(&self.turn))
    }

    /// Gives `f` what was published at addresses near this one.
    pub fn places<T>(&self, address: u64, f: impl FnOnce(&mut HashMap<u64, Foreign>) -> T) -> T {
        f(&mut lock(&self.places[(address / 64 % SHARDS) as usize]))
    }

    /// A block has ended that has published nothing.
    pub fn settle(&self, block: u64) {
        if let Some(word) = self.settled.get((block / 64) as usize) {
            word.fetch_or(1 << (block % 64), Ordering::Relaxed);
        }
    }

    fn is_settled(&self, block: u64) -> bool {
        self.settled
            .get((block / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Relaxed) >> (block % 64) & 1 != 0)
    }

    /// Notes an access to ranges of bytes, unless it races with an earlier one. `last` is the allocation that is tried
    /// first.
    pub fn access(
        &self,
        memory: &View,
        last: &mut usize,
        mut visit: Visit<'_>,
        ranges: impl Iterator<Item = (u64, u64)>,
    ) -> Result<(), Clash> {
        let mut cursor = Cursor { global: self, memory, held: None };
        for (address, size) in ranges {
            self.pieces(memory, last, address, size, |index, page, from, length| {
                if !cursor.is_at(index, page) {
                    cursor.leave(&mut visit)?;
                }
                let noted = cursor.page(index, page, visit.write).access(&mut visit, from, length);
                noted.map_err(|clash| cursor.place(clash))
            })?;
        }
        cursor.leave(&mut visit)
    }

    /// Whether another block than this one has written bytes of a range.
    pub fn has_foreign(&self, memory: &View, last: &mut usize, block: u64, address: u64, size: u64) -> bool {
        let mut cursor = Cursor { global: self, memory, held: None };
        let found = self.pieces(memory, last, address, size, |index, page, from, length| {
            let cells = cursor.page(index, page, false);
            let found = cells.find_write(from, length, &mut 0, |event| event.agent >> AGENT_BITS != block);
            if found.is_some() { Err(()) } else { Ok(()) }
        });
        found.is_err()
    }

    /// Something writes to a range: saves what it holds, if the launch may have to run again.
    pub fn preserve(&self, memory: &View, address: u64, size: u64) {
        if self.threaded {
            let mut cursor = Cursor { global: self, memory, held: None };
            let _ = self.pieces::<()>(memory, &mut 0, address, size, |index, page, _, _| {
                cursor.page(index, page, true);
                Ok(())
            });
        }
    }

    /// Puts memory back to what it was before the launch.
    pub fn undo(&self, memory: &View) {
        for (index, pages) in self.areas.iter().enumerate() {
            let Some(pages) = pages.get() else { continue };
            for page in pages.iter().filter_map(|page| page.get()) {
                if let Some(before) = &lock(page).before {
                    memory.get(index).put_back(before);
                }
            }
        }
    }

    /// Calls `f` with the allocation, the page, the first byte in it and the bytes of every part of a range that lies in
    /// live allocations.
    #[inline(always)]
    fn pieces<E>(
        &self,
        memory: &View,
        last: &mut usize,
        address: u64,
        size: u64,
        mut f: impl FnMut(usize, u64, usize, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        for (index, mut offset, mut left) in memory.parts(last, address, size) {
            while left != 0 {
                let (page, from) = (offset / PAGE, offset % PAGE);
                let length = left.min(PAGE - from);
                f(index, page, from as usize, length as usize)?;
                offset += length;
                left -= length;
            }
        }
        Ok(())
    }
}

/// Holds the lock of the page that was accessed last.
struct Cursor<'a> {
    global: &'a Global,
    memory: &'a View,
    held: Option<(usize, u64, MutexGuard<'a, Page>)>,
}

impl Cursor<'_> {
    #[inline(always)]
    fn is_at(&self, index: usize, page: u64) -> bool {
        self.held.as_ref().is_some_and(|(i, p, _)| (*i, *p) == (index, page))
    }

    /// The cells of a page. What the page holds is saved before it is written.
    #[inline(always)]
    fn page(&mut self, index: usize, page: u64, write: bool) -> &mut Cells {
        if !self.is_at(index, page) {
            // Never two locks at once.
            self.held = None;
            self.take(index, page, write);
        }
        let (_, _, held) = self.held.as_mut().expect("taken above");
        &mut held.cells
    }

    /// Ends a visit of the page that is held, if any is.
    fn leave(&mut self, visit: &mut Visit<'_>) -> Result<(), Clash> {
        let Some((_, _, held)) = &mut self.held else { return Ok(()) };
        held.cells.leave(visit).map_err(|clash| self.place(clash))
    }

    /// A clash in the page that is held, at its address.
    fn place(&self, clash: Clash) -> Clash {
        let Some(held) = &self.held else { return clash };
        Clash { at: self.memory.get(held.0).base + held.1 * PAGE + clash.at, ..clash }
    }

    fn take(&mut self, index: usize, page: u64, write: bool) {
        let (global, allocation) = (self.global, self.memory.get(index));
        let pages =
            global.areas[index].get_or_init(|| (0..allocation.size.div_ceil(PAGE)).map(|_| OnceLock::new()).collect());
        let size = PAGE.min(allocation.size - page * PAGE);
        let entry = pages[page as usize]
            .get_or_init(|| Box::new(Mutex::new(Page { cells: Cells::new(size as usize), before: None })));
        let mut held = lock(entry);
        if held.cells.crowded() {
            held.cells.tidy(|_| false, |agent| global.is_settled(agent >> AGENT_BITS));
        }
        if write && global.threaded && held.before.is_none() {
            held.before = Some(allocation.save(page * PAGE, size));
        }
        self.held = Some((index, page, held));
    }
}
