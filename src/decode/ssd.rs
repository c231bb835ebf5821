//! Spatially Speculative Decoding (arXiv 2606.20543) to the letter: the first row by horizontal heads in chunks,
//! then whole rows by vertical heads, a fixed number of rounds each, one more pass to commit.
//!
//! Passes on an H x W grid with `rows_per_block` = k: `1 + 2 ceil((W-1) / k_h)` for the first row (the prompt
//! included), then per block of k rows `(b + 1) + (k - 1)(i + 1)`: 80 for k = 1, b = 2 on 24x24. Where the paper
//! does not say whether the `i` rounds of a block with k > 2 run on all remaining rows or only on the next, all
//! remaining rows are refined: each round then has the context that the next commit will have.

use super::knobs::count;
use super::{Ask, Draft, Round, Schedule, Source};
use crate::backend::Drawn;
use crate::grid::Grid;
use crate::nn::spatial_heads::Offset;
use std::collections::VecDeque;

/// The staged schedule of the paper's appendix A.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Rounds before the first commit of a block (`r`, or `b` of the staged schedule).
    pub rounds: usize,
    /// Rows that one block drafts (`k_v`); at most the model's vertical heads.
    pub rows_per_block: usize,
    /// Rounds before each further commit of a block (`i`).
    pub refinements: usize,
}

impl Default for Knobs {
    fn default() -> Self {
        Self { rounds: 2, rows_per_block: 1, refinements: 0 }
    }
}

impl super::knobs::Knobs for Knobs {
    fn list(&self) -> Vec<(&'static str, String)> {
        let values = [self.rounds, self.rows_per_block, self.refinements].map(|value| value.to_string());
        ["rounds", "rows", "refinements"].into_iter().zip(values).collect()
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match knob {
            "rounds" => self.rounds = count(knob, value, 0)?,
            "rows" => self.rows_per_block = count(knob, value, 1)?,
            "refinements" => self.refinements = count(knob, value, 0)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Knobs {
    /// The number of passes, which depends on nothing else.
    pub fn passes(&self, grid: Grid, horizontal: usize) -> usize {
        let first_row = 1 + 2 * (grid.width - 1).div_ceil(horizontal);
        let rows = grid.height - 1;
        let block = |k: usize| (self.rounds + 1) + (k - 1) * (self.refinements + 1);
        let (whole, rest) = (rows / self.rows_per_block, rows % self.rows_per_block);
        first_row + whole * block(self.rows_per_block) + if rest > 0 { block(rest) } else { 0 }
    }
}

/// The published schedule: which rounds there are depends on nothing that they draw.
pub struct Ssd {
    rounds: VecDeque<(Round, usize)>,
    done: usize,
}

impl Ssd {
    /// Over a grid, with so many horizontal and vertical heads.
    pub fn new(grid: Grid, (horizontal, vertical): (usize, usize), knobs: &Knobs) -> Self {
        let mut plan =
            Plan { grid, drafts: Vec::new(), drafted: 1, frontier: vec![0; grid.height], rounds: VecDeque::new() };
        let mut committed = 0;
        while committed + 1 < grid.width {
            let count = horizontal.min(grid.width - 1 - committed);
            plan.draft((1..=count).map(|d| (committed, Offset::Right(d))));
            // The distribution of the block's first token needs `committed` to have been fed: in the first chunk it
            // has not, so the chunk's block begins with it, and the pass is counted as any other.
            let begin = if committed == 0 { 0 } else { committed + 1 };
            plan.round(begin, committed + 1);
            plan.commit(begin, committed + 1 + count);
            committed += count;
        }
        let mut row = 1;
        while row < grid.height {
            let count = knobs.rows_per_block.clamp(1, vertical).min(grid.height - row);
            let above = (0..grid.width).map(|col| grid.index(row - 1, col));
            plan.draft((1..=count).flat_map(|d| above.clone().map(move |from| (from, Offset::Down(d)))));
            for leading in row..row + count {
                let rounds = if leading == row { knobs.rounds } else { knobs.refinements };
                let start = grid.index(leading, 0);
                (0..rounds).for_each(|_| plan.round(start, start));
                plan.commit(start, start + grid.width);
            }
            row += count;
        }
        Self { rounds: plan.rounds, done: 1 }
    }
}

impl Schedule for Ssd {
    fn next(&mut self) -> Option<Round> {
        let (round, done) = self.rounds.pop_front()?;
        self.done = done;
        Some(round)
    }

    fn learn(&mut self, _: &[Drawn]) {}

    fn done(&self) -> usize {
        self.done
    }
}

/// The rounds so far.
struct Plan {
    grid: Grid,
    /// Drafts that the next round begins with.
    drafts: Vec<Draft>,
    /// Positions that have a token.
    drafted: usize,
    frontier: Vec<u32>,
    /// Each with the number of tokens that are committed after it.
    rounds: VecDeque<(Round, usize)>,
}

impl Plan {
    /// Drafts the next positions, one per source; sources are in raster order of what they draft.
    fn draft(&mut self, sources: impl Iterator<Item = (usize, Offset)>) {
        for (from, offset) in sources {
            self.drafts.push(Draft { position: self.drafted, sources: [Some(Source { from, offset }), None] });
            self.drafted += 1;
        }
    }

    fn push(&mut self, begin: usize, end: usize, asks: Vec<Ask>, keep: Option<usize>, done: usize) {
        for position in begin..end {
            let (row, col) = (self.grid.row(position), self.grid.col(position) as u32);
            self.frontier[row] = self.frontier[row].max(col + 1);
        }
        let drafts = std::mem::take(&mut self.drafts);
        let round = Round {
            drafts,
            block: (begin..end).collect(),
            frontier: self.frontier.clone(),
            asks,
            keep,
            ..Round::default()
        };
        self.rounds.push_back((round, done));
    }

    /// One verification of every drafted position from `first` on; positions `begin..first` only give context.
    fn round(&mut self, begin: usize, first: usize) {
        let asks = (first..self.drafted).map(Ask::verify).collect();
        self.push(begin, self.drafted, asks, None, first);
    }

    /// Feeds `begin..end` for good: their keys and values stay, and the last one predicts what follows.
    fn commit(&mut self, begin: usize, end: usize) {
        self.push(begin, end, Vec::new(), (end < self.grid.len()).then_some(end), end);
    }
}
