//! Ops without a reduction.

use super::super::kernels::{self, Grid, args};
use super::super::{CudaBackend, Tensor};

const THREADS: usize = 256;

impl CudaBackend {
    /// See [`Backend::add`](crate::backend::Backend::add).
    pub(in crate::backend::cuda) fn op_add(&self, x: &mut Tensor, y: &Tensor) {
        assert_eq!((x.rows.most(), x.cols), (y.rows.most(), y.cols), "adding tensors of different sizes");
        let (name, vectors) = match x.cols % 4 {
            0 => ("add", x.rows.most() * x.cols / 4),
            _ => ("add_ragged", x.rows.most() * x.cols),
        };
        let grid = Grid::of(vectors.div_ceil(THREADS).min(16 * self.device().multiprocessors()), THREADS);
        let args = args![*x.floats(), *y.floats(), x.rows.arg(), x.cols as u32];
        // SAFETY: the kernel's parameters are these, and both tensors have so many rows and columns.
        unsafe { self.launch(&kernels::ELEMENTWISE, name, grid, args) };
    }
}
