//! Measuring on the device: the time between two points of the stream, a cache without what is measured, the bandwidth
//! of a copy.

use cudarc::driver::result;
use cudarc::driver::sys::CUdevice_attribute;

use super::CudaBackend;
use super::memory::{Buffer, Event};
use crate::backend::Error;

/// Bytes of the copy that others are compared with, each way.
const COPY: usize = 256 << 20;

/// Measures what is queued on a backend.
pub struct Stopwatch {
    start: Event,
    end: Event,
    /// Twice the second-level cache.
    flushed: Buffer<u8>,
    copy: [Buffer<u8>; 2],
}

impl Stopwatch {
    /// A stopwatch; `bytes` is the size of the copy that others are compared with, at most 256 MiB.
    pub fn new(backend: &CudaBackend, bytes: usize) -> Result<Self, Error> {
        let device = backend.device();
        let cache = device.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.max(1 << 20) as usize;
        let buffer = |bytes: usize| Buffer::zeroed(device, bytes, "a measurement");
        Ok(Self {
            start: Event::timed(device)?,
            end: Event::timed(device)?,
            flushed: buffer(2 * cache)?,
            copy: [buffer(bytes.min(COPY))?, buffer(bytes.min(COPY))?],
        })
    }

    /// Seconds that the device takes for what `queue` queues, from the end of what was queued before.
    pub fn seconds(&self, queue: impl FnOnce()) -> Result<f64, Error> {
        self.start.record();
        queue();
        self.end.record();
        self.end.wait()?;
        self.end.seconds_since(&self.start)
    }

    /// Seconds of `queue` with nothing of it in the cache.
    pub fn cold_seconds(&self, queue: impl FnOnce()) -> Result<f64, Error> {
        self.flushed.clear();
        self.seconds(queue)
    }

    /// Bytes per second, read and written, of a copy within the device: the best of several.
    pub fn copy_bandwidth(&self) -> Result<f64, Error> {
        let [from, to] = &self.copy;
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            best = best.min(self.cold_seconds(|| to.copy_from(from))?);
        }
        Ok(2.0 * from.bytes() as f64 / best)
    }
}

impl Event {
    /// Seconds from another event to this; both have passed.
    fn seconds_since(&self, start: &Event) -> Result<f64, Error> {
        let device = self.device();
        // SAFETY: both events live, were made with timing, and have passed.
        let elapsed = device.call(|| unsafe { result::event::elapsed(start.handle(), self.handle()) });
        let milliseconds = elapsed.map_err(|e| device.failed_with(device.error(e, "reading the time of an event")))?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}
