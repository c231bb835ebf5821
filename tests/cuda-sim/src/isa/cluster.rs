//! Addresses in the shared memory of a cluster (PTX ISA 9.0, section 9.7.9.22 and 23). A block reaches its own alone: an
//! address of the cluster is one of the block, and asking for another block's is a fault.

use crate::code::{Class, Flow, Op};
use crate::isa::special::cluster_rank;
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::Cx;
use crate::machine::async_queue::active;
use crate::machine::fault::{Fault, Kind};
use crate::ptx::ast::{Instruction, Type};

/// Lowers `mapa`.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    (i.opcode == "mapa").then(|| lower_mapa(cx, i))
}

fn lower_mapa(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.take("shared::cluster");
    let ty = m.ty(&[Type::U32, Type::U64])?;
    m.finish()?;
    cx.arity(i, &[3])?;
    let mut op = cx.op(i, Class::Integer, if ty == Type::U32 { map::<false> } else { map::<true> });
    op.dst[0] = cx.dst(i, &i.operands[0], ty)?;
    op.src[0] = cx.src(i, &i.operands[1], ty)?;
    op.src[1] = cx.src(i, &i.operands[2], Type::U32)?;
    cx.emit(op);
    Ok(())
}

fn map<const WIDE: bool>(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let (ranks, own) = (cx.b32(op.src[1]), cluster_rank(cx));
    if let Some(lane) = active(cx.mask).find(|&lane| ranks[lane] != own) {
        let message = format!("the shared memory of block {} of a cluster, from block {own}", ranks[lane]);
        return cx.fail(Fault::new(Kind::Unsupported, message).at_lane(lane as u32));
    }
    if WIDE {
        let row = cx.b64(op.src[0]);
        cx.set_b64(op.dst[0], row);
    } else {
        let row = cx.b32(op.src[0]);
        cx.set_b32(op.dst[0], row);
    }
    Flow::Next
}

#[cfg(test)]
mod tests {
    use crate::testing::Snippet;

    #[test]
    fn the_own_block_maps_to_itself() {
        let mut s = Snippet::new(".reg .b32 %a, %d, %r; mapa.shared::cluster.u32 %d, %a, %r;").unwrap();
        s.set_b32("%a", std::array::from_fn(|lane| 64 + lane as u32));
        s.run();
        assert_eq!(s.b32("%d"), s.b32("%a"));
        s.set_b32("%r", [1; 32]);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| s.run())).is_err(), "another block");
    }
}
