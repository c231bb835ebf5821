//! The drafter of EAGLE (arXiv 2401.15077): one decoder layer that guesses the target's next hidden state from its last one
//! and the token that was sampled from it.
//!
//! With `h` the target's state before the final norm from which token `t` at (row, col) was predicted and `x` the target's
//! input of `t`: `z = fc [h; x]`, then one layer over `z` that attends to the positions before it, with a cache of its own.
//! What comes out stands for the state that predicts the next token, under the target's final norm and image head. It has no
//! prompt: the condition is in both of its inputs.
//!
//! `x` is the sum of the token's embedding, a row, a column and the branch's bias, so `fc` is applied to the parts: to the
//! embedding with `h` in every pass, to the others once.

use super::Loader;
use super::transformer::{Layer, Scratch};
use crate::backend::{AttentionShape, Backend, Embedding, Epilogue, Error as BackendError, Grouping, KvFormat};
use crate::checkpoint::{Config, Error};

/// The drafter of one target.
pub struct Eagle<B: Backend> {
    /// `[hidden, 2 * hidden]`, states first.
    fc: B::Weight,
    layer: Layer<B>,
    /// Zeros, `[vocab, hidden]`: a token's embedding enters with its state.
    tokens: B::Tensor,
    /// `fc` of what a row adds to an input, `[grid height, hidden]`.
    rows: B::Tensor,
    /// The same of a column, `[grid width, hidden]`.
    cols: B::Tensor,
    hidden: usize,
    intermediate: usize,
    shape: AttentionShape,
    kv: KvFormat,
}

/// Activations of one pass, allocated once for the largest.
pub struct Activations<B: Backend> {
    source: B::Tensor,
    pub(crate) layer: Scratch<B>,
}

/// Where a pass reads its inputs.
pub struct Inputs<'a, B: Backend> {
    /// The states that the step's sources name.
    pub states: &'a B::Tensor,
    /// The target's embeddings of image tokens, `[vocab, hidden]`.
    pub tokens: &'a B::Tensor,
    /// What [`Eagle::project`] made of the biases, `[sequences, hidden]`.
    pub bias: &'a B::Tensor,
    /// The tokens.
    pub canvas: &'a B::Canvas,
}

impl<B: Backend> Eagle<B> {
    /// Loads `eagle.*` for a target of this config whose inputs have these tables of rows and columns.
    pub fn load(
        loader: &Loader<'_, B>,
        config: &Config,
        (rows, cols): (&B::Tensor, &B::Tensor),
        kv: KvFormat,
    ) -> Result<Self, Error> {
        let (backend, hidden) = (loader.backend, config.hidden_size);
        let fc = loader.linear("eagle.fc", hidden, 2 * hidden)?;
        let layer = Layer::load(loader, config, "eagle.layer")?;
        let mut tokens = backend.tensor(config.image_vocab_size, hidden)?;
        backend.upload(&vec![0.0; config.image_vocab_size * hidden], &mut tokens);
        Ok(Self {
            tokens,
            rows: project(backend, &fc, hidden, &backend.read(rows)?)?,
            cols: project(backend, &fc, hidden, &backend.read(cols)?)?,
            fc,
            layer,
            hidden,
            intermediate: config.intermediate_size,
            shape: config.attention(),
            kv,
        })
    }

    /// What rows `[n, hidden]` that are added to inputs of the target add to those of the drafter.
    pub fn project(&self, backend: &B, parts: &[f32]) -> Result<B::Tensor, BackendError> {
        project(backend, &self.fc, self.hidden, parts)
    }

    /// Room for passes of up to `rows` rows.
    pub fn activations(&self, backend: &B, rows: usize) -> Result<Activations<B>, BackendError> {
        Ok(Activations {
            source: backend.operand(rows, 2 * self.hidden)?,
            layer: Scratch::new(backend, rows, self.hidden, self.shape, self.intermediate)?,
        })
    }

    /// Storage for the keys and values of `pages` pages.
    pub fn kv_pool(&self, backend: &B, pages: usize) -> Result<B::KvPool, BackendError> {
        backend.kv_pool(1, pages, self.shape, self.kv)
    }

    /// Guesses, for each row of the step, the state that predicts the token after it: `[rows, hidden]`. The step has one
    /// source per row, which names the state that predicted the row's token, and that token.
    pub fn forward(
        &self,
        backend: &B,
        step: &B::Step,
        inputs: Inputs<'_, B>,
        kv: &mut B::KvPool,
        s: &mut Activations<B>,
        out: &mut B::Tensor,
    ) {
        let tables = Embedding { tokens: &self.tokens, rows: &self.rows, cols: &self.cols, bias: inputs.bias };
        backend.embed(step, tables, inputs.canvas, out);
        backend.gather_sources(step, inputs.states, inputs.tokens, inputs.canvas, &mut s.source);
        backend.linear(&s.source, &self.fc, out, Epilogue::Add, Grouping::One);
        self.layer.forward(backend, out, step, (0, kv), &mut s.layer);
    }
}

/// `fc [0; part]` of rows `[n, hidden]`.
fn project<B: Backend>(backend: &B, fc: &B::Weight, hidden: usize, parts: &[f32]) -> Result<B::Tensor, BackendError> {
    let rows = parts.len() / hidden;
    let padded: Vec<f32> =
        parts.chunks_exact(hidden).flat_map(|part| [vec![0.0; hidden], part.to_vec()].concat()).collect();
    let (mut source, mut out) = (backend.operand(rows, 2 * hidden)?, backend.tensor(rows, hidden)?);
    backend.upload(&padded, &mut source);
    backend.linear(&source, fc, &mut out, Epilogue::Store, Grouping::One);
    Ok(out)
}
