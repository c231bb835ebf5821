//! Attention over pages.
//!
//! A row's result is a function of its own query and of the keys and values it sees, in slot order: scores by the
//! matmul kernel (q rounded to bf16, the sum scaled in f32), the largest visible one, then exponentials, their
//! sum and their product with V, page after page. A masked key has probability 0.0, which adds nothing to either
//! sum, so it does not matter which pages a row's neighbours make it walk.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::isa::per_isa;
use super::kv::KvPool;
use super::lanes::{self, LANES};
use super::matmul::{Ahead, Kernel, MAX_BLOCKS, MAX_ROWS};
use super::memory::{Scratch, Shared};
use super::parallel;
use super::visible::{Frontiers, View};
use crate::backend::{AttentionShape, Layout, PAGE, RowPlace};
use std::ops::Range;

/// (row, query head) pairs that walk the pages together.
const TILE: usize = 6;

const _: () = assert!(TILE <= MAX_ROWS);

/// The part of attention that is written per instruction set and is not a matmul.
pub(super) trait Values: Kernel {
    /// `out[i] = scales[i] * sum over keys of p[i][key] * v[key]` for up to [`TILE`] rows, `p` being
    /// `[rows][keys of the pages seen]`. Even and odd keys are summed apart, each in slot order, then added.
    fn weighted_values(self, p: &[f32], seen: &[Seen], values: &ValuesOfHead<'_>, scales: &[f32], out: &mut [f32]);
}

/// The values of one key head in all pages of a layer.
pub(super) struct ValuesOfHead<'a> {
    /// `[page][16][head_dim]`
    pages: &'a [u16],
    head_dim: usize,
}

impl ValuesOfHead<'_> {
    /// `[16][head_dim]`
    #[inline(always)]
    fn page(&self, seen: &Seen) -> &[u16] {
        let len = PAGE * self.head_dim;
        &self.pages[seen.page as usize * len..][..len]
    }
}

/// A page that some row of a tile sees.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Seen {
    page: u32,
    /// Visible slots, by row of the tile.
    masks: [u16; MAX_ROWS],
}

/// `out = softmax(q K^T / sqrt(head_dim)) V`, the queries being the first columns of `qkv`.
pub(super) fn attention<K: Values>(
    kernel: K,
    qkv: &[f32],
    layout: &Layout,
    layer: usize,
    kv: &KvPool,
    out: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim } = kv.shape();
    let frontiers = Frontiers::new(layout);
    let tiles = tiles(&layout.rows, (TILE / (heads / kv_heads)).max(1));
    let pages = |r: &RowPlace| frontiers.view(layout, r.sequence, r.slot).pages().iter().sum::<usize>();
    let keys = PAGE * layout.rows.iter().map(pages).sum::<usize>();
    let threads = parallel::threads_for((keys * heads * head_dim) as f64 / K::MACS_PER_NANOSECOND * 4.0);
    // Heads share the list of pages, so they are a task's inner loop as long as there are tasks for all threads.
    let splits = if threads == 1 { 1 } else { (8 * threads).div_ceil(tiles.len().max(1)).min(kv_heads) };
    let out = Shared::new(out, heads * head_dim);
    parallel::for_each(threads, tiles.len() * splits, |t| {
        let (rows, split) = (tiles[t / splits].clone(), t % splits);
        let task = Task { kernel, qkv, layout, frontiers: &frontiers, kv, layer, rows };
        let mut scratch = [Scratch::take(), Scratch::take()];
        let [pages, work] = &mut scratch;
        let seen = task.seen(pages);
        for head in kv_heads * split / splits..kv_heads * (split + 1) / splits {
            task.run(head, seen, work, out);
        }
    });
}

/// Cuts the rows into tiles of at most `most` rows of one sequence.
fn tiles(rows: &[RowPlace], most: usize) -> Vec<Range<usize>> {
    let mut tiles = Vec::with_capacity(rows.len());
    let mut first = 0;
    for run in rows.chunk_by(|a, b| a.sequence == b.sequence) {
        let count = run.len().div_ceil(most);
        tiles.extend((0..count).map(|t| first + run.len() * t / count..first + run.len() * (t + 1) / count));
        first += run.len();
    }
    tiles
}

/// A tile of rows of one sequence.
struct Task<'a, K> {
    kernel: K,
    qkv: &'a [f32],
    layout: &'a Layout,
    frontiers: &'a Frontiers,
    kv: &'a KvPool,
    layer: usize,
    rows: Range<usize>,
}

