//! Ranges for NVIDIA's profilers: the spans of `tracing`, named the same, when a tool listens.
//!
//! NVTX 3 has no library: a tool leaves the path of its own in `NVTX_INJECTION64_PATH`, and the program loads it and
//! hands it tables of function slots, which the tool fills (nvtx3/nvtxDetail/nvtxTypes.h). This is that handshake for the
//! two functions that ranges need. (cudarc's `nvtx` feature loads the library of NVTX 2, which CUDA no longer has.)

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The version of NVTX that this speaks.
const VERSION: u32 = 3;
/// Ids of the tables that a tool may ask for.
const CALLBACKS: u32 = 1;
const VERSION_INFO: u32 = 3;
/// Functions of each module, by its id: none, core, CUDA, OpenCL, CUDA runtime, domains, synchronisation. A tool may want
/// to fill them all; those that nobody calls are only there.
const FUNCTIONS: [u32; 7] = [0, 16, 9, 15, 7, 16, 7];
/// Module and function of `nvtxRangePushA(const char *)` and `nvtxRangePop(void)`.
const PUSH: (usize, usize) = (1, 9);
const POP: (usize, usize) = (1, 11);

/// The functions that the tool has given, by module.
static SLOTS: [[AtomicPtr<c_void>; 16]; 7] = [const { [const { AtomicPtr::new(std::ptr::null_mut()) }; 16] }; 7];

/// Addresses of the slots of a module.
#[repr(transparent)]
struct Table([*const AtomicPtr<c_void>; 16]);

// SAFETY: they are addresses of a static of atomics.
unsafe impl Sync for Table {}

const fn table(module: usize) -> Table {
    let mut addresses = [std::ptr::null(); 16];
    let mut index = 0;
    while index < 16 {
        addresses[index] = &raw const SLOTS[module][index];
        index += 1;
    }
    Table(addresses)
}

static TABLES: [Table; 7] = [table(0), table(1), table(2), table(3), table(4), table(5), table(6)];

#[repr(C)]
struct Callbacks {
    size: usize,
    module: extern "C" fn(c_int, *mut *const Table, *mut u32) -> c_int,
}

#[repr(C)]
struct VersionInfo {
    size: usize,
    version: u32,
    reserved: u32,
    set: extern "C" fn(u32),
}

static CALLBACK_TABLE: Callbacks = Callbacks { size: size_of::<Callbacks>(), module };
static VERSION_TABLE: VersionInfo = VersionInfo { size: size_of::<VersionInfo>(), version: VERSION, reserved: 0, set };

type Initialise = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;

extern "C" fn export(id: u32) -> *const c_void {
    match id {
        CALLBACKS => (&raw const CALLBACK_TABLE).cast(),
        VERSION_INFO => (&raw const VERSION_TABLE).cast(),
        _ => std::ptr::null(),
    }
}

extern "C" fn module(id: c_int, out: *mut *const Table, size: *mut u32) -> c_int {
    let Some(id) = usize::try_from(id).ok().filter(|id| (1..TABLES.len()).contains(id)) else { return 0 };
    // SAFETY: the tool gives two places to write to, or null for what it does not want.
    unsafe {
        if let Some(out) = out.as_mut() {
            *out = &raw const TABLES[id];
        }
        if let Some(size) = size.as_mut() {
            *size = FUNCTIONS[id];
        }
    }
    1
}

extern "C" fn set(_: u32) {}

