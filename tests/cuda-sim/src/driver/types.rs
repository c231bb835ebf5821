//! The structures of the C API, by their layout in CUDA 13.0, and its constants.

use std::ffi::{c_int, c_uint, c_void};

use super::abi::HostPtr;
use super::handles::Handle;

/// `CUdeviceptr`.
pub type DevicePtr = u64;
/// `CUhostFn`.
pub type HostFn = Option<unsafe extern "C" fn(*mut c_void)>;
/// `CUstreamCallback`.
pub type StreamCallback = Option<unsafe extern "C" fn(Handle, u32, *mut c_void)>;
/// `CUoccupancyB2DSize`.
pub type BlockToShared = Option<unsafe extern "C" fn(c_int) -> usize>;

/// Flags and enumerators by the names of the API.
#[allow(missing_docs)]
pub mod flags {
    pub const STREAM_NON_BLOCKING: u32 = 1;
    pub const EVENT_BLOCKING_SYNC: u32 = 1;
    pub const EVENT_DISABLE_TIMING: u32 = 2;
    pub const EVENT_INTERPROCESS: u32 = 4;
    pub const EVENT_EXTERNAL: u32 = 1;
    pub const CTX_FLAGS_MASK: u32 = 0xff;
    pub const MEMHOST_FLAGS: u32 = 7;
    pub const MEMHOST_REGISTER_FLAGS: u32 = 15;
    pub const ATTACH_GLOBAL: u32 = 1;
    pub const ATTACH_HOST: u32 = 2;
    pub const CAPTURE_GLOBAL: u32 = 0;
    pub const CAPTURE_THREAD_LOCAL: u32 = 1;
    pub const CAPTURE_RELAXED: u32 = 2;
    pub const CAPTURE_STATUS_NONE: u32 = 0;
    pub const CAPTURE_STATUS_ACTIVE: u32 = 1;
    pub const CAPTURE_STATUS_INVALIDATED: u32 = 2;
    pub const LOCATION_DEVICE: u32 = 1;
    pub const ALLOCATION_PINNED: u32 = 1;
    pub const MEMORY_HOST: u32 = 1;
    pub const MEMORY_DEVICE: u32 = 2;
    pub const MEMORY_ARRAY: u32 = 3;
    pub const MEMORY_UNIFIED: u32 = 4;
    pub const GRAPH_AUTO_FREE_ON_LAUNCH: u64 = 1;
    pub const GRAPH_UPLOAD: u64 = 2;
    pub const GRAPH_DEVICE_LAUNCH: u64 = 4;
    pub const GRAPH_USE_NODE_PRIORITY: u64 = 8;
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Memcpy2d {
    pub src_x: usize,
    pub src_y: usize,
    pub src_type: u32,
    pub src_host: HostPtr,
    pub src_device: DevicePtr,
    pub src_array: usize,
    pub src_pitch: usize,
    pub dst_x: usize,
    pub dst_y: usize,
    pub dst_type: u32,
    pub dst_host: HostPtr,
    pub dst_device: DevicePtr,
    pub dst_array: usize,
    pub dst_pitch: usize,
    pub width: usize,
    pub height: usize,
}

/// `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Memcpy3d {
    pub src_x: usize,
    pub src_y: usize,
    pub src_z: usize,
    pub src_lod: usize,
    pub src_type: u32,
    pub src_host: HostPtr,
    pub src_device: DevicePtr,
    pub src_array: usize,
    pub reserved0: usize,
    pub src_pitch: usize,
    pub src_height: usize,
    pub dst_x: usize,
    pub dst_y: usize,
    pub dst_z: usize,
    pub dst_lod: usize,
    pub dst_type: u32,
    pub dst_host: HostPtr,
    pub dst_device: DevicePtr,
    pub dst_array: usize,
    pub reserved1: usize,
    pub dst_pitch: usize,
    pub dst_height: usize,
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MemsetParams {
    pub dst: DevicePtr,
    pub pitch: usize,
    pub value: u32,
    pub element_size: u32,
    pub width: usize,
    pub height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct HostParams {
    pub function: HostFn,
    pub data: usize,
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct KernelParams {
    pub function: Handle,
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared: c_uint,
    pub params: HostPtr,
    pub extra: HostPtr,
    pub kernel: Handle,
    pub context: Handle,
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct LaunchConfig {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared: c_uint,
    pub stream: Handle,
    pub attributes: HostPtr,
    pub attribute_count: c_uint,
}

/// `CUlaunchAttribute`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct LaunchAttribute {
    pub id: u32,
    pub pad: u32,
    pub value: [u32; 16],
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Location {
    pub kind: u32,
    pub id: c_int,
}

/// `CUmemPoolProps`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct PoolProps {
    pub allocation: u32,
    pub handles: u32,
    pub location: Location,
    pub security: usize,
    pub max_size: usize,
    pub usage: u16,
    pub reserved: [u8; 54],
}

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct UpdateResult {
    pub result: u32,
    pub node: Handle,
    pub from: Handle,
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct InstantiateParams {
    pub flags: u64,
    pub stream: Handle,
    pub error_node: Handle,
    pub result: u32,
}

/// `CUgraphEdgeData`: all zero for a full dependency.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct EdgeData {
    pub from_port: u8,
    pub to_port: u8,
    pub kind: u8,
    pub reserved: [u8; 5],
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::driver::sys;
    use std::mem::{align_of, size_of};

    fn same<A, B>(name: &str) {
        assert_eq!((size_of::<A>(), align_of::<A>()), (size_of::<B>(), align_of::<B>()), "{name}");
    }

    #[test]
    fn layouts_are_those_of_the_bindings() {
        same::<Memcpy2d, sys::CUDA_MEMCPY2D>("2d");
        same::<Memcpy3d, sys::CUDA_MEMCPY3D>("3d");
        same::<MemsetParams, sys::CUDA_MEMSET_NODE_PARAMS>("memset");
        same::<HostParams, sys::CUDA_HOST_NODE_PARAMS>("host");
        same::<KernelParams, sys::CUDA_KERNEL_NODE_PARAMS>("kernel");
        same::<LaunchConfig, sys::CUlaunchConfig>("config");
        same::<LaunchAttribute, sys::CUlaunchAttribute>("attribute");
        same::<Location, sys::CUmemLocation>("location");
        same::<PoolProps, sys::CUmemPoolProps>("pool");
        same::<UpdateResult, sys::CUgraphExecUpdateResultInfo>("update");
        same::<InstantiateParams, sys::CUDA_GRAPH_INSTANTIATE_PARAMS>("instantiate");
        same::<EdgeData, sys::CUgraphEdgeData>("edge");
    }
}
