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
use crate::backend::Error;
use crate::nn::diffusion::Law;
use crate::rng::{Purpose, Stream};
use criterion::{Criterion, Sigma};
use plan::Plan;

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

/// A position that is to be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// The position.
    pub position: usize,
    /// Its guidance.
    pub guidance: f32,
}

/// What a model is asked about: positions to draw, given others.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Positions that it sees, in the order in which they were drawn.
    pub known: &'a [usize],
    /// The numbers of all positions, of which it sees those.
    pub latents: &'a [f32],
    /// Positions to draw.
    pub goals: Vec<Goal>,
}

/// Two models of one picture. A position's trajectory has the same noise in both, and whenever it is drawn.
pub trait Pair {
    /// Numbers of a position.
    fn channels(&self) -> usize;
    /// The laws of the last denoising steps of the goals of each view. One pass, of which the rows are told.
    fn laws(&mut self, side: Side, views: &[View<'_>]) -> Result<(Vec<Vec<Law>>, usize), Error>;
}

/// Decodes a picture; `progress` is told how many positions are done.
pub fn run(
    pair: &mut dyn Pair,
    plan: &Plan,
    knobs: Knobs,
    stream: Stream,
    progress: &mut Progress<'_>,
) -> Result<Outcome, Error> {
    let positions = plan.order.len();
    let mut run = Run {
        latents: vec![0.0; positions * pair.channels()],
        first: vec![None; positions],
        stats: Stats::default(),
        pair,
        plan,
        knobs,
        stream,
    };
    let alone = match knobs.drafts {
        0 => plan.steps.len(),
        _ => ((knobs.prefill * plan.steps.len() as f64).round() as usize).min(plan.steps.len()),
    };
    let mut done = 0;
    while done < plan.steps.len() {
        done = if done < alone {
            run.plain(done)?
        } else {
            let drafted = run.draft(done)?;
            match knobs.schedule {
                Schedule::Truncate => run.truncate(&drafted, done)?,
                Schedule::Fixed => run.fixed(&drafted, done)?,
            }
        };
        progress(plan.known(done).len());
    }
    let Run { latents, first, stats, .. } = run;
    Ok(Outcome { tokens: Vec::new(), latents, stats, first })
}

struct Run<'a> {
    pair: &'a mut dyn Pair,
    plan: &'a Plan,
    knobs: Knobs,
    stream: Stream,
    latents: Vec<f32>,
    first: Vec<Option<bool>>,
    stats: Stats,
}

/// The laws by which the positions of a step were drafted.
type Drafted = Vec<Vec<Law>>;

impl Run<'_> {
    /// The step `step` by the target.
    fn plain(&mut self, step: usize) -> Result<usize, Error> {
        let laws = self.ask_once(Side::Target, step..step + 1)?;
        self.draw(step, &laws);
        Ok(step + 1)
    }

    /// Drafts up to `drafts` steps from `step` on, one pass each; they are put where the verified ones are.
    fn draft(&mut self, step: usize) -> Result<Drafted, Error> {
        let end = (step + self.knobs.drafts).min(self.plan.steps.len());
        let draft = |step| {
            let laws = self.ask_once(Side::Draft, step..step + 1)?;
            self.draw(step, &laws);
            Ok(laws)
        };
        (step..end).map(draft).collect()
    }

    /// Judges each drafted step in its own context, up to the first with a rejection.
    fn truncate(&mut self, drafted: &Drafted, start: usize) -> Result<usize, Error> {
        let end = start + drafted.len();
        let judged: Vec<_> = (start..(end + 1).min(self.plan.steps.len())).map(|step| step..step + 1).collect();
        let laws = self.ask(Side::Target, &judged)?;
        for ((step, target), draft) in (start..end).zip(&laws).zip(drafted) {
            if !self.judge(step, target, draft) {
                return Ok(step + 1);
            }
        }
        match laws.get(drafted.len()) {
            None => Ok(end),
            Some(next) => {
                self.draw(end, next);
                Ok(end + 1)
            }
        }
    }

    /// Judges all drafted steps in the verified context; all of them stay.
    fn fixed(&mut self, drafted: &Drafted, start: usize) -> Result<usize, Error> {
        let end = start + drafted.len();
        let mut laws = self.ask_once(Side::Target, start..end)?.into_iter();
        for (step, draft) in (start..end).zip(drafted) {
            let target: Vec<Law> = laws.by_ref().take(draft.len()).collect();
            self.judge(step, &target, draft);
        }
        Ok(end)
    }

    /// One pass: the laws of the positions of these steps, given all before them.
    fn ask_once(&mut self, side: Side, steps: std::ops::Range<usize>) -> Result<Vec<Law>, Error> {
        Ok(self.ask(side, std::slice::from_ref(&steps))?.remove(0))
    }

    /// One pass: for each of these ranges of steps the laws of its positions, given all steps before it.
    fn ask(&mut self, side: Side, steps: &[std::ops::Range<usize>]) -> Result<Vec<Vec<Law>>, Error> {
        let plan = self.plan;
        let view = |steps: &std::ops::Range<usize>| View {
            known: plan.known(steps.start),
            latents: &self.latents,
            goals: steps.clone().flat_map(|step| plan.goals(step)).collect(),
        };
        let views: Vec<View<'_>> = steps.iter().map(view).collect();
        let (laws, rows) = self.pair.laws(side, &views)?;
        match side {
            Side::Target => (self.stats.nfe, self.stats.rows) = (self.stats.nfe + 1, self.stats.rows + rows),
            Side::Draft => {
                let DraftCost { passes, rows: before } = self.stats.draft;
                self.stats.draft = DraftCost { passes: passes + 1, rows: before + rows };
            }
        }
        Ok(laws)
    }

    /// Draws the positions of a step from these laws, with the noise of theirs.
    fn draw(&mut self, step: usize, laws: &[Law]) {
        let channels = self.pair.channels();
        let mut noise = vec![0.0; channels];
        for (goal, law) in self.plan.goals(step).zip(laws) {
            if self.knobs.noise {
                self.stream.normal(Purpose::Denoise, 0, goal.position, &mut noise);
            }
            self.latents[goal.position * channels..][..channels].copy_from_slice(&law.at(&noise));
        }
    }

    /// Judges the positions of a step and replaces those that fail; did all of them pass?
    fn judge(&mut self, step: usize, target: &[Law], draft: &[Law]) -> bool {
        let (channels, criterion) = (self.pair.channels(), self.knobs.criterion);
        let mut all = true;
        for ((goal, p), q) in self.plan.goals(step).zip(target).zip(draft) {
            let x = &mut self.latents[goal.position * channels..][..channels];
            let passes = criterion.passes(p, q, x, self.stream.uniform(Purpose::Accept, 0, goal.position));
            if !passes {
                x.copy_from_slice(&criterion.residual(p, q, self.stream, goal.position));
            }
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
