//! Matrix instructions of a warp (PTX ISA 9.0, sections 9.7.14.4 and 5): `mma.sync`, `wmma`, `ldmatrix`, `stmatrix`,
//! `movmatrix`.

mod exchange;
pub mod fragment;
pub mod mma;
pub mod number;
pub mod product;
#[cfg(test)]
pub(super) mod tests;
mod wmma;

use crate::code::{Flow, Src};
use crate::lower::{Lower, Result};
use crate::machine::fault::Kind;
use crate::machine::{Cx, FULL};
use crate::ptx::ast::{Instruction, Operand, Type};

/// Lowers the matrix instructions.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "mma" => Some(wmma::lower_mma(cx, i).unwrap_or_else(|| mma::lower(cx, i))),
        "wmma" => Some(wmma::lower(cx, i)),
        "ldmatrix" | "stmatrix" => Some(exchange::lower(cx, i)),
        "movmatrix" => Some(exchange::lower_move(cx, i)),
        _ => None,
    }
}

/// What an `.aligned` instruction returns unless all 32 lanes execute it: diverged lanes are waited for, missing ones are a
/// fault.
#[inline(always)]
pub fn aligned(cx: &mut Cx<'_>) -> Option<Flow> {
    if cx.mask == FULL {
        return None;
    }
    let flow = cx.whole_warp();
    Some(flow.unwrap_or_else(|| cx.fault(Kind::DivergentBarrier, "a matrix instruction in a warp that has lost lanes")))
}

/// A vector operand of `count` 32-bit registers; a single one may stand without braces.
pub fn registers(cx: &mut Lower, i: &Instruction, operand: &Operand, count: usize, written: bool) -> Result<Vec<Src>> {
    let items = match operand {
        Operand::Vector(items) => items.as_slice(),
        single => std::slice::from_ref(single),
    };
    if items.len() != count {
        return cx.error(i, format_args!("a vector of {} registers, not {count}", items.len()));
    }
    let mut list = Vec::with_capacity(count);
    for item in items {
        list.push(if written { Src(cx.dst(i, item, Type::B32)?.0) } else { cx.src(i, item, Type::B32)? });
    }
    Ok(list)
}
