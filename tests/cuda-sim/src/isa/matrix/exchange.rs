//! `ldmatrix`, `stmatrix` (PTX ISA 9.0, sections 9.7.14.5.15 and 16) and `movmatrix` (9.7.14.5.17).

use super::{aligned, registers};
use crate::check;
use crate::check::lanes::Part;
use crate::code::{Class, Dst, Flow, Op, Src};
use crate::isa::pointer::{self, Into};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::access::{Access, Effect, Region};
use crate::machine::fault::{Fault, Kind};
use crate::machine::simd::{Semantics, choose};
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Type};

/// Bytes of a row of an 8x8 matrix of 16-bit elements.
const ROW_BYTES: u64 = 16;

/// Lowers `ldmatrix` and `stmatrix`.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let load = i.opcode == "ldmatrix";
    let mut m = Modifiers::new(i);
    m.expect(&[("sync", ())])?;
    m.expect(&[("aligned", ())])?;
    // CUTLASS writes the shape behind the number and `.trans`; ptxas takes both orders.
    let shape_first = m.take("m8n8");
    let count = m.expect(&[("x1", 1), ("x2", 2), ("x4", 4)])?;
    let transposed = m.take("trans");
    if !shape_first {
        m.expect(&[("m8n8", ())])?;
    }
    let into = if m.take("shared") || m.take("shared::cta") { Into::Shared } else { Into::GenericShared };
    m.expect(&[("b16", ())])?;
    m.finish()?;
    cx.arity(i, &[2])?;
    let (address, values) = if load { (1, 0) } else { (0, 1) };
    let (mut list, imm) = pointer::lower(cx, i, &[(&i.operands[address], into)])?;
    list.extend(registers(cx, i, &i.operands[values], count, load)?);
    let run = match (load, transposed) {
        (true, false) => choose::<Load<false>>(),
        (true, true) => choose::<Load<true>>(),
        (false, false) => choose::<Store<false>>(),
        (false, true) => choose::<Store<true>>(),
    };
    let class = if load { Class::SharedLoad } else { Class::SharedStore };
    let mut op = cx.op(i, class, run);
    op.list = cx.list(list);
    op.imm = imm;
    cx.emit(op);
    Ok(())
}

/// Lowers `movmatrix`.
pub fn lower_move(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    for name in ["sync", "aligned", "m8n8", "trans", "b16"] {
        m.expect(&[(name, ())])?;
    }
    m.finish()?;
    cx.arity(i, &[2])?;
    let mut op = cx.op(i, Class::Warp, choose::<Move>());
    op.dst[0] = cx.dst(i, &i.operands[0], Type::B32)?;
    op.src[0] = cx.src(i, &i.operands[1], Type::B32)?;
    cx.emit(op);
    Ok(())
}

/// The transpose of an 8x8 matrix of 16-bit elements of which four neighbouring lanes hold a row.
#[inline(always)]
pub fn transpose(row: &Row<u32>) -> Row<u32> {
    let element = |r: usize, c: usize| row[4 * r + c / 2] >> (16 * (c % 2)) & 0xffff;
    let mut out: Row<u32> = [0; LANES];
    for (lane, value) in out.iter_mut().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        *value = element(2 * t, g) | element(2 * t + 1, g) << 16;
    }
    out
}

/// Whose the elements of the rows are.
const fn part<const TRANSPOSED: bool>() -> Part {
    if TRANSPOSED { Part::Columns } else { Part::Rows }
}

/// The row addresses of the first `count` matrices, checked for alignment; lane `8 m + r` gives row `r` of matrix `m`.
#[inline(always)]
fn rows(cx: &mut Cx<'_>, op: &Op, count: usize, effect: Effect, part: Part) -> std::result::Result<Row<u64>, Flow> {
    match checked_rows(cx, op, count) {
        Ok(mut addresses) => {
            if cx.grid.watched {
                // Only the lanes that give an address count.
                let last = addresses[0];
                addresses[8 * count..].fill(last);
                let mask = std::mem::replace(&mut cx.mask, (u64::MAX >> (64 - 8 * count)) as u32);
                let access = Access::new(Region::Shared);
                let flow = check::observe(cx, Region::Shared, &addresses, ROW_BYTES, effect, access, part);
                cx.mask = mask;
                return flow.map_or(Ok(addresses), Err);
            }
            Ok(addresses)
        }
        Err(fault) => Err(cx.fail(fault)),
    }
}

