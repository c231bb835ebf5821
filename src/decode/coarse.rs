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
    /// Of each image, once it has begun.
    sketches: Vec<Sketch>,
    /// Tokens of position 0 that the drafter drew.
    first: Vec<u32>,
}

/// What was drafted of an image.
#[derive(Clone, Default)]
struct Sketch {
    /// Low-resolution tokens so far, whole rows.
    tokens: Vec<u32>,
    /// Those whose keys and values are those of their tokens in their context.
    settled: usize,
    cost: DraftCost,
}

impl<'m, B: Backend> Coarse<'m, B> {
    /// A session of `large`, drafted for by a session of the low-resolution model for as many images of the same prompts.
    pub fn new(
        large: &'m Avatar<B>,
        target: Session<'m, B>,
        low: &'m Low<B>,
        drafter: Session<'m, B>,
        knobs: Knobs,
    ) -> Self {
        Self { large, target, low, drafter, knobs, sketches: Vec::new(), first: Vec::new() }
    }

    /// Drafts rows of an image in the target's grid, given its rows before them.
    fn draft(&mut self, image: usize, rows: Range<usize>) -> Result<Vec<u32>, Error> {
        let (large, low) = (self.large, self.low);
        let width = large.grid().width;
        assert!(rows.start.is_multiple_of(SCALE) && rows.end.is_multiple_of(SCALE), "whole low-resolution rows");
        let given = match rows.start {
            0 => Vec::new(),
            start => low.down(large, &self.target.tokens(image)?[..start * width])?,
        };
        self.sketch(image, given, rows.end / SCALE)?;
        let drafts = low.up(large, self.knobs.up, &self.sketches[image].tokens)?;
        Ok(drafts[rows.start * width..].to_vec())
    }

    /// Draws low-resolution rows of an image up to `end`, after those of `given`.
    fn sketch(&mut self, image: usize, given: Vec<u32>, end: usize) -> Result<(), Error> {
        let (scene, start) = (self.drafter.scene(image), given.len());
        let (grid, first) = (scene.grid, start / scene.grid.width);
        let mut schedule: Box<dyn Schedule> = match self.knobs.ahead {
            0 => Box::new(Ar::over(grid, start..end * grid.width)),
            window => Box::new(Lanes::over(scene, zipar::Knobs { window, adaptive: false }.shape(), first..end)),
        };
        if self.sketches[image].tokens.is_empty() {
            schedule.begin(self.first[image]);
        }
        let Sketch { tokens, settled, .. } = &self.sketches[image];
        let kept = given.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let from = kept.min(*settled);
        let mut rewritten = (from..start).map(|position| (position, given[position])).collect::<Vec<_>>();
        while let Some(mut round) = schedule.next() {
            if !rewritten.is_empty() {
                let already = round.block.partition_point(|&position| position < start);
                round.block.splice(..already, rewritten.iter().map(|&(position, _)| position));
                round.puts.append(&mut rewritten);
            }
            let cost = &mut self.sketches[image].cost;
            cost.passes += 1;
            cost.rows += round.block.len() + round.temporary.len();
            let mut rounds = vec![None; self.sketches.len()];
            rounds[image] = Some(round);
            schedule.learn(&self.drafter.rounds(&rounds)?[image]);
        }
        let sketch = &mut self.sketches[image];
        sketch.tokens = self.drafter.tokens(image)?;
        sketch.tokens.truncate(end * grid.width);
        sketch.settled = start;
        Ok(())
    }
}

impl<B: Backend> Target for Coarse<'_, B> {
    fn scene(&self, image: usize) -> Scene {
        Scene { scale: SCALE, ..self.target.scene(image) }
    }

    fn begin(&mut self) -> Result<Vec<Drawn>, Error> {
        self.first = self.drafter.begin()?.iter().map(|drawn| drawn.after).collect();
        let begun = DraftCost { passes: 1, rows: 0 };
        self.sketches = vec![Sketch { cost: begun, ..Sketch::default() }; self.first.len()];
        self.target.begin()
    }

    fn grow(&mut self, image: usize, growth: &Growth) -> Result<Vec<Chosen>, Error> {
        self.target.grow(image, growth)
    }

    fn rounds(&mut self, rounds: &[Option<Round>]) -> Result<Vec<Vec<Drawn>>, Error> {
        let mut rounds = rounds.to_vec();
        for (image, round) in rounds.iter_mut().enumerate() {
            let Some(round) = round else { continue };
            let Some(rows) = round.sketch.take() else { continue };
            let first = self.large.grid().index(rows.start, 0);
            let drafts = self.draft(image, rows)?.into_iter().enumerate().map(|(index, token)| (first + index, token));
            // The first token of an image is the target's.
            round.puts.extend(drafts.filter(|&(position, _)| position > 0));
        }
        self.target.rounds(&rounds)
    }

    fn foreseen(&mut self) -> Result<Vec<Vec<Chosen>>, Error> {
        self.target.foreseen()
    }

    fn tokens(&mut self, image: usize) -> Result<Vec<u32>, Error> {
        self.target.tokens(image)
    }

    fn draft_cost(&self, image: usize) -> DraftCost {
        self.sketches[image].cost
    }
}
