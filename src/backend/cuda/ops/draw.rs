//! Draws: from logits to tokens, and the tokens themselves.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::super::abi::{WeftChosen, WeftCodebook, WeftJudged};
use super::super::device::Device;
use super::super::kernels::{self, Arg, Args, Grid, args};
use super::super::lists::chosen;
use super::super::memory::Buffer;
use super::super::step::{Bound, Count};
use super::super::{CudaBackend, DeviceStep, Tensor};
use crate::backend::codebook::nearest;
use crate::backend::step::CHOICES;
use crate::backend::{Chosen, Drawn, Error, Phase};

/// Entries of the vocabulary that a block of a shared draw looks at, about.
const SHARE: usize = 8192;
/// Blocks of a draw at most.
const BLOCKS: usize = 8;
/// Tokens of a vocabulary in which neighbours are marked, a bit each.
const POOLED: usize = 1 << 16;

/// The tokens of images in the making, and what the rules keep of each position.
pub struct Canvas {
    positions: usize,
    vocab: usize,
    tokens: Buffer<u32>,
    /// `[images, positions, vocab]`: the distribution that each token was drawn from.
    proposals: Option<Buffer<f32>>,
    /// What each block of a draw found.
    partial: Buffer<Best>,
    /// How many verdicts of chains are done, then how many blocks of each draw; zero between launches.
    arrived: Buffer<u32>,
    /// What the verdicts of chains found.
    judged: Buffer<WeftJudged>,
    /// What the verdicts replaced.
    drawn: Buffer<[u32; 2]>,
    /// What the drafts and the verdicts chose.
    chosen: Buffer<WeftChosen>,
}

/// What draws of draft trees look at.
struct Trees<'a> {
    step: &'a DeviceStep,
    phase: Phase,
    logits: &'a Tensor,
    canvas: &'a Canvas,
    codebook: Option<&'a Codebook>,
    threads: usize,
}

/// A vector for each token, and the nearest others of each.
pub struct Codebook {
    vectors: Buffer<f32>,
    neighbours: Buffer<u32>,
    dim: usize,
    each: usize,
}

/// The kernel's parameter, a `WeftCodebook`.
impl Arg for Option<&Codebook> {
    fn push(&self, args: &mut Args) {
        let value = self.map_or(NO_CODEBOOK, |codebook| WeftCodebook {
            vectors: codebook.vectors.address() as *const f32,
            neighbours: codebook.neighbours.address() as *const u32,
            dim: codebook.dim as u32,
            each: codebook.each as u32,
        });
        args.holding(
            &value,
            self.iter().flat_map(|codebook| [codebook.vectors.allocation(), codebook.neighbours.allocation()]),
        );
    }
}

const NO_CODEBOOK: WeftCodebook =
    WeftCodebook { vectors: std::ptr::null(), neighbours: std::ptr::null(), dim: 0, each: 0 };

/// A score and its token, as `Best` of kernels/draw.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Best {
    score: f32,
    token: u32,
}

