//! The decoder of a KL tokenizer: latents of a few numbers a position, normalised, to pixels. It is the VQ's decoder without
//! a codebook.

use super::Loader;
use super::vq::Side;
use crate::backend::{Backend, Error as BackendError};
use crate::checkpoint::Error;
use crate::grid::Grid;

/// Its sizes.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Channels and residual blocks per level, from the latents up to the pixels.
    pub levels: &'a [(usize, usize)],
    /// Groups of every GroupNorm.
    pub groups: usize,
    /// Numbers of a latent.
    pub channels: usize,
}

/// The decoder.
pub struct Kl<B: Backend> {
    decoder: Side<B>,
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl<B: Backend> Kl<B> {
    /// Loads `kl.*`.
    pub fn load(loader: &Loader<'_, B>, shape: Shape<'_>) -> Result<Self, Error> {
        let Shape { levels, groups, channels } = shape;
        Ok(Self {
            decoder: Side::load(loader, "kl.decoder", "ups", (channels, 3), levels, groups)?,
            mean: loader.host("kl.mean", &[channels])?,
            deviation: loader.host("kl.deviation", &[channels])?,
        })
    }

    /// RGB pixels of latents `[height * width, channels]`.
    pub fn decode(&self, backend: &B, latents: &[f32], grid: Grid) -> Result<Vec<u8>, BackendError> {
        let scale = self.deviation.iter().zip(&self.mean).cycle();
        let latents: Vec<f32> = latents.iter().zip(scale).map(|(x, (deviation, mean))| x * deviation + mean).collect();
        self.decoder.pixels(backend, &latents, grid)
    }
}