impl<K: Values> Task<'_, K> {
    /// All query heads that share the key head `head`.
    fn run(&self, head: usize, seen: &[Seen], scratch: &mut Scratch, out: Shared<'_, f32>) {
        let AttentionShape { heads, kv_heads, head_dim } = self.kv.shape();
        let shared = heads / kv_heads;
        let of_head = self.kv.pages() * self.kv.head_len();
        let values = ValuesOfHead { pages: &self.kv.values(self.layer)[head * of_head..][..of_head], head_dim };
        // As many query heads at once as fit the tile.
        let per_part = (TILE / self.rows.len()).max(1);
        for first in (0..shared).step_by(per_part) {
            let part = per_part.min(shared - first);
            let items = self.rows.len() * part;
            let item = |i: usize| (self.rows.start + i / part, (head * shared + first + i % part) * head_dim);
            let mut queries = Scratch::take();
            let queries = queries.slice::<K::Pair>(items * head_dim / 2);
            for (i, pairs) in queries.chunks_exact_mut(head_dim / 2).enumerate() {
                let (row, col) = item(i);
                self.kernel.round(&self.qkv[row * self.kv.shape().qkv() + col..][..head_dim], pairs);
            }
            let keys = seen.len() * PAGE;
            let (p, sums) = scratch.slice::<f32>(items * (keys + head_dim)).split_at_mut(items * keys);
            self.scores(head, queries, seen, part, p);
            let mut scales = [0.0; TILE];
            for (scale, p) in scales.iter_mut().zip(p.chunks_exact_mut(keys)) {
                *scale = 1.0 / exponentials(self.kernel.level(), p);
            }
            self.kernel.weighted_values(p, seen, &values, &scales[..items], sums);
            for (i, sums) in sums.chunks_exact(head_dim).enumerate() {
                let (row, col) = item(i);
                // SAFETY: a row and its head belong to one task.
                unsafe { out.part(row, col, head_dim) }.copy_from_slice(sums);
            }
        }
    }

    /// The pages that the tile sees, in slot order.
    fn seen<'s>(&self, scratch: &'s mut Scratch) -> &'s [Seen] {
        let rows = &self.layout.rows[self.rows.clone()];
        let view = |r: &RowPlace| self.frontiers.view(self.layout, r.sequence, r.slot);
        let mut views: [View; MAX_ROWS] = [view(&rows[0]); MAX_ROWS];
        for (view_of, row) in views.iter_mut().zip(rows) {
            *view_of = view(row);
        }
        let views = &views[..rows.len()];
        let table = views[0].table();
        let [prefix, grid, nodes] = [0, 1, 2].map(|kind| views.iter().map(|v| v.pages()[kind]).max().unwrap_or(0));
        let seen = scratch.slice::<Seen>(prefix + grid + nodes);
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
        for i in 0..nodes {
            push(table.scratch[i], &|v| v.scratch(i));
        }
        &seen[..len]
    }

    /// Scaled scores `[items][keys]`, minus infinity where masked.
    fn scores(&self, head: usize, queries: &[K::Pair], seen: &[Seen], heads_per_row: usize, scores: &mut [f32]) {
        let head_dim = self.kv.shape().head_dim;
        let (pairs, len) = (head_dim / 2, self.kv.head_len() / 2);
        let items = queries.len() / pairs;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let keys = self.kv.keys(self.layer);
        let blocks = K::blocks(items);
        assert!(items <= TILE);
        let mut acc = [0.0; TILE * MAX_BLOCKS * PAGE];
        for (g, group) in seen.chunks(blocks).enumerate() {
            let mut w = [std::ptr::null(); MAX_BLOCKS];
            for (pointer, seen) in w.iter_mut().zip(group) {
                *pointer = keys[(head * self.kv.pages() + seen.page as usize) * len..][..len].as_ptr();
            }
            let (x, ahead) = (queries.as_ptr(), Ahead::NONE);
            // SAFETY: `queries` has `items` rows, each block is one head of a page, `acc` is the largest tile.
            unsafe { self.kernel.tile(items, group.len(), x, pairs, &w, pairs, acc.as_mut_ptr(), true, ahead) };
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
        // Apart from the sum: together the compiler takes the lanes to pieces.
        for s in scores.iter_mut() {
            *s = lanes::exp(*s - most);
        }
        let mut sums = [0.0; LANES];
        for e in scores.chunks_exact(LANES) {
            sums = lanes::zip(sums, lanes::load(e, 0.0), |a, b| a + b);
        }
        lanes::sum(sums)
    }
}
