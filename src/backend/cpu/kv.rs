//! Storage of keys and values.

use super::memory::{Aligned, Shared};
use super::{lanes, parallel};
use crate::backend::quantise::{from_e4m3, to_e4m3};
use crate::backend::{AttentionShape, Error, KvFormat, KvScales, Layout, PAGE, Slot};
use std::ops::Range;

/// Keys and values of all layers, bf16: also those of an fp8 cache, whose numbers are bf16 too.
///
/// A page of keys is packed like a weight whose outputs are the sixteen keys, `[head_dim / 2][16][2]`, so scores are
/// a product of the same micro kernel. A page of values is `[16][head_dim]`. Both stand in the order layer, head,
/// page: a head reads its pages, mostly neighbours, as one stream.
pub struct KvPool {
    keys: Aligned<u32>,
    values: Aligned<u16>,
    shape: AttentionShape,
    format: KvFormat,
    layers: usize,
    pages: usize,
}

impl KvPool {
    pub(super) fn new(layers: usize, pages: usize, shape: AttentionShape, format: KvFormat) -> Result<Self, Error> {
        assert!(shape.head_dim.is_multiple_of(4), "head_dim {} is not a multiple of 4", shape.head_dim);
        assert!(
            shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads),
            "{} query heads do not share {} key heads",
            shape.heads,
            shape.kv_heads
        );
        let values = layers * pages * PAGE * shape.key();
        let (keys, values) = (Aligned::zeroed(values / 2, "the KV cache")?, Aligned::zeroed(values, "the KV cache")?);
        Ok(Self { keys, values, shape, format, layers, pages })
    }

    /// Heads of the layers.
    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// Values of one head in one page; half as many pairs of keys.
    pub(super) fn head_len(&self) -> usize {
        PAGE * self.shape.head_dim
    }

    fn layer(&self, layer: usize) -> Range<usize> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let len = self.pages * self.shape.kv_heads * self.head_len();
        layer * len..(layer + 1) * len
    }

    /// Keys of a layer, `[kv_head][page][head_dim / 2][16]`.
    pub(super) fn keys(&self, layer: usize) -> &[u32] {
        let all = self.layer(layer);
        &self.keys.as_slice()[all.start / 2..all.end / 2]
    }

    /// Values of a layer, `[kv_head][page][16][head_dim]`.
    pub(super) fn values(&self, layer: usize) -> &[u16] {
        &self.values.as_slice()[self.layer(layer)]
    }

    pub(super) fn copy_page(&mut self, from: u32, to: u32) {
        assert!((from as usize) < self.pages && (to as usize) < self.pages, "page outside of the pool");
        let len = self.head_len();
        for head in 0..self.layers * self.shape.kv_heads {
            let at = |page: u32| (head * self.pages + page as usize) * len;
            self.values.as_mut_slice().copy_within(at(from)..at(from) + len, at(to));
            self.keys.as_mut_slice().copy_within(at(from) / 2..(at(from) + len) / 2, at(to) / 2);
        }
    }

    /// Pages of the pool.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Rounds the keys and values of rows `[queries, keys, values]` into their slots.
    pub(super) fn store(&mut self, layer: usize, layout: &Layout, qkv: &[f32]) {
        let (all, len, pages) = (self.layer(layer), self.head_len(), self.pages);
        let scales = match self.format {
            KvFormat::Bf16 => None,
            KvFormat::Fp8(KvScales { keys, values }) => Some((keys, values)),
        };
        let (of_keys, of_values) = (scales.map(|s| s.0), scales.map(|s| s.1));
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let (query, key, cols) = (self.shape.query(), self.shape.key(), self.shape.qkv());
        let keys = Shared::new(&mut self.keys.as_mut_slice()[all.start / 2..all.end / 2], len / 2);
        let values = Shared::new(&mut self.values.as_mut_slice()[all], len);
        // By head rather than by row: two rows may share a cache line of keys, and a careless layout even a slot.
        let threads = parallel::threads_for((layout.rows.len() * key) as f64);
        parallel::for_each(threads, kv_heads, |head| {
            for (row, place) in layout.rows.iter().enumerate() {
                let (page, offset) = locate(layout, place.sequence, place.slot);
                assert!(page < pages, "page {page} of {pages}");
                // SAFETY: a head of a page is one row of the storage, and each head belongs to one task.
                let (keys, values) =
                    unsafe { (keys.part(head * pages + page, 0, len / 2), values.part(head * pages + page, 0, len)) };
                let k = &qkv[row * cols + query + head * head_dim..][..head_dim];
                for (pair, k) in keys.chunks_exact_mut(PAGE).zip(k.chunks_exact(2)) {
                    pair[offset] = u32::from(stored(k[0], of_keys)) | u32::from(stored(k[1], of_keys)) << 16;
                }
                let v = &qkv[row * cols + query + key + head * head_dim..][..head_dim];
                for (value, &v) in values[offset * head_dim..][..head_dim].iter_mut().zip(v) {
                    *value = stored(v, of_values);
                }
            }
        });
    }
}

/// A number as bf16, rounded to fp8 times a scale if there is one.
fn stored(x: f32, scale: Option<f32>) -> u16 {
    lanes::to_bf16(scale.map_or(x, |scale| from_e4m3(to_e4m3(x * (1.0 / scale))) * scale))
}

/// Page and offset of a slot.
fn locate(layout: &Layout, sequence: u32, slot: Slot) -> (usize, usize) {
    let table = &layout.sequences[sequence as usize];
    let (pages, index) = match slot {
        Slot::Prefix(slot) | Slot::Open { slot, .. } => (&table.prefix, slot as usize),
        Slot::Grid(p) => (&table.grid, p as usize),
        Slot::Scratch { slot, .. } => (&table.scratch, slot as usize),
    };
    (pages[index / PAGE] as usize, index % PAGE)
}
