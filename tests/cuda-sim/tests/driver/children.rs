//! What needs an environment or a process of its own: faults, injections, leaks, counters, sweeps. A test of the first
//! kind below runs one of the second in a child process and looks at what it printed.

use std::ffi::{CStr, c_char};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, PushKernelArg};

use crate::simulator;
use crate::support::{KERNELS, child, kernel, load, ok, own_context, shape};

#[test]
fn a_fault_is_one_line_and_kills_the_context() {
    let findings = child("fault", &[]);
    let line = KERNELS.lines().position(|line| line.contains("st.global.f32 [%rd5]")).unwrap() + 1;
    assert_eq!(findings.len(), 1, "{findings:#?}");
    let finding = &findings[0];
    for part in ["out of bounds", "kernel scale", &format!("PTX line {line}"), "block (1,0,0)", "warp ", "lane 0"] {
        assert!(finding.contains(part), "{part}: {finding}");
    }
}

#[test]
#[ignore = "run by a_fault_is_one_line_and_kills_the_context"]
fn fault() {
    let context = own_context();
    let stream = context.new_stream().unwrap();
    let scale = kernel(&context, "scale");
    let input = stream.alloc_zeros::<f32>(256).unwrap();
    let mut short = stream.alloc_zeros::<f32>(128).unwrap();
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut short).arg(&input).arg(&1.0f32).arg(&256u32);
    unsafe { launch.launch(shape(2, 128)) }.unwrap();
    let illegal = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_eq!(stream.synchronize().unwrap_err().0, illegal);
    // The error sticks to everything in the context.
    assert_eq!(stream.synchronize().unwrap_err().0, illegal);
    let mut address = 0;
    assert_eq!(unsafe { sys::cuMemAlloc_v2(&mut address, 4) }, illegal);
    assert_eq!(unsafe { sys::cuMemcpyDtoH_v2([0u8; 4].as_mut_ptr().cast(), address, 4) }, illegal);
    // Another context works.
    let other = own_context();
    let stream = other.new_stream().unwrap();
    let data = stream.clone_htod(&[1u8]).unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [1]);
    std::mem::forget((input, short, context));
}

#[test]
fn every_kind_of_fault_has_its_result() {
    let findings = child("traps", &[]);
    assert_eq!(findings.len(), 2, "{findings:#?}");
    assert!(findings[0].contains("trap") && findings[0].contains("kernel stop"), "{}", findings[0]);
    assert!(findings[1].contains("misaligned") && findings[1].contains("kernel last"), "{}", findings[1]);
}

