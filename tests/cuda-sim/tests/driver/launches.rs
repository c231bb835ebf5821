//! Modules, kernels, launches.

use std::ffi::{CStr, CString, c_int, c_void};

use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute, CUjit_option, CUresult};
use cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::support::{KERNELS, Params, context, kernel, module, ok, own_context, shape};

#[test]
fn a_kernel_runs_on_every_element_and_no_more() {
    let context = own_context();
    let stream = context.new_stream().unwrap();
    let scale = kernel(&context, "scale");
    for n in [1usize, 31, 32, 33, 255, 1000] {
        let input: Vec<f32> = (0..n).map(|i| i as f32 - 7.0).collect();
        let a = stream.clone_htod(&input).unwrap();
        let mut b = stream.alloc_zeros::<f32>(n + 5).unwrap();
        let (blocks, count) = (n.div_ceil(128) as u32, n as u32);
        let mut launch = stream.launch_builder(&scale);
        launch.arg(&mut b).arg(&a).arg(&2.5f32).arg(&count);
        unsafe { launch.launch(shape(blocks, 128)) }.unwrap();
        let output = stream.clone_dtoh(&b).unwrap();
        let expected = input.iter().map(|x| x * 2.5).chain([0.0; 5]);
        assert!(output.iter().copied().eq(expected), "{n}");
    }
}

#[test]
fn parameters_come_in_one_buffer_too() {
    let context = own_context();
    let stream = context.default_stream();
    let add = kernel(&context, "add");
    let data = stream.clone_htod(&[1u32, 2, 3, 4]).unwrap();
    let mut buffer = [0u8; 12];
    buffer[..8].copy_from_slice(&data.device_ptr(&stream).0.to_le_bytes());
    buffer[8..].copy_from_slice(&10u32.to_le_bytes());
    let launch = |size: usize| {
        let mut size = size;
        let mut extra: [*mut c_void; 5] = [
            std::ptr::dangling_mut::<c_void>(),
            buffer.as_ptr().cast_mut().cast(),
            2 as *mut c_void,
            (&raw mut size).cast(),
            std::ptr::null_mut(),
        ];
        let (stream, params) = (std::ptr::null_mut(), std::ptr::null_mut());
        let extra = extra.as_mut_ptr();
        unsafe { sys::cuLaunchKernel(add.cu_function(), 1, 1, 1, 4, 1, 1, 0, stream, params, extra) }
    };
    ok(launch(12));
    assert_eq!(launch(8), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [11, 12, 13, 14]);
}

