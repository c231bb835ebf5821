//! Streams, events, host functions: what is ordered, and what is not.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUevent_flags, CUresult};
use cudarc::driver::{DevicePtr, PushKernelArg};

use crate::support::{kernel, ok, own_context, plain_stream, shape};

#[test]
fn only_a_wait_orders_two_streams() {
    let (context, first) = plain_stream();
    let second = context.new_stream().unwrap();
    let add = kernel(&context, "add");
    let mut data = first.alloc_zeros::<u32>(32).unwrap();
    first.synchronize().unwrap();
    let mut issue = || unsafe { first.launch_builder(&add).arg(&mut data).arg(&1u32).launch(shape(1, 32)) };
    issue().unwrap();
    let base = data.device_ptr(&first).0;
    let read = || {
        let mut bytes = [0u8; 4];
        unsafe {
            let to = bytes.as_mut_ptr().cast();
            ok(sys::cuMemcpyDtoHAsync_v2(to, base, 4, second.cu_stream()));
        }
        u32::from_le_bytes(bytes)
    };
    // The copy is in another stream: the launch has not run, every time.
    assert_eq!(read(), 0);
    second.join(&first).unwrap();
    assert_eq!(read(), 1);
}

#[test]
fn the_legacy_stream_is_ordered_with_blocking_streams_only() {
    let (context, free) = plain_stream();
    let add = kernel(&context, "add");
    let mut data = free.alloc_zeros::<u32>(32).unwrap();
    free.synchronize().unwrap();
    let mut blocking = std::ptr::null_mut();
    unsafe { ok(sys::cuStreamCreate(&mut blocking, 0)) };
    let legacy = context.default_stream();
    let ordered = unsafe { context.wrap_borrowed_stream(blocking) };
    unsafe { ordered.launch_builder(&add).arg(&mut data).arg(&1u32).launch(shape(1, 32)) }.unwrap();
    assert_eq!(legacy.clone_dtoh(&data).unwrap(), [1; 32]);
    unsafe { free.launch_builder(&add).arg(&mut data).arg(&1u32).launch(shape(1, 32)) }.unwrap();
    assert_eq!(legacy.clone_dtoh(&data).unwrap(), [1; 32]);
    context.synchronize().unwrap();
    assert_eq!(legacy.clone_dtoh(&data).unwrap(), [2; 32]);
    unsafe { ok(sys::cuStreamDestroy_v2(blocking)) };
}

#[test]
fn events_are_reached_in_the_order_of_their_stream() {
    let context = own_context();
    let stream = context.new_stream().unwrap();
    let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let never = context.new_event(None).unwrap();
    assert_eq!(never.try_is_complete(), Ok(true));
    let data = stream.alloc_zeros::<u8>(1 << 20).unwrap();
    let start = stream.record_event(timed).unwrap();
    let copy = stream.clone_dtod(&data).unwrap();
    let end = stream.record_event(timed).unwrap();
    // It says that it is not ready once, as a device would.
    assert_eq!(end.try_is_complete(), Ok(false));
    assert_eq!(end.try_is_complete(), Ok(true));
    assert_eq!(start.try_is_complete(), Ok(true));
    let (forward, back) = (start.elapsed_ms(&end).unwrap(), end.elapsed_ms(&start).unwrap());
    assert!(forward > 0.0 && back == -forward, "{forward} {back}");
    let untimed = stream.record_event(None).unwrap();
    assert_eq!(start.elapsed_ms(&untimed).unwrap_err().0, CUresult::CUDA_ERROR_INVALID_HANDLE);
    drop(copy);
}

#[test]
fn host_functions_run_in_order_and_make_no_calls() {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    static RESULT: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn look(data: *mut c_void) {
        SEEN.store(unsafe { data.cast::<u32>().read() }, Ordering::Relaxed);
        let mut count = 0;
        RESULT.store(unsafe { sys::cuDeviceGetCount(&mut count) } as u32, Ordering::Relaxed);
    }
    let (context, stream) = plain_stream();
    let source = stream.clone_htod(&[77u32]).unwrap();
    let pinned = unsafe { context.alloc_pinned::<u32>(1) }.unwrap();
    let host = pinned.as_ptr().unwrap().cast_mut();
    unsafe {
        ok(sys::cuMemcpyDtoHAsync_v2(host.cast(), source.device_ptr(&stream).0, 4, stream.cu_stream()));
        ok(sys::cuLaunchHostFunc(stream.cu_stream(), Some(look), host.cast()));
    }
    assert_eq!(SEEN.load(Ordering::Relaxed), 0);
    stream.synchronize().unwrap();
    assert_eq!(SEEN.load(Ordering::Relaxed), 77);
    assert_eq!(RESULT.load(Ordering::Relaxed), CUresult::CUDA_ERROR_NOT_PERMITTED as u32);
}

