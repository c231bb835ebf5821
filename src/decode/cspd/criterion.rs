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

pub use crate::backend::gaussian::{Criterion, Sigma};
