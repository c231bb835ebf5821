//! Modules: PTX that is parsed, lowered and placed in memory.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::sync::Arc;

use super::abi::{HostPtr, In, Out, Text, entries};
use super::errors::{Error, Result};
use super::fatbin;
use super::float_atomics;
use super::function::Function;
use super::handles::Handle;
use super::queue::Until;
use super::state::{Driver, Locked, current};
use super::stream::wait;
use super::types::DevicePtr;
use crate::device::Site;
use crate::program::Program;

/// A loaded module.
pub struct Module {
    /// Whose it is.
    pub context: Handle,
    /// What it holds.
    pub program: Arc<Program>,
    /// The kernels that were asked for.
    pub functions: HashMap<String, Handle>,
    /// Variables: address and size.
    pub variables: HashMap<String, (u64, u64)>,
    /// The kernels that add floats atomically; looked for when launches are swept.
    pub float_atomics: HashSet<String>,
    /// The virtual architecture of the text.
    pub architecture: u32,
}

/// The newest PTX that the simulator takes, of CUDA 13.5. A driver of CUDA 13.0 stops at 9.0; compilers that emit more are
/// tried here all the same.
const PTX_VERSION: (u32, u32) = (9, 5);

/// The PTX text at an address or in a file.
fn source(image: HostPtr, capability: (u32, u32)) -> Result<String> {
    let magic = image.bytes(4)?;
    match u32::from_le_bytes([magic[0], magic[1], magic[2], magic[3]]) {
        fatbin::MAGIC => fatbin::choose(&fatbin::read(image)?, capability),
        fatbin::WRAPPER_MAGIC => {
            let inner = image.pointer_at(1)?;
            fatbin::choose(&fatbin::read(inner.check()?)?, capability)
        }
        _ if magic.starts_with(b"\x7fELF") => Err(Error::NoBinary(
            "the module is a cubin (machine code), which the simulator does not run: load PTX, or a fat binary with PTX"
                .into(),
        )),
        _ => utf8(image.text()?),
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    match String::from_utf8(bytes) {
        Ok(text) if text.contains(".version") => Ok(text),
        _ => Err(Error::Image("the module is neither PTX nor a fat binary".into())),
    }
}

/// `.version` of a PTX text.
fn version(text: &str) -> Option<(u32, u32)> {
    let rest = text[text.find(".version")? + ".version".len()..].trim_start();
    let (major, rest) = rest.split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

/// Refuses what the device's own compiler would refuse; the virtual architecture of the rest, such as 80.
fn check_target(text: &str, capability: (u32, u32), driver: Option<(u32, u32)>) -> Result<u32> {
    let Some(version) = version(text) else {
        return Err(Error::Ptx("PTX without a .version".into()));
    };
    if version > PTX_VERSION {
        let (major, minor) = version;
        return Err(Error::PtxVersion(format!("PTX of version {major}.{minor} is newer than the simulator (9.5)")));
    }
    // CUDA 12.4 came with PTX 8.4, and so on.
    if let Some((major, minor)) = driver
        && version > (major - 4, minor)
    {
        let of = format!("PTX of version {}.{}", version.0, version.1);
        return Err(Error::PtxVersion(format!("{of} is newer than a driver for CUDA {major}.{minor}")));
    }
    let device = capability.0 * 10 + capability.1;
    match fatbin::target(text) {
        None => Err(Error::Ptx("PTX without a .target".into())),
        Some(target) if !fatbin::runs_on(target, device) => {
            let (number, suffix) = (target.0, if target.1 { "a" } else { "" });
            Err(Error::Ptx(format!("PTX for sm_{number}{suffix} does not run on a device of sm_{device}")))
        }
        Some(target) => Ok(target.0),
    }
}

/// Loads a module from its text.
fn load(driver: &mut Driver, context: Handle, text: &str) -> Result<Handle> {
    driver.pass(Site::Module)?;
    let architecture = check_target(text, driver.config.device.capability, driver.config.driver)?;
    let mut placed = Vec::new();
    let mut failure = None;
    let loaded = Program::load(text, &mut |variable| {
        let address = driver.allocate_variable(context, variable.size, variable.align as u64, &variable.name);
        match address {
            Ok(address) => {
                placed.push(address);
                Ok(address)
            }
            Err(error) => {
                let text = error.to_string();
                failure = Some(error);
                Err(text)
            }
        }
    });
    let program = match loaded {
        Ok(program) => program,
        Err(error) => {
            for address in placed {
                driver.release(address)?;
            }
            return Err(failure.unwrap_or_else(|| Error::Ptx(error.to_string())));
        }
    };
    let mut variables = HashMap::new();
    for variable in &program.variables {
        driver.memory.fill(variable.address, &[0], variable.size.max(1))?;
        driver.memory.write(variable.address, &variable.initial)?;
        variables.insert(variable.name.clone(), (variable.address, variable.size));
    }
    let program = Arc::new(program);
    let float_atomics = if driver.runs(context).sweep > 1 { float_atomics::kernels(text) } else { HashSet::new() };
    let functions = HashMap::new();
    Ok(driver.modules.insert(Module { context, program, functions, variables, float_atomics, architecture }))
}

impl Driver {
    /// Ends a module: its variables are freed, its kernels no more.
    pub fn unload(&mut self, module: Handle) -> Result<()> {
        let module = self.modules.remove(module)?;
        for (address, _) in module.variables.values() {
            self.release(*address)?;
        }
        for function in module.functions.values() {
            self.functions.remove(*function)?;
        }
        Ok(())
    }

    /// A kernel of a module, by name.
    pub fn function(&mut self, module: Handle, name: &str) -> Result<Handle> {
        let found = self.modules.get(module)?;
        if let Some(function) = found.functions.get(name) {
            return Ok(*function);
        }
        let Some(entry) = found.program.entries.get(name) else {
            return Err(Error::NotFound { kind: "the kernel", name: name.into() });
        };
        let c_name = CString::new(name).map_err(|_| Error::invalid("a name with a zero byte"))?;
        let entry = Arc::new(entry.clone());
        let program = found.program.clone();
        let mut function = Function::new(found.context, module, c_name, entry, program, found.architecture);
        function.float_atomics = found.float_atomics.contains(name);
        let handle = self.functions.insert(function);
        self.modules.get_mut(module)?.functions.insert(name.into(), handle);
        Ok(handle)
    }
}

/// What `cuModuleLoadDataEx` is told.
#[derive(Default)]
pub struct JitOptions {
    error_log: Option<(HostPtr, usize)>,
    info_log: Option<(HostPtr, usize)>,
    /// Where the sizes used go.
    sizes: Vec<(u32, HostPtr)>,
}

const INFO_LOG: u32 = 3;
const INFO_LOG_SIZE: u32 = 4;
const ERROR_LOG: u32 = 5;
const ERROR_LOG_SIZE: u32 = 6;
const LAST_OPTION: u32 = 34;

impl JitOptions {
    /// Reads the two arrays of the API. Options about speed have no effect.
    pub fn read(count: u32, options: In<u32>, values: HostPtr) -> Result<JitOptions> {
        let mut read = JitOptions::default();
        let (mut error, mut info) = ((HostPtr(0), 0), (HostPtr(0), 0));
        for (i, option) in options.list(count as usize)?.into_iter().enumerate() {
            let value = values.pointer_at(i)?;
            match option {
                INFO_LOG => info.0 = value,
                INFO_LOG_SIZE => info.1 = value.0,
                ERROR_LOG => error.0 = value,
                ERROR_LOG_SIZE => error.1 = value.0,
                option if option > LAST_OPTION => return Err(Error::invalid(format!("JIT option {option}"))),
                _ => {}
            }
            if matches!(option, INFO_LOG_SIZE | ERROR_LOG_SIZE) {
                read.sizes.push((option, HostPtr(values.0 + i * size_of::<usize>())));
            }
        }
        // The size is an unsigned int that was cast to a pointer.
        let given =
            |(buffer, size): (HostPtr, usize)| (buffer.0 != 0 && size != 0).then_some((buffer, size as u32 as usize));
        (read.error_log, read.info_log) = (given(error), given(info));
        Ok(read)
    }

    /// Writes a log, and how long it is with its end.
    fn write(&self, size_option: u32, log: Option<(HostPtr, usize)>, text: &str) -> Result<()> {
        let Some((buffer, room)) = log else { return Ok(()) };
        buffer.out::<u8>().set_text(text.as_bytes(), room)?;
        let used = if text.is_empty() { 0 } else { (text.len() + 1).min(room) };
        for (_, place) in self.sizes.iter().filter(|(option, _)| *option == size_option) {
            place.out::<usize>().set(used)?;
        }
        Ok(())
    }

    fn done(&self, outcome: &Result<Handle>) -> Result<()> {
        let text = match outcome {
            Err(error @ (Error::Ptx(_) | Error::PtxVersion(_))) => format!("cuda-sim: {error}"),
            _ => String::new(),
        };
        self.write(ERROR_LOG_SIZE, self.error_log, &text)?;
        self.write(INFO_LOG_SIZE, self.info_log, "")
    }
}

/// Loads the module at an address.
pub fn load_data(out: Out<Handle>, image: HostPtr, options: &JitOptions) -> Result<()> {
    let (mut driver, context) = current()?;
    out.check()?;
    driver.forbid_in_capture()?;
    let capability = driver.config.device.capability;
    let outcome = source(image.check()?, capability).and_then(|text| load(&mut driver, context, &text));
    options.done(&outcome)?;
    out.set(outcome?)
}

/// Loads the module in a file.
pub fn load_file(out: Out<Handle>, path: Text) -> Result<()> {
    let (mut driver, context) = current()?;
    out.check()?;
    driver.forbid_in_capture()?;
    let path = path.string()?;
    let mut bytes = std::fs::read(&path).map_err(|source| Error::File { path, source })?;
    // As in memory: a text has an end.
    bytes.extend_from_slice(&[0; 8]);
    let capability = driver.config.device.capability;
    let magic = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let text = match magic {
        fatbin::MAGIC => fatbin::choose(&bytes[..bytes.len() - 8], capability)?,
        fatbin::WRAPPER_MAGIC => return Err(Error::Image("the file holds an address instead of a module".into())),
        _ => source(HostPtr(bytes.as_ptr() as usize), capability)?,
    };
    out.set(load(&mut driver, context, &text)?)
}

/// Ends a module once all work of its context is done.
pub fn unload_call(module: Handle) -> Result<()> {
    let (driver, context) = current()?;
    let owner = driver.modules.get(module)?.context;
    let mut driver: Locked = wait(driver, owner, Until::Idle(owner))?;
    driver.usable(context)?;
    driver.unload(module)
}

/// A variable of a module.
pub fn global(address: Out<DevicePtr>, size: Out<usize>, module: Handle, name: Text) -> Result<()> {
    let (driver, _) = current()?;
    let name = name.string()?;
    let Some((base, bytes)) = driver.modules.get(module)?.variables.get(&name).copied() else {
        return Err(Error::NotFound { kind: "the variable", name });
    };
    address.set_if_wanted(base);
    size.set_if_wanted(bytes as usize);
    Ok(())
}

entries! {
    /// Loads a module from a file of PTX or a fat binary.
    fn cuModuleLoad(out: Out<Handle>, path: Text) {
        load_file(out, path)
    }

    /// Loads a module from PTX text or a fat binary.
    fn cuModuleLoadData(out: Out<Handle>, image: HostPtr) {
        load_data(out, image, &JitOptions::default())
    }

    /// Loads a module; what is wrong with its PTX goes to the log that the options give.
    fn cuModuleLoadDataEx(out: Out<Handle>, image: HostPtr, count: u32, options: In<u32>, values: HostPtr) {
        load_data(out, image, &JitOptions::read(count, options, values)?)
    }

    /// Loads a module from a fat binary.
    fn cuModuleLoadFatBinary(out: Out<Handle>, image: HostPtr) {
        load_data(out, image, &JitOptions::default())
    }

    /// Ends a module once all work is done.
    fn cuModuleUnload(module: Handle) {
        unload_call(module)
    }

    /// A kernel by name.
    fn cuModuleGetFunction(out: Out<Handle>, module: Handle, name: Text) {
        let (mut driver, _) = current()?;
        out.check()?;
        out.set(driver.function(module, &name.string()?)?)
    }

    /// A variable by name.
    fn cuModuleGetGlobal_v2(address: Out<DevicePtr>, size: Out<usize>, module: Handle, name: Text) {
        global(address, size, module, name)
    }

    /// How many kernels there are.
    fn cuModuleGetFunctionCount(count: Out<u32>, module: Handle) {
        let (driver, _) = current()?;
        count.set(driver.modules.get(module)?.program.entries.len() as u32)
    }

    /// The first kernels, by name.
    fn cuModuleEnumerateFunctions(out: Out<Handle>, count: u32, module: Handle) {
        let (mut driver, _) = current()?;
        let mut names: Vec<String> = driver.modules.get(module)?.program.entries.keys().cloned().collect();
        names.sort();
        for (i, name) in names.iter().take(count as usize).enumerate() {
            out.at(i).set(driver.function(module, name)?)?;
        }
        Ok(())
    }

    /// Modules are loaded whole.
    fn cuModuleGetLoadingMode(mode: Out<u32>) {
        mode.set(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_for_another_device_or_driver_is_refused() {
        let of = |version: &str, target: &str| format!("// made\n.version {version}\n.target {target}\n");
        assert_eq!(check_target(&of("8.7", "sm_80"), (9, 0), None).unwrap(), 80);
        assert_eq!(check_target(&of("9.0", "sm_90a, debug"), (9, 0), None).unwrap(), 90);
        assert!(matches!(check_target(&of("9.6", "sm_80"), (9, 0), None), Err(Error::PtxVersion(_))));
        assert!(matches!(check_target(&of("9.0", "sm_90a"), (10, 0), None), Err(Error::Ptx(_))));
        assert!(matches!(check_target(&of("9.0", "sm_90"), (8, 0), None), Err(Error::Ptx(_))));
        assert!(matches!(check_target(".version 9.0", (8, 0), None), Err(Error::Ptx(_))));
        assert!(matches!(check_target(&of("9.0", "sm_80"), (9, 0), Some((12, 4))), Err(Error::PtxVersion(_))));
        assert_eq!(check_target(&of("8.4", "sm_80"), (9, 0), Some((12, 4))).unwrap(), 80);
    }
}
