//! The embedded text-to-image family: a word-level prompt through a small bidirectional encoder, a Llama-style
//! decoder over a grid of VQ tokens, spatial heads, a VQ tokenizer.
//!
//! The decoder's sequence is `[text] ... [text] [BOI] [image] ...`. Every image token's input is the sum of its
//! embedding, a row and a column embedding and the condition (a projection of the encoder's first output), so
//! that the prompt is present at every token and not only through attention to the prefix. The empty prompt is
//! the unconditional branch.

use crate::backend::{Backend, Embedding, Epilogue, Error as BackendError, Grouping, Storage};
use crate::checkpoint::{Config, Error, Files};
use crate::grid::Grid;
use crate::nn::classifier::Classifier;
use crate::nn::eagle::Eagle;
use crate::nn::spatial_heads::SpatialHeads;
use crate::nn::text_encoder::TextEncoder;
use crate::nn::transformer::Transformer;
use crate::nn::vq::Vq;
use crate::nn::{Formats, Loader};
use tokenizers::Tokenizer;

const BOS: &str = "[BOS]";
const UNKNOWN: &str = "[UNK]";

/// A loaded model.
pub struct Avatar<B: Backend> {
    /// Where it runs.
    pub backend: B,
    /// Its configuration.
    pub config: Config,
    /// The decoder.
    pub transformer: Transformer<B>,
    /// The draft heads, if it has any.
    pub heads: Option<SpatialHeads<B>>,
    /// The image tokenizer.
    pub vq: Vq<B>,
    tokenizer: Tokenizer,
    bos: u32,
    unknown: u32,
    text: TextEncoder<B>,
    text_proj: B::Weight,
    cond_proj: B::Weight,
    boi: Vec<f32>,
    embed: B::Tensor,
    row_embed: B::Tensor,
    col_embed: B::Tensor,
}

/// Token ids of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// `[BOS]` and the words.
    pub ids: Vec<u32>,
    /// Words that the model never saw, in order of appearance.
    pub unknown: Vec<String>,
    /// Words beyond the encoder's positions, which are dropped.
    pub dropped: usize,
}

/// A prompt as the decoder takes it.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Inputs of the prefix, BOI last: `[tokens, hidden]`.
    pub prefix: Vec<f32>,
    /// Added to the input of every image token: `[hidden]`.
    pub bias: Vec<f32>,
}

