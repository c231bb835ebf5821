//! Attention over pages.
//!
//! A row's result is a function of its own query and of the keys and values it sees, in slot order: scores by the
//! matmul kernel (q rounded to bf16, the sum scaled in f32), the largest visible one, then exponentials, their
//! sum and their product with V, page after page. A masked key has probability 0.0, which adds nothing to either
//! sum, so it does not matter which pages a row's neighbours make it walk.

use super::isa::per_isa;
use super::kv::KvPool;
use super::lanes::{self, LANES, Lanes};
use super::matmul::{Kernel, MAX_BLOCKS, MAX_ROWS};
use super::memory::{Scratch, Shared};
use super::parallel;
use super::visible::{Frontiers, View};
use crate::backend::{AttentionShape, Layout, PAGE, RowPlace};

/// (row, query head) pairs that walk the pages together.
const TILE: usize = 6;

/// A tile: rows `first..first + rows` of one sequence, all query heads of one key head.
#[derive(Clone, Copy)]
struct Tile {
    first: usize,
    rows: usize,
}

/// `out = softmax(q K^T / sqrt(head_dim)) V`.
pub(super) fn attention<K: Kernel>(kernel: K, q: &[f32], layout: &Layout, layer: usize, kv: &KvPool, out: &mut [f32]) {
    let AttentionShape { heads, kv_heads, head_dim } = kv.shape();
    let frontiers = Frontiers::new(layout);
    let tiles = tiles(&layout.rows, (TILE / (heads / kv_heads)).max(1));
    let keys: usize = layout
        .rows
        .iter()
        .map(|r| {
            let (prefix, grid) = frontiers.view(layout, r.sequence, r.slot).pages();
            (prefix + grid) * PAGE
        })
        .sum();
    let threads = parallel::threads_for((keys * heads * head_dim) as f64 / 20.0);
    let out = Shared::new(out, heads * head_dim);
    parallel::for_each(threads, tiles.len() * kv_heads, |task| {
        let (tile, head) = (tiles[task / kv_heads], task % kv_heads);
        Task { kernel, q, layout, frontiers: &frontiers, kv, layer, head, tile }.run(out);
    });
}

/// Cuts the rows into tiles of at most `most` rows of one sequence.
fn tiles(rows: &[RowPlace], most: usize) -> Vec<Tile> {
    let mut tiles = Vec::with_capacity(rows.len());
    let mut first = 0;
    for run in rows.chunk_by(|a, b| a.sequence == b.sequence) {
        let count = run.len().div_ceil(most);
        for t in 0..count {
            let (from, to) = (run.len() * t / count, run.len() * (t + 1) / count);
            tiles.push(Tile { first: first + from, rows: to - from });
        }
        first += run.len();
    }
    tiles
}

/// A page that some row of a tile sees.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Seen {
    page: u32,
    /// Visible slots, by row of the tile.
    masks: [u16; MAX_ROWS],
}

struct Task<'a, K> {
    kernel: K,
    q: &'a [f32],
    layout: &'a Layout,
    frontiers: &'a Frontiers,
    kv: &'a KvPool,
    layer: usize,
    /// Key head.
    head: usize,
    tile: Tile,
}

