//! Options that several commands share.

use super::Failure;
use super::device::Device;
use crate::backend::{Backend, KvFormat, WeightFormat};
use crate::checkpoint::Files;
use crate::engine::Generator;
use crate::models::embedded;
use crate::nn::Formats;
use crate::sampling::Sampling;
use std::path::PathBuf;

/// Which model, and where.
#[derive(clap::Args)]
pub struct ModelOptions {
    /// Directory of a model; the embedded one when absent
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Where to run: auto (the first GPU, else the processor), cpu, cuda or cuda:N
    #[arg(long, default_value_t)]
    pub device: Device,
    /// How the decoder's weights are held: bf16, fp8 or int4. On the processor this saves no memory: it multiplies the same
    /// quantised numbers
    #[arg(long, value_name = "FORMAT", default_value_t)]
    weights: WeightFormat,
    /// How keys and values are held: bf16 or fp8, likewise
    #[arg(long, value_name = "FORMAT", default_value_t)]
    kv: KvFormat,
}

/// How logits become a distribution; the model's defaults where absent.
#[derive(clap::Args)]
pub struct SamplingOptions {
    /// Classifier-free guidance; 1 is none
    #[arg(long, allow_negative_numbers = true)]
    cfg: Option<f32>,
    /// Temperature; 0 is greedy
    #[arg(long, allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the K most probable tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the smallest set of tokens with this mass; 1 keeps all
    #[arg(long, value_name = "MASS", allow_negative_numbers = true)]
    top_p: Option<f32>,
}

impl ModelOptions {
    /// The model's files.
    pub fn files(&self) -> Result<Files, Failure> {
        match &self.model {
            None => Ok(embedded::avatar()),
            Some(path) if path.is_dir() => Ok(Files::Directory(path.clone())),
            Some(path) => Err(format!("--model {}: there is no such directory", path.display()).into()),
        }
    }

    /// Loads the model.
    pub fn load<B: Backend>(&self, backend: B, files: &Files) -> Result<Generator<B>, Failure> {
        let formats = Formats { weights: self.weights, kv: self.kv, rows: None };
        Ok(Generator::load_in(formats, backend, files)?)
    }

    /// The formats, unless they are the usual ones.
    pub fn formats(&self) -> Option<String> {
        let usual = self.weights == WeightFormat::default() && self.kv == KvFormat::default();
        (!usual).then(|| format!("weights {}, keys and values {}", self.weights, self.kv))
    }
}

impl SamplingOptions {
    /// The settings, with the model's defaults where none are given.
    pub fn resolve<B: Backend>(&self, generator: &Generator<B>) -> Result<Sampling, Failure> {
        let defaults = generator.default_sampling();
        let sampling = Sampling {
            cfg: self.cfg.unwrap_or(defaults.cfg),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
        };
        sampling.validate()?;
        Ok(sampling)
    }
}
