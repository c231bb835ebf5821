//! Syntax tree to decoded operations. Strict: what is not understood to the last modifier is an error.

mod context;
mod function;
mod initial;
mod layout;
mod liveness;
mod modifiers;
mod module;
mod scope;

use std::collections::HashMap;

pub use context::{Builtin, Callee, Context, FunctionInfo, Signature, Slot};
pub use modifiers::Modifiers;
pub use scope::{Scopes, Symbol};

use crate::code::{Class, Code, Dst, Guard, Op, Run, Src};
use crate::isa::{moves, special};
use crate::ptx::ast::{Instruction, Operand, Space, Type};
pub use crate::ptx::{Error, Result};
use liveness::Touch;

/// The register file of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// Predicates.
    Pred,
    /// 32 bits and less.
    B32,
    /// 64 bits.
    B64,
    /// 128 bits: two rows of the 64-bit file, low half first.
    B128,
}

impl File {
    /// Where values of a type live.
    pub fn of(ty: Type) -> File {
        match ty.bits() {
            1 => File::Pred,
            64 => File::B64,
            128 => File::B128,
            _ => File::B32,
        }
    }
}

/// Lowers one function: resolves names and appends operations.
#[derive(Default)]
pub struct Lower {
    /// What has been lowered so far.
    pub code: Code,
    /// Names in scope.
    pub scopes: Scopes,
    /// Whether the function is a kernel: its parameters are in the parameter space, others' in local memory.
    pub in_kernel: bool,
    constants: HashMap<u64, u32>,
    guard: Option<Guard>,
    source: (u32, u32),
    carry: Option<u32>,
    line: u32,
    /// Whether the instruction takes registers wider than its type.
    wider: bool,
    /// Whether its registers are used after it.
    asynchronous: bool,
    /// Operation index of each label, once it has been passed.
    labels: Vec<u32>,
    /// The instruction that each label stands before.
    label_instructions: Vec<u32>,
    /// Operations whose `imm` is a label, and entries of [`Code::list`] that are labels.
    branches: Vec<(usize, u32)>,
    targets: Vec<(usize, u32)>,
}

/// The instruction as written, without operands.
pub fn name(i: &Instruction) -> String {
    let parts = std::iter::once(i.opcode.as_str()).chain(i.modifiers.iter().map(String::as_str));
    parts.collect::<Vec<_>>().join(".")
}

impl Lower {
    /// The error of an instruction.
    pub fn error<T>(&self, i: &Instruction, message: impl std::fmt::Display) -> Result<T> {
        Err(Error { line: i.line, message: format!("`{}`: {message}", name(i)) })
    }

    /// The number of operands must be one of `counts`.
    pub fn arity(&self, i: &Instruction, counts: &[usize]) -> Result<()> {
        if counts.contains(&i.operands.len()) {
            return Ok(());
        }
        self.error(i, format_args!("{} operands", i.operands.len()))
    }

    /// A name in scope. For its kind and type: registers are read and written through [`Lower::src`] and
    /// [`Lower::dst`], which note it for the assignment of rows.
    pub fn lookup(&self, name: &str) -> Option<Symbol> {
        self.scopes.lookup(name)
    }

    /// A constant of the function's pool.
    pub fn constant(&mut self, bits: u64) -> Src {
        let code = &mut self.code;
        let index = *self.constants.entry(bits).or_insert_with(|| {
            code.constants.push(bits);
            code.constants.len() as u32 - 1
        });
        Src::constant(index)
    }

    /// The condition code register `CC.CF`: a predicate that the function has once it is used.
    pub fn carry(&mut self) -> u32 {
        *self.carry.get_or_insert_with(|| {
            let row = self.scopes.temporary(Type::Pred);
            // It lives from instruction to instruction, unseen by the assignment of rows.
            self.scopes.pin(row, Type::Pred);
            row
        })
    }

