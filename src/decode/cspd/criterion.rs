//! When a drafted position passes, and what replaces it if it does not; in the logarithms of densities throughout.
//!
//! Given the noise that both trajectories share, the target's last step is a Gaussian p and the draft's a Gaussian q. With
//! [`Sigma::One`] and `temper` 1 the test is speculative sampling of p by q: what comes out has the law p given the noise,
//! so the target's own law whatever the draft and however long the trajectories.
//!
//! The paper compares densities of whole trajectories, in which the exponents of the shared noise cancel and the standard
//! deviations do not: they leave Sigma = prod sigma_q / prod sigma_p over all steps but the last. The map from the draft's
//! trajectory to the target's, by which the two are compared at different points, has the Jacobian 1 / Sigma, which would
//! cancel it; without that the law is biased wherever the deviations of the two models differ before the last step (of one
//! step there is no Sigma, and nothing is biased). We know the paper from notes. Its code has 1 / Sigma, and divides the
//! residuals of the test, not those of the replacement, by 42.

use crate::nn::diffusion::Law;
use crate::rng::{Purpose, Stream};

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

/// How drafts are judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Criterion {
    /// What stands before the densities.
    pub sigma: Sigma,
    /// What the residuals of the test are divided with; 1 in the paper, 42 in the released code.
    pub temper: f64,
}

/// Proposals of the residual, at most.
const ROUNDS: u32 = 100;

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
        for round in 0..ROUNDS {
            let y = propose(round);
            let share = (q.log_density(&y, 1.0) - p.log_density(&y, 1.0) - log_sigma).exp();
            if f64::from(stream.uniform_of(Purpose::Residual, round, position, behind)) < 1.0 - share {
                return y;
            }
        }
        propose(ROUNDS)
    }
}
