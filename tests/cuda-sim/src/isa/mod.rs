//! The instruction set, a file per family: how each instruction is lowered, and what it does.

pub mod async_copy;
pub mod bulk;
mod hints;
pub mod integer;
pub mod matrix;
pub mod mbarrier;
pub mod moves;
mod pointer;
pub mod special;
#[cfg(test)]
mod team;
pub mod tensor_map;
pub mod wgmma;

use crate::lower::{Lower, Result};
use crate::ptx::ast::Instruction;

/// Lowers an instruction of the family, or returns none if the opcode is not the family's.
pub type Family = fn(&mut Lower, &Instruction) -> Option<Result<()>>;

/// Every family.
pub const FAMILIES: &[Family] = &[
    integer::lower,
    moves::lower,
    matrix::lower,
    mbarrier::lower,
    async_copy::lower,
    bulk::lower,
    wgmma::lower,
    hints::lower,
];
