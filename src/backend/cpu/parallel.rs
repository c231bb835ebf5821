//! A team of threads for regions of a few microseconds.
//!
//! A step of a small model is a hundred regions of 2 to 50 us. Waking a sleeping thread takes longer than that, so
//! helpers spin for a moment after each region and sleep only when none follows. A region never waits for a helper
//! that has not arrived: the caller works off the tasks itself, closes the region, and waits for those inside.
//!
//! The size of the team is that of the current rayon pool, so `RAYON_NUM_THREADS` and `ThreadPool::install` hold
//! here as well.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Serial time below which handing work to a spinning helper costs more than it saves.
const WORTH_NANOSECONDS: f64 = 2_000.0;

/// How long a helper spins for the next region.
const SPIN: Duration = Duration::from_micros(100);

/// Threads that work of this serial time should use.
pub(super) fn threads_for(nanoseconds: f64) -> usize {
    let shares = (nanoseconds / (WORTH_NANOSECONDS / 2.0)) as usize;
    if shares < 2 { 1 } else { rayon::current_num_threads().min(shares) }
}

/// Calls `task` for `0..tasks` on up to `threads` threads.
pub(super) fn for_each(threads: usize, tasks: usize, task: impl Fn(usize) + Sync) {
    if threads.min(tasks) < 2 || !TEAM.run(threads.min(tasks) - 1, tasks, &task) {
        (0..tasks).for_each(task);
    }
}

static TEAM: Team = Team {
    busy: AtomicBool::new(false),
    gate: AtomicU64::new(0),
    region: UnsafeCell::new(None),
    next: AtomicUsize::new(0),
    left: AtomicUsize::new(0),
    panic: Mutex::new(None),
    helpers: Mutex::new(0),
    asleep: AtomicUsize::new(0),
    bed: Mutex::new(()),
    alarm: Condvar::new(),
};

/// One region at a time; a second caller (or a task that asks again) finds the team busy and works alone.
struct Team {
    busy: AtomicBool,
    /// See [`Gate`].
    gate: AtomicU64,
    /// Written by the caller while the gate is shut and nobody is inside; read by helpers inside.
    region: UnsafeCell<Option<Region>>,
    /// Next task to take.
    next: AtomicUsize,
    /// Helpers that have left the region.
    left: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Threads started so far.
    helpers: Mutex<usize>,
    asleep: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
}

// SAFETY: `region` is the only part that is not Sync by itself; `gate` orders its accesses as described there.
unsafe impl Sync for Team {}

/// Work of the current region; the pointer lives as long as the caller's frame.
#[derive(Clone, Copy)]
struct Region {
    task: *const (dyn Fn(usize) + Sync + 'static),
    tasks: usize,
}

/// Number of the region, places left for helpers, helpers that came in: `number << 32 | places << 16 | inside`.
/// Without places it is shut.
#[derive(Clone, Copy)]
struct Gate(u64);

impl Gate {
    fn open(number: u64, places: usize) -> Self {
        Self(number << 32 | (places as u64 & 0x7fff) << 16)
    }

    fn number(self) -> u64 {
        self.0 >> 32
    }

    fn places(self) -> u64 {
        self.0 >> 16 & 0xffff
    }

    fn inside(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    fn entered(self) -> Self {
        Self(self.0 - (1 << 16) + 1)
    }

    fn shut(self) -> Self {
        Self(self.0 & !0xffff_0000)
    }
}

impl Team {
    /// Runs the tasks with up to `helpers` helpers; false if the team is busy.
    fn run(&'static self, helpers: usize, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> bool {
        if self.busy.swap(true, Acquire) {
            return false;
        }
        self.recruit(helpers);
        // SAFETY: only the lifetime changes; `Shut` keeps this frame alive until all helpers have left.
        let task: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(task) };
        let region = Region { task, tasks };
        // SAFETY: `busy` is ours and the gate is shut with nobody inside, so no one else looks at the region.
        unsafe { *self.region.get() = Some(region) };
        self.next.store(0, Relaxed);
        self.left.store(0, Relaxed);
        let number = Gate(self.gate.load(Relaxed)).number() + 1;
        let shut = Shut(self);
        self.gate.store(Gate::open(number & 0xffff_ffff, helpers).0, SeqCst);
        if self.asleep.load(SeqCst) > 0 {
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.alarm.notify_all();
        }
        self.work(region);
        drop(shut);
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }

    /// Takes tasks until none is left. A panic ends the region for everybody and is kept for the caller.
    fn work(&self, region: Region) {
        // SAFETY: whoever works is inside the region or is its caller, whose frame holds the closure.
        let task = unsafe { &*region.task };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Relaxed);
                if i >= region.tasks {
                    break;
                }
                task(i);
            }
        }));
        if let Err(panic) = result {
            self.next.store(region.tasks, Relaxed);
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    /// Sees to it that so many helpers exist.
    fn recruit(&'static self, helpers: usize) {
        let mut started = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        while *started < helpers {
            // Without the thread the others do its share.
            if std::thread::Builder::new().name("weft-cpu".into()).spawn(|| self.help()).is_err() {
                break;
            }
            *started += 1;
        }
    }

    /// The life of a helper.
    fn help(&self) -> ! {
        let mut seen = 0;
        loop {
            seen = self.wait(seen).number();
            let mut gate = Gate(self.gate.load(Acquire));
            while gate.number() == seen && gate.places() > 0 {
                match self.gate.compare_exchange_weak(gate.0, gate.entered().0, AcqRel, Acquire) {
                    Ok(_) => {
                        // SAFETY: we are inside: the caller wrote the region before it opened the gate, and will
                        // not touch it before we have left.
                        let region = unsafe { *self.region.get() };
                        if let Some(region) = region {
                            self.work(region);
                        }
                        self.left.fetch_add(1, Release);
                        break;
                    }
                    Err(now) => gate = Gate(now),
                }
            }
        }
    }

    /// Waits for a region after number `seen`: spinning, then asleep.
    fn wait(&self, seen: u64) -> Gate {
        let news = || Some(Gate(self.gate.load(SeqCst))).filter(|gate| gate.number() != seen);
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..64 {
                if let Some(gate) = news() {
                    return gate;
                }
                std::hint::spin_loop();
            }
        }
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.fetch_add(1, SeqCst);
        let gate = loop {
            if let Some(gate) = news() {
                break gate;
            }
            bed = self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner);
        };
        self.asleep.fetch_sub(1, SeqCst);
        gate
    }
}

/// Shuts the gate and waits until everybody who came in has left, also when the caller unwinds.
struct Shut(&'static Team);

impl Drop for Shut {
    fn drop(&mut self) {
        let team = self.0;
        let mut gate = Gate(team.gate.load(Acquire));
        while let Err(now) = team.gate.compare_exchange_weak(gate.0, gate.shut().0, AcqRel, Acquire) {
            gate = Gate(now);
        }
        while team.left.load(Acquire) < gate.inside() {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whoever_calls() {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..2000 {
                        let counts: Vec<AtomicUsize> = (0..round % 40).map(|_| AtomicUsize::new(0)).collect();
                        for_each(1 + round % 4, counts.len(), |i| {
                            counts[i].fetch_add(1, Relaxed);
                            // A region inside a region runs alone.
                            for_each(2, 2, |_| {});
                        });
                        assert!(counts.iter().all(|c| c.load(Relaxed) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        for round in 0..50 {
            let result = catch_unwind(|| for_each(3, 20, |i| assert!(i != round % 20, "task {i}")));
            assert!(result.is_err());
            let sum = AtomicUsize::new(0);
            for_each(3, 10, |i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }
}
