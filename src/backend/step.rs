//! What varies from step to step: the rows of a pass, what they see, which tokens are drawn.

use crate::rng::Stream;
use crate::sampling::Sampling;

/// "No row".
pub const NONE: u32 = u32::MAX;

/// One step of decoding: tokens are put, spatial heads draft tokens, a pass runs over rows, verdicts draw tokens from what
/// it predicts. Every part may be empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The images, by the index that sequences and draws use.
    pub images: Vec<Image>,
    /// Tokens that the host chooses.
    pub puts: Vec<Put>,
    /// Rows of the pass.
    pub layout: Layout,
    /// Input rows of the spatial heads, sorted by head.
    pub sources: Vec<Source>,
    /// Sources `groups[h]..groups[h + 1]` go to head `h`.
    pub groups: Vec<u32>,
    /// Tokens to draw from the heads' distributions.
    pub drafts: Vec<Draw>,
    /// For each row of the pass the row of a table that is its input; empty if no op asks ([`Backend::gather`]).
    ///
    /// [`Backend::gather`]: super::Backend::gather
    pub inputs: Vec<u32>,
    /// Rows of the pass whose distributions are wanted; row `i` of the logits is that of `predictions[i]`.
    pub predictions: Vec<u32>,
    /// Positions of a continuous picture to denoise; a position of an image at most once.
    pub goals: Vec<Goal>,
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
    /// What [`Rule::AutoCorrect`] asks of its tokens.
    pub test: Test,
}

/// When a token t that was drawn from q passes for one that was drawn from p. Both are after guidance, temperature, top-k
/// and top-p. Masses of several tokens are sums in fixed point, 2^-56, so that they depend on no order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Test {
    /// With probability min(1, p(t)/q(t)); a token that fails is replaced by one of max(0, p - q), normalised, so that the
    /// law is p exactly (Leviathan et al., arXiv 2211.17192).
    #[default]
    Token,
    /// Grouped Speculative Decoding (arXiv 2508.07747), relaxed: with probability min(1, P(C)/Q(C)), masses of the group C
    /// of t: the tokens c among the `size` whose ranks by p are nearest to t's (t among them; of an even `size` one more
    /// that is less likely; at the ends of the ranks the group goes further on the other side) with |p(c) - p(t)| < `delta`
    /// and squared distance of their vectors below `distance`. A token that p excludes has no rank and does not pass. What
    /// fails is replaced as by [`Test::Token`].
    ///
    /// `size` 1 is [`Test::Token`], bit for bit. The released code differs: its window is fixed to 7 less likely and 6 more
    /// likely tokens, cut off at the most likely, and a token among the 7 least likely is tested alone.
    Grouped {
        /// Tokens in a group at most, [`GROUP`] at most.
        size: u32,
        /// How far probabilities in a group may lie apart.
        delta: f32,
        /// How far vectors may lie apart, squared; infinite needs no [`Backend::Codebook`](super::Backend::Codebook).
        distance: f32,
    },
    /// LANTERN and LANTERN++ (arXiv 2410.03355, 2502.06352), relaxed: with probability min(1, p'(t)/q(t)), p'(t) being p(t)
    /// and the mass of B, the longest prefix of t's nearest others in the codebook whose mass does not exceed the bound. A
    /// token that fails is replaced by one of max(0, p' - q), where p' is p with the mass of B moved to t.
    ///
    /// `neighbours` 0 is [`Test::Token`], bit for bit. The released code differs: what replaces a token is never one of its
    /// `neighbours` nearest (when B is not empty), in B or not.
    Pooled {
        /// Nearest others that are looked at.
        neighbours: u32,
        /// What they may add.
        bound: PoolBound,
    },
    /// MuLo-SD (arXiv 2601.05149), relaxed: t passes if p(t) and the mass of its nearest others in the codebook reach
    /// `least`. Nothing random, and q plays no part. A token that fails is replaced by one of p; [`Drawn::before`] is
    /// [`NONE`] when that is the same.
    Threshold {
        /// Nearest others that are looked at.
        neighbours: u32,
        /// The mass that passes.
        least: f32,
    },
}

