//! Placeholder.
use crate::backend::cuda::*;
impl CudaBackend {
    pub(in crate::backend::cuda) fn op_rotate_and_store(
        &self,
        _: &mut Tensor,
        _: Option<(&Vector, &Vector, f32)>,
        _: Rotary,
        _: &DeviceStep,
        _: usize,
        _: &mut KvPool,
    ) {
        unimplemented!()
    }
}
