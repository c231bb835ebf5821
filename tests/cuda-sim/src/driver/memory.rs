//! Device memory: allocation and its bookkeeping.

use std::ffi::c_int;

use super::abi::{Out, current_call, entries};
use super::errors::{Error, Result};
use super::handles::Handle;
use super::queue::Until;
use super::state::{Driver, Locked, current};
use super::stream::{issue, wait};
use super::types::DevicePtr;
use super::work::Work;
use crate::device::Site;
use crate::memory::{self, Origin};

/// An allocation of device memory.
pub struct DeviceRange {
    /// Whose it is.
    pub context: Handle,
    /// Bytes.
    pub size: u64,
    /// The call that made it.
    pub call: &'static str,
    /// The how-manyth allocation of the process it is.
    pub number: u64,
    /// The pool that it is from.
    pub pool: Option<Handle>,
    /// Whether a stream will free it.
    pub freeing: bool,
    /// Whether the program must free it: it is no module's variable and no graph's memory.
    pub is_program: bool,
}

/// Memory that `cuMemAlloc` gives is aligned for everything.
const ALIGN: u64 = 512;

impl Driver {
    /// Frees an allocation of device memory now.
    pub fn release(&mut self, address: u64) -> Result<()> {
        self.memory.free(address)?;
        if let Some(range) = self.device.remove(&address)
            && let Some(pool) = range.pool
            && let Ok(pool) = self.pools.get_mut(pool)
        {
            pool.used -= range.size;
        }
        Ok(())
    }

    /// Allocates device memory for a module's variable.
    pub fn allocate_variable(&mut self, context: Handle, size: u64, align: u64, name: &str) -> Result<u64> {
        let address = self.memory.allocate(size.max(1), align.max(1), Origin::Variable(name.into()))?;
        self.track(context, address, size.max(1), None, false);
        Ok(address)
    }

    fn track(&mut self, context: Handle, address: u64, size: u64, pool: Option<Handle>, is_program: bool) {
        let number = self.passed.get(&Site::Alloc).copied().unwrap_or(0);
        let call = current_call();
        self.device.insert(address, DeviceRange { context, size, call, number, pool, freeing: false, is_program });
    }

    /// The allocation that begins at an address and that nothing frees yet.
    pub fn to_free(&self, address: u64) -> Result<&DeviceRange> {
        match self.device.get(&address) {
            Some(range) if range.freeing => Err(memory::Error::DoubleFree(address).into()),
            Some(range) if !range.is_program => {
                Err(Error::invalid(format!("{address:#x} belongs to a module or a graph")))
            }
            Some(range) => Ok(range),
            None => Err(self.not_freeable(address)),
        }
    }

    /// Whether it was freed before or was never an allocation: the memory knows. Nothing live is there.
    fn not_freeable(&self, address: u64) -> Error {
        match self.memory.view().locate(address, 1) {
            Err(memory::Missing::Freed(_)) => memory::Error::DoubleFree(address).into(),
            _ => memory::Error::NotAllocated(address).into(),
        }
    }
}

/// Allocates device memory. When it is full, what streams will free is freed first, as a stream-ordered allocator waits.
pub fn allocate(
    mut driver: Locked,
    context: Handle,
    size: u64,
    pool: Option<Handle>,
    is_program: bool,
) -> Result<(Locked, u64)> {
    driver.pass(Site::Alloc)?;
    let origin = || if pool.is_some() { Origin::Pool } else { Origin::Alloc };
    let mut attempt = driver.memory.allocate(size, ALIGN, origin());
    if matches!(attempt, Err(memory::Error::OutOfMemory { .. })) && driver.device.values().any(|r| r.freeing) {
        driver = wait(driver, context, Until::Idle(context))?;
        attempt = driver.memory.allocate(size, ALIGN, origin());
    }
    let address = attempt?;
    driver.track(context, address, size, pool, is_program);
    if let Some(pool) = pool {
        let pool = driver.pools.get_mut(pool)?;
        pool.used += size;
        pool.used_high = pool.used_high.max(pool.used);
    }
    Ok((driver, address))
}

/// Frees device memory once everything that was issued before is done.
fn free(address: DevicePtr) -> Result<()> {
    let (mut driver, context) = current()?;
    if address == 0 {
        return Ok(());
    }
    driver.forbid_in_capture()?;
    if driver.host.contains_key(&(address as usize)) {
        driver.managed(address)?;
        driver = wait(driver, context, Until::Idle(context))?.quiet();
        return driver.release_host(address as usize);
    }
    let owner = driver.to_free(address)?.context;
    driver = wait(driver, context, Until::Idle(context))?;
    if owner != context {
        driver = wait(driver, context, Until::Idle(owner))?;
    }
    driver.release(address)
}

