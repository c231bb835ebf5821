//! Decoded programs: what lowering makes of PTX and the machine runs.

use crate::machine::Cx;
use crate::ptx::ast::Line;

/// Addresses of functions are [`FUNCTION_WINDOW`] plus a multiple of [`FUNCTION_STRIDE`]: the function's index in
/// [`crate::program::Program::functions`].
pub const FUNCTION_WINDOW: u64 = 4 << 56;

/// See [`FUNCTION_WINDOW`].
pub const FUNCTION_STRIDE: u64 = 16;

/// What the machine does after an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// Go on with the next operation.
    Next,
    /// The operation has changed the warp's groups (branch, call, return, exit): choose anew.
    Regroup,
    /// The operation could not complete: try it again after other warps have run (a failed wait, a lock).
    Retry,
    /// The operation completed, but this group should let others run (`nanosleep`, a failed try-wait).
    Yield,
    /// A fault was recorded in [`Cx::fault`]; the launch ends.
    Fault,
}

/// Runs one operation for the lanes in [`Cx::mask`] (never empty).
///
/// # Safety
/// May need instruction sets that [`crate::machine::simd::choose`] has found on this machine.
pub type Run = unsafe fn(&mut Cx<'_>, &Op) -> Flow;

/// A source operand: a register of the current function's window, or a constant of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Src(pub u32);

impl Src {
    const CONSTANT: u32 = 1 << 31;

    /// Register `index` of the file that the operation reads (32-bit, 64-bit or predicates).
    pub fn register(index: u32) -> Src {
        debug_assert!(index & Self::CONSTANT == 0);
        Src(index)
    }

    /// Entry `index` of [`Code::constants`].
    pub fn constant(index: u32) -> Src {
        Src(index | Self::CONSTANT)
    }

    /// The constant's index, or none for a register.
    pub fn as_constant(self) -> Option<usize> {
        (self.0 & Self::CONSTANT != 0).then_some((self.0 & !Self::CONSTANT) as usize)
    }
}

/// A destination register of the file that the operation writes. [`Dst::SINK`] throws the result away (`_`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Dst(pub u32);

impl Dst {
    /// No register.
    pub const SINK: Dst = Dst(u32::MAX);
}

/// What an operation counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)]
pub enum Class {
    #[default]
    Integer,
    Float32,
    Float64,
    Half,
    Convert,
    Move,
    Control,
    GlobalLoad,
    GlobalStore,
    SharedLoad,
    SharedStore,
    LocalMemory,
    Atomic,
    Warp,
    Barrier,
    Async,
    Matrix,
}

/// The guard of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Predicate register, or `u32::MAX` for none.
    pub predicate: u32,
    /// `@!p`
    pub negated: bool,
}

impl Guard {
    /// Always executed.
    pub const ALWAYS: Guard = Guard { predicate: u32::MAX, negated: false };
}

/// One decoded instruction. Operands mean what its family says.
#[derive(Clone)]
pub struct Op {
    /// The semantics.
    pub run: Run,
    /// Lanes that take part.
    pub guard: Guard,
    /// Destinations.
    pub dst: [Dst; 2],
    /// Sources.
    pub src: [Src; 4],
    /// Immediate data of the family: offsets, bit sets, packed modifiers.
    pub imm: u64,
    /// More operands: a range of [`Code::list`], for vectors and fragments.
    pub list: (u32, u32),
    /// For the counters.
    pub class: Class,
    /// PTX line.
    pub line: Line,
}

/// A lowered function.
#[derive(Default)]
pub struct Code {
    /// The function's PTX name.
    pub name: String,
    /// Operations; a label is an index into them.
    pub ops: Vec<Op>,
    /// Source lines by operation: `(file, line)`, `(0, 0)` where unknown.
    pub sources: Vec<(u32, u32)>,
    /// Constants of [`Src::constant`].
    pub constants: Vec<u64>,
    /// Operands of [`Op::list`]: register indexes or constants; destinations as registers.
    pub list: Vec<Src>,
    /// Rows of the window: 32-bit registers (16-bit ones live in them, zero-extended), 64-bit registers, predicates.
    pub registers: (u32, u32, u32),
    /// Whether it calls `malloc` or `free`.
    pub heap: bool,
    /// Whether it asks where the shared memory is that CUDA reserves for itself.
    pub reserved_shared: bool,
    /// Bytes of local memory per lane that the window needs, device-function parameters included.
    pub local_bytes: u32,
}