/// Turns spans into ranges from now on, if a tool listens. Says why not if one should and does not.
pub fn listen() -> Result<(), String> {
    let Some(path) = std::env::var_os("NVTX_INJECTION64_PATH").filter(|path| !path.is_empty()) else { return Ok(()) };
    let failed = |e: &dyn std::fmt::Display| format!("NVTX_INJECTION64_PATH={}: {e}", path.to_string_lossy());
    // SAFETY: who sets the variable wants this library in the process; its initialisers are the tool's.
    let library = unsafe { libloading::Library::new(&path) }.map_err(|e| failed(&e))?;
    // SAFETY: the symbol has this type by NVTX's definition.
    let initialise = unsafe { library.get::<Initialise>(b"InitializeInjectionNvtx2\0") }.map_err(|e| failed(&e))?;
    // SAFETY: as above; the tables live as long as the process.
    if unsafe { initialise(export) } != 1 {
        return Err(failed(&"the tool does not want to listen"));
    }
    // The tool's functions are called until the end.
    std::mem::forget(library);
    tracing::subscriber::set_global_default(Ranges::default()).map_err(|e| failed(&e))
}

/// Opens a range.
fn push(name: &CString) {
    let function = SLOTS[PUSH.0][PUSH.1].load(Ordering::Acquire);
    if !function.is_null() {
        // SAFETY: the slot is the tool's nvtxRangePushA.
        let function = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char) -> c_int>(function) };
        function(name.as_ptr());
    }
}

/// Closes the range that this thread opened last.
fn pop() {
    let function = SLOTS[POP.0][POP.1].load(Ordering::Acquire);
    if !function.is_null() {
        // SAFETY: the slot is the tool's nvtxRangePop.
        let function = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(function) };
        function();
    }
}

/// Spans as ranges. A range needs a name only, so spans of one name are one span.
#[derive(Default)]
struct Ranges {
    names: Mutex<Vec<(&'static str, CString)>>,
}

impl Subscriber for Ranges {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("weft")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let name = span.metadata().name();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let index = names.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            names.push((name, CString::new(name).unwrap_or_default()));
            names.len() - 1
        });
        Id::from_u64(index as u64 + 1)
    }

    fn enter(&self, span: &Id) {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, name)) = names.get(span.into_u64() as usize - 1) {
            push(name);
        }
    }

    fn exit(&self, _: &Id) {
        pop();
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

    extern "C" fn heard_push(name: *const c_char) -> c_int {
        // SAFETY: the name is a string of C.
        let name = unsafe { CStr::from_ptr(name) };
        HEARD.lock().unwrap().push(name.to_str().unwrap().into());
        0
    }

    extern "C" fn heard_pop() -> c_int {
        HEARD.lock().unwrap().push("end".into());
        0
    }

    /// What a tool does when it is loaded: asks for the tables and fills the slots that it cares about.
    fn attach(export: extern "C" fn(u32) -> *const c_void) {
        assert!(export(0).is_null() && export(2).is_null());
        // SAFETY: the ids stand for these structs.
        let (callbacks, version) = unsafe { (&*export(1).cast::<Callbacks>(), &*export(3).cast::<VersionInfo>()) };
        assert_eq!((callbacks.size, version.size, version.version), (16, 24, 3));
        let (mut table, mut size) = (std::ptr::null(), 0);
        assert_eq!((callbacks.module)(0, &mut table, &mut size), 0);
        assert_eq!((callbacks.module)(7, &mut table, &mut size), 0);
        assert_eq!((callbacks.module)(1, &mut table, &mut size), 1);
        assert_eq!(size, 16);
        // SAFETY: the table has 16 addresses of slots.
        let slots = unsafe { &(*table).0 };
        for (index, function) in [(9, heard_push as *mut c_void), (11, heard_pop as *mut c_void)] {
            // SAFETY: the slot is a static.
            unsafe { &*slots[index] }.store(function, Ordering::Release);
        }
    }

    #[test]
    fn spans_become_ranges_of_the_tool() {
        attach(export);
        tracing::subscriber::with_default(Ranges::default(), || {
            let _outer = tracing::info_span!("step").entered();
            for _ in 0..2 {
                let _inner = tracing::info_span!("draft").entered();
                tracing::info!("events are no ranges");
            }
            let _foreign = tracing::info_span!(target: "other", "not ours").entered();
        });
        assert_eq!(*HEARD.lock().unwrap(), ["step", "draft", "end", "draft", "end", "end"]);
    }
}
