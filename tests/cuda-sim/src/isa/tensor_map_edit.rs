//! Tensor maps that kernels make: `tensormap.replace` and `tensormap.cp_fenceproxy` (PTX ISA 9.0, sections 9.7.9.28 and
//! 9.7.13.17).

use crate::check::{self, race};
use crate::code::{Class, Flow, Op};
use crate::isa::async_copy::immediate;
use crate::isa::matrix::aligned;
use crate::isa::pointer::{self, Into};
use crate::isa::tensor_map::{self, BYTES, Field};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::Cx;
use crate::machine::access::Effect;
use crate::machine::async_queue::{active, global};
use crate::machine::fault::{Fault, Kind};
use crate::ptx::ast::{Instruction, Type};

/// Lowers both.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    if i.opcode != "tensormap" {
        return None;
    }
    let mut m = Modifiers::new(i);
    Some(match m.expect(&[("replace", true), ("cp_fenceproxy", false)]) {
        Ok(true) => lower_replace(cx, i, m),
        Ok(false) => lower_copy(cx, i, m),
        Err(error) => Err(error),
    })
}

/// The fields, and whether they name a dimension.
const FIELDS: &[(&str, (Field, bool))] = &[
    ("global_address", (Field::Address, false)),
    ("rank", (Field::Rank, false)),
    ("box_dim", (Field::Box, true)),
    ("global_dim", (Field::Dim, true)),
    ("global_stride", (Field::Stride, true)),
    ("element_stride", (Field::ElementStride, true)),
    ("elemtype", (Field::Type, false)),
    ("interleave_layout", (Field::Interleave, false)),
    ("swizzle_mode", (Field::Swizzle, false)),
    ("swizzle_atomicity", (Field::Atomicity, false)),
    ("fill_mode", (Field::Fill, false)),
];

/// Bits of [`Op::imm`] above the pointer's: the field, the dimension, the map is in shared memory.
const FIELD: u32 = 8;
const ORDINAL: u32 = 16;
const SHARED: u64 = 1 << 24;

fn lower_replace(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>) -> Result<()> {
    m.expect(&[("tile", ())])?;
    let (field, dimension) = m.expect(FIELDS)?;
    let shared = m.one_of(&[("global", false), ("shared::cta", true)]);
    let into = if shared == Some(true) { Into::Shared } else { Into::Global };
    m.expect(&[("b1024", ())])?;
    let wide = matches!(field, Field::Address | Field::Stride);
    let ty = m.ty(if wide { &[Type::B64] } else { &[Type::B32] })?;
    m.finish()?;
    cx.arity(i, &[2 + usize::from(dimension)])?;
    let ordinal = if dimension { immediate(cx, i, &i.operands[1])? } else { 0 };
    if ordinal > 4 {
        return cx.error(i, format_args!("dimension {ordinal} of at most 5"));
    }
    let (list, imm) = pointer::lower(cx, i, &[(&i.operands[0], into)])?;
    let mut op = cx.op(i, Class::Async, replace);
    op.src[0] = cx.src(i, &i.operands[i.operands.len() - 1], ty)?;
    op.imm =
        imm | (field as u64) << FIELD | (ordinal as u64) << ORDINAL | if into == Into::Shared { SHARED } else { 0 };
    op.list = cx.list(list);
    cx.emit(op);
    Ok(())
}

fn replace(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let addresses = match pointer::read(cx, op, 0) {
        Ok(addresses) => addresses,
        Err(fault) => return cx.fail(fault),
    };
    let (field, ordinal) = (FIELDS[(op.imm >> FIELD & 0xff) as usize].1.0, (op.imm >> ORDINAL & 0xff) as usize);
    let wide = matches!(field, Field::Address | Field::Stride);
    let values = if wide { cx.b64(op.src[0]) } else { cx.b32(op.src[0]).map(u64::from) };
    for lane in active(cx.mask) {
        let place = if op.imm & SHARED != 0 { "shared memory" } else { "global memory" };
        let mut edit = || {
            let mut bytes = read(cx, op, addresses[lane])?;
            tensor_map::replace(&mut bytes, field, ordinal, values[lane])
                .map_err(|e| Fault::new(Kind::InvalidOperation, e.to_string()).at_address(addresses[lane], place))?;
            write(cx, op, addresses[lane], &bytes, op.imm & SHARED != 0)
        };
        if let Err(fault) = edit() {
            return cx.fail(fault.at_lane(lane as u32));
        }
    }
    Flow::Next
}

