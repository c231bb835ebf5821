//! Full attention over the pixels of an image.

use super::super::kernels::{self, Grid, args};
use super::super::{CudaBackend, Tensor};

/// Pixels of a block, and keys of a tile, as in kernels/image_attention.cu.
const QUERIES: usize = 16;
const KEYS: usize = 32;
/// Channels at most.
const CHANNELS: usize = 512;

impl CudaBackend {
    /// See [`Backend::image_attention`](crate::backend::Backend::image_attention).
    pub(in crate::backend::cuda) fn op_image_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        pixels: usize,
        out: &mut Tensor,
    ) {
        let (rows, channels) = (q.rows.most(), q.cols);
        for other in [k, v] {
            assert_eq!((other.rows.most(), other.cols), (rows, channels), "queries, keys and values differ in size");
        }
        assert!(pixels > 0 && rows.is_multiple_of(pixels), "{rows} rows are no images of {pixels}");
        assert!(channels.is_multiple_of(4) && channels <= CHANNELS, "{channels} channels");
        out.take_rows(q.rows.clone(), channels);
        let pitch = 2 * channels.next_multiple_of(16) + 16;
        let blocks = [pixels.div_ceil(QUERIES), rows / pixels, 1];
        let grid = Grid { blocks, threads: 128, shared: (QUERIES + 2 * KEYS) * pitch };
        let scale = 1.0 / (channels as f32).sqrt();
        let args = args![*q.floats(), *k.floats(), *v.floats(), pixels as u32, channels as u32, scale, *out.floats()];
        // SAFETY: the kernel's parameters are these; all tensors hold whole images of so many pixels.
        unsafe { self.launch(&kernels::IMAGE_ATTENTION, "image_attention", grid, args) };
    }
}
