//! The op contract between the network and the machine, and the backends that fulfil it.
//!
//! Shapes are row-major `[rows, cols]`; a *row* is one token of one branch. Activations are f32; weights are
//! bf16; every product is taken in bf16 x bf16 with f32 accumulation, so [`Backend::linear`] rounds its input
//! to bf16 (nearest even) first.
//!
//! **Row invariance.** The result of a row is bitwise the same whether it is computed alone or among others:
//! a reduction runs in an order that depends on K and on absolute positions alone, never on the number of
//! rows, on the thread count or on what else is in the batch. Exact speculative decoding rests on this.
//!
//! **Queued work.** An op is handed over, not finished, when its call returns. What goes wrong on a device is
//! reported by the next call that returns an [`Error`]; until then the ops that follow do nothing. If there was no memory for
//! an op outside of [`Backend::run`], that is said once, to the thread that handed it over: what the ops since were to write
//! is undefined, and the backend goes on. Ops of steps that were reserved always have theirs ([`Backend::reserve`]).
//!
//! **Steps.** What varies from step to step (rows, slots, frontiers, draws) is in a [`Step`], sent to the machine in
//! one piece by [`Backend::set_step`]; ops read it there. So [`Backend::run`] may record the ops of a step once and
//! replay them.

mod codebook;
pub mod cpu;
#[cfg(weft_cuda)]
pub mod cuda;
pub mod gaussian;
mod quantise;
#[cfg(test)]
pub(crate) mod reference;
mod step;

pub use quantise::{Fp8, Int4, KvFormat, KvScales, WeightFormat};
pub use step::{
    CHILDREN, Chosen, Copy, Draw, Drawn, Fate, GROUP, Goal, Image, Layout, NONE, PageTable, Phase, PoolBound, Put,
    RowPlace, Rule, Slot, Source, Step, Test,
};

use gaussian::{Denoising, Settlement, Trajectories};
use half::bf16;

/// Tokens per page of the KV cache.
pub const PAGE: usize = 16;
/// Scratch slots of a sequence, for the nodes of a draft tree.
pub const SCRATCH: usize = 128;

/// What a backend can fail with.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Not enough memory.
    #[error("{what} needs {needed} bytes of memory on {device}, {free} are free")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Its bytes.
        needed: u64,
        /// Bytes that were free.
        free: u64,
        /// Where.
        device: String,
    },
    /// There is no such device, or no driver for it; the text says what to do.
    #[error("{0}")]
    NoDevice(String),
    /// The device failed; nothing more can be done with this backend.
    #[error("{device}: {message}")]
    Device {
        /// Which.
        device: String,
        /// What it said.
        message: String,
    },
}

/// What [`Backend::linear`] does with the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x W^T`
    Store,
    /// `out = out + x W^T` (a residual stream): the product is summed first, then added
    Add,
}

/// Whether one weight serves all rows or each group of rows has its own.
pub enum Grouping<'a, S> {
    /// One weight `[n, k]`.
    One,
    /// Rows `groups[g]..groups[g + 1]` of the step ([`Step::groups`]) use part `g` of a weight `[groups * n, k]` or
    /// vector `[groups * n]` whose parts are stacked.
    /// `n` is a multiple of 16.
    By(&'a S),
}

impl Grouping<'_, Step> {
    /// Weights that are stacked.
    pub fn count(&self) -> usize {
        match self {
            Grouping::One => 1,
            Grouping::By(step) => step.groups.len().saturating_sub(1).max(1),
        }
    }
}

/// Which coordinates turn a head in the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axes {
    /// The index in the sequence: `i` in the prefix, `prefix_len + p` in the grid.
    One,
    /// The first half of a head's dimensions turns with the row, the second with the column: (0, 0) in the prefix,
    /// (row + 1, col + 1) in the grid.
    Two,
}

/// Which dimensions form a pair in the rotary embedding; `n` dimensions turn with one coordinate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `j` with `j + n/2`.
    Halves,
    /// `2j` with `2j + 1`.
    Interleaved,
}

/// Rotary embedding: pair `j` of the `n` dimensions that turn with a coordinate turns by
/// `coordinate * theta^(-j / (n/2))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Base of the geometric sequence of frequencies.
    pub theta: f32,
    /// Coordinates.
    pub axes: Axes,
    /// Pairs.
    pub pairing: Pairing,
}

