//! GroupNorm over images.

use super::super::kernels::{self, Grid, args};
use super::super::{CudaBackend, Tensor, Vector};
use crate::backend::GroupNorm;

/// Pixels that one block sums, at least.
const CHUNK: usize = 32;
/// Chunks of an image at most, about.
const CHUNKS: usize = 128;

impl CudaBackend {
    /// See [`Backend::group_norm`](crate::backend::Backend::group_norm).
    pub(in crate::backend::cuda) fn op_group_norm(
        &self,
        x: &Tensor,
        pixels: usize,
        norm: GroupNorm,
        weight: &Vector,
        bias: &Vector,
        out: &mut Tensor,
    ) {
        let (channels, groups, rows) = (x.cols, norm.groups, x.rows.most());
        assert_eq!((weight.0.len(), bias.0.len()), (channels, channels), "norm weights do not fit");
        assert!(groups > 0 && channels.is_multiple_of(groups), "{channels} channels in {groups} groups");
        assert!(pixels > 0 && rows.is_multiple_of(pixels), "{rows} rows are no images of {pixels}");
        out.take_rows(x.rows.clone(), channels);
        let images = rows / pixels;
        let (width, [statistics, apply]) = match channels % 4 {
            0 => (4, ["group_norm_statistics", "group_norm_apply"]),
            _ => (1, ["group_norm_statistics_ragged", "group_norm_apply_ragged"]),
        };
        let columns = channels / width;
        assert!(columns <= 1024, "{channels} channels");
        let vectors = rows * columns;
        assert!(vectors < 1 << 31, "{vectors} vectors");

        // Functions of the image's size alone, and so is the order of the sums.
        let chunk = pixels.div_ceil(CHUNKS).max(CHUNK);
        let chunks = pixels.div_ceil(chunk);
        let threads = columns.next_multiple_of(32).max(256);
        let workspace = self.workspace::<f32>(2 * images * (groups * chunks + channels));
        let partial = workspace.part::<[f32; 2]>(0, images * groups * chunks);
        let affine = workspace.part::<[f32; 2]>(partial.bytes(), images * channels);

        let shared = 4 * (threads * width + 2 * groups);
        let grid = Grid { blocks: [chunks, images, 1], threads, shared };
        let [p, c, g, chunk, chunks] = [pixels, channels, groups, chunk, chunks].map(|n| n as u32);
        let args = args![*x.floats(), p, c, g, chunk, partial];
        // SAFETY: the kernel's parameters are these; `x` holds whole images, the threads cover a pixel's vectors, and the
        // workspace has a place for each group of each chunk.
        unsafe { self.launch(&kernels::GROUP_NORM, statistics, grid, args) };
        let grid = Grid { blocks: [groups, images, 1], threads: 32, shared: 0 };
        let args = args![partial, weight.0, bias.0, p, c, chunk, chunks, norm.eps, affine];
        // SAFETY: the kernel's parameters are these; there is a weight and a place in the workspace for each channel.
        unsafe { self.launch(&kernels::GROUP_NORM, "group_norm_merge", grid, args) };
        let args = args![*x.floats(), affine, vectors as u32, p, c, u32::from(norm.activate), *out.floats()];
        // SAFETY: the kernel's parameters are these; `out` has room for as many rows as `x` has.
        unsafe { self.launch(&kernels::GROUP_NORM, apply, self.grid_over(vectors), args) };
    }
}
