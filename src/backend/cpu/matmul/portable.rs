//! The micro kernel in plain Rust.
//!
//! A product of two bf16 is exact in f32, so multiply and add here round like the fused instruction of
//! [`avx2`](super::avx2): the two give the same bits.

use super::{Ahead, Kernel, MAX_BLOCKS, MAX_ROWS};
use crate::backend::cpu::isa::Level;
use crate::backend::cpu::lanes;
use crate::backend::cpu::weight::BLOCK;

#[derive(Clone, Copy)]
pub(crate) struct Portable(Level);

impl Portable {
    pub(crate) fn new(level: Level) -> Self {
        Self(level)
    }
}

impl Kernel for Portable {
    type Pair = [f32; 2];

    const MACS_PER_NANOSECOND: f64 = 8.0;
    const ROWS: usize = 8;

    fn level(self) -> Level {
        self.0
    }

    fn round(self, source: &[f32], pairs: &mut [[f32; 2]]) {
        super::round_wide(self.0, source, pairs.as_flattened_mut());
    }

    fn blocks(_rows: usize) -> usize {
        1
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
        _ahead: Ahead,
    ) {
        debug_assert!(rows <= MAX_ROWS && blocks <= MAX_BLOCKS);
        for (b, &w) in w.iter().enumerate().take(blocks) {
            // SAFETY: the caller's promise.
            let w = unsafe { std::slice::from_raw_parts(w.cast::<[u32; BLOCK]>(), pairs) };
            let row = |r: usize| {
                // SAFETY: the caller's promise; a row is asked for once.
                unsafe {
                    let x = std::slice::from_raw_parts(x.add(r * stride), pairs);
                    (x, &mut *acc.add((r * blocks + b) * BLOCK).cast::<[f32; BLOCK]>())
                }
            };
            let mut r = 0;
            while r < rows {
                if r + 1 < rows {
                    multiply([row(r), row(r + 1)], w, first);
                    r += 2;
                } else {
                    multiply([row(r)], w, first);
                    r += 1;
                }
            }
        }
    }
}

/// A few rows with one block: the weights are widened once for all of them.
fn multiply<const R: usize>(rows: [(&[[f32; 2]], &mut [f32; BLOCK]); R], w: &[[u32; BLOCK]], first: bool) {
    let mut sums = rows.each_ref().map(|(_, acc)| if first { [0.0; BLOCK] } else { **acc });
    for (p, w) in w.iter().enumerate() {
        let (mut even, mut odd) = ([0.0; BLOCK], [0.0; BLOCK]);
        for lane in 0..BLOCK {
            even[lane] = lanes::from_bf16(w[lane] as u16);
            odd[lane] = lanes::from_bf16((w[lane] >> 16) as u16);
        }
        for (sums, (x, _)) in sums.iter_mut().zip(&rows) {
            for lane in 0..BLOCK {
                sums[lane] += x[p][0] * even[lane];
            }
            for lane in 0..BLOCK {
                sums[lane] += x[p][1] * odd[lane];
            }
        }
    }
    for ((_, acc), sums) in rows.into_iter().zip(sums) {
        *acc = sums;
    }
}
