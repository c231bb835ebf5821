//! The bidirectional encoder of the prompt. It runs once per prompt, so its attention is a plain loop on the host.

use super::Loader;
use crate::backend::{Backend, Epilogue, Error as BackendError, Grouping};
use crate::checkpoint::{Error, TextConfig};

struct Layer<B: Backend> {
    input_norm: B::Vector,
    q: B::Weight,
    k: B::Weight,
    v: B::Weight,
    o: B::Weight,
    post_attention_norm: B::Vector,
    gate: B::Weight,
    up: B::Weight,
    down: B::Weight,
}

/// Pre-norm transformer encoder with learned positions.
pub struct TextEncoder<B: Backend> {
    embed: Vec<f32>,
    positions: Vec<f32>,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    config: TextConfig,
    eps: f32,
}

impl<B: Backend> TextEncoder<B> {
    /// Loads `text.*`.
    pub fn load(loader: &Loader<'_, B>, config: &TextConfig, eps: f32) -> Result<Self, Error> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let layer = |index: usize| {
            let name = |part: &str| format!("text.layers.{index}.{part}");
            Ok(Layer {
                input_norm: loader.vector(&name("input_layernorm.weight"), hidden)?,
                q: loader.linear(&name("self_attn.q_proj"), hidden, hidden)?,
                k: loader.linear(&name("self_attn.k_proj"), hidden, hidden)?,
                v: loader.linear(&name("self_attn.v_proj"), hidden, hidden)?,
                o: loader.linear(&name("self_attn.o_proj"), hidden, hidden)?,
                post_attention_norm: loader.vector(&name("post_attention_layernorm.weight"), hidden)?,
                gate: loader.linear(&name("mlp.gate_proj"), inner, hidden)?,
                up: loader.linear(&name("mlp.up_proj"), inner, hidden)?,
                down: loader.linear(&name("mlp.down_proj"), hidden, inner)?,
            })
        };
        Ok(Self {
            embed: loader.host("text.embed.weight", &[config.vocab_size, hidden])?,
            positions: loader.host("text.positions.weight", &[config.max_positions, hidden])?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, Error>>()?,
            norm: loader.vector("text.norm.weight", hidden)?,
            config: config.clone(),
            eps,
        })
    }

    /// Encodes token ids (at most `max_positions`, each below `vocab_size`) to `[ids, hidden_size]`, an operand of products.
    pub fn encode(&self, backend: &B, ids: &[u32]) -> Result<B::Tensor, BackendError> {
        let (rows, hidden) = (ids.len(), self.config.hidden_size);
        let (tensor, operand) = (|cols| backend.tensor(rows, cols), |cols| backend.operand(rows, cols));
        let (mut x, mut normed, mut mixed) = (tensor(hidden)?, operand(hidden)?, operand(hidden)?);
        let (mut q, mut k, mut v) = (tensor(hidden)?, tensor(hidden)?, tensor(hidden)?);
        let mut inner = operand(self.config.intermediate_size)?;
        backend.upload(&self.embedded(ids), &mut x);
        for layer in &self.layers {
            backend.rms_norm(&x, &layer.input_norm, self.eps, &mut normed, Grouping::One);
            backend.linear(&normed, &layer.q, &mut q, Epilogue::Store, Grouping::One);
            backend.linear(&normed, &layer.k, &mut k, Epilogue::Store, Grouping::One);
            backend.linear(&normed, &layer.v, &mut v, Epilogue::Store, Grouping::One);
            let attended = self.attend(&backend.read(&q)?, &backend.read(&k)?, &backend.read(&v)?);
            backend.upload(&attended, &mut mixed);
            backend.linear(&mixed, &layer.o, &mut x, Epilogue::Add, Grouping::One);
            backend.rms_norm(&x, &layer.post_attention_norm, self.eps, &mut normed, Grouping::One);
            backend.swiglu(&normed, &layer.gate, &layer.up, &mut inner, Grouping::One);
            backend.linear(&inner, &layer.down, &mut x, Epilogue::Add, Grouping::One);
        }
        backend.rms_norm(&x, &self.norm, self.eps, &mut normed, Grouping::One);
        Ok(normed)
    }

    fn embedded(&self, ids: &[u32]) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let words = ids.iter().flat_map(|&id| &self.embed[id as usize * hidden..][..hidden]);
        words.zip(&self.positions).map(|(word, position)| word + position).collect()
    }

    /// softmax(q k^T / sqrt(head_dim)) v per head, every row seeing every row.
    fn attend(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let (hidden, heads) = (self.config.hidden_size, self.config.num_attention_heads);
        let (dim, rows) = (hidden / heads, q.len() / hidden);
        let mut out = vec![0.0; q.len()];
        for (row, head) in (0..rows).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let at = |row: usize| row * hidden + head * dim..row * hidden + (head + 1) * dim;
            let dot = |key: usize| q[at(row)].iter().zip(&k[at(key)]).map(|(a, b)| a * b).sum::<f32>();
            let scores: Vec<f32> = (0..rows).map(|key| dot(key) / (dim as f32).sqrt()).collect();
            let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - top).exp()).collect();
            let total: f32 = weights.iter().sum();
            for (key, weight) in weights.iter().enumerate() {
                for (o, value) in out[at(row)].iter_mut().zip(&v[at(key)]) {
                    *o += weight / total * value;
                }
            }
        }
        out
    }
}
