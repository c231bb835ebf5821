//! The networks, written once over the op contract of [`crate::backend`].

pub mod classifier;
pub mod conv;
pub mod diffusion;
pub mod diffusion_head;
pub mod eagle;
pub mod kl;
pub mod mar;
pub mod resize;
pub mod spatial_heads;
pub mod text_encoder;
pub mod transformer;
pub mod up_sampler;
pub mod vq;

use crate::backend::{Backend, KvFormat, Storage, WeightFormat};
use crate::checkpoint::{Error, Tensors};
use half::bf16;

/// How a model is held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Formats {
    /// Weights of the decoder's layers. All others (its head, the spatial heads, text encoder and image tokenizer) are
    /// bf16, being few or sensitive.
    pub weights: WeightFormat,
    /// Keys and values.
    pub kv: KvFormat,
    /// Rows of most steps; absent, a row of the image in both branches.
    pub rows: Option<usize>,
}

/// Builds weights on a backend from the tensors of a checkpoint.
pub struct Loader<'a, B> {
    /// Where the weights go.
    pub backend: &'a B,
    /// Where they come from.
    pub tensors: &'a Tensors,
    /// How those of [`Loader::layer`] are stored.
    pub storage: Storage,
}

impl<B: Backend> Loader<'_, B> {
    /// The weight `{name}.weight` of a linear layer `[n, k]`.
    pub fn linear(&self, name: &str, n: usize, k: usize) -> Result<B::Weight, Error> {
        self.stacked(&[(name.into(), n)], k)
    }

    /// The weights `{name}.weight` `[n, k]` of several linear layers as one, in their order.
    pub fn stacked(&self, parts: &[(String, usize)], k: usize) -> Result<B::Weight, Error> {
        self.stacked_in(Storage::default(), parts, k)
    }

    /// The same in the loader's storage.
    pub fn layer(&self, parts: &[(String, usize)], k: usize) -> Result<B::Weight, Error> {
        self.stacked_in(self.storage, parts, k)
    }

    fn stacked_in(&self, storage: Storage, parts: &[(String, usize)], k: usize) -> Result<B::Weight, Error> {
        let mut data = Vec::new();
        for (name, n) in parts {
            data.extend_from_slice(&self.tensors.take::<bf16>(&format!("{name}.weight"), &[*n, k])?);
        }
        Ok(self.backend.weight_in(storage, &data, data.len() / k, k)?)
    }

    /// The vectors of several layers, each of length `n`, as one, in their order.
    pub fn stacked_vector(&self, names: &[String], n: usize) -> Result<B::Vector, Error> {
        let mut data = Vec::new();
        for name in names {
            data.extend_from_slice(&self.tensors.take::<bf16>(name, &[n])?);
        }
        Ok(self.backend.vector(&data)?)
    }

    /// A table `[rows, cols]` on the backend, widened to f32.
    pub fn table(&self, name: &str, rows: usize, cols: usize) -> Result<B::Tensor, Error> {
        let mut table = self.backend.tensor(rows, cols)?;
        self.backend.upload(&self.host(name, &[rows, cols])?, &mut table);
        Ok(table)
    }

    /// The vector `{name}` of length `n`.
    pub fn vector(&self, name: &str, n: usize) -> Result<B::Vector, Error> {
        self.stacked_vector(&[name.into()], n)
    }

    /// The tensor `{name}` on the host, widened to f32.
    pub fn host(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        Ok(self.tensors.take::<bf16>(name, shape)?.iter().map(|x| x.to_f32()).collect())
    }
}