/// Cosines and sines of a rotary embedding, `[coordinates][cosines, sines][pairs]`, rounded from f64. All backends turn by
/// this table, so that they agree on the bits of it.
fn rotary_table(theta: f32, pairs: usize, coordinates: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(coordinates * 2 * pairs);
    for c in 0..coordinates {
        let angle = |j: usize| c as f64 * f64::from(theta).powf(-(j as f64) / pairs as f64);
        rows.extend((0..pairs).map(|j| angle(j).cos() as f32));
        rows.extend((0..pairs).map(|j| angle(j).sin() as f32));
    }
    rows
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

impl AttentionShape {
    /// Columns of the queries of a row.
    pub fn query(self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys, or of the values, of a row.
    pub fn key(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Columns of `[queries, keys, values]`, the output of the fused projection.
    pub fn qkv(self) -> usize {
        self.query() + 2 * self.key()
    }
}

/// Tables that turn tokens into inputs.
pub struct Embedding<'a, T> {
    /// `[vocab, hidden]`.
    pub tokens: &'a T,
    /// `[grid height, hidden]`.
    pub rows: &'a T,
    /// `[grid width, hidden]`.
    pub cols: &'a T,
    /// `[sequences, hidden]`, added to every token of a sequence.
    pub bias: &'a T,
}

/// How a weight is stored, and what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// Its numbers.
    pub format: WeightFormat,
    /// Rows that most of its products are expected to have; 0 if that is not known. A backend may lay the weight out for
    /// so many; what comes out is then within the rounding of f32 sums of what it would be otherwise.
    pub rows: usize,
}

/// How large a step may become; what a backend reserves for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Rows of the pass.
    pub rows: usize,
    /// Sequences, and images.
    pub sequences: usize,
    /// Pages of all sequences together.
    pub pages: usize,
    /// Grid rows of all sequences together.
    pub frontiers: usize,
    /// Source rows of the spatial heads.
    pub sources: usize,
    /// Groups of sources.
    pub groups: usize,
    /// Verdicts of [`Rule::Siblings`]: each needs room for three distributions while it is judged.
    pub siblings: usize,
}

/// The ops of the network and of decoding. Implementations own their memory; nothing allocates on the hot path. A clone is
/// the same machine: models that work together have one each.
pub trait Backend: Clone + Send + Sync {
    /// `[rows, cols]` f32 activations with room for a fixed number of rows. An op's output takes the number of rows
    /// of its input.
    type Tensor: Send + Sync;
    /// `[n, k]` bf16 weight, in the layout that the backend's matmul wants.
    type Weight: Send + Sync;
    /// `[n]` f32 vector (norm weights, biases), widened from bf16.
    type Vector: Send + Sync;
    /// Keys and values of all layers: pages of [`PAGE`] tokens.
    type KvPool: Send + Sync;
    /// A [`Step`] where the ops read it.
    type Step: Send + Sync;
    /// The tokens of images in the making, and what their acceptance rules keep from round to round.
    type Canvas: Send + Sync;
    /// A vector for each token, and the nearest others of each: what the relaxed [`Test`]s look at.
    type Codebook: Send + Sync;

