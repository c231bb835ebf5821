//! Options that several commands share.

use super::Failure;
use super::device::Device;
use crate::backend::Backend;
use crate::checkpoint::Files;
use crate::engine::Generator;
use crate::models::embedded;
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
