//! Denoising diffusion over the few numbers of a position (Ho et al., arXiv 2006.11239): the cosine schedule and a learned
//! variance (Nichol and Dhariwal, arXiv 2102.09672), respaced.

use crate::backend::gaussian::Denoising;

/// Steps of training.
const TIMES: usize = 1000;
/// The steps of training that sampling takes, evenly, and what each of them does; index 0 is the last to be taken.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Which step of training each is.
    pub times: Vec<usize>,
    /// Their numbers.
    pub steps: Vec<Denoising>,
}

impl Schedule {
    /// Of so many steps, at least 1 and at most those of training.
    pub fn new(steps: usize) -> Self {
        let level = |time: usize| {
            let angle = (time as f64 / TIMES as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2;
            angle.cos().powi(2)
        };
        let mut product = 1.0;
        let kept: Vec<f64> = (0..TIMES)
            .map(|time| {
                product *= 1.0 - (1.0 - level(time + 1) / level(time)).min(0.999);
                product
            })
            .collect();
        let apart = (TIMES - 1) as f64 / (steps - 1).max(1) as f64;
        // Halfway cases go to the even number, as in the training code.
        let times: Vec<usize> = (0..steps).map(|step| (step as f64 * apart).round_ties_even() as usize).collect();
        let at = |step: usize| kept[times[step]];
        let before = |step: usize| if step == 0 { 1.0 } else { at(step - 1) };
        let beta = |step: usize| 1.0 - at(step) / before(step);
        let posterior = |step: usize| beta(step) * (1.0 - before(step)) / (1.0 - at(step));
        let step = |step: usize| {
            // The variance of the last step's posterior is 0: it takes that of the step before.
            let floor = match (step, steps) {
                (0, 1) => beta(0),
                (0, _) => posterior(1),
                _ => posterior(step),
            };
            let (a, before, beta) = (at(step), before(step), beta(step));
            Denoising {
                level: step as u32,
                signal: a.sqrt() as f32,
                noise: (1.0 - a).sqrt() as f32,
                from_x0: (beta * before.sqrt() / (1.0 - a)) as f32,
                from_xt: ((1.0 - before) * (1.0 - beta).sqrt() / (1.0 - a)) as f32,
                low: floor.ln() as f32,
                high: beta.ln() as f32,
            }
        };
        let steps = (0..steps).map(step).collect();
        Self { times, steps }
    }

    /// Steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Never: there is one step at least.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::backend::gaussian::{Law, Trajectories};
    use crate::backend::{Backend, Fate, Goal, Image, NONE, Step, Test};
    use crate::rng::Stream;
    use crate::sampling::Sampling;

    /// The laws of `items` positions of one number, of which `predict` says the noise and the place of the variance.
    fn laws(schedule: &Schedule, items: usize, predict: impl Fn(usize, &[f32]) -> Vec<(f32, f32)>) -> Vec<Law> {
        let backend = CpuBackend::new();
        let sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
        let goal = |position: u32| Goal {
            image: 0,
            position,
            guidance: 1.0,
            conditional: position,
            unconditional: NONE,
            fate: Fate::Draw,
        };
        let step = Step {
            images: vec![Image { stream: Stream { seed: 3, image: 0 }, sampling, test: Test::Token }],
            predictions: (0..items as u32).collect(),
            goals: (0..items as u32).map(goal).collect(),
            ..Step::default()
        };
        let tensor = |cols: usize| {
            let mut tensor = backend.tensor(items, cols).unwrap();
            backend.upload(&vec![0.0; items * cols], &mut tensor);
            tensor
        };
        let (mut x, mut predicted, mut laws) = (tensor(1), tensor(2), tensor(Law::cols(1)));
        let mut trajectories = Trajectories { positions: items, normals: None, laws: &mut laws };
        backend.begin_denoising(&step, schedule.len() as u32, &mut x, &mut trajectories);
        for (at, denoising) in schedule.steps.iter().enumerate().rev() {
            let both = predict(at, &backend.read(&x).unwrap());
            backend.upload(
                &both.iter().flat_map(|&(noise, between)| [noise, between]).collect::<Vec<_>>(),
                &mut predicted,
            );
            backend.denoise(&step, denoising, &predicted, &mut x, &mut trajectories);
        }
        backend.read(&laws).unwrap().chunks_exact(Law::cols(1)).map(Law::from_row).collect()
    }

    /// Where the data are Gaussian the best prediction is known; with it the sampler returns their mean and deviation.
    #[test]
    fn the_sampler_returns_the_law_of_gaussian_data() {
        let items = 20_000;
        let (mean, deviation) = (1.5, 0.4f32);
        for steps in [20, 50] {
            let schedule = Schedule::new(steps);
            let best = |step: usize, x: &[f32]| {
                let at = |step: usize| {
                    let s = schedule.steps[step];
                    ((s.signal * deviation).powi(2) + s.noise.powi(2), s)
                };
                let (here, s) = at(step);
                let log = if step > 0 {
                    let (above, before) = at(step - 1);
                    (above - (s.signal / before.signal * above).powi(2) / here).ln()
                } else {
                    s.low
                };
                let between = 2.0 * (log - s.low) / (s.high - s.low) - 1.0;
                x.iter().map(|x| (s.noise * (x - s.signal * mean) / here, between)).collect()
            };
            let laws = laws(&schedule, items, best);
            let ends: Vec<f64> = laws.iter().map(|law| f64::from(law.mean[0])).collect();
            let (found, square) =
                (ends.iter().sum::<f64>() / items as f64, ends.iter().map(|x| x * x).sum::<f64>() / items as f64);
            let found_deviation = (square - found * found).sqrt();
            // Four standard errors.
            assert!((found - f64::from(mean)).abs() < 0.012, "{steps} steps: mean {found}");
            assert!((found_deviation / f64::from(deviation) - 1.0).abs() < 0.02, "{steps} steps: {found_deviation}");
        }
    }
}
