//! Decoding: how the tokens of an image are found with few forward passes.
//!
//! A method ([`methods`]) is composed of a drafter ([`drafter`]), an acceptance rule ([`Acceptance`]) and a schedule
//! ([`ar`], [`ssd`], [`jacobi`], [`lanes`], [`pipeline`], [`eagle`]): a state machine that says what the next [`Round`] feeds and asks, and learns what was drawn.
//! [`run`] is the loop of them all. A schedule sees the model through [`Target`] alone, so it can be tested on a toy
//! model whose law is enumerated; tokens and distributions stay on the target's device, a schedule sees two integers
//! for every token that it asks for.

pub mod acceptance;
pub mod ar;
pub mod coarse;
pub mod cspd;
pub mod drafter;
mod drafting;
pub mod dynamic_tree;
pub mod eagle;
pub mod foresight;
pub mod islands;
pub mod jacobi;
pub mod knobs;
pub mod lanes;
mod layout;
pub mod methods;
pub mod mulo;
pub mod outlook;
pub mod pipeline;
pub mod pjd;
pub mod session;
pub mod ssd;
pub mod static_tree;
#[cfg(test)]
pub(crate) mod testing;
pub mod tree;
pub mod window;
pub mod zipar;

pub use acceptance::Acceptance;

use crate::backend::{Chosen, Drawn, Error, NONE};
use crate::grid::Grid;
use crate::nn::spatial_heads::Offset;
use crate::rng::Stream;
use std::ops::Range;
use tree::{Family, Growth, Node};

/// Is told how many tokens are done.
pub type Progress<'a> = dyn FnMut(usize) + 'a;

/// A request for a draft: the spatial head at `offset` of the position `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The position whose state and token the head reads. The state is the one that its token was last predicted
    /// from, so its predecessor must have been fed.
    pub from: usize,
    /// Where the head looks.
    pub offset: Offset,
}

/// A position that receives its first token from spatial heads: from one, or from the geometric mean of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The position.
    pub position: usize,
    /// The heads.
    pub sources: [Option<Source>; 2],
}

/// A token to be drawn from the distribution of its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The position; its predecessor is in the block, or its distribution was kept.
    pub position: usize,
    /// Judge the token that is there by the acceptance rule, rather than draw a first one.
    pub verify: bool,
    /// Judge it only if the ask before it was judged and its token kept; else draw it anew. For [`Acceptance::Judged`].
    pub follows: bool,
    /// It is far from final, so it is judged more strictly. For [`Acceptance::Clinging`].
    pub early: bool,
}

impl Ask {
    /// A first token.
    pub fn draw(position: usize) -> Self {
        Self { position, verify: false, follows: false, early: false }
    }

    /// A token to be judged on its own.
    pub fn verify(position: usize) -> Self {
        Self { position, verify: true, follows: false, early: false }
    }
}

/// A question what a position would be drawn as with the noise of its own, and what nearly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Slot of the node that predicts it; `None` for the position before it, which is in the block.
    pub parent: Option<usize>,
    /// The position.
    pub position: usize,
    /// How many tokens to name.
    pub count: usize,
}

/// One round: tokens are placed, heads draft, one pass feeds a block, tokens are drawn from what it predicts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Tokens that the schedule chose, before anything else: position (of a node the grid's length and its slot) and token.
    /// The law that they count as drawn from has them alone.
    pub puts: Vec<(usize, u32)>,
    /// Rows of the grid whose first tokens, before anything else, are those of a low-resolution drafter, given the rows
    /// before them ([`coarse`]).
    pub sketch: Option<Range<usize>>,
    /// First tokens, before the pass. None of them is a source of another.
    pub drafts: Vec<Draft>,
    /// Positions fed, ascending: their keys and values are written, their successors predicted.
    pub block: Vec<usize>,
    /// Positions fed beside the cache: they see of their own row only what the rows below it see, nothing sees them, and
    /// their successors are predicted unless the block has them too. For tokens that stand in for others.
    pub temporary: Vec<usize>,
    /// Nodes of a draft tree, fed beside the cache.
    pub nodes: Vec<Node>,
    /// The columns of each grid row that nodes see, if it is not what the block sees.
    pub trunk: Option<Vec<u32>>,
    /// Columns of each grid row that are visible to the rows below it.
    pub frontier: Vec<u32>,
    /// Tokens to draw after the pass.
    pub asks: Vec<Ask>,
    /// Children to judge, each family by what its parent predicts. Nothing is written to the canvas.
    pub families: Vec<Family>,
    /// Tokens to foresee. Nothing is written to the canvas.
    pub forecasts: Vec<Forecast>,
    /// The position whose distribution, predicted by this pass, is kept for asks of later rounds.
    pub keep: Option<usize>,
}

