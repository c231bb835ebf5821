//! Host memory that the device knows: page-locked, registered, managed.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use super::abi::{HostPtr, Out, current_call, entries};
use super::errors::{CuResult, Error, Result};
use super::handles::Handle;
use super::queue::Until;
use super::state::{Driver, current};
use super::stream::wait;
use super::types::{DevicePtr, flags};
use crate::device::Site;
use crate::memory::Origin;

/// What a range of host memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// `cuMemHostAlloc`
    Pinned,
    /// `cuMemHostRegister`
    Registered,
    /// `cuMemAllocManaged`
    Managed,
}

/// A range of host memory that the device sees at its host address.
pub struct HostRange {
    /// Whose it is.
    pub context: Handle,
    /// What it is.
    pub kind: HostKind,
    /// Bytes.
    pub size: usize,
    /// The flags of its making.
    pub flags: u32,
    /// The call that made it.
    pub call: &'static str,
}

/// A page, as the alignment of what is allocated.
const PAGE: usize = 4096;

impl Driver {
    /// The range that holds `length` bytes at an address.
    pub fn host_range(&self, address: usize, length: usize) -> Option<(usize, &HostRange)> {
        let (base, range) = self.host.range(..=address).next_back()?;
        (address - base <= range.size && length <= range.size - (address - base)).then_some((*base, range))
    }

    /// The managed range that holds an address.
    pub fn managed(&self, address: DevicePtr) -> Result<&HostRange> {
        match self.host_range(address as usize, 1) {
            Some((_, range)) if range.kind == HostKind::Managed => Ok(range),
            _ => Err(Error::invalid(format!("{address:#x} is not in managed memory"))),
        }
    }

    /// Lets the device see a range of the host.
    fn add_host(&mut self, context: Handle, address: usize, size: usize, kind: HostKind, flags: u32) -> Result<()> {
        let origin = if kind == HostKind::Managed { Origin::Managed } else { Origin::Host };
        // SAFETY: memory of ours stays until `release_host`; registered memory until it is unregistered, for which the
        // program answers by the API's contract. Both first wait for the work that was issued.
        unsafe { self.memory.adopt(address as *mut u8, size as u64, origin) }?;
        self.host.insert(address, HostRange { context, kind, size, flags, call: current_call() });
        Ok(())
    }

    /// Ends a range.
    pub fn release_host(&mut self, address: usize) -> Result<()> {
        let range = self.host.remove(&address).ok_or(crate::memory::Error::NotAllocated(address as u64))?;
        self.memory.free(address as u64)?;
        if range.kind != HostKind::Registered
            && let Ok(layout) = Layout::from_size_align(range.size, PAGE)
        {
            // SAFETY: `allocate` made it with this layout, and the table held it once.
            unsafe { dealloc(address as *mut u8, layout) };
        }
        Ok(())
    }

    fn allocate_host(&mut self, context: Handle, size: usize, kind: HostKind, flags: u32) -> Result<usize> {
        if size == 0 {
            return Err(Error::invalid("an allocation of no bytes"));
        }
        let layout = Layout::from_size_align(size, PAGE).map_err(|_| Error::HostMemory(size))?;
        // SAFETY: the size is not zero.
        let address = unsafe { alloc_zeroed(layout) } as usize;
        if address == 0 {
            return Err(Error::HostMemory(size));
        }
        self.add_host(context, address, size, kind, flags)?;
        Ok(address)
    }
}

fn pinned(out: Out<usize>, size: usize, flags: u32) -> Result<()> {
    let (mut driver, context) = current()?;
    out.check()?;
    driver.forbid_in_capture()?;
    if flags & !flags::MEMHOST_FLAGS != 0 {
        return Err(Error::invalid(format!("host allocation flags {flags:#x}")));
    }
    driver.pass(Site::Pinned)?;
    out.set(driver.allocate_host(context, size, HostKind::Pinned, flags)?)
}

