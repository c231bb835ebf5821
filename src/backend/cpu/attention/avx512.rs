//! Probabilities times values for AVX-512.

use super::{Seen, Values, ValuesOfHead};
use crate::backend::PAGE;
use crate::backend::cpu::lanes::LANES;
use crate::backend::cpu::matmul::Avx512;
use std::arch::x86_64::*;

impl Values for Avx512 {
    fn weighted_values(self, p: &[f32], seen: &[Seen], values: &ValuesOfHead<'_>, scales: &[f32], out: &mut [f32]) {
        let (rows, head_dim) = (scales.len(), values.head_dim);
        assert!(p.len() == rows * seen.len() * PAGE && out.len() == rows * head_dim);
        let groups = head_dim.div_ceil(LANES);
        let mut d = 0;
        while d < groups {
            // Two sums (even and odd keys) per row and sixteen dimensions, out of 32 registers.
            let most = if rows <= 2 { 4 } else { 2 };
            let count = most.min(groups - d);
            let last = head_dim - (d + count - 1) * LANES;
            let mask = if last < LANES { (1 << last) - 1 } else { u16::MAX };
            macro_rules! dispatch {
                ($($r:literal: $($d:literal)*),*) => {
                    match (rows, count) {
                        // SAFETY: `Avx512` exists only where its instructions do; lengths are asserted above.
                        $($(($r, $d) => unsafe { pass::<$r, $d>(p, seen, values, scales, d * LANES, mask, out) },)*)*
                        _ => unreachable!("no pass of {rows} x {count}"),
                    }
                };
            }
            dispatch!(1: 1 2 3 4, 2: 1 2 3 4, 3: 1 2, 4: 1 2, 5: 1 2, 6: 1 2);
            d += count;
        }
    }
}

/// `D` groups of sixteen dimensions from `start` on, for `R` rows; `mask` names the lanes of the last group.
///
/// # Safety
/// `p` is `[R][seen.len() * 16]`, `out` is `[R][head_dim]`, and `start + 16 * (D - 1)` plus the lanes of `mask`
/// is at most `head_dim`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pass<const R: usize, const D: usize>(
    p: &[f32],
    seen: &[Seen],
    values: &ValuesOfHead<'_>,
    scales: &[f32],
    start: usize,
    mask: u16,
    out: &mut [f32],
) {
    let mut even = [[_mm512_setzero_ps(); D]; R];
    let mut odd = even;
    let keys = seen.len() * PAGE;
    for (i, seen) in seen.iter().enumerate() {
        let page = values.page(seen).as_ptr();
        // SAFETY: the page has sixteen keys, `p` a value for each, by the caller's promise.
        unsafe {
            let p = p.as_ptr().add(i * PAGE);
            for j in (0..PAGE).step_by(2) {
                add_key(&mut even, p.add(j), keys, page.add(j * values.head_dim + start), mask);
                add_key(&mut odd, p.add(j + 1), keys, page.add((j + 1) * values.head_dim + start), mask);
            }
        }
    }
    for r in 0..R {
        for d in 0..D {
            let lanes = if d + 1 == D { mask } else { u16::MAX };
            let sum = _mm512_mul_ps(_mm512_add_ps(even[r][d], odd[r][d]), _mm512_set1_ps(scales[r]));
            // SAFETY: inside `out` by the caller's promise; masked lanes are not written.
            unsafe {
                let to = out.as_mut_ptr().add(r * values.head_dim + start + d * LANES);
                _mm512_mask_storeu_ps(to, lanes, sum);
            }
        }
    }
}

/// `sums[r] += p[r * stride] * v`.
///
/// # Safety
/// The probabilities of `R` rows and the lanes of `D` groups, of the last one those in `mask`, are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn add_key<const R: usize, const D: usize>(
    sums: &mut [[__m512; D]; R],
    p: *const f32,
    stride: usize,
    v: *const u16,
    mask: u16,
) {
    let mut wide = [_mm512_setzero_ps(); D];
    for (d, wide) in wide.iter_mut().enumerate() {
        let lanes = if d + 1 == D { mask } else { u16::MAX };
        // SAFETY: the caller's promise; masked lanes are not read.
        let half = unsafe { _mm256_maskz_loadu_epi16(lanes, v.add(d * LANES).cast()) };
        *wide = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
    }
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let p = _mm512_set1_ps(unsafe { *p.add(r * stride) });
        for (sum, wide) in sums.iter_mut().zip(wide) {
            *sum = _mm512_fmadd_ps(p, wide, *sum);
        }
    }
}
