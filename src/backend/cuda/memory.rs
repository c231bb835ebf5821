//! Memory of the device, and pinned memory of the host.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::{AnyBitPattern, NoUninit};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};

use super::device::{Device, INBOX, count_one};
use crate::backend::Error;

/// An allocation of the device, freed when nobody holds it: neither a [`Buffer`] nor a recorded graph.
pub(super) struct Allocation {
    device: Arc<Device>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Allocation {
    /// Memory whose values are undefined.
    pub(super) fn new(device: &Arc<Device>, bytes: usize, what: &str) -> Result<Allocation, Error> {
        device.check()?;
        assert!(!device.is_recording() && !device.is_measuring(), "{what}: allocated inside a step");
        count_one(&device.counters.allocations);
        // Nothing is an allocation too: it has an address.
        let bytes = bytes.max(16);
        // SAFETY: what the driver gives is freed once, on drop.
        let allocated = device.call(|| unsafe { result::malloc_sync(bytes) });
        match allocated {
            Ok(address) => Ok(Allocation { device: device.clone(), address, bytes }),
            Err(e) => Err(refused(device, e, bytes, what)),
        }
    }

    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // Freeing waits for the work that uses the memory. With a dead context it fails, and the memory is gone with it.
        // SAFETY: the address is an allocation's, and nobody else frees it.
        let _ = self.device.call(|| unsafe { result::free_sync(self.address) });
    }
}

/// The error for an allocation that failed: what was needed, and what there is.
pub(super) fn refused(device: &Device, error: DriverError, bytes: usize, what: &str) -> Error {
    if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return device.failed_with(device.error(error, &format!("allocating {what}")));
    }
    let free = device.memory().map_or(0, |(free, _)| free);
    Error::OutOfMemory { what: what.into(), needed: bytes as u64, free, device: device.name() }
}

/// So many `T` on the device. A clone is the same memory.
pub struct Buffer<T> {
    allocation: Arc<Allocation>,
    offset: usize,
    len: usize,
    of: PhantomData<T>,
}

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Buffer { allocation: self.allocation.clone(), ..*self }
    }
}