    /// A source operand of type `ty`: a register of its file and at least its width, a literal cut to its width, an
    /// address, or a special register.
    pub fn src(&mut self, i: &Instruction, operand: &Operand, ty: Type) -> Result<Src> {
        match operand {
            Operand::Name(name) => self.named(i, name, 0, ty),
            Operand::Offset(base, offset) => match &**base {
                Operand::Name(name) => self.named(i, name, *offset, ty),
                _ => self.error(i, format_args!("operand {operand:?} is not a value of type {ty:?}")),
            },
            Operand::Component(name, index) => match self.lookup(name) {
                Some(Symbol::Vector(row, declared, count)) if (*index as u32) < count => {
                    self.register(i, name, component(row, declared, *index), declared, ty)
                }
                _ => self.error(i, format_args!("`{name}` has no component {index}")),
            },
            Operand::Int(value) => {
                let bits = *value as u64 & if ty.bits() >= 64 { u64::MAX } else { (1 << ty.bits()) - 1 };
                Ok(self.constant(if ty == Type::Pred { (*value != 0) as u64 } else { bits }))
            }
            Operand::F32(bits) if ty.bits() == 32 => Ok(self.constant(*bits as u64)),
            Operand::F64(bits) if ty == Type::F32 => Ok(self.constant((f64::from_bits(*bits) as f32).to_bits() as u64)),
            Operand::F64(bits) if ty.bits() == 64 => Ok(self.constant(*bits)),
            _ => self.error(i, format_args!("operand {operand:?} is not a value of type {ty:?}")),
        }
    }

    fn register(&mut self, i: &Instruction, name: &str, row: u32, declared: Type, ty: Type) -> Result<Src> {
        let integer = !matches!(ty, Type::F16 | Type::BF16 | Type::F16x2 | Type::BF16x2 | Type::F32);
        if i.opcode == "cvt" && integer && File::of(declared) == File::B64 && File::of(ty) == File::B32 {
            self.scopes.touch(row, declared, Touch::Read);
            let low = self.scopes.temporary(Type::B32);
            self.emit(moves::low_half(self, i, Dst(low), Src::register(row)));
            return Ok(Src::register(low));
        }
        if !self.fits(declared, ty) {
            return self.error(i, format_args!("`{name}` is a {declared:?}, not a {ty:?}"));
        }
        self.scopes.touch(row, declared, Touch::Read);
        self.keep(row, declared);
        Ok(Src::register(row))
    }

    /// Registers of an asynchronous product are read and written after its instruction.
    fn keep(&self, row: u32, ty: Type) {
        if self.asynchronous {
            self.scopes.pin(row, ty);
        }
    }

    /// Whether a register may stand where a type is due: of its width, or wider in loads, stores and conversions
    /// (PTX ISA, section 9.4.1).
    fn fits(&self, declared: Type, ty: Type) -> bool {
        let same_file = File::of(declared) == File::of(ty);
        same_file && (declared.bits() == ty.bits() || self.wider && declared.bits() > ty.bits())
    }

    /// The value of a name plus an offset, which only addresses may have.
    fn named(&mut self, i: &Instruction, name: &str, offset: i64, ty: Type) -> Result<Src> {
        let address = ty.bits() == 64 || ty.bits() == 32;
        match self.lookup(name) {
            Some(Symbol::Register(row, declared)) if offset == 0 => self.register(i, name, row, declared, ty),
            Some(Symbol::Address(base, Space::Local)) if address => {
                let row = self.scopes.temporary(ty);
                self.emit(moves::local_address(self, i, Dst(row), ty, base.wrapping_add(offset as u64)));
                Ok(Src::register(row))
            }
            Some(Symbol::Address(base, Space::Global | Space::Const)) if ty.bits() == 64 => {
                Ok(self.constant(base.wrapping_add(offset as u64)))
            }
            Some(Symbol::Address(base, Space::Shared | Space::Param)) if address => {
                Ok(self.constant(base.wrapping_add(offset as u64)))
            }
            Some(Symbol::DynamicShared) if address => {
                let row = self.scopes.temporary(ty);
                self.emit(moves::dynamic_shared_address(self, i, Dst(row), ty, offset));
                Ok(Src::register(row))
            }
            Some(Symbol::Function(index)) if ty.bits() == 64 && offset == 0 => {
                match self.scopes.module.function_address(index) {
                    Some(address) => Ok(self.constant(address)),
                    None => self.error(i, format_args!("`{name}` has no address")),
                }
            }
            Some(_) => self.error(i, format_args!("`{name}` is not a value of type {ty:?}")),
            None if offset == 0 && name.starts_with('%') => match special::read(self, i, name)? {
                Some((row, declared)) => self.register(i, name, row, declared, ty),
                None => self.error(i, format_args!("`{name}` is not declared")),
            },
            None => self.error(i, format_args!("`{name}` is not declared")),
        }
    }