/// What a schedule may know of an image before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scene {
    /// The token grid.
    pub grid: Grid,
    /// How many horizontal and vertical offsets have heads.
    pub heads: (usize, usize),
    /// Rows of the grid for each row of a low-resolution drafter.
    pub scale: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// The image's random numbers.
    pub stream: Stream,
}

/// A model, as decoders see it: guided images in the making, each with its canvas of tokens, its KV cache, its processed
/// distributions (guidance, temperature, top-k, top-p) and its acceptance rule. A pass serves all of them; what becomes of
/// an image does not depend on the others.
pub trait Target {
    /// An image.
    fn scene(&self, image: usize) -> Scene;
    /// Feeds the prompts, draws the token of position 0 of each image and keeps its distribution. One pass.
    fn begin(&mut self) -> Result<Vec<Drawn>, Error>;
    /// Runs a pass of the drafter over an image; what it chose ([`tree::Choice::Likeliest`]), in order.
    fn grow(&mut self, image: usize, growth: &Growth) -> Result<Vec<Chosen>, Error>;
    /// Runs a round of each image that has one; what became of the tokens it asks for, then of its families, in its
    /// order, for each image. One pass.
    fn rounds(&mut self, rounds: &[Option<Round>]) -> Result<Vec<Vec<Drawn>>, Error>;
    /// What the forecasts of the last rounds named, in the order of each image's.
    fn foreseen(&mut self) -> Result<Vec<Vec<Chosen>>, Error>;
    /// The canvas of an image.
    fn tokens(&mut self, image: usize) -> Result<Vec<u32>, Error>;
    /// What the drafter has cost an image so far, if that is a model of its own.
    fn draft_cost(&self, _image: usize) -> DraftCost {
        DraftCost::default()
    }
}

/// The order in which the positions of an image are drafted, fed and verified. Position 0 is drawn before the first
/// round.
pub trait Schedule {
    /// The token of position 0.
    fn begin(&mut self, _first: u32) {}
    /// The next pass of the drafter before the next round, if there is one more.
    fn grow(&mut self) -> Option<Growth> {
        None
    }
    /// What that chose.
    fn grown(&mut self, _chosen: &[Chosen]) {}
    /// The next round; `None` when every token is final.
    fn next(&mut self) -> Option<Round>;
    /// What the forecasts of the last round named; before [`Self::learn`].
    fn foreseen(&mut self, _chosen: &[Chosen]) {}
    /// What became of the tokens that the last round asked for, in its order.
    fn learn(&mut self, drawn: &[Drawn]);
    /// Tokens that are done.
    fn done(&self) -> usize;
}

/// The tokens of an image, or the numbers of one that has none, and what they cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// One token per position, raster order; empty if the model is continuous.
    pub tokens: Vec<u32>,
    /// Latents `[positions, channels]` of a continuous model; empty if there are tokens.
    pub latents: Vec<f32>,
    /// Counters.
    pub stats: Stats,
    /// What the first verification of each position's token said; `None` where there was none.
    pub first: Vec<Option<bool>>,
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
    /// What a drafter cost that is a model of its own.
    pub draft: DraftCost,
}

/// Passes of a drafter that is a model of its own; those of the target are counted apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCost {
    /// Forward passes, branches batched.
    pub passes: usize,
    /// Rows fed to it, summed over passes, per branch.
    pub rows: usize,
}

