//! What is wrong is said: null pointers, dead handles, wrong sizes, calls that are not there.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut as null;

use cudarc::driver::DevicePtr;
use cudarc::driver::sys::{self, CUresult};

use crate::support::{context, kernel, load, ok, own_context};

const INVALID_VALUE: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;
const INVALID_HANDLE: CUresult = CUresult::CUDA_ERROR_INVALID_HANDLE;

#[test]
fn null_pointers_are_refused() {
    let context = own_context();
    let stream = context.default_stream();
    let data = stream.alloc_zeros::<u32>(4).unwrap();
    let base = data.device_ptr(&stream).0;
    let count = kernel(&context, "count");
    let function = count.cu_function();
    unsafe {
        assert_eq!(sys::cuMemAlloc_v2(null(), 4), INVALID_VALUE);
        assert_eq!(sys::cuMemAllocAsync(null(), 4, null()), INVALID_VALUE);
        assert_eq!(sys::cuMemcpyHtoD_v2(base, std::ptr::null(), 4), INVALID_VALUE);
        assert_eq!(sys::cuMemcpyDtoH_v2(null(), base, 4), INVALID_VALUE);
        assert_eq!(sys::cuMemcpyDtoH_v2(null(), base, 0), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuStreamCreate(null(), 0), INVALID_VALUE);
        assert_eq!(sys::cuEventCreate(null(), 0), INVALID_VALUE);
        assert_eq!(sys::cuModuleLoadData(null(), c"".as_ptr().cast()), INVALID_VALUE);
        let mut module = null();
        assert_eq!(sys::cuModuleLoadData(&mut module, std::ptr::null()), INVALID_VALUE);
        assert_eq!(sys::cuModuleGetFunction(null(), module, c"x".as_ptr()), INVALID_VALUE);
        let mut nothing: [*mut c_void; 1] = [null()];
        let params = nothing.as_mut_ptr();
        assert_eq!(sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, null(), params, null()), INVALID_VALUE);
        assert_eq!(sys::cuLaunchHostFunc(null(), None, null()), INVALID_VALUE);
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE;
        assert_eq!(sys::cuDeviceGetAttribute(null(), attribute, 0), INVALID_VALUE);
        assert_eq!(sys::cuGraphCreate(null(), 0), INVALID_VALUE);
        assert_eq!(sys::cuMemHostAlloc(null(), 64, 0), INVALID_VALUE);
        assert_eq!(sys::cuMemFreeHost(null()), INVALID_VALUE);
    }
}

