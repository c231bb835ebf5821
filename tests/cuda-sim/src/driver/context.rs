//! The driver, the device and contexts.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_char, c_int};
use std::sync::Once;

use super::abi::{HostPtr, Out, Text, entries};
use super::errors::{Error, Result};
use super::findings;
use super::handles::Handle;
use super::queue::{Until, finish};
use super::state::{CURRENT, Context, Driver, Locked, current, initialise, lock, lock_at_exit};
use super::stream::{Stream, wait};
use super::types::flags;
use crate::device::Config;

/// The version of the API: CUDA 13.0.
pub const VERSION: i32 = 13000;

/// What the driver says its version is. Nothing may be initialised yet: the environment is asked.
fn reported() -> i32 {
    Config::from_env()
        .ok()
        .and_then(|config| config.driver)
        .map_or(VERSION, |(major, minor)| (major * 1000 + minor * 10) as i32)
}

/// The device number must be 0: there is one.
pub fn device(device: c_int) -> Result<()> {
    if device == 0 { Ok(()) } else { Err(Error::Device(device)) }
}

impl Driver {
    fn create_context(&mut self, flags: u32) -> Handle {
        let context = self.contexts.insert(Context {
            flags,
            sticky: None,
            legacy: Handle::NULL,
            per_thread: HashMap::new(),
            orphans: Vec::new(),
            limits: BTreeMap::new(),
            cache_config: 0,
            runs: self.config.runs.clone(),
            findings: None,
        });
        let legacy = self.streams.insert(Stream { legacy: true, ..Stream::new(context, false, 0) });
        if let Ok(created) = self.contexts.get_mut(context) {
            created.legacy = legacy;
        }
        context
    }

    /// What is still allocated when its context ends, one line each.
    fn report_leaks(&self, context: Handle) {
        for (address, range) in self.device.iter().filter(|(_, range)| range.context == context && range.is_program) {
            let (size, call, number) = (range.size, range.call, range.number);
            findings::report(&format!(
                "leak: {size} bytes at {address:#x}, allocation {number} ({call}), still allocated when its context ended"
            ));
        }
        for (address, range) in self.host.iter().filter(|(_, range)| range.context == context) {
            let (size, call) = (range.size, range.call);
            findings::report(&format!(
                "leak: {size} bytes of host memory at {address:#x} ({call}), still allocated when their context ended"
            ));
        }
    }
}

/// Ends a context: its work is done, its objects end, and what it leaks is told.
fn end_context(driver: Locked, context: Handle) -> Locked {
    // A fault was reported when it was found; the context ends all the same.
    let (mut driver, _) = finish(driver, Until::Idle(context));
    let dead = driver.contexts.get(context).is_ok_and(|c| c.sticky.is_some()) || driver.lost;
    let graphs: Vec<Handle> = driver.graphs.iter().filter(|(_, g)| g.context == context).map(|(h, _)| h).collect();
    for graph in graphs {
        // Listed a moment ago.
        let _ = driver.destroy_graph(graph);
    }
    let modules: Vec<Handle> = driver.modules.iter().filter(|(_, m)| m.context == context).map(|(h, _)| h).collect();
    for module in modules {
        let _ = driver.unload(module);
    }
    if driver.runs(context).checks.leak && !dead {
        driver.report_leaks(context);
    }
    let device: Vec<u64> = driver.device.iter().filter(|(_, r)| r.context == context).map(|(a, _)| *a).collect();
    for address in device {
        let _ = driver.release(address);
    }
    let host: Vec<usize> = driver.host.iter().filter(|(_, r)| r.context == context).map(|(a, _)| *a).collect();
    if !host.is_empty() {
        driver = driver.quiet();
    }
    for address in host {
        let _ = driver.release_host(address);
    }
    driver.captures.retain(|_, capture| capture.context != context);
    driver.execs.retain(|exec| exec.context != context);
    driver.events.retain(|event| event.context != context);
    driver.streams.retain(|stream| stream.context != context);
    let _ = driver.contexts.remove(context);
    driver.write_counters();
    driver
}