entries! {
    /// Allocates device memory.
    fn cuMemAlloc_v2(address: Out<DevicePtr>, size: usize) {
        let (mut driver, context) = current()?;
        address.check()?;
        driver.forbid_in_capture()?;
        if size == 0 {
            return Err(Error::invalid("an allocation of no bytes"));
        }
        let (_driver, base) = allocate(driver, context, size as u64, None, true)?;
        address.set(base)
    }

    /// Allocates a matrix whose rows begin at multiples of 512 bytes.
    fn cuMemAllocPitch_v2(address: Out<DevicePtr>, pitch: Out<usize>, width: usize, height: usize, element: u32) {
        let (mut driver, context) = current()?;
        address.check()?;
        pitch.check()?;
        driver.forbid_in_capture()?;
        if width == 0 || height == 0 || !matches!(element, 4 | 8 | 16) {
            return Err(Error::invalid(format!("a matrix of {height} rows of {width} bytes, elements of {element}")));
        }
        let row = width.checked_next_multiple_of(ALIGN as usize);
        let size = row.and_then(|row| row.checked_mul(height));
        let (Some(row), Some(size)) = (row, size) else {
            return Err(Error::invalid("the matrix is larger than the address space"));
        };
        let (_driver, base) = allocate(driver, context, size as u64, None, true)?;
        pitch.set(row)?;
        address.set(base)
    }

    /// Frees device memory, or managed memory. Waits for all work, as the device does.
    fn cuMemFree_v2(address: DevicePtr) {
        free(address)
    }

    /// Allocates from the current pool. The address is good at once, the memory when the stream gets there.
    fn cuMemAllocAsync(address: Out<DevicePtr>, size: usize, stream: Handle) {
        let (driver, _) = current()?;
        let pool = driver.current_pool;
        drop(driver);
        allocate_async(address, size, pool, stream)
    }

    /// Allocates from a pool. The address is good at once, the memory when the stream gets there.
    fn cuMemAllocFromPoolAsync(address: Out<DevicePtr>, size: usize, pool: Handle, stream: Handle) {
        allocate_async(address, size, pool, stream)
    }

    /// Frees memory of a pool, or other device memory, when the stream gets there.
    fn cuMemFreeAsync(address: DevicePtr, stream: Handle) {
        let (mut driver, context) = current()?;
        let stream = driver.stream(context, stream)?;
        if address == 0 {
            return Ok(());
        }
        if driver.streams.get(stream)?.capture.is_some() {
            if driver.device.get(&address).is_none_or(|range| range.is_program) {
                return Err(Error::invalid("a graph frees only memory that it allocates"));
            }
            return driver.capture_work(stream, Work::Free(address));
        }
        driver.to_free(address)?;
        let (mut driver, _) = issue(driver, stream, Work::Free(address), "cuMemFreeAsync")?;
        if let Some(range) = driver.device.get_mut(&address) {
            range.freeing = true;
        }
        Ok(())
    }

    /// Bytes free and in all.
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let (driver, _) = current()?;
        let (left, all) = driver.memory.info();
        free.set(left as usize)?;
        total.set(all as usize)
    }

    /// The allocation that holds an address.
    fn cuMemGetAddressRange_v2(base: Out<DevicePtr>, size: Out<usize>, address: DevicePtr) {
        let (driver, _) = current()?;
        let found = driver.memory.find(address).ok_or(Error::NotFound {
            kind: "an allocation at",
            name: format!("{address:#x}"),
        })?;
        base.set_if_wanted(found.base);
        size.set_if_wanted(found.size as usize);
        Ok(())
    }

    /// Gives unused memory of graphs back: there is none.
    fn cuDeviceGraphMemTrim(number: c_int) {
        super::context::device(number)
    }
}

fn allocate_async(address: Out<DevicePtr>, size: usize, pool: Handle, stream: Handle) -> Result<()> {
    let (mut driver, context) = current()?;
    address.check()?;
    let stream = driver.stream(context, stream)?;
    driver.pools.get(pool)?;
    if size == 0 {
        return address.set(0);
    }
    let capturing = driver.streams.get(stream)?.capture.is_some();
    driver.order_with_captures(stream)?;
    let (mut driver, base) = allocate(driver, context, size as u64, Some(pool), !capturing)?;
    if capturing && let Err(error) = driver.capture_work(stream, Work::Allocate(base)) {
        driver.release(base)?;
        return Err(error);
    }
    address.set(base)
}
