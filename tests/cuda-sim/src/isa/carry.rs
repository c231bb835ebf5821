//! Extended-precision integer arithmetic (PTX ISA 9.0, section 9.7.2): add.cc, addc, sub.cc, subc, mad.cc, madc.
//!
//! The condition code register `CC.CF` is a predicate of the function's window, so every lane has its own.

use std::marker::PhantomData;

use super::integer::Product;
use super::lanes::{Value, has, unpack};
use crate::code::{Class, Dst, Flow, Op, Run, Src};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::simd::{Semantics, choose};
use crate::machine::{Cx, LANES};
use crate::ptx::ast::Instruction;
use crate::ptx::ast::Type::{self, *};

/// Lowers the instructions that read or write the carry.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "addc" | "subc" | "madc" => Some(carry(cx, i)),
        "add" | "sub" | "mad" if has(i, &["cc"]) => Some(carry(cx, i)),
        _ => None,
    }
}

fn carry(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let (name, reads) = match i.opcode.strip_suffix('c') {
        Some(name) => (name, true),
        None => (i.opcode.as_str(), false),
    };
    let high = name == "mad" && m.expect(&[("lo", false), ("hi", true)])?;
    let writes = m.take("cc");
    let ty = m.ty(&[U32, S32, U64, S64])?;
    m.finish()?;
    let run = match (name, high) {
        ("add", _) => by_width::<Add>(ty),
        ("sub", _) => by_width::<Sub>(ty),
        (_, false) => by_width::<MadLow>(ty),
        (_, true) => by_width::<MadHigh>(ty),
    };
    let sources = if name == "mad" { 3 } else { 2 };
    cx.arity(i, &[1 + sources])?;
    let mut op = cx.op(i, Class::Integer, run);
    op.dst[0] = cx.dst(i, &i.operands[0], ty)?;
    for at in 0..sources {
        op.src[at] = cx.src(i, &i.operands[1 + at], ty)?;
    }
    if sources == 2 {
        op.src[2] = op.src[1];
    }
    let flag = cx.carry();
    op.src[3] = if reads { Src::register(flag) } else { cx.constant(0) };
    op.dst[1] = if writes { Dst(flag) } else { Dst::SINK };
    cx.emit(op);
    Ok(())
}

/// An operation on words with a carry (or borrow) in and out.
trait Step: 'static {
    fn step<T: Word>(a: T, b: T, c: T, carry: bool) -> (T, bool);
}

struct Add;
struct Sub;
struct MadLow;
struct MadHigh;

impl Step for Add {
    #[inline(always)]
    fn step<T: Word>(a: T, b: T, _: T, carry: bool) -> (T, bool) {
        a.add(b, carry)
    }
}

impl Step for Sub {
    #[inline(always)]
    fn step<T: Word>(a: T, b: T, _: T, borrow: bool) -> (T, bool) {
        a.sub(b, borrow)
    }
}

impl Step for MadLow {
    #[inline(always)]
    fn step<T: Word>(a: T, b: T, c: T, carry: bool) -> (T, bool) {
        a.low(b).add(c, carry)
    }
}

impl Step for MadHigh {
    #[inline(always)]
    fn step<T: Word>(a: T, b: T, c: T, carry: bool) -> (T, bool) {
        a.high(b).add(c, carry)
    }
}

/// An integer type; the carries are those of its bits taken as unsigned.
trait Word: Product {
    fn add(self, other: Self, carry: bool) -> (Self, bool);
    fn sub(self, other: Self, borrow: bool) -> (Self, bool);
    fn low(self, other: Self) -> Self;
}

macro_rules! word {
    ($($ty:ty as $unsigned:ty),*) => {$(
        impl Word for $ty {
            #[inline(always)]
            fn add(self, other: Self, carry: bool) -> (Self, bool) {
                let (sum, first) = (self as $unsigned).overflowing_add(other as $unsigned);
                let (sum, second) = sum.overflowing_add(carry as $unsigned);
                (sum as $ty, first | second)
            }
            #[inline(always)]
            fn sub(self, other: Self, borrow: bool) -> (Self, bool) {
                let (rest, first) = (self as $unsigned).overflowing_sub(other as $unsigned);
                let (rest, second) = rest.overflowing_sub(borrow as $unsigned);
                (rest as $ty, first | second)
            }
            #[inline(always)]
            fn low(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
        }
    )*};
}
word!(u32 as u32, i32 as u32, u64 as u64, i64 as u64);

fn by_width<S: Step>(ty: Type) -> Run {
    match ty {
        U32 => choose::<WithCarry<S, u32>>(),
        S32 => choose::<WithCarry<S, i32>>(),
        U64 => choose::<WithCarry<S, u64>>(),
        _ => choose::<WithCarry<S, i64>>(),
    }
}

struct WithCarry<S, T>(PhantomData<(S, T)>);

impl<S: Step, T: Word> Semantics for WithCarry<S, T> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let (a, b, c) = (T::read(cx, op.src[0]), T::read(cx, op.src[1]), T::read(cx, op.src[2]));
        let carry = unpack(cx.pred(op.src[3]));
        let (mut out, mut carries) = ([T::default(); LANES], [false; LANES]);
        for lane in 0..LANES {
            (out[lane], carries[lane]) = S::step(a[lane], b[lane], c[lane], carry[lane]);
        }
        T::write(cx, op.dst[0], out);
        bool::write(cx, op.dst[1], carries);
        Flow::Next
    }
}
