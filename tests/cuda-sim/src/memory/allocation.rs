//! One allocation: its bytes, and which of them were ever written.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Where an allocation comes from; it names it in reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `cuMemAlloc` and its like.
    Alloc,
    /// A stream-ordered pool.
    Pool,
    /// Page-locked host memory that the device sees.
    Host,
    /// Managed memory.
    Managed,
    /// A variable of a module.
    Variable(String),
}

/// Bytes at a device address.
pub struct Allocation {
    /// The first address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Where it comes from.
    pub origin: Origin,
    /// What the program calls it.
    name: Mutex<Option<String>>,
    host: Option<NonNull<u8>>,
    owned: Option<Layout>,
    /// A bit per byte; empty when it is not tracked.
    init: Box<[AtomicU64]>,
}

/// What a range of an allocation held, and which of its bytes were initialised.
pub struct Part {
    offset: u64,
    bytes: Vec<u8>,
    init: Vec<u64>,
}

// SAFETY: the bytes are only touched through raw pointers, as device memory is: the simulated program's own races have
// whatever outcome the host's loads and stores have, and every bit pattern is a valid byte.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

/// Above this the bytes are left as the system gives them (zero), so that a large pool costs no memory until it is used.
const POISON_LIMIT: u64 = 64 << 20;
/// Fresh memory: NaN in every float type.
pub const POISON: u8 = 0xff;

impl Allocation {
    pub(super) fn new(base: u64, size: u64, align: u64, origin: Origin, track_init: bool) -> Option<Allocation> {
        let poison = size <= POISON_LIMIT;
        // With a larger alignment the system allocator would write all the zeros itself.
        let align = if poison { align.min(4096) as usize } else { 16 };
        let layout = Layout::from_size_align(usize::try_from(size).ok()?, align).ok()?;
        // SAFETY: the size is not zero.
        let host = NonNull::new(unsafe { if poison { alloc(layout) } else { alloc_zeroed(layout) } })?;
        if poison {
            // SAFETY: just allocated with this size.
            unsafe { host.as_ptr().write_bytes(POISON, size as usize) };
        }
        let words = if track_init { size.div_ceil(64) as usize } else { 0 };
        let init = (0..words).map(|_| AtomicU64::new(0)).collect();
        Some(Allocation { base, size, origin, name: Mutex::default(), host: Some(host), owned: Some(layout), init })
    }

    /// # Safety
    /// `host` is valid for `size` bytes as long as the allocation is live.
    pub(super) unsafe fn adopt(host: *mut u8, size: u64, origin: Origin) -> Allocation {
        let (base, name, init) = (host as u64, Mutex::default(), Box::default());
        Allocation { base, size, origin, name, host: NonNull::new(host), owned: None, init }
    }

    /// The same range after it was freed.
    pub(super) fn tombstone(&self) -> Allocation {
        let (origin, name) = (self.origin.clone(), Mutex::new(self.given_name()));
        Allocation { base: self.base, size: self.size, origin, name, host: None, owned: None, init: Box::default() }
    }

    /// Whether it has not been freed.
    #[inline(always)]
    pub fn is_live(&self) -> bool {
        self.host.is_some()
    }

    pub(super) fn is_adopted(&self) -> bool {
        self.owned.is_none()
    }

    /// Its bytes on the host; null once it was freed.
    #[inline(always)]
    pub fn host(&self) -> *mut u8 {
        self.host.map_or(std::ptr::null_mut(), NonNull::as_ptr)
    }

    /// Names it, for reports and counters.
    pub fn set_name(&self, name: String) {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
    }

    fn given_name(&self) -> Option<String> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The name that the program gave it, or that of its variable.
    pub fn label(&self) -> Option<String> {
        match &self.origin {
            Origin::Variable(name) => Some(name.clone()),
            _ => self.given_name(),
        }
    }

    /// How reports name it.
    pub fn describe(&self) -> String {
        let kind = match &self.origin {
            Origin::Alloc => "allocation",
            Origin::Pool => "pool allocation",
            Origin::Host => "host allocation",
            Origin::Managed => "managed allocation",
            Origin::Variable(name) => return format!("variable {name} of {} bytes at {:#x}", self.size, self.base),
        };
        let name = self.given_name().map(|name| format!(" `{name}`")).unwrap_or_default();
        format!("{kind}{name} of {} bytes at {:#x}", self.size, self.base)
    }