/// Ends the primary context when it was released as often as it was retained.
fn release_primary(all: bool) -> Result<()> {
    let mut driver = lock()?;
    if driver.primary.retained == 0 {
        return if all { Ok(()) } else { Err(Error::NoContext) };
    }
    driver.primary.retained = if all { 0 } else { driver.primary.retained - 1 };
    if driver.primary.retained == 0
        && let Some(context) = driver.primary.context.take()
    {
        drop(end_context(driver, context));
    }
    Ok(())
}

/// At the end of the process: the counters of contexts that were never ended.
extern "C" fn at_exit() {
    let _ = std::panic::catch_unwind(|| {
        if let Some(mut driver) = lock_at_exit() {
            driver.write_counters();
        }
    });
}

unsafe extern "C" {
    safe fn atexit(function: extern "C" fn()) -> c_int;
}

fn limit_default(driver: &Driver, limit: u32) -> Option<usize> {
    match limit {
        0 => Some(1024),
        1 => Some(1 << 20),
        2 => Some(8 << 20),
        4 => Some(2048),
        5 => Some(64),
        6 => Some(0),
        3 if driver.config.device.capability < (9, 0) => Some(2),
        _ => None,
    }
}

fn create(out: Out<Handle>, flags: u32, number: c_int) -> Result<()> {
    let mut driver = lock()?;
    out.check()?;
    device(number)?;
    if flags & !flags::CTX_FLAGS_MASK != 0 {
        return Err(Error::invalid(format!("context flags {flags:#x}")));
    }
    if driver.lost {
        return Err(Error::Lost);
    }
    let context = driver.create_context(flags);
    CURRENT.with_borrow_mut(|stack| stack.push(context));
    out.set(context)
}

/// The context that is current in the thread, if it is alive.
fn current_handle() -> Handle {
    CURRENT.with_borrow(|stack| stack.last().copied()).unwrap_or_default()
}