#[test]
#[ignore = "run by every_kind_of_fault_has_its_result"]
fn traps() {
    let context = own_context();
    let stop = kernel(&context, "stop");
    let stream = context.default_stream();
    unsafe { stream.launch_builder(&stop).launch(shape(1, 1)) }.unwrap();
    assert_eq!(stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    std::mem::forget((context, stop));
    let context = own_context();
    let last = kernel(&context, "last");
    let stream = context.default_stream();
    let data = stream.alloc_zeros::<u32>(4).unwrap();
    let odd = data.device_ptr(&stream).0 + 2;
    unsafe { stream.launch_builder(&last).arg(&odd).launch(shape(1, 1)) }.unwrap();
    assert_eq!(stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
    std::mem::forget((context, last, data));
}

#[test]
fn a_clean_program_prints_nothing_and_a_leak_is_told() {
    assert_eq!(child("leak", &[("CUDA_SIM_CHECK", "mem")]), [""; 0]);
    let findings = child("leak", &[]);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert!(findings[0].contains("leak: 1000 bytes") && findings[0].contains("cuMemAlloc"), "{}", findings[0]);
}

#[test]
#[ignore = "run by a_clean_program_prints_nothing_and_a_leak_is_told"]
fn leak() {
    for leaks in [false, true] {
        load();
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let kept = stream.alloc_zeros::<u8>(1000).unwrap();
        let pinned = unsafe { context.alloc_pinned::<u8>(10) }.unwrap();
        let module = crate::support::module(&context);
        if leaks {
            // The memory is lost, the context is not.
            let address = kept.leak();
            assert_ne!(address, 0);
        }
        drop((pinned, module, stream));
    }
}

#[test]
fn counters_are_written_as_json() {
    let path = std::env::temp_dir().join(format!("cuda-sim-counters-{}.json", std::process::id()));
    assert_eq!(child("counters", &[("CUDA_SIM_COUNTERS", path.to_str().unwrap()), ("CUDA_SIM_SMS", "4")]), [""; 0]);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["device"]["multiprocessors"], 4);
    assert_eq!(json["kernels"]["scale"]["launches"], 2);
    assert_eq!(json["kernels"]["add"]["launches"], 3);
    assert_eq!(json["graphs"]["launches"], 3);
    assert_eq!(json["graphs"]["nodes"], 6);
    assert_eq!(json["copies"]["host_to_device"]["bytes"], 4000);
    let launch = &json["launches"][0];
    assert_eq!(launch["kernel"], "scale");
    assert_eq!(launch["grid"], serde_json::json!([8, 1, 1]));
    // 1000 floats are read and written: 125 sectors of 32 bytes each way, and nothing twice.
    let counters = &launch["counters"];
    assert_eq!((&counters["global_load_bytes"], &counters["global_store_bytes"]), (&4000.into(), &4000.into()));
    assert_eq!((&counters["global_load_sectors"], &counters["global_store_sectors"]), (&125.into(), &125.into()));
    assert_eq!(counters["distinct_bytes"], 8000);
    let totals = &json["kernels"]["scale"]["totals"];
    assert_eq!((&totals["global_load_bytes"], &totals["lane_operations"]["float32"]), (&8000.into(), &2000.into()));
}

#[test]
#[ignore = "run by counters_are_written_as_json"]
fn counters() {
    let context = own_context();
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let (scale, add) = (kernel(&context, "scale"), kernel(&context, "add"));
    let a = stream.clone_htod(&vec![1.0f32; 1000]).unwrap();
    let mut b = stream.alloc_zeros::<f32>(1000).unwrap();
    for _ in 0..2 {
        let mut launch = stream.launch_builder(&scale);
        launch.arg(&mut b).arg(&a).arg(&1.0f32).arg(&1000u32);
        unsafe { launch.launch(shape(8, 128)) }.unwrap();
    }
    stream.synchronize().unwrap();
    stream.begin_capture(crate::support::THREAD_LOCAL).unwrap();
    stream.memset_zeros(&mut b).unwrap();
    unsafe { stream.launch_builder(&add).arg(&mut b).arg(&1u32).launch(shape(1, 32)) }.unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    (0..3).for_each(|_| graph.launch().unwrap());
    stream.synchronize().unwrap();
}

#[test]
fn traffic_is_counted_by_allocation() {
    assert_eq!(child("traffic", &[("CUDA_SIM_L2", "1G")]), [""; 0]);
    assert_eq!(child("traffic_of_a_small_cache", &[("CUDA_SIM_L2", "2K")]), [""; 0]);
}

/// Counters since the last call.
fn counted() -> serde_json::Value {
    serde_json::from_str(&simulator::text(c"cuda_sim_counters")).unwrap()
}

fn name(data: &CudaSlice<f32>, stream: &Arc<CudaStream>, name: &CStr) -> CUresult {
    type Name = unsafe extern "C" fn(u64, *const c_char) -> CUresult;
    let call: Name = unsafe { std::mem::transmute(simulator::function(c"cuda_sim_name_allocation")) };
    unsafe { call(data.device_ptr(stream).0, name.as_ptr()) }
}

#[test]
#[ignore = "run by traffic_is_counted_by_allocation"]
fn traffic() {
    assert_eq!(counted()["launches"], serde_json::json!([]));
    let context = own_context();
    let stream = context.default_stream();
    let scale = kernel(&context, "scale");
    let a = stream.clone_htod(&vec![1.0f32; 1000]).unwrap();
    let mut b = stream.alloc_zeros::<f32>(1000).unwrap();
    ok(name(&a, &stream, c"a"));
    ok(name(&b, &stream, c"old"));
    ok(name(&b, &stream, c"b"));
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut b).arg(&a).arg(&1.0f32).arg(&999u32);
    unsafe { launch.launch(shape(8, 128)) }.unwrap();
    stream.synchronize().unwrap();
    let json = counted();
    let launch = &json["launches"][0];
    assert_eq!((&launch["counters"]["dram_read_sectors"], &launch["l2_simulated"]), (&125.into(), &false.into()));
    assert_eq!(launch["counters"]["dram_write_sectors"], 125);
    let [read, written] = [&launch["allocations"][0], &launch["allocations"][1]];
    assert_eq!((&read["name"], &written["name"]), (&"a".into(), &"b".into()));
    assert_eq!((&read["size"], &read["load_bytes"], &read["store_bytes"]), (&4000.into(), &3996.into(), &0.into()));
    assert_eq!((&read["load_sectors"], &read["distinct_read_sectors"]), (&125.into(), &125.into()));
    assert_eq!((&read["distinct_read_bytes"], &read["distinct_written_bytes"]), (&3996.into(), &0.into()));
    assert_eq!((&written["store_bytes"], &written["load_bytes"]), (&3996.into(), &0.into()));
    assert_eq!((&written["store_sectors"], &written["distinct_written_sectors"]), (&125.into(), &125.into()));
    // Told once.
    assert_eq!(counted()["launches"], serde_json::json!([]));
}

