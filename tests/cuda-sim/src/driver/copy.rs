//! Copies and fills, in all directions.

use std::sync::Arc;

use super::abi::{HostPtr, In, current_call, entries};
use super::errors::{Error, Result};
use super::handles::Handle;
use super::queue::Until;
use super::state::{Driver, Locked, current};
use super::stream::{issue, wait};
use super::tally::Tally;
use super::types::{DevicePtr, Memcpy2d, Memcpy3d, MemsetParams, flags};
use super::work::Work;
use crate::device::Site;
use crate::memory::Missing;

/// Where bytes are copied from or to.
#[derive(Clone)]
pub enum Place {
    /// Memory of the host.
    Host(HostPtr),
    /// An address that the device knows.
    Device(DevicePtr),
    /// Bytes that were taken when the copy was issued: pageable memory may change after the call.
    Staged(Arc<Vec<u8>>),
}

/// One side of a copy: a place, and the distance of its rows and slices in bytes.
#[derive(Clone)]
pub struct Side {
    /// Where.
    pub place: Place,
    /// From row to row.
    pub pitch: usize,
    /// From slice to slice.
    pub slice: usize,
}

/// A copy of a box of bytes.
#[derive(Clone)]
pub struct Copy {
    /// Where from.
    pub from: Side,
    /// Where to.
    pub to: Side,
    /// Bytes of a row, rows, slices.
    pub shape: [usize; 3],
}

/// A fill of a matrix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fill(pub MemsetParams);

impl Side {
    fn line(place: Place) -> Side {
        Side { place, pitch: 0, slice: 0 }
    }

    /// The offset of a row.
    fn at(&self, row: usize, slice: usize) -> usize {
        row * self.pitch + slice * self.slice
    }

    /// Bytes from the first to the last, if they can be counted.
    fn extent(&self, shape: [usize; 3]) -> Option<usize> {
        let rows = (shape[1] - 1).checked_mul(self.pitch)?;
        let slices = (shape[2] - 1).checked_mul(self.slice)?;
        shape[0].checked_add(rows)?.checked_add(slices)
    }

    /// A place on the device must be inside one allocation, now.
    fn check(&self, driver: &Driver, shape: [usize; 3]) -> Result<()> {
        let Some(extent) = self.extent(shape) else {
            return Err(Error::invalid("the copy is larger than the address space"));
        };
        match &self.place {
            Place::Device(address) => driver.check_range(*address, extent),
            Place::Host(pointer) => pointer.check().map(|_| ()),
            Place::Staged(_) => Ok(()),
        }
    }
}

impl Copy {
    /// A copy of bytes in a row.
    pub fn line(from: Place, to: Place, length: usize) -> Copy {
        Copy { from: Side::line(from), to: Side::line(to), shape: [length, 1, 1] }
    }

    /// Whether there is nothing to copy.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Fails if one side is not where it says.
    pub fn check(&self, driver: &Driver) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.from.check(driver, self.shape)?;
        self.to.check(driver, self.shape)
    }

    /// Takes the source's bytes now.
    fn stage(&mut self) -> Result<()> {
        if let Place::Host(pointer) = self.from.place
            && let Some(extent) = self.from.extent(self.shape)
        {
            self.from.place = Place::Staged(Arc::new(pointer.bytes(extent)?));
        }
        Ok(())
    }

    /// Copies now.
    pub fn run(&self, driver: &Driver) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        for slice in 0..self.shape[2] {
            for row in 0..self.shape[1] {
                self.row(driver, self.from.at(row, slice), self.to.at(row, slice))?;
            }
        }
        Ok(())
    }

    fn row(&self, driver: &Driver, from: usize, to: usize) -> Result<()> {
        let (memory, length) = (&driver.memory, self.shape[0]);
        match (&self.from.place, &self.to.place) {
            (Place::Device(source), Place::Device(target)) => {
                memory.copy(target + to as u64, source + from as u64, length as u64)?;
            }
            (Place::Device(source), Place::Host(target)) => {
                let mut bytes = vec![0; length];
                memory.read(source + from as u64, &mut bytes)?;
                HostPtr(target.0 + to).write(&bytes)?;
            }
            (Place::Host(source), Place::Device(target)) => {
                memory.write(target + to as u64, &HostPtr(source.0 + from).bytes(length)?)?;
            }
            (Place::Staged(source), Place::Device(target)) => {
                memory.write(target + to as u64, &source[from..from + length])?;
            }
            (Place::Host(source), Place::Host(target)) => {
                HostPtr(target.0 + to).write(&HostPtr(source.0 + from).bytes(length)?)?;
            }
            (Place::Staged(source), Place::Host(target)) => {
                HostPtr(target.0 + to).write(&source[from..from + length])?;
            }
            (_, Place::Staged(_)) => return Err(Error::invalid("a copy to staged bytes")),
        }
        Ok(())
    }

    /// Whether a side is host memory that is not page-locked: then the call itself waits.
    fn is_pageable(side: &Side, shape: [usize; 3], driver: &Driver) -> bool {
        match side.place {
            Place::Host(pointer) => {
                side.extent(shape).is_some_and(|extent| driver.host_range(pointer.0, extent).is_none())
            }
            _ => false,
        }
    }
}

