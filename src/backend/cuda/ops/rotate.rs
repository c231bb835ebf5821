//! RMSNorm per head, the rotary embedding, keys and values into the cache.

use super::super::kernels::{self, Grid, args};
use super::super::step::{Bound, Count};
use super::super::{CudaBackend, DeviceStep, KvPool, Tensor, Vector};
use super::attention::assert_rows;
use crate::backend::{Axes, Pairing, Rotary};

/// Warps of a block; each takes a head of a row at a time.
const WARPS: usize = 4;

impl CudaBackend {
    pub(in crate::backend::cuda) fn op_rotate_and_store(
        &self,
        qkv: &mut Tensor,
        qk_norm: Option<(&Vector, &Vector, f32)>,
        rotary: Rotary,
        step: &DeviceStep,
        layer: usize,
        kv: &mut KvPool,
    ) {
        let shape = kv.shape();
        assert_eq!(qkv.cols, shape.qkv(), "qkv does not fit the cache");
        assert_rows(&qkv.rows, step);
        step.require(Bound::Pages, kv.pages());
        if let Some((query, key, _)) = qk_norm {
            assert_eq!(
                (query.0.len(), key.0.len()),
                (shape.head_dim, shape.head_dim),
                "norm weights do not fit a head"
            );
        }
        let Rotary { theta, axes, pairing } = rotary;
        let pairs = if axes == Axes::Two { shape.head_dim / 4 } else { shape.head_dim / 2 };
        let coordinates = kv.coordinates();
        let table = kv.turned_by(theta, pairs, &self.device).clone();
        let heads = step.most(Count::Rows) * (shape.heads + 2 * shape.kv_heads);
        let grid = Grid::of(heads.div_ceil(WARPS).min(16 * self.device.multiprocessors()), 32 * WARPS);
        let scales = kv.format().scales();
        let args = args![
            *qkv.floats(),
            step.arg(),
            kv.layer(layer),
            qk_norm.map(|(query, _, _)| &query.0),
            qk_norm.map(|(_, key, _)| &key.0),
            table,
            coordinates as u32,
            1.0 / scales.keys,
            1.0 / scales.values,
            qk_norm.map_or(0.0, |(_, _, eps)| eps),
            shape.heads as u32,
            shape.kv_heads as u32,
            u32::from(axes == Axes::Two),
            u32::from(pairing == Pairing::Interleaved),
        ];
        // SAFETY: the kernel's parameters are these; the step's rows are rows of `qkv`, its pages are of the cache.
        unsafe { self.launch(&kernels::ROTATE, kernel(kv), grid, args) };
    }
}

fn kernel(kv: &KvPool) -> &'static str {
    match (kv.shape().head_dim, kv.is_fp8()) {
        (64, false) => "rotate_and_store_64",
        (80, false) => "rotate_and_store_80",
        (96, false) => "rotate_and_store_96",
        (100, false) => "rotate_and_store_100",
        (128, false) => "rotate_and_store_128",
        (64, true) => "rotate_and_store_fp8_64",
        (80, true) => "rotate_and_store_fp8_80",
        (96, true) => "rotate_and_store_fp8_96",
        (100, true) => "rotate_and_store_fp8_100",
        (128, true) => "rotate_and_store_fp8_128",
        _ => unreachable!("a pool has heads of dimensions that there are kernels for"),
    }
}
