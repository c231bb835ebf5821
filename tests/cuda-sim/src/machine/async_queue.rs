//! Asynchronous copies in flight. One queue per block, so that they land late, early or in between as the schedule says.

use super::block::Block;
use super::fault::Fault;
use super::grid::Grid;

/// The copies of a block that have been issued and have not landed.
#[derive(Default)]
pub struct Queue {}

/// What a warp remembers of its asynchronous operations: its groups, committed and open.
#[derive(Default)]
pub struct WarpState {}

/// Called between the turns of warps: lands what the schedule lets land now.
pub fn turn(_block: &mut Block, _grid: &Grid<'_>) -> Result<(), Fault> {
    Ok(())
}

/// Called when no warp of the block can go on: lands at least one copy if any is in flight; whether it did.
pub fn idle(_block: &mut Block, _grid: &Grid<'_>) -> Result<bool, Fault> {
    Ok(false)
}

/// Called when all threads of the block have exited.
pub fn finish(_block: &mut Block, _grid: &Grid<'_>) -> Result<(), Fault> {
    Ok(())
}
