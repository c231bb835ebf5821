//! What an instruction set has to offer to the driver.

use crate::backend::cpu::isa::Level;
use bytemuck::Pod;

/// Most blocks a tile may have.
pub(crate) const MAX_BLOCKS: usize = 4;

/// Most rows a tile may have.
pub(crate) const MAX_ROWS: usize = 8;

/// The part of a matmul that is written per instruction set.
pub(crate) trait Kernel: Copy + Send + Sync + 'static {
    /// Two consecutive k of an activation row, rounded to bf16.
    type Pair: Pod + Send + Sync;

    /// Rough speed of one thread, to tell what is worth a second one.
    const MACS_PER_NANOSECOND: f64;

    /// The proof that the instructions are there.
    fn level(self) -> Level;

    /// Rows of a tile when there are many.
    const ROWS: usize;

    /// Rounds a row to pairs; what `source` does not fill is zero.
    fn round(self, source: &[f32], pairs: &mut [Self::Pair]);

    /// Blocks that a tile of so many rows should have: accumulators fill the registers. Two are always taken.
    fn blocks(rows: usize) -> usize;

    /// `acc[r][b][lane] (+)= sum over pairs of x[r] . w[b][lane]`, starting from zero if `first`.
    /// `acc` is `[rows][blocks][16]`. `ahead` says what will be read next.
    ///
    /// # Safety
    /// For `r < rows <= MAX_ROWS` and `b < blocks <= max(2, Self::blocks(rows))`: `pairs` pairs are readable at
    /// `x + r * stride`, `16 * pairs` at `w[b]`, and `16 * rows * blocks` floats are writable at `acc`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn tile(
        self,
        rows: usize,
        blocks: usize,
        x: *const Self::Pair,
        stride: usize,
        w: &[*const u32; MAX_BLOCKS],
        pairs: usize,
        acc: *mut f32,
        first: bool,
        ahead: Ahead,
    );
}

/// What a tile fetches into the caches while it computes; portable kernels cannot.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[derive(Clone, Copy)]
pub(crate) enum Ahead {
    /// Weights still to come in the same streams: one tile reads them once, from memory.
    Own,
    /// Every `2^shift` pairs one more line from `start` on: several tiles share the weights, and each fetches a part
    /// of those that come after.
    Next { start: *const u32, shift: u32 },
}

impl Ahead {
    /// Nothing.
    pub(crate) const NONE: Ahead = Ahead::Next { start: std::ptr::null(), shift: 31 };
}
