//! Memory and copies.

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{DevicePtr, result};

use crate::support::{context, ok, own_context};

#[test]
fn copies_go_in_all_directions() {
    let context = own_context();
    let stream = context.default_stream();
    let data: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let a = stream.clone_htod(&data).unwrap();
    let mut b = stream.alloc_zeros::<f32>(1000).unwrap();
    stream.memcpy_dtod(&a.slice(10..20), &mut b.slice_mut(500..510)).unwrap();
    let back = stream.clone_dtoh(&b).unwrap();
    for (i, value) in back.iter().enumerate() {
        let expected = if (500..510).contains(&i) { (i - 490) as f32 } else { 0.0 };
        assert_eq!(*value, expected, "{i}");
    }
    assert_eq!(stream.clone_dtoh(&a).unwrap(), data);
}

#[test]
fn fills_are_of_every_width() {
    let context = own_context();
    let stream = context.default_stream();
    let memory = stream.alloc_zeros::<u8>(64).unwrap();
    let (base, _) = memory.device_ptr(&stream);
    unsafe {
        ok(sys::cuMemsetD8_v2(base, 0x11, 4));
        ok(sys::cuMemsetD16_v2(base + 4, 0x2233, 3));
        ok(sys::cuMemsetD32Async(base + 12, 0x4455_6677, 2, std::ptr::null_mut()));
        // Two rows of three 16-bit values, 16 bytes apart.
        ok(sys::cuMemsetD2D16_v2(base + 24, 16, 0x8899, 3, 2));
    }
    let bytes = stream.clone_dtoh(&memory).unwrap();
    assert_eq!(bytes[..4], [0x11; 4]);
    assert_eq!(bytes[4..12], [0x33, 0x22, 0x33, 0x22, 0x33, 0x22, 0, 0]);
    assert_eq!(bytes[12..20], [0x77, 0x66, 0x55, 0x44, 0x77, 0x66, 0x55, 0x44]);
    assert_eq!(bytes[24..32], [0x99, 0x88, 0x99, 0x88, 0x99, 0x88, 0, 0]);
    assert_eq!(bytes[40..48], [0x99, 0x88, 0x99, 0x88, 0x99, 0x88, 0, 0]);
}

