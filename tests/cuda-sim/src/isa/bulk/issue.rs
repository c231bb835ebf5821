//! How bulk copies are lowered, checked and issued.

use std::iter::once;

use super::*;
use crate::check;
use crate::isa::tensor_map;
use crate::machine::access::Effect;
use crate::machine::async_queue::active;
use crate::memory::PARAM_WINDOW;

/// Bits of [`Op::imm`] above the pointers'.
const KIND: u32 = 8;
const MASKED: u64 = 1 << 12;
const RANK: u32 = 16;
const REDUCTION: u32 = 24;

const LOAD: u64 = 0;
const MOVE: u64 = 1;
const STORE: u64 = 2;

/// The number of arguments that `.multicast::cluster` and `.L2::cache_hint` add, and whether the first is there.
fn options(m: &mut Modifiers<'_>) -> (usize, bool) {
    let multicast = m.take("multicast::cluster");
    m.take("cta_group::1");
    let hint = m.take("L2::cache_hint");
    (multicast as usize + hint as usize, multicast)
}

/// Lowers the operands behind the regular ones: the mask of a multicast, and the cache policy, which changes nothing.
fn lower_options(cx: &mut Lower, i: &Instruction, op: &mut Op, first: usize, multicast: bool) -> Result<()> {
    let mut rest = i.operands[first..].iter();
    if multicast && let Some(mask) = rest.next() {
        op.src[1] = cx.src(i, mask, Type::B16)?;
        op.imm |= MASKED;
    }
    if let Some(policy) = rest.next() {
        cx.src(i, policy, Type::B64)?;
    }
    Ok(())
}

/// Lowers `cp.async.bulk` and `cp.reduce.async.bulk`.
pub fn lower_linear(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>, reduce: bool) -> Result<()> {
    let to = m.expect(&[("shared::cluster", Into::Shared), ("shared::cta", Into::Shared), ("global", Into::Global)])?;
    let from = m.expect(&[("global", Into::Global), ("shared::cta", Into::Shared)])?;
    let kind = match (from, to) {
        (Into::Global, Into::Shared) if !reduce => LOAD,
        (Into::Shared, Into::Shared) if !reduce => MOVE,
        (Into::Shared, Into::Global) => STORE,
        _ => return cx.error(i, "there is no such bulk copy, or it is not supported"),
    };
    m.expect(&[(if kind == STORE { "bulk_group" } else { "mbarrier::complete_tx::bytes" }, ())])?;
    let (extra, multicast) = options(&mut m);
    if multicast && kind != LOAD {
        return cx.error(i, "only loads can be multicast");
    }
    let reduction = if reduce { Some(Reduction::parse(&mut m)?) } else { None };
    m.finish()?;
    let regular = if kind == STORE { 3 } else { 4 };
    cx.arity(i, &[regular + extra])?;
    let mut pointers = vec![(&i.operands[0], to), (&i.operands[1], from)];
    if kind != STORE {
        pointers.push((&i.operands[3], Into::Shared));
    }
    let (list, imm) = pointer::lower(cx, i, &pointers)?;
    let mut op = cx.op(i, Class::Async, issue_linear);
    op.src[0] = cx.src(i, &i.operands[2], Type::B32)?;
    op.imm = imm | kind << KIND | Reduction::to_bits(reduction) << REDUCTION;
    op.list = cx.list(list);
    lower_options(cx, i, &mut op, regular, multicast)?;
    cx.emit(op);
    Ok(())
}

