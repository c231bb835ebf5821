//! A launch as it was asked for: shape, parameters, and whether the device can do it.

use std::sync::Arc;

use super::abi::HostPtr;
use super::errors::{Error, Result};
use super::function::Function;
use super::handles::Handle;
use super::occupancy;
use super::state::Driver;
use crate::device::{BLOCK_DIM, Device, GRID_DIM, THREADS_PER_BLOCK};
use crate::program::{Entry, Program};

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; zeros without one.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Whether all blocks must be resident at once.
    pub cooperative: bool,
}

/// A launch that was checked.
pub struct KernelCall {
    /// The kernel.
    pub function: Handle,
    /// Its name.
    pub name: String,
    /// Its module's code, which a pending launch keeps.
    pub program: Arc<Program>,
    /// What the module says of it.
    pub entry: Arc<Entry>,
    /// Whether it adds floats atomically.
    pub float_atomics: bool,
    /// The shape.
    pub shape: Shape,
    /// The parameter space.
    pub params: Vec<u8>,
    /// Where each parameter is in `params`, for programs that ask for it.
    pub pointers: Vec<usize>,
}

/// Ends of the list `extra` of `cuLaunchKernel`, and what it may hold.
const PARAM_END: usize = 0;
const PARAM_BUFFER: usize = 1;
const PARAM_BUFFER_SIZE: usize = 2;

/// Blocks of a cluster that every device with clusters can do, and with `NON_PORTABLE_CLUSTER_SIZE_ALLOWED`.
const PORTABLE_CLUSTER: u32 = 8;
const LARGEST_CLUSTER: u32 = 16;

impl KernelCall {
    /// Checks a launch and takes its parameters.
    pub fn new(driver: &Driver, handle: Handle, shape: Shape, params: HostPtr, extra: HostPtr) -> Result<KernelCall> {
        let function = driver.functions.get(handle)?;
        let bytes = gather(function, params, extra)?;
        KernelCall::with_bytes(driver, handle, shape, bytes)
    }

    /// Checks a launch whose parameters were taken before.
    pub fn with_bytes(driver: &Driver, handle: Handle, mut shape: Shape, params: Vec<u8>) -> Result<KernelCall> {
        let function = driver.functions.get(handle)?;
        if shape.cluster == [0; 3] {
            shape.cluster = function.cluster;
        }
        check(&driver.config.device, function, &shape)?;
        let base = params.as_ptr() as usize;
        Ok(KernelCall {
            function: handle,
            name: function.name().to_string(),
            program: function.program.clone(),
            entry: function.entry.clone(),
            float_atomics: function.float_atomics,
            shape,
            pointers: function.entry.params.iter().map(|p| base + p.offset as usize).collect(),
            params,
        })
    }
}

/// Copies the parameters into their space, from pointers to each or from one buffer.
fn gather(function: &Function, params: HostPtr, extra: HostPtr) -> Result<Vec<u8>> {
    let (entry, name) = (&function.entry, function.name());
    let mut bytes = vec![0; entry.param_bytes as usize];
    match (params.0 != 0, extra.0 != 0) {
        (true, true) => return Err(Error::invalid(format!("kernel {name}: parameters given twice"))),
        (true, false) => {
            for (i, param) in entry.params.iter().enumerate() {
                let source = params.pointer_at(i)?;
                if source.0 == 0 {
                    return Err(Error::invalid(format!("kernel {name}: the pointer to parameter {i} is null")));
                }
                let (offset, size) = (param.offset as usize, param.size as usize);
                let Some(target) = bytes.get_mut(offset..offset + size) else {
                    return Err(Error::invalid(format!("kernel {name}: parameter {i} lies outside its space")));
                };
                source.read(target)?;
            }
        }
        (false, true) => {
            let (buffer, size) = buffer(extra)?;
            if size != bytes.len() {
                let wanted = bytes.len();
                return Err(Error::invalid(format!("kernel {name}: {size} bytes of parameters, not {wanted}")));
            }
            buffer.read(&mut bytes)?;
        }
        (false, false) if !entry.params.is_empty() => {
            let count = entry.params.len();
            return Err(Error::invalid(format!("kernel {name}: no parameters given, it has {count}")));
        }
        (false, false) => {}
    }
    Ok(bytes)
}

