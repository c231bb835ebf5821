//! The learned latent up-sampler of multi-scale decoding (MuLo-SD, arXiv 2601.05149): entries of one codebook on a grid to
//! latents on one of twice the size, to be replaced by the nearest entries of another codebook.
//!
//! `conv_in`; twice `x + conv2(silu(conv1(silu(x))))`; `conv_up` of silu(x); pixel shuffle; `conv_out` of silu. The bottom
//! row of every kernel is zero, so a row of the result depends on no low-resolution row below its own, and rows can be
//! drafted from rows. The paper gives no sizes; these are `models/avatar/upsample.py`'s.

use super::Loader;
use super::conv::{Conv3x3, Image};
use super::vq::image;
use crate::backend::{Backend, Error as BackendError};
use crate::checkpoint::Error;

const WIDTH: usize = 64;
const BLOCKS: usize = 2;
/// Channels after the pixel shuffle.
const FINE: usize = 32;

/// The network.
pub struct UpSampler<B: Backend> {
    conv_in: Conv3x3<B>,
    blocks: Vec<[Conv3x3<B>; 2]>,
    conv_up: Conv3x3<B>,
    conv_out: Conv3x3<B>,
}

impl<B: Backend> UpSampler<B> {
    /// Loads `upsampler.*` for latents of so many numbers on both sides.
    pub fn load(loader: &Loader<'_, B>, latent: usize) -> Result<Self, Error> {
        let conv =
            |name: &str, cin: usize, cout: usize| Conv3x3::load(loader, &format!("upsampler.{name}"), cin, cout, 1);
        let inner = |block: usize, which: usize| conv(&format!("blocks.{block}.conv{which}"), WIDTH, WIDTH);
        Ok(Self {
            conv_in: conv("conv_in", latent, WIDTH)?,
            blocks: (0..BLOCKS).map(|block| Ok([inner(block, 1)?, inner(block, 2)?])).collect::<Result<_, Error>>()?,
            conv_up: conv("conv_up", WIDTH, 4 * FINE)?,
            conv_out: conv("conv_out", FINE, latent)?,
        })
    }

    /// Latents `[2 * height * 2 * width, latent]` of `[height * width, latent]`, both on the host.
    pub fn forward(&self, backend: &B, latents: &[f32], size: (usize, usize)) -> Result<Vec<f32>, BackendError> {
        let mut x = self.conv_in.forward(backend, &image(backend, latents, size)?)?;
        for [conv1, conv2] in &self.blocks {
            let inner = conv1.forward(backend, &silu(backend, &x)?)?;
            let branch = conv2.forward(backend, &silu(backend, &inner)?)?;
            backend.add(&mut x.data, &branch.data);
        }
        let up = self.conv_up.forward(backend, &silu(backend, &x)?)?;
        // A few thousand numbers, once for several rows of an image: they may as well cross to the host.
        let shuffled = pixel_shuffle(&backend.read(&up.data)?, size.1);
        let x = image(backend, &shuffled, (2 * size.0, 2 * size.1))?;
        let out = self.conv_out.forward(backend, &silu(backend, &x)?)?;
        Ok(backend.read(&out.data)?.into_owned())
    }
}

fn silu<B: Backend>(backend: &B, x: &Image<B>) -> Result<Image<B>, BackendError> {
    let mut data = backend.tensor(x.size.0 * x.size.1, x.channels)?;
    backend.silu(&x.data, &mut data);
    Ok(Image { data, channels: x.channels, size: x.size })
}

/// Channel `4 c + 2 i + j` of pixel (y, x) becomes channel c of pixel (2 y + i, 2 x + j).
fn pixel_shuffle(x: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (pixel, channels) in x.chunks_exact(4 * FINE).enumerate() {
        let (row, col) = (pixel / width, pixel % width);
        for (channel, &value) in channels.iter().enumerate() {
            let (i, j) = (channel / 2 % 2, channel % 2);
            out[((2 * row + i) * 2 * width + 2 * col + j) * FINE + channel / 4] = value;
        }
    }
    out
}
