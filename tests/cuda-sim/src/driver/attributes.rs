//! `cuDeviceGetAttribute`.

use std::ffi::c_int;

use super::abi::{Out, entries};
use super::context::device;
use super::errors::Error;
use super::state::lock;
use crate::device::{BLOCK_DIM, Device, GRID_DIM, REGISTERS, RESERVED_SHARED, THREADS_PER_BLOCK};

/// The highest attribute of CUDA 13.0.
const LAST: u32 = 147;

/// The value of an attribute, by its number in `CUdevice_attribute`. What is not modelled is 0: textures, peers, sharing
/// between processes, virtual memory, and the like are not there.
fn value(device: &Device, attribute: u32) -> Option<u32> {
    let hopper = (device.capability >= (9, 0)) as u32;
    Some(match attribute {
        1 => THREADS_PER_BLOCK,
        2..=4 => BLOCK_DIM[attribute as usize - 2],
        5..=7 => GRID_DIM[attribute as usize - 5],
        // MAX_SHARED_MEMORY_PER_BLOCK, TOTAL_CONSTANT_MEMORY, WARP_SIZE, MAX_PITCH, MAX_REGISTERS_PER_BLOCK
        8 => device.shared_per_block,
        9 => 64 << 10,
        10 => 32,
        11 => i32::MAX as u32,
        12 => REGISTERS,
        // CLOCK_RATE and MEMORY_CLOCK_RATE in kHz: nominal, nothing is timed by them.
        13 | 36 => 1_000_000,
        // TEXTURE_ALIGNMENT, GPU_OVERLAP
        14 => 512,
        15 => 1,
        16 => device.sms,
        // CAN_MAP_HOST_MEMORY
        19 => 1,
        // SURFACE_ALIGNMENT, CONCURRENT_KERNELS
        30 => 512,
        31 => 1,
        // GLOBAL_MEMORY_BUS_WIDTH, L2_CACHE_SIZE, MAX_THREADS_PER_MULTIPROCESSOR, ASYNC_ENGINE_COUNT, UNIFIED_ADDRESSING
        37 => 512,
        38 => device.l2,
        39 => device.threads_per_sm,
        40 => 1,
        41 => 1,
        // TEXTURE_PITCH_ALIGNMENT
        51 => 32,
        75 => device.capability.0,
        76 => device.capability.1,
        // STREAM_PRIORITIES, GLOBAL_L1_CACHE, LOCAL_L1_CACHE
        78..=80 => 1,
        81 => device.shared_per_sm,
        82 => REGISTERS,
        // MANAGED_MEMORY
        83 => 1,
        // SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO
        87 => 2,
        // CONCURRENT_MANAGED_ACCESS, COMPUTE_PREEMPTION, CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
        89..=91 => 1,
        // COOPERATIVE_LAUNCH
        95 => 1,
        97 => device.shared_per_block_optin,
        // HOST_REGISTER_SUPPORTED
        99 => 1,
        106 => device.blocks_per_sm,
        111 => RESERVED_SHARED,
        // MEMORY_POOLS_SUPPORTED
        115 => 1,
        // CLUSTER_LAUNCH, TENSOR_MAP_ACCESS, UNIFIED_FUNCTION_POINTERS
        120 => hopper,
        127 => hopper,
        129 => 1,
        // MEM_SYNC_DOMAIN_COUNT
        126 => 1,
        0 => return None,
        known if known <= LAST => 0,
        _ => return None,
    })
}

entries! {
    /// What the device has and can.
    fn cuDeviceGetAttribute(out: Out<c_int>, attribute: u32, number: c_int) {
        let driver = lock()?;
        out.check()?;
        device(number)?;
        let value = value(&driver.config.device, attribute);
        out.set(value.ok_or_else(|| Error::invalid(format!("device attribute {attribute}")))? as c_int)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_shows() {
        let ada = Device::of((8, 9)).unwrap();
        let of = |attribute| value(&ada, attribute).unwrap();
        assert_eq!((of(75), of(76)), (8, 9));
        assert_eq!((of(8), of(97), of(81), of(111)), (48 << 10, 99 << 10, 100 << 10, 1024));
        assert_eq!((of(39), of(106), of(10), of(115), of(127)), (1536, 24, 32, 1, 0));
        assert_eq!(value(&Device::default(), 127), Some(1));
        assert_eq!((value(&ada, 0), value(&ada, LAST + 1)), (None, None));
    }
}