impl Fill {
    /// Fails if the target is not where it says, or not aligned to its elements.
    pub fn check(&self, driver: &Driver) -> Result<()> {
        let p = &self.0;
        if !matches!(p.element_size, 1 | 2 | 4) {
            return Err(Error::invalid(format!("elements of {} bytes", p.element_size)));
        }
        if p.width == 0 || p.height == 0 {
            return Ok(());
        }
        let element = p.element_size as usize;
        if !p.dst.is_multiple_of(element as u64) || p.height > 1 && !p.pitch.is_multiple_of(element) {
            return Err(Error::invalid(format!("{:#x} is not aligned to elements of {element} bytes", p.dst)));
        }
        let rows = (p.height - 1).checked_mul(p.pitch);
        let row = p.width.checked_mul(element);
        match rows.zip(row).and_then(|(rows, row)| rows.checked_add(row)) {
            Some(extent) => driver.check_range(p.dst, extent),
            None => Err(Error::invalid("the fill is larger than the address space")),
        }
    }

    /// Fills now.
    pub fn run(&self, driver: &Driver) -> Result<()> {
        let p = &self.0;
        let pattern = &p.value.to_le_bytes()[..p.element_size as usize];
        if p.width == 0 {
            return Ok(());
        }
        for row in 0..p.height {
            driver.memory.fill(p.dst + (row * p.pitch) as u64, pattern, p.width as u64)?;
        }
        Ok(())
    }
}

impl Driver {
    /// Fails if the device does not have `length` bytes at an address.
    pub fn check_range(&self, address: DevicePtr, length: usize) -> Result<()> {
        match self.memory.view().locate(address, length as u64) {
            Ok(_) => Ok(()),
            Err(missing) => Err(crate::memory::Error::Missing { address, length: length as u64, missing }.into()),
        }
    }

    /// Where an address of the unified space is.
    fn unified(&self, address: u64) -> Place {
        match self.memory.view().locate(address, 1) {
            // What was freed, or lies past an allocation, is the device's and will be refused as such.
            Ok(_) | Err(Missing::Freed(_)) => Place::Device(address),
            Err(Missing::Nothing(_)) if is_simulated(address) => Place::Device(address),
            Err(Missing::Nothing(_)) => Place::Host(HostPtr(address as usize)),
        }
    }
}

/// Whether an address is of the range from which device memory is given: no host memory is below it there.
fn is_simulated(address: u64) -> bool {
    (crate::memory::BASE..0x1000_0000_0000).contains(&address)
}

/// Issues a copy. What the host gives is taken before the call returns, unless it is page-locked; what the host gets is
/// there when the call returns, unless it is page-locked.
fn copy(copy: Copy, stream: Handle, synchronous: bool) -> Result<()> {
    let call = current_call();
    let (mut driver, context) = current()?;
    let stream = driver.stream(context, stream)?;
    let capturing = driver.streams.get(stream)?.capture.is_some();
    if synchronous {
        driver.forbid_in_capture()?;
    }
    copy.check(&driver)?;
    driver.pass(Site::Copy)?;
    if copy.is_empty() {
        return Ok(());
    }
    if capturing {
        return driver.capture_work(stream, Work::Copy(copy));
    }
    transfer(driver, context, stream, copy, synchronous, call)
}

