//! Memory pools. They count what is taken from them; the memory is the device's.

use std::ffi::c_int;

use super::abi::{HostPtr, In, Out, entries};
use super::context::device;
use super::errors::{Error, Result};
use super::handles::Handle;
use super::state::{Driver, lock};
use super::types::{PoolProps, flags};

/// A pool.
#[derive(Default)]
pub struct Pool {
    /// Bytes in use.
    pub used: u64,
    /// The most that were.
    pub used_high: u64,
    /// `CU_MEMPOOL_ATTR_REUSE_*` and `RELEASE_THRESHOLD`, kept and of no effect.
    pub settings: [u64; 4],
}

fn get(pool: &Pool, attribute: u32, value: HostPtr) -> Result<()> {
    match attribute {
        // The first three are ints, the others 64-bit numbers.
        1..=3 => value.out::<c_int>().set(pool.settings[attribute as usize - 1] as c_int),
        4 => value.out::<u64>().set(pool.settings[3]),
        5 | 7 => value.out::<u64>().set(pool.used),
        6 | 8 => value.out::<u64>().set(pool.used_high),
        _ => Err(Error::invalid(format!("pool attribute {attribute}"))),
    }
}

fn set(pool: &mut Pool, attribute: u32, value: HostPtr) -> Result<()> {
    match attribute {
        1..=3 => pool.settings[attribute as usize - 1] = value.input::<c_int>().get()? as u64,
        4 => pool.settings[3] = value.input::<u64>().get()?,
        6 | 8 if value.input::<u64>().get()? == 0 => pool.used_high = pool.used,
        _ => return Err(Error::invalid(format!("pool attribute {attribute} to be set"))),
    }
    Ok(())
}

impl Driver {
    fn owned_pool(&self, pool: Handle) -> Result<()> {
        self.pools.get(pool)?;
        if pool == self.default_pool {
            return Err(Error::invalid("the default pool cannot be destroyed"));
        }
        Ok(())
    }
}

entries! {
    /// The device's default pool.
    fn cuDeviceGetDefaultMemPool(out: Out<Handle>, number: c_int) {
        let driver = lock()?;
        device(number)?;
        out.set(driver.default_pool)
    }

    /// The pool that `cuMemAllocAsync` takes from.
    fn cuDeviceGetMemPool(out: Out<Handle>, number: c_int) {
        let driver = lock()?;
        device(number)?;
        out.set(driver.current_pool)
    }

    /// Chooses the pool that `cuMemAllocAsync` takes from.
    fn cuDeviceSetMemPool(number: c_int, pool: Handle) {
        let mut driver = lock()?;
        device(number)?;
        driver.pools.get(pool)?;
        driver.current_pool = pool;
        Ok(())
    }

    /// Makes a pool of the device's memory.
    fn cuMemPoolCreate(out: Out<Handle>, properties: In<PoolProps>) {
        let mut driver = lock()?;
        out.check()?;
        let properties = properties.get()?;
        if properties.allocation != flags::ALLOCATION_PINNED || properties.location.kind != flags::LOCATION_DEVICE {
            return Err(Error::invalid("a pool is of pinned memory of the device"));
        }
        device(properties.location.id)?;
        if properties.handles != 0 {
            return Err(Error::NotSupported("a pool shared with other processes".into()));
        }
        out.set(driver.pools.insert(Pool::default()))
    }

    /// Ends a pool. What was taken from it stays until it is freed.
    fn cuMemPoolDestroy(pool: Handle) {
        let mut driver = lock()?;
        driver.owned_pool(pool)?;
        driver.pools.remove(pool)?;
        if driver.current_pool == pool {
            driver.current_pool = driver.default_pool;
        }
        Ok(())
    }

    /// A pool's setting or count.
    fn cuMemPoolGetAttribute(pool: Handle, attribute: u32, value: HostPtr) {
        let driver = lock()?;
        get(driver.pools.get(pool)?, attribute, value.check()?)
    }

    /// Sets a pool's setting, or its high-water mark back.
    fn cuMemPoolSetAttribute(pool: Handle, attribute: u32, value: HostPtr) {
        let mut driver = lock()?;
        set(driver.pools.get_mut(pool)?, attribute, value.check()?)
    }

    /// Gives unused memory back: nothing is held.
    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) {
        lock()?.pools.get(pool).map(|_| ())
    }

    /// Says who may use a pool: the device itself always may.
    fn cuMemPoolSetAccess(pool: Handle, access: HostPtr, count: usize) {
        lock()?.pools.get(pool)?;
        // Each description is a location and flags, of which only the device itself can be meant.
        for i in 0..count {
            let number: c_int = HostPtr(access.check()?.0 + i * 12 + 4).input().get()?;
            device(number)?;
        }
        Ok(())
    }

    /// Who may use a pool: the device reads and writes.
    fn cuMemPoolGetAccess(access: Out<u32>, pool: Handle, location: In<super::types::Location>) {
        lock()?.pools.get(pool)?;
        device(location.get()?.id)?;
        access.set(3)
    }
}
