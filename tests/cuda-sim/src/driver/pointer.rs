//! What an address is.

use std::ffi::c_int;

use super::abi::{HostPtr, In, entries};
use super::errors::{Error, Result};
use super::handles::Handle;
use super::host_memory::HostKind;
use super::state::{Driver, current};
use super::types::{DevicePtr, flags};

/// What is known of an address.
struct Known {
    context: Handle,
    base: u64,
    size: u64,
    kind: Option<HostKind>,
    pool: Handle,
    number: u64,
}

fn know(driver: &Driver, address: DevicePtr) -> Result<Known> {
    if let Some((base, range)) = driver.host_range(address as usize, 1) {
        let (context, size, kind) = (range.context, range.size as u64, Some(range.kind));
        return Ok(Known { context, base: base as u64, size, kind, pool: Handle::NULL, number: 0 });
    }
    match driver.device.range(..=address).next_back() {
        Some((base, range)) if address - base < range.size => Ok(Known {
            context: range.context,
            base: *base,
            size: range.size,
            kind: None,
            pool: range.pool.unwrap_or_default(),
            number: range.number,
        }),
        _ => Err(Error::NotDevice(address)),
    }
}

/// Gives one attribute, by its number in `CUpointer_attribute`.
fn give(known: &Known, attribute: u32, address: DevicePtr, out: HostPtr) -> Result<()> {
    let is_host = matches!(known.kind, Some(HostKind::Pinned | HostKind::Registered));
    match attribute {
        1 => out.out().set(known.context),
        2 => out.out().set(if is_host { flags::MEMORY_HOST } else { flags::MEMORY_DEVICE }),
        3 => out.out().set(address),
        4 if known.kind.is_some() => out.out().set(address),
        4 => Err(Error::invalid("memory of the device has no host address")),
        6 => out.out::<u32>().set(0),
        7 => out.out::<u64>().set(known.number),
        8 => out.out::<u32>().set((known.kind == Some(HostKind::Managed)) as u32),
        9 => out.out::<c_int>().set(0),
        10 | 15 | 21 => out.out::<u32>().set(0),
        11 => out.out().set(known.base),
        12 => out.out::<usize>().set(known.size as usize),
        13 => out.out::<u32>().set(1),
        14 => out.out::<u64>().set(0),
        17 => out.out().set(known.pool),
        _ => Err(Error::NotSupported(format!("pointer attribute {attribute}"))),
    }
}

entries! {
    /// What an address is.
    fn cuPointerGetAttribute(out: HostPtr, attribute: u32, address: DevicePtr) {
        let (driver, _) = current()?;
        give(&know(&driver, address)?, attribute, address, out.check()?)
    }

    /// What an address is, in several respects. What is unknown is null, not an error.
    fn cuPointerGetAttributes(count: u32, attributes: In<u32>, out: HostPtr, address: DevicePtr) {
        let (driver, _) = current()?;
        let known = know(&driver, address);
        for (i, attribute) in attributes.list(count as usize)?.into_iter().enumerate() {
            let place = out.pointer_at(i)?.check()?;
            match &known {
                Ok(known) => give(known, attribute, address, place)?,
                // The narrowest attribute is 32 bits wide.
                Err(_) => place.out::<u32>().set(0)?,
            }
        }
        Ok(())
    }
}