#[test]
fn dead_and_wild_handles_are_refused() {
    let context = own_context();
    context.bind_to_thread().unwrap();
    unsafe {
        let (mut stream, mut event, mut graph) = (null(), null(), null());
        ok(sys::cuStreamCreate(&mut stream, 1));
        ok(sys::cuEventCreate(&mut event, 0));
        ok(sys::cuGraphCreate(&mut graph, 0));
        // Handles of the wrong kind.
        assert_eq!(sys::cuStreamSynchronize(event.cast()), INVALID_HANDLE);
        assert_eq!(sys::cuEventRecord(stream.cast(), stream), INVALID_HANDLE);
        ok(sys::cuStreamDestroy_v2(stream));
        ok(sys::cuEventDestroy_v2(event));
        ok(sys::cuGraphDestroy(graph));
        assert_eq!(sys::cuStreamDestroy_v2(stream), INVALID_HANDLE);
        assert_eq!(sys::cuStreamSynchronize(stream), INVALID_HANDLE);
        assert_eq!(sys::cuEventDestroy_v2(event), INVALID_HANDLE);
        assert_eq!(sys::cuGraphDestroy(graph), INVALID_HANDLE);
        let wild = 0xdead_beef_usize as *mut c_void;
        assert_eq!(sys::cuStreamSynchronize(wild.cast()), INVALID_HANDLE);
        assert_eq!(sys::cuModuleUnload(wild.cast()), INVALID_HANDLE);
        let params = null();
        assert_eq!(sys::cuLaunchKernel(wild.cast(), 1, 1, 1, 1, 1, 1, 0, null(), params, null()), INVALID_HANDLE);
        assert_eq!(sys::cuCtxSetCurrent(wild.cast()), CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
}

#[test]
fn ranges_outside_of_allocations_are_refused() {
    let context = own_context();
    let stream = context.default_stream();
    let data = stream.alloc_zeros::<u8>(100).unwrap();
    let base = data.device_ptr(&stream).0;
    let mut host = [0u8; 200];
    unsafe {
        let to = host.as_mut_ptr().cast();
        ok(sys::cuMemcpyDtoH_v2(to, base + 50, 50));
        assert_eq!(sys::cuMemcpyDtoH_v2(to, base + 50, 51), INVALID_VALUE);
        assert_eq!(sys::cuMemcpyDtoH_v2(to, base - 1, 1), INVALID_VALUE);
        assert_eq!(sys::cuMemcpyDtoH_v2(to, 0, 1), INVALID_VALUE);
        assert_eq!(sys::cuMemsetD8_v2(base, 0, 101), INVALID_VALUE);
        assert_eq!(sys::cuMemsetD32_v2(base + 2, 0, 1), INVALID_VALUE);
        assert_eq!(sys::cuMemcpyDtoD_v2(base, base + 60, 41), INVALID_VALUE);
        assert_eq!(sys::cuMemFree_v2(base + 4), INVALID_VALUE);
        let mut other = 0;
        ok(sys::cuMemAlloc_v2(&mut other, 64));
        ok(sys::cuMemFree_v2(other));
        assert_eq!(sys::cuMemFree_v2(other), INVALID_VALUE);
        assert_eq!(sys::cuMemsetD8_v2(other, 0, 1), INVALID_VALUE);
        ok(sys::cuMemAllocAsync(&mut other, 64, std::ptr::null_mut()));
        ok(sys::cuMemFreeAsync(other, std::ptr::null_mut()));
        assert_eq!(sys::cuMemFreeAsync(other, std::ptr::null_mut()), INVALID_VALUE);
        assert_eq!(sys::cuMemAlloc_v2(&mut other, 0), INVALID_VALUE);
        assert_eq!(sys::cuMemAlloc_v2(&mut other, usize::MAX), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
}

#[test]
fn without_a_context_there_is_no_work() {
    load();
    let _alive = context();
    std::thread::spawn(|| unsafe {
        let mut address = 0;
        assert_eq!(sys::cuMemAlloc_v2(&mut address, 4), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        let mut device = 0;
        assert_eq!(sys::cuDeviceGet(&mut device, 1), CUresult::CUDA_ERROR_INVALID_DEVICE);
        let mut other = std::ptr::null_mut();
        ok(sys::cuCtxCreate_v4(&mut other, std::ptr::null_mut(), 0, 0));
        ok(sys::cuMemAlloc_v2(&mut address, 4));
        ok(sys::cuMemFree_v2(address));
        ok(sys::cuCtxPushCurrent_v2(other));
        ok(sys::cuCtxDestroy_v2(other));
        // It is still the one below.
        let destroyed = CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED;
        assert_eq!(sys::cuMemAlloc_v2(&mut address, 4), destroyed);
    })
    .join()
    .unwrap();
}

#[test]
fn what_is_missing_says_so() {
    load();
    let _alive = context();
    unsafe {
        let result = sys::cuArrayDestroy(std::ptr::null_mut());
        assert_eq!(result, CUresult::CUDA_ERROR_NOT_SUPPORTED);
        let mut state = std::ptr::null_mut();
        let link = sys::cuLinkCreate_v2(0, std::ptr::null_mut(), std::ptr::null_mut(), &mut state);
        assert_eq!(link, CUresult::CUDA_ERROR_NOT_SUPPORTED);
        let mut table = std::ptr::dangling::<c_void>();
        let id = sys::CUuuid { bytes: [0; 16] };
        assert_eq!(sys::cuGetExportTable(&mut table, &id), CUresult::CUDA_ERROR_NOT_FOUND);
        assert!(table.is_null());
    }
}

#[test]
fn functions_are_found_by_name() {
    load();
    let look_up = |name: &CStr| {
        let mut address = std::ptr::null_mut();
        let mut status = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS;
        unsafe { ok(sys::cuGetProcAddress_v2(name.as_ptr(), &mut address, 13000, 0, &mut status)) };
        (address, status as u32)
    };
    let (address, status) = look_up(c"cuDriverGetVersion");
    assert_eq!(status, 0);
    let version: unsafe extern "C" fn(*mut i32) -> u32 = unsafe { std::mem::transmute(address) };
    let mut number = 0;
    assert_eq!(unsafe { version(&mut number) }, 0);
    assert_eq!(number, 13000);
    assert_eq!(look_up(c"cuMemAlloc").1, 0);
    assert_eq!(look_up(c"cuNoSuchThing"), (std::ptr::null_mut(), 1));
}

#[test]
fn results_have_names_and_texts() {
    load();
    let mut text = std::ptr::null();
    unsafe {
        ok(sys::cuGetErrorName(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &mut text));
        assert_eq!(CStr::from_ptr(text), c"CUDA_ERROR_ILLEGAL_ADDRESS");
        ok(sys::cuGetErrorString(CUresult::CUDA_ERROR_INVALID_PTX, &mut text));
        assert_eq!(CStr::from_ptr(text), c"a PTX JIT compilation failed");
    }
}
