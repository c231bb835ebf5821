//! Matrix products: one driver that walks tiles, one micro kernel per instruction set.
//!
//! Every output is accumulated by one lane, over k from the first pair to the last, whatever the tile around it:
//! that is all row invariance needs. Splitting k into segments keeps it, because an accumulator that goes through
//! memory as f32 comes back unchanged.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod portable;
mod sweep;

pub(super) use kernel::{Ahead, Kernel, MAX_BLOCKS, MAX_ROWS};
pub(super) use portable::Portable;
pub(super) use sweep::{Group, Left, Segment, Tile, sweep};
#[cfg(target_arch = "x86_64")]
pub(super) use {avx2::Avx2, avx512::Avx512};

use super::isa::per_isa;
use super::lanes::{self, LANES};
use super::memory::{Scratch, Shared};
use super::parallel;
use super::weight::{BLOCK, Part};
use crate::backend::Epilogue;
use std::ops::Range;

/// Runs `$body` with `$kernel` bound to the kernel of a level.
macro_rules! with_kernel {
    ($level:expr, $kernel:ident => $body:expr) => {
        match $level.isa() {
            #[cfg(target_arch = "x86_64")]
            $crate::backend::cpu::isa::Isa::Avx512Bf16 => {
                let $kernel = $crate::backend::cpu::matmul::Avx512::new($level);
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::backend::cpu::isa::Isa::Avx2 => {
                let $kernel = $crate::backend::cpu::matmul::Avx2::new($level);
                $body
            }
            _ => {
                let $kernel = $crate::backend::cpu::matmul::Portable::new($level);
                $body
            }
        }
    };
}
pub(super) use with_kernel;

/// Serial time of a product, roughly: rows share the weights, which arrive at some 100 bytes/ns from the caches.
fn nanoseconds<K: Kernel>(m: usize, n: usize, k: usize) -> f64 {
    (n * k) as f64 * f64::max(1.0 / 50.0, m as f64 / K::MACS_PER_NANOSECOND)
}

/// Pairs per segment when several tiles share the weights: four blocks of them fit in the first cache.
const SEGMENT: usize = 128;

/// Rows whose accumulators one sweep keeps.
const PANEL: usize = 384;

/// How a product of `m` rows with `blocks` blocks is cut into tasks.
struct Plan {
    panels: usize,
    splits: usize,
    threads: usize,
    tile_rows: usize,
}

impl Plan {
    /// `best` is the number of rows a tile should have, `groups` the number of groups at so many rows per tile.
    fn new(m: usize, best: usize, groups: impl Fn(usize) -> usize, threads: usize) -> Self {
        let panels = m.div_ceil(PANEL);
        // Rows per tile: a few more than the best are better than two passes over the weights.
        let tile_rows = |rows: usize| if rows <= MAX_ROWS { rows } else { rows.div_ceil(rows.div_ceil(best)) };
        let rows = tile_rows(m.div_ceil(panels));
        if threads == 1 {
            return Self { panels, splits: 1, threads, tile_rows: rows };
        }
        let groups = groups(rows);
        if groups >= 8 * threads {
            // Many outputs: each thread reads its own weights once, for all rows.
            return Self { panels, splits: 8 * threads, threads, tile_rows: rows };
        }
        let by_rows = panels.max((m / 12).clamp(1, 2 * threads));
        if by_rows > 1 {
            let rows = tile_rows(m.div_ceil(by_rows));
            return Self { panels: by_rows, splits: 1, threads, tile_rows: rows };
        }
        Self { panels: 1, splits: groups.min(threads), threads, tile_rows: rows }
    }

    /// Runs `task(tiles, groups)` for every part of the product.
    fn run(&self, m: usize, stride: usize, groups: usize, task: impl Fn(&[Tile], Range<usize>) + Sync + Send) {
        let part = |len: usize, parts: usize, i: usize| len * i / parts..len * (i + 1) / parts;
        parallel::for_each(self.threads, self.panels * self.splits, |i| {
            let panel = part(m, self.panels, i / self.splits);
            let count = panel.len().div_ceil(self.tile_rows).max(1);
            let tiles: Vec<Tile> = (0..count)
                .map(|t| part(panel.len(), count, t))
                .filter(|rows| !rows.is_empty())
                .map(|rows| {
                    let first = panel.start + rows.start;
                    Tile { x: first * stride, rows: rows.len(), out: first }
                })
                .collect();
            task(&tiles, part(groups, self.splits, i % self.splits));
        });
    }
}

/// Rounds `[m, k]` activations; a row takes `stride` pairs.
fn round_rows<K: Kernel>(kernel: K, x: &[f32], k: usize, stride: usize, pairs: &mut [K::Pair]) {
    for (row, out) in x.chunks_exact(k).zip(pairs.chunks_exact_mut(stride)) {
        kernel.round(row, &mut out[..k.div_ceil(2)]);
    }
}

/// Pairs from one row to the next: one line more than needed where rows would otherwise fall on the same sets of
/// the cache.
fn row_stride(pairs: usize) -> usize {
    let lines = pairs.div_ceil(LANES);
    LANES * if lines > 8 { lines | 1 } else { lines }
}

fn segments(pairs: usize, single_tile: bool) -> Vec<Segment> {
    let step = if single_tile { pairs } else { SEGMENT };
    (0..pairs.div_ceil(step)).map(|s| Segment { x: s * step, w: s * step, pairs: step.min(pairs - s * step) }).collect()
}

/// `out (+)= x w^T`.
pub(super) fn linear<K: Kernel>(kernel: K, x: &[f32], w: Part<'_>, out: &mut [f32], epilogue: Epilogue) {
    product(kernel, x, w.k(), &[w], out, w.n(), &|acc: &[f32], _, out: &mut [f32]| match epilogue {
        Epilogue::Store => out.copy_from_slice(&acc[..out.len()]),
        Epilogue::Add => out.iter_mut().zip(acc).for_each(|(o, a)| *o += a),
    });
}

/// `out = silu(x gate^T) * (x up^T)`.
pub(super) fn swiglu<K: Kernel>(kernel: K, x: &[f32], gate: Part<'_>, up: Part<'_>, out: &mut [f32]) {
    let level = kernel.level();
    product(kernel, x, gate.k(), &[gate, up], out, gate.n(), &|gate: &[f32], up: &[f32], out: &mut [f32]| {
        swish(level, gate, up, out);
    });
}

per_isa! {
    /// `out = silu(gate) * up`, as far as `out` goes.
    fn swish(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = lanes::silu(*gate) * up;
        }
    }
}

