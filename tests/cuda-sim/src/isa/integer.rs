//! Integer arithmetic (PTX ISA 9.0, section 9.7.1).

use std::marker::PhantomData;

use crate::code::{Class, Flow, Op, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::simd::{Semantics, choose};
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Type};

/// Lowers the integer instructions.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "add" if integer(i) => Some(add(cx, i)),
        _ => None,
    }
}

/// Whether the last modifier names an integer type: `add` is also a float instruction.
fn integer(i: &Instruction) -> bool {
    use Type::*;
    matches!(i.modifiers.last().and_then(|m| Type::parse(m)), Some(U16 | S16 | U32 | S32 | U64 | S64))
}

fn add(cx: &mut Lower, i: &Instruction) -> Result<()> {
    use Type::*;
    let mut m = Modifiers::new(i);
    let saturate = m.take("sat");
    let ty = if saturate { m.ty(&[S32])? } else { m.ty(&[U16, S16, U32, S32, U64, S64])? };
    m.finish()?;
    let run = match (ty, saturate) {
        (S32, true) => binary32::<Of<0>>(),
        (U32 | S32, _) => binary32::<Of<1>>(),
        (U16 | S16, _) => binary32::<Of<2>>(),
        _ => choose::<Wide>(),
    };
    cx.arity(i, &[3])?;
    let mut op = cx.op(i, Class::Integer, run);
    op.dst[0] = cx.dst(i, &i.operands[0], ty)?;
    op.src[0] = cx.src(i, &i.operands[1], ty)?;
    op.src[1] = cx.src(i, &i.operands[2], ty)?;
    cx.emit(op);
    Ok(())
}

/// A function of two 32-bit values, lane by lane.
trait Binary32 {
    fn apply(a: u32, b: u32) -> u32;
}

struct Of<const N: u8>;

impl Binary32 for Of<0> {
    #[inline(always)]
    fn apply(a: u32, b: u32) -> u32 {
        (a as i32).saturating_add(b as i32) as u32
    }
}
impl Binary32 for Of<1> {
    #[inline(always)]
    fn apply(a: u32, b: u32) -> u32 {
        a.wrapping_add(b)
    }
}
impl Binary32 for Of<2> {
    #[inline(always)]
    fn apply(a: u32, b: u32) -> u32 {
        a.wrapping_add(b) & 0xffff
    }
}

struct Lanes32<F>(PhantomData<F>);

impl<F: Binary32> Semantics for Lanes32<F> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let (a, b) = (cx.b32(op.src[0]), cx.b32(op.src[1]));
        let mut out: Row<u32> = [0; LANES];
        for lane in 0..LANES {
            out[lane] = F::apply(a[lane], b[lane]);
        }
        cx.set_b32(op.dst[0], out);
        Flow::Next
    }
}

fn binary32<F: Binary32>() -> Run {
    choose::<Lanes32<F>>()
}

struct Wide;

impl Semantics for Wide {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let (a, b) = (cx.b64(op.src[0]), cx.b64(op.src[1]));
        let mut out: Row<u64> = [0; LANES];
        for lane in 0..LANES {
            out[lane] = a[lane].wrapping_add(b[lane]);
        }
        cx.set_b64(op.dst[0], out);
        Flow::Next
    }
}
