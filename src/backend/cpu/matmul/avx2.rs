//! The micro kernel for AVX2 and FMA: bf16 are widened by shift and mask, two fused multiply-adds per pair.

// Indices name registers here.
#![allow(clippy::needless_range_loop)]

use super::{Ahead, Kernel, MAX_BLOCKS};
use crate::backend::cpu::isa::Level;
use crate::backend::cpu::weight::BLOCK;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2(Level);

impl Avx2 {
    pub(crate) fn new(level: Level) -> Self {
        Self(level)
    }
}

impl Kernel for Avx2 {
    type Pair = [f32; 2];

    const MACS_PER_NANOSECOND: f64 = 50.0;
    const ROWS: usize = 8;

    fn level(self) -> Level {
        self.0
    }

    fn round(self, source: &[f32], pairs: &mut [[f32; 2]]) {
        super::round_wide(self.0, source, pairs.as_flattened_mut());
    }

    fn blocks(rows: usize) -> usize {
        // Sixteen registers: eight sums (a block of one row takes two), widened weights and pairs.
        match rows {
            1 => 4,
            2 => 2,
            _ => 1,
        }
    }

    unsafe fn tile(
        self,
        rows: usize,
        blocks: usize,
        x: *const [f32; 2],
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
                    // SAFETY: `Avx2` exists only where its instructions do; the rest is the caller's promise.
                    $($(($r, $b) => unsafe { tile::<$r, $b>(x, stride, w, pairs, acc, first, ahead) },)*)*
                    // Too many registers: the first rows, then the others.
                    _ => {
                        let head = if blocks == 1 && rows > 5 { 4 } else { rows.min(4) / 2 + rows % 2 };
                        // SAFETY: both parts stay inside the tile.
                        unsafe {
                            self.tile(head, blocks, x, stride, w, pairs, acc, first, ahead);
                            let (x, acc) = (x.add(head * stride), acc.add(head * blocks * BLOCK));
                            self.tile(rows - head, blocks, x, stride, w, pairs, acc, first, Ahead::NONE);
                        }
                    }
                }
            };
        }
        dispatch!(1: 1 2 3 4, 2: 1 2, 3: 1, 4: 1)
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const B: usize>(
    x: *const [f32; 2],
    stride: usize,
    w: &[*const u32; MAX_BLOCKS],
    pairs: usize,
    acc: *mut f32,
    first: bool,
    ahead: Ahead,
) {
    // One stream is left to the hardware.
    let Ahead::Next { start, shift } = (if let Ahead::Own = ahead { Ahead::NONE } else { ahead }) else { return };
    let mut sums = [[[_mm256_setzero_ps(); 2]; B]; R];
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    // SAFETY: the caller of `Kernel::tile` promised all that is read and written here.
    unsafe {
        if !first {
            for r in 0..R {
                for b in 0..B {
                    for h in 0..2 {
                        sums[r][b][h] = _mm256_loadu_ps(acc.add((r * B + b) * BLOCK + h * 8));
                    }
                }
            }
        }
        for p in 0..pairs {
            _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add((p >> shift) * BLOCK).cast());
            for b in 0..B {
                for h in 0..2 {
                    let pair = _mm256_loadu_si256(w[b].add(p * BLOCK + h * 8).cast());
                    let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
                    let odd = _mm256_castsi256_ps(_mm256_and_si256(pair, high));
                    for r in 0..R {
                        let x = x.add(r * stride + p).cast::<f32>();
                        let sum = &mut sums[r][b][h];
                        *sum = _mm256_fmadd_ps(_mm256_broadcast_ss(&*x), even, *sum);
                        *sum = _mm256_fmadd_ps(_mm256_broadcast_ss(&*x.add(1)), odd, *sum);
                    }
                }
            }
        }
        for r in 0..R {
            for b in 0..B {
                for h in 0..2 {
                    _mm256_storeu_ps(acc.add((r * B + b) * BLOCK + h * 8), sums[r][b][h]);
                }
            }
        }
    }
}
