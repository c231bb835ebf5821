//! Running kernels on the machine.

use std::sync::Arc;

use super::errors::{CuResult, Error, Result};
use super::handles::Handle;
use super::kernel_params::KernelCall;
use super::queue::guarded;
use super::state::{Driver, Locked, WORK_DONE};
use crate::device::{Runs, Site};
use crate::machine::fault::{Fault, Kind};
use crate::machine::grid::Launch;
use crate::machine::schedule::{AsyncTiming, Schedule};
use crate::machine::{self, Report};
use crate::memory::{GlobalMemory, Origin, Snapshot};

type Outcome<T> = std::result::Result<T, Box<Fault>>;

/// Runs a launch, under as many schedules as the sweep wants. A fault is told and kills the context. A kernel runs without
/// the driver's lock, so that other threads go on meanwhile; one that may put memory back runs alone.
pub fn run(
    mut driver: Locked,
    context: Handle,
    call: &Arc<KernelCall>,
    entry_point: &'static str,
) -> (Locked, Result<()>) {
    let run = match guarded(entry_point, || Run::new(&mut driver, context, call)) {
        Ok(run) => run,
        Err(error) => return (driver, Err(error)),
    };
    let outcome;
    if run.restores() {
        driver = driver.quiet();
        outcome = guarded(entry_point, || Ok(if run.runs.sweep > 1 { run.sweep() } else { run.once(0) }));
    } else {
        driver.kernels += 1;
        (driver, outcome) = driver.unlocked(|| guarded(entry_point, || Ok(run.once(0))));
        driver.kernels -= 1;
        WORK_DONE.notify_all();
    }
    drop(run);
    let result = outcome.and_then(|outcome| match outcome {
        Ok(report) => {
            driver.count(|tally| tally.launched(call, &report));
            Ok(())
        }
        Err(fault) => {
            driver.found(context, fault.to_string());
            Err(Error::Fault(result(fault.kind)))
        }
    });
    (driver, result)
}

/// The result that a device gives for a fault, or for what it would do in its stead.
fn result(kind: Kind) -> CuResult {
    match kind {
        Kind::OutOfBounds | Kind::UseAfterFree => CuResult::ERROR_ILLEGAL_ADDRESS,
        Kind::Misaligned => CuResult::ERROR_MISALIGNED_ADDRESS,
        Kind::Deadlock => CuResult::ERROR_LAUNCH_TIMEOUT,
        Kind::InvalidOperation => CuResult::ERROR_ILLEGAL_INSTRUCTION,
        Kind::Assert => CuResult::ERROR_ASSERT,
        Kind::StackOverflow => CuResult::ERROR_HARDWARE_STACK_ERROR,
        Kind::Unsupported => CuResult::ERROR_NOT_SUPPORTED,
        Kind::InvalidLaunch => CuResult::ERROR_INVALID_VALUE,
        Kind::Trap | Kind::Breakpoint | Kind::UninitialisedRead | Kind::Race | Kind::DivergentBarrier | Kind::Async => {
            CuResult::ERROR_LAUNCH_FAILED
        }
    }
}

/// The memory by which the blocks of a cooperative grid wait for each other.
struct Workspace {
    memory: Arc<GlobalMemory>,
    /// Its address; 0 for other launches.
    address: u64,
    /// The kernel's heap; 0 if it has none.
    heap: u64,
}

impl Workspace {
    const BYTES: u64 = 16;
    /// `CU_LIMIT_MALLOC_HEAP_SIZE` at first.
    const HEAP: u64 = 8 << 20;

    fn of(driver: &Driver, call: &KernelCall) -> Result<Workspace> {
        let memory = driver.memory.clone();
        let mut address = 0;
        if call.shape.cooperative {
            let origin = Origin::Variable("the workspace of a cooperative grid".into());
            address = memory.allocate(Workspace::BYTES, 16, origin)?;
            memory.fill(address, &[0], Workspace::BYTES)?;
        }
        let mut workspace = Workspace { memory, address, heap: 0 };
        if call.program.uses_heap() {
            let origin = Origin::Variable("the heap of a grid".into());
            workspace.heap = workspace.memory.allocate(Workspace::HEAP, 256, origin)?;
        }
        Ok(workspace)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        for address in [self.address, self.heap].into_iter().filter(|&address| address != 0) {
            // It was allocated here, and no kernel can free it.
            let _ = self.memory.free(address);
        }
    }
}

