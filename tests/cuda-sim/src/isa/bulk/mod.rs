//! Bulk copies and their groups (PTX ISA 9.0, sections 9.7.9.25.4 and 5): `cp.async.bulk`, `cp.async.bulk.tensor`,
//! `cp.reduce.async.bulk`, between shared and global memory; and `st.async` (9.7.9.12), which completes as they do.

mod issue;
mod reduce;
#[cfg(test)]
mod tests;

use crate::check::race::{self, Engine};
use crate::code::{Class, Flow, Op};
use crate::isa::async_copy::immediate;
use crate::isa::mbarrier;
use crate::isa::pointer::{self, Into};
use crate::isa::tensor_map::{ATOM, DataType, MAX_RANK, Swizzle, TensorMap};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::Cx;
use crate::machine::async_queue::{self, global};
use crate::machine::block::Block;
use crate::machine::cluster;
use crate::machine::fault::{Fault, Kind};
use crate::machine::grid::Grid;
use crate::ptx::ast::{Instruction, Operand, Type};
pub use reduce::Reduction;

/// What a bulk copy does when it lands.
pub enum Work {
    /// Global to shared memory.
    Load {
        /// The source.
        from: u64,
        /// The offset in shared memory.
        to: u64,
        /// Bytes.
        bytes: u64,
        /// The mbarrier that it completes on.
        on: u64,
    },
    /// Shared to shared memory.
    Move {
        /// The address of the source in the cluster.
        from: u64,
        /// The offset of the destination.
        to: u64,
        /// Bytes.
        bytes: u64,
        /// The mbarrier that it completes on.
        on: u64,
    },
    /// Values of registers to shared memory: the transfer's data.
    Put {
        /// The offset in shared memory.
        to: u64,
        /// The mbarrier that it completes on.
        on: u64,
    },
    /// A tile of a tensor to shared memory.
    LoadTile {
        /// The tensor.
        map: Box<TensorMap>,
        /// The tile's first element.
        at: [i32; MAX_RANK],
        /// The offset in shared memory.
        to: u64,
        /// The mbarrier that it completes on.
        on: u64,
    },
    /// Shared to global memory.
    Store {
        /// The offset of the source.
        from: u64,
        /// The destination.
        to: u64,
        /// Bytes.
        bytes: u64,
        /// How the destination is combined with the source; overwritten if none.
        reduction: Option<Reduction>,
    },
    /// Shared memory to a tile of a tensor.
    StoreTile {
        /// The tensor.
        map: Box<TensorMap>,
        /// The tile's first element.
        at: [i32; MAX_RANK],
        /// The offset of the source.
        from: u64,
        /// How the destination is combined with the source; overwritten if none.
        reduction: Option<Reduction>,
    },
}

/// A bulk copy in flight.
pub struct Transfer {
    /// What it does.
    pub work: Work,
    /// The warp that issued it.
    pub warp: u32,
    /// The lane.
    pub lane: u32,
    /// PTX line.
    pub line: u32,
    /// The bulk group of its thread that it is in, if it is one that groups track.
    pub group: Option<u32>,
    /// Its number among the writes that complete on its mbarrier, for the race check.
    number: u32,
    /// The source in shared memory, once it was read.
    data: Option<Vec<u8>>,
}

impl Transfer {
    /// The mbarrier that it completes on.
    pub fn signals(&self) -> Option<u64> {
        match self.work {
            Work::Load { on, .. } | Work::Move { on, .. } | Work::Put { on, .. } | Work::LoadTile { on, .. } => {
                Some(on)
            }
            Work::Store { .. } | Work::StoreTile { .. } => None,
        }
    }

    /// Whether it still reads or writes shared memory.
    pub fn uses_shared(&self) -> bool {
        self.data.is_none() || self.signals().is_some()
    }

    /// Whether it still reads the shared memory of a block of the cluster into that of another.
    pub fn reads_from(&self, rank: u32) -> bool {
        matches!(self.work, Work::Move { from, .. } if cluster::split(from).0 == Some(rank)) && self.data.is_none()
    }

    /// Reads the source in shared memory, so that shared memory may be used again.
    pub fn read(&mut self, block: &mut Block, grid: &Grid<'_>) -> std::result::Result<(), Fault> {
        if self.data.is_some() {
            return Ok(());
        }
        self.data = match &self.work {
            Work::Store { from, bytes, .. } => {
                let mut data = vec![0; *bytes as usize];
                read_shared(block, grid, *from, &mut data)?;
                Some(data)
            }
            Work::StoreTile { map, at, from, .. } => Some(gather_tile(block, grid, map, *at, *from)?),
            Work::Move { from, bytes, .. } => {
                let mut data = vec![0; *bytes as usize];
                let (source, from) = block.at(*from)?;
                read_shared(source, grid, from, &mut data)?;
                Some(data)
            }
            _ => return Ok(()),
        };
        Ok(())
    }

