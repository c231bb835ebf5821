//! What varies from step to step: the rows of a pass, what they see, which tokens are drawn.

use crate::rng::Stream;
use crate::sampling::Sampling;

/// "No row".
pub const NONE: u32 = u32::MAX;

/// One step of decoding: spatial heads draft tokens, a pass runs over rows, verdicts draw tokens from what it
/// predicts. Every part may be empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The images, by the index that sequences and draws use.
    pub images: Vec<Image>,
    /// Rows of the pass.
    pub layout: Layout,
    /// Input rows of the spatial heads, sorted by head.
    pub sources: Vec<Source>,
    /// Sources `groups[h]..groups[h + 1]` go to head `h`.
    pub groups: Vec<u32>,
    /// Tokens to draw from the heads' distributions.
    pub drafts: Vec<Draw>,
    /// Rows of the pass whose distributions are wanted; row `i` of the logits is that of `predictions[i]`.
    pub predictions: Vec<u32>,
    /// Tokens to draw from the pass's distributions.
    pub verdicts: Vec<Draw>,
    /// Rows of the logits to keep for later steps.
    pub copies: Vec<Copy>,
}

/// Settings of one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Image {
    /// Its random numbers.
    pub stream: Stream,
    /// How its logits become a distribution.
    pub sampling: Sampling,
}

/// Where a row's keys and values live, and which keys it sees: one forward pass, backend independent.
///
/// A sequence is one branch of one image: `prefix` pages hold its prompt linearly, `grid` pages hold the image
/// in raster order, so the slot of a position never changes; `scratch` pages hold the nodes of a draft tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// Page tables of the sequences in this pass.
    pub sequences: Vec<PageTable>,
    /// One entry per row of the pass. Rows of one sequence are adjacent.
    pub rows: Vec<RowPlace>,
}

/// Pages of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PageTable {
    /// Index of the image that this is a branch of.
    pub image: u32,
    /// Pages of the prompt; `prefix_len` tokens are used.
    pub prefix: Vec<u32>,
    /// Tokens in the prompt.
    pub prefix_len: usize,
    /// Pages of the image in raster order.
    pub grid: Vec<u32>,
    /// Columns of the grid.
    pub width: usize,
    /// For each grid row, how many columns hold a key that rows below may see (committed, or fed in this pass).
    pub frontier: Vec<u32>,
    /// Pages of draft nodes, up to [`SCRATCH`](super::SCRATCH) slots.
    pub scratch: Vec<u32>,
}

/// Place of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlace {
    /// Index into [`Layout::sequences`].
    pub sequence: u32,
    /// Slot that receives this row's key and value.
    pub slot: Slot,
}

/// A slot of the cache.
///
/// Visibility: `Prefix(i)` sees prefix slots `0..=i`. `Grid(p)` at (r, c) sees the whole prefix, columns
/// `0..frontier[r']` of every grid row `r' < r`, and columns `0..=c` of its own row. `Scratch` sees the whole prefix,
/// columns `0..frontier[r']` of every grid row up to its own (of its own row below its column), and its ancestors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Token `i` of the prompt; its rotary coordinates are (0, 0).
    Prefix(u32),
    /// Raster position `p` of the image; its rotary coordinates are (row + 1, col + 1).
    Grid(u32),
    /// A node of a draft tree.
    Scratch {
        /// Its slot.
        slot: u32,
        /// The raster position that it is a draft of.
        at: u32,
        /// Scratch slots that it sees, one bit each, its own included.
        ancestors: u128,
    },
}

/// An input row of the spatial heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Row of the kept states.
    pub state: u32,
    /// Index into the canvas: `image * positions + position`.
    pub token: u32,
}

/// How a token is drawn from the processed distribution p of its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Rule {
    /// Coupled randomness: argmax(log p + Gumbel noise of the position), whatever the token is now.
    Coupled = 0,
    /// argmax(log p + noise of its own), and p is kept as the law that the token was drawn from. For
    /// [`Rule::AutoCorrect`] to judge later.
    Draft = 1,
    /// SSD's "verification as auto correction" (arXiv 2606.20543, Eq. 4-5), per position and without a prefix rule:
    /// keep the token t with probability min(1, p(t)/q(t)), else draw from max(0, p - q) normalised; q is the law it
    /// was drawn from, and p is kept as the law that the token then has.
    AutoCorrect = 2,
}

/// When tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// [`Step::drafts`], from the logits of the sources.
    Drafts,
    /// [`Step::verdicts`], from the logits of the predictions.
    Verdicts,
}

/// A token to draw. Row numbers are rows of the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Index into [`Step::images`].
    pub image: u32,
    /// Raster position that receives it.
    pub position: u32,
    /// How.
    pub rule: Rule,
    /// Round of its random numbers ([`Stream`]); coupled draws use round 0 whatever this is.
    pub round: u32,
    /// The conditional branch; the second is [`NONE`] unless the mean of the log-weights of two distributions, each
    /// processed on its own, is drawn from.
    pub conditional: [u32; 2],
    /// The unconditional branch; [`NONE`] without guidance.
    pub unconditional: [u32; 2],
}

/// What a drawn token replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// The token before.
    pub before: u32,
    /// The token now.
    pub after: u32,
}

/// Copies a row of the logits to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// From this row.
    pub from: u32,
    /// To this.
    pub to: u32,
}
