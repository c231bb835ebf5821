//! Probabilities times values for AVX2 and FMA.

use super::{Seen, Values, ValuesOfHead};
use crate::backend::PAGE;
use crate::backend::cpu::lanes;
use crate::backend::cpu::matmul::Avx2;
use std::arch::x86_64::*;

/// Dimensions of one register.
const WIDTH: usize = 8;

impl Values for Avx2 {
    fn weighted_values(self, p: &[f32], seen: &[Seen], values: &ValuesOfHead<'_>, scales: &[f32], out: &mut [f32]) {
        let (rows, head_dim, keys) = (scales.len(), values.head_dim, seen.len() * PAGE);
        assert!(p.len() == rows * keys && out.len() == rows * head_dim);
        let mut d = 0;
        while d < head_dim {
            let registers = ((head_dim - d) / WIDTH).min(2);
            let mut row = 0;
            while row < rows {
                let count = (rows - row).min(3);
                let p = &p[row * keys..][..count * keys];
                let scales = &scales[row..row + count];
                let out = &mut out[row * head_dim..][..count * head_dim];
                match (count, registers) {
                    // SAFETY: `Avx2` exists only where its instructions do; lengths are asserted above.
                    (1, 2) => unsafe { pass::<1, 2>(p, seen, values, scales, d, out) },
                    // SAFETY: as above, and below.
                    (2, 2) => unsafe { pass::<2, 2>(p, seen, values, scales, d, out) },
                    // SAFETY: as above.
                    (3, 2) => unsafe { pass::<3, 2>(p, seen, values, scales, d, out) },
                    // SAFETY: as above.
                    (1, 1) => unsafe { pass::<1, 1>(p, seen, values, scales, d, out) },
                    // SAFETY: as above.
                    (2, 1) => unsafe { pass::<2, 1>(p, seen, values, scales, d, out) },
                    // SAFETY: as above.
                    (3, 1) => unsafe { pass::<3, 1>(p, seen, values, scales, d, out) },
                    // Fewer than eight dimensions are left.
                    _ => super::portable::columns(p, seen, values, scales, d, out),
                }
                row += count;
            }
            d += (registers * WIDTH).max(lanes::LANES.min(head_dim - d) * usize::from(registers == 0));
        }
    }
}

/// `8 * D` dimensions from `start` on, for `R` rows.
///
/// # Safety
/// `p` is `[R][seen.len() * 16]`, `out` is `[R][head_dim]`, and `start + 8 * D` is at most `head_dim`.
#[target_feature(enable = "avx2,fma")]
unsafe fn pass<const R: usize, const D: usize>(
    p: &[f32],
    seen: &[Seen],
    values: &ValuesOfHead<'_>,
    scales: &[f32],
    start: usize,
    out: &mut [f32],
) {
    let mut even = [[_mm256_setzero_ps(); D]; R];
    let mut odd = even;
    let keys = seen.len() * PAGE;
    for (i, seen) in seen.iter().enumerate() {
        let page = values.page(seen).as_ptr();
        // SAFETY: the page has sixteen keys, `p` a value for each, by the caller's promise.
        unsafe {
            let p = p.as_ptr().add(i * PAGE);
            for j in (0..PAGE).step_by(2) {
                add_key(&mut even, p.add(j), keys, page.add(j * values.head_dim + start));
                add_key(&mut odd, p.add(j + 1), keys, page.add((j + 1) * values.head_dim + start));
            }
        }
    }
    for r in 0..R {
        for d in 0..D {
            let sum = _mm256_mul_ps(_mm256_add_ps(even[r][d], odd[r][d]), _mm256_set1_ps(scales[r]));
            // SAFETY: inside `out` by the caller's promise.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(r * values.head_dim + start + d * WIDTH), sum) };
        }
    }
}

/// `sums[r] += p[r * stride] * v`.
///
/// # Safety
/// The probabilities of `R` rows and `8 * D` values are readable.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_key<const R: usize, const D: usize>(
    sums: &mut [[__m256; D]; R],
    p: *const f32,
    stride: usize,
    v: *const u16,
) {
    let mut wide = [_mm256_setzero_ps(); D];
    for (d, wide) in wide.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let half = unsafe { _mm_loadu_si128(v.add(d * WIDTH).cast()) };
        *wide = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)));
    }
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let p = unsafe { _mm256_broadcast_ss(&*p.add(r * stride)) };
        for (sum, wide) in sums.iter_mut().zip(wide) {
            *sum = _mm256_fmadd_ps(p, wide, *sum);
        }
    }
}
