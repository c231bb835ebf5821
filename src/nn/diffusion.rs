//! Denoising diffusion over the few numbers of a position (Ho et al., arXiv 2006.11239): the cosine schedule and a learned
//! variance (Nichol and Dhariwal, arXiv 2102.09672), respaced; arithmetic on the host.

/// Steps of training.
const TIMES: usize = 1000;
/// No denoised number is further from its mean, in deviations of the data: at the first steps the signal is so weak that an
/// error of the predicted noise is thousands of times as large in it. (MAR's code has no such bound; its heads are larger.)
const CLIP: f32 = 5.0;

/// The steps of training that sampling takes, evenly, and what each of them does; index 0 is the last to be taken.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Which step of training each is.
    pub times: Vec<usize>,
    steps: Vec<Step>,
}

/// `x = signal x0 + noise e`; the mean of what comes after it is `from_x0 x0 + from_xt x`, and the logarithm of its variance
/// lies between `low` and `high`.
#[derive(Clone, Copy, Debug)]
struct Step {
    signal: f32,
    noise: f32,
    from_x0: f32,
    from_xt: f32,
    low: f32,
    high: f32,
}

/// The Gaussian of the last denoising step, given the trajectory before it, and how wide the steps before it were.
#[derive(Clone, Debug, PartialEq)]
pub struct Law {
    /// Its mean.
    pub mean: Vec<f32>,
    /// Logarithms of its standard deviations.
    pub log_deviation: Vec<f32>,
    /// Sum, over all steps but the last and all numbers, of the logarithms of the standard deviations.
    pub spread: f64,
}

impl Law {
    /// The point at so many standard deviations from the mean.
    pub fn at(&self, normal: &[f32]) -> Vec<f32> {
        let numbers = self.mean.iter().zip(&self.log_deviation).zip(normal);
        numbers.map(|((mean, log), normal)| mean + log.exp() * normal).collect()
    }

    /// Logarithm of the density at `x`, its exponent as if deviations were `temper` times what they are, without the
    /// constant that all laws of so many numbers share.
    pub fn log_density(&self, x: &[f32], temper: f64) -> f64 {
        let numbers = self.mean.iter().zip(&self.log_deviation).zip(x);
        let term = |((&mean, &log), &x): ((&f32, &f32), &f32)| {
            let log = f64::from(log);
            let residual = (f64::from(x) - f64::from(mean)) / (log.exp() * temper);
            -0.5 * residual * residual - log
        };
        numbers.map(term).sum()
    }
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
            Step {
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

    /// Mean and logarithm of the standard deviation of a number after step `step`, given it, the noise that is predicted in
    /// it, and where between its bounds the variance is (-1: low, 1: high).
    pub fn posterior(&self, step: usize, x: f32, noise: f32, between: f32) -> (f32, f32) {
        let s = self.steps[step];
        let clean = ((x - s.noise * noise) / s.signal).clamp(-CLIP, CLIP);
        let share = (between + 1.0) / 2.0;
        (s.from_x0 * clean + s.from_xt * x, 0.5 * (share * s.high + (1.0 - share) * s.low))
    }

    /// Takes all steps. `predict` is given a step and all numbers `x` and returns, for each, the noise in it and where its
    /// variance lies; `noise(item, level, out)` fills the normals of an item: level `len()` is where its trajectory begins,
    /// `level` above 0 is added by that step. The deviations are times the temperature. The last step is not drawn: its laws
    /// are returned.
    pub fn denoise<E>(
        &self,
        (items, channels): (usize, usize),
        temperature: f32,
        noise: &dyn Fn(usize, usize, &mut [f32]),
        mut predict: impl FnMut(usize, &[f32]) -> Result<Vec<(f32, f32)>, E>,
    ) -> Result<Vec<Law>, E> {
        let (mut x, mut normal) = (vec![0.0; items * channels], vec![0.0; channels]);
        for (item, x) in x.chunks_exact_mut(channels).enumerate() {
            noise(item, self.len(), x);
        }
        let mut laws: Vec<Law> = vec![Law { mean: Vec::new(), log_deviation: Vec::new(), spread: 0.0 }; items];
        for step in (0..self.len()).rev() {
            let predicted = predict(step, &x)?;
            let items = x.chunks_exact_mut(channels).zip(predicted.chunks_exact(channels)).zip(&mut laws);
            for (item, ((x, predicted), law)) in items.enumerate() {
                let moments = x.iter().zip(predicted).map(|(&x, &(e, between))| self.posterior(step, x, e, between));
                (law.mean, law.log_deviation) = moments.map(|(mean, log)| (mean, log + temperature.ln())).unzip();
                if step > 0 {
                    law.spread += law.log_deviation.iter().map(|&log| f64::from(log)).sum::<f64>();
                    noise(item, step, &mut normal);
                    x.copy_from_slice(&law.at(&normal));
                }
            }
        }
        Ok(laws)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    /// Where the data are Gaussian the best prediction is known; with it the sampler returns their mean and deviation.
    #[test]
    fn the_sampler_returns_the_law_of_gaussian_data() {
        let (items, stream) = (20_000, Stream { seed: 3, image: 0 });
        let (mean, deviation) = (1.5, 0.4f32);
        for steps in [20, 50] {
            let schedule = Schedule::new(steps);
            let noise = |item: usize, level: usize, out: &mut [f32]| {
                stream.normal(Purpose::Denoise, level as u32, item, out);
            };
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
                Ok::<_, ()>(x.iter().map(|x| (s.noise * (x - s.signal * mean) / here, between)).collect())
            };
            let laws = schedule.denoise((items, 1), 1.0, &noise, best).unwrap();
            let ends: Vec<f64> = laws.iter().map(|law| f64::from(law.mean[0])).collect();
            let (found, square) =
                (ends.iter().sum::<f64>() / items as f64, ends.iter().map(|x| x * x).sum::<f64>() / items as f64);
            let found_deviation = (square - found * found).sqrt();
            // Four standard errors.
            assert!((found - f64::from(mean)).abs() < 0.012, "{steps} steps: mean {found}");
            assert!((found_deviation / f64::from(deviation) - 1.0).abs() < 0.02, "{steps} steps: {found_deviation}");
        }
    }

    #[test]
    fn densities_are_those_of_gaussians() {
        let law = Law { mean: vec![1.0, -2.0], log_deviation: vec![0.5f32.ln(), 2f32.ln()], spread: 0.0 };
        assert_eq!(law.at(&[2.0, -1.0]), [2.0, -4.0]);
        // Two standard deviations and one, times the widths 0.5 and 2.
        assert!((law.log_density(&[2.0, -4.0], 1.0) + 2.5).abs() < 1e-6);
        assert!((law.log_density(&[2.0, -4.0], 10.0) + 0.025).abs() < 1e-6);
    }
}
