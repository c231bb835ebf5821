//! Placeholder.
use crate::backend::cuda::*;
impl CudaBackend {
    pub(in crate::backend::cuda) fn op_add(&self, _: &mut Tensor, _: &Tensor) {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_upsample(&self, _: &Tensor, _: (usize, usize), _: &mut Tensor) {
        unimplemented!()
    }
}