#[test]
fn variables_of_a_module_are_placed_and_initialised() {
    let context = own_context();
    let stream = context.default_stream();
    let module = module(&context);
    let read = module.load_function("variables").unwrap();
    let mut out = stream.alloc_zeros::<u32>(1).unwrap();
    unsafe { stream.launch_builder(&read).arg(&mut out).launch(shape(1, 1)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [10]);
    let mut counter = module.get_global("counter", &stream).unwrap();
    assert_eq!(stream.clone_dtoh(&counter).unwrap(), 7u32.to_le_bytes());
    stream.memcpy_htod(&100u32.to_le_bytes(), &mut counter).unwrap();
    unsafe { stream.launch_builder(&read).arg(&mut out).launch(shape(1, 1)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [103]);
    assert!(module.get_global("nothing", &stream).is_err());
}

#[test]
fn limits_are_enforced_at_the_call() {
    let context = own_context();
    let stream = context.default_stream();
    let refused = |name: &str, config: LaunchConfig| {
        let function = kernel(&context, name);
        unsafe { stream.launch_builder(&function).launch(config) }.unwrap_err().0
    };
    let wide = |x, y, z| LaunchConfig { grid_dim: (1, 1, 1), block_dim: (x, y, z), shared_mem_bytes: 0 };
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    assert_eq!(refused("stop", wide(1025, 1, 1)), invalid);
    assert_eq!(refused("stop", wide(32, 33, 1)), invalid);
    assert_eq!(refused("stop", wide(1, 1, 65)), invalid);
    assert_eq!(refused("stop", wide(0, 1, 1)), invalid);
    assert_eq!(refused("stop", LaunchConfig { grid_dim: (1, 65536, 1), ..wide(1, 1, 1) }), invalid);
    assert_eq!(refused("narrow", wide(65, 1, 1)), invalid);
    assert_eq!(refused("exact", wide(64, 1, 1)), invalid);
    // 48 KiB less the 1024 bytes that the kernel declares.
    let shared = |bytes| LaunchConfig { shared_mem_bytes: bytes, ..wide(1, 1, 1) };
    assert_eq!(refused("keeps", shared((48 << 10) - 1023)), invalid);
    let keeps = kernel(&context, "keeps");
    unsafe { stream.launch_builder(&keeps).launch(shared((48 << 10) - 1024)) }.unwrap();
    // No parameters for a kernel that has one.
    let count = kernel(&context, "count");
    let none = std::ptr::null_mut::<*mut c_void>();
    let result = unsafe { sys::cuLaunchKernel(count.cu_function(), 1, 1, 1, 1, 1, 1, 0, none.cast(), none, none) };
    assert_eq!(result, invalid);
    stream.synchronize().unwrap();
}

#[test]
fn a_kernel_says_for_which_architecture_it_was_compiled() {
    let context = own_context();
    let text = ".version 8.7\n.target sm_75\n.address_size 64\n.visible .entry k() { ret; }";
    let kernel = context.load_module(Ptx::from_src(text)).unwrap().load_function("k").unwrap();
    assert_eq!(kernel.get_attribute(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION).unwrap(), 75);
}

#[test]
fn more_shared_memory_must_be_asked_for() {
    let context = own_context();
    let stream = context.default_stream();
    let keeps = kernel(&context, "keeps");
    let optin = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    let most = optin.unwrap() - 1024;
    assert_eq!(keeps.shared_size_bytes().unwrap(), 1024);
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert_eq!(keeps.get_attribute(attribute).unwrap(), (48 << 10) - 1024);
    assert!(keeps.set_attribute(attribute, most + 1).is_err());
    keeps.set_attribute(attribute, most).unwrap();
    let config = LaunchConfig { shared_mem_bytes: most as u32, ..shape(1, 32) };
    unsafe { stream.launch_builder(&keeps).launch(config) }.unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn occupancy_follows_threads_and_shared_memory() {
    let context = own_context();
    let keeps = kernel(&context, "keeps");
    let blocks = |threads, shared| keeps.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None).unwrap();
    // A device of capability 9.0: 2048 threads, 32 blocks, 228 KiB of which each block costs 1 KiB more.
    assert_eq!(blocks(1024, 0), 2);
    assert_eq!(blocks(32, 0), 32);
    assert_eq!(blocks(33, 0), 32);
    assert_eq!(blocks(128, 98 << 10), 2);
    assert_eq!(blocks(128, 227 << 10), 0);
    extern "C" fn nothing(_: c_int) -> usize {
        0
    }
    let (grid, block) = keeps.occupancy_max_potential_block_size(nothing, 0, 0, None).unwrap();
    assert_eq!((grid, block), (2 * 132, 1024));
    let narrow = kernel(&context, "narrow");
    assert_eq!(narrow.max_threads_per_block().unwrap(), 64);
    assert_eq!(narrow.occupancy_max_potential_block_size(nothing, 0, 0, None).unwrap(), (32 * 132, 64));
    assert_eq!(keeps.occupancy_available_dynamic_smem_per_block(1, 128).unwrap(), (226 << 10));
}

#[test]
fn wrong_ptx_is_refused_with_its_line_in_the_log() {
    let context = own_context();
    context.bind_to_thread().unwrap();
    let text = KERNELS.replace("mul.f32 %f3", "mulx.f32 %f3");
    let line = text.lines().position(|line| line.contains("mulx")).unwrap() + 1;
    assert_eq!(context.load_module(Ptx::from_src(&text)).unwrap_err().0, CUresult::CUDA_ERROR_INVALID_PTX);
    let mut log = [b'x'; 200];
    let mut options = [
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        CUjit_option::CU_JIT_MAX_REGISTERS,
    ];
    let mut values: [*mut c_void; 3] = [log.as_mut_ptr().cast(), log.len() as *mut c_void, 32 as *mut c_void];
    let text = CString::new(text).unwrap();
    let mut module = std::ptr::null_mut();
    let result = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 3, options, values)
    };
    assert_eq!(result, CUresult::CUDA_ERROR_INVALID_PTX);
    let message = CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap();
    assert!(message.contains(&format!("line {line}")) && message.contains("mulx"), "{message}");
    assert_eq!(values[1] as usize, message.len() + 1);
}