#[test]
#[ignore = "run by traffic_is_counted_by_allocation"]
fn traffic_of_a_small_cache() {
    let context = own_context();
    let stream = context.default_stream();
    counted();
    let (add, threads) = (kernel(&context, "add"), 1024u32);
    let mut data = stream.alloc_zeros::<u32>(threads as usize).unwrap();
    unsafe { stream.launch_builder(&add).arg(&mut data).arg(&threads).launch(shape(1, threads)) }.unwrap();
    stream.synchronize().unwrap();
    let launch = &counted()["launches"][0];
    // Each sector is read, changed and replaced by others; no other launch is seen.
    assert_eq!((&launch["l2_simulated"], &launch["counters"]["dram_read_sectors"]), (&true.into(), &128.into()));
    assert_eq!(launch["counters"]["dram_write_sectors"], 128);
}

#[test]
fn a_sweep_finds_what_depends_on_the_schedule() {
    let sweep = [("CUDA_SIM_SWEEP", "4")];
    let findings = child("depends", &sweep);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    for part in ["depends on the schedule", "kernel last", "allocation"] {
        assert!(findings[0].contains(part), "{part}: {}", findings[0]);
    }
    assert_eq!(child("does_not_depend", &sweep), [""; 0]);
}

#[test]
#[ignore = "run by a_sweep_finds_what_depends_on_the_schedule"]
fn depends() {
    let context = own_context();
    let stream = context.new_stream().unwrap();
    let last = kernel(&context, "last");
    let mut data = stream.alloc_zeros::<u32>(1).unwrap();
    unsafe { stream.launch_builder(&last).arg(&mut data).launch(shape(64, 1)) }.unwrap();
    assert_eq!(stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    std::mem::forget((data, context));
}

#[test]
#[ignore = "run by a_sweep_finds_what_depends_on_the_schedule"]
fn does_not_depend() {
    let context = own_context();
    let stream = context.new_stream().unwrap();
    let mut data = stream.alloc_zeros::<u32>(1).unwrap();
    let (count, sum) = (kernel(&context, "count"), kernel(&context, "sum"));
    unsafe { stream.launch_builder(&count).arg(&mut data).launch(shape(8, 64)) }.unwrap();
    // A launch under four schedules counts once.
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [512]);
    let mut total = stream.alloc_zeros::<f32>(1).unwrap();
    // Float atomics are not compared: their order shows in the last bits.
    unsafe { stream.launch_builder(&sum).arg(&mut total).launch(shape(64, 64)) }.unwrap();
    let total = stream.clone_dtoh(&total).unwrap()[0];
    assert!((total - 409.6).abs() < 0.1, "{total}");
}

#[test]
fn failures_can_be_injected() {
    assert_eq!(child("inject_alloc", &[("CUDA_SIM_FAIL", "alloc=2")]), [""; 0]);
    assert_eq!(child("inject_launch", &[("CUDA_SIM_FAIL", "launch=2")]), [""; 0]);
    assert_eq!(child("inject_lost", &[("CUDA_SIM_FAIL", "lost=1")]).len(), 1);
    assert_eq!(child("inject_sticky", &[("CUDA_SIM_FAIL", "sticky=2")]).len(), 1);
}