fn checked_rows(cx: &Cx<'_>, op: &Op, count: usize) -> std::result::Result<Row<u64>, Fault> {
    let addresses = pointer::read(cx, op, 0)?;
    for (lane, &address) in addresses[..8 * count].iter().enumerate() {
        if !address.is_multiple_of(ROW_BYTES) {
            let fault = Fault::new(Kind::Misaligned, "a matrix row must be aligned to 16 bytes");
            return Err(fault.at_address(address, "shared memory").at_lane(lane as u32));
        }
        // The checks are shown what is inside alone: there is nothing to know of the rest.
        if cx.grid.watched && cx.block.shared.get(address, ROW_BYTES).is_none() {
            return Err(cx.block.shared.outside(address, ROW_BYTES).at_lane(lane as u32));
        }
    }
    Ok(addresses)
}

/// The registers of an instruction, after its pointer.
#[inline(always)]
fn fragments<'a>(cx: &Cx<'a>, op: &Op) -> &'a [Src] {
    let code = cx.code;
    &code.list[op.list.0 as usize + 2..op.list.1 as usize]
}

struct Load<const TRANSPOSED: bool>;

impl<const TRANSPOSED: bool> Semantics for Load<TRANSPOSED> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        if let Some(flow) = aligned(cx) {
            return flow;
        }
        let list = fragments(cx, op);
        let addresses = match rows(cx, op, list.len(), Effect::Load, part::<TRANSPOSED>()) {
            Ok(addresses) => addresses,
            Err(flow) => return flow,
        };
        for (matrix, &dst) in list.iter().enumerate() {
            let mut row: Row<u32> = [0; LANES];
            for r in 0..8 {
                let lane = 8 * matrix + r;
                let Some(bytes) = cx.block.shared.get(addresses[lane], ROW_BYTES) else {
                    let fault = cx.block.shared.outside(addresses[lane], ROW_BYTES);
                    return cx.fail(fault.at_lane(lane as u32));
                };
                for (value, word) in row[4 * r..4 * r + 4].iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = u32::from_le_bytes(*word);
                }
            }
            cx.set_b32(Dst(dst.0), if TRANSPOSED { transpose(&row) } else { row });
        }
        Flow::Next
    }
}

struct Store<const TRANSPOSED: bool>;

impl<const TRANSPOSED: bool> Semantics for Store<TRANSPOSED> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        if let Some(flow) = aligned(cx) {
            return flow;
        }
        let list = fragments(cx, op);
        let addresses = match rows(cx, op, list.len(), Effect::Store, part::<TRANSPOSED>()) {
            Ok(addresses) => addresses,
            Err(flow) => return flow,
        };
        for (matrix, &src) in list.iter().enumerate() {
            let row = cx.b32(src);
            let row = if TRANSPOSED { transpose(&row) } else { row };
            for r in 0..8 {
                let lane = 8 * matrix + r;
                let Some(bytes) = cx.block.shared.get_mut(addresses[lane], ROW_BYTES) else {
                    let fault = cx.block.shared.outside(addresses[lane], ROW_BYTES);
                    return cx.fail(fault.at_lane(lane as u32));
                };
                for (word, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&row[4 * r..4 * r + 4]) {
                    *word = value.to_le_bytes();
                }
            }
        }
        Flow::Next
    }
}

struct Move;

impl Semantics for Move {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        if let Some(flow) = aligned(cx) {
            return flow;
        }
        let row = cx.b32(op.src[0]);
        cx.set_b32(op.dst[0], transpose(&row));
        Flow::Next
    }
}
