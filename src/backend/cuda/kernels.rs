//! The compiled kernels, their parameters and their launch.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};

use super::device::{Device, count_one, driver_version, lock};
use super::gate::Entered;
use super::memory::{Allocation, Buffer};
use crate::backend::Error;

// What the build script compiled: `ARCHITECTURES`, `ALL`, and a `Fatbin` for each kernels/*.cu, in capitals.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The first driver that can tell a kernel's parameters.
const CAN_TELL: i32 = 12040;
const WORKSPACE_NAME: &str = "the workspace of the kernels";

/// One kernels/*.cu, compiled for every architecture.
pub struct Fatbin {
    /// Its name, without the suffix.
    pub name: &'static str,
    image: &'static Aligned<[u8]>,
}

/// The driver reads a fatbin's header as 64-bit words.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

/// Blocks of a launch, threads of a block and its dynamic shared memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// Blocks in x, y, z; a launch without blocks does nothing.
    pub(super) blocks: [usize; 3],
    /// Threads of a block.
    pub(super) threads: usize,
    /// Dynamic shared memory of a block.
    pub(super) shared: usize,
}

impl Grid {
    /// A row of blocks without dynamic shared memory.
    pub(super) fn of(blocks: usize, threads: usize) -> Grid {
        Grid { blocks: [blocks, 1, 1], threads, shared: 0 }
    }
}

/// The parameters of a launch.
#[derive(Default)]
pub(super) struct Args {
    /// Their bytes; each begins at a word.
    words: Vec<u64>,
    /// For each, its first word and its bytes.
    places: Vec<(usize, usize)>,
    /// Memory that they point to.
    memory: Vec<Arc<Allocation>>,
}

impl Args {
    fn value<T: Copy>(&mut self, value: &T) {
        let (first, bytes) = (self.words.len(), size_of::<T>());
        self.words.resize(first + bytes.div_ceil(8), 0);
        self.places.push((first, bytes));
        // SAFETY: there is room for a `T`; it is read byte by byte, by the driver.
        unsafe { self.words[first..].as_mut_ptr().cast::<T>().write_unaligned(*value) };
    }

    /// A struct, and the memory that it points to.
    pub(super) fn holding<'a, T: Copy>(&mut self, value: &T, memory: impl Iterator<Item = &'a Arc<Allocation>>) {
        self.value(value);
        self.memory.extend(memory.cloned());
    }

    /// Where each parameter is.
    fn pointers(&mut self) -> Vec<*mut c_void> {
        let words = self.words.as_mut_ptr();
        // SAFETY: each place is inside the words.
        self.places.iter().map(|&(first, _)| unsafe { words.add(first) }.cast()).collect()
    }

    /// A launch with other parameters than the kernel's is a bug of this crate: found at the kernel's first launch.
    fn check(&self, function: sys::CUfunction, name: &str) {
        if driver_version() < CAN_TELL {
            return;
        }
        let wants = |index: usize| {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: the function is loaded; the driver writes two integers.
            let found = unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut size) };
            found.result().is_ok().then_some(size)
        };
        for (index, &(_, bytes)) in self.places.iter().enumerate() {
            assert_eq!(wants(index), Some(bytes), "parameter {index} of {name}");
        }
        assert_eq!(wants(self.places.len()), None, "{name} has more than {} parameters", self.places.len());
    }
}

/// What can be a parameter of a kernel.
pub(super) trait Arg {
    /// Appends it.
    fn push(&self, args: &mut Args);
}

macro_rules! values {
    ($($name:ty),*) => { $(impl Arg for $name {
        fn push(&self, args: &mut Args) {
            args.value(self);
        }
    })* };
}
values!(u32, i32, f32, u64, i64, sys::CUtensorMap);

/// A pointer to it.
impl<T> Arg for Buffer<T> {
    fn push(&self, args: &mut Args) {
        args.value(&self.address());
        args.memory.push(self.allocation().clone());
    }
}

/// A pointer, null for none.
impl<T> Arg for Option<&Buffer<T>> {
    fn push(&self, args: &mut Args) {
        match self {
            Some(buffer) => buffer.push(args),
            None => args.value(&0u64),
        }
    }
}

