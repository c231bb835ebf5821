//! Placeholder.
use crate::backend::cuda::*;
/// Placeholder.
pub struct Weight;
impl CudaBackend {
    pub(in crate::backend::cuda) fn op_weight(&self, _: &[bf16], _: usize, _: usize) -> Result<Weight, Error> {
        unimplemented!()
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