#[test]
fn what_is_no_ptx_is_refused() {
    let context = own_context();
    let refused = |text: &str| context.load_module(Ptx::from_src(text)).unwrap_err().0;
    assert_eq!(refused("int main() { return 0; }"), CUresult::CUDA_ERROR_INVALID_IMAGE);
    assert_eq!(refused("\x7fELF is machine code"), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let newer = KERNELS.replace(".version 8.0", ".version 99.0");
    assert_eq!(refused(&newer), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    let other = KERNELS.replace("sm_80", "sm_120");
    assert_eq!(refused(&other), CUresult::CUDA_ERROR_INVALID_PTX);
    let missing = context.load_module(Ptx::from_file("/nonexistent/kernel.ptx")).unwrap_err().0;
    assert_eq!(missing, CUresult::CUDA_ERROR_FILE_NOT_FOUND);
}

#[test]
fn kernels_have_names_and_modules() {
    let context = context();
    let module = module(&context);
    let missing = module.load_function("nothing").unwrap_err().0;
    assert_eq!(missing, CUresult::CUDA_ERROR_NOT_FOUND);
    let scale = module.load_function("scale").unwrap();
    let (mut name, mut offset, mut size) = (std::ptr::null(), 0, 0);
    unsafe {
        ok(sys::cuFuncGetName(&mut name, scale.cu_function()));
        assert_eq!(CStr::from_ptr(name).to_str().unwrap(), "scale");
        ok(sys::cuFuncGetParamInfo(scale.cu_function(), 3, &mut offset, &mut size));
        assert_eq!((offset, size), (20, 4));
        let past = sys::cuFuncGetParamInfo(scale.cu_function(), 4, &mut offset, &mut size);
        assert_eq!(past, CUresult::CUDA_ERROR_INVALID_VALUE);
    }
}

#[test]
fn cooperative_grids_must_be_resident() {
    let context = own_context();
    let stream = context.default_stream();
    let count = kernel(&context, "count");
    let mut out = stream.alloc_zeros::<u32>(1).unwrap();
    let resident = 132 * 2;
    let mut launch = stream.launch_builder(&count);
    launch.arg(&mut out);
    let refused = unsafe { launch.launch_cooperative(shape(resident + 1, 1024)) }.unwrap_err().0;
    assert_eq!(refused, CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    unsafe { launch.launch_cooperative(shape(4, 1024)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [4096]);
}

#[test]
fn attributes_of_a_launch_are_understood_or_refused() {
    let context = own_context();
    context.bind_to_thread().unwrap();
    let count = kernel(&context, "count");
    let stream = context.default_stream();
    let out = stream.alloc_zeros::<u32>(1).unwrap();
    let mut params = Params::new(&[out.device_ptr(&stream).0]);
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    let mut launch = |id, value: [u32; 3]| {
        attribute.id = id;
        attribute.value.clusterDim =
            sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: value[0], y: value[1], z: value[2] };
        let config = sys::CUlaunchConfig {
            gridDimX: 6,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: std::ptr::null_mut(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        unsafe { sys::cuLaunchKernelEx(&config, count.cu_function(), params.pointers(), std::ptr::null_mut()) }
    };
    use sys::CUlaunchAttributeID as Id;
    ok(launch(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, [1, 0, 0]));
    ok(launch(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, [1, 0, 0]));
    let cluster = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    assert_eq!(launch(cluster, [4, 1, 1]), CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE);
    assert_eq!(launch(cluster, [3, 3, 1]), CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE);
    let event = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT;
    assert_eq!(launch(event, [0, 0, 0]), CUresult::CUDA_ERROR_NOT_SUPPORTED);
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [2 * 6 * 32]);
}

#[test]
fn tensor_maps_are_checked() {
    let context = own_context();
    let stream = context.default_stream();
    let data = stream.alloc_zeros::<u16>(64 * 64).unwrap();
    let base = data.device_ptr(&stream).0;
    let encode = |address: u64, tile: [u32; 2], swizzle| {
        let mut map: sys::CUtensorMap = unsafe { std::mem::zeroed() };
        let (dims, strides, steps) = ([64u64, 64], [128u64], [1u32, 1]);
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        (result, map.opaque != [0; 16])
    };
    use sys::CUtensorMapSwizzle as Swizzle;
    let good = encode(base, [64, 32], Swizzle::CU_TENSOR_MAP_SWIZZLE_128B);
    assert_eq!(good, (CUresult::CUDA_SUCCESS, true));
    // A row of the tile is wider than the swizzle's span; the address is not a multiple of 16; a tile of 257 rows.
    for (address, tile, swizzle) in [
        (base, [128, 32], Swizzle::CU_TENSOR_MAP_SWIZZLE_128B),
        (base + 8, [64, 32], Swizzle::CU_TENSOR_MAP_SWIZZLE_128B),
        (base, [64, 257], Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE),
    ] {
        assert_eq!(encode(address, tile, swizzle), (CUresult::CUDA_ERROR_INVALID_VALUE, false));
    }
}
