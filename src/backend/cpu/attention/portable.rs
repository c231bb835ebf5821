//! Probabilities times values in plain Rust.

use super::{Seen, Values, ValuesOfHead};
use crate::backend::PAGE;
use crate::backend::cpu::lanes::{self, LANES};
use crate::backend::cpu::matmul::Portable;

impl Values for Portable {
    fn weighted_values(self, p: &[f32], seen: &[Seen], values: &ValuesOfHead<'_>, scales: &[f32], out: &mut [f32]) {
        for d in (0..values.head_dim).step_by(LANES) {
            columns(p, seen, values, scales, d, out);
        }
    }
}

/// Up to sixteen dimensions from `start` on, for all rows.
pub(super) fn columns(
    p: &[f32],
    seen: &[Seen],
    values: &ValuesOfHead<'_>,
    scales: &[f32],
    start: usize,
    out: &mut [f32],
) {
    let end = values.head_dim.min(start + LANES);
    for ((p, scale), out) in p.chunks_exact(seen.len() * PAGE).zip(scales).zip(out.chunks_exact_mut(values.head_dim)) {
        let mut sums = [[0.0; LANES]; 2];
        for (p, seen) in p.chunks_exact(PAGE).zip(seen) {
            for (j, v) in values.page(seen).chunks_exact(values.head_dim).enumerate() {
                let sums = &mut sums[j % 2];
                if let Some(v) = v[start..].first_chunk::<LANES>() {
                    for lane in 0..LANES {
                        sums[lane] += p[j] * lanes::from_bf16(v[lane]);
                    }
                } else {
                    for (sum, &v) in sums.iter_mut().zip(&v[start..]) {
                        *sum += p[j] * lanes::from_bf16(v);
                    }
                }
            }
        }
        for (lane, out) in out[start..end].iter_mut().enumerate() {
            *out = (sums[0][lane] + sums[1][lane]) * scale;
        }
    }
}
