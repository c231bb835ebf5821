//! Attention over the paged cache, and copies of its pages.

use super::super::abi::{WEFT_ATTENTION_ROWS, WEFT_ATTENTION_SPLIT};
use super::super::kernels::{self, Fatbin, Grid, args};
use super::super::kv::{COUNTERS, QUERIES};
use super::super::step::{Bound, Count};
use super::super::tensor::Rows;
use super::super::{CudaBackend, DeviceStep, KvPool, Tensor};
use crate::backend::PAGE;
use std::f64::consts::LOG2_E;

/// Keys that a stage of the kernel's pipeline holds, and its stages.
const CHUNK: usize = 64;
const STAGES: usize = 2;
/// Floats at most that blocks leave for each other; blocks for which there is no room do without.
const PARTIALS: usize = 4 << 20;
/// Floats that a query leaves for so many parts: (largest score, sum) of each in whole lines of 128 bytes, the values of
/// the largest head.
fn left(parts: usize) -> usize {
    2 * parts.next_multiple_of(16) + 128 * parts
}

impl CudaBackend {
    pub(in crate::backend::cuda) fn op_attention(
        &self,
        qkv: &Tensor,
        step: &DeviceStep,
        layer: usize,
        kv: &KvPool,
        out: &mut Tensor,
    ) {
        let shape = kv.shape();
        assert_eq!(qkv.cols, shape.qkv(), "qkv does not fit the cache");
        assert_rows(&qkv.rows, step);
        step.require(Bound::Pages, kv.pages());
        out.take_rows(qkv.rows.clone(), shape.query());

        let (group, parts) = (shape.heads / shape.kv_heads, kv.most_parts(WEFT_ATTENTION_SPLIT as usize));
        let rows = step.most(Count::Rows);
        let partials = if rows * shape.kv_heads <= COUNTERS { rows * shape.heads * left(parts) } else { 0 };
        let partials = self.workspace::<f32>(partials.min(PARTIALS));
        // Blocks walk the work that the device finds in the step: as many as it runs at a time, twice.
        let slices = (WEFT_ATTENTION_ROWS as usize).div_ceil(QUERIES / group);
        let work = step.most(Count::Tiles) * slices * parts;
        let multiprocessors = self.device.multiprocessors();
        let blocks = [work.min((4 * multiprocessors).div_ceil(shape.kv_heads)), shape.kv_heads, 1];
        let line = kv.page_bytes() / (shape.kv_heads * 2 * PAGE);
        let (query, scales) = (if kv.is_fp8() { 2 * line } else { line }, kv.format().scales());
        let grid = Grid { blocks, threads: 128, shared: QUERIES * query + STAGES * 2 * CHUNK * line };
        let args = args![
            *qkv.floats(),
            step.arg(),
            kv.layer(layer),
            out.out(),
            partials,
            partials.len() as u32,
            kv.counters,
            COUNTERS as u32,
            shape.kv_heads as u32,
            group as u32,
            multiprocessors as u32,
            (LOG2_E / (shape.head_dim as f64).sqrt() * f64::from(scales.keys)) as f32,
            scales.values,
        ];
        let (fatbin, name) = kernel(kv);
        // SAFETY: the kernel's parameters are these; the step's rows are rows of `qkv` and `out`, its pages are of the
        // cache, and no block leaves more than fits the partials and counters.
        unsafe { self.launch(fatbin, name, grid, args) };
    }

    pub(in crate::backend::cuda) fn op_copy_page(&self, kv: &mut KvPool, from: u32, to: u32) {
        let pages = kv.pages();
        assert!((from as usize) < pages && (to as usize) < pages, "pages {from} and {to} of {pages}");
        let pieces = kv.page_bytes() / 16;
        let args = args![kv.data, pages as u32, pieces as u32, from, to];
        // SAFETY: the kernel's parameters are these, and both pages are of the cache.
        unsafe { self.launch(&kernels::PAGE, "copy_page", Grid::of(kv.layers(), 256), args) };
    }
}

/// Panics unless a tensor has the rows of a step.
pub(super) fn assert_rows(rows: &Rows, step: &DeviceStep) {
    let fits = match rows {
        Rows::Fixed(rows) => *rows == step.host().layout.rows.len(),
        Rows::Counted { which, .. } => *which == Count::Rows,
    };
    assert!(fits, "qkv does not have the {} rows of the step", step.host().layout.rows.len());
}

fn kernel(kv: &KvPool) -> (&'static Fatbin, &'static str) {
    match (kv.shape().head_dim, kv.is_fp8()) {
        (64, false) => (&kernels::ATTENTION, "attention_64"),
        (80, false) => (&kernels::ATTENTION, "attention_80"),
        (96, false) => (&kernels::ATTENTION, "attention_96"),
        (100, false) => (&kernels::ATTENTION, "attention_100"),
        (128, false) => (&kernels::ATTENTION, "attention_128"),
        (64, true) => (&kernels::ATTENTION_FP8, "attention_fp8_64"),
        (80, true) => (&kernels::ATTENTION_FP8, "attention_fp8_80"),
        (96, true) => (&kernels::ATTENTION_FP8, "attention_fp8_96"),
        (100, true) => (&kernels::ATTENTION_FP8, "attention_fp8_100"),
        (128, true) => (&kernels::ATTENTION_FP8, "attention_fp8_128"),
        _ => unreachable!("a pool has heads of dimensions that there are kernels for"),
    }
}
