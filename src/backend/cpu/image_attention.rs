//! Full attention over the pixels of an image, with one head.

use super::isa::{Level, per_isa};
use super::lanes::{self, LANES};
use super::memory::{Scratch, Shared};
use super::parallel;
use half::bf16;

fn round(from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::from_f32(*from).to_f32());
}

per_isa! {
    /// One pixel: scores against all keys, their softmax into `weights`, and the weighted sum of the values.
    fn pixel(query: &[f32], keys: &[f32], values: &[f32], scale: f32, weights: &mut [f32], out: &mut [f32]) {
        let channels = query.len();
        for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(channels)) {
            let mut sums = [0.0; LANES];
            for (q, k) in query.chunks(LANES).zip(key.chunks(LANES)) {
                let products = lanes::zip(lanes::load(q, 0.0), lanes::load(k, 0.0), |q, k| q * k);
                sums = lanes::zip(sums, products, |s, p| s + p);
            }
            *weight = lanes::sum(sums) * scale;
        }
        let top = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for weight in weights.iter_mut() {
            *weight = lanes::exp(*weight - top);
            total += *weight;
        }
        out.fill(0.0);
        for (weight, value) in weights.iter().zip(values.chunks_exact(channels)) {
            for (out, value) in out.iter_mut().zip(value) {
                *out += weight * value;
            }
        }
        out.iter_mut().for_each(|out| *out /= total);
    }
}

/// See [`Backend::image_attention`](crate::backend::Backend::image_attention); `qkv` are `[images * pixels, channels]`.
pub(super) fn image_attention(level: Level, qkv: [&[f32]; 3], pixels: usize, channels: usize, out: &mut [f32]) {
    let mut buffers = [Scratch::take(), Scratch::take(), Scratch::take()];
    let [q, k, v] = &mut buffers;
    let rounded = [q, k, v].map(|buffer| buffer.slice::<f32>(out.len()));
    let [q, k, v] = rounded;
    for (to, from) in [&mut *q, &mut *k, &mut *v].into_iter().zip(qkv) {
        round(from, to);
    }
    let (q, k, v) = (&*q, &*k, &*v);
    let rows = out.len() / channels;
    let threads = parallel::threads_for(out.len() as f64 * pixels as f64 / 8.0);
    let scale = 1.0 / (channels as f32).sqrt();
    let out = Shared::new(out, channels);
    parallel::for_each(threads, rows, |row| {
        let image = row / pixels * pixels * channels..(row / pixels + 1) * pixels * channels;
        let mut scratch = Scratch::take();
        let weights = scratch.slice::<f32>(pixels);
        // SAFETY: every row belongs to one task.
        let out = unsafe { out.part(row, 0, channels) };
        pixel(level, &q[row * channels..][..channels], &k[image.clone()], &v[image], scale, weights, out);
    });
}