/// A struct of include/kernel_abi.h, and the memory that it points to.
pub(super) struct Held<'a, T> {
    /// The struct.
    pub(super) value: T,
    /// What it points to.
    pub(super) memory: Option<&'a Arc<Allocation>>,
}

impl<T: Copy> Arg for Held<'_, T> {
    fn push(&self, args: &mut Args) {
        args.value(&self.value);
        args.memory.extend(self.memory.cloned());
    }
}

/// The parameters of a launch, in the kernel's order: buffers, numbers, `x.rows.arg()`, `step.arg()`.
macro_rules! args {
    ($($arg:expr),* $(,)?) => {{
        let mut args = $crate::backend::cuda::kernels::Args::default();
        $($crate::backend::cuda::kernels::Arg::push(&$arg, &mut args);)*
        args
    }};
}
pub(super) use args;

/// A loaded fatbin.
struct Module {
    handle: sys::CUmodule,
    device: Arc<Device>,
}

// SAFETY: handles of the driver API may be used by any thread; each use makes the context current first.
unsafe impl Send for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.device.wait();
        // SAFETY: the module is this object's; nothing that was queued uses its kernels: the stream was waited for.
        let _ = self.device.call(|| unsafe { result::module::unload(self.handle) });
    }
}

/// A kernel, and the dynamic shared memory that it was allowed.
struct Function {
    handle: sys::CUfunction,
    shared: usize,
}

// SAFETY: as for a module.
unsafe impl Send for Function {}

/// Loads and launches kernels.
pub(super) struct Launcher {
    device: Arc<Device>,
    functions: Mutex<HashMap<(&'static str, &'static str), Function>>,
    modules: Mutex<HashMap<&'static str, Module>>,
    workspace: Mutex<Arc<Allocation>>,
    /// Set while a step is recorded: the memory that its kernels use, which its graph keeps.
    pub(super) recording: Mutex<Option<Vec<Arc<Allocation>>>>,
    /// Set while steps are measured: the most workspace that an op wants.
    measuring: Mutex<Option<usize>>,
}

impl Launcher {
    /// Loads one fatbin: a driver that takes it takes all.
    pub(super) fn new(device: Arc<Device>) -> Result<Launcher, Error> {
        let workspace = Allocation::new(&device, 0, WORKSPACE_NAME)?;
        let launcher = Launcher {
            device,
            functions: Mutex::default(),
            modules: Mutex::default(),
            workspace: Mutex::new(Arc::new(workspace)),
            recording: Mutex::default(),
            measuring: Mutex::default(),
        };
        if let Some(first) = ALL.first() {
            launcher.device.call(|| launcher.module(first)).map_err(|e| launcher.device.refused(e))?;
        }
        Ok(launcher)
    }

    /// Queues a kernel. What goes wrong is reported by the next call that returns an error; a launch without blocks
    /// does nothing.
    ///
    /// # Safety
    /// `args` mean what the kernel's parameters say, and the memory behind them is as large as the kernel, in this grid,
    /// takes it to be.
    pub(super) unsafe fn launch(&self, fatbin: &'static Fatbin, name: &'static str, grid: Grid, mut args: Args) {
        if grid.blocks.contains(&0) || self.device.failed() {
            return;
        }
        let [x, y, z] = grid.blocks.map(|n| n as u32);
        let measured = self.device.is_measuring();
        let launched = self.device.call(|| {
            let function = self.function(fatbin, name, grid.shared, &args)?;
            if measured {
                return Ok(());
            }
            let (threads, shared, stream) = ((grid.threads as u32, 1, 1), grid.shared as u32, self.device.stream());
            // SAFETY: the function is of a module that lives as long as this; the parameters are as the caller says.
            // Freeing their memory waits for the work, or for the graph that records it.
            unsafe { result::launch_kernel(function, (x, y, z), threads, shared, stream, &mut args.pointers()) }
        });
        if let Err(e) = launched {
            self.device.failed_with(self.device.error(e, &format!("launching {name}")));
            return;
        }
        if measured {
            return;
        }
        count_one(&self.device.counters.launches);
        if let Some(recording) = &mut *lock(&self.recording) {
            recording.append(&mut args.memory);
        }
    }

