//! Ops without a reduction.

use super::isa::{Level, per_isa};
use super::lanes;

per_isa! {
    /// `x[m] += row`.
    pub(super) fn add_to_rows(x: &mut [f32], row: &[f32]) {
        for x in x.chunks_exact_mut(row.len()) {
            for (x, y) in x.iter_mut().zip(row) {
                *x += y;
            }
        }
    }
}

per_isa! {
    /// `x = (shift + x) + x * scale`.
    pub(super) fn modulate(x: &mut [f32], shift: &[f32], scale: &[f32]) {
        for (x, (shift, scale)) in x.iter_mut().zip(shift.iter().zip(scale)) {
            *x = (shift + *x) + *x * scale;
        }
    }
}

per_isa! {
    /// `x += y`.
    pub(super) fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

per_isa! {
    /// `x += y * z`.
    pub(super) fn add_product(x: &mut [f32], y: &[f32], z: &[f32]) {
        for (x, (y, z)) in x.iter_mut().zip(y.iter().zip(z)) {
            *x += y * z;
        }
    }
}

per_isa! {
    /// `out = silu(x)`.
    pub(super) fn silu(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = lanes::silu(*x);
        }
    }
}

/// `out[m] = x[m] + row`, and SiLU of that if `activate`.
pub(super) fn add_row(level: Level, x: &[f32], row: &[f32], activate: bool, out: &mut [f32]) {
    if activate { add_row_silu(level, x, row, out) } else { add_row_only(level, x, row, out) }
}

per_isa! {
    fn add_row_only(x: &[f32], row: &[f32], out: &mut [f32]) {
        for (out, x) in out.chunks_exact_mut(row.len()).zip(x.chunks_exact(row.len())) {
            for ((out, x), y) in out.iter_mut().zip(x).zip(row) {
                *out = x + y;
            }
        }
    }
}

per_isa! {
    fn add_row_silu(x: &[f32], row: &[f32], out: &mut [f32]) {
        for (out, x) in out.chunks_exact_mut(row.len()).zip(x.chunks_exact(row.len())) {
            for ((out, x), y) in out.iter_mut().zip(x).zip(row) {
                *out = lanes::silu(x + y);
            }
        }
    }
}

/// Doubles images `[height, width, channels]` in both directions, by repetition.
pub(super) fn upsample(x: &[f32], (height, width): (usize, usize), channels: usize, out: &mut [f32]) {
    let (line, doubled) = (width * channels, 2 * width * channels);
    let rows = x.chunks_exact(line).zip(out.chunks_exact_mut(2 * doubled));
    debug_assert!(x.len().is_multiple_of(height * line));
    for (x, out) in rows {
        let (first, second) = out.split_at_mut(doubled);
        for (pixel, pair) in x.chunks_exact(channels).zip(first.chunks_exact_mut(2 * channels)) {
            pair[..channels].copy_from_slice(pixel);
            pair[channels..].copy_from_slice(pixel);
        }
        second.copy_from_slice(first);
    }
}
