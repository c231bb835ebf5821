//! What can go wrong, and its `CUresult`.

use std::ffi::{CStr, c_char};

use super::abi::{Out, entries};
use super::handles::Kind;
use crate::device::{ConfigError, Site};
use crate::memory;

/// The result of a driver call, as C sees it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CuResult(pub u32);

macro_rules! results {
    ($($name:ident = $code:literal: $text:literal,)*) => {
        #[allow(missing_docs)]
        impl CuResult {
            $(pub const $name: CuResult = CuResult($code);)*
        }

        /// Every result: code, name, what it says.
        const RESULTS: &[(u32, &CStr, &CStr)] = &[$((
            $code,
            match CStr::from_bytes_with_nul(concat!("CUDA_", stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => c"",
            },
            match CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()) {
                Ok(text) => text,
                Err(_) => c"",
            },
        ),)*];
    };
}

results! {
    SUCCESS = 0: "no error",
    ERROR_INVALID_VALUE = 1: "invalid argument",
    ERROR_OUT_OF_MEMORY = 2: "out of memory",
    ERROR_NOT_INITIALIZED = 3: "initialization error",
    ERROR_DEINITIALIZED = 4: "driver shutting down",
    ERROR_PROFILER_DISABLED = 5: "profiler disabled while using external profiling tool",
    ERROR_STUB_LIBRARY = 34: "CUDA driver is a stub library",
    ERROR_DEVICE_UNAVAILABLE = 46: "CUDA-capable device(s) is/are busy or unavailable",
    ERROR_NO_DEVICE = 100: "no CUDA-capable device is detected",
    ERROR_INVALID_DEVICE = 101: "invalid device ordinal",
    ERROR_INVALID_IMAGE = 200: "device kernel image is invalid",
    ERROR_INVALID_CONTEXT = 201: "invalid device context",
    ERROR_MAP_FAILED = 205: "mapping of buffer object failed",
    ERROR_NO_BINARY_FOR_GPU = 209: "no kernel image is available for execution on the device",
    ERROR_ECC_UNCORRECTABLE = 214: "uncorrectable ECC error encountered",
    ERROR_UNSUPPORTED_LIMIT = 215: "limit is not supported on this architecture",
    ERROR_INVALID_PTX = 218: "a PTX JIT compilation failed",
    ERROR_JIT_COMPILER_NOT_FOUND = 221: "PTX JIT compiler library not found",
    ERROR_UNSUPPORTED_PTX_VERSION = 222: "the provided PTX was compiled with an unsupported toolchain.",
    ERROR_INVALID_SOURCE = 300: "device kernel image is invalid",
    ERROR_FILE_NOT_FOUND = 301: "file not found",
    ERROR_OPERATING_SYSTEM = 304: "OS call failed or operation not supported on this OS",
    ERROR_INVALID_HANDLE = 400: "invalid resource handle",
    ERROR_ILLEGAL_STATE = 401: "the operation cannot be performed in the present state",
    ERROR_NOT_FOUND = 500: "named symbol not found",
    ERROR_NOT_READY = 600: "device not ready",
    ERROR_ILLEGAL_ADDRESS = 700: "an illegal memory access was encountered",
    ERROR_LAUNCH_OUT_OF_RESOURCES = 701: "too many resources requested for launch",
    ERROR_LAUNCH_TIMEOUT = 702: "the launch timed out and was terminated",
    ERROR_PRIMARY_CONTEXT_ACTIVE = 708: "cannot set while device is active in this process",
    ERROR_CONTEXT_IS_DESTROYED = 709: "context is destroyed",
    ERROR_ASSERT = 710: "device-side assert triggered",
    ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712: "part or all of the requested memory range is already mapped",
    ERROR_HOST_MEMORY_NOT_REGISTERED = 713: "pointer does not correspond to a registered memory region",
    ERROR_HARDWARE_STACK_ERROR = 714: "hardware stack error",
    ERROR_ILLEGAL_INSTRUCTION = 715: "an illegal instruction was encountered",
    ERROR_MISALIGNED_ADDRESS = 716: "misaligned address",
    ERROR_INVALID_ADDRESS_SPACE = 717: "operation not supported on global/shared address space",
    ERROR_INVALID_PC = 718: "invalid program counter",
    ERROR_LAUNCH_FAILED = 719: "unspecified launch failure",
    ERROR_COOPERATIVE_LAUNCH_TOO_LARGE = 720: "too many blocks in cooperative launch",
    ERROR_NOT_PERMITTED = 800: "operation not permitted",
    ERROR_NOT_SUPPORTED = 801: "operation not supported",
    ERROR_STREAM_CAPTURE_UNSUPPORTED = 900: "operation not permitted when stream is capturing",
    ERROR_STREAM_CAPTURE_INVALIDATED = 901: "operation failed due to a previous error during capture",
    ERROR_STREAM_CAPTURE_MERGE = 902: "operation would result in a merge of separate capture sequences",
    ERROR_STREAM_CAPTURE_UNMATCHED = 903: "capture was not ended in the same stream as it began",
    ERROR_STREAM_CAPTURE_UNJOINED = 904: "capturing stream has unjoined work",
    ERROR_STREAM_CAPTURE_ISOLATION = 905: "dependency created on uncaptured work in another stream",
    ERROR_STREAM_CAPTURE_IMPLICIT = 906: "operation would make the legacy stream depend on a capturing blocking stream",
    ERROR_CAPTURED_EVENT = 907: "operation not permitted on an event last recorded in a capturing stream",
    ERROR_STREAM_CAPTURE_WRONG_THREAD = 908: "attempt to terminate a thread-local capture sequence from another thread",
    ERROR_GRAPH_EXEC_UPDATE_FAILURE = 910: "the graph update was not performed because it included changes which violated constraints specific to instantiated graph update",
    ERROR_INVALID_CLUSTER_SIZE = 912: "invalid cluster size",
    ERROR_UNKNOWN = 999: "unknown error",
}