    /// A destination of type `ty`, or `_`.
    pub fn dst(&mut self, i: &Instruction, operand: &Operand, ty: Type) -> Result<Dst> {
        let (name, found) = match operand {
            Operand::Sink => return Ok(Dst::SINK),
            Operand::Name(name) => (name, self.lookup(name)),
            Operand::Component(name, index) => match self.lookup(name) {
                Some(Symbol::Vector(row, declared, count)) if (*index as u32) < count => {
                    (name, Some(Symbol::Register(component(row, declared, *index), declared)))
                }
                other => (name, other),
            },
            _ => return self.error(i, format_args!("operand {operand:?} is not a register")),
        };
        match found {
            Some(Symbol::Register(row, declared)) if self.fits(declared, ty) => {
                let touch = if self.guard.is_none() { Touch::Overwrite } else { Touch::Write };
                self.scopes.touch(row, declared, touch);
                self.keep(row, declared);
                Ok(Dst(row))
            }
            Some(_) => self.error(i, format_args!("`{name}` is not a register of type {ty:?}")),
            None => self.error(i, format_args!("`{name}` is not declared")),
        }
    }

    /// Appends operands to [`Code::list`]; the range for [`Op::list`].
    pub fn list(&mut self, operands: impl IntoIterator<Item = Src>) -> (u32, u32) {
        let start = self.code.list.len() as u32;
        self.code.list.extend(operands);
        (start, self.code.list.len() as u32)
    }

    /// An operation with the instruction's guard and line, for the family to fill in.
    pub fn op(&self, i: &Instruction, class: Class, run: Run) -> Op {
        Op {
            run,
            guard: self.guard.unwrap_or(Guard::ALWAYS),
            dst: [Dst::SINK; 2],
            src: [Src::default(); 4],
            imm: 0,
            list: (0, 0),
            class,
            line: i.line,
        }
    }

    /// Appends an operation.
    pub fn emit(&mut self, op: Op) {
        self.code.ops.push(op);
        self.code.sources.push(self.source);
    }

    /// Lowers one instruction through its family.
    pub fn instruction(&mut self, i: &Instruction) -> Result<()> {
        self.scopes.trace.get_mut().instruction += 1;
        self.guard = match &i.guard {
            None => None,
            Some(g) => match self.lookup(&g.name) {
                Some(Symbol::Register(row, Type::Pred)) => {
                    self.scopes.touch(row, Type::Pred, Touch::Read);
                    Some(Guard { predicate: row, negated: g.negated })
                }
                _ => return self.error(i, format_args!("guard `{}` is not a predicate", g.name)),
            },
        };
        self.source = i.source.unwrap_or((0, 0));
        self.line = i.line;
        self.asynchronous = i.opcode == "wgmma";
        if i.guard.is_none() && matches!(i.opcode.as_str(), "bra" | "brx" | "ret" | "exit" | "trap") {
            self.scopes.trace.get_mut().stop();
        }
        self.wider = matches!(i.opcode.as_str(), "ld" | "ldu" | "st" | "cvt");
        let expanded = self.expand_vectors(i);
        let i = expanded.as_ref().unwrap_or(i);
        for family in crate::isa::FAMILIES {
            if let Some(result) = family(self, i) {
                return result;
            }
        }
        self.error(i, "unknown instruction")
    }

    /// A vector register stands for the braces with its components.
    fn expand_vectors(&self, i: &Instruction) -> Option<Instruction> {
        let vector = |operand: &Operand| match operand {
            Operand::Name(name) => match self.lookup(name) {
                Some(Symbol::Vector(_, _, count)) => {
                    Some(Operand::Vector((0..count as u8).map(|n| Operand::Component(name.clone(), n)).collect()))
                }
                _ => None,
            },
            _ => None,
        };
        if !self.scopes.has_vectors() || i.operands.iter().all(|o| vector(o).is_none()) {
            return None;
        }
        let operands = i.operands.iter().map(|o| vector(o).unwrap_or_else(|| o.clone())).collect();
        Some(Instruction { operands, ..i.clone() })
    }
}

/// The row of a component of a vector register.
fn component(first: u32, ty: Type, index: u8) -> u32 {
    first + index as u32 * if File::of(ty) == File::B128 { 2 } else { 1 }
}