impl<T> Buffer<T> {
    /// Memory whose values are undefined.
    pub(super) fn uninitialised(device: &Arc<Device>, len: usize, what: &str) -> Result<Self, Error> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| too_large(device, what))?;
        Ok(Self::within(Arc::new(Allocation::new(device, bytes, what)?), len))
    }

    /// Zeros.
    pub(super) fn zeroed(device: &Arc<Device>, len: usize, what: &str) -> Result<Self, Error>
    where
        T: AnyBitPattern,
    {
        let buffer = Self::uninitialised(device, len, what)?;
        buffer.clear();
        device.check()?;
        Ok(buffer)
    }

    /// A copy of what is on the host.
    pub(super) fn copied(device: &Arc<Device>, data: &[T], what: &str) -> Result<Self, Error>
    where
        T: NoUninit,
    {
        let buffer = Self::uninitialised(device, data.len(), what)?;
        buffer.upload(data);
        device.check()?;
        Ok(buffer)
    }

    /// The first `len` of an allocation that is large enough, or will never be used.
    pub(super) fn within(allocation: Arc<Allocation>, len: usize) -> Self {
        Buffer { allocation, offset: 0, len, of: PhantomData }
    }

    /// `len` values of another type, `offset` bytes into this.
    pub(super) fn part<U>(&self, offset: usize, len: usize) -> Buffer<U> {
        assert!(offset + len * size_of::<U>() <= self.bytes(), "{len} values at {offset} of {} bytes", self.bytes());
        let allocation = self.allocation.clone();
        Buffer { allocation, offset: self.offset + offset, len, of: PhantomData }
    }

    /// Values.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes.
    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Where it is on the device.
    pub(super) fn address(&self) -> u64 {
        self.allocation.address + self.offset as u64
    }

    /// What keeps the memory alive.
    pub(super) fn allocation(&self) -> &Arc<Allocation> {
        &self.allocation
    }

    fn device(&self) -> &Arc<Device> {
        &self.allocation.device
    }

    /// Sets every byte to zero.
    pub(super) fn clear(&self) {
        let device = self.device();
        if self.len == 0 || device.is_idle() {
            return;
        }
        // SAFETY: the range is inside the allocation, which outlives the queued work: freeing waits for it.
        let outcome =
            device.call(|| unsafe { result::memset_d8_async(self.address(), 0, self.bytes(), device.stream()) });
        if let Err(e) = outcome {
            device.failed_with(device.error(e, "clearing memory"));
        }
    }

    /// Copies all of another buffer of this length.
    pub(super) fn copy_from(&self, other: &Buffer<T>) {
        assert_eq!(self.len, other.len, "buffers of different lengths");
        let device = self.device();
        if self.len == 0 || device.is_idle() {
            return;
        }
        // SAFETY: both ranges are inside their allocations, which outlive the queued work: freeing waits for it.
        let outcome = device.call(|| unsafe {
            result::memcpy_dtod_async(self.address(), other.address(), self.bytes(), device.stream())
        });
        if let Err(e) = outcome {
            device.failed_with(device.error(e, "copying on the device"));
        }
    }

    /// Replaces the first values. The host's memory may be changed at once.
    pub(super) fn upload(&self, data: &[T])
    where
        T: NoUninit,
    {
        assert!(data.len() <= self.len, "{} values in a buffer of {}", data.len(), self.len);
        let device = self.device();
        assert!(!device.is_recording(), "values of the host are copied inside a step");
        if data.is_empty() || device.is_idle() {
            return;
        }
        count_one(&device.counters.uploads);
        // SAFETY: the range is inside the allocation. Memory that is not pinned is read before the call returns.
        let outcome = device.call(|| unsafe { result::memcpy_htod_async(self.address(), data, device.stream()) });
        if let Err(e) = outcome {
            device.failed_with(device.error(e, "copying to the device"));
        }
    }

    /// Copies the first `len` values to the host, once all queued work is done.
    pub(super) fn download(&self, len: usize) -> Result<Vec<T>, Error>
    where
        T: AnyBitPattern + NoUninit,
    {
        assert!(len <= self.len, "{len} values of a buffer of {}", self.len);
        let device = self.device();
        assert!(!device.is_recording(), "values are read inside a step");
        device.check()?;
        let bytes = len * size_of::<T>();
        let mut data = vec![T::zeroed(); len];
        if bytes == 0 {
            return Ok(data);
        }
        count_one(&device.counters.downloads);
        let _inside = device.enter();
        // What is small comes through pinned memory: the driver would copy it twice otherwise, and wait in between.
        let small = bytes <= INBOX;
        let to = if small { device.inbox() } else { data.as_mut_ptr().cast::<u8>() };
        // SAFETY: both ranges are inside their allocations; the copy is waited for before either is used or dropped, and
        // nobody else uses the inbox meanwhile.
        let outcome = device.call(|| unsafe {
            let to = std::slice::from_raw_parts_mut(to, bytes);
            result::memcpy_dtoh_async(to, self.address(), device.stream())
        });
        // Whatever it says, what was queued may still write: wait for it.
        let waited = device.synchronize();
        outcome.map_err(|e| device.failed_with(device.error(e, "copying to the host")))?;
        waited?;
        if small {
            // SAFETY: the inbox holds so many bytes, written by the copy; any bytes are values of `T`.
            unsafe { std::ptr::copy_nonoverlapping(to, data.as_mut_ptr().cast::<u8>(), bytes) };
        }
        Ok(data)
    }
}

fn too_large(device: &Device, what: &str) -> Error {
    let free = device.memory().map_or(0, |(free, _)| free);
    Error::OutOfMemory { what: what.into(), needed: u64::MAX, free, device: device.name() }
}

