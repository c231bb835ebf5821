//! A low-resolution model as the drafter of a [`Target`] (MuLo-SD, arXiv 2601.05149): before a pass it drafts whole rows,
//! given the rows above them as the target has them.
//!
//! Those are brought down to the low resolution, where they replace what was drafted; from the first row that may have
//! changed on their keys and values are written again, together with the first pass over the new rows. The new rows are
//! drawn one token a pass, or as ZipAR does, and brought up.

use super::ar::Ar;
use super::lanes::Lanes;
use super::session::Session;
use super::tree::Growth;
use super::{DraftCost, Round, Scene, Schedule, Target, zipar};
use crate::backend::{Backend, Chosen, Drawn, Error};
use crate::models::avatar::Avatar;
use crate::models::low::{Low, SCALE, Up};
use std::ops::Range;

/// How rows are drafted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// How low-resolution tokens become drafts.
    pub up: Up,
    /// Low-resolution tokens that a row is behind the one above it, as in ZipAR; 0: they are drawn one by one.
    pub ahead: usize,
}

/// A target with its low-resolution drafter.
pub struct Coarse<'m, B: Backend> {
    large: &'m Avatar<B>,
    target: Session<'m, B>,
    low: &'m Low<B>,
    drafter: Session<'m, B>,
    knobs: Knobs,
    /// Low-resolution tokens so far, whole rows.
    tokens: Vec<u32>,
    /// Those whose keys and values are those of their tokens in their context.
    settled: usize,
    cost: DraftCost,
}

impl<'m, B: Backend> Coarse<'m, B> {
    /// A session of `large`, drafted for by a session of the low-resolution model for the same prompt.
    pub fn new(
        large: &'m Avatar<B>,
        target: Session<'m, B>,
        low: &'m Low<B>,
        drafter: Session<'m, B>,
        knobs: Knobs,
    ) -> Self {
        Self { large, target, low, drafter, knobs, tokens: Vec::new(), settled: 0, cost: DraftCost::default() }
    }

    /// Drafts rows of the target's grid, given its rows before them.
    fn draft(&mut self, rows: Range<usize>) -> Result<Vec<u32>, Error> {
        let (large, low) = (self.large, self.low);
        let width = large.grid().width;
        assert!(rows.start.is_multiple_of(SCALE) && rows.end.is_multiple_of(SCALE), "whole low-resolution rows");
        let given = match rows.start {
            0 => Vec::new(),
            start => low.down(large, &self.target.tokens()?[..start * width])?,
        };
        self.sketch(given, rows.end / SCALE)?;
        let drafts = low.up(large, self.knobs.up, &self.tokens)?;
        Ok(drafts[rows.start * width..].to_vec())
    }

    /// Draws low-resolution rows up to `end`, after those of `given`.
    fn sketch(&mut self, given: Vec<u32>, end: usize) -> Result<(), Error> {
        let (scene, start) = (self.drafter.scene(), given.len());
        let (grid, first) = (scene.grid, start / scene.grid.width);
        let mut schedule: Box<dyn Schedule> = match self.knobs.ahead {
            0 => Box::new(Ar::over(grid, start..end * grid.width)),
            window => Box::new(Lanes::over(scene, zipar::Knobs { window, adaptive: false }.shape(), first..end)),
        };
        if self.tokens.is_empty() {
            self.cost.passes += 1;
            schedule.begin(self.drafter.begin()?.after);
        }
        let kept = given.iter().zip(&self.tokens).take_while(|(a, b)| a == b).count();
        let from = kept.min(self.settled);
        let mut rewritten = (from..start).map(|position| (position, given[position])).collect::<Vec<_>>();
        while let Some(mut round) = schedule.next() {
            if !rewritten.is_empty() {
                let already = round.block.partition_point(|&position| position < start);
                round.block.splice(..already, rewritten.iter().map(|&(position, _)| position));
                round.puts.append(&mut rewritten);
            }
            self.cost.passes += 1;
            self.cost.rows += round.block.len() + round.temporary.len();
            let drawn = self.drafter.round(&round)?;
            schedule.learn(&drawn);
        }
        self.tokens = self.drafter.tokens()?;
        self.tokens.truncate(end * grid.width);
        self.settled = start;
        Ok(())
    }
}

impl<B: Backend> Target for Coarse<'_, B> {
    fn scene(&self) -> Scene {
        Scene { scale: SCALE, ..self.target.scene() }
    }

    fn begin(&mut self) -> Result<Drawn, Error> {
        self.target.begin()
    }

    fn grow(&mut self, growth: &Growth) -> Result<Vec<Chosen>, Error> {
        self.target.grow(growth)
    }

    fn round(&mut self, round: &Round) -> Result<Vec<Drawn>, Error> {
        let Some(rows) = round.sketch.clone() else { return self.target.round(round) };
        let first = self.large.grid().index(rows.start, 0);
        let drafts = self.draft(rows)?.into_iter().enumerate().map(|(index, token)| (first + index, token));
        // The first token of an image is the target's.
        let mut round = Round { sketch: None, ..round.clone() };
        round.puts.extend(drafts.filter(|&(position, _)| position > 0));
        self.target.round(&round)
    }

    fn foreseen(&mut self) -> Result<Vec<Chosen>, Error> {
        self.target.foreseen()
    }

    fn tokens(&mut self) -> Result<Vec<u32>, Error> {
        self.target.tokens()
    }

    fn draft_cost(&self) -> DraftCost {
        self.cost
    }
}