    /// Name for people: device and instruction set.
    fn name(&self) -> String;
    /// Packs a row-major `[n, k]` weight.
    fn weight(&self, data: &[bf16], n: usize, k: usize) -> Result<Self::Weight, Error> {
        self.weight_in(Storage::default(), data, n, k)
    }
    /// The same, quantised to what the storage says. Only [`Backend::linear`] and [`Backend::swiglu`] without groups take
    /// it; both weights of a SwiGLU have one storage. Its products are those of the bf16 numbers that it then stands for.
    fn weight_in(&self, storage: Storage, data: &[bf16], n: usize, k: usize) -> Result<Self::Weight, Error>;
    /// Copies a vector.
    fn vector(&self, data: &[bf16]) -> Result<Self::Vector, Error>;
    /// A zeroed tensor of `[0, cols]` with room for `max_rows`.
    fn tensor(&self, max_rows: usize, cols: usize) -> Result<Self::Tensor, Error>;
    /// The same for values that only [`Backend::linear`] and [`Backend::swiglu`] read: a backend may keep them rounded to
    /// bf16, as the products take them. [`Backend::upload`], the norms, [`Backend::silu`], [`Backend::add_row`],
    /// [`Backend::swiglu`], [`Backend::linear`] that stores, [`Backend::attention`] and [`Backend::gather_sources`] can write it; no other op takes it.
    fn operand(&self, max_rows: usize, cols: usize) -> Result<Self::Tensor, Error> {
        self.tensor(max_rows, cols)
    }
    /// Zeroed storage (a masked slot must hold finite values).
    fn kv_pool(
        &self,
        layers: usize,
        pages: usize,
        shape: AttentionShape,
        format: KvFormat,
    ) -> Result<Self::KvPool, Error>;
    /// Bytes that [`Backend::kv_pool`] would allocate.
    fn kv_bytes(&self, layers: usize, pages: usize, shape: AttentionShape, format: KvFormat) -> u64;
    /// Room for steps up to `capacity`.
    fn step(&self, capacity: Capacity) -> Result<Self::Step, Error>;
    /// Canvases of `images` images with so many positions; `proposals` reserves what [`Rule::Draft`], [`Rule::AutoCorrect`]
    /// and [`Rule::Children`] keep: a distribution `[vocab]` per position.
    fn canvas(&self, images: usize, positions: usize, vocab: usize, proposals: bool) -> Result<Self::Canvas, Error>;
    /// A vector for each token, `[vocab, dim]`, and for each token so many others, nearest first: sorted by Euclidean
    /// distance, then index.
    fn codebook(&self, vectors: &[f32], dim: usize, neighbours: usize) -> Result<Self::Codebook, Error>;
    /// Sets the tensor to these rows; `data.len()` is a multiple of its columns.
    fn upload(&self, data: &[f32], out: &mut Self::Tensor);
    /// Row-major copy of the tensor on the host, once all queued work is done; of an operand, what products see of it.
    fn read<'a>(&self, x: &'a Self::Tensor) -> Result<std::borrow::Cow<'a, [f32]>, Error>;

    /// Replaces the step: one copy to the device. Lists may have any length up to the capacity.
    fn set_step(&self, host: Step, step: &mut Self::Step) -> Result<(), Error>;
    /// Makes room for what `ops` need between their kernels, in steps of any size up to the capacity: from then on these
    /// steps allocate nothing, in [`Backend::run`] or op by op. `ops` may be called, several times, but nothing is computed;
    /// they are all that such a step may have.
    fn reserve(&self, _step: &mut Self::Step, _ops: &mut dyn FnMut(&Self, &Self::Step)) -> Result<(), Error> {
        Ok(())
    }
    /// Runs `ops`, which were reserved, and must be the same ops on the same objects whenever the step has the same lists
    /// empty. A device may record them the first time it sees a size of step and replay them afterwards without calling
    /// `ops`.
    ///
    /// # Panics
    /// If a device needs more memory for them than was reserved.
    fn run(&self, step: &mut Self::Step, ops: &mut dyn FnMut(&Self, &Self::Step));

    /// `out[m, n] (+)= sum_k bf16(x[m, k]) * w[n, k]`, f32 accumulation in an order fixed by k.
    fn linear(
        &self,
        x: &Self::Tensor,
        w: &Self::Weight,
        out: &mut Self::Tensor,
        epilogue: Epilogue,
        groups: Grouping<'_, Self::Step>,
    );
    /// `out = x W^T + bias`: the product is summed first.
    fn linear_with_bias(&self, x: &Self::Tensor, w: &Self::Weight, bias: &Self::Vector, out: &mut Self::Tensor);
    /// `out[m, i] = silu(x gate^T) * (x up^T)`: the first half of SwiGLU in one read of `x`.
    fn swiglu(
        &self,
        x: &Self::Tensor,
        gate: &Self::Weight,
        up: &Self::Weight,
        out: &mut Self::Tensor,
        groups: Grouping<'_, Self::Step>,
    );
    /// `out[m] = x[m] / sqrt(mean(x[m]^2) + eps) * weight`.
    fn rms_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
        groups: Grouping<'_, Self::Step>,
    );
    /// `out[m] = (x[m] - mean(x[m])) / sqrt(variance(x[m]) + eps) * weight + bias`, the variance being the mean of the
    /// squared differences from the mean.
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        bias: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    );
    /// LayerNorm, shifted and scaled row by row: with `y` as [`Self::layer_norm`] has it, `out = (shift + y) + y * scale`, the
    /// product rounded before it is added.
    fn modulated_norm(
        &self,
        x: &Self::Tensor,
        norm: (&Self::Vector, &Self::Vector),
        eps: f32,
        shift: &Self::Tensor,
        scale: &Self::Tensor,
        out: &mut Self::Tensor,
    );
    /// In place over `[queries, keys, values]` of the step's rows: RMSNorm per head of q and k (when weights are
    /// given), then the rotary embedding at each row's coordinates; then k and v go to the slots of `layer`, rounded
    /// to the pool's format. The keys and values that remain in `qkv` are undefined.
    #[allow(clippy::too_many_arguments)]
    fn rotate_and_store(
        &self,
        qkv: &mut Self::Tensor,
        qk_norm: Option<(&Self::Vector, &Self::Vector, f32)>,
        rotary: Rotary,
        step: &Self::Step,
        layer: usize,
        kv: &mut Self::KvPool,
    );
    /// `out[m] = softmax(q[m] K^T / sqrt(head_dim)) V` over the slots visible to row m (see [`Slot`]), q being the
    /// first columns of `qkv`, rounded to bf16; keys are visited in slot order, prefix first, then grid, then scratch.
    fn attention(&self, qkv: &Self::Tensor, step: &Self::Step, layer: usize, kv: &Self::KvPool, out: &mut Self::Tensor);
    /// Copies all layers of page `from` to page `to`.
    fn copy_page(&self, kv: &mut Self::KvPool, from: u32, to: u32);
    /// `out[m] = silu(x[m])`.
    fn silu(&self, x: &Self::Tensor, out: &mut Self::Tensor);
    /// `x[m] += y[m]`.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);
    /// `x[m] += y[m] * z[m]`, element by element, the product rounded before it is added: scales and gates that are
    /// computed for every row.
    fn add_product(&self, x: &mut Self::Tensor, y: &Self::Tensor, z: &Self::Tensor);

    /// `out[m] = x[m] + table[row]`, and SiLU of that if `activate`.
    fn add_row(&self, x: &Self::Tensor, table: &Self::Tensor, row: usize, activate: bool, out: &mut Self::Tensor);

    /// Inputs of the step's rows, which are of the grid, or nodes of draft trees at positions of it: `out[m] =
    /// tokens[canvas] + rows[row] + cols[col] + bias[sequence]`, summed in this order.
    fn embed(
        &self,
        step: &Self::Step,
        tables: Embedding<'_, Self::Tensor>,
        canvas: &Self::Canvas,
        out: &mut Self::Tensor,
    );
    /// Keeps row m of `x` as the state that predicts the position after it: row
    /// `sequence * positions + position + 1` of `states` (position 0 after the last of the prefix); past the last
    /// position of the grid there is none. If `positions` counts the places of draft trees behind the grid, the state of the
    /// node in scratch slot `s` is kept too, at that of its place: it predicts the node's children.
    fn keep_states(&self, step: &Self::Step, x: &Self::Tensor, positions: usize, states: &mut Self::Tensor);
    /// `out[i] = x[predictions[i]]` for the rows whose distributions the step wants.
    fn select(&self, step: &Self::Step, x: &Self::Tensor, out: &mut Self::Tensor);
    /// Inputs of the step's rows ([`Step::inputs`]): `out[m] = table[inputs[m]]`, where the rows of `behind` follow those that
    /// `table` has room for.
    fn gather(&self, step: &Self::Step, table: &Self::Tensor, behind: Option<&Self::Tensor>, out: &mut Self::Tensor);
    /// Latents of the positions of the step's rows, which are [`Slot::Open`]: `out[m] = latents[image * positions + at]`;
    /// zeros of a row that is of no position.
    fn gather_latents(&self, step: &Self::Step, latents: &Self::Tensor, positions: usize, out: &mut Self::Tensor);
    /// Inputs of the spatial heads: `out[i] = [states[source.state]; tokens[canvas[source.token]]]`.
    fn gather_sources(
        &self,
        step: &Self::Step,
        states: &Self::Tensor,
        tokens: &Self::Tensor,
        canvas: &Self::Canvas,
        out: &mut Self::Tensor,
    );
    /// `logits[to] = logits[from]` for the step's copies, whose targets lie beyond the rows in use.
    fn copy_rows(&self, step: &Self::Step, logits: &mut Self::Tensor);
    /// Puts the step's [`Put`]s, which name a position at most once, into the canvas.
    fn put(&self, step: &Self::Step, canvas: &mut Self::Canvas);
    /// Draws the tokens of a phase from `logits` into the canvas: guidance, temperature, top-k, top-p, then the rule
    /// of each [`Draw`]. The codebook is that of the images' [`Test`]s, unless they look at none.
    fn draw(
        &self,
        step: &Self::Step,
        phase: Phase,
        logits: &Self::Tensor,
        canvas: &mut Self::Canvas,
        codebook: Option<&Self::Codebook>,
    );
    /// What the verdicts of the last step drew, in their order, once all queued work is done.
    fn drawn(&self, step: &Self::Step, canvas: &Self::Canvas) -> Result<Vec<Drawn>, Error>;
    /// What [`Rule::Likeliest`] and [`Rule::Foresee`] chose in the last step, once all queued work is done: the tokens of
    /// each such draft, then of each such verdict, in the order of their lists. All draws of a phase may choose eight tokens
    /// for each place of the canvas.
    ///
    /// Logarithms of two backends differ by at most `(2 * vocab + 64) * 2^-24 * max(1, |log p|)`, for their exponentials are
    /// added in another order; those of [`Rule::Foresee`] by what their noise differs besides.
    fn chosen(&self, step: &Self::Step, canvas: &Self::Canvas) -> Result<Vec<Chosen>, Error>;
    /// The tokens of an image.
    fn tokens(&self, canvas: &Self::Canvas, image: usize) -> Result<Vec<u32>, Error>;
    /// Replaces the tokens of an image and forgets what its rules kept.
    fn set_tokens(&self, canvas: &mut Self::Canvas, image: usize, tokens: &[u32]) -> Result<(), Error>;

    /// Where the trajectories of the step's goals begin: the rows of each in `x` `[predictions, channels]` become its normals
    /// of round `level` ([`Purpose::Denoise`](crate::rng::Purpose::Denoise)), and the spread of its law 0.
    ///
    /// Normals and exponentials of two backends are roundings of f64 that differ by a few units in the last place: they are
    /// the same f32, or neighbours where the number lies half-way between them.
    fn begin_denoising(
        &self,
        step: &Self::Step,
        level: u32,
        x: &mut Self::Tensor,
        trajectories: &mut Trajectories<'_, Self::Tensor>,
    );
    /// A step of denoising for every goal: `predicted` `[predictions, 2 * channels]` is the noise in `x`, then where the
    /// variance lies. The noise of the branches is combined by guidance, the variance is the conditional branch's, the
    /// deviations are times the image's temperature. The law of the number after the step is kept; unless it is the
    /// last step, its deviations are counted in the law's spread, and a draw from it replaces `x`, in both branches.
    fn denoise(
        &self,
        step: &Self::Step,
        denoising: &Denoising,
        predicted: &Self::Tensor,
        x: &mut Self::Tensor,
        trajectories: &mut Trajectories<'_, Self::Tensor>,
    );
    /// Settles the numbers of the step's goals in `latents` `[images * positions, channels]`: those that are to be drawn are
    /// drawn from their law, the first of `laws`, with the normals of level 0; those that are to be judged were drawn from
    /// the second, and are replaced if they do not pass. `verdicts` `[goals, 1]` are 1 for what passed or was drawn, else 0.
    ///
    /// Densities are f64: the verdicts of two backends differ only where both sides of a test agree to about 1e-12.
    fn settle(
        &self,
        step: &Self::Step,
        settlement: Settlement,
        positions: usize,
        laws: [&Self::Tensor; 2],
        latents: &mut Self::Tensor,
        verdicts: &mut Self::Tensor,
    );

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
    /// `out[p] = softmax(q[p] K^T / sqrt(channels)) V` over the pixels of the same image, with one head: the attention of
    /// published VQ decoders. q, k and v are rounded to bf16; the weights of the softmax may be.
    fn image_attention(
        &self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        pixels: usize,
        out: &mut Self::Tensor,
    );
    /// Nearest-neighbour upsampling by two of NHWC images `[n*h*w, channels]` to `[n*2h*2w, channels]`.
    fn upsample(&self, x: &Self::Tensor, size: (usize, usize), out: &mut Self::Tensor);
}
