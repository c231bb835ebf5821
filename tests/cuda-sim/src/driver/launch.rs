//! Launches.

use std::sync::Arc;

use super::abi::{HostPtr, In, current_call, entries};
use super::errors::{Error, Result};
use super::handles::Handle;
use super::kernel_params::{KernelCall, Shape};
use super::state::current;
use super::stream::issue;
use super::types::{LaunchAttribute, LaunchConfig};
use super::work::Work;
use crate::device::Site;

/// Checks a launch and issues it.
fn launch(function: Handle, shape: Shape, stream: Handle, params: HostPtr, extra: HostPtr) -> Result<()> {
    let call = current_call();
    let (mut driver, context) = current()?;
    let stream = driver.stream(context, stream)?;
    let owner = driver.functions.get(function)?.context;
    if driver.streams.get(stream)?.context != owner {
        return Err(Error::invalid("the kernel and the stream are of two contexts"));
    }
    let kernel = KernelCall::new(&driver, function, shape, params, extra)?;
    driver.pass(Site::Launch)?;
    issue(driver, stream, Work::Kernel(Arc::new(kernel)), call)?;
    Ok(())
}

/// What the attributes of `cuLaunchKernelEx` ask for.
pub fn attributed(config: &LaunchConfig) -> Result<Shape> {
    let mut shape =
        Shape { grid: config.grid, block: config.block, cluster: [0; 3], shared: config.shared, cooperative: false };
    for attribute in config.attributes.input::<LaunchAttribute>().list(config.attribute_count as usize)? {
        let value = attribute.value;
        match attribute.id {
            // What is without effect here: IGNORE, ACCESS_POLICY_WINDOW, SYNCHRONIZATION_POLICY, cluster scheduling,
            // PROGRAMMATIC_STREAM_SERIALIZATION (kernels of a stream run one after the other, which it allows),
            // PRIORITY, memory domains, carveout, NVLink scheduling.
            0 | 1 | 3 | 5 | 6 | 8 | 9 | 10 | 14 | 16 => {}
            2 => shape.cooperative = value[0] != 0,
            4 => shape.cluster = [value[0], value[1], value[2]],
            other => return Err(Error::NotSupported(format!("launch attribute {other}"))),
        }
    }
    Ok(shape)
}

entries! {
    /// Launches a kernel.
    fn cuLaunchKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32,
        stream: Handle, params: HostPtr, extra: HostPtr,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        launch(function, Shape { grid, block, cluster: [0; 3], shared, cooperative: false }, stream, params, extra)
    }

    /// Launches a kernel, all of whose blocks are resident at once.
    fn cuLaunchCooperativeKernel(
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32,
        stream: Handle, params: HostPtr,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let shape = Shape { grid, block, cluster: [0; 3], shared, cooperative: true };
        launch(function, shape, stream, params, HostPtr::default())
    }

    /// Launches a kernel with attributes.
    fn cuLaunchKernelEx(config: In<LaunchConfig>, function: Handle, params: HostPtr, extra: HostPtr) {
        let config = config.get()?;
        launch(function, attributed(&config)?, config.stream, params, extra)
    }
}
