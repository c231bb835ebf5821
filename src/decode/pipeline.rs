//! The slanted wavefront: positions enter in the order of a plane over the grid, every pass verifies all of them at
//! once, and they leave when they are final. One loop is the lossless decoder and the fast one.
//!
//! Position (r, c) enters when the clock reaches `r * lag + c * slope`. Several rows are in flight, each a little
//! behind the one above it, so the passes per row fall towards `lag` while every token still meets several rounds.
//! `lag` below 1 admits more than one row a pass; `slope` above 0 starts the left part of a row before the row above
//! is complete and lets a row's columns follow each other.
//!
//! With coupled noise ([`Coupled`](super::accept::Coupled)) a pass is a Jacobi iteration of the deterministic map
//! from context to tokens, and its fixed point is plain AR's sample. A token is settled when it was fed with its
//! final value in a settled context: what a pass with the right context leaves unchanged, and the first token that it
//! corrects, are plain AR's. That alone settles tokens in the exact decoder. The relaxed one also makes a token final
//! after a number of verifications; it is fed once more, so that its keys and values are its own.

use super::accept::Acceptance;
use super::drafter::{Canvas, SpatialDrafter};
use super::{Counted, Outcome, Placed, Progress, Target};
use crate::grid::Grid;

/// Shape of the wavefront.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knobs {
    /// Clock units between a row and the next. The clock runs one unit a pass.
    pub lag: f64,
    /// Clock units between a column and the next.
    pub slope: f64,
    /// How many units the clock may run ahead of the first token that is not settled.
    pub window: f64,
    /// A token is final after this many verifications, or earlier when it is exact; `None` for exact only: the output
    /// is plain AR's, bit for bit, whatever the other knobs.
    pub rounds: Option<u32>,
    /// Where drafts come from.
    pub drafter: SpatialDrafter,
}

/// Decodes an image.
pub fn decode<T: Target, A: Acceptance>(
    target: &mut T,
    rule: A,
    knobs: &Knobs,
    progress: &mut Progress<'_>,
) -> Outcome {
    let mut wave = Wave::new(target, rule, *knobs);
    while !wave.finished() {
        wave.admit();
        wave.pass();
        wave.settle();
        progress(wave.settled);
    }
    progress(wave.grid.len());
    Outcome { tokens: wave.tokens, stats: wave.run.stats }
}

/// What is known of one position.
#[derive(Clone, Copy, Default)]
struct Cell {
    /// Verifications so far.
    age: u32,
    /// The token will not change any more.
    is_final: bool,
    /// It was fed after it became final.
    fed_final: bool,
    /// The last pass confirmed the token that was fed.
    unchanged: bool,
    /// The target's own sample for a position that has not entered: better than any head's draft.
    foreseen: Option<u32>,
}

struct Wave<'a, T, A> {
    run: Counted<'a, T>,
    rule: A,
    knobs: Knobs,
    grid: Grid,
    tokens: Vec<u32>,
    predicted: Vec<bool>,
    cells: Vec<Cell>,
    /// Columns of each row that have entered.
    entered: Vec<u32>,
    /// First position that is not settled. Its token is final, it has not been fed.
    settled: usize,
    clock: f64,
}

impl<'a, T: Target, A: Acceptance> Wave<'a, T, A> {
    fn new(target: &'a mut T, mut rule: A, knobs: Knobs) -> Self {
        let grid = target.grid();
        let mut run = Counted::new(target);
        run.prefill();
        let mut tokens = vec![0; grid.len()];
        tokens[0] = rule.draft(0, run.target.log_weights(0));
        let mut cells = vec![Cell::default(); grid.len()];
        cells[0].is_final = true;
        let mut predicted = vec![false; grid.len()];
        predicted[0] = true;
        let mut entered = vec![0; grid.height];
        entered[0] = 1;
        Self { run, rule, knobs, grid, tokens, predicted, cells, entered, settled: 0, clock: 0.0 }
    }

    fn entry(&self, position: usize) -> f64 {
        self.grid.row(position) as f64 * self.knobs.lag + self.grid.col(position) as f64 * self.knobs.slope
    }

    fn has_entered(&self, position: usize) -> bool {
        (self.grid.col(position) as u32) < self.entered[self.grid.row(position)]
    }

    fn finished(&self) -> bool {
        self.cells.iter().all(|cell| cell.is_final)
    }

    /// Advances the clock and drafts the positions that it lets in.
    fn admit(&mut self) {
        let limit = self.entry(self.settled) + self.knobs.window;
        self.clock = (self.clock + 1.0).min(limit).max(self.clock);
        let (mut drafts, mut count) = (Vec::new(), 0);
        for row in self.grid.row(self.settled)..self.grid.height {
            let (first, before) = (self.entered[row] as usize, count);
            for col in first..self.grid.width {
                let position = self.grid.index(row, col);
                if self.entry(position) > self.clock {
                    break;
                }
                self.entered[row] = col as u32 + 1;
                count += 1;
                match self.cells[position].foreseen {
                    Some(token) => self.tokens[position] = token,
                    None => drafts.push(position),
                }
            }
            if first == 0 && count == before {
                break;
            }
        }
        let canvas = Canvas { tokens: &self.tokens, predicted: &self.predicted };
        let tokens = self.knobs.drafter.draft(self.run.target, &mut self.rule, &canvas, &drafts);
        drafts.into_iter().zip(tokens).for_each(|(position, token)| self.tokens[position] = token);
    }

