//! The low-resolution model of a family, and the way between its tokens and those of the model that it drafts for
//! (MuLo-SD, arXiv 2601.05149): one token of it stands for 2x2 of the other's.
//!
//! It is a model of its own, with its own tokenizer of pictures of half the size. Up: through pixels (decode, double,
//! encode) or by the learned [`UpSampler`]. Down: decode, halve, encode.

use super::avatar::{Avatar, Condition};
use crate::backend::{Backend, Error as BackendError, Storage};
use crate::checkpoint::{Error, Files};
use crate::grid::Grid;
use crate::nn::up_sampler::UpSampler;
use crate::nn::{Formats, Loader, resize};

/// Rows and columns of the model's grid per row and column of the low-resolution model's.
pub const SCALE: usize = 2;

/// How low-resolution tokens become drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Up {
    /// Decoded to pixels, doubled, encoded.
    Pixel,
    /// By the learned up-sampler.
    Latent,
}

/// A low-resolution model beside the model that it drafts for.
pub struct Low<B: Backend> {
    /// The model.
    pub model: Avatar<B>,
    /// The condition of its other branch under guidance.
    pub unconditional: Condition,
    up_sampler: UpSampler<B>,
}

impl<B: Backend> Low<B> {
    /// Loads the model of the folder `low` and `upsampler.safetensors`, to draft for `large`.
    pub fn load(large: &Avatar<B>, low: &Files, extra: &Files, formats: Formats) -> Result<Self, Error> {
        let model = Avatar::load(large.backend.clone(), low, formats)?;
        check(large, &model)?;
        let tensors = extra.tensors("upsampler")?;
        let loader = Loader { backend: &large.backend, tensors: &tensors, storage: Storage::default() };
        let up_sampler = UpSampler::load(&loader, large.vq.codebook().1)?;
        tensors.finish()?;
        let unconditional = model.condition(&model.unconditional())?;
        Ok(Self { model, unconditional, up_sampler })
    }

    /// Drafts of whole rows of the large model's grid, from whole low-resolution rows from the first.
    pub fn up(&self, large: &Avatar<B>, how: Up, tokens: &[u32]) -> Result<Vec<u32>, BackendError> {
        let (backend, width) = (&large.backend, self.model.grid().width);
        let height = tokens.len() / width;
        match how {
            Up::Pixel => {
                let small = self.model.vq.decode(backend, tokens, Grid { height, width })?;
                let columns = width * self.model.vq.downscale();
                let pixels = resize::double(&small, columns);
                large.vq.encode(backend, &pixels, (pixels.len() / (6 * columns), 2 * columns))
            }
            Up::Latent => {
                let entries = self.model.vq.entries(tokens);
                Ok(large.vq.quantise(&self.up_sampler.forward(backend, &entries, (height, width))?))
            }
        }
    }

    /// The low-resolution tokens of whole rows of the large model's grid from the first, an even number of them.
    pub fn down(&self, large: &Avatar<B>, tokens: &[u32]) -> Result<Vec<u32>, BackendError> {
        let (backend, width) = (&large.backend, large.grid().width);
        let pixels = large.vq.decode(backend, tokens, Grid { height: tokens.len() / width, width })?;
        let columns = width * large.vq.downscale();
        let small = resize::half(&pixels, columns);
        self.model.vq.encode(backend, &small, (2 * small.len() / (3 * columns), columns / 2))
    }
}

/// Do the models fit together?
fn check<B: Backend>(large: &Avatar<B>, small: &Avatar<B>) -> Result<(), Error> {
    let sizes = |model: &Avatar<B>| {
        let (grid, config) = (model.grid(), &model.config);
        [grid.height, grid.width, config.text_encoder.vocab_size, config.vq.latent_channels, config.vq.downscale]
    };
    let ([height, width, words, latent, downscale], found) = (sizes(large), sizes(small));
    let wanted = [height / SCALE, width / SCALE, words, latent, downscale];
    if found == wanted && height.is_multiple_of(SCALE) && width.is_multiple_of(SCALE) {
        return Ok(());
    }
    let what = "grid height and width, words, latent channels and pixels per token";
    Err(Error::Format {
        file: "low/config.json".into(),
        reason: format!("{what} are {found:?}, to draft for this model they must be {wanted:?}"),
    })
}
