//! Address operands of the instructions that take several: matrix loads, mbarriers, asynchronous copies.

use crate::code::{Op, Src};
use crate::lower::{Lower, Result};
use crate::machine::fault::{Fault, Kind};
use crate::machine::{Cx, LANES, Row};
use crate::memory::SHARED_WINDOW;
use crate::ptx::ast::{Instruction, Operand, Type};

/// Where an address operand points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// `.shared`: the value is an offset into the block's shared memory.
    Shared,
    /// A generic address that must lie in the window of shared memory.
    GenericShared,
    /// `.global`, or a generic address that must be a global one.
    Global,
}

/// The bits of [`Op::imm`] that say how pointer `n` is read: its base is 64 bits wide; it is generic.
const WIDE: u64 = 1;
const GENERIC: u64 = 2;
/// Bits of [`Op::imm`] for each pointer, from bit 0 on.
pub const BITS: u32 = 2;

/// Lowers pointer operands. They take the first entries of the list (base, offset) and the low bits of `imm`.
pub fn lower(cx: &mut Lower, i: &Instruction, pointers: &[(&Operand, Into)]) -> Result<(Vec<Src>, u64)> {
    let (mut list, mut imm) = (Vec::new(), 0);
    for (n, (operand, into)) in pointers.iter().enumerate() {
        let (base, offset) = match operand {
            Operand::Address { base, offset, .. } => (base.as_ref(), *offset),
            _ => return cx.error(i, format_args!("operand {operand:?} is not an address")),
        };
        let wide = *into == Into::Global || is_wide(cx, base);
        if *into == Into::GenericShared && !wide {
            return cx.error(i, "a generic address has 64 bits");
        }
        list.push(cx.src(i, base, if wide { Type::B64 } else { Type::B32 })?);
        list.push(cx.constant(offset as u64));
        let flags = if wide { WIDE } else { 0 } | if *into == Into::GenericShared { GENERIC } else { 0 };
        imm |= flags << (n as u32 * BITS);
    }
    Ok((list, imm))
}

fn is_wide(cx: &Lower, base: &Operand) -> bool {
    use crate::lower::Symbol;
    matches!(base, Operand::Name(name) if matches!(cx.lookup(name), Some(Symbol::Register(_, ty)) if ty.bits() == 64))
}

/// The addresses of pointer `n`, lane by lane: offsets for shared memory.
#[inline(always)]
pub fn read(cx: &Cx<'_>, op: &Op, n: u32) -> std::result::Result<Row<u64>, Fault> {
    let at = op.list.0 as usize + 2 * n as usize;
    let (base, offset) = (cx.code.list[at], cx.code.list[at + 1]);
    let offset = offset.as_constant().map_or(0, |i| cx.code.constants[i]);
    let flags = op.imm >> (n * BITS);
    let mut row: Row<u64> = [0; LANES];
    if flags & WIDE != 0 {
        row = cx.b64(base);
        for address in &mut row {
            *address = address.wrapping_add(offset);
        }
    } else {
        for (address, value) in row.iter_mut().zip(cx.b32(base)) {
            *address = value.wrapping_add(offset as u32) as u64;
        }
    }
    if flags & GENERIC != 0 {
        for (lane, address) in row.iter_mut().enumerate() {
            if *address >> 56 != SHARED_WINDOW >> 56 && cx.mask >> lane & 1 != 0 {
                let fault = Fault::new(Kind::OutOfBounds, "a generic address outside the window of shared memory");
                return Err(fault.at_address(*address, "not shared memory").at_lane(lane as u32));
            }
            *address = address.wrapping_sub(SHARED_WINDOW);
        }
    }
    Ok(row)
}