fn check_aligned(address: u64) -> std::result::Result<(), Fault> {
    if address.is_multiple_of(64) {
        return Ok(());
    }
    let message = "a tensor map must be aligned to 64 bytes";
    Err(Fault::new(Kind::Misaligned, message).at_address(address, "tensor map"))
}

/// The map at an address, in shared or in global memory. What was not written of it is no finding: it is replaced.
fn read(cx: &mut Cx<'_>, op: &Op, address: u64) -> std::result::Result<[u8; BYTES], Fault> {
    check_aligned(address)?;
    let mut bytes = [0; BYTES];
    if op.imm & SHARED != 0 {
        race::shared_range(cx, cx.mask, (address, BYTES as u64), false, op.line)?;
        let Some(found) = cx.block.shared.get(address, BYTES as u64) else {
            return Err(cx.block.shared.outside(address, BYTES as u64));
        };
        bytes.copy_from_slice(found);
    } else {
        check::bulk(cx, std::iter::once((address, BYTES as u64)), Effect::Load)?;
        let host = global(cx.grid, address, BYTES as u64, false, &mut usize::MAX.clone())?;
        // SAFETY: `global` found the range in a live allocation.
        unsafe { std::ptr::copy_nonoverlapping(host.cast_const(), bytes.as_mut_ptr(), BYTES) };
    }
    Ok(bytes)
}

fn write(cx: &mut Cx<'_>, op: &Op, address: u64, bytes: &[u8; BYTES], shared: bool) -> std::result::Result<(), Fault> {
    check_aligned(address)?;
    cx.block.advance();
    if shared {
        race::shared_range(cx, cx.mask, (address, BYTES as u64), true, op.line)?;
        let Some(found) = cx.block.shared.get_mut(address, BYTES as u64) else {
            return Err(cx.block.shared.outside(address, BYTES as u64));
        };
        found.copy_from_slice(bytes);
        cx.block.shared.mark_init(address, BYTES as u64);
        return Ok(());
    }
    check::bulk(cx, std::iter::once((address, BYTES as u64)), Effect::Store)?;
    let host = global(cx.grid, address, BYTES as u64, true, &mut usize::MAX.clone())?;
    // SAFETY: `global` found the range in a live allocation.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, BYTES) };
    Ok(())
}

/// `tensormap.cp_fenceproxy`: the map goes from shared to global memory, and the tensor proxy will see it there.
fn lower_copy(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>) -> Result<()> {
    for name in ["global", "shared::cta", "tensormap::generic", "release"] {
        m.expect(&[(name, ())])?;
    }
    m.expect(&[("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())])?;
    for name in ["sync", "aligned"] {
        m.expect(&[(name, ())])?;
    }
    m.finish()?;
    cx.arity(i, &[3])?;
    if immediate(cx, i, &i.operands[2])? != BYTES as u64 {
        return cx.error(i, "a tensor map has 128 bytes");
    }
    let (list, imm) = pointer::lower(cx, i, &[(&i.operands[0], Into::Global), (&i.operands[1], Into::Shared)])?;
    let mut op = cx.op(i, Class::Async, copy);
    (op.list, op.imm) = (cx.list(list), imm | SHARED);
    cx.emit(op);
    Ok(())
}

fn copy(cx: &mut Cx<'_>, op: &Op) -> Flow {
    if let Some(flow) = aligned(cx) {
        return flow;
    }
    let mut go = || {
        let (to, from) = (pointer::read(cx, op, 0)?, pointer::read(cx, op, 1)?);
        // The warp copies once, whatever lane says so.
        let bytes = read(cx, op, from[0])?;
        write(cx, op, to[0], &bytes, false)
    };
    match go() {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}
