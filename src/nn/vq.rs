//! The VQ tokenizer: convolutional encoder, codebook, convolutional decoder.

use super::Loader;
use super::conv::{Conv3x3, GroupNormSilu, Image, ResBlock};
use crate::backend::{Backend, Error as BackendError};
use crate::checkpoint::{Error, VqConfig};
use crate::grid::Grid;

/// One side of a tokenizer: a level is residual blocks, then a change of resolution to the next level.
pub(super) struct Side<B: Backend> {
    conv_in: Conv3x3<B>,
    levels: Vec<Vec<ResBlock<B>>>,
    between: Vec<Conv3x3<B>>,
    norm_out: GroupNormSilu<B>,
    conv_out: Conv3x3<B>,
}

/// The tokenizer of a model.
pub struct Vq<B: Backend> {
    encoder: Side<B>,
    decoder: Side<B>,
    codebook: Vec<f32>,
    latent: usize,
    downscale: usize,
}

impl<B: Backend> Vq<B> {
    /// Loads `vq.*`; `vocab` is the number of codes.
    pub fn load(loader: &Loader<'_, B>, config: &VqConfig, vocab: usize) -> Result<Self, Error> {
        let (groups, latent) = (config.group_norm_groups, config.latent_channels);
        let levels = |blocks: &[usize]| config.channels.iter().copied().zip(blocks.iter().copied()).collect::<Vec<_>>();
        let upward = levels(&config.res_blocks);
        let downward: Vec<_> = levels(&config.encoder_res_blocks).into_iter().rev().collect();
        Ok(Self {
            encoder: Side::load(loader, "vq.encoder", "downs", (3, latent), &downward, groups)?,
            decoder: Side::load(loader, "vq.decoder", "ups", (latent, 3), &upward, groups)?,
            codebook: loader.host("vq.codebook.weight", &[vocab, latent])?,
            latent,
            downscale: config.downscale,
        })
    }

    /// The vector of each token, `[vocab, dim]`, and dim.
    pub fn codebook(&self) -> (&[f32], usize) {
        (&self.codebook, self.latent)
    }

    /// Pixels per token along a side.
    pub fn downscale(&self) -> usize {
        self.downscale
    }

    /// RGB pixels `[height * f, width * f, 3]` of a grid of tokens, each below the codebook's size.
    pub fn decode(&self, backend: &B, tokens: &[u32], grid: Grid) -> Result<Vec<u8>, BackendError> {
        self.decoder.pixels(backend, &self.entries(tokens), grid)
    }

    /// Tokens of RGB pixels `[height, width, 3]`; both sides are multiples of the downscale.
    pub fn encode(&self, backend: &B, pixels: &[u8], size: (usize, usize)) -> Result<Vec<u32>, BackendError> {
        let mut x = self.encoder.conv_in.forward(backend, &image(backend, &to_unit(pixels), size)?)?;
        for (level, blocks) in self.encoder.levels.iter().enumerate() {
            if level > 0 {
                x = self.encoder.between[level - 1].forward(backend, &x)?;
            }
            x = blocks.iter().try_fold(x, |x, block| block.forward(backend, x))?;
        }
        let out = self.encoder.finish(backend, &x)?;
        Ok(self.quantise(&backend.read(&out.data)?))
    }

    /// The entries of tokens, `[tokens, dim]`.
    pub fn entries(&self, tokens: &[u32]) -> Vec<f32> {
        let entry = |token: &u32| &self.codebook[*token as usize * self.latent..][..self.latent];
        tokens.iter().flat_map(entry).copied().collect()
    }

    /// The tokens whose entries are nearest to latents `[tokens, dim]`.
    pub fn quantise(&self, latents: &[f32]) -> Vec<u32> {
        latents.chunks_exact(self.latent).map(|latent| self.nearest(latent)).collect()
    }

    fn nearest(&self, latent: &[f32]) -> u32 {
        let distance = |code: &[f32]| code.iter().zip(latent).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let codes = self.codebook.chunks_exact(self.latent).map(distance).enumerate();
        codes.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(index, _)| index as u32)
    }
}

impl<B: Backend> Side<B> {
    /// RGB pixels of latents `[height * width, channels]`: of a decoder.
    pub(super) fn pixels(&self, backend: &B, latents: &[f32], grid: Grid) -> Result<Vec<u8>, BackendError> {
        let mut x = self.conv_in.forward(backend, &image(backend, latents, (grid.height, grid.width))?)?;
        for (level, blocks) in self.levels.iter().enumerate() {
            if level > 0 {
                x = self.between[level - 1].forward(backend, &upsample(backend, &x)?)?;
            }
            x = blocks.iter().try_fold(x, |x, block| block.forward(backend, x))?;
        }
        let out = self.finish(backend, &x)?;
        Ok(backend.read(&out.data)?.iter().map(|&value| from_unit(value)).collect())
    }

    pub(super) fn load(
        loader: &Loader<'_, B>,
        name: &str,
        between: &str,
        (cin, cout): (usize, usize),
        levels: &[(usize, usize)],
        groups: usize,
    ) -> Result<Self, Error> {
        let stride = if between == "downs" { 2 } else { 1 };
        let (first, last) = (levels[0].0, levels[levels.len() - 1].0);
        let block = |level: usize, index: usize| {
            ResBlock::load(loader, &format!("{name}.blocks.{level}.{index}"), levels[level].0, groups)
        };
        let change = |level: usize| {
            let (from, to) = (levels[level].0, levels[level + 1].0);
            Conv3x3::load(loader, &format!("{name}.{between}.{level}"), from, to, stride)
        };
        Ok(Self {
            conv_in: Conv3x3::load(loader, &format!("{name}.conv_in"), cin, first, 1)?,
            levels: (0..levels.len())
                .map(|level| (0..levels[level].1).map(|index| block(level, index)).collect())
                .collect::<Result<_, _>>()?,
            between: (0..levels.len() - 1).map(change).collect::<Result<_, _>>()?,
            norm_out: GroupNormSilu::load(loader, &format!("{name}.norm_out"), last, groups)?,
            conv_out: Conv3x3::load(loader, &format!("{name}.conv_out"), last, cout, 1)?,
        })
    }

    fn finish(&self, backend: &B, x: &Image<B>) -> Result<Image<B>, BackendError> {
        self.conv_out.forward(backend, &self.norm_out.forward(backend, x)?)
    }
}

/// Uploads an image `[height * width, channels]`.
pub(super) fn image<B: Backend>(backend: &B, data: &[f32], size: (usize, usize)) -> Result<Image<B>, BackendError> {
    let pixels = size.0 * size.1;
    let mut tensor = backend.tensor(pixels, data.len() / pixels)?;
    backend.upload(data, &mut tensor);
    Ok(Image { data: tensor, channels: data.len() / pixels, size })
}

/// Nearest-neighbour upsampling by two.
fn upsample<B: Backend>(backend: &B, x: &Image<B>) -> Result<Image<B>, BackendError> {
    let size = (2 * x.size.0, 2 * x.size.1);
    let mut data = backend.tensor(size.0 * size.1, x.channels)?;
    backend.upsample(&x.data, x.size, &mut data);
    Ok(Image { data, channels: x.channels, size })
}

/// Bytes to [-1, 1].
pub(super) fn to_unit(pixels: &[u8]) -> Vec<f32> {
    pixels.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect()
}

fn from_unit(value: f32) -> u8 {
    ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
}