fn transfer(
    mut driver: Locked,
    context: Handle,
    stream: Handle,
    mut copy: Copy,
    synchronous: bool,
    call: &'static str,
) -> Result<()> {
    driver.order_with_captures(stream)?;
    driver.count(|tally| tally.copied(&copy));
    let lands = synchronous || Copy::is_pageable(&copy.to, copy.shape, &driver);
    let leaves = synchronous || Copy::is_pageable(&copy.from, copy.shape, &driver);
    if (lands || leaves) && driver.is_idle(stream)? {
        // Nothing is before it: done at once, without a copy on the side.
        return copy.run(&driver);
    }
    if leaves && !lands {
        copy.stage()?;
    }
    let (driver, ticket) = issue(driver, stream, Work::Copy(copy), call)?;
    if let Some(ticket) = ticket.filter(|_| lands) {
        wait(driver, context, Until::Done(ticket))?;
    }
    Ok(())
}

/// Issues a fill.
fn fill(params: MemsetParams, stream: Handle, synchronous: bool) -> Result<()> {
    let call = current_call();
    let (mut driver, context) = current()?;
    let stream = driver.stream(context, stream)?;
    if synchronous {
        driver.forbid_in_capture()?;
    }
    let fill = Fill(params);
    fill.check(&driver)?;
    driver.pass(Site::Copy)?;
    if params.width == 0 || params.height == 0 {
        return Ok(());
    }
    if driver.streams.get(stream)?.capture.is_none() {
        driver.count(Tally::filled);
    }
    issue(driver, stream, Work::Fill(fill), call)?;
    Ok(())
}

fn matrix(dst: DevicePtr, pitch: usize, value: u32, element_size: u32, width: usize, height: usize) -> MemsetParams {
    MemsetParams { dst, pitch, value, element_size, width, height }
}

fn line(dst: DevicePtr, value: u32, element_size: u32, width: usize) -> MemsetParams {
    matrix(dst, 0, value, element_size, width, 1)
}

/// One side of a copy as the structures of the API give it.
struct Given {
    kind: u32,
    host: HostPtr,
    device: DevicePtr,
    offset: [usize; 3],
    pitch: usize,
    height: usize,
}

impl Given {
    fn side(self, driver: &Driver, width: usize) -> Result<Side> {
        let pitch = if self.pitch == 0 { self.offset[0] + width } else { self.pitch };
        if pitch < self.offset[0] + width {
            return Err(Error::invalid(format!("rows of {width} bytes at {}, {pitch} apart", self.offset[0])));
        }
        let slice = pitch.checked_mul(self.height.max(1));
        let skip = slice.and_then(|slice| {
            let slices = slice.checked_mul(self.offset[2])?;
            slices.checked_add(pitch.checked_mul(self.offset[1])?)?.checked_add(self.offset[0])
        });
        let (Some(slice), Some(skip)) = (slice, skip) else {
            return Err(Error::invalid("the copy is larger than the address space"));
        };
        let place = match self.kind {
            flags::MEMORY_HOST => Place::Host(HostPtr(self.host.check()?.0.wrapping_add(skip))),
            flags::MEMORY_DEVICE => Place::Device(self.device.wrapping_add(skip as u64)),
            flags::MEMORY_UNIFIED => driver.unified(self.device.wrapping_add(skip as u64)),
            flags::MEMORY_ARRAY => return Err(Error::NotSupported("a copy of an array".into())),
            other => return Err(Error::invalid(format!("memory type {other}"))),
        };
        Ok(Side { place, pitch, slice })
    }
}

/// The copy that a `CUDA_MEMCPY2D` describes.
fn planar(driver: &Driver, p: &Memcpy2d) -> Result<Copy> {
    let wide = Memcpy3d {
        src_x: p.src_x,
        src_y: p.src_y,
        src_type: p.src_type,
        src_host: p.src_host,
        src_device: p.src_device,
        src_pitch: p.src_pitch,
        dst_x: p.dst_x,
        dst_y: p.dst_y,
        dst_type: p.dst_type,
        dst_host: p.dst_host,
        dst_device: p.dst_device,
        dst_pitch: p.dst_pitch,
        width: p.width,
        height: p.height,
        depth: 1,
        ..Memcpy3d::default()
    };
    spatial(driver, &wide)
}

