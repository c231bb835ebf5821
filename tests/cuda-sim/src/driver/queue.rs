//! Work that was issued and has not run: what it waits for, and running it when something needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Instant;

use super::abi::report_panic;
use super::engine;
use super::errors::{CuResult, Error, Result};
use super::handles::Handle;
use super::state::{IN_CALLBACK, Locked, WORK_DONE, lock};
use super::work::{HostCall, HostFunction, Work};
use crate::machine::schedule::Rng;

/// The number of a piece of issued work; later work has a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A piece of issued work.
pub struct Item {
    /// Whose it is.
    pub context: Handle,
    /// What must be done before; those that are done are no longer in the queue.
    pub after: Vec<Ticket>,
    /// What is to be done.
    pub work: Work,
    /// The driver function that issued it.
    pub call: &'static str,
    /// Whether a thread runs it now.
    pub running: bool,
}

/// The issued work, in the order of issue.
#[derive(Default)]
pub struct Queue {
    issued: u64,
    pending: BTreeMap<Ticket, Item>,
    /// What a thread beside does, see [`poll`].
    aside: BTreeSet<Ticket>,
    /// Decides among pieces that nothing orders, when a seed asks for another order.
    random: Option<Rng>,
}

/// Pieces of work that a program may issue without waiting; a device has a limit of this kind too.
const DEPTH: usize = 1024;

/// What a caller waits for.
#[derive(Clone, Copy)]
pub enum Until {
    /// A piece of work.
    Done(Ticket),
    /// All of a context's.
    Idle(Handle),
}

impl Queue {
    /// Whether a piece of work has run.
    pub fn is_done(&self, ticket: Ticket) -> bool {
        !self.pending.contains_key(&ticket)
    }

    /// Adds work.
    pub fn add(&mut self, item: Item) -> Ticket {
        self.issued += 1;
        let ticket = Ticket(self.issued);
        self.pending.insert(ticket, item);
        ticket
    }

    /// Whether the program has issued so much that it must wait.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= DEPTH
    }

    /// Drops what a dead context has not run.
    fn drop_context(&mut self, context: Handle) {
        self.pending.retain(|_, item| item.context != context || item.running);
    }

    /// Whether host functions must run before a piece of work is done.
    fn calls_host(&self, ticket: Ticket) -> bool {
        let needed = self.needed(Until::Done(ticket));
        needed.iter().filter_map(|ticket| self.pending.get(ticket)).any(|item| item.work.calls_host())
    }

    /// Whether another thread does what a piece of work waits for, or the piece itself.
    fn is_under_way(&self, ticket: Ticket) -> bool {
        let needed = self.needed(Until::Done(ticket));
        needed.iter().filter_map(|ticket| self.pending.get(ticket)).any(|item| item.running)
    }

    /// Every piece that must run for `until`.
    fn needed(&self, until: Until) -> BTreeSet<Ticket> {
        let mut open: Vec<Ticket> = match until {
            Until::Done(ticket) => vec![ticket],
            Until::Idle(context) => {
                self.pending.iter().filter(|(_, item)| item.context == context).map(|(ticket, _)| *ticket).collect()
            }
        };
        let mut needed = BTreeSet::new();
        while let Some(ticket) = open.pop() {
            if let Some(item) = self.pending.get(&ticket)
                && needed.insert(ticket)
            {
                open.extend(&item.after);
            }
        }
        needed
    }

    /// The piece to run next for `needed`: the first, or with a seed any that is ready. None if all wait for another
    /// thread.
    fn choose(&mut self, needed: &BTreeSet<Ticket>, seed: u64) -> Option<Ticket> {
        let ready = |ticket: &&Ticket| {
            self.pending
                .get(ticket)
                .is_some_and(|item| !item.running && item.after.iter().all(|before| !self.pending.contains_key(before)))
        };
        if seed == 0 {
            return needed.iter().find(ready).copied();
        }
        let ready: Vec<Ticket> = needed.iter().filter(ready).copied().collect();
        if ready.is_empty() {
            return None;
        }
        let random = self.random.get_or_insert_with(|| Rng::new(seed));
        Some(ready[random.below(ready.len() as u64) as usize])
    }
}

/// Runs work until `until` holds. The error is the first of a piece that ran here.
pub fn finish(mut driver: Locked, until: Until) -> (Locked, Result<()>) {
    let mut result = Ok(());
    // What is issued from now on, by other threads while the lock is open, is not waited for.
    let mut needed = driver.queue.needed(until);
    loop {
        let seed = driver.config.runs.seed;
        match driver.queue.choose(&needed, seed) {
            None => {
                needed.retain(|ticket| !driver.queue.is_done(*ticket));
                if needed.is_empty() {
                    return (driver, result);
                }
                driver = driver.wait();
            }
            Some(ticket) => {
                needed.remove(&ticket);
                let outcome;
                (driver, outcome) = run(driver, ticket);
                if result.is_ok() {
                    result = outcome;
                }
            }
        }
    }
}

