//! Denoising and what is decided by it: the reference of these ops.

use super::Tensor;
use super::rows::{row, row_mut};
use crate::backend::gaussian::{Denoising, Law, Settlement, Trajectories, split};
use crate::backend::{Fate, Goal, NONE, Step};
use crate::rng::Purpose;

/// Fills the normals of a goal at a level: those of its stream, or given ones.
fn normals(step: &Step, goal: &Goal, level: u32, given: &Trajectories<'_, Tensor>, out: &mut [f32]) {
    match given.normals {
        Some(table) => out.copy_from_slice(row(table, level as usize * given.positions + goal.position as usize)),
        None => {
            let stream = step.images[goal.image as usize].stream;
            stream.normal(Purpose::Denoise, level, goal.position as usize, out);
        }
    }
}

/// The row of a goal in laws and latents.
fn place(goal: &Goal, positions: usize) -> usize {
    goal.image as usize * positions + goal.position as usize
}

fn write(goal: &Goal, values: &[f32], x: &mut Tensor) {
    for branch in [goal.conditional, goal.unconditional] {
        if branch != NONE {
            row_mut(x, branch as usize).copy_from_slice(values);
        }
    }
}

/// See [`Backend::begin_denoising`](crate::backend::Backend::begin_denoising).
pub(super) fn begin(step: &Step, level: u32, x: &mut Tensor, trajectories: &mut Trajectories<'_, Tensor>) {
    let channels = x.cols;
    x.reshape(step.predictions.len(), channels);
    let mut values = vec![0.0; channels];
    for goal in &step.goals {
        normals(step, goal, level, trajectories, &mut values);
        write(goal, &values, x);
        row_mut(trajectories.laws, place(goal, trajectories.positions))[2 * channels..].fill(0.0);
    }
}

/// See [`Backend::denoise`](crate::backend::Backend::denoise).
pub(super) fn denoise(
    step: &Step,
    denoising: &Denoising,
    predicted: &Tensor,
    x: &mut Tensor,
    trajectories: &mut Trajectories<'_, Tensor>,
) {
    let channels = x.cols;
    let mut normal = vec![0.0; channels];
    for goal in &step.goals {
        let law = row_mut(trajectories.laws, place(goal, trajectories.positions));
        let given_branch = row(predicted, goal.conditional as usize);
        let before = row(x, goal.conditional as usize);
        for channel in 0..channels {
            let noise = match goal.unconditional {
                NONE => given_branch[channel],
                // The noise is guided, the variance is the conditional branch's.
                other => {
                    let other = row(predicted, other as usize)[channel];
                    other + goal.guidance * (given_branch[channel] - other)
                }
            };
            let (mean, log) = denoising.posterior(before[channel], noise, given_branch[channels + channel]);
            law[channel] = mean;
            law[channels + channel] = log + step.images[goal.image as usize].sampling.temperature.ln();
        }
        if denoising.level > 0 {
            let here = Law::from_row(law);
            let wide = here.log_deviation.iter().map(|&log| f64::from(log)).sum::<f64>();
            law[2 * channels..].copy_from_slice(&split(here.spread + wide));
            normals(step, goal, denoising.level, trajectories, &mut normal);
            write(goal, &here.at(&normal), x);
        }
    }
}

/// See [`Backend::settle`](crate::backend::Backend::settle).
pub(super) fn settle(
    step: &Step,
    settlement: Settlement,
    positions: usize,
    [laws, drafted]: [&Tensor; 2],
    latents: &mut Tensor,
    verdicts: &mut Tensor,
) {
    let (channels, Settlement { criterion, noise }) = (latents.cols, settlement);
    verdicts.reshape(step.goals.len(), 1);
    let mut normal = vec![0.0; channels];
    for (index, goal) in step.goals.iter().enumerate() {
        let (place, at) = (place(goal, positions), goal.position as usize);
        let (stream, p) = (step.images[goal.image as usize].stream, Law::from_row(row(laws, place)));
        let x = row_mut(latents, place);
        let passes = match goal.fate {
            Fate::Draw => {
                if noise {
                    stream.normal(Purpose::Denoise, 0, at, &mut normal);
                }
                x.copy_from_slice(&p.at(&normal));
                true
            }
            Fate::Judge => {
                let q = Law::from_row(row(drafted, place));
                let passes = criterion.passes(&p, &q, x, stream.uniform(Purpose::Accept, 0, at));
                if !passes {
                    x.copy_from_slice(&criterion.residual(&p, &q, stream, at));
                }
                passes
            }
        };
        row_mut(verdicts, index)[0] = f32::from(u8::from(passes));
    }
}
