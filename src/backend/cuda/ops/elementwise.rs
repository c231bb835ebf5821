//! Ops without a reduction.

use super::super::kernels::{self, args};
use super::super::{CudaBackend, Tensor};

impl CudaBackend {
    /// See [`Backend::silu`](crate::backend::Backend::silu).
    pub(in crate::backend::cuda) fn op_silu(&self, x: &Tensor, out: &mut Tensor) {
        out.take_rows(x.rows.clone(), x.cols);
        let (name, vectors) = match x.cols % 4 {
            0 => ("silu", x.rows.most() * x.cols / 4),
            _ => ("silu_ragged", x.rows.most() * x.cols),
        };
        let args = args![*x.floats(), out.out(), x.rows.arg(), x.cols as u32];
        // SAFETY: the kernel's parameters are these, and both tensors have so many rows and columns.
        unsafe { self.launch(&kernels::ELEMENTWISE, name, self.grid_over(vectors), args) };
    }

    /// See [`Backend::add`](crate::backend::Backend::add).
    pub(in crate::backend::cuda) fn op_add(&self, x: &mut Tensor, y: &Tensor) {
        assert_eq!((x.rows.most(), x.cols), (y.rows.most(), y.cols), "adding tensors of different sizes");
        let (name, vectors) = match x.cols % 4 {
            0 => ("add", x.rows.most() * x.cols / 4),
            _ => ("add_ragged", x.rows.most() * x.cols),
        };
        let grid = self.grid_over(vectors);
        let args = args![*x.floats(), *y.floats(), x.rows.arg(), x.cols as u32];
        // SAFETY: the kernel's parameters are these, and both tensors have so many rows and columns.
        unsafe { self.launch(&kernels::ELEMENTWISE, name, grid, args) };
    }

    /// See [`Backend::add_row`](crate::backend::Backend::add_row).
    pub(in crate::backend::cuda) fn op_add_row(
        &self,
        x: &Tensor,
        table: &Tensor,
        row: usize,
        activate: bool,
        out: &mut Tensor,
    ) {
        assert!(table.cols == x.cols && row < table.max_rows, "row {row} of {} rows", table.max_rows);
        out.take_rows(x.rows.clone(), x.cols);
        let (name, vectors) = match x.cols % 4 {
            0 => ("add_row", x.rows.most() * x.cols / 4),
            _ => ("add_row_ragged", x.rows.most() * x.cols),
        };
        let row = table.floats().part::<f32>(4 * row * x.cols, x.cols);
        let args = args![*x.floats(), row, u32::from(activate), out.out(), x.rows.arg(), x.cols as u32];
        // SAFETY: the kernel's parameters are these; `out` has room for as many rows as `x` has.
        unsafe { self.launch(&kernels::ELEMENTWISE, name, self.grid_over(vectors), args) };
    }

    /// See [`Backend::add_product`](crate::backend::Backend::add_product).
    pub(in crate::backend::cuda) fn op_add_product(&self, x: &mut Tensor, y: &Tensor, z: &Tensor) {
        let size = |t: &Tensor| (t.rows.most(), t.cols);
        assert_eq!([size(x); 2], [size(y), size(z)], "factors of different sizes");
        let (name, vectors) = match x.cols % 4 {
            0 => ("add_product", x.rows.most() * x.cols / 4),
            _ => ("add_product_ragged", x.rows.most() * x.cols),
        };
        let args = args![*x.floats(), *y.floats(), *z.floats(), x.rows.arg(), x.cols as u32];
        // SAFETY: the kernel's parameters are these, and all three tensors have so many rows and columns.
        unsafe { self.launch(&kernels::ELEMENTWISE, name, self.grid_over(vectors), args) };
    }
}
