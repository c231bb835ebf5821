//! Races: accesses that nothing orders.

use crate::machine::Cx;

/// A warp arrives at a barrier of its block.
pub fn barrier_arrive(_cx: &mut Cx<'_>, _barrier: u32) {}

/// A warp goes on behind a barrier of its block that has completed.
pub fn barrier_leave(_cx: &mut Cx<'_>, _barrier: u32) {}

/// A warp has executed a fence; whether its scope is the block.
pub fn fence(_cx: &mut Cx<'_>, _block_scope: bool) {}