/// Lowers `cp.async.bulk.tensor` and `cp.reduce.async.bulk.tensor`.
pub fn lower_tensor(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>, reduce: bool) -> Result<()> {
    let rank = dimensions(&mut m)?;
    let load = m.expect(&[("shared::cluster", true), ("shared::cta", true), ("global", false)])?;
    if load && reduce {
        return cx.error(i, "a reduction goes to global memory");
    }
    m.expect(&[(if load { "global" } else { "shared::cta" }, ())])?;
    // CUTLASS writes the operation of a reduction before the load mode, PTX ISA 9.0 as well.
    let operation = if reduce { Some(reduce::operation(&mut m)?) } else { None };
    m.take("tile");
    m.expect(&[(if load { "mbarrier::complete_tx::bytes" } else { "bulk_group" }, ())])?;
    let (extra, multicast) = options(&mut m);
    m.finish()?;
    if multicast && !load {
        return cx.error(i, "only loads can be multicast");
    }
    let regular = if load { 3 } else { 2 };
    cx.arity(i, &[regular + extra])?;
    let (tensor, shared) = if load { (1, 0) } else { (0, 1) };
    let mut pointers = vec![(&i.operands[shared], Into::Shared), (&i.operands[tensor], Into::Global)];
    if load {
        pointers.push((&i.operands[2], Into::Shared));
    }
    let (mut list, imm) = pointer::lower(cx, i, &pointers)?;
    list.extend(coordinates(cx, i, &i.operands[tensor], rank)?);
    let mut op = cx.op(i, Class::Async, issue_tensor);
    let kind = if load { LOAD } else { STORE };
    op.imm = imm | kind << KIND | (rank as u64) << RANK | operation.map_or(0, |o| o as u64 + 1) << REDUCTION;
    op.list = cx.list(list);
    lower_options(cx, i, &mut op, regular, multicast)?;
    cx.emit(op);
    Ok(())
}

/// Lowers `st.async`.
pub fn lower_put(cx: &mut Lower, i: &Instruction) -> Result<()> {
    use Type::*;
    let mut m = Modifiers::new(i);
    m.expect(&[("async", ())])?;
    m.take("weak");
    let into = if m.take("shared::cluster") { Into::Shared } else { Into::GenericShared };
    m.expect(&[("mbarrier::complete_tx::bytes", ())])?;
    let count = m.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
    let ty = m.ty(&[B32, U32, S32, F32, B64, U64, S64, F64])?;
    m.finish()?;
    if count * ty.bits() > 128 {
        return cx.error(i, "at most 16 bytes are stored at once");
    }
    cx.arity(i, &[3])?;
    let values = match &i.operands[1] {
        Operand::Vector(values) => values.as_slice(),
        value => std::slice::from_ref(value),
    };
    if values.len() != count as usize {
        return cx.error(i, format_args!("{} values, not {count}", values.len()));
    }
    let (mut list, imm) = pointer::lower(cx, i, &[(&i.operands[0], into), (&i.operands[2], into)])?;
    for value in values {
        list.push(cx.src(i, value, ty)?);
    }
    let mut op = cx.op(i, Class::Async, issue_put);
    op.imm = imm | u64::from(ty.bits() / 8) << RANK;
    op.list = cx.list(list);
    cx.emit(op);
    Ok(())
}

