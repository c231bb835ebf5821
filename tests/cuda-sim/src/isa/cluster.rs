//! Addresses in the shared memory of a cluster (PTX ISA 9.0, sections 9.7.9.23 and 24: `mapa`, `getctarank`).

use crate::code::{Class, Flow, Op, Run};
use crate::isa::special::cluster_rank;
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::async_queue::active;
use crate::machine::cluster;
use crate::machine::fault::{Fault, Kind};
use crate::machine::{Cx, LANES, Row};
use crate::memory::SHARED_WINDOW;
use crate::ptx::ast::{Instruction, Type};

/// Lowers `mapa` and `getctarank`.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "mapa" => Some(lower_mapa(cx, i)),
        "getctarank" => Some(lower_rank(cx, i)),
        _ => None,
    }
}

/// Bits of [`Op::imm`]: the address has 64 bits; it is a generic one.
const WIDE: u64 = 1;
const GENERIC: u64 = 2;

/// The modifiers of both: the type of the address, and its bits of [`Op::imm`].
fn form(cx: &Lower, i: &Instruction) -> Result<(Type, u64)> {
    let mut m = Modifiers::new(i);
    let generic = !m.take("shared::cluster");
    let ty = m.ty(&[Type::U32, Type::U64])?;
    m.finish()?;
    if generic && ty == Type::U32 {
        return cx.error(i, "a generic address has 64 bits");
    }
    Ok((ty, if ty == Type::U64 { WIDE } else { 0 } | if generic { GENERIC } else { 0 }))
}

fn lower_mapa(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let (ty, imm) = form(cx, i)?;
    cx.arity(i, &[3])?;
    let mut op = cx.op(i, Class::Integer, map as Run);
    op.imm = imm;
    op.dst[0] = cx.dst(i, &i.operands[0], ty)?;
    op.src[0] = cx.src(i, &i.operands[1], ty)?;
    op.src[1] = cx.src(i, &i.operands[2], Type::U32)?;
    cx.emit(op);
    Ok(())
}

fn lower_rank(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let (ty, imm) = form(cx, i)?;
    cx.arity(i, &[2])?;
    let mut op = cx.op(i, Class::Integer, rank as Run);
    op.imm = imm;
    op.dst[0] = cx.dst(i, &i.operands[0], Type::U32)?;
    op.src[0] = cx.src(i, &i.operands[1], ty)?;
    cx.emit(op);
    Ok(())
}

/// The addresses of the source, as those of `shared::cluster`.
fn addresses(cx: &Cx<'_>, op: &Op) -> std::result::Result<Row<u64>, Fault> {
    let mut row = if op.imm & WIDE != 0 { cx.b64(op.src[0]) } else { cx.b32(op.src[0]).map(u64::from) };
    if op.imm & GENERIC != 0 {
        for lane in active(cx.mask) {
            if row[lane] >> 56 != SHARED_WINDOW >> 56 {
                let fault = Fault::new(Kind::OutOfBounds, "a generic address outside the window of shared memory");
                return Err(fault.at_address(row[lane], "not shared memory").at_lane(lane as u32));
            }
            row[lane] -= SHARED_WINDOW;
        }
    }
    Ok(row)
}

fn map(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let mut row = match addresses(cx, op) {
        Ok(row) => row,
        Err(fault) => return cx.fail(fault),
    };
    let (ranks, count) = (cx.b32(op.src[1]), cx.block.peers.count());
    for lane in active(cx.mask) {
        if ranks[lane] >= count {
            let message = format!("the shared memory of block {} of a cluster of {count}", ranks[lane]);
            return cx.fail(Fault::new(Kind::OutOfBounds, message).at_lane(lane as u32));
        }
        // Alone, a block has no need of addresses that say whose they are.
        if count > 1 {
            row[lane] = cluster::address(ranks[lane], cluster::split(row[lane]).1);
        }
        row[lane] += if op.imm & GENERIC != 0 { SHARED_WINDOW } else { 0 };
    }
    if op.imm & WIDE != 0 {
        cx.set_b64(op.dst[0], row);
    } else {
        cx.set_b32(op.dst[0], row.map(|address| address as u32));
    }
    Flow::Next
}

fn rank(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let row = match addresses(cx, op) {
        Ok(row) => row,
        Err(fault) => return cx.fail(fault),
    };
    let own = cluster_rank(cx);
    let mut ranks = [0; LANES];
    for lane in active(cx.mask) {
        ranks[lane] = cluster::split(row[lane]).0.unwrap_or(own);
    }
    cx.set_b32(op.dst[0], ranks);
    Flow::Next
}

#[cfg(test)]
mod tests {
    use crate::testing::Snippet;

    #[test]
    fn the_own_block_maps_to_itself() {
        let mut s = Snippet::new(
            ".reg .b32 %a, %d, %r, %o; mapa.shared::cluster.u32 %d, %a, %r; getctarank.shared::cluster.u32 %o, %d;",
        )
        .unwrap();
        s.set_b32("%a", std::array::from_fn(|lane| 64 + lane as u32));
        s.run();
        assert_eq!(s.b32("%d"), s.b32("%a"));
        assert_eq!(s.b32("%o"), [0; 32]);
        s.set_b32("%r", [1; 32]);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| s.run())).is_err(), "another block");
    }
}