impl CuResult {
    /// Its name, `CUDA_ERROR_...`.
    pub fn name(self) -> &'static str {
        lookup(self).and_then(|r| r.1.to_str().ok()).unwrap_or("an unknown result")
    }
}

fn lookup(result: CuResult) -> Option<&'static (u32, &'static CStr, &'static CStr)> {
    RESULTS.iter().find(|r| r.0 == result.0)
}

/// Why a driver call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `cuInit` has not been called.
    #[error("cuInit has not been called")]
    NotInitialised,
    /// A pointer that must not be null is.
    #[error("an argument is a null pointer")]
    Null,
    /// An argument is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// A handle is of another kind, was destroyed, or is none.
    #[error("{handle:#x} is not a live {kind}")]
    Handle {
        /// What was expected.
        kind: Kind,
        /// What came.
        handle: usize,
    },
    /// The device number is not 0.
    #[error("there is no device {0}")]
    Device(i32),
    /// No context is current.
    #[error("no context is current")]
    NoContext,
    /// The current context was destroyed.
    #[error("the current context was destroyed")]
    ContextDestroyed,
    /// The context had a fault before; nothing works in it any more.
    #[error("the context is dead after an earlier error")]
    Sticky(CuResult),
    /// A kernel faulted; the finding is already printed.
    #[error("a kernel faulted")]
    Fault(CuResult),
    /// The device is lost.
    #[error("the device is lost (injected)")]
    Lost,
    /// A failure that `CUDA_SIM_FAIL` asked for.
    #[error("injected failure {0:?}")]
    Injected(Site),
    /// Device memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Host memory.
    #[error("out of host memory: {0} bytes")]
    HostMemory(usize),
    /// The module's PTX was refused.
    #[error("{0}")]
    Ptx(String),
    /// The module's PTX is of a version that this driver does not know.
    #[error("{0}")]
    PtxVersion(String),
    /// The module is no PTX and no fatbin.
    #[error("{0}")]
    Image(String),
    /// The module holds nothing that the device can run.
    #[error("{0}")]
    NoBinary(String),
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Its name.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// No such kernel, variable or function.
    #[error("{kind} `{name}` was not found")]
    NotFound {
        /// What it should be.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is no table of undocumented functions. Libraries ask for many; it is no finding.
    #[error("there is no such table of functions")]
    NoTable,
    /// A kernel has fewer parameters. Programs count them so; it is no finding.
    #[error("the kernel has no such parameter")]
    NoParameter,
    /// The device knows nothing of an address. Programs ask in order to find out; it is no finding.
    #[error("{0:#x} is in no allocation")]
    NotDevice(u64),
    /// The work is not done.
    #[error("not ready")]
    NotReady,
    /// The launch asks for more than there is.
    #[error("{0}")]
    Resources(String),
    /// A cooperative grid does not fit on the device.
    #[error("{0}")]
    CooperativeTooLarge(String),
    /// The cluster's shape is wrong.
    #[error("{0}")]
    Cluster(String),
    /// The simulator does not have this.
    #[error("{0} is not supported by the simulator")]
    NotSupported(String),
    /// The call is not allowed here.
    #[error("{0}")]
    NotPermitted(&'static str),
    /// The state of an object forbids the call.
    #[error("{0}")]
    State(&'static str),
    /// A rule of stream capture is broken.
    #[error("{1}")]
    Capture(CuResult, &'static str),
    /// A graph cannot be updated so.
    #[error("{0}")]
    GraphUpdate(String),
    /// Host memory that is or is not registered.
    #[error("{1}")]
    Registration(CuResult, &'static str),
    /// The context's limit does not exist here.
    #[error("limit {0} does not exist on this device")]
    Limit(u32),
    /// The primary context is in use.
    #[error("the primary context is active")]
    PrimaryActive,
    /// The environment says something unknown.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The result of a driver function's body.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An argument out of its range.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::Invalid(message.into())
    }

    /// The one place where errors become results.
    pub fn result(&self) -> CuResult {
        match self {
            Error::NotInitialised => CuResult::ERROR_NOT_INITIALIZED,
            Error::Null | Error::Invalid(_) | Error::Config(_) => CuResult::ERROR_INVALID_VALUE,
            Error::NotDevice(_) | Error::NoParameter => CuResult::ERROR_INVALID_VALUE,
            Error::Handle { kind: Kind::Context, .. } => CuResult::ERROR_INVALID_CONTEXT,
            Error::Handle { .. } => CuResult::ERROR_INVALID_HANDLE,
            Error::Device(_) => CuResult::ERROR_INVALID_DEVICE,
            Error::NoContext => CuResult::ERROR_INVALID_CONTEXT,
            Error::ContextDestroyed => CuResult::ERROR_CONTEXT_IS_DESTROYED,
            Error::Sticky(result) | Error::Fault(result) => *result,
            Error::Lost => CuResult::ERROR_UNKNOWN,
            Error::Injected(site) => injected(*site),
            Error::Memory(memory::Error::OutOfMemory { .. }) | Error::HostMemory(_) => CuResult::ERROR_OUT_OF_MEMORY,
            Error::Memory(_) => CuResult::ERROR_INVALID_VALUE,
            Error::Ptx(_) => CuResult::ERROR_INVALID_PTX,
            Error::PtxVersion(_) => CuResult::ERROR_UNSUPPORTED_PTX_VERSION,
            Error::Image(_) => CuResult::ERROR_INVALID_IMAGE,
            Error::NoBinary(_) => CuResult::ERROR_NO_BINARY_FOR_GPU,
            Error::File { .. } => CuResult::ERROR_FILE_NOT_FOUND,
            Error::NotFound { .. } | Error::NoTable => CuResult::ERROR_NOT_FOUND,
            Error::NotReady => CuResult::ERROR_NOT_READY,
            Error::Resources(_) => CuResult::ERROR_LAUNCH_OUT_OF_RESOURCES,
            Error::CooperativeTooLarge(_) => CuResult::ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
            Error::Cluster(_) => CuResult::ERROR_INVALID_CLUSTER_SIZE,
            Error::NotSupported(_) => CuResult::ERROR_NOT_SUPPORTED,
            Error::NotPermitted(_) => CuResult::ERROR_NOT_PERMITTED,
            Error::State(_) => CuResult::ERROR_ILLEGAL_STATE,
            Error::Capture(result, _) | Error::Registration(result, _) => *result,
            Error::GraphUpdate(_) => CuResult::ERROR_GRAPH_EXEC_UPDATE_FAILURE,
            Error::Limit(_) => CuResult::ERROR_UNSUPPORTED_LIMIT,
            Error::PrimaryActive => CuResult::ERROR_PRIMARY_CONTEXT_ACTIVE,
        }
    }

    /// Whether it is worth a line on stderr: not an answer (`NOT_READY`), what programs expect (out of memory), what was
    /// asked for (injections), or what was printed before.
    pub fn is_finding(&self) -> bool {
        !matches!(
            self,
            Error::NotReady
                | Error::NoTable
                | Error::NotDevice(_)
                | Error::Sticky(_)
                | Error::Fault(_)
                | Error::Injected(_)
                | Error::Lost
                | Error::HostMemory(_)
                | Error::NoParameter
                | Error::Memory(memory::Error::OutOfMemory { .. })
        )
    }
}

fn injected(site: Site) -> CuResult {
    match site {
        Site::Alloc | Site::Pinned | Site::Module => CuResult::ERROR_OUT_OF_MEMORY,
        Site::Copy => CuResult::ERROR_INVALID_VALUE,
        Site::Launch => CuResult::ERROR_LAUNCH_OUT_OF_RESOURCES,
        Site::Sticky => CuResult::ERROR_ILLEGAL_ADDRESS,
        Site::Ecc => CuResult::ERROR_ECC_UNCORRECTABLE,
        Site::Lost => CuResult::ERROR_UNKNOWN,
    }
}

entries! {
    /// The name of a result. Works without `cuInit`.
    fn cuGetErrorName(error: u32, name: Out<*const c_char>) {
        describe(error, name, |r| r.1)
    }

    /// What a result says. Works without `cuInit`.
    fn cuGetErrorString(error: u32, text: Out<*const c_char>) {
        describe(error, text, |r| r.2)
    }
}

type Row = (u32, &'static CStr, &'static CStr);

/// An unknown result gives a null pointer and `INVALID_VALUE`, as the API says.
fn describe(error: u32, out: Out<*const c_char>, of: impl Fn(&Row) -> &'static CStr) -> Result<()> {
    match lookup(CuResult(error)) {
        Some(row) => out.set(of(row).as_ptr()),
        None => {
            out.set(std::ptr::null())?;
            Err(Error::invalid(format!("{error} is no CUresult")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_there_for_every_result() {
        for (code, name, text) in RESULTS {
            assert!(name.to_str().unwrap().starts_with("CUDA_"), "{code}");
            assert!(!text.is_empty(), "{code}");
        }
        assert_eq!(CuResult::ERROR_ILLEGAL_ADDRESS.name(), "CUDA_ERROR_ILLEGAL_ADDRESS");
        assert!(RESULTS.is_sorted_by_key(|r| r.0));
    }
}
