//! Matrix products: one driver that walks tiles, one micro kernel per instruction set.
//!
//! Every output is accumulated by one lane, over k from the first pair to the last, whatever the tile around it:
//! that is all row invariance needs. Splitting k into segments keeps it, because an accumulator that goes through
//! memory as f32 comes back unchanged.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use {avx2::Avx2, avx512::Avx512};
pub(super) use portable::Portable;

use super::isa::{Level, per_isa};
use super::lanes::{self, LANES};
use super::memory::{Scratch, Shared};
use super::parallel;
use super::weight::{BLOCK, Weight};
use crate::backend::Epilogue;
use bytemuck::Pod;
use std::ops::Range;

/// Most blocks a tile may have.
pub(super) const MAX_BLOCKS: usize = 8;

/// Most rows a tile may have.
pub(super) const MAX_ROWS: usize = 8;

/// The part of a matmul that is written per instruction set.
pub(super) trait Kernel: Copy + Send + Sync + 'static {
    /// Two consecutive k of an activation row, rounded to bf16.
    type Pair: Pod + Send + Sync;

    /// The proof that the instructions are there.
    fn level(self) -> Level;

    /// Rounds a row to pairs; what `source` does not fill is zero.
    fn round(self, source: &[f32], pairs: &mut [Self::Pair]);

    /// Blocks that a tile of so many rows should have: accumulators fill the registers.
    fn blocks(rows: usize) -> usize;

    /// `acc[r][b][lane] (+)= sum over pairs of x[r] . w[b][lane]`, starting from zero if `first`.
    /// `acc` is `[rows][blocks][16]`. The lines at `ahead` (as many as `pairs`) are needed next.
    ///
    /// # Safety
    /// For `r < rows <= MAX_ROWS` and `b < blocks <= Self::blocks(rows)`: `pairs` pairs are readable at
    /// `x + r * stride`, `16 * pairs` at `w[b]`, and `16 * rows * blocks` floats are writable at `acc`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn tile(
        self,
        rows: usize,
        blocks: usize,
        x: *const Self::Pair,
        stride: usize,
        w: &[*const u32; MAX_BLOCKS],
        pairs: usize,
        acc: *mut f32,
        first: bool,
        ahead: *const u32,
    );
}

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

/// Up to [`MAX_ROWS`] rows of the left operand at a constant distance from each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Where the first row starts, in pairs.
    pub(super) x: usize,
    /// Rows of the tile.
    pub(super) rows: usize,
    /// First row of the output.
    pub(super) out: usize,
}

/// A range of k: where it starts in a row and in a block, in pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) x: usize,
    pub(super) w: usize,
    pub(super) pairs: usize,
}

/// The left operand of a product.
pub(super) struct Left<'a, P> {
    pub(super) pairs: &'a [P],
    /// Pairs from one row of a tile to the next.
    pub(super) stride: usize,
    pub(super) segments: &'a [Segment],
}

/// Multiplies all tiles with the groups of blocks in `groups`. Segments are the outer loop, so that a segment of
/// a group's weights stays in the first cache while all tiles use it.
///
/// `group` names the blocks of a group; `finish` gets every finished tile as `[rows][blocks][16]`.
pub(super) fn sweep<'w, K: Kernel>(
    kernel: K,
    left: &Left<'_, K::Pair>,
    tiles: &[Tile],
    groups: Range<usize>,
    group: impl Fn(usize) -> Group<'w>,
    finish: impl Fn(usize, &Tile, &[f32]),
) {
    let Some(first) = left.segments.first() else { return };
    let rows: usize = tiles.iter().map(|t| t.rows).sum();
    let mut scratch = Scratch::take();
    for g in groups.clone() {
        let current = group(g);
        let next = if g + 1 < groups.end { group(g + 1) } else { current };
        let blocks = current.len;
        let acc = scratch.slice::<f32>(rows * blocks * BLOCK);
        for (s, segment) in left.segments.iter().enumerate() {
            let (following, from) = match left.segments.get(s + 1) {
                Some(segment) => (&current, segment),
                None => (&next, first),
            };
            assert!(current.blocks().iter().all(|w| w.len() >= (segment.w + segment.pairs) * BLOCK));
            let mut w = [std::ptr::null(); MAX_BLOCKS];
            for (pointer, block) in w.iter_mut().zip(current.blocks()) {
                *pointer = block[segment.w * BLOCK..].as_ptr();
            }
            let mut done = 0;
            for (t, tile) in tiles.iter().enumerate() {
                let part = &mut acc[done..][..tile.rows * blocks * BLOCK];
                let x = &left.pairs[tile.x + segment.x..];
                assert!(x.len() >= (tile.rows - 1) * left.stride + segment.pairs);
                assert!(tile.rows <= MAX_ROWS && blocks <= K::blocks(tile.rows));
                // Tile t fetches the next segment of block t; with one tile the hardware does as well.
                let ahead = match following.blocks().get(t) {
                    Some(block) if tiles.len() > 1 => block[from.w * BLOCK..].as_ptr(),
                    _ => std::ptr::null(),
                };
                // SAFETY: the assertions above are the kernel's conditions; `part` is the accumulator.
                unsafe {
                    kernel.tile(
                        tile.rows,
                        blocks,
                        x.as_ptr(),
                        left.stride,
                        &w,
                        segment.pairs,
                        part.as_mut_ptr(),
                        s == 0,
                        ahead,
                    );
                }
                done += part.len();
            }
        }
        let mut done = 0;
        for tile in tiles {
            let part = &acc[done..][..tile.rows * blocks * BLOCK];
            finish(g, tile, part);
            done += part.len();
        }
    }
}

