//! Lowering of the warpgroup instructions.

use super::{Issue, Shape, Sum, SumF16, SumF32, SumS32, commit, fence, wait};
use crate::code::{Class, Run};
use crate::isa::async_copy::immediate;
use crate::isa::matrix::fragment::{NUMBERS, Number};
use crate::isa::matrix::mma::{self, SUMS};
use crate::isa::matrix::number::{BF16, E4M3, E5M2, F16, Float, TF32};
use crate::isa::matrix::registers;
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::simd::choose;
use crate::ptx::ast::{Instruction, Operand, Type};

/// Lowers the warpgroup instructions.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    if i.opcode != "wgmma" {
        return None;
    }
    let mut m = Modifiers::new(i);
    let name = m.one_of(&[("mma_async", 0), ("fence", 1), ("commit_group", 2), ("wait_group", 3)]);
    Some((|| {
        let Some(name) = name else { return m.refuse() };
        m.expect(&[("sync", ())])?;
        m.expect(&[("aligned", ())])?;
        if name == 0 {
            return lower_mma(cx, i, m);
        }
        m.finish()?;
        cx.arity(i, &[(name == 3) as usize])?;
        let mut op = cx.op(i, Class::Matrix, [fence, commit, wait][name - 1]);
        if name == 3 {
            op.imm = immediate(cx, i, &i.operands[0])?;
        }
        cx.emit(op);
        Ok(())
    })())
}

fn lower_mma(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>) -> Result<()> {
    let Some((name, (columns, depth))) = m.peek().and_then(|name| Some((name, shape(name)?))) else {
        return m.refuse();
    };
    m.take(name);
    let saturate = m.take("satfinite");
    let d = m.expect(SUMS)?;
    let a = m.expect(NUMBERS)?;
    let b = m.expect(NUMBERS)?;
    m.finish()?;
    let Some(run) = select(columns, depth, d, a, b, saturate) else {
        return cx.error(i, "there is no such combination of shape and types, or it is not supported");
    };
    let registers_a = matches!(i.operands.get(1), Some(Operand::Vector(_)));
    let integers = d == mma::Sum::S32;
    let halves = matches!(a, Number::F16 | Number::BF16);
    let transposes = if !halves { 0 } else { 2 - registers_a as usize };
    cx.arity(i, &[if integers { 4 } else { 6 + transposes }])?;
    let mut shape = Shape { columns, registers: registers_a, negate: [false; 2], transposed: [false; 2], saturate };
    for n in 0..if integers { 0 } else { 2 } {
        shape.negate[n] = match &i.operands[4 + n] {
            Operand::Int(1) => false,
            Operand::Int(-1) => true,
            other => return cx.error(i, format_args!("operand {other:?} is not 1 or -1")),
        };
    }
    for n in 0..transposes {
        let value = immediate(cx, i, &i.operands[6 + n])?;
        if value > 1 {
            return cx.error(i, "a transposition is 0 or 1");
        }
        shape.transposed[n + registers_a as usize] = value == 1;
    }
    let sums = if d == mma::Sum::F16 { columns / 4 } else { columns / 2 };
    let mut list = registers(cx, i, &i.operands[0], sums, true)?;
    let mut op = cx.op(i, Class::Matrix, run);
    if registers_a {
        list.extend(registers(cx, i, &i.operands[1], 4, false)?);
    } else {
        op.src[0] = cx.src(i, &i.operands[1], Type::B64)?;
    }
    op.src[1] = cx.src(i, &i.operands[2], Type::B64)?;
    op.src[2] = cx.src(i, &i.operands[3], Type::Pred)?;
    op.list = cx.list(list);
    op.imm = shape.bits();
    cx.emit(op);
    Ok(())
}

/// `m64nNkK`: N and K.
fn shape(name: &str) -> Option<(usize, usize)> {
    let (columns, depth) = name.strip_prefix("m64n")?.split_once('k')?;
    let (columns, depth) = (columns.parse().ok()?, depth.parse().ok()?);
    ((8..=256).contains(&columns) && columns % 8 == 0).then_some((columns, depth))
}

/// The semantics of a combination, if the ISA has it.
fn select(columns: usize, depth: usize, d: mma::Sum, a: Number, b: Number, saturate: bool) -> Option<Run> {
    use Number as E;
    use mma::Sum as S;
    let bits = match a {
        E::TF32 => 32,
        E::F16 | E::BF16 => 16,
        _ => 8,
    };
    if depth != 256 / bits || saturate && d != S::S32 {
        return None;
    }
    Some(match (a, b, d) {
        (E::F16, E::F16, S::F32) => choose::<Issue<F16, F16, SumF32>>(),
        (E::F16, E::F16, S::F16) => choose::<Issue<F16, F16, SumF16>>(),
        (E::BF16, E::BF16, S::F32) => choose::<Issue<BF16, BF16, SumF32>>(),
        (E::TF32, E::TF32, S::F32) => choose::<Issue<TF32, TF32, SumF32>>(),
        (E::E4M3 | E::E5M2, E::E4M3 | E::E5M2, S::F32) => eights::<SumF32>(a, b),
        (E::E4M3 | E::E5M2, E::E4M3 | E::E5M2, S::F16) => eights::<SumF16>(a, b),
        // Above 32 columns the integer shapes come in steps of 16, up to 256.
        (E::S8 | E::U8, E::S8 | E::U8, S::S32) if columns <= 32 || columns.is_multiple_of(16) => {
            match (a == E::S8, b == E::S8) {
                (true, true) => choose::<Issue<Signed, Signed, SumS32>>(),
                (true, false) => choose::<Issue<Signed, Unsigned, SumS32>>(),
                (false, true) => choose::<Issue<Unsigned, Signed, SumS32>>(),
                (false, false) => choose::<Issue<Unsigned, Unsigned, SumS32>>(),
            }
        }
        _ => return None,
    })
}

fn eights<S: Sum>(a: Number, b: Number) -> Run {
    match (a == Number::E4M3, b == Number::E4M3) {
        (true, true) => choose::<Issue<E4M3, E4M3, S>>(),
        (true, false) => choose::<Issue<E4M3, E5M2, S>>(),
        (false, true) => choose::<Issue<E5M2, E4M3, S>>(),
        (false, false) => choose::<Issue<E5M2, E5M2, S>>(),
    }
}

/// `.s8`, of which f32 holds all products and sums of an instruction.
struct Signed;
/// `.u8`, as well.
struct Unsigned;

impl Float for Signed {
    const PER_REGISTER: usize = 4;
    #[inline(always)]
    fn decode(bits: u32) -> f32 {
        bits as u8 as i8 as f32
    }
}

impl Float for Unsigned {
    const PER_REGISTER: usize = 4;
    #[inline(always)]
    fn decode(bits: u32) -> f32 {
        bits as u8 as f32
    }
}
