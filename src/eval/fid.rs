//! Fréchet distance between Gaussians fitted to features (Heusel et al., 2017), here in the space of the model's own
//! attribute classifier: figures compare decoders of one model and are not comparable with Inception FIDs.

use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Mean and covariance of features.
#[derive(Clone, Debug)]
pub struct Moments {
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
}

impl Moments {
    /// Moments given by a mean `[f]` and a covariance `[f, f]`.
    pub fn new(mean: &[f32], covariance: &[f32]) -> Self {
        let wide = |x: &f32| f64::from(*x);
        let size = mean.len();
        Self {
            mean: DVector::from_iterator(size, mean.iter().map(wide)),
            covariance: DMatrix::from_iterator(size, size, covariance.iter().map(wide)),
        }
    }

    /// Moments of a sample: at least two rows of one length.
    pub fn of<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]> + Clone) -> Self {
        let count = rows.len() as f64;
        let size = rows.clone().next().map_or(0, <[f32]>::len);
        let row = |features: &[f32]| DVector::from_iterator(size, features.iter().map(|&x| f64::from(x)));
        let mean = rows.clone().fold(DVector::zeros(size), |sum, features| sum + row(features)) / count;
        let centred = rows.map(|features| row(features) - &mean).collect::<Vec<_>>();
        let matrix = DMatrix::from_columns(&centred);
        Self { covariance: &matrix * matrix.transpose() / (count - 1.0), mean }
    }

    /// Fréchet distance to `other`: `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`.
    pub fn distance(&self, other: &Self) -> f64 {
        // tr (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric.
        let eigen = SymmetricEigen::new(self.covariance.clone());
        let roots = DMatrix::from_diagonal(&eigen.eigenvalues.map(|value| value.max(0.0).sqrt()));
        let root = &eigen.eigenvectors * roots * eigen.eigenvectors.transpose();
        let product = &root * &other.covariance * &root;
        let cross: f64 = SymmetricEigen::new(product).eigenvalues.iter().map(|value| value.max(0.0).sqrt()).sum();
        let means = (&self.mean - &other.mean).norm_squared();
        means + self.covariance.trace() + other.covariance.trace() - 2.0 * cross
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_of_known_gaussians() {
        let a = Moments::new(&[0.0, 0.0], &[1.0, 0.0, 0.0, 4.0]);
        let b = Moments::new(&[3.0, 4.0], &[9.0, 0.0, 0.0, 4.0]);
        assert!((a.distance(&b) - (25.0 + (3.0f64 - 1.0).powi(2))).abs() < 1e-9);
        assert!(a.distance(&a).abs() < 1e-9);
        // Correlated covariances: 2x2 closed form tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) with M = C1 C2.
        let c = Moments::new(&[0.0, 0.0], &[2.0, 1.0, 1.0, 2.0]);
        let trace: f64 = 2.0 + 8.0;
        let expected = 5.0 + 4.0 - 2.0 * (trace + 2.0 * (4.0f64 * 3.0).sqrt()).sqrt();
        assert!((a.distance(&c) - expected).abs() < 1e-6);
    }

    #[test]
    fn moments_of_a_sample() {
        let rows: [&[f32]; 3] = [&[1.0, 2.0], &[3.0, 2.0], &[5.0, 2.0]];
        let moments = Moments::of(rows.iter().copied());
        assert_eq!(moments.mean.as_slice(), [3.0, 2.0]);
        assert_eq!(moments.covariance.as_slice(), [4.0, 0.0, 0.0, 0.0]);
    }
}
