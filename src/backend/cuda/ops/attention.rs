//! Placeholder.
use crate::backend::cuda::*;
impl CudaBackend {
    pub(in crate::backend::cuda) fn op_attention(
        &self,
        _: &Tensor,
        _: &DeviceStep,
        _: usize,
        _: &KvPool,
        _: &mut Tensor,
    ) {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_copy_page(&self, _: &mut KvPool, _: u32, _: u32) {
        unimplemented!()
    }
}