#[test]
fn a_matrix_is_copied_by_its_pitches() {
    let context = own_context();
    let stream = context.default_stream();
    let host: Vec<u8> = (0..60).collect();
    let device = stream.alloc_zeros::<u8>(100).unwrap();
    let (base, _) = device.device_ptr(&stream);
    // Rows of 10 bytes in the host's matrix; columns 2 to 5 of rows 1 to 3 go to column 3 of rows 0 to 2 of 20 bytes.
    let mut copy = sys::CUDA_MEMCPY2D {
        srcXInBytes: 2,
        srcY: 1,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: host.as_ptr().cast(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        srcPitch: 10,
        dstXInBytes: 3,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: base,
        dstArray: std::ptr::null_mut(),
        dstPitch: 20,
        WidthInBytes: 4,
        Height: 3,
    };
    unsafe { ok(sys::cuMemcpy2D_v2(&copy)) };
    let bytes = stream.clone_dtoh(&device).unwrap();
    for row in 0..3 {
        let start = 12 + 10 * row as u8;
        assert_eq!(bytes[20 * row + 2..20 * row + 8], [0, start, start + 1, start + 2, start + 3, 0]);
    }
    assert!(bytes[60..].iter().all(|byte| *byte == 0));
    // One more row does not fit.
    (copy.dstY, copy.Height) = (2, 4);
    assert_eq!(unsafe { sys::cuMemcpy2D_v2(&copy) }, CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn pageable_memory_is_taken_at_the_call_and_pinned_memory_when_the_stream_gets_there() {
    let context = own_context();
    let stream = context.new_stream().unwrap();
    unsafe { context.disable_event_tracking() };
    let (a, b) = (stream.alloc_zeros::<u32>(4).unwrap(), stream.alloc_zeros::<u32>(4).unwrap());
    let (a_base, b_base) = (a.device_ptr(&stream).0, b.device_ptr(&stream).0);
    let mut pageable = vec![1u32; 4];
    let mut pinned = unsafe { context.alloc_pinned::<u32>(4) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(1);
    unsafe {
        result::memcpy_htod_async(a_base, &pageable, stream.cu_stream()).unwrap();
        let source = std::slice::from_raw_parts(pinned.as_ptr().unwrap(), 4);
        result::memcpy_htod_async(b_base, source, stream.cu_stream()).unwrap();
        // Too early for the pinned memory: the bug shows.
        pageable.fill(2);
        pinned.as_mut_ptr().unwrap().write(2);
    }
    assert_eq!(stream.clone_dtoh(&a).unwrap(), [1; 4]);
    assert_eq!(stream.clone_dtoh(&b).unwrap(), [2, 1, 1, 1]);
}

#[test]
fn managed_and_pinned_memory_have_one_address() {
    let context = own_context();
    let mut managed = unsafe { context.alloc_unified::<u32>(16, true) }.unwrap();
    managed.as_mut_slice().unwrap().fill(3);
    let stream = context.default_stream();
    let copy = stream.clone_dtod(&managed).unwrap();
    assert_eq!(stream.clone_dtoh(&copy).unwrap(), [3; 16]);
    let pinned = unsafe { context.alloc_pinned::<u32>(16) }.unwrap();
    let host = pinned.as_ptr().unwrap();
    let mut device = 0;
    unsafe { ok(sys::cuMemHostGetDevicePointer_v2(&mut device, host.cast_mut().cast(), 0)) };
    assert_eq!(device, host as u64);
    let mut kind = 0u32;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    unsafe { ok(sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, device)) };
    assert_eq!(kind, 1);
}

#[test]
fn memory_that_is_full_makes_room_for_what_streams_free() {
    let context = own_context();
    let stream = context.new_stream().unwrap();
    let total = context.mem_get_info().unwrap().1;
    for _ in 0..3 {
        // Freed in the stream, which nothing waits for.
        drop(unsafe { stream.alloc::<u8>(total / 5 * 3) }.unwrap());
    }
    assert!(unsafe { stream.alloc::<u8>(total + 1) }.is_err());
}

#[test]
fn pools_count_what_is_taken() {
    let context = context();
    context.bind_to_thread().unwrap();
    let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
    properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    unsafe {
        let pool = result::mem_pool::create(&properties).unwrap();
        let stream = context.default_stream();
        let memory = result::mem_pool::alloc_async(pool, 1000, stream.cu_stream()).unwrap();
        let used = |attribute| {
            let mut value = 0u64;
            result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast()).unwrap();
            value
        };
        use sys::CUmemPool_attribute as Attribute;
        assert_eq!(used(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 1000);
        result::free_async(memory, stream.cu_stream()).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(used(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 0);
        assert_eq!(used(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH), 1000);
        result::mem_pool::destroy(pool).unwrap();
        assert!(result::mem_pool::alloc_async(pool, 1000, stream.cu_stream()).is_err());
    }
}

#[test]
fn memory_can_be_freed_by_what_a_thread_destroys_last() {
    use std::cell::Cell;
    use std::sync::mpsc::{Sender, channel};

    /// As an object of the whole program does that owns memory.
    struct Owner(Cell<Option<(u64, Sender<CUresult>)>>);

    impl Drop for Owner {
        fn drop(&mut self) {
            let (address, told) = self.0.take().unwrap();
            told.send(unsafe { sys::cuMemFree_v2(address) }).unwrap();
        }
    }

    thread_local! {
        static OWNER: Owner = const { Owner(Cell::new(None)) };
    }

    let context = own_context();
    let (told, result) = channel();
    let of_thread = context.clone();
    let thread = std::thread::spawn(move || {
        // It is there before the driver has anything of the thread, so that it is destroyed after that.
        OWNER.with(|owner| owner.0.set(None));
        of_thread.bind_to_thread().unwrap();
        let mut address = 0;
        ok(unsafe { sys::cuMemAlloc_v2(&mut address, 64) });
        OWNER.with(|owner| owner.0.set(Some((address, told))));
    });
    thread.join().unwrap();
    assert_eq!(result.recv().unwrap(), CUresult::CUDA_SUCCESS);
    drop(context);
}