/// The copy that a `CUDA_MEMCPY3D` describes.
pub fn spatial(driver: &Driver, p: &Memcpy3d) -> Result<Copy> {
    if p.src_lod != 0 || p.dst_lod != 0 {
        return Err(Error::NotSupported("a copy of a mipmap".into()));
    }
    let from = Given {
        kind: p.src_type,
        host: p.src_host,
        device: p.src_device,
        offset: [p.src_x, p.src_y, p.src_z],
        pitch: p.src_pitch,
        height: p.src_height,
    };
    let to = Given {
        kind: p.dst_type,
        host: p.dst_host,
        device: p.dst_device,
        offset: [p.dst_x, p.dst_y, p.dst_z],
        pitch: p.dst_pitch,
        height: p.dst_height,
    };
    let (from, to) = (from.side(driver, p.width)?, to.side(driver, p.width)?);
    Ok(Copy { from, to, shape: [p.width, p.height, p.depth] })
}

fn planar_call(params: In<Memcpy2d>, stream: Handle, synchronous: bool) -> Result<()> {
    let described = planar(&current()?.0, &params.get()?)?;
    copy(described, stream, synchronous)
}

fn spatial_call(params: In<Memcpy3d>, stream: Handle, synchronous: bool) -> Result<()> {
    let described = spatial(&current()?.0, &params.get()?)?;
    copy(described, stream, synchronous)
}

fn unified_call(to: DevicePtr, from: DevicePtr, length: usize, stream: Handle, synchronous: bool) -> Result<()> {
    let (driver, _) = current()?;
    let (from, to) = (driver.unified(from), driver.unified(to));
    drop(driver);
    copy(Copy::line(from, to, length), stream, synchronous)
}

fn peer(
    to: DevicePtr,
    to_context: Handle,
    from: DevicePtr,
    from_context: Handle,
    length: usize,
    stream: Handle,
    synchronous: bool,
) -> Result<()> {
    let (driver, _) = current()?;
    driver.usable(to_context)?;
    driver.usable(from_context)?;
    drop(driver);
    copy(Copy::line(Place::Device(from), Place::Device(to), length), stream, synchronous)
}

