//! The instruction set, a file per family: how each instruction is lowered, and what it does.

pub mod approximate;
pub mod async_copy;
#[cfg(test)]
mod async_races;
pub mod atomic;
pub mod bits;
pub mod builtins;
pub mod bulk;
pub mod carry;
mod cluster;
pub mod compare;
pub mod convert;
mod convert_packed;
mod discard;
pub mod exact;
pub mod float;
pub mod flow;
pub mod formats;
pub mod half;
mod hints;
pub mod integer;
pub mod lanes;
pub mod load_store;
pub mod logic;
pub mod matrix;
pub mod mbarrier;
pub mod moves;
mod pointer;
#[cfg(test)]
mod probe;
pub mod round;
pub mod special;
pub mod sync;
#[cfg(test)]
mod team;
pub mod tensor_map;
mod tensor_map_edit;
pub mod video;
pub mod warp;
pub mod wgmma;

use crate::lower::{Lower, Result};
use crate::ptx::ast::Instruction;

/// Lowers an instruction of the family, or returns none if the opcode is not the family's.
pub type Family = fn(&mut Lower, &Instruction) -> Option<Result<()>>;

/// Every family.
pub const FAMILIES: &[Family] = &[
    integer::lower,
    carry::lower,
    bits::lower,
    logic::lower,
    float::lower,
    approximate::lower,
    half::lower,
    compare::lower,
    convert::lower,
    video::lower,
    moves::lower,
    load_store::lower,
    discard::lower,
    matrix::lower,
    mbarrier::lower,
    async_copy::lower,
    bulk::lower,
    wgmma::lower,
    hints::lower,
    tensor_map_edit::lower,
    cluster::lower,
    flow::lower,
    atomic::lower,
    warp::lower,
    sync::lower,
];