    /// Moves the bytes and tells the mbarrier.
    pub fn land(&mut self, block: &mut Block, grid: &Grid<'_>) -> std::result::Result<(), Fault> {
        self.read(block, grid)?;
        self.transfer(block, grid)?;
        if let Some(on) = self.signals() {
            race::bulk_landed(block, on, self.number);
        }
        Ok(())
    }

    fn transfer(&self, block: &mut Block, grid: &Grid<'_>) -> std::result::Result<(), Fault> {
        let data = self.data.as_deref().unwrap_or_default();
        let mut last = usize::MAX;
        match &self.work {
            Work::Load { from, to, bytes, on } => {
                let source = global(grid, *from, *bytes, false, &mut last)?;
                let Some(target) = block.shared.get_mut(*to, *bytes) else {
                    return Err(block.shared.outside(*to, *bytes));
                };
                // SAFETY: `global` found the range in a live allocation; shared memory is the simulator's own.
                unsafe { std::ptr::copy_nonoverlapping(source.cast_const(), target.as_mut_ptr(), *bytes as usize) };
                block.shared.mark_init(*to, *bytes);
                mbarrier::complete_tx(block, *on, *bytes)
            }
            Work::Move { to, bytes, on, .. } => {
                let Some(target) = block.shared.get_mut(*to, *bytes) else {
                    return Err(block.shared.outside(*to, *bytes));
                };
                target.copy_from_slice(data);
                block.shared.mark_init(*to, *bytes);
                mbarrier::complete_tx(block, *on, *bytes)
            }
            Work::Put { to, on } => {
                let bytes = data.len() as u64;
                let Some(target) = block.shared.get_mut(*to, bytes) else {
                    return Err(block.shared.outside(*to, bytes));
                };
                target.copy_from_slice(data);
                block.shared.mark_init(*to, bytes);
                mbarrier::complete_tx(block, *on, bytes)
            }
            Work::LoadTile { map, at, to, on } => {
                scatter_tile(block, grid, map, *at, *to)?;
                mbarrier::complete_tx(block, *on, map.tile_bytes())
            }
            Work::Store { to, bytes, reduction, .. } => {
                let target = global(grid, *to, *bytes, true, &mut last)?;
                put(target, data, *reduction);
                Ok(())
            }
            Work::StoreTile { map, at, reduction, .. } => {
                for row in map.rows(*at).filter(|row| row.inside.0 < row.inside.1) {
                    let (start, end) = row.inside;
                    let target = global(grid, row.address, end - start, true, &mut last)?;
                    put(target, &data[(row.offset + start) as usize..(row.offset + end) as usize], *reduction);
                }
                Ok(())
            }
        }
    }
}

/// Writes to device memory that [`global`] has found.
fn put(target: *mut u8, data: &[u8], reduction: Option<Reduction>) {
    match reduction {
        // SAFETY: `global` found the range, as long as `data`, in a live allocation.
        None => unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) },
        // SAFETY: as above; bulk copies are aligned to 16 bytes, tensors to the size of their elements.
        Some(reduction) => unsafe { reduction.apply(target, data) },
    }
}

fn read_shared(block: &Block, grid: &Grid<'_>, from: u64, out: &mut [u8]) -> std::result::Result<(), Fault> {
    let length = out.len() as u64;
    let Some(bytes) = block.shared.get(from, length) else {
        return Err(block.shared.outside(from, length));
    };
    out.copy_from_slice(bytes);
    if grid.checks.init
        && let Some(first) = block.shared.first_uninitialised(from, length)
    {
        let fault = Fault::new(Kind::UninitialisedRead, "shared memory read by a bulk copy");
        return Err(fault.at_address(first, "shared memory"));
    }
    Ok(())
}

/// The pieces of a tile's row in shared memory that stay together: their offset and where they begin in the row.
fn pieces(swizzle: Swizzle, from: u64, length: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let step = if swizzle == Swizzle::None { length.max(1) } else { ATOM };
    (0..length).step_by(step as usize).map(move |at| {
        let end = (at + step).min(length);
        (swizzle.apply(from + at), at as usize..end as usize)
    })
}

/// Rounds an f32 to the nearest tf32, ties to even. How the hardware rounds ties is not documented.
fn round_to_tf32(bytes: &mut [u8]) {
    let bits = bytes.iter().rev().fold(0, |bits: u32, &byte| bits << 8 | u32::from(byte));
    if bits & 0x7f80_0000 != 0x7f80_0000 {
        let rounded = (bits + 0xfff + (bits >> 13 & 1)) & 0xffff_e000;
        bytes.copy_from_slice(&rounded.to_le_bytes());
    }
}

