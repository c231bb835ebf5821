//! Norms over rows.

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
        let (name, grid) = rows_of(x, ["rms_norm", "rms_norm_ragged"]);
        let args = args![*x.floats(), weight.0, out.out(), x.rows.arg(), cols as u32, eps, starts, parts as u32];
        // SAFETY: the kernel's parameters are these; `out` has room for as many rows as `x` has, the weight has a value
        // per column and part, and the step says where each part's rows begin.
        unsafe { self.launch(&kernels::NORM, name, grid, args) };
    }

    /// See [`Backend::layer_norm`](crate::backend::Backend::layer_norm).
    pub(in crate::backend::cuda) fn op_layer_norm(
        &self,
        x: &Tensor,
        weight: &Vector,
        bias: &Vector,
        eps: f32,
        out: &mut Tensor,
    ) {
        assert_eq!((weight.0.len(), bias.0.len()), (x.cols, x.cols), "norm weights do not fit");
        out.take_rows(x.rows.clone(), x.cols);
        let (name, grid) = rows_of(x, ["layer_norm", "layer_norm_ragged"]);
        let args = args![*x.floats(), weight.0, bias.0, out.out(), x.rows.arg(), x.cols as u32, eps];
        // SAFETY: the kernel's parameters are these; `out` has room for as many rows as `x` has, weight and bias have a
        // value per column.
        unsafe { self.launch(&kernels::NORM, name, grid, args) };
    }
}

impl CudaBackend {
    /// See [`Backend::modulated_norm`](crate::backend::Backend::modulated_norm).
    pub(in crate::backend::cuda) fn op_modulated_norm(
        &self,
        x: &Tensor,
        (weight, bias): (&Vector, &Vector),
        eps: f32,
        shift: &Tensor,
        scale: &Tensor,
        out: &mut Tensor,
    ) {
        let size = |t: &Tensor| (t.rows.most(), t.cols);
        assert_eq!((weight.0.len(), bias.0.len()), (x.cols, x.cols), "norm weights do not fit");
        assert_eq!([size(shift), size(scale)], [size(x); 2], "shifts of other rows");
        out.take_rows(x.rows.clone(), x.cols);
        let (name, grid) = rows_of(x, ["modulated_norm", "modulated_norm_ragged"]);
        let (rows, cols) = (x.rows.arg(), x.cols as u32);
        let args = args![*x.floats(), weight.0, bias.0, *shift.floats(), *scale.floats(), out.out(), rows, cols, eps];
        // SAFETY: the kernel's parameters are these; `out` has room for as many rows as `x` has, shift and scale have as
        // many, weight and bias have a value per column.
        unsafe { self.launch(&kernels::NORM, name, grid, args) };
    }
}

/// The kernel for the columns, a multiple of 4 or any, and a block for each row with as many threads as make each read
/// twice: a function of the columns alone, and so is the order of the sums.
fn rows_of(x: &Tensor, [fours, ragged]: [&'static str; 2]) -> (&'static str, Grid) {
    let (name, vectors) = if x.cols.is_multiple_of(4) { (fours, x.cols / 4) } else { (ragged, x.cols) };
    (name, Grid::of(x.rows.most(), vectors.div_ceil(2).next_multiple_of(32).clamp(32, 1024)))
}