    /// Whether initialised bytes are tracked.
    #[inline(always)]
    pub fn tracks_init(&self) -> bool {
        !self.init.is_empty()
    }

    /// Marks a range as initialised.
    pub fn mark_init(&self, offset: u64, length: u64) {
        if self.tracks_init() {
            each_word(offset, length, |word, bits| {
                if self.init[word].load(Ordering::Relaxed) & bits != bits {
                    self.init[word].fetch_or(bits, Ordering::Relaxed);
                }
            });
        }
    }

    /// Marks a range as never written.
    pub fn forget_init(&self, offset: u64, length: u64) {
        if self.tracks_init() {
            each_word(offset, length, |word, bits| _ = self.init[word].fetch_and(!bits, Ordering::Relaxed));
        }
    }

    /// The first byte of a range that nothing has written, as an offset into the allocation.
    pub fn first_uninitialised(&self, offset: u64, length: u64) -> Option<u64> {
        let mut first = None;
        if self.tracks_init() {
            each_word(offset, length, |word, bits| {
                let missing = bits & !self.init[word].load(Ordering::Relaxed);
                if first.is_none() && missing != 0 {
                    first = Some(word as u64 * 64 + missing.trailing_zeros() as u64);
                }
            });
        }
        first
    }

    /// Copies out. The range must be inside.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let from = self.at(offset, out.len() as u64);
        // SAFETY: `at` checked the range; `out` is the host's own memory.
        unsafe { std::ptr::copy(from, out.as_mut_ptr(), out.len()) };
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len() as u64);
        // SAFETY: `at` checked the range.
        unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
        self.mark_init(offset, bytes.len() as u64);
    }

    pub(super) fn fill(&self, offset: u64, pattern: &[u8], count: u64) {
        let length = pattern.len() as u64 * count;
        let to = self.at(offset, length);
        if let &[byte] = pattern {
            // SAFETY: `at` checked the range.
            unsafe { to.write_bytes(byte, length as usize) };
        } else {
            for i in 0..count as usize {
                // SAFETY: element `i` is inside the range that `at` checked.
                unsafe { std::ptr::copy(pattern.as_ptr(), to.add(i * pattern.len()), pattern.len()) };
            }
        }
        self.mark_init(offset, length);
    }

    pub(super) fn copy_from(&self, offset: u64, source: &Allocation, source_offset: u64, length: u64) {
        let (from, to) = (source.at(source_offset, length), self.at(offset, length));
        // SAFETY: `at` checked both ranges; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from, to, length as usize) };
        if source.first_uninitialised(source_offset, length).is_none() {
            return self.mark_init(offset, length);
        }
        for i in 0..length {
            if source.first_uninitialised(source_offset + i, 1).is_none() {
                self.mark_init(offset + i, 1);
            }
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.read(0, &mut bytes);
        bytes
    }

    pub(super) fn init_words(&self) -> Vec<u64> {
        self.init.iter().map(|w| w.load(Ordering::Relaxed)).collect()
    }

    pub(super) fn set_init_words(&self, words: &[u64]) {
        for (to, from) in self.init.iter().zip(words) {
            to.store(*from, Ordering::Relaxed);
        }
    }

    /// Saves a range, which must be inside and begin at a multiple of 64 bytes.
    pub fn save(&self, offset: u64, length: u64) -> Part {
        let mut bytes = vec![0; length as usize];
        self.read(offset, &mut bytes);
        let words = (offset / 64) as usize..(offset + length).div_ceil(64) as usize;
        let init = self.init.get(words).unwrap_or_default().iter().map(|w| w.load(Ordering::Relaxed)).collect();
        Part { offset, bytes, init }
    }

    /// Puts back what [`Allocation::save`] has saved of this allocation.
    pub fn put_back(&self, part: &Part) {
        let to = self.at(part.offset, part.bytes.len() as u64);
        // SAFETY: `at` checked the range.
        unsafe { std::ptr::copy(part.bytes.as_ptr(), to, part.bytes.len()) };
        for (to, from) in self.init.iter().skip((part.offset / 64) as usize).zip(&part.init) {
            to.store(*from, Ordering::Relaxed);
        }
    }

    /// The host address of a range, which must be inside a live allocation: anything else is a bug of the simulator.
    fn at(&self, offset: u64, length: u64) -> *mut u8 {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.size);
        assert!(inside && self.is_live(), "range outside the allocation");
        // SAFETY: the offset is inside the allocation's bytes.
        unsafe { self.host().add(offset as usize) }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let (Some(host), Some(layout)) = (self.host, self.owned) {
            // SAFETY: allocated with this layout, and freed only here.
            unsafe { dealloc(host.as_ptr(), layout) };
        }
    }
}