/// A kernel that counts its threads, and what it counts in.
fn counting() -> (Arc<CudaContext>, Arc<CudaStream>, CudaFunction, CudaSlice<u32>) {
    let context = own_context();
    let stream = context.default_stream();
    let count = kernel(&context, "count");
    let data = stream.alloc_zeros::<u32>(1).unwrap();
    (context, stream, count, data)
}

#[test]
#[ignore = "run by failures_can_be_injected"]
fn inject_alloc() {
    let context = own_context();
    let stream = context.default_stream();
    let outcomes: Vec<bool> = (0..3).map(|_| stream.alloc_zeros::<u8>(10).is_ok()).collect();
    assert_eq!(outcomes, [true, false, true]);
}

#[test]
#[ignore = "run by failures_can_be_injected"]
fn inject_launch() {
    let (_context, stream, count, mut data) = counting();
    let mut launch = stream.launch_builder(&count);
    launch.arg(&mut data);
    unsafe { launch.launch(shape(1, 32)) }.unwrap();
    let error = unsafe { launch.launch(shape(1, 32)) }.unwrap_err().0;
    assert_eq!(error, CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    unsafe { launch.launch(shape(1, 32)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [64]);
}

#[test]
#[ignore = "run by failures_can_be_injected"]
fn inject_sticky() {
    let (context, stream, count, mut data) = counting();
    let mut launch = stream.launch_builder(&count);
    launch.arg(&mut data);
    unsafe { launch.launch(shape(1, 32)) }.unwrap();
    stream.synchronize().unwrap();
    unsafe { launch.launch(shape(1, 32)) }.unwrap();
    assert_eq!(stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    std::mem::forget((data, context.clone(), count.clone()));
}

#[test]
#[ignore = "run by failures_can_be_injected"]
fn inject_lost() {
    let (context, stream, count, mut data) = counting();
    unsafe { stream.launch_builder(&count).arg(&mut data).launch(shape(1, 32)) }.unwrap();
    assert_eq!(stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_UNKNOWN);
    // Not even a new context.
    assert_eq!(CudaContext::new_non_primary(0, 0).unwrap_err().0, CUresult::CUDA_ERROR_UNKNOWN);
    std::mem::forget((data, context.clone(), count.clone()));
}

#[test]
fn the_device_is_what_the_environment_says() {
    let device = [("CUDA_SIM_CC", "8.0"), ("CUDA_SIM_SMS", "7"), ("CUDA_SIM_MEMORY", "1M")];
    assert_eq!(child("small_ampere", &device), [""; 0]);
    let findings = child("bad_environment", &[("CUDA_SIM_CHECK", "memory")]);
    assert_eq!(findings.len(), 2, "{findings:#?}");
    assert!(findings[0].contains("CUDA_SIM_CHECK=memory"), "{}", findings[0]);
}

#[test]
#[ignore = "run by the_device_is_what_the_environment_says"]
fn small_ampere() {
    let context = own_context();
    assert_eq!(context.compute_capability().unwrap(), (8, 0));
    assert_eq!(context.total_mem().unwrap(), 1 << 20);
    let sms = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    assert_eq!(context.attribute(sms).unwrap(), 7);
    let stream = context.default_stream();
    let most = unsafe { stream.alloc::<u8>(1 << 20) }.unwrap();
    let error = unsafe { stream.alloc::<u8>(1) }.unwrap_err().0;
    assert_eq!(error, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    drop(most);
    unsafe { stream.alloc::<u8>(1) }.unwrap();
}

#[test]
#[ignore = "run by the_device_is_what_the_environment_says"]
fn bad_environment() {
    load();
    assert_eq!(unsafe { sys::cuInit(0) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    let mut count = 0;
    assert_eq!(unsafe { sys::cuDeviceGetCount(&mut count) }, CUresult::CUDA_ERROR_NOT_INITIALIZED);
}

#[test]
fn nothing_works_before_the_driver_is_initialised() {
    assert_eq!(child("uninitialised", &[]).len(), 1);
}

#[test]
#[ignore = "run by nothing_works_before_the_driver_is_initialised"]
fn uninitialised() {
    load();
    let mut count = 0;
    assert_eq!(unsafe { sys::cuDeviceGetCount(&mut count) }, CUresult::CUDA_ERROR_NOT_INITIALIZED);
    unsafe { ok(sys::cuInit(0)) };
    unsafe { ok(sys::cuDeviceGetCount(&mut count)) };
    assert_eq!(count, 1);
}