    /// A kernel that may use so much dynamic shared memory.
    fn function(
        &self,
        fatbin: &'static Fatbin,
        name: &'static str,
        shared: usize,
        args: &Args,
    ) -> Result<sys::CUfunction, DriverError> {
        let mut functions = lock(&self.functions);
        let function = match functions.entry((fatbin.name, name)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let text = CString::new(name).expect("kernels have names of C");
                let module = self.module(fatbin)?;
                // SAFETY: the module is loaded and lives as long as this.
                let handle = unsafe { result::module::get_function(module, text) }?;
                args.check(handle, name);
                place.insert(Function { handle, shared: 0 })
            }
        };
        // 48 KiB need no asking, but static shared memory is part of them.
        if shared > function.shared {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(function.handle, attribute, shared as i32) }?;
            function.shared = shared;
        }
        Ok(function.handle)
    }

    fn module(&self, fatbin: &'static Fatbin) -> Result<sys::CUmodule, DriverError> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(fatbin.name) {
            return Ok(module.handle);
        }
        // SAFETY: the image is a whole fatbin, as nvcc wrote it.
        let handle = unsafe { result::module::load_data(fatbin.image.0.as_ptr().cast()) }?;
        modules.insert(fatbin.name, Module { handle, device: self.device.clone() });
        Ok(handle)
    }

    /// Memory for what a kernel leaves to the next kernel of the same op: whoever asks next gets the same. Its values
    /// are undefined.
    ///
    /// # Panics
    /// In a step that is recorded, if it was not reserved.
    pub(super) fn workspace<T>(&self, len: usize) -> Workspace<'_, T> {
        let inside = self.device.enter();
        let bytes = len * size_of::<T>();
        if let Some(most) = &mut *lock(&self.measuring) {
            *most = (*most).max(bytes);
        } else if let Err(error) = self.grow(bytes) {
            // What this thread launches until it is told does nothing.
            self.device.fell_short(error);
        }
        Workspace { buffer: Buffer::within(lock(&self.workspace).clone(), len), _inside: inside }
    }

    /// Makes the workspace so large. Graphs go on using the one that they were recorded with.
    pub(super) fn grow(&self, bytes: usize) -> Result<(), Error> {
        let mut workspace = lock(&self.workspace);
        let there = workspace.bytes();
        if there < bytes {
            assert!(!self.device.is_recording(), "a step takes {bytes} bytes of workspace, {there} are reserved");
            *workspace = Arc::new(Allocation::new(&self.device, bytes, WORKSPACE_NAME)?);
        }
        Ok(())
    }

    /// The most workspace that one of `ops` wants, in bytes. They are not run, but their kernels are loaded.
    pub(super) fn measure(&self, ops: impl FnOnce()) -> usize {
        /// It ends, also if an op panics.
        struct Measuring<'a>(&'a Launcher);
        impl Drop for Measuring<'_> {
            fn drop(&mut self) {
                *lock(&self.0.measuring) = None;
                self.0.device.set_measuring(false);
            }
        }
        let _inside = self.device.enter();
        assert!(!self.device.is_recording() && !self.device.is_measuring(), "steps are measured inside a step");
        *lock(&self.measuring) = Some(0);
        self.device.set_measuring(true);
        let measuring = Measuring(self);
        ops();
        lock(&measuring.0.measuring).unwrap_or(0)
    }
}

/// Memory of an op; while it lives, no other thread queues work.
pub(super) struct Workspace<'a, T> {
    buffer: Buffer<T>,
    _inside: Entered<'a>,
}

impl<T> std::ops::Deref for Workspace<'_, T> {
    type Target = Buffer<T>;

    fn deref(&self) -> &Buffer<T> {
        &self.buffer
    }
}

impl<T> Arg for Workspace<'_, T> {
    fn push(&self, args: &mut Args) {
        self.buffer.push(args);
    }
}