/// A product with one weight, or with two of one shape side by side; `finish` gets the accumulators of both, as
/// long as the slice of `out` they belong to or longer.
fn product<K: Kernel>(
    kernel: K,
    x: &[f32],
    k: usize,
    weights: &[Part<'_>],
    out: &mut [f32],
    n: usize,
    finish: &(impl Fn(&[f32], &[f32], &mut [f32]) + Sync),
) {
    let m = x.len() / k;
    if m == 0 {
        return;
    }
    let (pairs, blocks) = (weights[0].pairs(), weights[0].blocks());
    let stride = row_stride(pairs);
    let mut scratch = Scratch::take();
    let rounded = scratch.slice::<K::Pair>(m * stride);
    round_rows(kernel, x, k, stride, rounded);

    let sides = weights.len();
    let width = |rows: usize| (K::blocks(rows) / sides).max(1);
    let threads = parallel::threads_for(nanoseconds::<K>(m, n * sides, k));
    let plan = Plan::new(m, K::ROWS, |rows| blocks.div_ceil(width(rows)), threads);
    let width = width(plan.tile_rows);
    let segments = segments(pairs, m.div_ceil(plan.panels) <= plan.tile_rows);
    let left = Left { pairs: rounded, stride, segments: &segments };
    let out = Shared::new(out, n);
    plan.run(m, stride, blocks.div_ceil(width), |tiles, groups| {
        let members = |g: usize| g * width..blocks.min((g + 1) * width);
        let group = |g: usize| Group::new(weights.iter().flat_map(|w| members(g).map(|b| w.block(b))));
        sweep(kernel, &left, tiles, groups, group, |g, tile, acc| {
            let count = members(g).len() * BLOCK;
            let start = g * width * BLOCK;
            let len = count.min(n - start);
            for (r, acc) in acc.chunks_exact(sides * count).enumerate() {
                // SAFETY: a task has its own rows or its own groups, and a group its own columns.
                let out = unsafe { out.part(tile.out + r, start, len) };
                finish(&acc[..count], &acc[acc.len() - count..], out);
            }
        });
    });
}

per_isa! {
    /// Rounds to bf16, the rest of `out` is zero.
    #[cfg(target_arch = "x86_64")]
    fn round_narrow(x: &[f32], out: &mut [u16]) {
        let (head, tail) = out.split_at_mut(x.len());
        for (out, &x) in head.iter_mut().zip(x) {
            *out = lanes::to_bf16(x);
        }
        tail.fill(0);
    }
}

per_isa! {
    /// Rounds to bf16 and widens again, for kernels without bf16 products.
    fn round_wide(x: &[f32], out: &mut [f32]) {
        let (head, tail) = out.split_at_mut(x.len());
        for (out, &x) in head.iter_mut().zip(x) {
            *out = lanes::from_bf16(lanes::to_bf16(x));
        }
        tail.fill(0.0);
    }
}
