//! A Llama-style decoder: RMSNorm, rotary attention over the paged KV cache, SwiGLU.

use super::Loader;
use crate::backend::{AttentionShape, Backend, Epilogue, Layout, Rotary};
use crate::checkpoint::{Config, Error};

struct Layer<B: Backend> {
    input_norm: B::Vector,
    q: B::Weight,
    k: B::Weight,
    v: B::Weight,
    o: B::Weight,
    qk_norm: Option<(B::Vector, B::Vector)>,
    post_attention_norm: B::Vector,
    gate: B::Weight,
    up: B::Weight,
    down: B::Weight,
}

/// The decoder stack with its final norm and image head.
pub struct Transformer<B: Backend> {
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    lm_head: B::Weight,
    shape: AttentionShape,
    rotary: Rotary,
    eps: f32,
    hidden: usize,
    intermediate: usize,
    vocab: usize,
}

/// Activations of one pass, allocated once for the largest pass.
pub struct Scratch<B: Backend> {
    normed: B::Tensor,
    q: B::Tensor,
    k: B::Tensor,
    v: B::Tensor,
    mixed: B::Tensor,
    inner: B::Tensor,
}

impl<B: Backend> Transformer<B> {
    /// Loads `model.layers.*`, `model.norm` and `lm_head`.
    pub fn load(loader: &Loader<'_, B>, config: &Config) -> Result<Self, Error> {
        let layers = (0..config.num_hidden_layers).map(|i| Layer::load(loader, config, i)).collect::<Result<_, _>>()?;
        Ok(Self {
            layers,
            norm: loader.vector("model.norm.weight", config.hidden_size)?,
            lm_head: loader.linear("lm_head", config.image_vocab_size, config.hidden_size)?,
            shape: config.attention(),
            rotary: Rotary { theta: config.rope_theta },
            eps: config.rms_norm_eps,
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            vocab: config.image_vocab_size,
        })
    }

    /// Bytes of the weights that one pass reads, as stored (bf16).
    pub fn weight_bytes(&self) -> usize {
        let (query, key) = (self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim);
        let layer = 2 * self.hidden * (query + key) + 3 * self.hidden * self.intermediate;
        2 * (self.layers.len() * layer + self.vocab * self.hidden)
    }

    /// Scratch for passes of up to `rows` rows.
    pub fn scratch(&self, backend: &B, rows: usize) -> Scratch<B> {
        let (query, key) = (self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim);
        Scratch {
            normed: backend.tensor(rows, self.hidden),
            q: backend.tensor(rows, query),
            k: backend.tensor(rows, key),
            v: backend.tensor(rows, key),
            mixed: backend.tensor(rows, query),
            inner: backend.tensor(rows, self.intermediate),
        }
    }

    /// Storage for the keys and values of `pages` pages.
    pub fn kv_pool(&self, backend: &B, pages: usize) -> B::KvPool {
        backend.kv_pool(self.layers.len(), pages, self.shape)
    }

    /// Runs the residual stream `x` `[rows, hidden]` through all layers in place; keys and values go to the cache.
    /// What remains in `x` is the hidden state before the final norm.
    pub fn forward(&self, backend: &B, x: &mut B::Tensor, layout: &Layout, kv: &mut B::KvPool, s: &mut Scratch<B>) {
        for (index, layer) in self.layers.iter().enumerate() {
            backend.rms_norm(x, &layer.input_norm, self.eps, &mut s.normed);
            backend.linear(&s.normed, &layer.q, &mut s.q, Epilogue::Store);
            backend.linear(&s.normed, &layer.k, &mut s.k, Epilogue::Store);
            backend.linear(&s.normed, &layer.v, &mut s.v, Epilogue::Store);
            let qk_norm = layer.qk_norm.as_ref().map(|(q, k)| (q, k, self.eps));
            backend.rotate_and_store(&mut s.q, &mut s.k, &s.v, qk_norm, self.rotary, layout, index, kv);
            backend.attention(&s.q, layout, index, kv, &mut s.mixed);
            backend.linear(&s.mixed, &layer.o, x, Epilogue::Add);
            backend.rms_norm(x, &layer.post_attention_norm, self.eps, &mut s.normed);
            backend.swiglu(&s.normed, &layer.gate, &layer.up, &mut s.inner);
            backend.linear(&s.inner, &layer.down, x, Epilogue::Add);
        }
    }

    /// Logits `[rows, vocab]` of hidden states before the final norm: the image head, which the spatial heads share.
    pub fn logits(&self, backend: &B, hidden: &B::Tensor, s: &mut Scratch<B>, out: &mut B::Tensor) {
        backend.rms_norm(hidden, &self.norm, self.eps, &mut s.normed);
        backend.linear(&s.normed, &self.lm_head, out, Epilogue::Store);
    }
}

impl<B: Backend> Layer<B> {
    fn load(loader: &Loader<'_, B>, config: &Config, index: usize) -> Result<Self, Error> {
        let (hidden, inner, shape) = (config.hidden_size, config.intermediate_size, config.attention());
        let (query, key) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let head_norm = |part: &str| loader.vector(&name(part), shape.head_dim);
        Ok(Self {
            input_norm: loader.vector(&name("input_layernorm.weight"), hidden)?,
            q: loader.linear(&name("self_attn.q_proj"), query, hidden)?,
            k: loader.linear(&name("self_attn.k_proj"), key, hidden)?,
            v: loader.linear(&name("self_attn.v_proj"), key, hidden)?,
            o: loader.linear(&name("self_attn.o_proj"), hidden, query)?,
            qk_norm: match config.qk_norm {
                true => Some((head_norm("self_attn.q_norm.weight")?, head_norm("self_attn.k_norm.weight")?)),
                false => None,
            },
            post_attention_norm: loader.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate: loader.linear(&name("mlp.gate_proj"), inner, hidden)?,
            up: loader.linear(&name("mlp.up_proj"), inner, hidden)?,
            down: loader.linear(&name("mlp.down_proj"), hidden, inner)?,
        })
    }
}
