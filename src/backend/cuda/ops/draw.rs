//! Draws: from logits to tokens, and the tokens themselves.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::super::device::Device;
use super::super::kernels::{self, Grid, args};
use super::super::memory::Buffer;
use super::super::step::{Bound, Count};
use super::super::{CudaBackend, DeviceStep, Tensor};
use crate::backend::{Drawn, Error, Phase, Rule, Test};

/// Entries of the vocabulary that a block of a shared draw looks at, about.
const SHARE: usize = 8192;
/// Blocks of a draw at most.
const BLOCKS: usize = 8;

/// The tokens of images in the making, and what the rules keep of each position.
pub struct Canvas {
    positions: usize,
    vocab: usize,
    tokens: Buffer<u32>,
    /// `[images, positions, vocab]`: the distribution that each token was drawn from.
    proposals: Option<Buffer<f32>>,
    /// What each block of a draw found.
    partial: Buffer<Best>,
    /// How many blocks of a draw are done; zero between launches.
    arrived: Buffer<u32>,
    /// What the verdicts replaced.
    drawn: Buffer<[u32; 2]>,
}

/// A score and its token, as `Best` of kernels/draw.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Best {
    score: f32,
    token: u32,
}

impl Canvas {
    /// Canvases of zeros.
    pub(in crate::backend::cuda) fn new(
        device: &Arc<Device>,
        images: usize,
        positions: usize,
        vocab: usize,
        proposals: bool,
    ) -> Result<Canvas, Error> {
        let places = images * positions;
        let kept = || Buffer::zeroed(device, places * vocab, "the distributions that drafts were drawn from");
        Ok(Canvas {
            positions,
            vocab,
            tokens: Buffer::zeroed(device, places, "tokens")?,
            proposals: proposals.then(kept).transpose()?,
            partial: Buffer::uninitialised(device, places * blocks(vocab), "partial results of draws")?,
            arrived: Buffer::zeroed(device, places, "counters of draws")?,
            drawn: Buffer::zeroed(device, places, "drawn tokens")?,
        })
    }

    /// `[images, positions]`.
    pub(super) fn tokens(&self) -> &Buffer<u32> {
        &self.tokens
    }

    /// Images.
    pub(super) fn images(&self) -> usize {
        self.tokens.len() / self.positions.max(1)
    }

    /// Positions of an image.
    pub(super) fn positions(&self) -> usize {
        self.positions
    }

    /// The tokens of one image.
    fn image(&self, image: usize) -> Buffer<u32> {
        self.tokens.part(4 * image * self.positions, self.positions)
    }
}

/// Blocks that share a draw: a function of the vocabulary alone.
fn blocks(vocab: usize) -> usize {
    vocab.div_ceil(SHARE).clamp(1, BLOCKS)
}

impl CudaBackend {
    /// See [`Backend::draw`](crate::backend::Backend::draw).
    pub(in crate::backend::cuda) fn op_draw(
        &self,
        step: &DeviceStep,
        phase: Phase,
        logits: &Tensor,
        canvas: &mut Canvas,
    ) {
        let judges = step.host().images.iter().all(|image| image.test == Test::Token);
        assert!(judges && !step.host().verdicts.iter().any(|draw| draw.follows), "not yet on the device");
        let (draws, which, rows) = match phase {
            Phase::Drafts => (&step.host().drafts, Count::Drafts, Bound::DraftLogits),
            Phase::Verdicts => (&step.host().verdicts, Count::Verdicts, Bound::VerdictLogits),
        };
        step.require(rows, logits.max_rows);
        step.require(Bound::Images, canvas.images());
        step.require(Bound::Positions, canvas.positions);
        assert_eq!(logits.cols, canvas.vocab, "logits of another vocabulary");
        assert!(draws.len() <= canvas.tokens.len(), "a position drawn twice");
        assert!(
            canvas.proposals.is_some() || draws.iter().all(|draw| draw.rule == Rule::Coupled),
            "a rule that keeps distributions on a canvas without room for them"
        );
        let vocab = canvas.vocab;
        let threads = vocab.div_ceil(4).next_power_of_two().clamp(128, 512);
        let grid = Grid { blocks: [blocks(vocab), step.most(which), 1], threads, shared: 0 };
        let args = args![
            step.arg(),
            u32::from(phase == Phase::Verdicts),
            *logits.floats(),
            vocab as u32,
            canvas.positions as u32,
            canvas.tokens,
            canvas.proposals.as_ref(),
            canvas.partial,
            canvas.arrived,
            canvas.drawn,
        ];
        // SAFETY: the kernel's parameters are these; draws name rows of the logits and positions of the canvas, each
        // position once, so that no list is longer than the canvas.
        unsafe { self.launch(&kernels::DRAW, "draw", grid, args) };
    }

    /// See [`Backend::drawn`](crate::backend::Backend::drawn).
    pub(in crate::backend::cuda) fn op_drawn(&self, step: &DeviceStep, canvas: &Canvas) -> Result<Vec<Drawn>, Error> {
        let drawn = canvas.drawn.download(step.host().verdicts.len())?;
        Ok(drawn.into_iter().map(|[before, after]| Drawn { before, after }).collect())
    }

    /// See [`Backend::tokens`](crate::backend::Backend::tokens).
    pub(in crate::backend::cuda) fn op_tokens(&self, canvas: &Canvas, image: usize) -> Result<Vec<u32>, Error> {
        canvas.image(image).download(canvas.positions)
    }

    /// See [`Backend::set_tokens`](crate::backend::Backend::set_tokens).
    pub(in crate::backend::cuda) fn op_set_tokens(
        &self,
        canvas: &mut Canvas,
        image: usize,
        tokens: &[u32],
    ) -> Result<(), Error> {
        assert_eq!(tokens.len(), canvas.positions, "an image has {} positions", canvas.positions);
        assert!(tokens.iter().all(|&token| (token as usize) < canvas.vocab), "a token outside of the vocabulary");
        canvas.image(image).upload(tokens);
        self.device().check()
    }
}
