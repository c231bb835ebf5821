//! The networks, written once over the op contract of [`crate::backend`].

pub mod classifier;
pub mod conv;
pub mod spatial_heads;
pub mod text_encoder;
pub mod transformer;
pub mod vq;

use crate::backend::Backend;
use crate::checkpoint::{Error, Tensors};
use half::bf16;

/// Builds weights on a backend from the tensors of a checkpoint.
pub struct Loader<'a, B> {
    /// Where the weights go.
    pub backend: &'a B,
    /// Where they come from.
    pub tensors: &'a Tensors,
}

impl<B: Backend> Loader<'_, B> {
    /// The weight `{name}.weight` of a linear layer `[n, k]`.
    pub fn linear(&self, name: &str, n: usize, k: usize) -> Result<B::Weight, Error> {
        let data = self.tensors.take::<bf16>(&format!("{name}.weight"), &[n, k])?;
        Ok(self.backend.weight(&data, n, k))
    }

    /// The vector `{name}` of length `n`.
    pub fn vector(&self, name: &str, n: usize) -> Result<B::Vector, Error> {
        Ok(self.backend.vector(&self.tensors.take::<bf16>(name, &[n])?))
    }

    /// The tensor `{name}` on the host, widened to f32.
    pub fn host(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        Ok(self.tensors.take::<bf16>(name, shape)?.iter().map(|x| x.to_f32()).collect())
    }
}
