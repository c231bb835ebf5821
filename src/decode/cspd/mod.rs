//! Continuous speculative decoding, CSpD (arXiv 2411.11925), of a masked model (MAR, arXiv 2406.11838): a smaller model of
//! the same kind draws steps of it, the target judges them by densities.
//!
//! A model draws a position by denoising, so what it gives for a position is a trajectory. Draft and target run theirs with
//! the same noise (trajectory alignment: drawn per absolute position, [`Pair`]); what is then compared is the density of
//! their last steps at the number that was drafted ([`criterion`]).
//!
//! The first steps are the target's alone (pre-filling). After that `drafts` steps are drafted, and then, by the schedule,
//!
//! * `truncate`, as in the paper: one pass of the target over all prefixes of the drafts, so that each is judged in its own
//!   context; all steps up to the first with a rejection stay. The positions of one step do not see each other, so all of
//!   that step are final, those that were rejected being drawn from the residual. If nothing was rejected the pass gives
//!   one step more.
//! * `fixed`, as in the released code: one pass of the target over the verified prefix, in which all drafted positions are
//!   hidden; each is judged in that context, and all are final. Its passes do not depend on what is accepted.
//!
//! `drafts=0` is plain decoding of the target: what the others are compared with.

pub mod criterion;
pub mod plan;
pub mod session;
#[cfg(test)]
mod testing;

use super::knobs::{choice, count, number};
use super::{DraftCost, Outcome, Progress, Stats};
use crate::backend::{Error, Fate};
use criterion::{Criterion, Sigma};
use plan::Plan;
use std::ops::Range;

/// What a round of drafts costs and keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Up to the first rejection.
    Truncate,
    /// All of them, whatever is rejected.
    Fixed,
}

super::knobs::names!(Schedule { Truncate = "truncate", Fixed = "fixed" });
super::knobs::names!(Sigma { Paper = "paper", Code = "code", One = "one" });

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knobs {
    /// Steps that are drafted at once; 0: plain decoding of the target.
    pub drafts: usize,
    /// What becomes of them.
    pub schedule: Schedule,
    /// When they pass.
    pub criterion: Criterion,
    /// Share of the steps that the target makes alone, at the beginning.
    pub prefill: f64,
    /// Steps in which a picture is made.
    pub rounds: usize,
    /// Steps of the diffusion of a position.
    pub steps: usize,
    /// Add the noise of the last step of the diffusion, whose density is compared. The released code, like every sampler of
    /// this kind, has none there.
    pub noise: bool,
}

impl super::knobs::Knobs for Knobs {
    fn list(&self) -> Vec<(&'static str, String)> {
        vec![
            ("drafts", self.drafts.to_string()),
            ("schedule", self.schedule.to_string()),
            ("sigma", self.criterion.sigma.to_string()),
            ("temper", self.criterion.temper.to_string()),
            ("prefill", self.prefill.to_string()),
            ("rounds", self.rounds.to_string()),
            ("steps", self.steps.to_string()),
            ("noise", u8::from(self.noise).to_string()),
        ]
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match (knob, value) {
            ("drafts", _) => self.drafts = count(knob, value, 0)?,
            ("schedule", _) => self.schedule = choice(knob, value)?,
            ("sigma", _) => self.criterion.sigma = choice(knob, value)?,
            ("temper", _) => self.criterion.temper = number(knob, value, 1e6)?,
            ("prefill", _) => self.prefill = number(knob, value, 1.0)?,
            ("rounds", _) => self.rounds = count(knob, value, 1)?,
            ("steps", _) => self.steps = count(knob, value, 1)?,
            ("noise", "0" | "1") => self.noise = value == "1",
            ("noise", _) => return Err(format!("{knob}={value}: must be 0 or 1")),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn check(&self) -> Result<(), String> {
        match (self.criterion.temper < 1.0, self.steps > 1000) {
            (true, _) => Err(format!("temper={}: must be at least 1", self.criterion.temper)),
            (_, true) => Err(format!("steps={}: must be at most 1000", self.steps)),
            _ => Ok(()),
        }
    }
}

/// Which of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one whose pictures are wanted.
    Target,
    /// The smaller one.
    Draft,
}

/// A position that is to be drawn, or judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// The position.
    pub position: usize,
    /// Its guidance.
    pub guidance: f32,
}

/// What a model is asked about: positions to settle, given others.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Positions that it sees, in the order in which they were drawn.
    pub known: &'a [usize],
    /// Positions to settle.
    pub goals: Vec<Goal>,
    /// How.
    pub fate: Fate,
}

