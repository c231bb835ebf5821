//! `discard.L2` (PTX ISA 9.0, section 9.7.9.17): gives 128 bytes of global memory up without writing them back.
//!
//! It is like a weak write of values that mean nothing: poison here, that counts as never written and is no longer owed
//! to memory.

use super::async_copy::immediate;
use super::pointer::{self, Into};
use crate::check;
use crate::code::{Class, Flow, Op};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::Cx;
use crate::machine::async_queue::active;
use crate::machine::fault::Fault;
use crate::memory::POISON;
use crate::ptx::ast::Instruction;

/// What is discarded at once, and aligned to.
const BYTES: u64 = 128;

/// Lowers `discard`.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    (i.opcode == "discard").then(|| discard(cx, i))
}

fn discard(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.take("global");
    m.expect(&[("L2", ())])?;
    m.finish()?;
    cx.arity(i, &[2])?;
    if immediate(cx, i, &i.operands[1])? != BYTES {
        return cx.error(i, "the size must be 128");
    }
    let (list, imm) = pointer::lower(cx, i, &[(&i.operands[0], Into::Global)])?;
    let mut op = cx.op(i, Class::GlobalStore, run);
    (op.list, op.imm) = (cx.list(list), imm);
    cx.emit(op);
    Ok(())
}

fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let addresses = match pointer::read(cx, op, 0) {
        Ok(addresses) => addresses,
        Err(fault) => return cx.fail(fault),
    };
    for lane in active(cx.mask) {
        if let Err(fault) = line(cx, addresses[lane]) {
            return cx.fail(fault.at_lane(lane as u32));
        }
    }
    Flow::Next
}

fn line(cx: &mut Cx<'_>, address: u64) -> std::result::Result<(), Fault> {
    let host = cx.grid.global(&mut cx.warp.allocation, address, BYTES, BYTES)?;
    check::discard(cx, address, BYTES)?;
    // SAFETY: `global` says that the bytes are in a live allocation.
    unsafe { host.write_bytes(POISON, BYTES as usize) };
    cx.block.advance();
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::machine::fault::Kind;
    use crate::machine::harness::kernel;

    /// Writes 64 words, discards the first 32 by one lane, runs `after`.
    fn run(after: &str) -> crate::machine::harness::Kernel {
        let mut k = kernel(&format!(
            "st.global.u32 [%rd1], 7; st.global.u32 [%rd1+128], 7; bar.warp.sync -1;
             setp.eq.u32 %p0, %r0, 0; @%p0 discard.global.L2 [%rd0], 128; {after}"
        ));
        k.buffer(&[1; 64]);
        k.count = Some(1 << 20);
        k
    }

    #[test]
    fn what_is_discarded_is_not_written_to_memory() {
        let k = run("");
        let traffic = k.run().counters.traffic.unwrap();
        assert_eq!(
            (traffic.dram.read, traffic.dram.written, traffic.allocations[0].distinct.written_bytes),
            (0, 4, 256)
        );
        assert_eq!(k.read(traffic.allocations[0].address, 33)[31..], [u32::MAX, 7]);
        // Written again, it is owed again.
        let traffic = run("st.global.u32 [%rd1], 8;").run().counters.traffic.unwrap();
        assert_eq!(traffic.dram.written, 8);
    }

    #[test]
    fn what_is_discarded_may_not_be_read() {
        let mut k = run("ld.global.u32 %r3, [%rd1];");
        k.checks.init = true;
        assert_eq!(k.fault().kind, Kind::UninitialisedRead);
        let mut k = run("st.global.u32 [%rd1], 8; ld.global.u32 %r3, [%rd1];");
        k.checks.init = true;
        k.run();
    }

    #[test]
    fn a_line_is_whole_and_inside() {
        for (place, kind) in [("%rd0+64", Kind::Misaligned), ("%rd0+256", Kind::OutOfBounds)] {
            let mut k = kernel(&format!("discard.global.L2 [{place}], 128;"));
            k.buffer(&[0; 64]);
            assert_eq!(k.fault().kind, kind);
        }
    }
}
