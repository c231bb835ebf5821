//! Programs: a PTX module after lowering.

use std::collections::HashMap;
use std::sync::Arc;

use crate::code::Code;

/// A parameter of a kernel, as `cuLaunchKernel` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Offset in the parameter space.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// A kernel.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Index into [`Program::functions`].
    pub function: usize,
    /// Its parameters in order.
    pub params: Vec<Param>,
    /// Bytes of its parameter space.
    pub param_bytes: u32,
    /// Bytes of shared memory that the module declares for it.
    pub static_shared: u32,
    /// Alignment that its shared memory asks for.
    pub shared_align: u32,
    /// Bytes of local memory per thread, without calls.
    pub local_bytes: u32,
    /// `.maxntid`
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`
    pub cluster: Option<[u32; 3]>,
}

/// A variable of the module in global or constant memory.
#[derive(Clone, Debug)]
pub struct GlobalVariable {
    /// Its PTX name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u32,
    /// Whether it is in `.const`.
    pub constant: bool,
    /// Where it was placed.
    pub address: u64,
    /// What it holds at first; shorter than the size when the rest is zero.
    pub initial: Vec<u8>,
}

/// A PTX module after lowering.
#[derive(Clone, Default)]
pub struct Program {
    /// Every function with a body.
    pub functions: Vec<Arc<Code>>,
    /// Kernels by name.
    pub entries: HashMap<String, Entry>,
    /// Variables at module scope.
    pub variables: Vec<GlobalVariable>,
    /// Source files by the number that `.loc` uses.
    pub files: Vec<(u32, String)>,
    /// The target's compute capability times ten, and whether it is an `a` target.
    pub target: (u32, bool),
}

impl Program {
    /// Whether a function calls `malloc` or `free`.
    pub fn uses_heap(&self) -> bool {
        self.functions.iter().any(|function| function.heap)
    }

    /// The name of a source file.
    pub fn file(&self, number: u32) -> Option<&str> {
        self.files.iter().find(|(n, _)| *n == number).map(|(_, name)| name.as_str())
    }
}
