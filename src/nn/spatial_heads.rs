//! Spatial draft heads (SSD, arXiv 2606.20543, section 3): one independent position-wise predictor per direction
//! and offset.
//!
//! With `h` the hidden state before the final norm from which token `t` at (row, col) was predicted and `e` the
//! embedding of `t`: `u = W0 [h; e]`, `h^ = u + W2 (silu(W1 n) * W3 n)` with `n = RMSNorm(u)`. The prediction of
//! the shifted position is the frozen model's head on `RMSNorm(h^)`.

use super::Loader;
use crate::backend::{Backend, Epilogue};
use crate::checkpoint::{Config, Error};

/// Where a head looks, relative to the position whose state it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// This many columns to the right, in the same row.
    Right(usize),
    /// This many rows down, in the same column.
    Down(usize),
}

struct Head<B: Backend> {
    w0: B::Weight,
    norm: B::Vector,
    w1: B::Weight,
    w3: B::Weight,
    w2: B::Weight,
}

/// All heads of a model.
pub struct SpatialHeads<B: Backend> {
    horizontal: Vec<Head<B>>,
    vertical: Vec<Head<B>>,
    hidden: usize,
    intermediate: usize,
    eps: f32,
}

/// Activations of the heads, allocated once.
pub struct Scratch<B: Backend> {
    normed: B::Tensor,
    inner: B::Tensor,
}

impl<B: Backend> SpatialHeads<B> {
    /// Loads `heads.*`.
    pub fn load(loader: &Loader<'_, B>, config: &Config) -> Result<Self, Error> {
        let (hidden, inner) = (config.hidden_size, config.spatial_heads.intermediate_size);
        let head = |direction: &str, offset: usize| {
            let name = |part: &str| format!("heads.{direction}.{offset}.{part}");
            Ok(Head {
                w0: loader.linear(&name("w0"), hidden, 2 * hidden)?,
                norm: loader.vector(&name("norm.weight"), hidden)?,
                w1: loader.linear(&name("w1"), inner, hidden)?,
                w3: loader.linear(&name("w3"), inner, hidden)?,
                w2: loader.linear(&name("w2"), hidden, inner)?,
            })
        };
        let all = |direction, count| (1..=count).map(|offset| head(direction, offset)).collect::<Result<_, Error>>();
        Ok(Self {
            horizontal: all("horizontal", config.spatial_heads.horizontal)?,
            vertical: all("vertical", config.spatial_heads.vertical)?,
            hidden,
            intermediate: inner,
            eps: config.rms_norm_eps,
        })
    }

    /// Scratch for up to `rows` source positions.
    pub fn scratch(&self, backend: &B, rows: usize) -> Scratch<B> {
        Scratch { normed: backend.tensor(rows, self.hidden), inner: backend.tensor(rows, self.intermediate) }
    }

    /// Predicted hidden states `[rows, hidden]` at `offset` from sources `[rows, 2 * hidden]` (`[h; e]` per row).
    pub fn predict(&self, backend: &B, offset: Offset, source: &B::Tensor, s: &mut Scratch<B>, out: &mut B::Tensor) {
        let head = match offset {
            Offset::Right(columns) => &self.horizontal[columns - 1],
            Offset::Down(rows) => &self.vertical[rows - 1],
        };
        backend.linear(source, &head.w0, out, Epilogue::Store);
        backend.rms_norm(out, &head.norm, self.eps, &mut s.normed);
        backend.swiglu(&s.normed, &head.w1, &head.w3, &mut s.inner);
        backend.linear(&s.inner, &head.w2, out, Epilogue::Add);
    }
}