entries! {
    /// Copies from the host.
    fn cuMemcpyHtoD_v2(to: DevicePtr, from: HostPtr, length: usize) {
        copy(Copy::line(Place::Host(from), Place::Device(to), length), Handle::NULL, true)
    }

    /// Copies from the host, in a stream.
    fn cuMemcpyHtoDAsync_v2(to: DevicePtr, from: HostPtr, length: usize, stream: Handle) {
        copy(Copy::line(Place::Host(from), Place::Device(to), length), stream, false)
    }

    /// Copies to the host.
    fn cuMemcpyDtoH_v2(to: HostPtr, from: DevicePtr, length: usize) {
        copy(Copy::line(Place::Device(from), Place::Host(to), length), Handle::NULL, true)
    }

    /// Copies to the host, in a stream.
    fn cuMemcpyDtoHAsync_v2(to: HostPtr, from: DevicePtr, length: usize, stream: Handle) {
        copy(Copy::line(Place::Device(from), Place::Host(to), length), stream, false)
    }

    /// Copies on the device.
    fn cuMemcpyDtoD_v2(to: DevicePtr, from: DevicePtr, length: usize) {
        copy(Copy::line(Place::Device(from), Place::Device(to), length), Handle::NULL, false)
    }

    /// Copies on the device, in a stream.
    fn cuMemcpyDtoDAsync_v2(to: DevicePtr, from: DevicePtr, length: usize, stream: Handle) {
        copy(Copy::line(Place::Device(from), Place::Device(to), length), stream, false)
    }

    /// Copies between addresses of the unified space.
    fn cuMemcpy(to: DevicePtr, from: DevicePtr, length: usize) {
        unified_call(to, from, length, Handle::NULL, true)
    }

    /// Copies between addresses of the unified space, in a stream.
    fn cuMemcpyAsync(to: DevicePtr, from: DevicePtr, length: usize, stream: Handle) {
        unified_call(to, from, length, stream, false)
    }

    /// Copies between contexts, which share the one device's memory.
    fn cuMemcpyPeer(to: DevicePtr, to_context: Handle, from: DevicePtr, from_context: Handle, length: usize) {
        peer(to, to_context, from, from_context, length, Handle::NULL, false)
    }

    /// Copies between contexts, in a stream.
    fn cuMemcpyPeerAsync(
        to: DevicePtr, to_context: Handle, from: DevicePtr, from_context: Handle, length: usize, stream: Handle,
    ) {
        peer(to, to_context, from, from_context, length, stream, false)
    }

    /// Copies a matrix.
    fn cuMemcpy2D_v2(params: In<Memcpy2d>) {
        planar_call(params, Handle::NULL, true)
    }

    /// Copies a matrix of any alignment.
    fn cuMemcpy2DUnaligned_v2(params: In<Memcpy2d>) {
        planar_call(params, Handle::NULL, true)
    }

    /// Copies a matrix, in a stream.
    fn cuMemcpy2DAsync_v2(params: In<Memcpy2d>, stream: Handle) {
        planar_call(params, stream, false)
    }

    /// Copies a box.
    fn cuMemcpy3D_v2(params: In<Memcpy3d>) {
        spatial_call(params, Handle::NULL, true)
    }

    /// Copies a box, in a stream.
    fn cuMemcpy3DAsync_v2(params: In<Memcpy3d>, stream: Handle) {
        spatial_call(params, stream, false)
    }

    /// Fills bytes.
    fn cuMemsetD8_v2(to: DevicePtr, value: u8, count: usize) {
        fill(line(to, value as u32, 1, count), Handle::NULL, true)
    }

    /// Fills 16-bit values.
    fn cuMemsetD16_v2(to: DevicePtr, value: u16, count: usize) {
        fill(line(to, value as u32, 2, count), Handle::NULL, true)
    }

    /// Fills 32-bit values.
    fn cuMemsetD32_v2(to: DevicePtr, value: u32, count: usize) {
        fill(line(to, value, 4, count), Handle::NULL, true)
    }

    /// Fills bytes, in a stream.
    fn cuMemsetD8Async(to: DevicePtr, value: u8, count: usize, stream: Handle) {
        fill(line(to, value as u32, 1, count), stream, false)
    }

    /// Fills 16-bit values, in a stream.
    fn cuMemsetD16Async(to: DevicePtr, value: u16, count: usize, stream: Handle) {
        fill(line(to, value as u32, 2, count), stream, false)
    }

    /// Fills 32-bit values, in a stream.
    fn cuMemsetD32Async(to: DevicePtr, value: u32, count: usize, stream: Handle) {
        fill(line(to, value, 4, count), stream, false)
    }

    /// Fills a matrix of bytes.
    fn cuMemsetD2D8_v2(to: DevicePtr, pitch: usize, value: u8, width: usize, height: usize) {
        fill(matrix(to, pitch, value as u32, 1, width, height), Handle::NULL, true)
    }

    /// Fills a matrix of 16-bit values.
    fn cuMemsetD2D16_v2(to: DevicePtr, pitch: usize, value: u16, width: usize, height: usize) {
        fill(matrix(to, pitch, value as u32, 2, width, height), Handle::NULL, true)
    }

    /// Fills a matrix of 32-bit values.
    fn cuMemsetD2D32_v2(to: DevicePtr, pitch: usize, value: u32, width: usize, height: usize) {
        fill(matrix(to, pitch, value, 4, width, height), Handle::NULL, true)
    }

    /// Fills a matrix of bytes, in a stream.
    fn cuMemsetD2D8Async(to: DevicePtr, pitch: usize, value: u8, width: usize, height: usize, stream: Handle) {
        fill(matrix(to, pitch, value as u32, 1, width, height), stream, false)
    }

    /// Fills a matrix of 16-bit values, in a stream.
    fn cuMemsetD2D16Async(to: DevicePtr, pitch: usize, value: u16, width: usize, height: usize, stream: Handle) {
        fill(matrix(to, pitch, value as u32, 2, width, height), stream, false)
    }

    /// Fills a matrix of 32-bit values, in a stream.
    fn cuMemsetD2D32Async(to: DevicePtr, pitch: usize, value: u32, width: usize, height: usize, stream: Handle) {
        fill(matrix(to, pitch, value, 4, width, height), stream, false)
    }
}
