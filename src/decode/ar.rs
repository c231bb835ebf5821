//! Plain autoregressive decoding: one token per pass. The reference for every other method.

use super::{Ask, Round, Schedule, frontier};
use crate::backend::Drawn;
use crate::grid::Grid;
use std::ops::Range;

/// Draws every position from its exact context.
pub struct Ar {
    grid: Grid,
    /// Positions that have their token.
    done: usize,
    /// One past the last that is to get one.
    end: usize,
    frontier: Vec<u32>,
}

impl Ar {
    /// Over a grid.
    pub fn new(grid: Grid) -> Self {
        Self::over(grid, 0..grid.len())
    }

    /// Over some positions; those before them are fed, or will be with the first round, but for the last of them.
    pub fn over(grid: Grid, positions: Range<usize>) -> Self {
        let done = positions.start.max(1);
        Self { grid, done, end: positions.end, frontier: frontier(grid, done - 1) }
    }
}

impl Schedule for Ar {
    fn next(&mut self) -> Option<Round> {
        if self.done == self.end {
            return None;
        }
        let position = self.done;
        self.done += 1;
        self.frontier[self.grid.row(position - 1)] += 1;
        Some(Round {
            block: vec![position - 1],
            frontier: self.frontier.clone(),
            asks: vec![Ask::draw(position)],
            ..Round::default()
        })
    }

    fn learn(&mut self, _: &[Drawn]) {}

    fn done(&self) -> usize {
        self.done
    }
}
