//! Placeholder.
use crate::backend::cuda::*;
impl CudaBackend {
    pub(in crate::backend::cuda) fn op_embed(
        &self,
        _: &DeviceStep,
        _: Embedding<'_, Tensor>,
        _: &Canvas,
        _: &mut Tensor,
    ) {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_keep_states(&self, _: &DeviceStep, _: &Tensor, _: usize, _: &mut Tensor) {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_select(&self, _: &DeviceStep, _: &Tensor, _: &mut Tensor) {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_gather_sources(
        &self,
        _: &DeviceStep,
        _: &Tensor,
        _: &Tensor,
        _: &Canvas,
        _: &mut Tensor,
    ) {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_copy_rows(&self, _: &DeviceStep, _: &mut Tensor) {
        unimplemented!()
    }
}
