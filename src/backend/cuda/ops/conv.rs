//! 3x3 convolutions, and the upsampling between them.

use super::super::kernels::{self, Grid, args};
use super::super::{CudaBackend, Rows, Tensor, Vector, Weight};

/// Threads of a block of the convolutions, as in kernels/conv.cu.
const THREADS: usize = 128;

impl CudaBackend {
    /// See [`Backend::conv3x3`](crate::backend::Backend::conv3x3).
    pub(in crate::backend::cuda) fn op_conv3x3(
        &self,
        x: &Tensor,
        size: (usize, usize),
        stride: usize,
        w: &Weight,
        bias: &Vector,
        out: &mut Tensor,
    ) {
        let (cin, cout, rows) = (x.cols, w.n(), x.rows.most());
        assert_eq!(w.k(), 9 * cin, "kernel does not fit {cin} channels");
        assert_eq!(bias.0.len(), cout, "bias does not fit the kernel");
        assert!(size.0 * size.1 > 0 && stride > 0, "empty image");
        assert!(rows.is_multiple_of(size.0 * size.1), "{rows} rows are no images of {size:?}");
        assert!(9 * cin * cin < 1 << 32, "{cin} channels");
        let pixels = rows / (size.0 * size.1) * size.0.div_ceil(stride) * size.1.div_ceil(stride);
        out.take_rows(Rows::Fixed(pixels), cout);
        let (name, tile) = match (cout <= 16, cin.is_multiple_of(4)) {
            (true, true) => ("conv3x3_narrow", (128, 16)),
            (true, false) => ("conv3x3_narrow_ragged", (128, 16)),
            (false, true) => ("conv3x3", (64, 64)),
            (false, false) => ("conv3x3_ragged", (64, 64)),
        };
        let grid = Grid { blocks: [pixels.div_ceil(tile.0), cout.div_ceil(tile.1), 1], threads: THREADS, shared: 0 };
        // 2^32 / cin rounded up: the kernel divides by multiplying. One channel needs no division.
        let per_channel = (1u64 << 32).div_ceil(cin as u64) as u32;
        let [height, width, stride, pixels] = [size.0, size.1, stride, pixels].map(|n| n as u32);
        let (cin, cout) = (cin as u32, cout as u32);
        let args = args![
            *x.floats(),
            *w.packed_bf16(),
            bias.0,
            *out.floats(),
            pixels,
            height,
            width,
            stride,
            cin,
            cout,
            per_channel
        ];
        // SAFETY: the kernel's parameters are these; `x` holds whole images of this size, the weight is packed for
        // [cout, 9 * cin], and `out` has room for the pixels.
        unsafe { self.launch(&kernels::CONV, name, grid, args) };
    }

    /// See [`Backend::upsample`](crate::backend::Backend::upsample).
    pub(in crate::backend::cuda) fn op_upsample(&self, x: &Tensor, size: (usize, usize), out: &mut Tensor) {
        let rows = x.rows.most();
        assert!(size.0 * size.1 > 0 && rows.is_multiple_of(size.0 * size.1), "{rows} rows are no images of {size:?}");
        out.take_rows(Rows::Fixed(4 * rows), x.cols);
        let (name, columns) = match x.cols % 4 {
            0 => ("upsample", x.cols / 4),
            _ => ("upsample_ragged", x.cols),
        };
        let vectors = 4 * rows * columns;
        assert!(vectors < 1 << 31, "{vectors} vectors");
        let args = args![*x.floats(), vectors as u32, size.1 as u32, columns as u32, *out.floats()];
        // SAFETY: the kernel's parameters are these; `x` holds whole images of this width, and `out` has room for four
        // times their pixels.
        unsafe { self.launch(&kernels::UPSAMPLE, name, self.grid_over(vectors), args) };
    }

    /// A grid whose threads stride over so many vectors.
    pub(super) fn grid_over(&self, vectors: usize) -> Grid {
        const THREADS: usize = 256;
        Grid::of(vectors.div_ceil(THREADS).min(16 * self.device().multiprocessors()), THREADS)
    }
}
