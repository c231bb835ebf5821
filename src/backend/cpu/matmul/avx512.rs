//! The micro kernel for AVX-512 BF16: one `vdpbf16ps` multiplies a pair of k with sixteen outputs.

// Indices name registers here.
#![allow(clippy::needless_range_loop)]

use super::{Ahead, Kernel, MAX_BLOCKS};
use crate::backend::cpu::isa::Level;
use crate::backend::cpu::weight::BLOCK;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(Level);

impl Avx512 {
    pub(crate) fn new(level: Level) -> Self {
        Self(level)
    }
}

impl Kernel for Avx512 {
    /// Two bf16, the even k in the low half, as in a packed weight.
    type Pair = u32;

    const MACS_PER_NANOSECOND: f64 = 200.0;
    const ROWS: usize = 6;

    fn level(self) -> Level {
        self.0
    }

    fn round(self, source: &[f32], pairs: &mut [u32]) {
        super::round_narrow(self.0, source, bytemuck::cast_slice_mut(pairs));
    }

    fn blocks(rows: usize) -> usize {
        // Thirty-two registers hold the sums, one line of each block and one pair.
        if rows <= 6 { 4 } else { 3 }
    }

    unsafe fn tile(
        self,
        rows: usize,
        blocks: usize,
        x: *const u32,
        stride: usize,
        w: &[*const u32; MAX_BLOCKS],
        pairs: usize,
        acc: *mut f32,
        first: bool,
        ahead: Ahead,
    ) {
        macro_rules! dispatch {
            ($($r:literal: $($b:literal)*),*) => {
                match (rows, blocks) {
                    // SAFETY: `Avx512` exists only where its instructions do; the rest is the caller's promise.
                    $($(($r, $b) => unsafe { tile::<$r, $b>(x, stride, w, pairs, acc, first, ahead) },)*)*
                    _ => unreachable!("no tile of {rows} x {blocks}"),
                }
            };
        }
        dispatch!(1: 1 2 3 4, 2: 1 2 3 4, 3: 1 2 3 4, 4: 1 2 3 4, 5: 1 2 3 4, 6: 1 2 3 4, 7: 1 2 3, 8: 1 2 3)
    }
}

/// Lines that a single tile fetches ahead in each of its streams.
const DISTANCE: usize = 32;

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const R: usize, const B: usize>(
    x: *const u32,
    stride: usize,
    w: &[*const u32; MAX_BLOCKS],
    pairs: usize,
    acc: *mut f32,
    first: bool,
    ahead: Ahead,
) {
    let mut sums = [[_mm512_setzero_ps(); B]; R];
    // SAFETY: the caller of `Kernel::tile` promised all that is read and written here; prefetching touches nothing.
    unsafe {
        if !first {
            for r in 0..R {
                for b in 0..B {
                    sums[r][b] = _mm512_loadu_ps(acc.add((r * B + b) * BLOCK));
                }
            }
        }
        for p in 0..pairs {
            match ahead {
                Ahead::Own => {
                    for b in 0..B {
                        _mm_prefetch::<_MM_HINT_T0>(w[b].wrapping_add((p + DISTANCE) * BLOCK).cast());
                    }
                }
                Ahead::Next { start, shift } => {
                    _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add((p >> shift) * BLOCK).cast());
                }
            }
            let mut lines = [_mm512_setzero_si512(); B];
            for b in 0..B {
                lines[b] = _mm512_loadu_si512(w[b].add(p * BLOCK).cast());
            }
            for r in 0..R {
                let pair = bf16s(_mm512_set1_epi32(*x.add(r * stride + p) as i32));
                for b in 0..B {
                    sums[r][b] = _mm512_dpbf16_ps(sums[r][b], bf16s(lines[b]), pair);
                }
            }
        }
        for r in 0..R {
            for b in 0..B {
                _mm512_storeu_ps(acc.add((r * B + b) * BLOCK), sums[r][b]);
            }
        }
    }
}

fn bf16s(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(bits) }
}
