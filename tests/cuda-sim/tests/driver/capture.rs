//! Stream capture and its rules.

use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUresult, CUstreamCaptureStatus};
use cudarc::driver::{DevicePtr, PushKernelArg};

use crate::support::{THREAD_LOCAL, kernel, ok, own_context, plain_stream, shape};

const NO_FLAGS: CUgraphInstantiate_flags = CUgraphInstantiate_flags(0);

#[test]
fn a_captured_graph_runs_as_often_as_it_is_launched() {
    let (context, stream) = plain_stream();
    let add = kernel(&context, "add");
    let mut data = stream.alloc_zeros::<u32>(64).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(THREAD_LOCAL).unwrap();
    assert_eq!(stream.capture_status().unwrap(), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    unsafe { stream.launch_builder(&add).arg(&mut data).arg(&3u32).launch(shape(2, 32)) }.unwrap();
    unsafe { stream.launch_builder(&add).arg(&mut data).arg(&4u32).launch(shape(1, 32)) }.unwrap();
    let graph = stream.end_capture(NO_FLAGS).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [0; 64]);
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    let expected: Vec<u32> = [[21; 32], [9; 32]].concat();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), expected);
}

#[test]
fn a_capture_forks_and_joins_by_events() {
    let (context, stream) = plain_stream();
    let add = kernel(&context, "add");
    let side = context.new_stream().unwrap();
    let mut a = stream.alloc_zeros::<u32>(32).unwrap();
    let mut b = stream.alloc_zeros::<u32>(32).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(THREAD_LOCAL).unwrap();
    stream.memset_zeros(&mut a).unwrap();
    side.join(&stream).unwrap();
    unsafe { side.launch_builder(&add).arg(&mut b).arg(&1u32).launch(shape(1, 32)) }.unwrap();
    unsafe { stream.launch_builder(&add).arg(&mut a).arg(&2u32).launch(shape(1, 32)) }.unwrap();
    stream.join(&side).unwrap();
    stream.memcpy_dtod(&b, &mut a.slice_mut(..)).unwrap();
    let graph = stream.end_capture(NO_FLAGS).unwrap().unwrap();
    let (mut nodes, mut edges) = (0, 0);
    unsafe {
        ok(sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut nodes));
        let null = std::ptr::null_mut();
        ok(sys::cuGraphGetEdges_v2(graph.cu_graph(), null, null, std::ptr::null_mut(), &mut edges));
    }
    assert_eq!((nodes, edges), (4, 4));
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&a).unwrap(), [2; 32]);
}

#[test]
fn work_that_is_not_joined_spoils_the_capture() {
    let (context, stream) = plain_stream();
    let side = context.new_stream().unwrap();
    let mut data = stream.alloc_zeros::<u32>(32).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(THREAD_LOCAL).unwrap();
    side.join(&stream).unwrap();
    side.memset_zeros(&mut data).unwrap();
    let error = stream.end_capture(NO_FLAGS).err().unwrap().0;
    assert_eq!(error, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    let none = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    assert_eq!((stream.capture_status().unwrap(), side.capture_status().unwrap()), (none, none));
}

#[test]
fn waiting_for_work_outside_spoils_the_capture() {
    let (context, stream) = plain_stream();
    let other = context.new_stream().unwrap();
    let outside = other.record_event(None).unwrap();
    stream.begin_capture(THREAD_LOCAL).unwrap();
    assert_eq!(stream.wait(&outside).unwrap_err().0, CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    let invalidated = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED;
    assert_eq!(stream.capture_status().unwrap(), invalidated);
    let error = stream.end_capture(NO_FLAGS).err().unwrap().0;
    assert_eq!(error, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn what_waits_or_allocates_spoils_the_capture() {
    type Call = fn(&std::sync::Arc<cudarc::driver::CudaStream>) -> CUresult;
    let calls: [(&str, Call, CUresult); 6] = [
        (
            "synchronize",
            |stream| unsafe { sys::cuStreamSynchronize(stream.cu_stream()) },
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ),
        (
            "query",
            |stream| unsafe { sys::cuStreamQuery(stream.cu_stream()) },
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ),
        ("context", |_| unsafe { sys::cuCtxSynchronize() }, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        (
            "allocate",
            |_| unsafe {
                let mut address = 0;
                sys::cuMemAlloc_v2(&mut address, 64)
            },
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ),
        (
            "captured event",
            |stream| unsafe {
                let event = stream.context().new_event(None).unwrap();
                event.record(stream).unwrap();
                sys::cuEventSynchronize(event.cu_event())
            },
            CUresult::CUDA_ERROR_CAPTURED_EVENT,
        ),
        (
            "other stream",
            |stream| unsafe {
                let other = stream.fork().unwrap();
                let mut graph = std::ptr::null_mut();
                sys::cuStreamEndCapture(other.cu_stream(), &mut graph)
            },
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
        ),
    ];
    for (name, call, expected) in calls {
        let (_context, stream) = plain_stream();
        stream.begin_capture(THREAD_LOCAL).unwrap();
        assert_eq!(call(&stream), expected, "{name}");
        let error = stream.end_capture(NO_FLAGS).err().unwrap().0;
        assert_eq!(error, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "{name}");
    }
}

#[test]
fn the_default_stream_stays_out_of_captures() {
    let context = own_context();
    unsafe { context.disable_event_tracking() };
    let legacy = context.default_stream();
    assert_eq!(legacy.begin_capture(THREAD_LOCAL).unwrap_err().0, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let data = legacy.alloc_zeros::<u32>(1).unwrap();
    let mut blocking = std::ptr::null_mut();
    unsafe {
        ok(sys::cuStreamCreate(&mut blocking, 0));
        let stream = context.wrap_borrowed_stream(blocking);
        stream.begin_capture(THREAD_LOCAL).unwrap();
        let implicit = sys::cuMemsetD32Async(data.device_ptr(&legacy).0, 0, 1, std::ptr::null_mut());
        assert_eq!(implicit, CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        assert!(stream.end_capture(NO_FLAGS).is_err());
        ok(sys::cuStreamDestroy_v2(blocking));
    }
}

#[test]
fn a_graph_allocates_memory_of_its_own() {
    let (context, stream) = plain_stream();
    let add = kernel(&context, "add");
    let mut out = stream.alloc_zeros::<u32>(32).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(THREAD_LOCAL).unwrap();
    let mut scratch = stream.alloc_zeros::<u32>(32).unwrap();
    unsafe { stream.launch_builder(&add).arg(&mut scratch).arg(&6u32).launch(shape(1, 32)) }.unwrap();
    stream.memcpy_dtod(&scratch, &mut out).unwrap();
    drop(scratch);
    let graph = stream.end_capture(NO_FLAGS).unwrap().unwrap();
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [6; 32]);
    drop(graph);
}