#[test]
fn a_host_function_may_wait_for_another_thread_that_makes_calls() {
    use std::sync::mpsc::{Receiver, channel};
    unsafe extern "C" fn wait(data: *mut c_void) {
        let receiver = unsafe { Box::from_raw(data.cast::<Receiver<()>>()) };
        receiver.recv().unwrap();
    }
    let (context, stream) = plain_stream();
    let (sender, receiver) = channel();
    let receiver = Box::into_raw(Box::new(receiver));
    unsafe { ok(sys::cuLaunchHostFunc(stream.cu_stream(), Some(wait), receiver.cast())) };
    let other = context.new_stream().unwrap();
    let thread = std::thread::spawn(move || {
        let data = other.clone_htod(&[5u32]).unwrap();
        assert_eq!(other.clone_dtoh(&data).unwrap(), [5]);
        sender.send(()).unwrap();
        drop(data);
    });
    stream.synchronize().unwrap();
    thread.join().unwrap();
}

#[test]
fn threads_share_a_context() {
    let context = own_context();
    let add = kernel(&context, "add");
    let threads: Vec<_> = (0..4u32)
        .map(|i| {
            let (context, add) = (context.clone(), add.clone());
            std::thread::spawn(move || {
                let stream = context.new_stream().unwrap();
                let mut data = stream.clone_htod(&vec![i; 256]).unwrap();
                for _ in 0..10 {
                    unsafe { stream.launch_builder(&add).arg(&mut data).arg(&i).launch(shape(2, 128)) }.unwrap();
                }
                assert_eq!(stream.clone_dtoh(&data).unwrap(), vec![11 * i; 256]);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn other_threads_go_on_while_a_kernel_runs() {
    let context = own_context();
    let (long, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let (lasts, add) = (kernel(&context, "lasts"), kernel(&context, "add"));
    let mut time = long.alloc_zeros::<u64>(1).unwrap();
    let mut data = other.alloc_zeros::<u32>(32).unwrap();
    long.synchronize().unwrap();
    other.synchronize().unwrap();
    unsafe { long.launch_builder(&lasts).arg(&mut time).launch(shape(1, 1)) }.unwrap();
    let event = long.record_event(None).unwrap();
    let over = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            context.bind_to_thread().unwrap();
            long.synchronize().unwrap();
            over.store(1, Ordering::SeqCst);
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        context.mem_get_info().unwrap();
        // A watchdog that asks again and again is not kept waiting.
        (0..3).for_each(|_| assert!(!event.is_complete()));
        unsafe { other.launch_builder(&add).arg(&mut data).arg(&1u32).launch(shape(1, 32)) }.unwrap();
        assert_eq!(other.clone_dtoh(&data).unwrap(), [1; 32]);
        assert_eq!(over.load(Ordering::SeqCst), 0, "the calls waited for the kernel");
    });
    assert!(event.is_complete());
}

#[test]
fn the_legacy_stream_waits_for_what_a_destroyed_stream_was_given() {
    let (context, free) = plain_stream();
    let add = kernel(&context, "add");
    let mut data = free.alloc_zeros::<u32>(32).unwrap();
    free.synchronize().unwrap();
    let mut blocking = std::ptr::null_mut();
    unsafe {
        ok(sys::cuStreamCreate(&mut blocking, 0));
        let stream = context.wrap_borrowed_stream(blocking);
        stream.launch_builder(&add).arg(&mut data).arg(&1u32).launch(shape(1, 32)).unwrap();
        ok(sys::cuStreamDestroy_v2(blocking));
    }
    assert_eq!(context.default_stream().clone_dtoh(&data).unwrap(), [1; 32]);
}

#[test]
fn asking_does_not_wait_for_host_functions() {
    use std::sync::mpsc::{Receiver, channel};
    unsafe extern "C" fn wait(data: *mut c_void) {
        let receiver = unsafe { Box::from_raw(data.cast::<Receiver<()>>()) };
        receiver.recv().unwrap();
    }
    let (_context, stream) = plain_stream();
    let (sender, receiver) = channel();
    let receiver = Box::into_raw(Box::new(receiver));
    unsafe { ok(sys::cuLaunchHostFunc(stream.cu_stream(), Some(wait), receiver.cast())) };
    let event = stream.record_event(None).unwrap();
    for _ in 0..5 {
        assert_eq!(event.try_is_complete(), Ok(false));
        assert_eq!(unsafe { sys::cuStreamQuery(stream.cu_stream()) }, CUresult::CUDA_ERROR_NOT_READY);
    }
    sender.send(()).unwrap();
    event.synchronize().unwrap();
    assert_eq!(event.try_is_complete(), Ok(true));
}
