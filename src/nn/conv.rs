//! Layers of the convolutional networks: 3x3 convolution, GroupNorm, residual block.

use super::Loader;
use crate::backend::{Backend, Error as BackendError, GroupNorm};
use crate::checkpoint::Error;
use half::bf16;

/// Of every GroupNorm here: PyTorch's default.
const EPS: f32 = 1e-5;

/// 3x3 convolution with padding 1.
pub struct Conv3x3<B: Backend> {
    weight: B::Weight,
    bias: B::Vector,
    stride: usize,
    out_channels: usize,
}

/// GroupNorm, with SiLU after it.
pub struct GroupNormSilu<B: Backend> {
    weight: B::Vector,
    bias: B::Vector,
    groups: usize,
    channels: usize,
}

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`.
pub struct ResBlock<B: Backend> {
    norm1: GroupNormSilu<B>,
    conv1: Conv3x3<B>,
    norm2: GroupNormSilu<B>,
    conv2: Conv3x3<B>,
}

/// One image `[height * width, channels]` on the backend.
pub struct Image<B: Backend> {
    /// The pixels.
    pub data: B::Tensor,
    /// Values per pixel.
    pub channels: usize,
    /// Height and width.
    pub size: (usize, usize),
}

impl<B: Backend> Conv3x3<B> {
    /// Loads `{name}.weight` `[cout, cin, 3, 3]` and `{name}.bias` `[cout]`.
    pub fn load(loader: &Loader<'_, B>, name: &str, cin: usize, cout: usize, stride: usize) -> Result<Self, Error> {
        let torch = loader.tensors.take::<bf16>(&format!("{name}.weight"), &[cout, cin, 3, 3])?;
        // [cout, cin, ky, kx] -> [cout, (ky, kx, cin)], the order of the op contract
        let at = |o: usize, tap: usize, i: usize| torch[(o * cin + i) * 9 + tap];
        let order = |o| (0..9).flat_map(move |tap| (0..cin).map(move |i| (o, tap, i)));
        let packed: Vec<bf16> = (0..cout).flat_map(order).map(|(o, tap, i)| at(o, tap, i)).collect();
        Ok(Self {
            weight: loader.backend.weight(&packed, cout, 9 * cin)?,
            bias: loader.vector(&format!("{name}.bias"), cout)?,
            stride,
            out_channels: cout,
        })
    }

    /// Applies the convolution.
    pub fn forward(&self, backend: &B, x: &Image<B>) -> Result<Image<B>, BackendError> {
        let size = (x.size.0.div_ceil(self.stride), x.size.1.div_ceil(self.stride));
        let mut data = backend.tensor(size.0 * size.1, self.out_channels)?;
        backend.conv3x3(&x.data, x.size, self.stride, &self.weight, &self.bias, &mut data);
        Ok(Image { data, channels: self.out_channels, size })
    }
}

impl<B: Backend> GroupNormSilu<B> {
    /// Loads `{name}.weight` and `{name}.bias`.
    pub fn load(loader: &Loader<'_, B>, name: &str, channels: usize, groups: usize) -> Result<Self, Error> {
        Ok(Self {
            weight: loader.vector(&format!("{name}.weight"), channels)?,
            bias: loader.vector(&format!("{name}.bias"), channels)?,
            groups,
            channels,
        })
    }

    /// Normalises over the image and applies SiLU.
    pub fn forward(&self, backend: &B, x: &Image<B>) -> Result<Image<B>, BackendError> {
        let pixels = x.size.0 * x.size.1;
        let mut data = backend.tensor(pixels, self.channels)?;
        let norm = GroupNorm { groups: self.groups, eps: EPS, activate: true };
        backend.group_norm(&x.data, pixels, norm, &self.weight, &self.bias, &mut data);
        Ok(Image { data, channels: self.channels, size: x.size })
    }
}

impl<B: Backend> ResBlock<B> {
    /// Loads `{name}.{norm1,conv1,norm2,conv2}`.
    pub fn load(loader: &Loader<'_, B>, name: &str, channels: usize, groups: usize) -> Result<Self, Error> {
        let norm = |part: &str| GroupNormSilu::load(loader, &format!("{name}.{part}"), channels, groups);
        let conv = |part: &str| Conv3x3::load(loader, &format!("{name}.{part}"), channels, channels, 1);
        Ok(Self { norm1: norm("norm1")?, conv1: conv("conv1")?, norm2: norm("norm2")?, conv2: conv("conv2")? })
    }

    /// Applies the block.
    pub fn forward(&self, backend: &B, mut x: Image<B>) -> Result<Image<B>, BackendError> {
        let hidden = self.conv1.forward(backend, &self.norm1.forward(backend, &x)?)?;
        let branch = self.conv2.forward(backend, &self.norm2.forward(backend, &hidden)?)?;
        backend.add(&mut x.data, &branch.data);
        Ok(x)
    }
}
