//! A warp: 32 lanes, their registers, and the groups into which divergence has split them.

use super::Row;

/// Lanes that run together.
#[derive(Clone, Debug)]
pub struct Group {
    /// Index of the next operation in the function that the group is in.
    pub pc: u32,
    /// Its lanes.
    pub mask: u32,
}

/// The state of a warp.
#[derive(Default)]
pub struct Warp {
    /// 32-bit registers of all windows on the call stack.
    pub b32: Vec<Row<u32>>,
    /// 64-bit registers.
    pub b64: Vec<Row<u64>>,
    /// Predicates, a bit per lane.
    pub preds: Vec<u32>,
    /// Where the current function's window begins in the three.
    pub window: (usize, usize, usize),
    /// The groups of lanes that have not exited.
    pub groups: Vec<Group>,
}
