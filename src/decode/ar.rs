//! Plain autoregressive decoding: one token per pass. The reference for every other method.

use super::{Ask, Round, Schedule};
use crate::backend::Drawn;
use crate::grid::Grid;

/// Draws every position from its exact context.
pub struct Ar {
    grid: Grid,
    /// Positions that have their token.
    done: usize,
    frontier: Vec<u32>,
}

impl Ar {
    /// Over a grid.
    pub fn new(grid: Grid) -> Self {
        Self { grid, done: 1, frontier: vec![0; grid.height] }
    }
}

impl Schedule for Ar {
    fn next(&mut self) -> Option<Round> {
        if self.done == self.grid.len() {
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