/// Memory of the host that the device copies from by itself.
pub(super) struct Pinned {
    device: Arc<Device>,
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is memory, with one owner.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Zeros.
    pub(super) fn new(device: &Arc<Device>, bytes: usize, what: &str) -> Result<Pinned, Error> {
        device.check()?;
        count_one(&device.counters.allocations);
        let bytes = bytes.max(16);
        // SAFETY: what the driver gives is freed once, on drop.
        let allocated = device.call(|| unsafe { result::malloc_host(bytes, 0) });
        let pointer = allocated.map_err(|e| refused(device, e, bytes, what))?.cast::<u8>();
        let pointer = NonNull::new(pointer).ok_or_else(|| too_large(device, what))?;
        // SAFETY: the allocation has so many bytes.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(Pinned { device: device.clone(), pointer, bytes })
    }

    /// The bytes. The caller knows that no copy from or to them is in flight.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the memory was initialised, is this object's, and lives as long as it does.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.bytes) }
    }

    /// Queues a copy of the first bytes to the device.
    ///
    /// # Safety
    /// They do not change until the copy is done.
    pub(super) unsafe fn send(&self, bytes: usize, to: &Buffer<u8>) {
        assert!(bytes <= self.bytes && bytes <= to.bytes(), "{bytes} bytes from {} to {}", self.bytes, to.bytes());
        let device = &self.device;
        if device.failed() {
            return;
        }
        count_one(&device.counters.uploads);
        // SAFETY: both ranges are inside their allocations; the caller lets the source be.
        let outcome = device.call(|| unsafe {
            let source = std::slice::from_raw_parts(self.pointer.as_ptr(), bytes);
            result::memcpy_htod_async(to.address(), source, device.stream())
        });
        if let Err(e) = outcome {
            device.failed_with(device.error(e, "copying to the device"));
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A copy from it may be in flight.
        let _ = self.device.wait();
        // SAFETY: the memory is an allocation of `malloc_host`, and nobody else frees it.
        let _ = self.device.call(|| unsafe { result::free_host(self.pointer.as_ptr().cast::<c_void>()) });
    }
}

/// A point in the stream that the host can wait for.
pub(super) struct Event {
    device: Arc<Device>,
    handle: sys::CUevent,
}

// SAFETY: handles of the driver API may be used by any thread; each use makes the context current first.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A point that has passed.
    pub(super) fn new(device: &Arc<Device>) -> Result<Event, Error> {
        Self::with(device, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// A point that has passed, and knows when.
    pub(super) fn timed(device: &Arc<Device>) -> Result<Event, Error> {
        Self::with(device, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(device: &Arc<Device>, flags: sys::CUevent_flags) -> Result<Event, Error> {
        let made = device.call(|| result::event::create(flags));
        let handle = made.map_err(|e| device.failed_with(device.error(e, "making an event")))?;
        Ok(Event { device: device.clone(), handle })
    }

    /// Where it passes.
    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(super) fn handle(&self) -> sys::CUevent {
        self.handle
    }

    /// Moves it behind all queued work.
    pub(super) fn record(&self) {
        // SAFETY: event and stream live as long as this.
        let outcome = self.device.call(|| unsafe { result::event::record(self.handle, self.device.stream()) });
        if let Err(e) = outcome {
            self.device.failed_with(self.device.error(e, "recording an event"));
        }
    }

    /// Waits until it has passed.
    pub(super) fn wait(&self) -> Result<(), Error> {
        self.device.check()?;
        // SAFETY: the event lives as long as this.
        let outcome = self.device.call(|| unsafe { result::event::synchronize(self.handle) });
        outcome.map_err(|e| self.device.failed_with(self.device.error(e, "waiting for an event")))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is this object's; the driver keeps it for what waits.
        let _ = self.device.call(|| unsafe { result::event::destroy(self.handle) });
    }
}
