//! A continuous model of a family's pictures, after MAR (arXiv 2406.11838), and a smaller draft of the same kind: 12x12
//! positions of eight numbers, which a KL tokenizer turns into 96x96 pixels. The text encoder is the family's own.

use super::avatar::{Avatar, Prompt};
use crate::backend::{Backend, Error as BackendError, Storage};
use crate::checkpoint::{Error, Files};
use crate::grid::Grid;
use crate::nn::Loader;
use crate::nn::kl::{Kl, Shape};
use crate::nn::mar::{self, Mar, Size};

/// Positions of a picture.
pub const GRID: Grid = Grid { height: 12, width: 12 };
/// Numbers of a position.
pub const CHANNELS: usize = 8;
const TARGET: Size = Size { encoder: 2, decoder: 3, head: (3, 192) };
const DRAFT: Size = Size { encoder: 1, decoder: 1, head: (2, 96) };
const KL: Shape<'static> = Shape { levels: &[(96, 2), (96, 1), (64, 1), (32, 1)], groups: 8, channels: CHANNELS };
/// Pixels of a position along a side.
const DOWNSCALE: usize = 1 << (KL.levels.len() - 1);

/// The models.
pub struct Continuous<B: Backend> {
    /// The one whose pictures are wanted.
    pub target: Mar<B>,
    /// The one that drafts for it.
    pub draft: Mar<B>,
    kl: Kl<B>,
}

impl<B: Backend> Continuous<B> {
    /// Loads `mar_target.safetensors`, `mar_draft.safetensors` and `kl.safetensors`.
    pub fn load(family: &Avatar<B>, files: &Files) -> Result<Self, Error> {
        let mar = |stem: &str, size: Size| {
            let tensors = files.tensors(stem)?;
            let mar = Mar::load(&loader(family, &tensors), &family.config, GRID, CHANNELS, size)?;
            tensors.finish()?;
            Ok::<_, Error>(mar)
        };
        let tensors = files.tensors("kl")?;
        let kl = Kl::load(&loader(family, &tensors), KL)?;
        tensors.finish()?;
        Ok(Self { target: mar("mar_target", TARGET)?, draft: mar("mar_draft", DRAFT)?, kl })
    }

    /// A prompt as `model`, one of the two, takes it.
    pub fn prompt(&self, family: &Avatar<B>, model: &Mar<B>, prompt: &Prompt) -> Result<mar::Prompt, BackendError> {
        model.prompt(&family.backend, &family.encode(prompt)?, prompt.ids.len())
    }

    /// RGB pixels of latents `[positions, channels]`, and how many in a row.
    pub fn pixels(&self, backend: &B, latents: &[f32]) -> Result<(Vec<u8>, usize), BackendError> {
        Ok((self.kl.decode(backend, latents, GRID)?, GRID.width * DOWNSCALE))
    }
}

fn loader<'a, B: Backend>(family: &'a Avatar<B>, tensors: &'a crate::checkpoint::Tensors) -> Loader<'a, B> {
    Loader { backend: &family.backend, tensors, storage: Storage::default() }
}
