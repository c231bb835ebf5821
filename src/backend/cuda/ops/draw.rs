//! Placeholder.
use crate::backend::cuda::*;
/// Placeholder.
pub struct Canvas;
impl Canvas {
    pub(in crate::backend::cuda) fn new(
        _: &Arc<Device>,
        _: usize,
        _: usize,
        _: usize,
        _: bool,
    ) -> Result<Canvas, Error> {
        unimplemented!()
    }
}
impl CudaBackend {
    pub(in crate::backend::cuda) fn op_draw(&self, _: &DeviceStep, _: Phase, _: &Tensor, _: &mut Canvas) {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_drawn(&self, _: &DeviceStep, _: &Canvas) -> Result<Vec<Drawn>, Error> {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_tokens(&self, _: &Canvas, _: usize) -> Result<Vec<u32>, Error> {
        unimplemented!()
    }
    pub(in crate::backend::cuda) fn op_set_tokens(&self, _: &mut Canvas, _: usize, _: &[u32]) -> Result<(), Error> {
        unimplemented!()
    }
}
