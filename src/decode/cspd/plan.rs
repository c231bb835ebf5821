//! The steps of MAR: positions in a random order, few at first, as many as a cosine says, guidance that grows with what is
//! known.

use super::Goal;
use crate::rng::{Purpose, Stream};
use std::ops::Range;

/// Which positions each step draws.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Every position, in the order in which they are drawn.
    pub order: Vec<usize>,
    /// What each step draws of that order, and with which guidance.
    pub steps: Vec<(Range<usize>, f32)>,
}

impl Plan {
    /// Of an image: `rounds` steps at most (at least one position each), guidance up to `cfg`.
    pub fn new(positions: usize, rounds: usize, cfg: f32, stream: Stream) -> Self {
        let mut order: Vec<usize> = (0..positions).collect();
        let key = |&position: &usize| stream.uniform(Purpose::Order, 0, position);
        order.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.cmp(b)));
        Self::over(order, rounds, cfg)
    }

    /// The same in this order.
    pub fn over(order: Vec<usize>, rounds: usize, cfg: f32) -> Self {
        let positions = order.len();
        let (mut steps, mut done) = (Vec::new(), 0);
        for round in 0..rounds {
            if done == positions {
                break;
            }
            let angle = std::f64::consts::FRAC_PI_2 * (round + 1) as f64 / rounds as f64;
            let left = match round + 1 == rounds {
                true => 0,
                false => ((positions as f64 * angle.cos()) as usize).max(1).min(positions - done - 1),
            };
            let share = (positions - left) as f32 / positions as f32;
            steps.push((done..positions - left, 1.0 + (cfg - 1.0) * share));
            done = positions - left;
        }
        Self { order, steps }
    }

    /// Positions that are known once so many steps are done.
    pub fn known(&self, steps: usize) -> &[usize] {
        let end = steps.checked_sub(1).map_or(0, |last| self.steps[last].0.end);
        &self.order[..end]
    }

    /// What a step draws.
    pub fn goals(&self, step: usize) -> impl Iterator<Item = Goal> + '_ {
        let (range, guidance) = &self.steps[step];
        self.order[range.clone()].iter().map(|&position| Goal { position, guidance: *guidance })
    }
}

/// Time of plain decoding over that of the fixed schedule, if a share `prefill` of the steps is the target's, `drafts` steps
/// are drafted for each of its passes, and a step of the draft takes `cost` of one of the target.
pub fn fixed_speed_up(prefill: f64, drafts: f64, cost: f64) -> f64 {
    1.0 / (prefill + (1.0 - prefill) * (cost + 1.0 / drafts))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream { seed: 5, image: 0 };

    #[test]
    fn every_position_is_drawn_once_and_few_at_first() {
        for (positions, rounds) in [(144, 36), (144, 64), (144, 256), (7, 3), (1, 5), (5, 1)] {
            let plan = Plan::new(positions, rounds, 3.0, STREAM);
            let mut drawn: Vec<usize> = (0..plan.steps.len())
                .flat_map(|step| plan.goals(step).map(|goal| goal.position).collect::<Vec<_>>())
                .collect();
            assert_eq!(drawn, plan.order);
            drawn.sort_unstable();
            assert_eq!(drawn, (0..positions).collect::<Vec<_>>());
            assert!(plan.steps.iter().all(|(range, _)| !range.is_empty()));
            assert!((plan.steps[plan.steps.len() - 1].1 - 3.0).abs() < 1e-6, "guidance ends at cfg");
        }
        let sizes: Vec<usize> = Plan::new(144, 36, 3.0, STREAM).steps.iter().map(|(range, _)| range.len()).collect();
        // N - floor(N cos(pi/2 / 36)) = 1, ..., N cos(pi/2 35/36) = 6.
        assert_eq!((sizes.len(), sizes[0], sizes[35]), (36, 1, 6));
        assert!(Plan::new(144, 36, 3.0, Stream { seed: 6, image: 0 }).order != Plan::new(144, 36, 3.0, STREAM).order);
    }

    /// The published speed-ups (MAR-H and MAR-L, 5% pre-filled) and the cost of a draft step that they imply: the formula
    /// leaves each row one number, while the acceptance rate goes from 0.19 to 0.30 along it.
    #[test]
    fn the_published_speed_ups_follow_from_the_fixed_schedule() {
        let table = [
            (0.359, [2.33, 2.20, 1.96, 1.62]),
            (0.387, [2.17, 2.07, 1.88, 1.56]),
            (0.570, [1.61, 1.51, 1.44, 1.20]),
            (0.651, [1.44, 1.37, 1.26, 1.11]),
            (0.620, [1.49, 1.42, 1.32, 1.15]),
            (0.603, [1.53, 1.46, 1.33, 1.18]),
        ];
        for (cost, published) in table {
            for (drafts, published) in [32.0, 16.0, 8.0, 4.0].into_iter().zip(published) {
                let formula = fixed_speed_up(0.05, drafts, cost);
                assert!((formula / published - 1.0).abs() < 0.035, "{formula} for {published} at {drafts} drafts");
            }
        }
        // Truncating at the first rejection, with the same acceptance and cost, would slow decoding down.
        let truncating = |alpha: f64, drafts: i32, cost: f64| {
            (1.0 - alpha.powi(drafts + 1)) / ((1.0 - alpha) * (f64::from(drafts) * cost + 1.0))
        };
        assert!(truncating(0.19, 32, 0.38) < 0.1 && truncating(0.30, 4, 0.38) < 0.6);
    }
}