/// The largest [`Test::Grouped`].
pub const GROUP: u32 = 1024;

/// How much the neighbours of a token t may add to its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PoolBound {
    /// So much (LANTERN's delta).
    Mass(f32),
    /// p(t) times this less one (LANTERN++'s lambda, at least 1).
    Ratio(f32),
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
/// columns `0..frontier[r']` of every grid row up to its own (of its own row below its column), and its ancestors. `Open`
/// sees the whole prefix, what comes after it too.
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
    /// A slot of the prefix in a model that looks everywhere.
    Open {
        /// Its slot.
        slot: u32,
        /// The raster position that it is of, if it is of one; else its rotary coordinates are those of the prefix.
        at: Option<u32>,
    },
}

/// A token that the host chooses. The law that it counts as drawn from has it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// Index into [`Step::images`].
    pub image: u32,
    /// Raster position that receives it.
    pub position: u32,
    /// The token.
    pub token: u32,
}

/// A position of a continuous picture, of whose numbers a diffusion makes a law. Rows are indices into
/// [`Step::predictions`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// Index into [`Step::images`], whose temperature and random numbers apply.
    pub image: u32,
    /// Raster position.
    pub position: u32,
    /// How far the predicted noise is from that of the unconditional branch; 1: it is that of the conditional one.
    pub guidance: f32,
    /// The conditional branch.
    pub conditional: u32,
    /// The unconditional branch; [`NONE`] without guidance.
    pub unconditional: u32,
    /// What becomes of its numbers.
    pub fate: Fate,
}

/// What [`Backend::settle`](super::Backend::settle) does with a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is drawn from its law, whatever its numbers were.
    Draw,
    /// Its numbers, which were drawn from another law, are judged, and replaced if they fail.
    Judge,
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
///
/// The nodes of a draft tree have places in the canvas behind the grid: that of scratch slot `s` is `positions + s`, in a
/// canvas with so many more places. A node's token is what the pass embeds in its row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Coupled randomness: argmax(log p + Gumbel noise of the position), whatever the token is now.
    Coupled,
    /// The same, relaxed: the token that is there stays while the best one's sum is less than `slack` larger. Where the best one
    /// is also the more probable, each nat of that takes `penalty` of the slack away: a token that only has less luck may stay, one
    /// that the model finds out of place may not. One that p excludes does not stay.
    Cling {
        /// Nats, not negative.
        slack: f32,
        /// Nats of slack for each nat, not negative.
        penalty: f32,
    },
    /// argmax(log p + noise of its own), and p is kept as the law that the token was drawn from. For
    /// [`Rule::AutoCorrect`] to judge later.
    Draft,
    /// Keep the token if it passes the image's [`Test`], else replace it; q is the law that it was drawn from, and p is
    /// kept as the law that it then has. With [`Test::Token`] at every position and without a prefix rule this is SSD's
    /// "verification as auto correction" (arXiv 2606.20543, Eq. 4-5).
    AutoCorrect,
    /// Children of a node of a draft tree: so many different tokens, sampled without replacement (the largest sums of
    /// log p and noise, in this order), go to the place and those that follow it; p is kept at the first. Where p has fewer,
    /// the rest are no children: copies of the first.
    Children {
        /// How many, [`CHILDREN`] at most.
        count: u32,
    },
    /// The same, but nothing is random: so many of the most probable tokens (of equals the lower one first), as in EAGLE-2
    /// (arXiv 2406.16858). No law is kept: for [`Rule::Siblings`] that were chosen, not for [`Rule::AutoCorrect`]. The host
    /// may ask which they are and how probable ([`Backend::chosen`](super::Backend::chosen)).
    ///
    /// Backends agree on the tokens bit for bit where they agree on the logits (and on what top-p cuts).
    Likeliest {
        /// How many, [`CHILDREN`] at most.
        count: u32,
    },
    /// The tokens that [`Rule::Coupled`] comes closest to: those of the largest sums of log p and the noise of the position,
    /// the first of which is Coupled's own. Nothing is written to the canvas; the host asks which they are and by how much
    /// ([`Backend::chosen`](super::Backend::chosen): the logarithms of their shares of the exponentials of these sums).
    Foresee {
        /// How many, [`CHILDREN`] at most.
        count: u32,
    },
    /// The children of a node of a draft tree, judged one after another by the node's p: the first that passes the image's
    /// [`Test`] is its next token; each that fails leaves the residual in place of p for those after it; if none passes, the
    /// token is drawn from what is left. With [`Test::Token`] its law is p exactly (recursive rejection sampling, as in
    /// SpecInfer, arXiv 2305.09781, and EAGLE, arXiv 2401.15077).
    ///
    /// The children were put or drawn in an earlier phase or step. Nothing is written to the canvas, so all nodes of a tree are judged in one step, and the host walks from the root. Of
    /// the random numbers of a position only those of one node on its way count: nodes at one position may share them.
    Siblings {
        /// Place of the first; the others' follow.
        first: u32,
        /// How many, [`CHILDREN`] at most; none of a leaf, whose token is drawn from p.
        count: u32,
        /// Whether they were drawn by [`Rule::Children`], so that the law of each is q without those before it (EAGLE-1's
        /// static tree); else they were chosen, by [`Rule::Likeliest`] or by the host, and the law of each has it alone.
        drawn: bool,
    },
}