entries! {
    /// Allocates page-locked host memory, which the device sees at the same address.
    fn cuMemHostAlloc(out: Out<usize>, size: usize, flags: u32) {
        pinned(out, size, flags)
    }

    /// Allocates page-locked host memory.
    fn cuMemAllocHost_v2(out: Out<usize>, size: usize) {
        pinned(out, size, 0)
    }

    /// Frees page-locked host memory once all work is done.
    fn cuMemFreeHost(address: HostPtr) {
        let (mut driver, context) = current()?;
        driver.forbid_in_capture()?;
        match driver.host.get(&address.check()?.0) {
            Some(range) if range.kind == HostKind::Pinned => {}
            _ => return Err(Error::invalid(format!("{:#x} is not the start of page-locked memory", address.0))),
        }
        driver = wait(driver, context, Until::Idle(context))?.quiet();
        driver.release_host(address.0)
    }

    /// Page-locks memory of the program.
    fn cuMemHostRegister_v2(address: HostPtr, size: usize, flags: u32) {
        let (mut driver, context) = current()?;
        driver.forbid_in_capture()?;
        let address = address.check()?.0;
        if size == 0 || flags & !flags::MEMHOST_REGISTER_FLAGS != 0 {
            return Err(Error::invalid(format!("{size} bytes, flags {flags:#x}")));
        }
        let overlaps = |(base, range): (&usize, &HostRange)| *base < address + size && address < base + range.size;
        if driver.host.iter().any(overlaps) {
            let text = "part of the range is page-locked already";
            return Err(Error::Registration(CuResult::ERROR_HOST_MEMORY_ALREADY_REGISTERED, text));
        }
        driver.add_host(context, address, size, HostKind::Registered, flags)
    }

    /// Ends the page-lock of memory of the program, once all work is done.
    fn cuMemHostUnregister(address: HostPtr) {
        let (mut driver, context) = current()?;
        driver.forbid_in_capture()?;
        match driver.host.get(&address.check()?.0) {
            Some(range) if range.kind == HostKind::Registered => {}
            _ => {
                let text = "no registered memory begins here";
                return Err(Error::Registration(CuResult::ERROR_HOST_MEMORY_NOT_REGISTERED, text));
            }
        }
        driver = wait(driver, context, Until::Idle(context))?.quiet();
        driver.release_host(address.0)
    }

    /// The device's address of page-locked memory: the host's own.
    fn cuMemHostGetDevicePointer_v2(out: Out<DevicePtr>, address: HostPtr, flags: u32) {
        let (driver, _) = current()?;
        if flags != 0 {
            return Err(Error::invalid("flags must be 0"));
        }
        match driver.host_range(address.check()?.0, 1) {
            Some((_, range)) if range.kind != HostKind::Managed => out.set(address.0 as u64),
            _ => Err(Error::invalid(format!("{:#x} is not page-locked", address.0))),
        }
    }

    /// The flags that page-locked memory was made with.
    fn cuMemHostGetFlags(out: Out<u32>, address: HostPtr) {
        let (driver, _) = current()?;
        match driver.host_range(address.check()?.0, 1) {
            Some((_, range)) if range.kind != HostKind::Managed => out.set(range.flags),
            _ => Err(Error::invalid(format!("{:#x} is not page-locked", address.0))),
        }
    }

    /// Allocates memory that host and device use at one address.
    fn cuMemAllocManaged(out: Out<DevicePtr>, size: usize, flags: u32) {
        let (mut driver, context) = current()?;
        out.check()?;
        driver.forbid_in_capture()?;
        if !matches!(flags, flags::ATTACH_GLOBAL | flags::ATTACH_HOST) {
            return Err(Error::invalid(format!("attach flags {flags:#x}")));
        }
        driver.pass(Site::Alloc)?;
        out.set(driver.allocate_host(context, size, HostKind::Managed, flags)? as u64)
    }

    /// Moves managed memory: it is where everyone sees it already, only the arguments are checked.
    fn cuMemPrefetchAsync_v2(address: DevicePtr, size: usize, _location: super::types::Location, flags: u32, stream: Handle) {
        let (mut driver, context) = current()?;
        driver.stream(context, stream)?;
        if flags != 0 || size == 0 {
            return Err(Error::invalid(format!("{size} bytes, flags {flags:#x}")));
        }
        driver.managed(address)?;
        Ok(())
    }

    /// Advises on managed memory: of no effect, only the arguments are checked.
    fn cuMemAdvise_v2(address: DevicePtr, size: usize, advice: u32, _location: super::types::Location) {
        let (driver, _) = current()?;
        if size == 0 || !(1..=6).contains(&advice) {
            return Err(Error::invalid(format!("{size} bytes, advice {advice}")));
        }
        driver.managed(address)?;
        Ok(())
    }
}