    /// Feeds everything in flight and verifies what it predicts.
    fn pass(&mut self) {
        let length = self.grid.len();
        let in_flight = (self.settled..length).filter(|&position| {
            let next_is_final = position + 1 == length || self.cells[position + 1].is_final;
            self.has_entered(position) && !(self.cells[position].fed_final && next_is_final)
        });
        let block: Vec<Placed> = in_flight.map(|position| Placed { position, token: self.tokens[position] }).collect();
        self.run.feed(&block, &self.entered);
        for placed in &block {
            let cell = &mut self.cells[placed.position];
            cell.fed_final = cell.is_final;
        }
        for (row, placed) in block.iter().enumerate() {
            let next = placed.position + 1;
            if next < length {
                self.predicted[next] = true;
                self.verify(next, row);
            }
        }
    }

    /// Applies distribution `row` of the last pass to `position`.
    fn verify(&mut self, position: usize, row: usize) {
        let entered = self.has_entered(position);
        let log_weights = self.run.target.log_weights(row);
        let cell = &mut self.cells[position];
        if cell.is_final {
            return;
        }
        if !entered {
            cell.foreseen = Some(self.rule.draft(position, log_weights));
            return;
        }
        let token = self.rule.verify(position, self.tokens[position], log_weights);
        cell.unchanged = token == self.tokens[position];
        if cell.age == 0 {
            self.run.stats.drafted += 1;
            self.run.stats.accepted += usize::from(cell.unchanged);
        }
        cell.age += 1;
        self.tokens[position] = token;
    }

    /// Moves the settled prefix over everything that the last pass confirmed, then ages tokens.
    fn settle(&mut self) {
        let length = self.grid.len();
        while self.settled + 1 < length {
            self.settled += 1;
            let entered = self.has_entered(self.settled);
            let cell = &mut self.cells[self.settled];
            let confirmed = if cell.is_final { cell.fed_final } else { entered && cell.unchanged };
            cell.is_final = true;
            if !confirmed {
                self.enter_foreseen(entered);
                break;
            }
        }
        self.rule.forget_before(self.settled);
        if let Some(rounds) = self.knobs.rounds {
            self.cells.iter_mut().filter(|cell| cell.age >= rounds).for_each(|cell| cell.is_final = true);
        }
    }

    /// The first unsettled position is in flight even before its time: its distribution is known, so is its token.
    fn enter_foreseen(&mut self, entered: bool) {
        if !entered {
            if let Some(token) = self.cells[self.settled].foreseen {
                self.tokens[self.settled] = token;
            }
            self.entered[self.grid.row(self.settled)] = self.grid.col(self.settled) as u32 + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::accept::Coupled;
    use crate::decode::drafter::Preference;
    use crate::decode::testing::Toy;
    use crate::decode::{Stats, ar};
    use crate::rng::Stream;

    fn knobs(lag: f64, slope: f64, window: f64, rounds: Option<u32>) -> Knobs {
        Knobs { lag, slope, window, rounds, drafter: SpatialDrafter { preference: Preference::Both } }
    }

    fn run(knobs: &Knobs, seed: u64) -> Outcome {
        decode(&mut Toy::new(5, 7, 6), Coupled::new(Stream { seed, image: 0 }), knobs, &mut |_| ())
    }

    #[test]
    fn exact_returns_the_tokens_of_ar_for_every_shape() {
        let shapes =
            [(7.0, 1.0, 4.0), (7.0, 1.0, 0.0), (1.0, 0.0, 3.0), (0.5, 0.0, 9.0), (2.0, 0.5, 5.0), (3.0, 0.2, 100.0)];
        for seed in 0..40 {
            let plain = ar::decode(&mut Toy::new(5, 7, 6), Stream { seed, image: 0 }, &mut |_| ());
            for (lag, slope, window) in shapes {
                let exact = run(&knobs(lag, slope, window, None), seed);
                assert_eq!(exact.tokens, plain.tokens, "seed {seed}, lag {lag}, slope {slope}, window {window}");
                assert!(exact.stats.nfe <= plain.stats.nfe);
            }
        }
    }

    #[test]
    fn many_rounds_reach_the_fixed_point_and_few_do_not() {
        let differing = |rounds| {
            let differs = |seed: &u64| {
                let plain = ar::decode(&mut Toy::new(5, 7, 6), Stream { seed: *seed, image: 0 }, &mut |_| ());
                run(&knobs(1.0, 0.0, f64::INFINITY, Some(rounds)), *seed).tokens != plain.tokens
            };
            (0..20).filter(differs).count()
        };
        assert_eq!(differing(40), 0);
        assert!(differing(1) > 10);
    }

    #[test]
    fn passes_follow_from_lag_and_rounds() {
        // The prompt, then the last row enters at 4 * lag + 1 and needs `rounds` more passes, of which its own entry
        // is the first.
        let Stats { nfe, .. } = run(&knobs(2.0, 0.0, f64::INFINITY, Some(3)), 1).stats;
        assert!(nfe <= 1 + 4 * 2 + 3, "{nfe}");
    }
}