impl Codebook {
    fn vocab(&self) -> usize {
        self.vectors.len() / self.dim
    }
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
            arrived: Buffer::zeroed(device, 1 + places, "counters of draws")?,
            judged: Buffer::uninitialised(device, places, "judgements")?,
            drawn: Buffer::zeroed(device, places, "drawn tokens")?,
            chosen: Buffer::zeroed(device, 2 * CHOICES * places, "chosen tokens")?,
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
        codebook: Option<&Codebook>,
    ) {
        let (draws, which, rows) = match phase {
            Phase::Drafts => (&step.host().drafts, Count::Drafts, Bound::DraftLogits),
            Phase::Verdicts => (&step.host().verdicts, Count::Verdicts, Bound::VerdictLogits),
        };
        step.require(rows, logits.max_rows);
        step.require(Bound::Images, canvas.images());
        step.require(Bound::Places, canvas.positions);
        assert_eq!(logits.cols, canvas.vocab, "logits of another vocabulary");
        assert!(draws.len() <= canvas.tokens.len(), "a position drawn twice");
        assert!(chosen(draws) <= CHOICES * canvas.tokens.len(), "{} tokens are chosen", chosen(draws));
        let vocab = canvas.vocab;
        step.require(Bound::Laws, usize::from(canvas.proposals.is_some()));
        if phase == Phase::Verdicts {
            step.require(Bound::Neighbours, codebook.map_or(0, |codebook| codebook.each));
            step.require(Bound::Codebooks, usize::from(codebook.is_some()));
        }
        assert!(codebook.is_none_or(|codebook| codebook.vocab() == vocab), "a codebook of another vocabulary");
        assert!(codebook.is_none() || vocab <= POOLED, "neighbours among {vocab} tokens, more than {POOLED}");
        let threads = vocab.div_ceil(4).next_power_of_two().clamp(128, 512);
        // Without blocks when all draws are of trees.
        let draws = if step.bucket().tokens[usize::from(phase == Phase::Verdicts)] { step.most(which) } else { 0 };
        let grid = Grid { blocks: [blocks(vocab), draws, 1], threads, shared: 0 };
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
            canvas.judged,
            canvas.drawn,
            codebook,
        ];
        // SAFETY: the kernel's parameters are these; draws name rows of the logits and positions of the canvas, each
        // position once, so that no list is longer than the canvas.
        unsafe { self.launch(&kernels::DRAW, "draw", grid, args) };
        let parameters = Trees { step, phase, logits, canvas, codebook, threads };
        let children = if phase == Phase::Drafts { Count::DraftChildren } else { Count::Children };
        if step.most(children) > 0 {
            self.draw_children(&parameters, step.most(which));
        }
        if phase == Phase::Verdicts && step.most(Count::Siblings) > 0 {
            self.judge_siblings(&parameters, step.most(which));
        }
    }

    fn draw_children(&self, trees: &Trees<'_>, draws: usize) {
        let Trees { step, phase, logits, canvas, threads, .. } = trees;
        let args = args![
            step.arg(),
            u32::from(*phase == Phase::Verdicts),
            *logits.floats(),
            canvas.vocab as u32,
            canvas.positions as u32,
            canvas.tokens,
            canvas.proposals.as_ref(),
            canvas.drawn,
            canvas.chosen,
        ];
        // SAFETY: the kernel's parameters are these; the places of children lie in the canvas, and there is room for what
        // each phase chooses.
        unsafe { self.launch(&kernels::TREES, "children", Grid::of(draws, *threads), args) };
    }

    fn judge_siblings(&self, trees: &Trees<'_>, draws: usize) {
        let Trees { step, logits, canvas, codebook, threads, .. } = trees;
        let rows = self.workspace::<f32>(step.capacity().siblings * 3 * canvas.vocab);
        let args = args![
            step.arg(),
            *logits.floats(),
            canvas.vocab as u32,
            canvas.positions as u32,
            canvas.tokens,
            canvas.proposals.as_ref(),
            rows,
            canvas.drawn,
            *codebook,
        ];
        // SAFETY: the kernel's parameters are these; the places of siblings lie in the canvas, and there are three rows for
        // each verdict of siblings: a step has no more of them than its capacity says.
        unsafe { self.launch(&kernels::TREES, "siblings", Grid::of(draws, *threads), args) };
    }

    /// See [`Backend::codebook`](crate::backend::Backend::codebook).
    pub(in crate::backend::cuda) fn op_codebook(
        &self,
        vectors: &[f32],
        dim: usize,
        neighbours: usize,
    ) -> Result<Codebook, Error> {
        let near = nearest(vectors, dim, neighbours);
        Ok(Codebook {
            vectors: Buffer::copied(self.device(), vectors, "the vectors of a codebook")?,
            neighbours: Buffer::copied(self.device(), &near, "the neighbours in a codebook")?,
            dim,
            each: neighbours,
        })
    }

    /// See [`Backend::put`](crate::backend::Backend::put).
    pub(in crate::backend::cuda) fn op_put(&self, step: &DeviceStep, canvas: &mut Canvas) {
        step.require(Bound::Images, canvas.images());
        step.require(Bound::Places, canvas.positions);
        step.require(Bound::Vocabulary, canvas.vocab);
        let threads = canvas.vocab.div_ceil(4).next_power_of_two().clamp(32, 512);
        let grid = Grid::of(step.most(Count::Puts), threads);
        let sizes = [canvas.vocab as u32, canvas.positions as u32];
        let args = args![step.arg(), sizes[0], sizes[1], canvas.tokens, canvas.proposals.as_ref()];
        // SAFETY: the kernel's parameters are these; puts name positions of the canvas.
        unsafe { self.launch(&kernels::PUT, "put", grid, args) };
    }

    /// See [`Backend::drawn`](crate::backend::Backend::drawn).
    pub(in crate::backend::cuda) fn op_drawn(&self, step: &DeviceStep, canvas: &Canvas) -> Result<Vec<Drawn>, Error> {
        let drawn = canvas.drawn.download(step.host().verdicts.len())?;
        Ok(drawn.into_iter().map(|[before, after]| Drawn { before, after }).collect())
    }

    /// See [`Backend::chosen`](crate::backend::Backend::chosen).
    pub(in crate::backend::cuda) fn op_chosen(&self, step: &DeviceStep, canvas: &Canvas) -> Result<Vec<Chosen>, Error> {
        let chosen = canvas.chosen.download(chosen(&step.host().drafts) + chosen(&step.host().verdicts))?;
        Ok(chosen.into_iter().map(|c| Chosen { token: c.token, log_probability: c.log_probability }).collect())
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
