//! Aligned memory: huge-page buffers for weights, cache-line vectors for activations, per-thread scratch.

use crate::backend::Error;
use bytemuck::{Pod, Zeroable};
use std::cell::RefCell;
use std::marker::PhantomData;

/// One cache line, which is one 512-bit vector.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

/// `len` zeroed values on a cache-line boundary.
pub(super) struct Aligned<T> {
    storage: Storage,
    len: usize,
    of: PhantomData<T>,
}

enum Storage {
    Lines(Vec<Line>),
    Mapped(memmap2::MmapMut),
}

/// From here on a buffer gets its own mapping, so that it can be backed by huge pages: several streams through
/// 4 KiB pages spend a good part of their time in the TLB.
const MAPPED_BYTES: usize = 4 << 20;

/// Bytes that can be allocated without pushing others out, where the system says so.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

impl<T: Pod> Aligned<T> {
    /// `what` is for the error.
    pub(super) fn zeroed(len: usize, what: &str) -> Result<Self, Error> {
        let refused = |needed: u64| Error::OutOfMemory {
            what: what.into(),
            needed,
            free: available().unwrap_or(0),
            device: "cpu".into(),
        };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| refused(u64::MAX))?;
        let storage = match bytes {
            MAPPED_BYTES.. => {
                // Overcommitted memory is refused here, not killed later.
                if available().is_some_and(|free| bytes as u64 > free) {
                    return Err(refused(bytes as u64));
                }
                let map = memmap2::MmapMut::map_anon(bytes).map_err(|_| refused(bytes as u64))?;
                // Only a hint: without huge pages the buffer is slower, not wrong.
                #[cfg(target_os = "linux")]
                let _ = map.advise(memmap2::Advice::HugePage);
                Storage::Mapped(map)
            }
            _ => Storage::Lines(vec![Line::zeroed(); bytes.div_ceil(size_of::<Line>())]),
        };
        Ok(Self { storage, len, of: PhantomData })
    }

    pub(super) fn as_slice(&self) -> &[T] {
        let bytes = match &self.storage {
            Storage::Lines(lines) => bytemuck::cast_slice(lines),
            Storage::Mapped(map) => &map[..],
        };
        &bytemuck::cast_slice(&bytes[..self.len * size_of::<T>()])[..self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        let bytes = match &mut self.storage {
            Storage::Lines(lines) => bytemuck::cast_slice_mut(lines),
            Storage::Mapped(map) => &mut map[..],
        };
        &mut bytemuck::cast_slice_mut(&mut bytes[..self.len * size_of::<T>()])[..self.len]
    }
}

thread_local! {
    /// Buffers not in use on this thread. A stack rather than one buffer: a worker that waits inside an op may
    /// steal a task of another op.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A reusable buffer of this thread; it goes back when dropped.
pub(super) struct Scratch(Vec<Line>);

impl Scratch {
    pub(super) fn take() -> Self {
        Self(FREE.with_borrow_mut(|free| free.pop()).unwrap_or_default())
    }

    /// `len` values on a cache-line boundary, holding whatever the last user left.
    pub(super) fn slice<T: Pod>(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.0.len() < lines {
            self.0.resize(lines, Line::zeroed());
        }
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.0[..lines]);
        bytemuck::cast_slice_mut(&mut bytes[..len * size_of::<T>()])
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.0);
        // The thread may be ending; then the buffer is simply freed.
        let _ = FREE.try_with(|free| free.borrow_mut().push(lines));
    }
}

/// A row-major matrix whose disjoint parts several threads write at once.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T> {
    start: *mut T,
    rows: usize,
    cols: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shared` only hands out parts through `part`, whose caller promises that no two overlap.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(data: &'a mut [T], cols: usize) -> Self {
        Self { start: data.as_mut_ptr(), rows: data.len().checked_div(cols).unwrap_or(0), cols, of: PhantomData }
    }

    /// `len` values of `row` from column `col` on.
    ///
    /// # Safety
    /// No other part that is alive may overlap this one.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, row: usize, col: usize, len: usize) -> &'a mut [T] {
        assert!(row < self.rows && col + len <= self.cols, "part outside of the matrix");
        // SAFETY: inside the borrowed matrix by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.cols + col), len) }
    }

    /// `count` whole rows from `row` on.
    ///
    /// # Safety
    /// As for [`Self::part`].
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn rows(&self, row: usize, count: usize) -> &'a mut [T] {
        assert!(row + count <= self.rows, "rows outside of the matrix");
        // SAFETY: as in `part`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.cols), count * self.cols) }
    }
}
