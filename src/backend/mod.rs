//! The op contract between the network and the machine, and the backends that fulfil it.
//!
//! Shapes are row-major `[rows, cols]`; a *row* is one token of one branch. Activations are f32; weights are
//! bf16; every product is taken in bf16 x bf16 with f32 accumulation, so [`Backend::linear`] rounds its input
//! to bf16 (nearest even) first.
//!
//! **Row invariance.** The result of a row is bitwise the same whether it is computed alone or among others:
//! a reduction runs in an order that depends on K and on absolute positions alone, never on the number of
//! rows, on the thread count or on what else is in the batch. Exact speculative decoding rests on this.

pub mod cpu;
#[cfg(test)]
pub(crate) mod reference;

use half::bf16;

/// What [`Backend::linear`] does with the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x W^T`
    Store,
    /// `out = out + x W^T` (a residual stream): the product is summed first, then added
    Add,
}

/// Rotary embedding over two axes: the first half of a head's dimensions turns with `y`, the second with `x`;
/// inside a half of size `h`, dimension `j < h/2` pairs with `j + h/2` at angle `coordinate * theta^(-j/(h/2))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Base of the geometric sequence of frequencies.
    pub theta: f32,
}

/// Form of a GroupNorm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// Groups; divides the channels.
    pub groups: usize,
    /// Added to the variance (PyTorch's default is 1e-5, published VQ decoders use 1e-6).
    pub eps: f32,
    /// SiLU after it.
    pub activate: bool,
}

/// Heads of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
}

/// Tokens per page of the KV cache.
pub const PAGE: usize = 16;

/// Where a row's keys and values live, and which keys it sees: one forward pass, backend independent.
///
/// A sequence is one branch of one image: `prefix` pages hold its prompt linearly, `grid` pages hold the image
/// in raster order, so the slot of a position never changes.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Page tables of the sequences in this pass.
    pub sequences: Vec<PageTable>,
    /// One entry per row of the pass. Rows of one sequence are adjacent.
    pub rows: Vec<RowPlace>,
}

/// Pages of one sequence.
#[derive(Clone, Debug, Default)]
pub struct PageTable {
    /// Pages of the prompt; `prefix_len` tokens are used.
    pub prefix: Vec<u32>,
    /// Tokens in the prompt.
    pub prefix_len: usize,
    /// Pages of the image in raster order.
    pub grid: Vec<u32>,
    /// Columns of the grid.
    pub width: usize,
    /// For each grid row, how many columns hold a key that rows below may see (committed, or fed in this pass).
    pub frontier: Vec<u32>,
}

/// Place of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlace {
    /// Index into [`Layout::sequences`].
    pub sequence: u32,
    /// Slot that receives this row's key and value.
    pub slot: Slot,
}

/// A slot of the cache.
///
/// Visibility: `Prefix(i)` sees prefix slots `0..=i`. `Grid(p)` at (r, c) sees the whole prefix, columns
/// `0..frontier[r']` of every grid row `r' < r`, and columns `0..=c` of its own row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Token `i` of the prompt; its rotary coordinates are (0, 0).
    Prefix(u32),
    /// Raster position `p` of the image; its rotary coordinates are (row + 1, col + 1).
    Grid(u32),
}

/// The ops of the network. Implementations own their memory; nothing here allocates on the hot path except
/// through [`Backend::tensor`], which callers do once.
pub trait Backend: Send + Sync {
    /// `[rows, cols]` f32 activations with room for a fixed number of rows.
    type Tensor: Send + Sync;
    /// `[n, k]` bf16 weight, in the layout that the backend's matmul wants.
    type Weight: Send + Sync;
    /// `[n]` f32 vector (norm weights, biases), widened from bf16.
    type Vector: Send + Sync;
    /// Keys and values of all layers: `pages` pages of [`PAGE`] tokens.
    type KvPool: Send + Sync;

    /// Name for people: device and instruction set.
    fn name(&self) -> String;
    /// Packs a row-major `[n, k]` weight.
    fn weight(&self, data: &[bf16], n: usize, k: usize) -> Self::Weight;
    /// Copies a vector.
    fn vector(&self, data: &[bf16]) -> Self::Vector;
    /// A zeroed tensor of `[0, cols]` with room for `max_rows`.
    fn tensor(&self, max_rows: usize, cols: usize) -> Self::Tensor;
    /// Zeroed storage (a masked slot must hold finite values).
    fn kv_pool(&self, layers: usize, pages: usize, shape: AttentionShape) -> Self::KvPool;
    /// Sets the tensor to these rows; `data.len()` is a multiple of its columns.
    fn upload(&self, data: &[f32], out: &mut Self::Tensor);
    /// Row-major copy of the tensor on the host.
    fn read<'a>(&self, x: &'a Self::Tensor) -> std::borrow::Cow<'a, [f32]>;

    /// `out[m, n] (+)= sum_k bf16(x[m, k]) * w[n, k]`, f32 accumulation in an order fixed by k.
    fn linear(&self, x: &Self::Tensor, w: &Self::Weight, out: &mut Self::Tensor, epilogue: Epilogue);
    /// `out[m, i] = silu(x gate^T) * (x up^T)`: the first half of SwiGLU in one read of `x`.
    fn swiglu(&self, x: &Self::Tensor, gate: &Self::Weight, up: &Self::Weight, out: &mut Self::Tensor);
    /// `out[m] = x[m] / sqrt(mean(x[m]^2) + eps) * weight`.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Vector, eps: f32, out: &mut Self::Tensor);
    /// In place over the heads of q `[m, heads*head_dim]` and k `[m, kv_heads*head_dim]`: RMSNorm per head (when
    /// weights are given), then the rotary embedding at each row's coordinates; then k and v go to the slots of
    /// `layer`, rounded to bf16.
    #[allow(clippy::too_many_arguments)]
    fn rotate_and_store(
        &self,
        q: &mut Self::Tensor,
        k: &mut Self::Tensor,
        v: &Self::Tensor,
        qk_norm: Option<(&Self::Vector, &Self::Vector, f32)>,
        rotary: Rotary,
        layout: &Layout,
        layer: usize,
        kv: &mut Self::KvPool,
    );
    /// `out[m] = softmax(q[m] K^T / sqrt(head_dim)) V` over the slots visible to row m (see [`Slot`]); keys are
    /// visited in slot order, prefix first.
    fn attention(&self, q: &Self::Tensor, layout: &Layout, layer: usize, kv: &Self::KvPool, out: &mut Self::Tensor);
    /// Copies all layers of page `from` to page `to`.
    fn copy_page(&self, kv: &mut Self::KvPool, from: u32, to: u32);
    /// 3x3 convolution, padding 1, over NHWC images: x `[n*h*w, cin]`, w `[cout, 9*cin]` with the k axis ordered
    /// (ky, kx, cin), out `[n*h'*w', cout]` with `h' = (h + stride - 1) / stride`; bias added.
    fn conv3x3(
        &self,
        x: &Self::Tensor,
        size: (usize, usize),
        stride: usize,
        w: &Self::Weight,
        bias: &Self::Vector,
        out: &mut Self::Tensor,
    );
    /// `out = silu?(group_norm(x))` over NHWC images of `pixels` rows each.
    fn group_norm(
        &self,
        x: &Self::Tensor,
        pixels: usize,
        norm: GroupNorm,
        weight: &Self::Vector,
        bias: &Self::Vector,
        out: &mut Self::Tensor,
    );
    /// `x[m] += y[m]`.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);
}
