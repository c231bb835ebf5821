//! 3x3 convolution: a matmul whose rows overlap.

use super::matmul::{self, Group, Kernel, Left, Segment, Tile};
use super::memory::{Scratch, Shared};
use super::parallel;
use super::weight::{BLOCK, Part};

/// Geometry of a convolution over images `[h, w, cin]`.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) stride: usize,
    pub(super) cin: usize,
}

impl Shape {
    fn out(&self) -> (usize, usize) {
        (self.h.div_ceil(self.stride), self.w.div_ceil(self.stride))
    }
}

/// `out = conv(x) + bias`. The images are rounded once into a copy with a border of zeros; then the patch of a
/// pixel is three runs of it, one per kernel row, and its neighbour's patch starts `stride` pixels later.
pub(super) fn conv3x3<K: Kernel>(kernel: K, x: &[f32], shape: Shape, weight: Part<'_>, bias: &[f32], out: &mut [f32]) {
    let Shape { h, w, stride, cin } = shape;
    let (out_h, out_w) = shape.out();
    let images = x.len() / (h * w * cin);
    // Pairs of the weight follow (ky, kx, cin), so pairs of a pixel line up with them only when cin is even. If it
    // is not (RGB), patches are copied out.
    let copied = cin % 2 == 1;
    let mut scratch = Scratch::take();
    let row_pairs = if copied { out_w * weight.pairs() } else { (w + 2) * cin / 2 };
    let image_rows = if copied { out_h } else { h + 2 };
    let image_pairs = image_rows * row_pairs;
    let pairs = scratch.slice::<K::Pair>(images * image_pairs);

    let macs = images * out_h * out_w * weight.n() * weight.k();
    let threads = parallel::threads_for(macs as f64 / K::MACS_PER_NANOSECOND);
    let shared = Shared::new(&mut *pairs, row_pairs);
    parallel::for_each(threads, images * image_rows, |i| {
        let (image, row) = (i / image_rows, i % image_rows);
        let x = &x[image * h * w * cin..][..h * w * cin];
        // SAFETY: every row belongs to one task.
        let pairs = unsafe { shared.part(i, 0, row_pairs) };
        if copied {
            copy_patches(kernel, x, shape, row, pairs, weight.pairs());
        } else {
            pad_row(kernel, x, shape, row, pairs);
        }
    });

    let run = 3 * cin / 2;
    let segments: Vec<Segment> = if copied {
        vec![Segment { x: 0, w: 0, pairs: weight.pairs() }]
    } else {
        (0..3).map(|ky| Segment { x: ky * row_pairs, w: ky * run, pairs: run }).collect()
    };
    let step = if copied { weight.pairs() } else { stride * cin / 2 };
    let left = Left { pairs: &*pairs, stride: step, segments: &segments };
    let tiles_per_row = out_w.div_ceil(K::ROWS);
    let width = K::blocks(out_w.div_ceil(tiles_per_row));
    let members = |g: usize| g * width..weight.blocks().min((g + 1) * width);
    let cols = weight.n();
    let out = Shared::new(out, cols);
    // A few rows at once, so that a run of the weights is read from the first cache most of the time.
    let rows = (64 / out_w).clamp(1, out_h);
    let tasks_per_image = out_h.div_ceil(rows);
    parallel::for_each(threads, images * tasks_per_image, |task| {
        let (image, first) = (task / tasks_per_image, task % tasks_per_image * rows);
        let mut tiles = Vec::with_capacity(rows * tiles_per_row);
        for y in first..out_h.min(first + rows) {
            let row = image * image_pairs + if copied { y } else { y * stride } * row_pairs;
            for t in 0..tiles_per_row {
                let (from, to) = (out_w * t / tiles_per_row, out_w * (t + 1) / tiles_per_row);
                let out = (image * out_h + y) * out_w + from;
                tiles.push(Tile { x: row + from * step, rows: to - from, out });
            }
        }
        let group = |g: usize| Group::new(members(g).map(|b| weight.block(b)));
        let groups = 0..weight.blocks().div_ceil(width);
        matmul::sweep(kernel, &left, &tiles, groups, group, |g, tile, acc| {
            let start = g * width * BLOCK;
            let count = members(g).len() * BLOCK;
            let len = count.min(cols - start);
            for (r, acc) in acc.chunks_exact(count).enumerate() {
                // SAFETY: every output pixel belongs to one tile of one task.
                let out = unsafe { out.part(tile.out + r, start, len) };
                for ((out, acc), bias) in out.iter_mut().zip(acc).zip(&bias[start..]) {
                    *out = acc + bias;
                }
            }
        });
    });
}

/// Row `row` of the padded image, rounded.
fn pad_row<K: Kernel>(kernel: K, x: &[f32], shape: Shape, row: usize, pairs: &mut [K::Pair]) {
    let Shape { h, w, cin, .. } = shape;
    if row == 0 || row > h {
        kernel.round(&[], pairs);
        return;
    }
    let border = cin / 2;
    let inside = w * cin / 2;
    kernel.round(&[], &mut pairs[..border]);
    kernel.round(&x[(row - 1) * w * cin..][..w * cin], &mut pairs[border..border + inside]);
    kernel.round(&[], &mut pairs[border + inside..]);
}

/// The patches of one row of output pixels, rounded.
fn copy_patches<K: Kernel>(kernel: K, x: &[f32], shape: Shape, y: usize, pairs: &mut [K::Pair], patch: usize) {
    let Shape { h, w, stride, cin } = shape;
    let mut scratch = Scratch::take();
    let values = scratch.slice::<f32>(9 * cin);
    for (px, pairs) in pairs.chunks_exact_mut(patch).enumerate() {
        for (tap, values) in values.chunks_exact_mut(cin).enumerate() {
            let (iy, ix) = (y * stride + tap / 3, px * stride + tap % 3);
            if (1..=h).contains(&iy) && (1..=w).contains(&ix) {
                values.copy_from_slice(&x[((iy - 1) * w + ix - 1) * cin..][..cin]);
            } else {
                values.fill(0.0);
            }
        }
        kernel.round(values, pairs);
    }
}