/// Calls `f` with each word of a bitmap that a range touches, and the bits of the range in it.
#[inline(always)]
pub(crate) fn each_word(offset: u64, length: u64, mut f: impl FnMut(usize, u64)) {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let count = (64 - at % 64).min(end - at);
        let bits = (u64::MAX >> (64 - count)) << (at % 64);
        f((at / 64) as usize, bits);
        at += count;
    }
}

#[cfg(test)]
mod tests {
    use super::each_word;
    use crate::memory::{Error, GRANULE, GlobalMemory, Missing, Origin};

    fn words(offset: u64, length: u64) -> Vec<(usize, u64)> {
        let mut out = Vec::new();
        each_word(offset, length, |w, b| out.push((w, b)));
        out
    }

    #[test]
    fn ranges_split_at_words() {
        assert_eq!(words(0, 64), [(0, u64::MAX)]);
        assert_eq!(words(63, 2), [(0, 1 << 63), (1, 1)]);
        assert_eq!(words(4, 4), [(0, 0xf0)]);
        assert_eq!(words(9, 0), []);
        assert_eq!(words(60, 72), [(0, 0xf << 60), (1, u64::MAX), (2, 0xf)]);
    }

    #[test]
    fn addresses_are_never_used_twice_and_freed_ones_are_known() {
        let memory = GlobalMemory::new(1 << 20, false);
        let a = memory.allocate(100, 1, Origin::Alloc).unwrap();
        memory.free(a).unwrap();
        let b = memory.allocate(100, 1, Origin::Alloc).unwrap();
        assert!(b >= a + 100 + GRANULE / 2 && b.is_multiple_of(GRANULE));
        assert_eq!(memory.free(a), Err(Error::DoubleFree(a)));
        assert_eq!(memory.free(b + 1), Err(Error::NotAllocated(b + 1)));
        let error = memory.write(a, &[1]).unwrap_err();
        assert!(matches!(error, Error::Missing { missing: Missing::Freed(_), .. }), "{error}");
        memory.write(b + 99, &[1]).unwrap();
        let error = memory.write(b + 99, &[1, 2]).unwrap_err();
        assert!(matches!(error, Error::Missing { missing: Missing::Nothing(Some((_, 1))), .. }), "{error}");
        assert_eq!(memory.info(), ((1 << 20) - 100, 1 << 20));
        assert!(matches!(memory.allocate(1 << 20, 1, Origin::Alloc), Err(Error::OutOfMemory { .. })));
    }

    #[test]
    fn initialised_bytes_are_tracked_through_copies_and_snapshots() {
        let memory = GlobalMemory::new(1 << 20, true);
        let a = memory.allocate(256, 1, Origin::Alloc).unwrap();
        let b = memory.allocate(256, 1, Origin::Alloc).unwrap();
        memory.fill(a + 10, &[1, 2], 5).unwrap();
        let saved = memory.snapshot();
        memory.copy(b + 50, a + 5, 20).unwrap();
        let view = memory.view();
        let target = view.get(view.locate(b, 1).unwrap()).clone();
        assert_eq!(target.first_uninitialised(55, 10), None);
        assert_eq!(target.first_uninitialised(54, 2), Some(54));
        assert_eq!(target.first_uninitialised(55, 11), Some(65));
        memory.restore(&saved);
        assert_eq!(target.first_uninitialised(55, 10), Some(55));
        let mut bytes = [0; 4];
        memory.read(a + 9, &mut bytes).unwrap();
        assert_eq!(bytes, [0xff, 1, 2, 1]);
    }
}
