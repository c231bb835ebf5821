//! Syntax tree to decoded operations. Strict: what is not understood to the last modifier is an error.

mod modifiers;
mod scope;

use std::collections::HashMap;

pub use modifiers::Modifiers;
pub use scope::{Scopes, Symbol};

use crate::code::{Class, Code, Dst, Guard, Op, Run, Src};
use crate::ptx::ast::{Instruction, Operand, Statement, Type};

pub use crate::ptx::{Error, Result};

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
    constants: HashMap<u64, u32>,
    guard: Option<Guard>,
    source: (u32, u32),
}

impl Lower {
    /// The error of an instruction.
    pub fn error<T>(&self, i: &Instruction, message: impl std::fmt::Display) -> Result<T> {
        let name = std::iter::once(i.opcode.as_str()).chain(i.modifiers.iter().map(String::as_str));
        let name = name.collect::<Vec<_>>().join(".");
        Err(Error { line: i.line, message: format!("`{name}`: {message}") })
    }

    /// The number of operands must be one of `counts`.
    pub fn arity(&self, i: &Instruction, counts: &[usize]) -> Result<()> {
        if counts.contains(&i.operands.len()) {
            return Ok(());
        }
        self.error(i, format_args!("{} operands", i.operands.len()))
    }

    /// A name in scope.
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

    /// A source operand of type `ty`: a register of its file and at least its width, or a literal cut to its width.
    pub fn src(&mut self, i: &Instruction, operand: &Operand, ty: Type) -> Result<Src> {
        match operand {
            Operand::Name(name) => match self.lookup(name) {
                Some(Symbol::Register(row, declared)) => {
                    if File::of(declared) != File::of(ty) || declared.bits() < ty.bits() {
                        return self.error(i, format_args!("`{name}` is a {declared:?}, not a {ty:?}"));
                    }
                    Ok(Src::register(row))
                }
                Some(Symbol::Address(address, _)) if ty.bits() >= 32 => Ok(self.constant(address)),
                Some(_) => self.error(i, format_args!("`{name}` is not a value of type {ty:?}")),
                None => self.error(i, format_args!("`{name}` is not declared")),
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

    /// A destination of type `ty`, or `_`.
    pub fn dst(&mut self, i: &Instruction, operand: &Operand, ty: Type) -> Result<Dst> {
        match operand {
            Operand::Sink => Ok(Dst::SINK),
            Operand::Name(name) => match self.lookup(name) {
                Some(Symbol::Register(row, declared))
                    if File::of(declared) == File::of(ty) && declared.bits() >= ty.bits() =>
                {
                    Ok(Dst(row))
                }
                Some(_) => self.error(i, format_args!("`{name}` is not a register of type {ty:?}")),
                None => self.error(i, format_args!("`{name}` is not declared")),
            },
            _ => self.error(i, format_args!("operand {operand:?} is not a register")),
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

    /// Lowers statements in a scope of their own.
    pub fn statements(&mut self, statements: &[Statement]) -> Result<()> {
        self.scopes.open();
        for statement in statements {
            match statement {
                Statement::Declare(v) if v.space == crate::ptx::ast::Space::Reg => self.scopes.registers(v)?,
                Statement::Instruction(i) => self.instruction(i)?,
                Statement::Scope(inner) => self.statements(inner)?,
                _ => return Err(Error { line: 0, message: "not supported".into() }),
            }
        }
        self.code.registers = self.scopes.rows;
        Ok(())
    }

    /// Lowers one instruction through its family.
    pub fn instruction(&mut self, i: &Instruction) -> Result<()> {
        self.guard = match &i.guard {
            None => None,
            Some(g) => match self.lookup(&g.name) {
                Some(Symbol::Register(row, Type::Pred)) => Some(Guard { predicate: row, negated: g.negated }),
                _ => return self.error(i, format_args!("guard `{}` is not a predicate", g.name)),
            },
        };
        self.source = i.source.unwrap_or((0, 0));
        for family in crate::isa::FAMILIES {
            if let Some(result) = family(self, i) {
                return result;
            }
        }
        self.error(i, "unknown instruction")
    }
}
