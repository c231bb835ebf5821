//! What a PTX text says, before any name is resolved. Field names are the terms of the PTX ISA.
#![allow(missing_docs)]

use std::ops::Range;

/// A line of the PTX text, counted from 1.
pub type Line = u32;

/// One PTX translation unit.
#[derive(Debug, Default)]
pub struct Module {
    /// `.version major.minor`.
    pub version: (u32, u32),
    /// The targets of `.target`, such as `sm_90a`.
    pub target: Vec<String>,
    /// Source files by the number that `.loc` uses.
    pub files: Vec<(u32, String)>,
    /// Variables at module scope.
    pub variables: Vec<Variable>,
    /// Kernels and device functions, declarations without a body included.
    pub functions: Vec<Function>,
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// `.reg`
    Reg,
    /// `.global`
    Global,
    /// `.shared` (of this block)
    Shared,
    /// `.local`
    Local,
    /// `.param`
    Param,
    /// `.const`
    Const,
    /// No space named: the address says which.
    Generic,
}

/// The type of a register, a variable's element or an instruction's operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    BF16,
    BF16x2,
    F32,
    F64,
}

impl Type {
    /// Size in bits; a predicate has one.
    pub fn bits(self) -> u32 {
        match self {
            Type::Pred => 1,
            Type::B8 | Type::U8 | Type::S8 => 8,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::BF16 => 16,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::BF16x2 => 32,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 64,
            Type::B128 => 128,
        }
    }

    /// The type that a suffix such as `s32` names.
    pub fn parse(text: &str) -> Option<Type> {
        Some(match text {
            "pred" => Type::Pred,
            "b8" => Type::B8,
            "b16" => Type::B16,
            "b32" => Type::B32,
            "b64" => Type::B64,
            "b128" => Type::B128,
            "u8" => Type::U8,
            "u16" => Type::U16,
            "u32" => Type::U32,
            "u64" => Type::U64,
            "s8" => Type::S8,
            "s16" => Type::S16,
            "s32" => Type::S32,
            "s64" => Type::S64,
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "bf16" => Type::BF16,
            "bf16x2" => Type::BF16x2,
            "f32" => Type::F32,
            "f64" => Type::F64,
            _ => return None,
        })
    }
}

/// A declared variable or family of registers (`%r<17>` declares `%r0` to `%r16`).
#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub space: Space,
    pub ty: Type,
    /// `.v2`, `.v4`: elements per vector.
    pub vector: u32,
    /// Array extents, outermost first; `[]` gives 0 (extern shared memory).
    pub dims: Vec<u64>,
    /// `%r<17>` gives 17; a single name gives none.
    pub family: Option<u32>,
    pub align: Option<u32>,
    pub external: bool,
    pub visible: bool,
    /// `.weak` or `.common`: another definition may stand for it.
    pub weak: bool,
    pub initial: Vec<Initial>,
    pub line: Line,
}

impl Variable {
    /// Bytes of one element, its vector included.
    pub fn element_bytes(&self) -> u64 {
        (self.ty.bits() as u64).div_ceil(8) * self.vector as u64
    }

    /// Bytes of the variable; none if they are too many to count or to address.
    pub fn bytes(&self) -> Option<u64> {
        let total = self.dims.iter().try_fold(self.element_bytes(), |a, b| a.checked_mul(*b))?;
        (total < 1 << 48).then_some(total)
    }

    /// The alignment: as declared, or that of an element.
    pub fn alignment(&self) -> u64 {
        self.align.map_or(self.element_bytes(), u64::from)
    }
}

/// One element of an initialiser, flattened in memory order.
#[derive(Clone, Debug)]
pub enum Initial {
    /// An integer or the bits of a float, already in the width of the element.
    Bits(u64),
    /// The address of a symbol plus an offset, or one byte of it: `0xFF00(symbol)` takes byte 1.
    Address { symbol: String, offset: i64, generic: bool, byte: Option<u8> },
    /// As many zeros: what an inner pair of braces leaves out.
    Zeros(u64),
}

/// A `.entry` or `.func`.
#[derive(Debug)]
pub struct Function {
    pub name: String,
    pub entry: bool,
    pub params: Vec<Variable>,
    pub returns: Vec<Variable>,
    /// `.maxntid 128`, `.minnctapersm`, `.reqnctapercluster`, ... with their numbers.
    pub directives: Vec<(String, Vec<u32>)>,
    /// None for a declaration.
    pub body: Option<Vec<Statement>>,
    pub line: Line,
}

/// A line of a function's body.
#[derive(Debug)]
pub enum Statement {
    Label(String, Line),
    Declare(Variable),
    Instruction(Instruction),
    /// `{ ... }`: names declared inside end with it.
    Scope(Vec<Statement>),
    /// `label: .branchtargets a, b, c;`
    BranchTargets {
        name: String,
        labels: Vec<String>,
        line: Line,
    },
    /// `label: .callprototype (...) _ (...);`
    CallPrototype {
        name: String,
        returns: Vec<Variable>,
        params: Vec<Variable>,
        line: Line,
    },
}

/// One instruction.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// `@%p1` or `@!%p1`.
    pub guard: Option<Guard>,
    /// The opcode without its modifiers: `ld`, `mma`, `cp`, `wgmma`.
    pub opcode: String,
    /// What follows the opcode, in order, without dots: `["global", "nc", "v4", "b32"]`.
    /// A modifier with `::` stays one: `"shared::cta"`, `"L2::128B"`.
    pub modifiers: Vec<String>,
    pub operands: Vec<Operand>,
    pub line: Line,
    /// Index into [`Module::files`]'s numbers and the source line, when `.loc` gave them.
    pub source: Option<(u32, u32)>,
}

/// The predicate that guards an instruction.
#[derive(Debug, Clone)]
pub struct Guard {
    pub name: String,
    pub negated: bool,
}

/// An operand as written.
#[derive(Debug, Clone)]
pub enum Operand {
    /// A register, special register (`%tid.x` is one name), variable, function or label.
    Name(String),
    /// `!%p1`
    Not(String),
    /// An integer literal; the sign is kept, unsigned literals reach 2^64 - 1.
    Int(i128),
    /// `0f3F800000`
    F32(u32),
    /// `0d3FF0000000000000`, or a decimal float
    F64(u64),
    /// `{a, b, c, d}`
    Vector(Vec<Operand>),
    /// `[base + offset]`; with a coordinate vector for tensors: `[map, {x, y}]`.
    Address { base: Box<Operand>, offset: i64, coordinates: Vec<Operand> },
    /// `%p1|%p2`, either may be `_`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)` of a call
    List(Vec<Operand>),
    /// `_`
    Sink,
    /// `-%r1` or `variable + 4` outside brackets
    Offset(Box<Operand>, i64),
    /// `%r1.x` style component of a vector register
    Component(String, u8),
    /// `%r1.b0`, `.h1` selectors of the video instructions
    Selector(String, Range<u8>),
}