impl<B: Backend> Avatar<B> {
    /// Loads and checks every file but the classifier's.
    pub fn load(backend: B, files: &Files, formats: Formats) -> Result<Self, Error> {
        let config = files.config()?;
        let tokenizer = load_tokenizer(files, config.text_encoder.vocab_size)?;
        let special = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| Error::Format {
                file: "tokenizer.json".into(),
                reason: format!("the token {token} is missing"),
            })
        };
        let (bos, unknown) = (special(BOS)?, special(UNKNOWN)?);
        let (hidden, vocab) = (config.hidden_size, config.image_vocab_size);
        let tensors = files.tensors("model")?;
        let rows = formats.rows.unwrap_or(2 * config.grid.width);
        let storage = Storage { format: formats.weights, rows };
        let loader = Loader { backend: &backend, tensors: &tensors, storage };
        let text_width = config.text_encoder.hidden_size;
        let text = TextEncoder::load(&loader, &config.text_encoder, config.rms_norm_eps)?;
        let transformer = Transformer::load(&loader, &config, formats.kv)?;
        let heads = config.spatial_heads.map(|heads| SpatialHeads::load(&loader, &config, heads)).transpose()?;
        let text_proj = loader.linear("model.text_proj", hidden, text_width)?;
        let cond_proj = loader.linear("model.cond_proj", hidden, text_width)?;
        let boi = loader.host("model.boi.weight", &[hidden])?;
        let embed = loader.table("model.embed_tokens.weight", vocab, hidden)?;
        let row_embed = loader.table("model.row_embed.weight", config.grid.height, hidden)?;
        let col_embed = loader.table("model.col_embed.weight", config.grid.width, hidden)?;
        tensors.finish()?;
        let tensors = files.tensors("vq")?;
        let loader = Loader { backend: &backend, tensors: &tensors, storage: Storage::default() };
        let vq = Vq::load(&loader, &config.vq, vocab)?;
        tensors.finish()?;
        Ok(Self {
            backend,
            config,
            transformer,
            heads,
            vq,
            tokenizer,
            bos,
            unknown,
            text,
            text_proj,
            cond_proj,
            boi,
            embed,
            row_embed,
            col_embed,
        })
    }

    /// Loads the classifier that evaluates this model's pictures, when the model ships one.
    pub fn load_classifier(&self, files: &Files) -> Result<Option<Classifier<B>>, Error> {
        let Some(config) = self.config.classifier.as_ref().filter(|_| files.contains("classifier.safetensors")) else {
            return Ok(None);
        };
        let tensors = files.tensors("classifier")?;
        let loader = Loader { backend: &self.backend, tensors: &tensors, storage: Storage::default() };
        let classifier = Classifier::load(&loader, config)?;
        tensors.finish()?;
        Ok(Some(classifier))
    }

    /// Loads the EAGLE drafter of this model.
    pub fn load_eagle(&self, files: &Files) -> Result<Eagle<B>, Error> {
        let tensors = files.tensors("eagle")?;
        let loader = Loader { backend: &self.backend, tensors: &tensors, storage: Storage::default() };
        let places = (&self.row_embed, &self.col_embed);
        let eagle = Eagle::load(&loader, &self.config, places, self.transformer.kv_format())?;
        tensors.finish()?;
        Ok(eagle)
    }

    /// The token grid.
    pub fn grid(&self) -> Grid {
        self.config.grid()
    }

    /// Tokenizes a prompt.
    pub fn prompt(&self, text: &str) -> Result<Prompt, Error> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| Error::Format { file: "tokenizer.json".into(), reason: error.to_string() })?;
        let words = encoding.get_ids().iter().zip(encoding.get_offsets());
        let unknown = words.filter(|(id, _)| **id == self.unknown);
        let unknown = unknown.filter_map(|(_, &(start, end))| text.get(start..end)).map(str::to_owned).collect();
        let mut ids = vec![self.bos];
        ids.extend(encoding.get_ids());
        let dropped = ids.len().saturating_sub(self.config.text_encoder.max_positions);
        ids.truncate(self.config.text_encoder.max_positions);
        Ok(Prompt { ids, unknown, dropped })
    }

    /// The empty prompt: the unconditional branch of guidance.
    pub fn unconditional(&self) -> Prompt {
        Prompt { ids: vec![self.bos], unknown: Vec::new(), dropped: 0 }
    }

    /// Runs the text encoder: `[ids, its width]`, an operand of products.
    pub fn encode(&self, prompt: &Prompt) -> Result<B::Tensor, BackendError> {
        self.text.encode(&self.backend, &prompt.ids)
    }

    /// A prompt as the decoder takes it.
    pub fn condition(&self, prompt: &Prompt) -> Result<Condition, BackendError> {
        let (backend, hidden) = (&self.backend, self.config.hidden_size);
        let encoded = self.encode(prompt)?;
        let mut projected = backend.tensor(prompt.ids.len(), hidden)?;
        backend.linear(&encoded, &self.text_proj, &mut projected, Epilogue::Store, Grouping::One);
        let mut prefix = backend.read(&projected)?.into_owned();
        backend.linear(&encoded, &self.cond_proj, &mut projected, Epilogue::Store, Grouping::One);
        let bias = backend.read(&projected)?[..hidden].to_vec();
        prefix.extend(self.boi.iter().zip(&bias).map(|(boi, bias)| boi + bias));
        Ok(Condition { prefix, bias })
    }

    /// The bare embeddings of the image tokens, `[vocab, hidden]`.
    pub fn token_table(&self) -> &B::Tensor {
        &self.embed
    }

    /// What the decoder's input is made of: token, row, column and the condition's bias (one row per sequence).
    pub fn embedding<'a>(&'a self, bias: &'a B::Tensor) -> Embedding<'a, B::Tensor> {
        Embedding { tokens: &self.embed, rows: &self.row_embed, cols: &self.col_embed, bias }
    }
}

fn load_tokenizer(files: &Files, vocab: usize) -> Result<Tokenizer, Error> {
    let file = "tokenizer.json";
    let invalid = |reason: String| Error::Format { file: file.into(), reason };
    let tokenizer = Tokenizer::from_bytes(files.read(file)?).map_err(|error| invalid(error.to_string()))?;
    let size = tokenizer.get_vocab_size(true);
    if size != vocab {
        return Err(invalid(format!("it has {size} tokens, config.json says text_encoder.vocab_size {vocab}")));
    }
    Ok(tokenizer)
}