/// Copies a tile of a tensor to shared memory.
fn scatter_tile(
    block: &mut Block,
    grid: &Grid<'_>,
    map: &TensorMap,
    at: [i32; MAX_RANK],
    to: u64,
) -> std::result::Result<(), Fault> {
    let (bytes, fill, mut last) = (map.row_bytes(), map.fill(), usize::MAX);
    let mut line = vec![0u8; bytes as usize];
    for row in map.rows(at) {
        let (start, end) = row.inside;
        if start != 0 || end != bytes {
            line.chunks_mut(fill.len()).for_each(|chunk| chunk.copy_from_slice(&fill[..chunk.len()]));
        }
        if start < end {
            let source = global(grid, row.address, end - start, false, &mut last)?;
            let target = line[start as usize..end as usize].as_mut_ptr();
            // SAFETY: `global` found the range in a live allocation; `target` has as many bytes.
            unsafe { std::ptr::copy_nonoverlapping(source.cast_const(), target, (end - start) as usize) };
            if map.data_type == DataType::TF32 {
                line[start as usize..end as usize].chunks_exact_mut(4).for_each(round_to_tf32);
            }
        }
        for (address, range) in pieces(map.swizzle, to + row.offset, bytes) {
            let length = range.len() as u64;
            let Some(target) = block.shared.get_mut(address, length) else {
                return Err(block.shared.outside(address, length));
            };
            target.copy_from_slice(&line[range]);
            block.shared.mark_init(address, length);
        }
    }
    Ok(())
}

/// The tile that lies in shared memory, in its order before swizzling.
fn gather_tile(
    block: &Block,
    grid: &Grid<'_>,
    map: &TensorMap,
    at: [i32; MAX_RANK],
    from: u64,
) -> std::result::Result<Vec<u8>, Fault> {
    let mut tile = vec![0; map.tile_bytes() as usize];
    for row in map.rows(at).filter(|row| row.inside.0 < row.inside.1) {
        for (address, range) in pieces(map.swizzle, from + row.offset, map.row_bytes()) {
            let range = range.start + row.offset as usize..range.end + row.offset as usize;
            read_shared(block, grid, address, &mut tile[range])?;
        }
    }
    Ok(tile)
}

/// Lowers the bulk copies.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    if i.opcode == "st" && i.modifiers.first().is_some_and(|m| m == "async") {
        return Some(issue::lower_put(cx, i));
    }
    let names: Vec<&str> = i.modifiers.iter().take(3).map(String::as_str).collect();
    let (reduce, tensor) = match (i.opcode.as_str(), names.as_slice()) {
        ("cp", ["async", "bulk", rest @ ..]) => (false, rest.first() == Some(&"tensor")),
        ("cp", ["reduce", "async", "bulk"]) => (true, i.modifiers.get(3).is_some_and(|m| m == "tensor")),
        _ => return None,
    };
    let mut m = Modifiers::new(i);
    for _ in 0..2 + reduce as usize + tensor as usize {
        m.one_of(&[("reduce", ()), ("async", ()), ("bulk", ()), ("tensor", ())]);
    }
    Some(if m.take("commit_group") {
        lower_group(cx, i, m, false)
    } else if m.take("wait_group") {
        lower_group(cx, i, m, true)
    } else if m.take("prefetch") {
        issue::lower_prefetch(cx, i, m)
    } else if tensor {
        issue::lower_tensor(cx, i, m, reduce)
    } else {
        issue::lower_linear(cx, i, m, reduce)
    })
}

fn lower_group(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>, wait: bool) -> Result<()> {
    let read = wait && m.take("read");
    m.finish()?;
    cx.arity(i, &[wait as usize])?;
    let mut op = cx.op(i, Class::Async, if wait { wait_group } else { commit });
    if wait {
        op.imm = immediate(cx, i, &i.operands[0])? | (read as u64) << 32;
    }
    cx.emit(op);
    Ok(())
}

fn commit(cx: &mut Cx<'_>, _: &Op) -> Flow {
    cx.block.queue.bulk_commit(cx.warp.id, cx.mask);
    race::commit(cx.block, cx.warp.id, Engine::Bulk);
    Flow::Next
}

fn wait_group(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let read = op.imm >> 32 != 0;
    match async_queue::bulk_wait(cx.block, cx.grid, cx.warp.id, cx.mask, op.imm as u32, read) {
        Ok(()) => {
            race::wait_groups(cx, Engine::Bulk, op.imm as u32 as usize, false);
            Flow::Next
        }
        Err(fault) => cx.fail(fault),
    }
}
