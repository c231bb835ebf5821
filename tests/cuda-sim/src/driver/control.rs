//! What a test can ask of the simulator beside the driver API, when it finds these functions in the library that it has
//! loaded. A real driver has none of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::abi::{Out, Text, entries, report_panic};
use super::errors::{Error, Result};
use super::findings;
use super::state::{CURRENT, current, initialise, lock};
use super::tally::Tally;
use super::types::DevicePtr;
use crate::device::failures;

entries! {
    /// Sets one of the variables `CUDA_SIM_CHECK`, `_SEED`, `_COPIES`, `_SWEEP` and `_THREADS` for the launches of the
    /// current context that follow; the check `init` only if the process has it on, so that memory is tracked. Or
    /// `CUDA_SIM_FAIL`: failures of the process, counted from now on.
    fn cuda_sim_set(variable: Text, value: Text) {
        if variable.string()? == "CUDA_SIM_FAIL" {
            let failures = failures(&value.string()?)?;
            let mut driver = lock()?;
            driver.passed.clear();
            driver.config.failures = failures;
            return Ok(());
        }
        let (mut driver, context) = current()?;
        let tracked = driver.config.runs.checks.init;
        let runs = &mut driver.contexts.get_mut(context)?.runs;
        let mut changed = runs.clone();
        changed.set(&variable.string()?, &value.string()?)?;
        if changed.checks.init && !tracked {
            return Err(Error::invalid("the check `init` must be in the process's CUDA_SIM_CHECK"));
        }
        *runs = changed;
        Ok(())
    }

    /// Names the allocation that holds an address, in findings and counters. A name replaces the one before.
    fn cuda_sim_name_allocation(address: DevicePtr, name: Text) {
        let driver = lock()?;
        let name = name.string()?;
        let Some(found) = driver.memory.find(address) else {
            return Err(Error::NotFound { kind: "an allocation at", name: format!("{address:#x}") });
        };
        found.set_name(name);
        Ok(())
    }
}

/// The counters of everything that has run since the last call as JSON, as in the file of `CUDA_SIM_COUNTERS`. The first
/// call turns the costly counters on. What was issued but has not run is not in them: synchronise first.
///
/// Writes the text to `buffer` with a zero byte behind if `room` is enough, and begins anew; gives its length without the
/// zero byte in any case, 0 if something is wrong.
///
/// # Safety
/// `buffer` is null or has `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_sim_counters(buffer: Out<u8>, room: usize) -> usize {
    text("cuda_sim_counters", buffer, room, |given| {
        initialise()?;
        let mut driver = lock()?;
        let device = driver.config.device.clone();
        let text = driver.recent.get_or_insert_default().json(&device).to_string();
        if given(&text)? {
            driver.recent = Some(Tally::default());
        }
        Ok(text.len())
    })
}

/// What was found in the current context since the last call, a line each. From the first call on, it is no longer
/// printed. `buffer`, `room` and the result are as those of [`cuda_sim_counters`].
///
/// # Safety
/// `buffer` is null or has `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_sim_findings(buffer: Out<u8>, room: usize) -> usize {
    text("cuda_sim_findings", buffer, room, |given| {
        let mut driver = lock()?;
        let context = CURRENT.with_borrow(|stack| stack.last().copied()).ok_or(Error::NoContext)?;
        let findings = driver.contexts.get_mut(context)?.findings.get_or_insert_default();
        let text = findings.join("\n");
        if given(&text)? {
            findings.clear();
        }
        Ok(text.len())
    })
}

/// Runs the body of a function that gives a text. The body is told how to give it, which says whether there was room.
fn text(
    name: &'static str,
    buffer: Out<u8>,
    room: usize,
    body: impl FnOnce(&dyn Fn(&str) -> Result<bool>) -> Result<usize>,
) -> usize {
    let give = |text: &str| {
        let fits = !buffer.is_null() && text.len() < room;
        if fits { buffer.set_text(text.as_bytes(), room).map(|()| true) } else { Ok(false) }
    };
    match catch_unwind(AssertUnwindSafe(|| body(&give))) {
        Ok(Ok(length)) => length,
        Ok(Err(error)) => {
            findings::failed_call(name, &error);
            0
        }
        Err(panic) => {
            report_panic(name, &*panic);
            0
        }
    }
}
