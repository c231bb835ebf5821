//! Kernels and their attributes.

use std::ffi::{CString, c_char, c_int};
use std::sync::Arc;

use super::abi::{Out, entries};
use super::errors::{Error, Result};
use super::handles::Handle;
use super::state::{Driver, current};
use crate::device::{Device, THREADS_PER_BLOCK};
use crate::program::{Entry, Program};

/// A kernel of a module.
pub struct Function {
    /// Whose it is.
    pub context: Handle,
    /// Its module.
    pub module: Handle,
    /// Its name.
    pub name: CString,
    /// What the module says of it.
    pub entry: Arc<Entry>,
    /// The module's code.
    pub program: Arc<Program>,
    /// Whether it adds floats atomically.
    pub float_atomics: bool,
    /// The virtual architecture of its PTX, such as 80: by its `PTX_VERSION`, programs choose what they launch.
    pub architecture: u32,
    /// `MAX_DYNAMIC_SHARED_SIZE_BYTES`, once it was set.
    pub max_dynamic_shared: Option<u32>,
    /// `PREFERRED_SHARED_MEMORY_CARVEOUT`, kept and of no effect.
    pub carveout: i32,
    /// `REQUIRED_CLUSTER_WIDTH`, `_HEIGHT`, `_DEPTH`.
    pub cluster: [u32; 3],
    /// `NON_PORTABLE_CLUSTER_SIZE_ALLOWED`
    pub non_portable_cluster: bool,
    /// `CLUSTER_SCHEDULING_POLICY_PREFERENCE`, kept and of no effect.
    pub cluster_policy: i32,
}

impl Function {
    /// A kernel with the attributes that its module gives it.
    pub fn new(
        context: Handle,
        module: Handle,
        name: CString,
        entry: Arc<Entry>,
        program: Arc<Program>,
        architecture: u32,
    ) -> Function {
        Function {
            context,
            module,
            name,
            cluster: entry.cluster.unwrap_or_default(),
            entry,
            program,
            float_atomics: false,
            architecture,
            max_dynamic_shared: None,
            carveout: -1,
            non_portable_cluster: false,
            cluster_policy: 0,
        }
    }

    /// The kernel's name for messages.
    pub fn name(&self) -> &str {
        self.name.to_str().unwrap_or("?")
    }

    /// Threads of a block at most.
    pub fn max_threads(&self) -> u32 {
        let declared = self.entry.required_threads.or(self.entry.max_threads);
        declared.map_or(THREADS_PER_BLOCK, |n| n.iter().product::<u32>().min(THREADS_PER_BLOCK))
    }

    /// Bytes of dynamic shared memory at most.
    pub fn dynamic_shared_limit(&self, device: &Device) -> u32 {
        self.max_dynamic_shared.unwrap_or(device.shared_per_block.saturating_sub(self.entry.static_shared))
    }
}

/// Registers per thread are ptxas's business; the simulator has none. It says what always fits, so that registers never
/// limit what a program computes from it.
const REGISTERS_PER_THREAD: u32 = 32;

/// An attribute, by its number in `CUfunction_attribute`.
fn value(driver: &Driver, function: &Function, attribute: u32) -> Option<i32> {
    let (major, minor) = driver.config.device.capability;
    let bytes = |size: u32| size as i32;
    Some(match attribute {
        0 => function.max_threads() as i32,
        1 => bytes(function.entry.static_shared),
        2 => {
            let constants = function.program.variables.iter().filter(|v| v.constant);
            constants.map(|v| v.size).sum::<u64>() as i32
        }
        3 => bytes(function.entry.local_bytes),
        4 => REGISTERS_PER_THREAD as i32,
        5 => function.architecture as i32,
        6 => (major * 10 + minor) as i32,
        7 => 0,
        8 => bytes(function.dynamic_shared_limit(&driver.config.device)),
        9 => function.carveout,
        10 => function.entry.cluster.is_some() as i32,
        11..=13 => function.cluster[attribute as usize - 11] as i32,
        14 => function.non_portable_cluster as i32,
        15 => function.cluster_policy,
        _ => return None,
    })
}

/// `cuFuncGetAttribute`
pub fn get_attribute(out: Out<c_int>, attribute: u32, function: Handle) -> Result<()> {
    let (driver, _) = current()?;
    out.check()?;
    let value = value(&driver, driver.functions.get(function)?, attribute);
    out.set(value.ok_or_else(|| Error::invalid(format!("function attribute {attribute}")))?)
}

/// `cuFuncSetAttribute`
pub fn set_attribute(handle: Handle, attribute: u32, value: c_int) -> Result<()> {
    let (mut driver, _) = current()?;
    let optin = driver.config.device.shared_per_block_optin;
    let has_clusters = driver.config.device.capability >= (9, 0);
    let function = driver.functions.get_mut(handle)?;
    match attribute {
        8 => {
            let shared = function.entry.static_shared;
            let limit = optin.saturating_sub(shared);
            let wanted = u32::try_from(value).ok().filter(|&wanted| wanted <= limit);
            function.max_dynamic_shared = Some(wanted.ok_or_else(|| {
                let name = function.name();
                Error::invalid(format!(
                    "kernel {name}: {value} bytes of dynamic shared memory beside {shared} static ones; a block has {optin}"
                ))
            })?);
        }
        9 if (-1..=100).contains(&value) => function.carveout = value,
        11..=13 if has_clusters && function.entry.cluster.is_none() && value >= 0 => {
            function.cluster[attribute as usize - 11] = value as u32;
        }
        14 if has_clusters && matches!(value, 0 | 1) => function.non_portable_cluster = value == 1,
        15 if (0..=2).contains(&value) => function.cluster_policy = value,
        _ => return Err(Error::invalid(format!("function attribute {attribute} cannot be set to {value}"))),
    }
    Ok(())
}

entries! {
    /// What a kernel needs and may have.
    fn cuFuncGetAttribute(out: Out<c_int>, attribute: u32, function: Handle) {
        get_attribute(out, attribute, function)
    }

    /// Sets what a kernel may have.
    fn cuFuncSetAttribute(function: Handle, attribute: u32, value: c_int) {
        set_attribute(function, attribute, value)
    }

    /// Says how the kernel prefers to split the cache: checked, of no effect.
    fn cuFuncSetCacheConfig(function: Handle, config: u32) {
        current()?.0.functions.get(function)?;
        if config > 3 { Err(Error::invalid(format!("cache config {config}"))) } else { Ok(()) }
    }

    /// A kernel's module.
    fn cuFuncGetModule(out: Out<Handle>, function: Handle) {
        let (driver, _) = current()?;
        out.set(driver.functions.get(function)?.module)
    }

    /// A kernel's name, which lives as long as its module.
    fn cuFuncGetName(out: Out<*const c_char>, function: Handle) {
        let (driver, _) = current()?;
        out.set(driver.functions.get(function)?.name.as_ptr())
    }

    /// Where a parameter is, and its size.
    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        let (driver, _) = current()?;
        let function = driver.functions.get(function)?;
        let Some(param) = function.entry.params.get(index) else {
            return Err(Error::NoParameter);
        };
        offset.set(param.offset as usize)?;
        size.set_if_wanted(param.size as usize);
        Ok(())
    }

    /// Every kernel is loaded with its module.
    fn cuFuncIsLoaded(state: Out<u32>, function: Handle) {
        current()?.0.functions.get(function)?;
        state.set(1)
    }

    /// Every kernel is loaded with its module.
    fn cuFuncLoad(function: Handle) {
        current()?.0.functions.get(function).map(|_| ())
    }
}