/// Two models of one picture, and its numbers. A position's trajectory has the same noise in both, and whenever it is drawn.
pub trait Pair {
    /// One pass of a model, of which the rows are told: the goals of each view are drawn from their laws, or judged (those
    /// of the draft at its last pass over them being what their numbers were drawn from) and replaced if they fail. All
    /// views see the numbers from before the pass.
    fn pass(&mut self, side: Side, views: &[View<'_>]) -> Result<usize, Error>;
    /// Which goals of the target's last pass passed, one view after another; what was drawn did.
    fn verdicts(&mut self) -> Result<Vec<bool>, Error>;
    /// The numbers of all positions, `[positions, channels]`.
    fn latents(&mut self) -> Result<Vec<f32>, Error>;
}

/// Decodes a picture; `progress` is told how many positions are done.
pub fn run(pair: &mut dyn Pair, plan: &Plan, knobs: Knobs, progress: &mut Progress<'_>) -> Result<Outcome, Error> {
    let first = vec![None; plan.order.len()];
    let mut run = Run { first, stats: Stats::default(), pair, plan };
    let alone = match knobs.drafts {
        0 => plan.steps.len(),
        _ => ((knobs.prefill * plan.steps.len() as f64).round() as usize).min(plan.steps.len()),
    };
    let mut done = 0;
    while done < plan.steps.len() {
        done = if done < alone {
            run.plain(Side::Target, done)?
        } else {
            let end = (done + knobs.drafts).min(plan.steps.len());
            // One pass each; they are put where the verified ones are.
            (done..end).try_for_each(|step| run.plain(Side::Draft, step).map(drop))?;
            match knobs.schedule {
                Schedule::Truncate => run.truncate(done..end)?,
                Schedule::Fixed => run.fixed(done..end)?,
            }
        };
        progress(plan.known(done).len());
    }
    let latents = run.pair.latents()?;
    let Run { first, stats, .. } = run;
    Ok(Outcome { tokens: Vec::new(), latents, stats, first })
}

struct Run<'a> {
    pair: &'a mut dyn Pair,
    plan: &'a Plan,
    first: Vec<Option<bool>>,
    stats: Stats,
}

impl Run<'_> {
    /// Draws the step `step`; returns the next.
    fn plain(&mut self, side: Side, step: usize) -> Result<usize, Error> {
        self.ask(side, &[(step..step + 1, Fate::Draw)])?;
        Ok(step + 1)
    }

    /// Judges each drafted step in its own context, up to the first with a rejection: what the pass makes of those behind it
    /// is not used, for they are drawn again before they are read.
    fn truncate(&mut self, drafted: Range<usize>) -> Result<usize, Error> {
        let next = drafted.end..(drafted.end + 1).min(self.plan.steps.len());
        let judged = drafted.clone().map(|step| (step..step + 1, Fate::Judge));
        let views: Vec<_> = judged.chain(next.clone().map(|step| (step..step + 1, Fate::Draw))).collect();
        self.ask(Side::Target, &views)?;
        let mut verdicts = self.pair.verdicts()?.into_iter();
        for step in drafted {
            if !self.count(step, &mut verdicts) {
                return Ok(step + 1);
            }
        }
        Ok(next.end)
    }

    /// Judges all drafted steps in the verified context; all of them stay.
    fn fixed(&mut self, drafted: Range<usize>) -> Result<usize, Error> {
        self.ask(Side::Target, &[(drafted.clone(), Fate::Judge)])?;
        let mut verdicts = self.pair.verdicts()?.into_iter();
        for step in drafted.clone() {
            self.count(step, &mut verdicts);
        }
        Ok(drafted.end)
    }

    /// One pass: a view for each of these ranges of steps, given all steps before it.
    fn ask(&mut self, side: Side, views: &[(Range<usize>, Fate)]) -> Result<(), Error> {
        let plan = self.plan;
        let view = |(steps, fate): &(Range<usize>, Fate)| View {
            known: plan.known(steps.start),
            goals: steps.clone().flat_map(|step| plan.goals(step)).collect(),
            fate: *fate,
        };
        let views: Vec<View<'_>> = views.iter().map(view).collect();
        let rows = self.pair.pass(side, &views)?;
        match side {
            Side::Target => (self.stats.nfe, self.stats.rows) = (self.stats.nfe + 1, self.stats.rows + rows),
            Side::Draft => {
                let DraftCost { passes, rows: before } = self.stats.draft;
                self.stats.draft = DraftCost { passes: passes + 1, rows: before + rows };
            }
        }
        Ok(())
    }

    /// Counts the verdicts of a step; did all of its positions pass?
    fn count(&mut self, step: usize, verdicts: &mut impl Iterator<Item = bool>) -> bool {
        let mut all = true;
        for (goal, passes) in self.plan.goals(step).zip(verdicts) {
            all &= passes;
            if self.first[goal.position].is_none() {
                self.first[goal.position] = Some(passes);
                self.stats.drafted += 1;
                self.stats.accepted += usize::from(passes);
            }
        }
        all
    }
}