/// Blocks that a tile multiplies at once.
#[derive(Clone, Copy)]
pub(super) struct Group<'w> {
    blocks: [&'w [u32]; MAX_BLOCKS],
    len: usize,
}

impl<'w> Group<'w> {
    pub(super) fn new(blocks: impl Iterator<Item = &'w [u32]>) -> Self {
        let mut group = Self { blocks: [&[]; MAX_BLOCKS], len: 0 };
        for block in blocks {
            group.blocks[group.len] = block;
            group.len += 1;
        }
        group
    }

    fn blocks(&self) -> &[&'w [u32]] {
        &self.blocks[..self.len]
    }
}

/// Serial time of a product, roughly: rows share the weights, which arrive at some 50 bytes/ns from the caches.
fn nanoseconds(m: usize, n: usize, k: usize) -> f64 {
    (n * k) as f64 * f64::max(1.0 / 25.0, m as f64 / 100.0)
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
    fn new(m: usize, groups: impl Fn(usize) -> usize, threads: usize) -> Self {
        let panels = m.div_ceil(PANEL);
        // Rows per tile: a few more than the best are better than two passes over the weights.
        let tile_rows = |rows: usize| if rows <= MAX_ROWS { rows } else { rows.div_ceil(rows.div_ceil(6)) };
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
    (0..pairs.div_ceil(step))
        .map(|s| Segment { x: s * step, w: s * step, pairs: step.min(pairs - s * step) })
        .collect()
}

/// `out (+)= x w^T`.
pub(super) fn linear<K: Kernel>(kernel: K, x: &[f32], w: &Weight, out: &mut [f32], epilogue: Epilogue) {
    product(kernel, x, w.k(), &[w], out, w.n(), &|acc: &[f32], _, out: &mut [f32]| match epilogue {
        Epilogue::Store => out.copy_from_slice(&acc[..out.len()]),
        Epilogue::Add => out.iter_mut().zip(acc).for_each(|(o, a)| *o += a),
    });
}

/// `out = silu(x gate^T) * (x up^T)`.
pub(super) fn swiglu<K: Kernel>(kernel: K, x: &[f32], gate: &Weight, up: &Weight, out: &mut [f32]) {
    let level = kernel.level();
    product(kernel, x, gate.k(), &[gate, up], out, gate.n(), &|gate: &[f32], up: &[f32], out: &mut [f32]| {
        swish(level, gate, up, out);
    });
}

per_isa! {
    /// `out = silu(gate) * up`, as far as `out` goes.
    fn swish(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.chunks_mut(LANES).zip(gate.chunks(LANES)).zip(up.chunks(LANES)) {
            let y = lanes::zip(lanes::map(lanes::load(gate, 0.0), lanes::silu), lanes::load(up, 0.0), |a, b| a * b);
            out.copy_from_slice(&y[..out.len()]);
        }
    }
}

/// A product with one weight, or with two of one shape side by side; `finish` gets the accumulators of both, as
/// long as the slice of `out` they belong to or longer.
fn product<K: Kernel>(
    kernel: K,
    x: &[f32],
    k: usize,
    weights: &[&Weight],
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
    let threads = parallel::threads_for(nanoseconds(m, n * sides, k));
    let plan = Plan::new(m, |rows| blocks.div_ceil(width(rows)), threads);
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
