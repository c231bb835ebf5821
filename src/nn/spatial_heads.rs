//! Spatial draft heads (SSD, arXiv 2606.20543, section 3): one independent position-wise predictor per direction
//! and offset.
//!
//! With `h` the hidden state before the final norm from which token `t` at (row, col) was predicted and `e` the
//! embedding of `t`: `u = W0 [h; e]`, `h^ = u + W2 (silu(W1 n) * W3 n)` with `n = RMSNorm(u)`. The prediction of
//! the shifted position is the frozen model's head on `RMSNorm(h^)`.

use super::Loader;
use crate::backend::{Backend, Epilogue, Error as BackendError, Grouping};
use crate::checkpoint::{Config, Error, HeadsConfig};

/// Where a head looks, relative to the position whose state it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// This many columns to the right, in the same row.
    Right(usize),
    /// This many rows down, in the same column.
    Down(usize),
}

/// All heads of a model, stacked: horizontal offsets first, then vertical ones.
pub struct SpatialHeads<B: Backend> {
    w0: B::Weight,
    norm: B::Vector,
    w1: B::Weight,
    w3: B::Weight,
    w2: B::Weight,
    hidden: usize,
    intermediate: usize,
    eps: f32,
}

/// Activations of the heads, allocated once.
pub struct Scratch<B: Backend> {
    pub(crate) normed: B::Tensor,
    inner: B::Tensor,
}

impl<B: Backend> SpatialHeads<B> {
    /// Loads `heads.*`.
    pub fn load(loader: &Loader<'_, B>, config: &Config, heads: HeadsConfig) -> Result<Self, Error> {
        let (hidden, inner) = (config.hidden_size, heads.intermediate_size);
        let all = [("horizontal", heads.horizontal), ("vertical", heads.vertical)];
        let all = || all.into_iter().flat_map(|(direction, count)| (1..=count).map(move |offset| (direction, offset)));
        let names = |part: &str| all().map(|(d, offset)| format!("heads.{d}.{offset}.{part}")).collect::<Vec<_>>();
        let stacked = |part: &str, n: usize, k: usize| {
            loader.stacked(&names(part).into_iter().map(|name| (name, n)).collect::<Vec<_>>(), k)
        };
        Ok(Self {
            w0: stacked("w0", hidden, 2 * hidden)?,
            norm: loader.stacked_vector(&names("norm.weight"), hidden)?,
            w1: stacked("w1", inner, hidden)?,
            w3: stacked("w3", inner, hidden)?,
            w2: stacked("w2", hidden, inner)?,
            hidden,
            intermediate: inner,
            eps: config.rms_norm_eps,
        })
    }

    /// Scratch for up to `rows` source rows.
    pub fn scratch(&self, backend: &B, rows: usize) -> Result<Scratch<B>, BackendError> {
        Ok(Scratch { normed: backend.operand(rows, self.hidden)?, inner: backend.operand(rows, self.intermediate)? })
    }

    /// Predicted hidden states `[rows, hidden]` of the step's sources `[rows, 2 * hidden]` (`[h; e]` per row), each
    /// by the head of its group.
    pub fn predict(&self, backend: &B, step: &B::Step, source: &B::Tensor, s: &mut Scratch<B>, out: &mut B::Tensor) {
        backend.linear(source, &self.w0, out, Epilogue::Store, Grouping::By(step));
        backend.rms_norm(out, &self.norm, self.eps, &mut s.normed, Grouping::By(step));
        backend.swiglu(&s.normed, &self.w1, &self.w3, &mut s.inner, Grouping::By(step));
        backend.linear(&s.inner, &self.w2, out, Epilogue::Add, Grouping::By(step));
    }
}