entries! {
    /// Reads the environment and begins. May be called again.
    fn cuInit(flags: u32) {
        static AT_EXIT: Once = Once::new();
        if flags != 0 {
            return Err(Error::invalid("flags must be 0"));
        }
        initialise()?;
        AT_EXIT.call_once(|| {
            atexit(at_exit);
        });
        Ok(())
    }

    /// The version of the API. Works without `cuInit`.
    fn cuDriverGetVersion(version: Out<c_int>) {
        version.set(reported())
    }

    /// How many devices there are.
    fn cuDeviceGetCount(count: Out<c_int>) {
        drop(lock()?);
        count.set(1)
    }

    /// A device by its ordinal.
    fn cuDeviceGet(out: Out<c_int>, ordinal: c_int) {
        drop(lock()?);
        out.check()?;
        device(ordinal)?;
        out.set(0)
    }

    /// The device's name, cut to `length` bytes.
    fn cuDeviceGetName(name: Out<c_char>, length: c_int, number: c_int) {
        let driver = lock()?;
        device(number)?;
        let (major, minor) = driver.config.device.capability;
        let room = usize::try_from(length).unwrap_or(0);
        name.set_text(format!("cuda-sim {major}.{minor}").as_bytes(), room)
    }

    /// Bytes of global memory.
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, number: c_int) {
        let driver = lock()?;
        device(number)?;
        bytes.set(driver.config.device.memory as usize)
    }

    /// The device's identity: the same on every machine.
    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, number: c_int) {
        drop(lock()?);
        device(number)?;
        uuid.set(*b"cuda-sim device0")
    }

    /// The device's identity: the same on every machine.
    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, number: c_int) {
        drop(lock()?);
        device(number)?;
        uuid.set(*b"cuda-sim device0")
    }

    /// The device's place on a bus that does not exist.
    fn cuDeviceGetPCIBusId(name: Out<c_char>, length: c_int, number: c_int) {
        drop(lock()?);
        device(number)?;
        name.set_text(b"0000:00:00.0", usize::try_from(length).unwrap_or(0))
    }

    /// The device at a place on the bus.
    fn cuDeviceGetByPCIBusId(out: Out<c_int>, name: Text) {
        drop(lock()?);
        match name.string()?.as_str() {
            "0000:00:00.0" => out.set(0),
            other => Err(Error::invalid(format!("no device at {other}"))),
        }
    }

    /// The compute capability (an older call).
    fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, number: c_int) {
        let driver = lock()?;
        device(number)?;
        major.set(driver.config.device.capability.0 as c_int)?;
        minor.set(driver.config.device.capability.1 as c_int)
    }

    /// There is no other device to reach.
    fn cuDeviceCanAccessPeer(can: Out<c_int>, from: c_int, to: c_int) {
        drop(lock()?);
        device(from)?;
        device(to)?;
        can.set(0)
    }

    /// Retains the device's primary context.
    fn cuDevicePrimaryCtxRetain(out: Out<Handle>, number: c_int) {
        let mut driver = lock()?;
        out.check()?;
        device(number)?;
        if driver.lost {
            return Err(Error::Lost);
        }
        let context = match driver.primary.context {
            Some(context) => context,
            None => {
                let flags = driver.primary.flags;
                driver.create_context(flags)
            }
        };
        driver.primary.context = Some(context);
        driver.primary.retained += 1;
        out.set(context)
    }

    /// Releases the primary context, which ends with the last release.
    fn cuDevicePrimaryCtxRelease_v2(number: c_int) {
        device(number)?;
        release_primary(false)
    }

    /// Ends the primary context whoever holds it.
    fn cuDevicePrimaryCtxReset_v2(number: c_int) {
        device(number)?;
        release_primary(true)
    }

    /// Sets the primary context's flags.
    fn cuDevicePrimaryCtxSetFlags_v2(number: c_int, flags: u32) {
        let mut driver = lock()?;
        device(number)?;
        if flags & !flags::CTX_FLAGS_MASK != 0 {
            return Err(Error::invalid(format!("context flags {flags:#x}")));
        }
        driver.primary.flags = flags;
        if let Some(context) = driver.primary.context {
            driver.contexts.get_mut(context)?.flags = flags;
        }
        Ok(())
    }

    /// The primary context's flags, and whether it lives.
    fn cuDevicePrimaryCtxGetState(number: c_int, flags: Out<u32>, active: Out<c_int>) {
        let driver = lock()?;
        device(number)?;
        flags.set_if_wanted(driver.primary.flags);
        active.set_if_wanted(driver.primary.context.is_some() as c_int);
        Ok(())
    }

    /// Makes a context and makes it current.
    fn cuCtxCreate_v2(out: Out<Handle>, flags: u32, number: c_int) {
        create(out, flags, number)
    }

    /// Makes a context and makes it current. Execution affinity is not modelled.
    fn cuCtxCreate_v3(out: Out<Handle>, affinity: HostPtr, count: c_int, flags: u32, number: c_int) {
        if affinity != HostPtr::default() || count != 0 {
            return Err(Error::NotSupported("execution affinity".into()));
        }
        create(out, flags, number)
    }

    /// Makes a context and makes it current. Special parameters are not modelled.
    fn cuCtxCreate_v4(out: Out<Handle>, parameters: HostPtr, flags: u32, number: c_int) {
        if parameters != HostPtr::default() {
            return Err(Error::NotSupported("a context with parameters".into()));
        }
        create(out, flags, number)
    }

    /// Ends a context.
    fn cuCtxDestroy_v2(context: Handle) {
        let driver = lock()?;
        driver.contexts.get(context)?;
        if driver.primary.context == Some(context) {
            return Err(Error::invalid("the primary context is released, not destroyed"));
        }
        drop(end_context(driver, context));
        CURRENT.with_borrow_mut(|stack| {
            if stack.last() == Some(&context) {
                stack.pop();
            }
        });
        Ok(())
    }

    /// The thread's current context, or null.
    fn cuCtxGetCurrent(out: Out<Handle>) {
        drop(lock()?);
        out.set(current_handle())
    }

    /// Makes a context current; null makes none.
    fn cuCtxSetCurrent(context: Handle) {
        let driver = lock()?;
        if !context.is_null() {
            driver.contexts.get(context)?;
        }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            if !context.is_null() {
                stack.push(context);
            }
        });
        Ok(())
    }

    /// Makes a context current, over the one that is.
    fn cuCtxPushCurrent_v2(context: Handle) {
        lock()?.contexts.get(context)?;
        CURRENT.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    }

    /// Takes the current context off.
    fn cuCtxPopCurrent_v2(out: Out<Handle>) {
        drop(lock()?);
        let context = CURRENT.with_borrow_mut(|stack| stack.pop()).ok_or(Error::NoContext)?;
        out.set_if_wanted(context);
        Ok(())
    }

    /// The current context's device.
    fn cuCtxGetDevice(out: Out<c_int>) {
        drop(lock()?);
        if current_handle().is_null() {
            return Err(Error::NoContext);
        }
        out.set(0)
    }

    /// The current context's flags.
    fn cuCtxGetFlags(flags: Out<u32>) {
        let (driver, context) = current()?;
        flags.set(driver.contexts.get(context)?.flags)
    }

    /// Sets the current context's flags. How the host waits makes no difference here.
    fn cuCtxSetFlags(flags: u32) {
        let (mut driver, context) = current()?;
        if flags & !flags::CTX_FLAGS_MASK != 0 {
            return Err(Error::invalid(format!("context flags {flags:#x}")));
        }
        driver.contexts.get_mut(context)?.flags = flags;
        Ok(())
    }

    /// A number for a context that no other one has.
    fn cuCtxGetId(context: Handle, id: Out<u64>) {
        let driver = lock()?;
        let context = if context.is_null() { current_handle() } else { context };
        driver.contexts.get(context)?;
        id.set(context.0 as u64)
    }

    /// The version of a context's API.
    fn cuCtxGetApiVersion(context: Handle, version: Out<u32>) {
        let driver = lock()?;
        let context = if context.is_null() { current_handle() } else { context };
        driver.contexts.get(context)?;
        version.set(VERSION as u32)
    }

    /// Waits for all work of the current context.
    fn cuCtxSynchronize() {
        let (mut driver, context) = current()?;
        driver.forbid_in_capture()?;
        wait(driver, context, Until::Idle(context))?.write_counters();
        Ok(())
    }

    /// A limit of the current context.
    fn cuCtxGetLimit(value: Out<usize>, limit: u32) {
        let (driver, context) = current()?;
        let default = limit_default(&driver, limit).ok_or(Error::Limit(limit))?;
        let set = driver.contexts.get(context)?.limits.get(&limit).copied();
        value.set(set.unwrap_or(default))
    }

    /// Sets a limit. It is kept; the machine's own limits hold.
    fn cuCtxSetLimit(limit: u32, value: usize) {
        let (mut driver, context) = current()?;
        limit_default(&driver, limit).ok_or(Error::Limit(limit))?;
        driver.contexts.get_mut(context)?.limits.insert(limit, value);
        Ok(())
    }

    /// How the current context prefers to split its cache.
    fn cuCtxGetCacheConfig(config: Out<u32>) {
        let (driver, context) = current()?;
        config.set(driver.contexts.get(context)?.cache_config)
    }

    /// Says how to split the cache: kept, of no effect.
    fn cuCtxSetCacheConfig(config: u32) {
        let (mut driver, context) = current()?;
        if config > 3 {
            return Err(Error::invalid(format!("cache config {config}")));
        }
        driver.contexts.get_mut(context)?.cache_config = config;
        Ok(())
    }

    /// Does nothing: no cache is modelled.
    fn cuCtxResetPersistingL2Cache() {
        current().map(drop)
    }

    /// Begins what a profiler records. There is none.
    fn cuProfilerStart() {
        current().map(drop)
    }

    /// Ends what a profiler records.
    fn cuProfilerStop() {
        current().map(drop)
    }
}