/// Children of a node at most.
pub const CHILDREN: u32 = 64;

/// When tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// [`Step::drafts`], from the logits of the sources.
    Drafts,
    /// [`Step::verdicts`], from the logits of the predictions.
    Verdicts,
}

/// A token to draw. Row numbers are rows of the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Index into [`Step::images`].
    pub image: u32,
    /// Raster position, or place of a tree's node, that receives it, and whose random numbers are used; siblings are drafts
    /// of it.
    pub position: u32,
    /// How.
    pub rule: Rule,
    /// Links this verdict to the one before it in the list; both are of [`Rule::AutoCorrect`]. It is judged only if that
    /// one was judged and kept its token; otherwise its token is drawn from p alone, whatever it was. So a chain of
    /// verdicts stops at the first token that fails.
    pub follows: bool,
    /// Round of its random numbers ([`Stream`]); coupled draws use round 0 whatever this is.
    pub round: u32,
    /// The conditional branch; the second is [`NONE`] unless the mean of the log-weights of two distributions, each
    /// processed on its own, is drawn from.
    pub conditional: [u32; 2],
    /// The unconditional branch; [`NONE`] without guidance.
    pub unconditional: [u32; 2],
}

impl Rule {
    /// How many tokens it chooses for the host.
    pub fn chooses(self) -> usize {
        match self {
            Rule::Likeliest { count } | Rule::Foresee { count } => count as usize,
            _ => 0,
        }
    }
}

/// Tokens that the draws of a step may choose, for each place of the canvas.
pub(super) const CHOICES: usize = 8;

/// Checks that verdicts follow verdicts.
///
/// # Panics
/// If one does not.
pub(super) fn check_chains(draws: &[Draw]) {
    let mut before = None;
    for draw in draws {
        let linked = (draw.rule, Some(draw.image)) == (Rule::AutoCorrect, before);
        assert!(!draw.follows || linked, "position {} follows no verdict of its image", draw.position);
        before = (draw.rule == Rule::AutoCorrect).then_some(draw.image);
    }
}

/// What a drawn token replaced; of [`Rule::Siblings`], which child passed; of [`Rule::Foresee`], what would be drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// The token before, [`NONE`] if it failed [`Test::Threshold`] and was replaced by the same; of siblings the number of the
    /// one that passed, [`NONE`] if none did; of what is foreseen [`NONE`].
    pub before: u32,
    /// The token now.
    pub after: u32,
}

/// A token that [`Rule::Likeliest`] or [`Rule::Foresee`] chose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: u32,
    /// The logarithm of its probability, or share, in nats; -inf where p has no more tokens.
    pub log_probability: f32,
}

/// Copies a row of the logits to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// From this row.
    pub from: u32,
    /// To this.
    pub to: u32,
}