/// The buffer of parameters that the list `extra` names.
fn buffer(extra: HostPtr) -> Result<(HostPtr, usize)> {
    let (mut buffer, mut size) = (None, None);
    // The list has two kinds of entries; one that goes on has no end.
    for i in 0..4 {
        let key = extra.pointer_at(2 * i)?;
        match key.0 {
            PARAM_END => break,
            PARAM_BUFFER => buffer = Some(extra.pointer_at(2 * i + 1)?),
            PARAM_BUFFER_SIZE => size = Some(extra.pointer_at(2 * i + 1)?.input::<usize>().get()?),
            other => return Err(Error::invalid(format!("launch option {other:#x}"))),
        }
    }
    match (buffer, size) {
        (Some(buffer), Some(size)) => Ok((buffer, size)),
        _ => Err(Error::invalid("launch options without a buffer of parameters and its size")),
    }
}

/// Refuses what the device cannot launch, and says which limit is passed.
fn check(device: &Device, function: &Function, shape: &Shape) -> Result<()> {
    let name = function.name();
    for (axis, letter) in ["x", "y", "z"].into_iter().enumerate() {
        for (what, given, limit) in
            [("grid", shape.grid[axis], GRID_DIM[axis]), ("block", shape.block[axis], BLOCK_DIM[axis])]
        {
            if given == 0 || given > limit {
                return Err(Error::invalid(format!(
                    "kernel {name}: {what}.{letter} is {given}; it goes from 1 to {limit}"
                )));
            }
        }
    }
    check_threads(function, shape)?;
    let (shared, limit) = (shape.shared, function.dynamic_shared_limit(device));
    if shared > limit {
        return Err(Error::invalid(format!(
            "kernel {name}: {shared} bytes of dynamic shared memory; {limit} are allowed (static: {}; \
             cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES) allows up to {})",
            function.entry.static_shared,
            device.shared_per_block_optin.saturating_sub(function.entry.static_shared),
        )));
    }
    check_cluster(device, function, shape)?;
    if shape.cooperative {
        let blocks: u64 = shape.grid.iter().map(|&n| n as u64).product();
        let threads = shape.block.iter().product();
        let resident = occupancy::blocks_per_sm(device, function, threads, shared) as u64 * device.sms as u64;
        if blocks > resident {
            return Err(Error::CooperativeTooLarge(format!(
                "kernel {name}: a cooperative grid of {blocks} blocks; {resident} are resident at once"
            )));
        }
    }
    Ok(())
}

fn check_threads(function: &Function, shape: &Shape) -> Result<()> {
    let (name, block) = (function.name(), shape.block);
    let threads: u64 = block.iter().map(|&n| n as u64).product();
    if let Some(required) = function.entry.required_threads
        && block != required
    {
        return Err(Error::invalid(format!("kernel {name}: block {block:?}; .reqntid asks for {required:?}")));
    }
    let limit = function.max_threads();
    if threads > limit as u64 {
        let why = if limit < THREADS_PER_BLOCK { ".maxntid allows" } else { "a block has at most" };
        return Err(Error::invalid(format!("kernel {name}: {threads} threads per block; {why} {limit}")));
    }
    Ok(())
}

fn check_cluster(device: &Device, function: &Function, shape: &Shape) -> Result<()> {
    let (name, cluster) = (function.name(), shape.cluster);
    if cluster == [0; 3] || cluster == [1; 3] {
        return Ok(());
    }
    if device.capability < (9, 0) {
        let (major, minor) = device.capability;
        return Err(Error::invalid(format!("kernel {name}: a device of capability {major}.{minor} has no clusters")));
    }
    let limit = if function.non_portable_cluster { LARGEST_CLUSTER } else { PORTABLE_CLUSTER };
    let blocks = cluster.iter().try_fold(1u32, |product, &n| product.checked_mul(n));
    if blocks.is_none_or(|blocks| blocks == 0 || blocks > limit) {
        return Err(Error::Cluster(format!("kernel {name}: a cluster of {cluster:?} blocks; {limit} are allowed")));
    }
    if let Some(declared) = function.entry.cluster
        && declared != cluster
    {
        return Err(Error::Cluster(format!("kernel {name}: a cluster of {cluster:?}; the kernel says {declared:?}")));
    }
    if (0..3).any(|axis| !shape.grid[axis].is_multiple_of(cluster[axis])) {
        let grid = shape.grid;
        return Err(Error::Cluster(format!(
            "kernel {name}: a grid of {grid:?} is not made of clusters of {cluster:?}"
        )));
    }
    Ok(())
}
