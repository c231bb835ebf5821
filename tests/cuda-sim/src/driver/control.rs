//! What a test can ask of the simulator beside the driver API, when it finds these functions in the library that it has
//! loaded. A real driver has none of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::abi::{Out, Text, entries, report_panic};
use super::errors::{Error, Result};
use super::state::{initialise, lock};
use super::tally::Tally;
use super::types::DevicePtr;

entries! {
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

/// The counters of everything that has run since the last call as JSON, as in the file of `CUDA_SIM_COUNTERS`: writes
/// them to `buffer` with a zero byte behind if `room` is enough, and begins anew; gives their length without the zero
/// byte in any case, 0 if something is wrong. The first call turns the costly counters on. What was issued but has not
/// run is not in them: synchronise first.
///
/// # Safety
/// `buffer` is null or has `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_sim_counters(buffer: Out<u8>, room: usize) -> usize {
    let name = "cuda_sim_counters";
    match catch_unwind(AssertUnwindSafe(|| counters(buffer, room))) {
        Ok(Ok(length)) => length,
        Ok(Err(error)) => {
            super::findings::failed_call(name, &error);
            0
        }
        Err(panic) => {
            report_panic(name, &*panic);
            0
        }
    }
}

fn counters(buffer: Out<u8>, room: usize) -> Result<usize> {
    initialise()?;
    let mut driver = lock()?;
    let device = driver.config.device.clone();
    let text = driver.recent.get_or_insert_default().json(&device).to_string();
    if !buffer.is_null() && text.len() < room {
        buffer.set_text(text.as_bytes(), room)?;
        driver.recent = Some(Tally::default());
    }
    Ok(text.len())
}
