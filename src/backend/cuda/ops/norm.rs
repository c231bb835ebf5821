//! RMSNorm over rows.

use super::super::kernels::{self, Grid, Held, args};
use super::super::{CudaBackend, DeviceStep, Tensor, Vector};
use crate::backend::Grouping;

impl CudaBackend {
    /// See [`Backend::rms_norm`](crate::backend::Backend::rms_norm).
    pub(in crate::backend::cuda) fn op_rms_norm(
        &self,
        x: &Tensor,
        weight: &Vector,
        eps: f32,
        out: &mut Tensor,
        groups: Grouping<'_, DeviceStep>,
    ) {
        let (cols, len) = (x.cols, weight.0.len());
        let (starts, parts) = match groups {
            Grouping::One => {
                assert_eq!(cols, len, "norm weight does not fit");
                (Held { value: std::ptr::null(), memory: None }, 1)
            }
            Grouping::By(step) => {
                assert!(cols > 0 && len.is_multiple_of(cols), "norm weights of {len} values for {cols} columns");
                (step.groups(), len / cols)
            }
        };
        out.take_rows(x.rows.clone(), cols);
        // As many threads as make each read twice: a function of the columns alone, and so is the order of the sum.
        let (name, vectors) = match cols % 4 {
            0 => ("rms_norm", cols / 4),
            _ => ("rms_norm_ragged", cols),
        };
        let grid = Grid::of(x.rows.most(), vectors.div_ceil(2).next_multiple_of(32).clamp(32, 1024));
        let (cols, parts) = (cols as u32, parts as u32);
        let args = args![x.data, weight.0, out.data, x.rows.arg(), cols, eps, starts, parts];
        // SAFETY: the kernel's parameters are these; `out` has room for as many rows as `x` has, the weight has a value
        // per column and part, and the step says where each part's rows begin.
        unsafe { self.launch(&kernels::NORM, name, grid, args) };
    }
}