fn dimensions(m: &mut Modifiers<'_>) -> Result<usize> {
    m.expect(&[("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)])
}

fn coordinates(cx: &mut Lower, i: &Instruction, operand: &Operand, rank: usize) -> Result<Vec<crate::code::Src>> {
    let Operand::Address { coordinates, .. } = operand else {
        return cx.error(i, format_args!("operand {operand:?} is not a tensor"));
    };
    if coordinates.len() != rank {
        return cx.error(i, format_args!("{} coordinates", coordinates.len()));
    }
    coordinates.iter().map(|c| cx.src(i, c, Type::B32)).collect()
}

/// Lowers `cp.async.bulk.prefetch`: the caches are not modelled, so it only reads its operands.
pub fn lower_prefetch(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>) -> Result<()> {
    let rank = if m.take("tensor") { Some(dimensions(&mut m)?) } else { None };
    m.expect(&[("L2", ())])?;
    m.expect(&[("global", ())])?;
    if rank.is_some() {
        m.take("tile");
    }
    let hint = m.take("L2::cache_hint") as usize;
    m.finish()?;
    cx.arity(i, &[if rank.is_some() { 1 } else { 2 } + hint])?;
    pointer::lower(cx, i, &[(&i.operands[0], Into::Global)])?;
    match rank {
        Some(rank) => drop(coordinates(cx, i, &i.operands[0], rank)?),
        None => drop(cx.src(i, &i.operands[1], Type::B32)?),
    }
    let op = cx.op(i, Class::Async, nothing);
    cx.emit(op);
    Ok(())
}

fn nothing(_: &mut Cx<'_>, _: &Op) -> Flow {
    Flow::Next
}

type Issued = std::result::Result<(), Fault>;

fn issue_linear(cx: &mut Cx<'_>, op: &Op) -> Flow {
    match linear(cx, op) {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}

fn issue_tensor(cx: &mut Cx<'_>, op: &Op) -> Flow {
    match tensor(cx, op) {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}

/// The blocks of the cluster that a load of a lane goes to, as a bit set, the offset in their shared memory and that of
/// the mbarrier. A multicast goes to the same offsets in each block of its mask.
fn targets(cx: &Cx<'_>, op: &Op, lane: usize, to: u64, on: u64) -> std::result::Result<(u32, u64, u64), Fault> {
    let ((rank, to), (other, on)) = (cluster::split(to), cluster::split(on));
    let (rank, other) = (rank.unwrap_or(cx.block.rank), other.unwrap_or(cx.block.rank));
    if rank != other {
        let message = "a bulk copy to one block of the cluster that completes on an mbarrier of another";
        return Err(Fault::new(Kind::InvalidOperation, message));
    }
    let mask = if op.imm & MASKED == 0 { 1u32.wrapping_shl(rank) } else { cx.b32(op.src[1])[lane] & 0xffff };
    let count = cx.block.peers.count();
    if mask == 0 || mask >> count != 0 {
        let message = format!("a bulk copy to the blocks {mask:#b} of a cluster of {count}");
        return Err(Fault::new(Kind::InvalidOperation, message));
    }
    Ok((mask, to, on))
}

/// The blocks of a set, checked: their shared memory holds the destination, and an mbarrier.
fn check_targets(cx: &mut Cx<'_>, mask: u32, to: u64, bytes: u64, on: u64) -> Issued {
    for rank in active(mask) {
        let (block, _) = cx.block.at(cluster_address(cx.block.rank, rank as u32))?;
        mbarrier::phase(block, on)?;
        inside(block, to, bytes)?;
    }
    Ok(())
}

/// Some address in the shared memory of a block, for its own the plain one.
fn cluster_address(own: u32, rank: u32) -> u64 {
    if own == rank { 0 } else { cluster::address(rank, 0) }
}

fn aligned(value: u64, to: u64, what: &str, space: &str) -> Issued {
    if value.is_multiple_of(to) {
        return Ok(());
    }
    let message = format!("{what} of a bulk copy must be a multiple of {to}");
    Err(Fault::new(Kind::Misaligned, message).at_address(value, space))
}

fn linear(cx: &mut Cx<'_>, op: &Op) -> Issued {
    let (to, from) = (pointer::read(cx, op, 0)?, pointer::read(cx, op, 1)?);
    let kind = op.imm >> KIND & 3;
    let on = if kind == STORE { [0; 32] } else { pointer::read(cx, op, 2)? };
    let sizes = cx.b32(op.src[0]);
    let reduction = Reduction::from_bits(op.imm >> REDUCTION);
    for lane in active(cx.mask) {
        let (to, from, bytes, on) = (to[lane], from[lane], sizes[lane] as u64, on[lane]);
        let mut issue = || {
            aligned(bytes, 16, "the size", "bytes")?;
            aligned(to, 16, "the destination", "memory")?;
            aligned(from, 16, "the source", "memory")?;
            if kind != LOAD {
                inside(cx.block, from, bytes)?;
            }
            if kind == STORE {
                return send(cx, op, lane, cx.block.rank, Work::Store { from, to, bytes, reduction });
            }
            let (mask, to, on) = targets(cx, op, lane, to, on)?;
            check_targets(cx, mask, to, bytes, on)?;
            for rank in active(mask) {
                let source = cluster_source(cx, from);
                let work = match kind {
                    LOAD => Work::Load { from, to, bytes, on },
                    _ => Work::Move { from: source, to, bytes, on },
                };
                send(cx, op, lane, rank as u32, work)?;
            }
            Ok(())
        };
        issue().map_err(|fault: Fault| fault.at_lane(lane as u32))?;
    }
    Ok(())
}

fn issue_put(cx: &mut Cx<'_>, op: &Op) -> Flow {
    match put_values(cx, op) {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}

fn put_values(cx: &mut Cx<'_>, op: &Op) -> Issued {
    let (to, on) = (pointer::read(cx, op, 0)?, pointer::read(cx, op, 1)?);
    let size = (op.imm >> RANK & 0xf) as usize;
    let values = op.list.0 as usize + 4..op.list.1 as usize;
    for lane in active(cx.mask) {
        let mut data = Vec::new();
        for at in values.clone() {
            let src = cx.code.list[at];
            let bits = if size == 8 { cx.b64(src)[lane] } else { u64::from(cx.b32(src)[lane]) };
            data.extend_from_slice(&bits.to_le_bytes()[..size]);
        }
        let mut issue = || {
            let bytes = data.len() as u64;
            aligned(to[lane], bytes, "the destination", "shared memory")?;
            let (mask, to, on) = targets(cx, op, lane, to[lane], on[lane])?;
            check_targets(cx, mask, to, bytes, on)?;
            let owner = mask.trailing_zeros();
            let warp = cx.warp.id;
            let number = race::bulk_issue(cx.block, owner, (warp, lane as u32), on, (to, bytes), op.line)?;
            let data = Some(std::mem::take(&mut data));
            let transfer = Transfer {
                work: Work::Put { to, on },
                warp,
                lane: lane as u32,
                line: op.line,
                group: None,
                number,
                data,
            };
            async_queue::issue_bulk(cx.block, cx.grid, owner, transfer)
        };
        issue().map_err(|fault| fault.at_lane(lane as u32))?;
    }
    Ok(())
}

fn inside(block: &Block, at: u64, bytes: u64) -> Issued {
    if block.shared.get(at, bytes).is_some() { Ok(()) } else { Err(block.shared.outside(at, bytes)) }
}

fn tensor(cx: &mut Cx<'_>, op: &Op) -> Issued {
    let (shared, maps) = (pointer::read(cx, op, 0)?, pointer::read(cx, op, 1)?);
    let load = op.imm >> KIND & 3 == LOAD;
    let on = if load { pointer::read(cx, op, 2)? } else { [0; 32] };
    let rank = (op.imm >> RANK & 0xf) as usize;
    let mut at = [[0i32; MAX_RANK]; 32];
    for d in 0..rank {
        let row = cx.b32(cx.code.list[op.list.1 as usize - rank + d]);
        at.iter_mut().zip(row).for_each(|(at, value)| at[d] = value as i32);
    }
    for lane in active(cx.mask) {
        let result = (|| {
            let map = read_map(cx, maps[lane])?;
            if map.rank != rank {
                let message = format!("a copy of {rank} dimensions with a tensor map of {}", map.rank);
                return Err(Fault::new(Kind::InvalidOperation, message).at_address(maps[lane], "tensor map"));
            }
            aligned(shared[lane], map.shared_align(), "the address in shared memory", "shared memory")?;
            let (map, at) = (Box::new(map), at[lane]);
            if !load {
                inside(cx.block, shared[lane], map.tile_bytes())?;
                let reduction = reduce::for_tensor(op.imm >> REDUCTION, map.data_type)?;
                return send(cx, op, lane, cx.block.rank, Work::StoreTile { map, at, from: shared[lane], reduction });
            }
            let (mask, to, on) = targets(cx, op, lane, shared[lane], on[lane])?;
            check_targets(cx, mask, to, map.tile_bytes(), on)?;
            active(mask).try_for_each(|rank| {
                let work = Work::LoadTile { map: map.clone(), at, to, on };
                send(cx, op, lane, rank as u32, work)
            })
        })();
        result.map_err(|fault| fault.at_lane(lane as u32))?;
    }
    Ok(())
}

/// The address in the cluster of an offset in the executing block's shared memory.
fn cluster_source(cx: &Cx<'_>, from: u64) -> u64 {
    if cx.block.peers.count() == 1 { from } else { cluster::address(cx.block.rank, from) }
}

/// Issues a copy to a block of the cluster; one to global memory is its own block's.
fn send(cx: &mut Cx<'_>, op: &Op, lane: usize, owner: u32, work: Work) -> Issued {
    let (warp, lane) = (cx.warp.id, lane as u32);
    let grouped = matches!(work, Work::Store { .. } | Work::StoreTile { .. });
    let group = grouped.then(|| cx.block.queue.bulk_group(warp, lane));
    let number = watch(cx, &work, (warp, lane), op.line, owner)?;
    let transfer = Transfer { work, warp, lane, line: op.line, group, number, data: None };
    async_queue::issue_bulk(cx.block, cx.grid, owner, transfer)
}

/// Shows a copy to a block of the cluster to the checks and counters; its number for [`Transfer::number`].
fn watch(
    cx: &mut Cx<'_>,
    work: &Work,
    (warp, lane): (u32, u32),
    line: u32,
    owner: u32,
) -> std::result::Result<u32, Fault> {
    let rows = |cx: &mut Cx<'_>, map: &TensorMap, at: [i32; MAX_RANK], effect: Effect| {
        let inside = map.rows(at).filter(|row| row.inside.0 < row.inside.1);
        check::bulk(cx, inside.map(|row| (row.address, row.inside.1 - row.inside.0)), effect)
    };
    let written = |reduction: &Option<Reduction>| if reduction.is_some() { Effect::Atomic } else { Effect::Store };
    match work {
        // Values of registers are read at once.
        Work::Put { .. } => Ok(0),
        Work::Load { from, to, bytes, on } => {
            check::bulk(cx, once((*from, *bytes)), Effect::Load)?;
            race::bulk_issue(cx.block, owner, (warp, lane), *on, (*to, *bytes), line)
        }
        Work::Move { from, to, bytes, on } => {
            race::shared_range(cx, 1 << lane, (cluster::split(*from).1, *bytes), false, line)?;
            race::bulk_issue(cx.block, owner, (warp, lane), *on, (*to, *bytes), line)
        }
        Work::LoadTile { map, at, to, on } => {
            rows(cx, map, *at, Effect::Load)?;
            race::bulk_issue(cx.block, owner, (warp, lane), *on, (*to, map.tile_bytes()), line)
        }
        Work::Store { from, to, bytes, reduction } => {
            check::bulk(cx, once((*to, *bytes)), written(reduction))?;
            race::store_issue(cx.block, (warp, lane), *from, *bytes, line).map(|()| 0)
        }
        Work::StoreTile { map, at, from, reduction } => {
            rows(cx, map, *at, written(reduction))?;
            race::store_issue(cx.block, (warp, lane), *from, map.tile_bytes(), line).map(|()| 0)
        }
    }
}

/// The tensor map at a generic address: a kernel parameter, or in global memory.
fn read_map(cx: &Cx<'_>, address: u64) -> std::result::Result<TensorMap, Fault> {
    let at = |fault: Fault| fault.at_address(address, "tensor map");
    if !address.is_multiple_of(64) {
        return Err(at(Fault::new(Kind::Misaligned, "a tensor map must be aligned to 64 bytes")));
    }
    let mut bytes = [0; tensor_map::BYTES];
    if address >> 56 == PARAM_WINDOW >> 56 {
        let start = (address & 0xff_ffff) as usize;
        let Some(found) = cx.grid.params.get(start..start + bytes.len()) else {
            return Err(at(Fault::new(Kind::OutOfBounds, "a tensor map past the end of the parameters")));
        };
        bytes.copy_from_slice(found);
    } else {
        let host = global(cx.grid, address, bytes.len() as u64, false, &mut usize::MAX.clone())?;
        // SAFETY: `global` found the range in a live allocation.
        unsafe { std::ptr::copy_nonoverlapping(host.cast_const(), bytes.as_mut_ptr(), bytes.len()) };
    }
    TensorMap::decode(&bytes).map_err(|error| at(Fault::new(Kind::InvalidOperation, error.to_string())))
}
