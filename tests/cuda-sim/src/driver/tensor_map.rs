//! Tensor maps for TMA copies.

use super::abi::{In, Out, entries};
use super::errors::{Error, Result};
use super::state::lock;
use super::types::DevicePtr;
use crate::isa::tensor_map::{self, Request, TensorMap};

impl From<tensor_map::Error> for Error {
    fn from(error: tensor_map::Error) -> Error {
        match error {
            tensor_map::Error::Invalid(text) => Error::invalid(text),
            tensor_map::Error::Unsupported(what) => Error::NotSupported(what.into()),
        }
    }
}

/// Devices before compute capability 9.0 have no TMA.
fn check_device() -> Result<()> {
    let driver = lock()?;
    if driver.config.device.capability < (9, 0) {
        return Err(Error::NotSupported("a tensor map on a device before compute capability 9.0".into()));
    }
    Ok(())
}

entries! {
    /// Encodes how a tensor lies in memory and the tile that is copied. The 128 bytes are the simulator's own.
    fn cuTensorMapEncodeTiled(
        out: Out<[u8; tensor_map::BYTES]>, data_type: u32, rank: u32, address: DevicePtr, dims: In<u64>,
        strides: In<u64>, tile: In<u32>, element_strides: In<u32>, interleave: u32, swizzle: u32, promotion: u32,
        fill: u32,
    ) {
        out.check()?;
        check_device()?;
        let rank = rank as usize;
        if rank == 0 || rank > tensor_map::MAX_RANK {
            return Err(Error::invalid(format!("a tensor of rank {rank}")));
        }
        let map = TensorMap::tiled(&Request {
            data_type,
            address,
            dims: &dims.list(rank)?,
            strides: &strides.list(rank - 1)?,
            tile: &tile.list(rank)?,
            element_strides: &element_strides.list(rank)?,
            interleave,
            swizzle,
            promotion,
            fill,
        })?;
        out.set(map.encode())
    }

    /// Changes the address of a tensor map.
    fn cuTensorMapReplaceAddress(map: Out<[u8; tensor_map::BYTES]>, address: DevicePtr) {
        check_device()?;
        let mut decoded = TensorMap::decode(&map.read()?)?;
        if !address.is_multiple_of(16) {
            return Err(Error::invalid(format!("{address:#x} is not a multiple of 16")));
        }
        decoded.address = address;
        map.set(decoded.encode())
    }
}
