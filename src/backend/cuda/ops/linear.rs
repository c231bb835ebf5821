//! Placeholder.
use crate::backend::cuda::*;

/// A packed weight: tiles of 16 outputs, in each the units of 16 columns, in a unit 16 bytes per lane, which are that
/// lane's operand of mma.m16n8k16.
pub struct Weight {
    packed: Buffer<u16>,
    n: usize,
    k: usize,
}

impl Weight {
    /// Outputs.
    pub(super) fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub(super) fn k(&self) -> usize {
        self.k
    }

    /// The bf16 operands; rows past `n` and columns past `k` are zero.
    pub(super) fn packed(&self) -> &Buffer<u16> {
        &self.packed
    }
}

impl CudaBackend {
    pub(in crate::backend::cuda) fn op_weight(&self, data: &[bf16], n: usize, k: usize) -> Result<Weight, Error> {
        let units = k.div_ceil(16);
        let mut packed = vec![0u16; n.div_ceil(16) * units * 256];
        for (row, data) in data.chunks_exact(k).enumerate() {
            for (column, value) in data.iter().enumerate() {
                let (g, t) = (row % 8, column % 8 / 2);
                let register = row % 16 / 8 + column % 16 / 8 * 2;
                let unit = row / 16 * units + column / 16;
                packed[unit * 256 + (g * 4 + t) * 8 + register * 2 + column % 2] = value.to_bits();
            }
        }
        Ok(Weight { packed: Buffer::copied(&self.device, &packed, "a weight")?, n, k })
    }
    pub(in crate::backend::cuda) fn op_linear(
        &self,
        _: &Tensor,
        _: &Weight,
        _: &mut Tensor,
        _: Epilogue,
        _: Grouping<'_, DeviceStep>,
    ) {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_swiglu(
        &self,
        _: &Tensor,
        _: &Weight,
        _: &Weight,
        _: &mut Tensor,
        _: Grouping<'_, DeviceStep>,
    ) {
        unimplemented!()
    }
}
