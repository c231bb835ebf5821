//! A CUDA device: its context, the one stream of all work, and errors that wait to be reported.

use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{ThreadId, current};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::gate::{Entered, Gate};
use super::kernels;
use super::memory::refused;
use crate::backend::Error;

/// The lowest compute capability that the kernels run on.
const LOWEST: (i32, i32) = (8, 0);
/// The driver that takes the kernels' PTX.
const DRIVER: i32 = 13000;
/// Bytes of the inbox.
pub(super) const INBOX: usize = 16 << 10;

/// A device and its stream, shared by everything that lives on it.
pub struct Device {
    ordinal: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    shared: usize,
    /// What failed first; the device is of no use after that.
    failure: Mutex<Option<Error>>,
    /// Threads that asked for memory inside an op and got none: what each queues until it is told does nothing.
    short: Mutex<Vec<(ThreadId, Error)>>,
    gate: Gate,
    /// Pinned memory of the host for what comes back from a step: [`INBOX`] bytes, used inside the gate.
    inbox: *mut u8,
    /// Whether the thread that is inside the gate records a step, or measures what steps need.
    recording: AtomicBool,
    measuring: AtomicBool,
    pub(super) counters: Counters,
}

// SAFETY: handles of the driver API may be used by any thread; each use makes the context current first.
unsafe impl Send for Device {}
// SAFETY: as above; what changes is behind a mutex.
unsafe impl Sync for Device {}

/// What was asked of the driver so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Kernels launched, or recorded.
    pub launches: u64,
    /// Recorded steps replayed.
    pub replays: u64,
    /// Steps recorded.
    pub recordings: u64,
    /// Allocations of device or pinned memory.
    pub allocations: u64,
    /// Copies to the device.
    pub uploads: u64,
    /// Copies to the host; each waits for all queued work.
    pub downloads: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) launches: AtomicU64,
    pub(super) replays: AtomicU64,
    pub(super) recordings: AtomicU64,
    pub(super) allocations: AtomicU64,
    pub(super) uploads: AtomicU64,
    pub(super) downloads: AtomicU64,
}

impl Device {
    /// The device with this number in the driver's order.
    pub(super) fn open(ordinal: usize) -> Result<Arc<Device>, Error> {
        let count = count()?;
        if ordinal >= count {
            return Err(Error::NoDevice(format!("there is no CUDA device {ordinal}: the driver shows {count}")));
        }
        let none = |e| Error::NoDevice(format!("CUDA device {ordinal} cannot be used: {}", text(e)));
        let device = result::device::get(ordinal as c_int).map_err(none)?;
        let name = result::device::get_name(device).map_err(none)?;
        // SAFETY: `device` is what the driver gave.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map_err(none);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < LOWEST {
            return Err(Error::NoDevice(format!(
                "CUDA device {ordinal} ({name}) has compute capability {}.{}; weft needs {}.{} (Ampere) or higher. \
                 --device cpu runs without it",
                capability.0, capability.1, LOWEST.0, LOWEST.1
            )));
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        // SAFETY: `device` is what the driver gave.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(none)?;
        let mut opened = Device {
            ordinal,
            device,
            context,
            stream: std::ptr::null_mut(),
            name,
            capability,
            multiprocessors,
            shared,
            failure: Mutex::default(),
            short: Mutex::default(),
            gate: Gate::default(),
            inbox: std::ptr::null_mut(),
            recording: AtomicBool::new(false),
            measuring: AtomicBool::new(false),
            counters: Counters::default(),
        };
        let kind = result::stream::StreamKind::NonBlocking;
        opened.stream = opened.call(|| result::stream::create(kind)).map_err(none)?;
        // SAFETY: it is freed once, on drop.
        let inbox = opened.call(|| unsafe { result::malloc_host(INBOX, 0) });
        opened.inbox = inbox.map_err(|e| refused(&opened, e, INBOX, "what comes back from a step"))?.cast();
        Ok(Arc::new(opened))
    }

    /// How messages call it.
    pub fn name(&self) -> String {
        format!("cuda:{} ({})", self.ordinal, self.name)
    }

    /// Compute capability: major, minor.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Streaming multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Bytes of shared memory that a block may have.
    pub fn shared_memory(&self) -> usize {
        self.shared
    }

    /// An attribute, as the driver calls it.
    pub(super) fn attribute(&self, which: Attribute) -> Result<i32, Error> {
        // SAFETY: the device is what the driver gave.
        let value = unsafe { result::device::get_attribute(self.device, which) };
        value.map_err(|e| self.error(e, "asking for an attribute"))
    }

    /// Bytes of memory: free, and in all.
    pub fn memory(&self) -> Result<(u64, u64), Error> {
        let read = self.call(result::mem_get_info);
        read.map(|(free, total)| (free as u64, total as u64)).map_err(|e| self.error(e, "asking for free memory"))
    }

