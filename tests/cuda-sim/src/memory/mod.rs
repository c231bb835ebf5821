//! Device memory: allocations at virtual addresses that are never used twice.

mod allocation;
mod view;

use std::sync::{Arc, RwLock};

pub(crate) use allocation::each_word;
pub use allocation::{Allocation, Origin, POISON, Part};
pub use view::{Missing, View};

/// The lowest device address.
pub const BASE: u64 = 0x7_0000_0000;
/// Every allocation begins at a multiple of this.
pub const GRANULE: u64 = 512;
/// Where the window of shared memory begins in the generic address space; the others follow at the same distance.
pub const SHARED_WINDOW: u64 = 1 << 56;
/// The window of local memory.
pub const LOCAL_WINDOW: u64 = 2 << 56;
/// The window of kernel parameters.
pub const PARAM_WINDOW: u64 = 3 << 56;

/// Why a request for memory was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The device has not so much left.
    #[error("out of memory: {asked} bytes asked, {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes left.
        free: u64,
    },
    /// The size is zero, the alignment no power of two, or the range overlaps another.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// No allocation holds the range.
    #[error("{length} bytes at {address:#x}: {missing}")]
    Missing {
        /// First byte.
        address: u64,
        /// Bytes.
        length: u64,
        /// What is there instead.
        missing: Missing,
    },
    /// The address was freed before.
    #[error("double free of {0:#x}")]
    DoubleFree(u64),
    /// No allocation begins here.
    #[error("{0:#x} is not the start of an allocation")]
    NotAllocated(u64),
}

/// The memory of one device.
pub struct GlobalMemory {
    table: RwLock<Table>,
    capacity: u64,
    track_init: bool,
}

struct Table {
    /// Sorted by address. Freed allocations stay, without their bytes, so that a use after free is told from nonsense.
    list: Arc<Vec<Arc<Allocation>>>,
    next: u64,
    used: u64,
}

/// The contents of every live allocation at one time.
pub struct Snapshot {
    saved: Vec<(Arc<Allocation>, Vec<u8>, Vec<u64>)>,
}

impl GlobalMemory {
    /// A device memory of `capacity` bytes; `track_init` remembers which bytes were written.
    pub fn new(capacity: u64, track_init: bool) -> Self {
        let table = Table { list: Arc::new(Vec::new()), next: BASE, used: 0 };
        GlobalMemory { table: RwLock::new(table), capacity, track_init }
    }

    /// Allocates `size` bytes at a multiple of `align` (at least [`GRANULE`]) and gives the address.
    pub fn allocate(&self, size: u64, align: u64, origin: Origin) -> Result<u64, Error> {
        if size == 0 || !align.is_power_of_two() {
            return Err(Error::Invalid("size of zero or alignment that is no power of two"));
        }
        let mut table = self.lock();
        let free = self.capacity.saturating_sub(table.used);
        if size > free {
            return Err(Error::OutOfMemory { asked: size, free });
        }
        let align = align.max(GRANULE);
        let base = table.next.next_multiple_of(align);
        let Some(allocation) = Allocation::new(base, size, align, origin, self.track_init) else {
            return Err(Error::OutOfMemory { asked: size, free });
        };
        // One granule at least stays free after each allocation: running over its end is seen.
        table.next = (base + size).next_multiple_of(GRANULE) + GRANULE;
        table.used += size;
        // Host memory that the device sees has higher addresses and may be in the list already.
        let at = table.list.partition_point(|a| a.base < base);
        Arc::make_mut(&mut table.list).insert(at, Arc::new(allocation));
        Ok(base)
    }