impl Stats {
    /// Share of drafts that their first verification left unchanged; 0 without drafts.
    pub fn acceptance(&self) -> f64 {
        self.accepted as f64 / self.drafted.max(1) as f64
    }
}

/// Decodes images together, each by a schedule of its own, until all are done; `progress` is told the tokens of all.
pub fn run<T: Target + ?Sized>(
    target: &mut T,
    schedules: &mut [&mut dyn Schedule],
    progress: &mut Progress<'_>,
) -> Result<Vec<Outcome>, Error> {
    let positions: Vec<usize> = (0..schedules.len()).map(|image| target.scene(image).grid.len()).collect();
    let mut tallies: Vec<Tally> = positions.iter().map(|&positions| Tally::new(positions)).collect();
    for (schedule, first) in schedules.iter_mut().zip(target.begin()?) {
        schedule.begin(first.after);
    }
    loop {
        let each = schedules.iter_mut().enumerate();
        let rounds: Vec<Option<Round>> =
            each.map(|(image, schedule)| next(target, image, &mut **schedule)).collect::<Result<_, Error>>()?;
        if rounds.iter().all(Option::is_none) {
            break;
        }
        let drawn = target.rounds(&rounds)?;
        let forecasting = rounds.iter().flatten().any(|round| !round.forecasts.is_empty());
        let foreseen = if forecasting { target.foreseen()? } else { Vec::new() };
        for (image, (round, drawn)) in rounds.iter().zip(&drawn).enumerate() {
            let Some(round) = round else { continue };
            tallies[image].count(round, drawn);
            if !round.forecasts.is_empty() {
                schedules[image].foreseen(&foreseen[image]);
            }
            schedules[image].learn(drawn);
        }
        progress(schedules.iter().map(|schedule| schedule.done()).sum());
    }
    progress(positions.iter().sum());
    let outcome = |(image, Tally { stats, first }): (usize, Tally)| {
        let stats = Stats { draft: target.draft_cost(image), ..stats };
        Ok(Outcome { tokens: target.tokens(image)?, latents: Vec::new(), stats, first })
    };
    tallies.into_iter().enumerate().map(outcome).collect()
}

/// The next round of an image, once its draft tree is grown.
fn next<T: Target + ?Sized>(target: &mut T, image: usize, schedule: &mut dyn Schedule) -> Result<Option<Round>, Error> {
    while let Some(growth) = schedule.grow() {
        schedule.grown(&target.grow(image, &growth)?);
    }
    Ok(schedule.next())
}

/// What is counted of an image while it is made.
struct Tally {
    stats: Stats,
    first: Vec<Option<bool>>,
}

impl Tally {
    /// After the pass over the prompt.
    fn new(positions: usize) -> Self {
        Self { stats: Stats { nfe: 1, ..Stats::default() }, first: vec![None; positions] }
    }

    /// Counts a round and what became of its tokens.
    fn count(&mut self, round: &Round, drawn: &[Drawn]) {
        self.stats.nfe += 1;
        self.stats.rows += round.block.len() + round.temporary.len() + round.nodes.len();
        let mut kept = false;
        for (ask, drawn) in round.asks.iter().zip(drawn) {
            let judged = ask.verify && (kept || !ask.follows);
            kept = judged && drawn.before == drawn.after;
            if judged {
                self.judge(ask.position, kept);
            }
        }
        for (family, drawn) in tree::path(&round.families, &drawn[round.asks.len()..]) {
            if family.count > 0 {
                self.judge(family.position, drawn.before != NONE);
            }
        }
    }

    /// Only the first judgement of a position counts.
    fn judge(&mut self, position: usize, passed: bool) {
        if self.first[position].is_none() {
            self.first[position] = Some(passed);
            self.stats.drafted += 1;
            self.stats.accepted += usize::from(passed);
        }
    }
}

/// The frontier when the first `fed` positions of a grid have their keys in place.
fn frontier(grid: Grid, fed: usize) -> Vec<u32> {
    (0..grid.height).map(|row| fed.saturating_sub(row * grid.width).min(grid.width) as u32).collect()
}