/// Answers a program that asks whether work is done without waiting for it. The first time that it is not, it says so;
/// asked again it has the work done, unless another thread is at it. Host functions are left to a thread beside: they may wait for what the asking thread
/// does next.
pub fn poll(mut driver: Locked, context: Handle, tickets: &[Ticket], asked: bool) -> Result<()> {
    driver.usable(context)?;
    if tickets.iter().all(|ticket| driver.queue.is_done(*ticket)) {
        return Ok(());
    }
    if !asked {
        return Err(Error::NotReady);
    }
    for &ticket in tickets {
        if driver.queue.calls_host(ticket) {
            if driver.queue.aside.insert(ticket) {
                thread::spawn(move || {
                    if let Ok(driver) = lock() {
                        // A fault is kept by the context, for the calls that follow.
                        drop(finish(driver, Until::Done(ticket)));
                    }
                });
            }
            return Err(Error::NotReady);
        }
        if driver.queue.is_under_way(ticket) {
            return Err(Error::NotReady);
        }
        let outcome;
        (driver, outcome) = finish(driver, Until::Done(ticket));
        outcome?;
    }
    driver.usable(context)
}

/// Runs one piece of work.
fn run(mut driver: Locked, ticket: Ticket) -> (Locked, Result<()>) {
    let Some(item) = driver.queue.pending.get_mut(&ticket) else {
        return (driver, Ok(()));
    };
    item.running = true;
    let (work, context, call) = (item.work.clone(), item.context, item.call);
    let mut result = Ok(());
    match work {
        Work::Host(host) => (driver, ()) = driver.unlocked(|| call_host(host)),
        Work::Graph(graph) => (driver, result) = graph.run(driver, context, ticket, call),
        work => (driver, result) = perform(driver, context, ticket, &work, call),
    }
    driver.queue.pending.remove(&ticket);
    if let Err(error) = &result {
        die(&mut driver, context, error);
    }
    WORK_DONE.notify_all();
    (driver, result)
}

/// Runs work: kernels without the lock, all else under it.
pub fn perform(
    mut driver: Locked,
    context: Handle,
    ticket: Ticket,
    work: &Work,
    call: &'static str,
) -> (Locked, Result<()>) {
    if let Work::Kernel(kernel) = work {
        return engine::run(driver, context, kernel, call);
    }
    let result = guarded(call, || attempt(&mut driver, context, ticket, work, call));
    (driver, result)
}

/// Runs a part of some work. A panic is a bug of the simulator and fails like a fault; were it passed on, the work would
/// stay in the queue for ever.
pub fn guarded<T>(call: &str, part: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(part)).unwrap_or_else(|panic| {
        report_panic(call, &*panic);
        Err(Error::Fault(CuResult::ERROR_UNKNOWN))
    })
}

/// What fails here fails on the device: the context is dead.
fn attempt(driver: &mut Locked, context: Handle, ticket: Ticket, work: &Work, call: &'static str) -> Result<()> {
    let done = match work {
        Work::Copy(copy) => copy.run(driver),
        Work::Fill(fill) => fill.run(driver),
        Work::Free(address) => driver.release(*address),
        Work::Record(event) => {
            if let Ok(event) = driver.events.get_mut(*event)
                && event.ticket == Some(ticket)
            {
                event.time = Some(Instant::now());
            }
            Ok(())
        }
        _ => Ok(()),
    };
    // It was fine when it was issued and is not when its turn comes.
    done.map_err(|error| {
        driver.found(context, format!("{call}: when its turn came in the stream: {error}"));
        Error::Fault(CuResult::ERROR_ILLEGAL_ADDRESS)
    })
}

/// Every later call in the context gives the same error, and what it has issued does not run.
fn die(driver: &mut Locked, context: Handle, error: &Error) {
    if matches!(error, Error::Lost) {
        driver.lost = true;
    }
    if let Ok(context) = driver.contexts.get_mut(context) {
        context.sticky = Some(error.result());
    }
    driver.queue.drop_context(context);
}

/// Calls the program back, which may make no CUDA calls meanwhile.
pub fn call_host(host: HostCall) {
    let outer = IN_CALLBACK.replace(true);
    let data = host.data as *mut std::ffi::c_void;
    match host.function {
        // SAFETY: the program gave the function and its argument for this call.
        HostFunction::Plain(Some(function)) => unsafe { function(data) },
        // SAFETY: as above.
        HostFunction::Callback(Some(function), stream) => unsafe { function(stream, 0, data) },
        HostFunction::Plain(None) | HostFunction::Callback(None, _) => {}
    }
    IN_CALLBACK.set(outer);
}
