//! A Llama-style decoder: RMSNorm, rotary attention over the paged KV cache, SwiGLU.

use super::Loader;
use crate::backend::{
    AttentionShape, Axes, Backend, Epilogue, Error as BackendError, Grouping, KvFormat, Pairing, Rotary, WeightFormat,
};
use crate::checkpoint::{Config, Error};

/// One layer of a decoder.
pub(super) struct Layer<B: Backend> {
    input_norm: B::Vector,
    /// `[queries, keys, values]` stacked.
    qkv: B::Weight,
    o: B::Weight,
    qk_norm: Option<(B::Vector, B::Vector)>,
    post_attention_norm: B::Vector,
    gate: B::Weight,
    up: B::Weight,
    down: B::Weight,
    rotary: Rotary,
    eps: f32,
}

/// The decoder stack with its final norm and image head.
pub struct Transformer<B: Backend> {
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    lm_head: B::Weight,
    shape: AttentionShape,
    weights: WeightFormat,
    kv: KvFormat,
    eps: f32,
    hidden: usize,
    intermediate: usize,
    vocab: usize,
}

/// Activations of one pass, allocated once for the largest pass.
pub struct Scratch<B: Backend> {
    pub(crate) normed: B::Tensor,
    qkv: B::Tensor,
    mixed: B::Tensor,
    inner: B::Tensor,
}

impl<B: Backend> Transformer<B> {
    /// Loads `model.layers.*`, `model.norm` and `lm_head`; keys and values will be of this format.
    pub fn load(loader: &Loader<'_, B>, config: &Config, kv: KvFormat) -> Result<Self, Error> {
        let layer = |index: usize| Layer::load(loader, config, &format!("model.layers.{index}"));
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?;
        Ok(Self {
            layers,
            norm: loader.vector("model.norm.weight", config.hidden_size)?,
            lm_head: loader.linear("lm_head", config.image_vocab_size, config.hidden_size)?,
            shape: config.attention(),
            weights: loader.storage.format,
            kv,
            eps: config.rms_norm_eps,
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            vocab: config.image_vocab_size,
        })
    }

    /// Bytes of the weights that one pass reads, in their format; the head's are bf16.
    pub fn weight_bytes(&self) -> usize {
        let layer = self.hidden * (self.shape.query() + self.shape.qkv()) + 3 * self.hidden * self.intermediate;
        self.weights.bytes(self.layers.len() * layer) + 2 * self.vocab * self.hidden
    }

    /// Scratch for passes of up to `rows` rows.
    pub fn scratch(&self, backend: &B, rows: usize) -> Result<Scratch<B>, BackendError> {
        Scratch::new(backend, rows, self.hidden, self.shape, self.intermediate)
    }

    /// How keys and values are kept.
    pub fn kv_format(&self) -> KvFormat {
        self.kv
    }

    /// Storage for the keys and values of `pages` pages.
    pub fn kv_pool(&self, backend: &B, pages: usize) -> Result<B::KvPool, BackendError> {
        backend.kv_pool(self.layers.len(), pages, self.shape, self.kv)
    }

    /// Runs the residual stream `x` `[rows of the step, hidden]` through all layers in place; keys and values go to
    /// the cache. What remains in `x` is the hidden state before the final norm.
    pub fn forward(&self, backend: &B, x: &mut B::Tensor, step: &B::Step, kv: &mut B::KvPool, s: &mut Scratch<B>) {
        for (index, layer) in self.layers.iter().enumerate() {
            layer.forward(backend, x, step, (index, kv), s);
        }
    }

    /// Logits `[rows, vocab]` of hidden states before the final norm: the image head, which the spatial heads share.
    /// `normed` is scratch.
    pub fn logits(&self, backend: &B, hidden: &B::Tensor, normed: &mut B::Tensor, out: &mut B::Tensor) {
        backend.rms_norm(hidden, &self.norm, self.eps, normed, Grouping::One);
        backend.linear(normed, &self.lm_head, out, Epilogue::Store, Grouping::One);
    }
}

impl<B: Backend> Scratch<B> {
    /// For passes of up to `rows` rows of layers of these widths.
    pub(super) fn new(
        backend: &B,
        rows: usize,
        hidden: usize,
        shape: AttentionShape,
        intermediate: usize,
    ) -> Result<Self, BackendError> {
        Ok(Self {
            normed: backend.operand(rows, hidden)?,
            qkv: backend.tensor(rows, shape.qkv())?,
            mixed: backend.operand(rows, shape.query())?,
            inner: backend.operand(rows, intermediate)?,
        })
    }
}

impl<B: Backend> Layer<B> {
    /// Loads `{prefix}.*`.
    pub(super) fn load(loader: &Loader<'_, B>, config: &Config, prefix: &str) -> Result<Self, Error> {
        let (hidden, inner, shape) = (config.hidden_size, config.intermediate_size, config.attention());
        let name = |part: &str| format!("{prefix}.{part}");
        let qkv = [("q", shape.query()), ("k", shape.key()), ("v", shape.key())];
        let qkv = qkv.map(|(part, n)| (name(&format!("self_attn.{part}_proj")), n));
        let head_norm = |part: &str| loader.vector(&name(part), shape.head_dim);
        Ok(Self {
            input_norm: loader.vector(&name("input_layernorm.weight"), hidden)?,
            qkv: loader.layer(&qkv, hidden)?,
            o: loader.layer(&[(name("self_attn.o_proj"), hidden)], shape.query())?,
            qk_norm: match config.qk_norm {
                true => Some((head_norm("self_attn.q_norm.weight")?, head_norm("self_attn.k_norm.weight")?)),
                false => None,
            },
            post_attention_norm: loader.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate: loader.layer(&[(name("mlp.gate_proj"), inner)], hidden)?,
            up: loader.layer(&[(name("mlp.up_proj"), inner)], hidden)?,
            down: loader.layer(&[(name("mlp.down_proj"), hidden)], inner)?,
            rotary: Rotary { theta: config.rope_theta, axes: Axes::Two, pairing: Pairing::Halves },
            eps: config.rms_norm_eps,
        })
    }

    /// Runs the residual stream `x` `[rows of the step, hidden]` through the layer in place; keys and values go to this
    /// layer of the cache.
    pub(super) fn forward(
        &self,
        backend: &B,
        x: &mut B::Tensor,
        step: &B::Step,
        (layer, kv): (usize, &mut B::KvPool),
        s: &mut Scratch<B>,
    ) {
        backend.rms_norm(x, &self.input_norm, self.eps, &mut s.normed, Grouping::One);
        backend.linear(&s.normed, &self.qkv, &mut s.qkv, Epilogue::Store, Grouping::One);
        let qk_norm = self.qk_norm.as_ref().map(|(q, k)| (q, k, self.eps));
        backend.rotate_and_store(&mut s.qkv, qk_norm, self.rotary, step, layer, kv);
        backend.attention(&s.qkv, step, layer, kv, &mut s.mixed);
        backend.linear(&s.mixed, &self.o, x, Epilogue::Add, Grouping::One);
        backend.rms_norm(x, &self.post_attention_norm, self.eps, &mut s.normed, Grouping::One);
        backend.swiglu(&s.normed, &self.gate, &self.up, &mut s.inner, Grouping::One);
        backend.linear(&s.inner, &self.down, x, Epilogue::Add, Grouping::One);
    }
}
