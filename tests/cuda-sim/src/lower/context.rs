//! What a module declares, as its functions see it.

use std::collections::HashMap;

use super::Symbol;
use crate::code::{FUNCTION_STRIDE, FUNCTION_WINDOW};
use crate::ptx::ast::Variable;
use crate::ptx::{Error, Result};

/// Module-scope names and functions.
#[derive(Default)]
pub struct Context {
    /// Variables and functions by name.
    pub symbols: HashMap<String, Symbol>,
    /// Functions by the index of [`Symbol::Function`].
    pub functions: Vec<FunctionInfo>,
}

impl Context {
    /// The address of a function of [`Context::functions`]; none if it has no code that a thread can call.
    pub fn function_address(&self, index: u32) -> Option<u64> {
        match self.functions.get(index as usize)?.callee {
            Callee::Code(code) => Some(FUNCTION_WINDOW + code as u64 * FUNCTION_STRIDE),
            _ => None,
        }
    }
}

/// A function that can be called.
pub struct FunctionInfo {
    /// Its name.
    pub name: String,
    /// What it takes and gives.
    pub signature: Signature,
    /// What a call runs.
    pub callee: Callee,
}

/// What a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    /// A function of the module, by its index in [`crate::program::Program::functions`].
    Code(u32),
    /// A function of the CUDA runtime, done by the simulator.
    Builtin(Builtin),
    /// A kernel: only the host can launch it.
    Kernel,
    /// Declared and nowhere defined.
    Undefined,
}

/// A function of the CUDA runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// `int vprintf(const char *format, const char *arguments)`
    Vprintf,
    /// `void __assertfail(const char *message, const char *file, unsigned line, const char *function, size_t width)`
    Assertfail,
    /// `void *malloc(size_t size)`
    Malloc,
    /// `void free(void *pointer)`
    Free,
}

impl Builtin {
    /// The function of a name.
    pub fn named(name: &str) -> Option<Builtin> {
        match name {
            "vprintf" => Some(Builtin::Vprintf),
            "__assertfail" => Some(Builtin::Assertfail),
            "malloc" => Some(Builtin::Malloc),
            "free" => Some(Builtin::Free),
            _ => None,
        }
    }
}

/// A parameter or result in a frame of local memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its first byte from the frame's start; a multiple of 4.
    pub offset: u32,
    /// Its size as declared.
    pub bytes: u32,
}

impl Slot {
    /// 32-bit words that hold it.
    pub fn words(self) -> u32 {
        self.bytes.div_ceil(4)
    }
}

/// Where a function's parameters and results lie at the start of its frame: parameters first, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// The parameters.
    pub params: Vec<Slot>,
    /// The results.
    pub returns: Vec<Slot>,
    /// Bytes of both.
    pub bytes: u32,
}

impl Signature {
    /// Lays out what a function, or a prototype, declares.
    pub fn new(params: &[Variable], returns: &[Variable]) -> Result<Signature> {
        let mut signature = Signature::default();
        for (variables, slots) in [(params, &mut signature.params), (returns, &mut signature.returns)] {
            for v in variables {
                slots.push(place(v, &mut signature.bytes)?);
            }
        }
        Ok(signature)
    }
}

/// The next place in a frame for a variable.
pub fn place(v: &Variable, end: &mut u32) -> Result<Slot> {
    let error = |message: &str| Err(Error { line: v.line, message: format!("`{}`: {message}", v.name) });
    if v.space == crate::ptx::ast::Space::Reg {
        return error("parameters in registers are not supported");
    }
    // Frames are aligned to 16 bytes and moved by words.
    let align = v.alignment().max(4);
    if align > 16 {
        return error("local memory is aligned to 16 bytes at most");
    }
    if v.dims.contains(&0) {
        return error("a variable without a size");
    }
    let bytes = v.bytes().filter(|n| *n <= MOST_LOCAL as u64);
    let offset = end.next_multiple_of(align as u32);
    match bytes.and_then(|n| offset.checked_add((n as u32).next_multiple_of(4))).filter(|n| *n <= MOST_LOCAL) {
        Some(next) => {
            *end = next;
            Ok(Slot { offset, bytes: bytes.unwrap_or(0) as u32 })
        }
        None => error("more than 512 KiB of local memory"),
    }
}

/// Local memory that a thread may have (CUDA C++ Programming Guide, technical specifications).
const MOST_LOCAL: u32 = 512 << 10;
