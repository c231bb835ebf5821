//! RMSNorm and LayerNorm over rows, GroupNorm over images.

use super::isa::{Level, per_isa};
use super::lanes::{self, LANES};
use super::memory::{Scratch, Shared};
use super::parallel;
use crate::backend::GroupNorm;

/// `1 / sqrt(mean(x^2) + eps)`: lane i sums the elements i, i + 16, ..., then the lanes are folded.
#[inline(always)]
pub(super) fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mut sums = [0.0; LANES];
    for x in x.chunks(LANES) {
        sums = lanes::zip(sums, lanes::load(x, 0.0), |s, x| s + x * x);
    }
    1.0 / (lanes::sum(sums) / x.len() as f32 + eps).sqrt()
}

per_isa! {
    fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let scale = inverse_rms(x, eps);
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * w;
        }
    }
}

per_isa! {
    /// Lane i sums the elements i, i + 16, ..., then the lanes are folded; the squares are those of the differences, which
    /// a mean far off does not swallow.
    fn layer_norm_row(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let mut sums = [0.0; LANES];
        for x in x.chunks(LANES) {
            sums = lanes::zip(sums, lanes::load(x, 0.0), |s, x| s + x);
        }
        let mean = lanes::sum(sums) / x.len() as f32;
        let mut squares = [0.0; LANES];
        for x in x.chunks(LANES) {
            squares = lanes::zip(squares, lanes::load(x, mean), |s, x| s + (x - mean) * (x - mean));
        }
        let scale = 1.0 / (lanes::sum(squares) / x.len() as f32 + eps).sqrt();
        for (((out, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * scale * w + b;
        }
    }
}

/// Normalises rows as long as `weight`.
pub(super) fn rms_norm(level: Level, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    each_row(x, weight.len(), out, |x, out| rms_norm_row(level, x, weight, eps, out));
}

/// Normalises rows as long as `weight` and `bias`.
pub(super) fn layer_norm(level: Level, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    each_row(x, weight.len(), out, |x, out| layer_norm_row(level, x, weight, bias, eps, out));
}

fn each_row(x: &[f32], cols: usize, out: &mut [f32], norm: impl Fn(&[f32], &mut [f32]) + Sync) {
    let rows = x.len() / cols;
    let threads = parallel::threads_for(x.len() as f64 / 8.0);
    let tasks = if threads == 1 { 1 } else { rows.div_ceil(32) };
    let out = Shared::new(out, cols);
    parallel::for_each(threads, tasks, |t| {
        for row in rows * t / tasks..rows * (t + 1) / tasks {
            // SAFETY: every row belongs to one task.
            let out = unsafe { out.part(row, 0, cols) };
            norm(&x[row * cols..][..cols], out);
        }
    });
}

/// Pixels whose statistics are summed in one go; fixed, so that the sums do not depend on the threads.
const CHUNK: usize = 256;

per_isa! {
    /// `sums[c] += (x[p][c] - center[c])^power` over the pixels of a chunk, one after another.
    fn channel_sums(x: &[f32], center: &[f32], square: bool, sums: &mut [f32]) {
        let channels = sums.len();
        sums.fill(0.0);
        for x in x.chunks_exact(channels) {
            if square {
                for ((s, x), c) in sums.iter_mut().zip(x).zip(center) {
                    *s += (x - c) * (x - c);
                }
            } else {
                for (s, x) in sums.iter_mut().zip(x) {
                    *s += x;
                }
            }
        }
    }
}

per_isa! {
    fn affine(x: &[f32], scale: &[f32], shift: &[f32], activate: bool, out: &mut [f32]) {
        let channels = scale.len();
        for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            if activate {
                for (((out, x), a), b) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                    *out = lanes::silu(x * a + b);
                }
            } else {
                for (((out, x), a), b) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                    *out = x * a + b;
                }
            }
        }
    }
}

/// Form and weights of a GroupNorm.
#[derive(Clone, Copy)]
pub(super) struct WeightedGroupNorm<'a> {
    pub(super) form: GroupNorm,
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
}

/// Normalises images of `pixels` rows.
pub(super) fn group_norm(level: Level, x: &[f32], pixels: usize, norm: WeightedGroupNorm<'_>, out: &mut [f32]) {
    let channels = norm.weight.len();
    for (x, out) in x.chunks_exact(pixels * channels).zip(out.chunks_exact_mut(pixels * channels)) {
        group_norm_image(level, x, norm, out);
    }
}

fn group_norm_image(level: Level, x: &[f32], norm: WeightedGroupNorm<'_>, out: &mut [f32]) {
    let channels = norm.weight.len();
    let per_group = channels / norm.form.groups;
    let count = (x.len() / norm.form.groups) as f64;
    let chunks = x.len().div_ceil(CHUNK * channels);
    let threads = parallel::threads_for(x.len() as f64 / 4.0);
    let chunk = |i: usize| &x[i * CHUNK * channels..x.len().min((i + 1) * CHUNK * channels)];

    let mut buffers = [Scratch::take(), Scratch::take()];
    let [partial, vectors] = &mut buffers;
    let partial = partial.slice::<f32>(chunks * channels);
    let (scale, shift) = vectors.slice::<f32>(2 * channels).split_at_mut(channels);

    // Mean, then spread around it: the squares of far-off means would swallow the variance.
    let mut statistics = vec![0.0_f64; norm.form.groups];
    let mut inverse = vec![0.0_f64; norm.form.groups];
    for square in [false, true] {
        for (c, center) in shift.iter_mut().enumerate() {
            *center = statistics[c / per_group] as f32;
        }
        let shared = Shared::new(&mut *partial, channels);
        parallel::for_each(threads, chunks, |i| {
            // SAFETY: every chunk has its own row.
            channel_sums(level, chunk(i), shift, square, unsafe { shared.part(i, 0, channels) });
        });
        let sums = if square { &mut inverse } else { &mut statistics };
        for row in partial.chunks_exact(channels) {
            for (c, &sum) in row.iter().enumerate() {
                sums[c / per_group] += f64::from(sum);
            }
        }
        sums.iter_mut().for_each(|s| *s /= count);
    }
    for c in 0..channels {
        let group = c / per_group;
        let a = f64::from(norm.weight[c]) / (inverse[group] + f64::from(norm.form.eps)).sqrt();
        scale[c] = a as f32;
        shift[c] = (f64::from(norm.bias[c]) - statistics[group] * a) as f32;
    }
    let out = Shared::new(out, channels);
    parallel::for_each(threads, chunks, |i| {
        let x = chunk(i);
        // SAFETY: chunks are disjoint and each belongs to one task.
        affine(level, x, scale, shift, norm.form.activate, unsafe { out.rows(i * CHUNK, x.len() / channels) });
    });
}