/// A launch and all that its runs need of the driver.
struct Run {
    call: Arc<KernelCall>,
    memory: Arc<GlobalMemory>,
    workspace: Workspace,
    runs: Runs,
    multiprocessors: u32,
    /// The level 2 cache, if the costly counters are wanted.
    count: Option<u64>,
}

impl Run {
    fn new(driver: &mut Driver, context: Handle, call: &Arc<KernelCall>) -> Result<Run> {
        for site in [Site::Sticky, Site::Ecc, Site::Lost] {
            if driver.strikes(site) {
                driver.found(context, format!("injected failure {site:?} in kernel {}", call.name));
                return Err(if site == Site::Lost { Error::Lost } else { Error::Injected(site) });
            }
        }
        let device = &driver.config.device;
        Ok(Run {
            call: call.clone(),
            memory: driver.memory.clone(),
            workspace: Workspace::of(driver, call)?,
            runs: driver.runs(context).clone(),
            multiprocessors: device.sms,
            count: driver.counting().then_some(u64::from(device.l2)),
        })
    }

    /// Whether memory may be put back as it was before the launch: between the runs of a sweep, and when the race check
    /// on several threads gives a run up.
    fn restores(&self) -> bool {
        self.runs.sweep > 1 || self.runs.checks.race && self.runs.threads != 1
    }

    /// The schedule of run `index`: late copies first, then early ones, then any; the first in the seed's own order.
    fn schedule(&self, index: u32) -> Schedule {
        let seed = self.runs.seed;
        let mixed = if index == 0 { seed } else { seed.wrapping_add(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) };
        let by_index = match index {
            0 if seed == 0 => AsyncTiming::Late,
            0 => [AsyncTiming::Random, AsyncTiming::Late, AsyncTiming::Early][(seed % 3) as usize],
            1 => AsyncTiming::Early,
            2 => AsyncTiming::Late,
            _ => AsyncTiming::Random,
        };
        Schedule { seed: mixed, async_timing: self.runs.copies.unwrap_or(by_index), threads: self.runs.threads }
    }

    fn once(&self, index: u32) -> Outcome<Report> {
        let (call, shape) = (&self.call, &self.call.shape);
        machine::launch(&Launch {
            grid: shape.grid,
            block: shape.block,
            cluster: shape.cluster.map(|n| n.max(1)),
            dynamic_shared: shape.shared,
            params: &call.params,
            cooperative: shape.cooperative,
            workspace: self.workspace.address,
            heap: (self.workspace.heap, if self.workspace.heap == 0 { 0 } else { Workspace::HEAP }),
            multiprocessors: self.multiprocessors,
            checks: self.runs.checks,
            schedule: self.schedule(index),
            count: self.count,
            silent: index > 0,
            ..Launch::of(&call.program, &call.name, &call.entry, &self.memory)
        })
    }

    /// Runs a launch under several schedules from the same memory; its results must be the same, bit for bit. The memory
    /// is left as the first schedule made it.
    fn sweep(&self) -> Outcome<Report> {
        let before = self.memory.snapshot();
        let first = self.once(0)?;
        let after = self.memory.snapshot();
        for index in 1..self.runs.sweep {
            self.memory.restore(&before);
            self.once(index)?;
            if !self.call.float_atomics {
                compare(&self.call, &after, &self.memory.snapshot(), index, self.workspace.heap)?;
            }
        }
        self.memory.restore(&after);
        Ok(first)
    }
}

/// The first byte in which two runs differ, but for the kernel's heap, where everything has a place of chance.
fn compare(call: &KernelCall, first: &Snapshot, other: &Snapshot, index: u32, heap: u64) -> Outcome<()> {
    for ((allocation, expected), (_, found)) in first.contents().zip(other.contents()) {
        if expected == found || heap != 0 && allocation.base == heap {
            continue;
        }
        let differs = |(a, b): (&u8, &u8)| a != b;
        let offset = expected.iter().zip(found).position(differs).unwrap_or_default();
        let count = expected.iter().zip(found).filter(|&(a, b)| a != b).count();
        let message = format!(
            "the result depends on the schedule: {count} bytes differ between schedules 0 and {index}, first at offset \
             {offset}: {:#04x} and {:#04x}",
            expected[offset], found[offset]
        );
        let fault = Fault { kernel: call.name.clone(), ..Fault::new(Kind::Race, message) };
        return Err(Box::new(fault.at_address(allocation.base + offset as u64, allocation.describe())));
    }
    Ok(())
}
