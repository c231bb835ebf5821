//! Spatially Speculative Decoding (arXiv 2606.20543) to the letter: the first row by horizontal heads in chunks,
//! then whole rows by vertical heads, a fixed number of rounds each, one more pass to commit.
//!
//! Passes on an H x W grid with `rows_per_block` = k: `1 + 2 ceil((W-1) / k_h)` for the first row (the prompt
//! included), then per block of k rows `(b + 1) + (k - 1)(i + 1)`: 80 for k = 1, b = 2 on 24x24. Where the paper
//! does not say whether the `i` rounds of a block with k > 2 run on all remaining rows or only on the next, all
//! remaining rows are refined: each round then has the context that the next commit will have.

use super::accept::Acceptance;
use super::{Counted, Outcome, Placed, Progress, Source, Target};
use crate::grid::Grid;
use crate::nn::spatial_heads::Offset;

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

/// Decodes an image. `rule` decides what a round does with a token; the paper's is
/// [`AutoCorrect`](super::accept::AutoCorrect).
pub fn decode<T: Target, A: Acceptance>(
    target: &mut T,
    mut rule: A,
    knobs: &Knobs,
    progress: &mut Progress<'_>,
) -> Outcome {
    let (grid, (horizontal, vertical)) = (target.grid(), target.heads());
    let mut run = Counted::new(target);
    run.prefill();
    let first = rule.draft(0, run.target.log_weights(0));
    let (head, frontier) = (run.target.log_weights(0).to_vec(), vec![0; grid.height]);
    let mut decoder = Decoder { run, rule, grid, tokens: vec![first], frontier, head, verified: 1 };
    let mut committed = 0;
    while committed + 1 < grid.width {
        let count = horizontal.min(grid.width - 1 - committed);
        let from = decoder.placed(committed);
        decoder.draft((1..=count).map(|d| Source { from, offset: Offset::Right(d) }).collect());
        // The distribution of the block's first token needs `committed` to have been fed: in the first chunk it has
        // not, so the chunk's block begins with it, and the pass is counted as any other.
        let begin = if committed == 0 { 0 } else { committed + 1 };
        decoder.round(begin, committed + 1);
        decoder.commit(begin, committed + 1 + count);
        committed += count;
        progress(committed + 1);
    }
    let mut row = 1;
    while row < grid.height {
        let count = knobs.rows_per_block.clamp(1, vertical).min(grid.height - row);
        let above: Vec<Placed> = (0..grid.width).map(|col| decoder.placed(grid.index(row - 1, col))).collect();
        let sources = |d| above.iter().map(move |&from| Source { from, offset: Offset::Down(d) });
        decoder.draft((1..=count).flat_map(sources).collect());
        for leading in row..row + count {
            let rounds = if leading == row { knobs.rounds } else { knobs.refinements };
            let start = grid.index(leading, 0);
            (0..rounds).for_each(|_| decoder.round(start, start));
            decoder.commit(start, start + grid.width);
            progress(start + grid.width);
        }
        row += count;
    }
    Outcome { tokens: decoder.tokens, stats: decoder.run.stats }
}

struct Decoder<'a, T, A> {
    run: Counted<'a, T>,
    rule: A,
    grid: Grid,
    tokens: Vec<u32>,
    frontier: Vec<u32>,
    /// Distribution of the first position that is not committed.
    head: Vec<f32>,
    /// Positions before this one have been verified at least once.
    verified: usize,
}

impl<T: Target, A: Acceptance> Decoder<'_, T, A> {
    fn placed(&self, position: usize) -> Placed {
        Placed { position, token: self.tokens[position] }
    }

    /// Appends a draft for each source; sources are in raster order of what they draft.
    fn draft(&mut self, sources: Vec<Source>) {
        self.run.target.draft(&sources);
        for i in 0..sources.len() {
            let token = self.rule.draft(self.tokens.len(), self.run.target.draft_log_weights(i));
            self.tokens.push(token);
        }
    }

    /// Feeds positions `begin..` in one pass.
    fn feed(&mut self, begin: usize, end: usize) {
        for position in begin..end {
            let (row, col) = (self.grid.row(position), self.grid.col(position) as u32);
            self.frontier[row] = self.frontier[row].max(col + 1);
        }
        let block: Vec<Placed> = (begin..end).map(|position| self.placed(position)).collect();
        self.run.feed(&block, &self.frontier);
    }

    /// One verification of every drafted position from `first` on; positions `begin..first` only give context.
    fn round(&mut self, begin: usize, first: usize) {
        let end = self.tokens.len();
        self.feed(begin, end);
        for position in first..end {
            let log_weights = match position.checked_sub(begin + 1) {
                None => &self.head,
                Some(row) => self.run.target.log_weights(row),
            };
            let token = self.rule.verify(position, self.tokens[position], log_weights);
            if position >= self.verified {
                self.run.stats.drafted += 1;
                self.run.stats.accepted += usize::from(token == self.tokens[position]);
            }
            self.tokens[position] = token;
        }
        self.verified = end;
    }

    /// Feeds `begin..end` for good: their keys and values stay, and the last one predicts what follows.
    fn commit(&mut self, begin: usize, end: usize) {
        self.feed(begin, end);
        self.head.copy_from_slice(self.run.target.log_weights(end - 1 - begin));
        self.rule.forget_before(end);
    }
}
