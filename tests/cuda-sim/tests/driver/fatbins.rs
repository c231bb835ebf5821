//! Fat binaries as nvcc 13.0 writes them. Both are made of
//!
//! ```c
//! extern "C" __global__ void twice(float* p, int n) {
//!     int i = blockIdx.x * blockDim.x + threadIdx.x;
//!     if (i < n) p[i] *= 2.0f;
//! }
//! ```
//!
//! `twice.fatbin` with `nvcc -O3 --no-compress -fatbin -gencode arch=compute_80,code=[sm_80,compute_80]
//! -gencode arch=compute_90a,code=[sm_90a,compute_90a]`, `twice_compressed.fatbin` without `--no-compress` and for
//! compute_80 alone.

use std::sync::Arc;

use cudarc::driver::sys;
use cudarc::driver::{CudaContext, DevicePtr};

use crate::support::{Params, ok, own_context};

const PLAIN: &[u8] = include_bytes!("twice.fatbin");
const COMPRESSED: &[u8] = include_bytes!("twice_compressed.fatbin");

fn doubled(context: &Arc<CudaContext>, module: sys::CUmodule) -> Vec<f32> {
    let stream = context.default_stream();
    let data = stream.clone_htod(&[1.0f32, 2.0, 3.0]).unwrap();
    let mut params = Params::new(&[data.device_ptr(&stream).0, 2]);
    let mut twice = std::ptr::null_mut();
    unsafe {
        ok(sys::cuModuleGetFunction(&mut twice, module, c"twice".as_ptr()));
        let (none, extra) = (std::ptr::null_mut(), std::ptr::null_mut());
        ok(sys::cuLaunchKernel(twice, 1, 1, 1, 32, 1, 1, 0, none, params.pointers(), extra));
    }
    stream.clone_dtoh(&data).unwrap()
}

#[test]
fn the_ptx_in_a_fat_binary_runs() {
    let context = own_context();
    context.bind_to_thread().unwrap();
    let mut module = std::ptr::null_mut();
    unsafe { ok(sys::cuModuleLoadData(&mut module, PLAIN.as_ptr().cast())) };
    assert_eq!(doubled(&context, module), [2.0, 4.0, 3.0]);
    unsafe { ok(sys::cuModuleUnload(module)) };
    // As a program's startup code registers it: a magic, a version, a pointer.
    let image = PLAIN.as_ptr() as usize;
    let wrapper: [usize; 3] = [0x1_4662_43b1, image, 0];
    unsafe { ok(sys::cuModuleLoadFatBinary(&mut module, wrapper.as_ptr().cast())) };
    assert_eq!(doubled(&context, module), [2.0, 4.0, 3.0]);
    unsafe { ok(sys::cuModuleUnload(module)) };
    let path = std::env::temp_dir().join(format!("cuda-sim-{}.fatbin", std::process::id()));
    std::fs::write(&path, PLAIN).unwrap();
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    unsafe { ok(sys::cuModuleLoad(&mut module, name.as_ptr())) };
    std::fs::remove_file(&path).unwrap();
    assert_eq!(doubled(&context, module), [2.0, 4.0, 3.0]);
    unsafe { ok(sys::cuModuleUnload(module)) };
}

#[test]
fn compressed_ptx_runs() {
    let context = own_context();
    context.bind_to_thread().unwrap();
    let mut module = std::ptr::null_mut();
    unsafe { ok(sys::cuModuleLoadData(&mut module, COMPRESSED.as_ptr().cast())) };
    assert_eq!(doubled(&context, module), [2.0, 4.0, 3.0]);
    unsafe { ok(sys::cuModuleUnload(module)) };
}