impl<K: Kernel> Task<'_, K> {
    fn run(&self, out: Shared<'_, f32>) {
        let AttentionShape { heads, kv_heads, head_dim } = self.kv.shape();
        let shared = heads / kv_heads;
        let mut scratch = [Scratch::take(), Scratch::take(), Scratch::take()];
        let [seen, queries, scores] = &mut scratch;
        let seen = self.seen(seen);
        // Query heads of one key head, in parts that fit the micro kernel.
        let per_part = (MAX_ROWS.min(TILE) / self.tile.rows).max(1);
        for part in (0..shared).step_by(per_part) {
            let part = self.head * shared + part..self.head * shared + shared.min(part + per_part);
            let items = self.tile.rows * part.len();
            let pairs = head_dim / 2;
            let queries = queries.slice::<K::Pair>(items * pairs);
            let item = |i: usize| (self.tile.first + i / part.len(), (part.start + i % part.len()) * head_dim);
            for (i, pairs) in queries.chunks_exact_mut(pairs).enumerate() {
                let (row, col) = item(i);
                self.kernel.round(&self.q[row * heads * head_dim + col..][..head_dim], pairs);
            }
            let scores = scores.slice::<f32>(items * seen.len() * PAGE);
            self.scores(queries, seen, items, part.len(), scores);
            for (i, scores) in scores.chunks_exact_mut((seen.len() * PAGE).max(1)).enumerate() {
                let (row, col) = item(i);
                let sum = exponentials(self.kernel.level(), scores);
                // SAFETY: a row and its head belong to one task.
                let out = unsafe { out.part(row, col, head_dim) };
                weighted_values(
                    self.kernel.level(),
                    scores,
                    seen,
                    self.kv.values(self.layer),
                    kv_heads,
                    self.head,
                    1.0 / sum,
                    out,
                );
            }
        }
    }

    /// The pages that the tile sees, in slot order.
    fn seen<'s>(&self, scratch: &'s mut Scratch) -> &'s [Seen] {
        let rows = &self.layout.rows[self.tile.first..][..self.tile.rows];
        let view = |r: &RowPlace| self.frontiers.view(self.layout, r.sequence, r.slot);
        let mut views: [View; MAX_ROWS] = [view(&rows[0]); MAX_ROWS];
        for (view_of, row) in views.iter_mut().zip(rows) {
            *view_of = view(row);
        }
        let views = &views[..rows.len()];
        let table = views[0].table();
        let most = |f: fn(&View) -> usize| views.iter().map(f).max().unwrap_or(0);
        let (prefix, grid) = (most(|v| v.pages().0), most(|v| v.pages().1));
        let seen = scratch.slice::<Seen>(prefix + grid);
        let mut len = 0;
        let mut push = |page: u32, mask: &dyn Fn(&View) -> u16| {
            let mut masks = [0; MAX_ROWS];
            for (m, v) in masks.iter_mut().zip(views) {
                *m = mask(v);
            }
            if masks.iter().any(|&m| m != 0) {
                seen[len] = Seen { page, masks };
                len += 1;
            }
        };
        for i in 0..prefix {
            push(table.prefix[i], &|v| v.prefix(i));
        }
        for i in 0..grid {
            push(table.grid[i], &|v| v.grid(i));
        }
        &seen[..len]
    }

    /// Scaled scores `[items][pages * 16]`, minus infinity where masked.
    fn scores(&self, queries: &[K::Pair], seen: &[Seen], items: usize, heads_per_row: usize, scores: &mut [f32]) {
        let head_dim = self.kv.shape().head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let keys = self.kv.keys(self.layer);
        let len = self.kv.head_len() / 2;
        let blocks = K::blocks(items);
        let mut acc = [0.0; MAX_ROWS * MAX_BLOCKS * PAGE];
        for (g, group) in seen.chunks(blocks).enumerate() {
            let mut w = [std::ptr::null(); MAX_BLOCKS];
            for (pointer, seen) in w.iter_mut().zip(group) {
                *pointer = keys[(seen.page as usize * self.kv.shape().kv_heads + self.head) * len..][..len].as_ptr();
            }
            assert!(queries.len() >= items * head_dim / 2 && items <= MAX_ROWS && group.len() <= blocks);
            // SAFETY: `queries` has that many rows, each block is one head of a page, `acc` is the largest tile.
            unsafe {
                self.kernel.tile(
                    items,
                    group.len(),
                    queries.as_ptr(),
                    head_dim / 2,
                    &w,
                    head_dim / 2,
                    acc.as_mut_ptr(),
                    true,
                    std::ptr::null(),
                );
            }
            for (i, acc) in acc.chunks_exact(group.len() * PAGE).take(items).enumerate() {
                let out = &mut scores[(i * seen.len() + g * blocks) * PAGE..][..acc.len()];
                scale_and_mask(self.kernel.level(), acc, group, i / heads_per_row, scale, out);
            }
        }
    }
}

per_isa! {
    /// Scores of one row and a few pages.
    fn scale_and_mask(acc: &[f32], seen: &[Seen], row: usize, scale: f32, out: &mut [f32]) {
        for ((acc, seen), out) in acc.chunks_exact(LANES).zip(seen).zip(out.chunks_exact_mut(LANES)) {
            let mask = u32::from(seen.masks[row]);
            for lane in 0..LANES {
                let visible = mask & (1 << lane) != 0;
                out[lane] = if visible { acc[lane] * scale } else { f32::NEG_INFINITY };
            }
        }
    }
}

per_isa! {
    /// Replaces scores by `e^(score - largest)`; their sum.
    fn exponentials(scores: &mut [f32]) -> f32 {
        let mut most = [f32::NEG_INFINITY; LANES];
        for s in scores.chunks_exact(LANES) {
            most = lanes::zip(most, lanes::load(s, 0.0), |m, s| if s > m { s } else { m });
        }
        let most = lanes::max(most);
        let mut sums = [0.0; LANES];
        for s in scores.chunks_exact_mut(LANES) {
            let e = lanes::map(lanes::load(s, 0.0), |s| lanes::exp(s - most));
            s.copy_from_slice(&e);
            sums = lanes::zip(sums, e, |a, b| a + b);
        }
        lanes::sum(sums)
    }
}

per_isa! {
    /// `out = sum over keys of p * v, times scale`: even and odd keys are summed apart, in slot order.
    fn weighted_values(p: &[f32], seen: &[Seen], values: &[u16], kv_heads: usize, head: usize, scale: f32, out: &mut [f32]) {
        let head_dim = out.len();
        for (d, out) in out.chunks_mut(LANES).enumerate() {
            let mut sums: [Lanes; 2] = [[0.0; LANES]; 2];
            for (p, seen) in p.chunks_exact(PAGE).zip(seen) {
                let page = &values[(seen.page as usize * kv_heads + head) * PAGE * head_dim..][..PAGE * head_dim];
                for (j, v) in page.chunks_exact(head_dim).enumerate() {
                    let v = &v[d * LANES..];
                    let sums = &mut sums[j % 2];
                    if let Some(v) = v.first_chunk::<LANES>() {
                        for lane in 0..LANES {
                            sums[lane] += p[j] * lanes::from_bf16(v[lane]);
                        }
                    } else {
                        for (sum, &v) in sums.iter_mut().zip(v) {
                            *sum += p[j] * lanes::from_bf16(v);
                        }
                    }
                }
            }
            for (lane, out) in out.iter_mut().enumerate() {
                *out = (sums[0][lane] + sums[1][lane]) * scale;
            }
        }
    }
}
