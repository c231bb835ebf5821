//! The instruction set, a file per family: how each instruction is lowered, and what it does.

pub mod integer;
pub mod moves;
pub mod special;

use crate::lower::{Lower, Result};
use crate::ptx::ast::Instruction;

/// Lowers an instruction of the family, or returns none if the opcode is not the family's.
pub type Family = fn(&mut Lower, &Instruction) -> Option<Result<()>>;

/// Every family.
pub const FAMILIES: &[Family] = &[integer::lower, moves::lower];