    /// What was asked of the driver so far.
    pub fn traffic(&self) -> Traffic {
        let Counters { launches, replays, recordings, allocations, uploads, downloads } = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            launches: read(launches),
            replays: read(replays),
            recordings: read(recordings),
            allocations: read(allocations),
            uploads: read(uploads),
            downloads: read(downloads),
        }
    }

    /// Keeps other threads out: what is queued until the end belongs together.
    pub(super) fn enter(&self) -> Entered<'_> {
        self.gate.enter()
    }

    /// Makes a call to the driver, for this device.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T, DriverError> {
        let _inside = self.enter();
        if result::ctx::get_current()? != Some(self.context) {
            // SAFETY: the context is retained as long as the device lives.
            unsafe { result::ctx::set_current(self.context) }?;
        }
        call()
    }

    /// Whether the calling thread records a step.
    pub(super) fn is_recording(&self) -> bool {
        let _inside = self.enter();
        self.recording.load(Ordering::Relaxed)
    }

    /// Says whether a step is recorded, by the thread that is inside.
    pub(super) fn set_recording(&self, recording: bool) {
        self.recording.store(recording, Ordering::Relaxed);
    }

    /// Whether the calling thread measures what steps need: its ops queue nothing.
    pub(super) fn is_measuring(&self) -> bool {
        let _inside = self.enter();
        self.measuring.load(Ordering::Relaxed)
    }

    /// Says whether steps are measured, by the thread that is inside.
    pub(super) fn set_measuring(&self, measuring: bool) {
        self.measuring.store(measuring, Ordering::Relaxed);
    }

    /// The pinned memory for what comes back, which is the caller's as long as it is inside the gate.
    pub(super) fn inbox(&self) -> *mut u8 {
        self.inbox
    }

    /// The stream of all work.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Waits for all queued work.
    pub(super) fn synchronize(&self) -> Result<(), Error> {
        self.check()?;
        self.wait()
    }

    /// The same, for those that no error is for.
    pub(super) fn wait(&self) -> Result<(), Error> {
        // SAFETY: the stream lives as long as the device.
        let outcome = self.call(|| unsafe { result::stream::synchronize(self.stream) });
        outcome.map_err(|e| self.failed_with(self.error(e, "running kernels")))
    }

    /// Whether something failed: what is queued from then on does nothing.
    pub(super) fn failed(&self) -> bool {
        lock(&self.failure).is_some() || lock(&self.short).iter().any(|(thread, _)| *thread == current().id())
    }

    /// Whether what the calling thread queues does nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.failed() || self.is_measuring()
    }

    /// What failed. That memory ran out is said once, to the thread whose work was not done: the device is as good as before.
    pub(super) fn check(&self) -> Result<(), Error> {
        let short = lock(&self.short).extract_if(.., |(thread, _)| *thread == current().id()).next();
        let failure = lock(&self.failure).clone().or(short.map(|(_, error)| error));
        failure.map_or(Ok(()), Err)
    }

    /// Remembers that there was no memory for an op of this thread, for its next call that can report it.
    pub(super) fn fell_short(&self, error: Error) {
        if !self.failed() {
            lock(&self.short).push((current().id(), error));
        }
    }

    /// Remembers a failure for the next call that can report it; returns what failed first.
    pub(super) fn failed_with(&self, error: Error) -> Error {
        lock(&self.failure).get_or_insert(error).clone()
    }

    /// The error that says what the driver said.
    pub(super) fn error(&self, error: DriverError, doing: &str) -> Error {
        Error::Device { device: self.name(), message: format!("{doing}: {}", text(error)) }
    }

    /// The error for a driver that does not take the kernels.
    pub(super) fn refused(&self, error: DriverError) -> Error {
        let version = driver_version();
        Error::NoDevice(match error.0 {
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_INVALID_IMAGE => format!(
                "{} has compute capability {}.{} and a driver for CUDA {}.{}. This weft has kernels for {}; \
                 others are translated by a driver for CUDA {}.{} (580) or newer: update the driver, or build weft \
                 with WEFT_CUDA_ARCHS=sm_{}{}",
                self.name(),
                self.capability.0,
                self.capability.1,
                version / 1000,
                version % 1000 / 10,
                kernels::ARCHITECTURES,
                DRIVER / 1000,
                DRIVER % 1000 / 10,
                self.capability.0,
                self.capability.1,
            ),
            _ => format!("{} does not take weft's kernels: {}", self.name(), text(error)),
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What fails here cannot be reported, and what a dead context holds is lost.
        // SAFETY: the stream is this device's, and nothing uses it any more: memory, modules and graphs hold the device.
        unsafe {
            if !self.stream.is_null() {
                let _ = self.call(|| result::stream::synchronize(self.stream));
                let _ = self.call(|| result::stream::destroy(self.stream));
            }
            if !self.inbox.is_null() {
                let _ = self.call(|| result::free_host(self.inbox.cast()));
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// Whether a driver is installed, working or not.
pub fn is_driver_present() -> bool {
    // SAFETY: it loads the library, runs its initialisers and nothing else.
    unsafe { sys::is_culib_present() }
}

/// How many devices there are.
pub fn count() -> Result<usize, Error> {
    if !is_driver_present() {
        return Err(Error::NoDevice(
            "there is no CUDA driver (libcuda.so.1): install NVIDIA's driver 580 or newer, or use --device cpu".into(),
        ));
    }
    let failed = |e: DriverError| {
        Error::NoDevice(match e.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => {
                "the CUDA driver finds no device (what does nvidia-smi say?); --device cpu runs without one".into()
            }
            _ => format!("the CUDA driver does not start: {}", text(e)),
        })
    };
    result::init().map_err(failed)?;
    Ok(result::device::get_count().map_err(failed)? as usize)
}

/// The driver's version, 1000 * major + 10 * minor; 0 if it does not say.
pub(super) fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the driver writes one integer.
    match unsafe { sys::cuDriverGetVersion(&mut version) }.result() {
        Ok(()) => version,
        Err(_) => 0,
    }
}

/// What the driver calls an error.
pub(super) fn text(error: DriverError) -> String {
    let of = |text: Result<&CStr, DriverError>| text.map(|t| t.to_string_lossy().into_owned()).ok();
    let name = of(error.error_name()).unwrap_or_else(|| format!("CUDA error {}", error.0 as u32));
    match of(error.error_string()) {
        Some(what) => format!("{name} ({what})"),
        None => name,
    }
}

pub(super) fn count_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A poisoned lock is one that a panicking test left; what it guards is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
