//! Decoding: how the tokens of an image are found with few forward passes.
//!
//! A method is composed of a drafter ([`drafter`]), an acceptance rule ([`accept`]) and a schedule ([`ar`],
//! [`ssd`], [`pipeline`]); it sees the model through [`Target`] alone, so it can be tested on a toy model whose law
//! is enumerated.

pub mod accept;
pub mod ar;
pub mod drafter;
pub mod methods;
pub mod pipeline;
pub mod sampling;
pub mod session;
pub mod ssd;
#[cfg(test)]
pub(crate) mod testing;

use crate::grid::Grid;
use crate::nn::spatial_heads::Offset;

/// Is told how many tokens are done.
pub type Progress<'a> = dyn FnMut(usize) + 'a;

/// A token at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Raster position.
    pub position: usize,
    /// Token.
    pub token: u32,
}

/// A request for a draft: the spatial head at `offset` of the position `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The position whose state and token the head reads.
    pub from: Placed,
    /// Where the head looks.
    pub offset: Offset,
}

/// A model, as decoders see it: one guided image, its KV cache, its processed distributions.
///
/// Log-weights are the logarithm of the processed distribution (guidance, temperature, top-k, top-p) up to a
/// constant; excluded tokens are at minus infinity.
pub trait Target {
    /// The token grid.
    fn grid(&self) -> Grid;
    /// Number of image tokens.
    fn vocab(&self) -> usize;
    /// Feeds the prompt; afterwards [`Target::log_weights`]`(0)` is the distribution of position 0. One pass.
    fn prefill(&mut self);
    /// Feeds a block of ascending positions in one pass, writing their keys and values. `frontier[r]` columns of
    /// grid row `r` are visible to the rows below it. Afterwards `log_weights(i)` is the distribution of the
    /// raster successor of `block[i]`.
    fn feed(&mut self, block: &[Placed], frontier: &[u32]);
    /// Distribution `i` of the last pass.
    fn log_weights(&self, i: usize) -> &[f32];
    /// Runs spatial heads; afterwards `draft_log_weights(i)` is the distribution of `sources[i]`'s offset. The state
    /// of a source is the one that its token was last predicted from: its predecessor must have been fed.
    fn draft(&mut self, sources: &[Source]);
    /// Distribution `i` of the last draft.
    fn draft_log_weights(&self, i: usize) -> &[f32];
    /// How many horizontal and vertical offsets have heads.
    fn heads(&self) -> (usize, usize);
}

/// The tokens of an image and what they cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// One token per position, raster order.
    pub tokens: Vec<u32>,
    /// Counters.
    pub stats: Stats,
}

/// Counters of one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Forward passes of the target model, prompt included, branches batched.
    pub nfe: usize,
    /// Rows fed to the target, summed over passes, per branch.
    pub rows: usize,
    /// Drafted tokens that met their first verification.
    pub drafted: usize,
    /// Those that it left unchanged.
    pub accepted: usize,
}

impl Stats {
    /// Share of drafts that their first verification left unchanged; 0 without drafts.
    pub fn acceptance(&self) -> f64 {
        self.accepted as f64 / self.drafted.max(1) as f64
    }
}

/// A [`Target`] that counts.
pub(crate) struct Counted<'a, T> {
    pub target: &'a mut T,
    pub stats: Stats,
}

impl<'a, T: Target> Counted<'a, T> {
    pub fn new(target: &'a mut T) -> Self {
        Self { target, stats: Stats::default() }
    }

    pub fn prefill(&mut self) {
        self.stats.nfe += 1;
        self.target.prefill();
    }

    pub fn feed(&mut self, block: &[Placed], frontier: &[u32]) {
        self.stats.nfe += 1;
        self.stats.rows += block.len();
        self.target.feed(block, frontier);
    }
}
