//! The micro kernel in plain Rust.
//!
//! A product of two bf16 is exact in f32, so multiply and add here round like the fused instruction of
//! [`avx2`](super::avx2): the two give the same bits.

use super::{Kernel, MAX_BLOCKS, MAX_ROWS};
use crate::backend::cpu::isa::Level;
use crate::backend::cpu::lanes;
use crate::backend::cpu::weight::BLOCK;

#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Portable(Level);

impl Portable {
    pub(in crate::backend::cpu) fn new(level: Level) -> Self {
        Self(level)
    }
}

impl Kernel for Portable {
    type Pair = [f32; 2];

    fn level(self) -> Level {
        self.0
    }

    fn round(self, source: &[f32], pairs: &mut [[f32; 2]]) {
        super::round_wide(self.0, source, pairs.as_flattened_mut());
    }

    fn blocks(_rows: usize) -> usize {
        2
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
        _ahead: *const u32,
    ) {
        debug_assert!(rows <= MAX_ROWS && blocks <= MAX_BLOCKS);
        for r in 0..rows {
            for (b, &w) in w.iter().enumerate().take(blocks) {
                // SAFETY: the caller's promise, for each of the three.
                let (x, w, acc) = unsafe {
                    (
                        std::slice::from_raw_parts(x.add(r * stride), pairs),
                        std::slice::from_raw_parts(w.cast::<[u32; BLOCK]>(), pairs),
                        &mut *acc.add((r * blocks + b) * BLOCK).cast::<[f32; BLOCK]>(),
                    )
                };
                let mut sum = if first { [0.0; BLOCK] } else { *acc };
                for (x, w) in x.iter().zip(w) {
                    for lane in 0..BLOCK {
                        sum[lane] += x[0] * lanes::from_bf16(w[lane] as u16);
                    }
                    for lane in 0..BLOCK {
                        sum[lane] += x[1] * lanes::from_bf16((w[lane] >> 16) as u16);
                    }
                }
                *acc = sum;
            }
        }
    }
}
