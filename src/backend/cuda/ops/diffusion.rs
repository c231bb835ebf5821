//! Denoising, and what is decided by it.

use super::super::abi::{WEFT_SIGMA_CODE, WEFT_SIGMA_ONE, WEFT_SIGMA_PAPER, WeftDenoising, WeftSettlement};
use super::super::kernels::{self, Args, Grid, Held, args};
use super::super::step::{Bound, Count};
use super::super::tensor::Rows;
use super::super::{CudaBackend, DeviceStep, Tensor};
use crate::backend::gaussian::{Denoising, Law, Settlement, Sigma, Trajectories};

impl CudaBackend {
    /// See [`Backend::begin_denoising`](crate::backend::Backend::begin_denoising).
    pub(in crate::backend::cuda) fn op_begin_denoising(
        &self,
        step: &DeviceStep,
        level: u32,
        x: &mut Tensor,
        trajectories: &mut Trajectories<'_, Tensor>,
    ) {
        let (channels, Trajectories { positions, normals, laws }) = (x.cols, trajectories);
        let (positions, normals) = (*positions, *normals);
        fits(step, positions, &[(laws, Law::cols(channels))]);
        given(normals, level, positions, channels);
        x.take_rows(Rows::of(step, Count::Predictions), channels);
        let normals = normals.map(Tensor::floats);
        let args = args![step.arg(), level, normals, positions as u32, *x.floats(), *laws.floats(), channels as u32];
        // SAFETY: the kernel's parameters are these; goals name rows of `x` and positions of `laws`.
        unsafe { self.goals("begin_denoising", step, args) };
    }

    /// See [`Backend::denoise`](crate::backend::Backend::denoise).
    pub(in crate::backend::cuda) fn op_denoise(
        &self,
        step: &DeviceStep,
        denoising: &Denoising,
        predicted: &Tensor,
        x: &mut Tensor,
        trajectories: &mut Trajectories<'_, Tensor>,
    ) {
        let (channels, Trajectories { positions, normals, laws }) = (x.cols, trajectories);
        let (positions, normals) = (*positions, *normals);
        assert_eq!(predicted.cols, 2 * channels, "noise and variances of {channels} numbers");
        let most = step.most(Count::Predictions);
        assert!(most <= predicted.max_rows.min(x.max_rows), "rows of the predictions in {} rows", x.max_rows);
        fits(step, positions, &[(laws, Law::cols(channels))]);
        let Denoising { level, signal, noise, from_x0, from_xt, low, high } = *denoising;
        given(normals, level, positions, channels);
        let denoising = WeftDenoising { level, signal, noise, from_x0, from_xt, low, high };
        let args = args![
            step.arg(),
            Held { value: denoising, memory: None },
            normals.map(Tensor::floats),
            positions as u32,
            *predicted.floats(),
            *x.floats(),
            *laws.floats(),
            channels as u32
        ];
        // SAFETY: the kernel's parameters are these; goals name rows of `predicted` and `x`, and positions of `laws`.
        unsafe { self.goals("denoise", step, args) };
    }

    /// See [`Backend::settle`](crate::backend::Backend::settle).
    pub(in crate::backend::cuda) fn op_settle(
        &self,
        step: &DeviceStep,
        settlement: Settlement,
        positions: usize,
        [laws, drafted]: [&Tensor; 2],
        latents: &mut Tensor,
        verdicts: &mut Tensor,
    ) {
        let channels = latents.cols;
        let cols = Law::cols(channels);
        fits(step, positions, &[(laws, cols), (drafted, cols), (latents, channels)]);
        verdicts.take_rows(Rows::of(step, Count::Goals), 1);
        let sigma = match settlement.criterion.sigma {
            Sigma::Paper => WEFT_SIGMA_PAPER,
            Sigma::Code => WEFT_SIGMA_CODE,
            Sigma::One => WEFT_SIGMA_ONE,
        };
        let temper = settlement.criterion.temper;
        let settlement = WeftSettlement { temper, sigma, noise: u32::from(settlement.noise) };
        let args = args![
            step.arg(),
            Held { value: settlement, memory: None },
            positions as u32,
            *laws.floats(),
            *drafted.floats(),
            *latents.floats(),
            *verdicts.floats(),
            channels as u32
        ];
        // SAFETY: the kernel's parameters are these; goals name positions of laws and latents, and each has a verdict.
        unsafe { self.goals("settle", step, args) };
    }

    /// Launches a warp per goal.
    ///
    /// # Safety
    /// As [`launch`](CudaBackend::launch).
    unsafe fn goals(&self, name: &'static str, step: &DeviceStep, args: Args) {
        // SAFETY: the caller's promise.
        unsafe { self.launch(&kernels::DIFFUSION, name, Grid::of(step.most(Count::Goals), 32), args) };
    }
}

/// Requires that the goals' positions are rows of these, which have so many columns.
fn fits(step: &DeviceStep, positions: usize, tensors: &[(&Tensor, usize)]) {
    step.require(Bound::Positions, positions);
    for (tensor, cols) in tensors {
        assert_eq!(tensor.cols, *cols, "columns of a position's numbers");
        step.require(Bound::Images, tensor.max_rows / positions.max(1));
    }
}

/// Panics unless normals that are given go up to this level.
fn given(normals: Option<&Tensor>, level: u32, positions: usize, channels: usize) {
    let Some(normals) = normals else { return };
    let wanted = (level as usize + 1) * positions;
    assert!(normals.cols == channels && normals.max_rows >= wanted, "normals of {wanted} trajectories");
}
