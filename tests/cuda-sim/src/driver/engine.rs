//! Running kernels on the machine.

use std::sync::Arc;

use super::errors::{CuResult, Error, Result};
use super::findings;
use super::kernel_params::KernelCall;
use super::state::Driver;
use crate::device::Site;
use crate::machine::fault::{Fault, Kind};
use crate::machine::grid::Launch;
use crate::machine::schedule::{AsyncTiming, Schedule};
use crate::machine::{self, Report};
use crate::memory::{GlobalMemory, Origin, Snapshot};

type Outcome<T> = std::result::Result<T, Box<Fault>>;

/// Runs a launch, under as many schedules as the sweep wants. A fault is printed and kills the context.
pub fn run(driver: &mut Driver, call: &Arc<KernelCall>) -> Result<()> {
    for site in [Site::Sticky, Site::Ecc, Site::Lost] {
        if driver.strikes(site) {
            findings::report(&format!("injected failure {site:?} in kernel {}", call.name));
            return Err(if site == Site::Lost { Error::Lost } else { Error::Injected(site) });
        }
    }
    let workspace = Workspace::of(driver, call)?;
    let outcome =
        if driver.config.sweep > 1 { sweep(driver, call, &workspace) } else { once(driver, call, &workspace, 0) };
    match outcome {
        Ok(report) => {
            driver.count(|tally| tally.launched(call, &report));
            Ok(())
        }
        Err(fault) => {
            findings::report(&fault.to_string());
            Err(Error::Fault(result(fault.kind)))
        }
    }
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

/// The schedule of run `index`: late copies first, then early ones, then any; the first in the seed's own order.
fn schedule(driver: &Driver, index: u32) -> Schedule {
    let seed = driver.config.seed;
    let mixed = if index == 0 { seed } else { seed.wrapping_add(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) };
    let async_timing = match index {
        0 if seed == 0 => AsyncTiming::Late,
        0 => [AsyncTiming::Random, AsyncTiming::Late, AsyncTiming::Early][(seed % 3) as usize],
        1 => AsyncTiming::Early,
        2 => AsyncTiming::Late,
        _ => AsyncTiming::Random,
    };
    Schedule { seed: mixed, async_timing, threads: driver.config.threads }
}

fn once(driver: &Driver, call: &KernelCall, workspace: &Workspace, index: u32) -> Outcome<Report> {
    let (config, shape) = (&driver.config, &call.shape);
    machine::launch(&Launch {
        grid: shape.grid,
        block: shape.block,
        cluster: shape.cluster.map(|n| n.max(1)),
        dynamic_shared: shape.shared,
        params: &call.params,
        cooperative: shape.cooperative,
        workspace: workspace.address,
        heap: (workspace.heap, if workspace.heap == 0 { 0 } else { Workspace::HEAP }),
        multiprocessors: config.device.sms,
        checks: config.checks,
        schedule: schedule(driver, index),
        count: driver.counting().then_some(u64::from(config.device.l2)),
        ..Launch::of(&call.program, &call.name, &call.entry, &driver.memory)
    })
}

/// Runs a launch under several schedules from the same memory; its results must be the same, bit for bit. The memory is
/// left as the first schedule made it.
fn sweep(driver: &Driver, call: &KernelCall, workspace: &Workspace) -> Outcome<Report> {
    let before = driver.memory.snapshot();
    let first = once(driver, call, workspace, 0)?;
    let after = driver.memory.snapshot();
    for index in 1..driver.config.sweep {
        driver.memory.restore(&before);
        once(driver, call, workspace, index)?;
        if !call.float_atomics {
            compare(call, &after, &driver.memory.snapshot(), index, workspace.heap)?;
        }
    }
    driver.memory.restore(&after);
    Ok(first)
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