    /// Lets the device see `size` bytes of the host at their host address (mapped and managed memory).
    ///
    /// # Safety
    /// The bytes stay valid until [`GlobalMemory::free`] of the address has returned and no launch runs.
    pub unsafe fn adopt(&self, host: *mut u8, size: u64, origin: Origin) -> Result<u64, Error> {
        let base = host as u64;
        if size == 0 || host.is_null() {
            return Err(Error::Invalid("size of zero"));
        }
        let mut table = self.lock();
        let list = &table.list;
        // The host's allocator does use addresses twice: what was freed makes room.
        let overlaps = |a: &Arc<Allocation>| a.base < base + size && base < a.base + a.size;
        if list.iter().any(|a| overlaps(a) && a.is_live()) {
            return Err(Error::Invalid("the range overlaps another"));
        }
        // SAFETY: the caller keeps the bytes valid.
        let allocation = Arc::new(unsafe { Allocation::adopt(host, size, origin) });
        let list = Arc::make_mut(&mut table.list);
        list.retain(|a| !overlaps(a));
        let at = list.partition_point(|a| a.base < base);
        list.insert(at, allocation);
        Ok(base)
    }

    /// Frees the allocation that begins at `address`.
    pub fn free(&self, address: u64) -> Result<(), Error> {
        let mut table = self.lock();
        let Ok(index) = table.list.binary_search_by_key(&address, |a| a.base) else {
            return Err(Error::NotAllocated(address));
        };
        let old = table.list[index].clone();
        if !old.is_live() {
            return Err(Error::DoubleFree(address));
        }
        table.used -= if old.is_adopted() { 0 } else { old.size };
        Arc::make_mut(&mut table.list)[index] = Arc::new(old.tombstone());
        Ok(())
    }

    /// Bytes free and in all.
    pub fn info(&self) -> (u64, u64) {
        let table = self.read_lock();
        (self.capacity.saturating_sub(table.used), self.capacity)
    }

    /// The allocations as they are now. A launch keeps one.
    pub fn view(&self) -> View {
        View::new(self.read_lock().list.clone())
    }

    /// The live allocation that holds an address.
    pub fn find(&self, address: u64) -> Option<Arc<Allocation>> {
        let table = self.read_lock();
        let index = table.list.partition_point(|a| a.base <= address).checked_sub(1)?;
        let found = &table.list[index];
        (found.is_live() && address - found.base < found.size).then(|| found.clone())
    }

    /// What is still allocated, by address.
    pub fn live(&self) -> Vec<Arc<Allocation>> {
        self.read_lock().list.iter().filter(|a| a.is_live()).cloned().collect()
    }

    /// Copies from the device.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Error> {
        let (allocation, offset) = self.range(address, out.len() as u64)?;
        allocation.read(offset, out);
        Ok(())
    }

    /// Copies to the device.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let (allocation, offset) = self.range(address, bytes.len() as u64)?;
        allocation.write(offset, bytes);
        Ok(())
    }

    /// Repeats `pattern` `count` times from `address` on.
    pub fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), Error> {
        let (allocation, offset) = self.range(address, pattern.len() as u64 * count)?;
        allocation.fill(offset, pattern, count);
        Ok(())
    }

    /// Copies within the device; the ranges may overlap. What was not initialised stays so.
    pub fn copy(&self, to: u64, from: u64, length: u64) -> Result<(), Error> {
        let (source, source_offset) = self.range(from, length)?;
        let (target, target_offset) = self.range(to, length)?;
        target.copy_from(target_offset, &source, source_offset, length);
        Ok(())
    }

    /// Saves the contents of all allocations.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { saved: self.live().into_iter().map(|a| (a.clone(), a.bytes(), a.init_words())).collect() }
    }

    /// Puts back what [`GlobalMemory::snapshot`] saved, as far as it is still allocated.
    pub fn restore(&self, snapshot: &Snapshot) {
        for (allocation, bytes, init) in &snapshot.saved {
            allocation.write(0, bytes);
            allocation.set_init_words(init);
        }
    }

    fn range(&self, address: u64, length: u64) -> Result<(Arc<Allocation>, u64), Error> {
        let view = self.view();
        match view.locate(address, length) {
            Ok(index) => {
                let allocation = view.get(index).clone();
                Ok((allocation.clone(), address - allocation.base))
            }
            Err(missing) => Err(Error::Missing { address, length, missing }),
        }
    }

    fn lock(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn read_lock(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Snapshot {
    /// Every allocation and what it held.
    pub fn contents(&self) -> impl Iterator<Item = (&Allocation, &[u8])> {
        self.saved.iter().map(|(a, bytes, _)| (&**a, bytes.as_slice()))
    }
}
