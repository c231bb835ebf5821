//! Diagonal Gaussians, as the last steps of diffusions: what a denoising step makes of a number, when a point drawn from one
//! law passes for one drawn from another, and what replaces it if it does not. All backends do this arithmetic; here it is
//! written down once, and the CPU backend calls it.

use crate::rng::{Purpose, Stream};

/// No denoised number is further from its mean, in deviations of the data: at the first steps the signal is so weak that an
/// error of the predicted noise is thousands of times as large in it. (MAR's code has no such bound; its heads are larger.)
pub const CLIP: f32 = 5.0;

/// A step of denoising. `x = signal x0 + noise e`; the mean of what comes after it is `from_x0 x0 + from_xt x`, and the
/// logarithm of its variance lies between `low` and `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Denoising {
    /// How many steps are left after it: of the last, 0. The round of the normals ([`Purpose::Denoise`]) that it adds.
    pub level: u32,
    /// Of the clean number.
    pub signal: f32,
    /// Of the noise.
    pub noise: f32,
    /// Of the clean number in the mean.
    pub from_x0: f32,
    /// Of the number before the step in the mean.
    pub from_xt: f32,
    /// Of the log-variance.
    pub low: f32,
    /// Of the log-variance.
    pub high: f32,
}

impl Denoising {
    /// Mean and logarithm of the standard deviation of a number after the step, given it, the noise that is predicted in
    /// it, and where between its bounds the variance is (-1: low, 1: high).
    pub fn posterior(&self, x: f32, noise: f32, between: f32) -> (f32, f32) {
        let clean = ((x - self.noise * noise) / self.signal).clamp(-CLIP, CLIP);
        let share = (between + 1.0) / 2.0;
        (self.from_x0 * clean + self.from_xt * x, 0.5 * (share * self.high + (1.0 - share) * self.low))
    }
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
    /// Columns of a law of so many numbers in a tensor: the mean, the logarithms of the deviations, and the spread as the
    /// f32 nearest to it and the f32 nearest to what that leaves.
    pub fn cols(channels: usize) -> usize {
        2 * channels + 2
    }

    /// From its columns.
    pub fn from_row(row: &[f32]) -> Self {
        let channels = (row.len() - 2) / 2;
        Self {
            mean: row[..channels].to_vec(),
            log_deviation: row[channels..2 * channels].to_vec(),
            spread: f64::from(row[2 * channels]) + f64::from(row[2 * channels + 1]),
        }
    }

    /// Its columns.
    pub fn to_row(&self) -> Vec<f32> {
        [&self.mean[..], &self.log_deviation, &split(self.spread)].concat()
    }

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

/// A spread as the two columns of a [`Law`] that hold it.
pub(super) fn split(spread: f64) -> [f32; 2] {
    let high = spread as f32;
    [high, (spread - f64::from(high)) as f32]
}

/// What the ratio of the last densities is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sigma {
    /// Deviations of the draft over those of the target, all steps but the last.
    Paper,
    /// Its reciprocal, as in the released code.
    Code,
    /// Nothing: exact.
    One,
}

/// How drafts are judged: which ratio of densities a uniform number is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Criterion {
    /// What stands before the densities.
    pub sigma: Sigma,
    /// What the residuals of the test are divided with; 1 in the paper, 42 in the released code.
    pub temper: f64,
}

/// Proposals of the residual, at most.
pub const PROPOSALS: u32 = 100;

impl Criterion {
    /// Logarithm of the Sigma of two laws.
    fn log_sigma(self, p: &Law, q: &Law) -> f64 {
        match self.sigma {
            Sigma::Paper => q.spread - p.spread,
            Sigma::Code => p.spread - q.spread,
            Sigma::One => 0.0,
        }
    }

    /// Does `x`, drawn from `q`, pass for one of `p`? `uniform` is in (0, 1).
    pub fn passes(self, p: &Law, q: &Law, x: &[f32], uniform: f32) -> bool {
        let ratio = p.log_density(x, self.temper) - q.log_density(x, self.temper) + self.log_sigma(p, q);
        f64::from(uniform).ln() < ratio
    }

    /// A draw from max(0, Sigma p - q), normalised: proposals from p, of which `y` is taken with probability
    /// max(0, 1 - q(y) / (Sigma p(y))).
    ///
    /// If a hundred fail, one more from p is taken as it is (the released code leaves zeros). A test with `temper` 1 rejects
    /// as often as a proposal is taken, with probability d; so this happens to a share d (1 - d)^100 of the positions, 0.37%
    /// at most, whose law is p and not the residual.
    pub fn residual(self, p: &Law, q: &Law, stream: Stream, position: usize) -> Vec<f32> {
        let (log_sigma, mut noise) = (self.log_sigma(p, q), vec![0.0; p.mean.len()]);
        // The uniform of a round lies behind its normals.
        let behind = noise.len().next_multiple_of(4) as u32;
        let mut propose = |round| {
            stream.normal(Purpose::Residual, round, position, &mut noise);
            p.at(&noise)
        };
        for round in 0..PROPOSALS {
            let y = propose(round);
            let share = (q.log_density(&y, 1.0) - p.log_density(&y, 1.0) - log_sigma).exp();
            if f64::from(stream.uniform_of(Purpose::Residual, round, position, behind)) < 1.0 - share {
                return y;
            }
        }
        propose(PROPOSALS)
    }
}

/// Where the laws of positions go, and the normals of their trajectories if they are not those of their image.
pub struct Trajectories<'a, T> {
    /// Positions of an image.
    pub positions: usize,
    /// Those of position `p` at `level` in row `level * positions + p`, for every image.
    pub normals: Option<&'a T>,
    /// [`Law`]s in rows `image * positions + position`.
    pub laws: &'a mut T,
}

/// How the numbers of goals are settled once their laws are known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settlement {
    /// When drafts pass.
    pub criterion: Criterion,
    /// Add the noise of the last step to what is drawn.
    pub noise: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn densities_are_those_of_gaussians() {
        let law = Law { mean: vec![1.0, -2.0], log_deviation: vec![0.5f32.ln(), 2f32.ln()], spread: 0.0 };
        assert_eq!(law.at(&[2.0, -1.0]), [2.0, -4.0]);
        // Two standard deviations and one, times the widths 0.5 and 2.
        assert!((law.log_density(&[2.0, -4.0], 1.0) + 2.5).abs() < 1e-6);
        assert!((law.log_density(&[2.0, -4.0], 10.0) + 0.025).abs() < 1e-6);
    }

    #[test]
    fn a_law_is_what_its_columns_say() {
        let spread = -12.567_890_123_4;
        let law = Law { mean: vec![1.0, 2.0], log_deviation: vec![-0.5, -0.25], spread };
        let again = Law::from_row(&law.to_row());
        assert_eq!((&again.mean, &again.log_deviation), (&law.mean, &law.log_deviation));
        assert!((again.spread - spread).abs() < 1e-10, "{}", again.spread);
    }
}
