//! Comparison and selection (PTX ISA 9.0, sections 9.7.6 and 9.7.7): set, setp, selp, slct.

use std::marker::PhantomData;

use super::float::flush;
use super::formats::{self, Bf16, Half};
use super::lanes::{Form, Value, map, pack, predicate, ternary, unpack};
use crate::code::{Class, Flow, Op, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::simd::{Semantics, choose};
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::Type::{self, *};
use crate::ptx::ast::{Instruction, Operand};

/// Lowers the comparisons and selections.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    Some(match i.opcode.as_str() {
        "setp" => setp(cx, i),
        "set" => set(cx, i),
        "selp" => selp(cx, i),
        "slct" => slct(cx, i),
        _ => return None,
    })
}

/// The relations that the comparisons are made of, by swapping the operands and negating.
#[derive(Clone, Copy, PartialEq)]
enum Test {
    /// `a == b`
    Equal,
    /// `a < b`
    Less,
    /// `a <= b`
    AtMost,
    /// `a < b` or `b < a`
    Differ,
    /// Neither is NaN.
    Ordered,
}

/// A comparison.
#[derive(Clone, Copy)]
struct Comparison {
    test: Test,
    swapped: bool,
    negated: bool,
}

const fn plain(test: Test) -> Comparison {
    Comparison { test, swapped: false, negated: false }
}

const fn swapped(test: Test) -> Comparison {
    Comparison { test, swapped: true, negated: false }
}

const fn not(comparison: Comparison) -> Comparison {
    Comparison { negated: true, ..comparison }
}

/// The comparisons of bits.
const BITS: [(&str, Comparison); 2] = [("eq", plain(Test::Equal)), ("ne", not(plain(Test::Equal)))];

/// The comparisons of signed integers, then those that unsigned ones have beside.
const INTEGERS: [(&str, Comparison); 10] = [
    ("eq", plain(Test::Equal)),
    ("ne", not(plain(Test::Equal))),
    ("lt", plain(Test::Less)),
    ("le", not(swapped(Test::Less))),
    ("gt", swapped(Test::Less)),
    ("ge", not(plain(Test::Less))),
    ("lo", plain(Test::Less)),
    ("ls", not(swapped(Test::Less))),
    ("hi", swapped(Test::Less)),
    ("hs", not(plain(Test::Less))),
];

/// The comparisons of floating-point numbers: false of a NaN, or, from `equ` on, true.
const FLOATS: [(&str, Comparison); 14] = [
    ("eq", plain(Test::Equal)),
    ("ne", plain(Test::Differ)),
    ("lt", plain(Test::Less)),
    ("le", plain(Test::AtMost)),
    ("gt", swapped(Test::Less)),
    ("ge", swapped(Test::AtMost)),
    ("num", plain(Test::Ordered)),
    ("equ", not(plain(Test::Differ))),
    ("neu", not(plain(Test::Equal))),
    ("ltu", not(swapped(Test::AtMost))),
    ("leu", not(swapped(Test::Less))),
    ("gtu", not(plain(Test::AtMost))),
    ("geu", not(plain(Test::Less))),
    ("nan", not(plain(Test::Ordered))),
];

/// What the predicate operand does to the comparison's result.
const COMBINATIONS: [(&str, u64); 3] = [("and", 1), ("or", 2), ("xor", 3)];

// The immediate: bits 0 and 1 the combination, then flags, and from bit 32 on the value that `set` gives for true.
const COMPLEMENT_PREDICATE: u64 = 1 << 2;
const NEGATED: u64 = 1 << 3;
const FTZ: u64 = 1 << 4;

/// `CmpOp{.BoolOp}{.ftz}`, whose meaning depends on the type that ends the instruction.
struct Head {
    comparison: Comparison,
    imm: u64,
}

fn head(m: &mut Modifiers, i: &Instruction) -> Result<Head> {
    let comparisons: &[(&str, Comparison)] = match i.modifiers.last().map(String::as_str) {
        Some("b16" | "b32" | "b64") => &BITS,
        Some("s16" | "s32" | "s64") => &INTEGERS[..6],
        Some("u16" | "u32" | "u64") => &INTEGERS,
        _ => &FLOATS,
    };
    let comparison = m.expect(comparisons)?;
    let mut imm = m.one_of(&COMBINATIONS).unwrap_or(0);
    imm |= if comparison.negated { NEGATED } else { 0 };
    if matches!(i.modifiers.last().map(String::as_str), Some("f32" | "f16" | "f16x2")) && m.take("ftz") {
        imm |= FTZ;
    }
    Ok(Head { comparison, imm })
}

/// Fills in the sources `a`, `b` and, with a combination, `c`, which follow the destination.
fn sources(cx: &mut Lower, i: &Instruction, op: &mut Op, head: &Head, ty: Type) -> Result<()> {
    cx.arity(i, &[if head.imm & 3 == 0 { 3 } else { 4 }])?;
    let (a, b) = if head.comparison.swapped { (2, 1) } else { (1, 2) };
    op.src[0] = cx.src(i, &i.operands[a], ty)?;
    op.src[1] = cx.src(i, &i.operands[b], ty)?;
    op.imm = head.imm;
    if head.imm & 3 != 0 {
        let (c, negated) = predicate(cx, i, &i.operands[3])?;
        op.src[2] = c;
        op.imm |= if negated { COMPLEMENT_PREDICATE } else { 0 };
    }
    Ok(())
}

fn class(ty: Type) -> Class {
    match ty {
        F16 | F16x2 | BF16 | BF16x2 => Class::Half,
        F32 => Class::Float32,
        F64 => Class::Float64,
        _ => Class::Integer,
    }
}

const COMPARABLE: [Type; 15] = [B16, B32, B64, U16, U32, U64, S16, S32, S64, F16, F16x2, BF16, BF16x2, F32, F64];

/// `setp.CmpOp{.BoolOp}{.ftz}.type p{|q}, a, b{, {!}c}`
fn setp(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let head = head(&mut m, i)?;
    let ty = m.ty(&COMPARABLE)?;
    m.finish()?;
    let mut op = cx.op(i, class(ty), run::<ToPredicates>(ty, head.comparison.test));
    sources(cx, i, &mut op, &head, ty)?;
    let packed = matches!(ty, F16x2 | BF16x2);
    op.dst = match &i.operands[0] {
        Operand::Pair(p, q) => [cx.dst(i, p, Pred)?, cx.dst(i, q, Pred)?],
        _ if packed => return cx.error(i, "the destination is not a pair `p|q`"),
        p => [cx.dst(i, p, Pred)?, op.dst[1]],
    };
    cx.emit(op);
    Ok(())
}

/// `set.CmpOp{.BoolOp}{.ftz}.dtype.stype d, a, b{, {!}c}`
fn set(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let head = head(&mut m, i)?;
    let dst = m.ty(&[U16, S16, U32, S32, F16, F16x2, BF16, BF16x2, F32])?;
    let ty = m.ty(&COMPARABLE)?;
    let possible = match (dst, ty) {
        (U16 | S16, F16 | BF16) => true,
        (U32 | S32, _) => true,
        (F32, F16 | BF16 | F16x2 | BF16x2) => false,
        (F32 | F16 | BF16, other) => !matches!(other, F16x2 | BF16x2),
        (F16x2, F16x2) | (BF16x2, BF16x2) => true,
        _ => false,
    };
    if !possible {
        return cx.error(i, "no such combination of types");
    }
    m.finish()?;
    let truth: u64 = match dst {
        F32 => 0x3f80_0000,
        F16 => 0x3c00,
        BF16 => 0x3f80,
        F16x2 => 0x3c00_3c00,
        BF16x2 => 0x3f80_3f80,
        U16 | S16 => 0xffff,
        _ => 0xffff_ffff,
    };
    let mut op = cx.op(i, class(ty), run::<ToValue>(ty, head.comparison.test));
    sources(cx, i, &mut op, &head, ty)?;
    op.imm |= truth << 32;
    op.dst[0] = cx.dst(i, &i.operands[0], dst)?;
    cx.emit(op);
    Ok(())
}

/// Values that can be compared.
trait Compare: Value + PartialOrd {
    /// `.ftz`
    #[inline(always)]
    fn flushed(self) -> Self {
        self
    }
}

impl Compare for u16 {}
impl Compare for i16 {}
impl Compare for u32 {}
impl Compare for i32 {}
impl Compare for u64 {}
impl Compare for i64 {}
impl Compare for f64 {}
impl Compare for Bf16 {}

impl Compare for f32 {
    #[inline(always)]
    fn flushed(self) -> f32 {
        flush(self)
    }
}

impl Compare for formats::F16 {
    #[inline(always)]
    fn flushed(self) -> formats::F16 {
        Half::flushed(self)
    }
}

/// A relation of two values.
trait Relation: 'static {
    fn holds<T: PartialOrd>(a: T, b: T) -> bool;
}

macro_rules! relation {
    ($($name:ident: |$a:ident, $b:ident| $holds:expr;)*) => {$(
        struct $name;
        impl Relation for $name {
            #[inline(always)]
            fn holds<T: PartialOrd>($a: T, $b: T) -> bool {
                $holds
            }
        }
    )*};
}

relation! {
    Equal: |a, b| a == b;
    Less: |a, b| a < b;
    AtMost: |a, b| a <= b;
    Differ: |a, b| (a < b) | (b < a);
    Ordered: |a, b| (a <= b) | (b <= a);
}

/// The lanes in which the comparison holds.
#[inline(always)]
fn compare<T: Compare, R: Relation>(a: Row<T>, b: Row<T>, imm: u64) -> u32 {
    let mut holds = [false; LANES];
    if imm & FTZ != 0 {
        for lane in 0..LANES {
            holds[lane] = R::holds(a[lane].flushed(), b[lane].flushed());
        }
    } else {
        for lane in 0..LANES {
            holds[lane] = R::holds(a[lane], b[lane]);
        }
    }
    pack(holds) ^ if imm & NEGATED != 0 { !0 } else { 0 }
}

/// The comparison's result combined with the predicate operand.
#[inline(always)]
fn combine(cx: &Cx<'_>, op: &Op, result: u32) -> u32 {
    if op.imm & 3 == 0 {
        return result;
    }
    let c = cx.pred(op.src[2]) ^ if op.imm & COMPLEMENT_PREDICATE != 0 { !0 } else { 0 };
    match op.imm & 3 {
        1 => result & c,
        2 => result | c,
        _ => result ^ c,
    }
}

/// Where results go.
trait Sink: 'static {
    /// One comparison.
    fn one(cx: &mut Cx<'_>, op: &Op, result: u32);
    /// Those of the low and the high halves.
    fn two(cx: &mut Cx<'_>, op: &Op, low: u32, high: u32);
}

/// `setp`
struct ToPredicates;

impl Sink for ToPredicates {
    #[inline(always)]
    fn one(cx: &mut Cx<'_>, op: &Op, result: u32) {
        let (p, q) = (combine(cx, op, result), combine(cx, op, !result));
        cx.set_pred(op.dst[0], p);
        cx.set_pred(op.dst[1], q);
    }

    #[inline(always)]
    fn two(cx: &mut Cx<'_>, op: &Op, low: u32, high: u32) {
        let (p, q) = (combine(cx, op, low), combine(cx, op, high));
        cx.set_pred(op.dst[0], p);
        cx.set_pred(op.dst[1], q);
    }
}

/// `set`
struct ToValue;

impl Sink for ToValue {
    #[inline(always)]
    fn one(cx: &mut Cx<'_>, op: &Op, result: u32) {
        let truth = (op.imm >> 32) as u32;
        let row = map(unpack(combine(cx, op, result)), |holds| if holds { truth } else { 0 });
        cx.set_b32(op.dst[0], row);
    }

    #[inline(always)]
    fn two(cx: &mut Cx<'_>, op: &Op, low: u32, high: u32) {
        let truth = (op.imm >> 32) as u32;
        let (low, high) = (unpack(combine(cx, op, low)), unpack(combine(cx, op, high)));
        let mut row = [0; LANES];
        for lane in 0..LANES {
            let mask = if low[lane] { 0xffff } else { 0 } | if high[lane] { 0xffff_0000 } else { 0 };
            row[lane] = truth & mask;
        }
        cx.set_b32(op.dst[0], row);
    }
}

struct One<T, R, S>(PhantomData<(T, R, S)>);

impl<T: Compare, R: Relation, S: Sink> Semantics for One<T, R, S> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let result = compare::<T, R>(T::read(cx, op.src[0]), T::read(cx, op.src[1]), op.imm);
        S::one(cx, op, result);
        Flow::Next
    }
}

/// Packed halves.
struct Two<T, R, S>(PhantomData<(T, R, S)>);

impl<T: Compare + Half, R: Relation, S: Sink> Semantics for Two<T, R, S> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let (a, b) = (cx.b32(op.src[0]), cx.b32(op.src[1]));
        let low = |row| map(row, |word: u32| T::from_bits(word as u16));
        let high = |row| map(row, |word: u32| T::from_bits((word >> 16) as u16));
        let first = compare::<T, R>(low(a), low(b), op.imm);
        let second = compare::<T, R>(high(a), high(b), op.imm);
        S::two(cx, op, first, second);
        Flow::Next
    }
}

fn run<S: Sink>(ty: Type, test: Test) -> Run {
    match ty {
        U16 | B16 => integer::<u16, S>(test),
        S16 => integer::<i16, S>(test),
        U32 | B32 => integer::<u32, S>(test),
        S32 => integer::<i32, S>(test),
        U64 | B64 => integer::<u64, S>(test),
        S64 => integer::<i64, S>(test),
        F32 => float::<f32, S>(test),
        F64 => float::<f64, S>(test),
        F16 => float::<formats::F16, S>(test),
        BF16 => float::<Bf16, S>(test),
        F16x2 => packed::<formats::F16, S>(test),
        _ => packed::<Bf16, S>(test),
    }
}

/// Integers need two of the relations.
fn integer<T: Compare, S: Sink>(test: Test) -> Run {
    match test {
        Test::Less => choose::<One<T, Less, S>>(),
        _ => choose::<One<T, Equal, S>>(),
    }
}

fn float<T: Compare, S: Sink>(test: Test) -> Run {
    match test {
        Test::Equal => choose::<One<T, Equal, S>>(),
        Test::Less => choose::<One<T, Less, S>>(),
        Test::AtMost => choose::<One<T, AtMost, S>>(),
        Test::Differ => choose::<One<T, Differ, S>>(),
        Test::Ordered => choose::<One<T, Ordered, S>>(),
    }
}

fn packed<T: Compare + Half, S: Sink>(test: Test) -> Run {
    match test {
        Test::Equal => choose::<Two<T, Equal, S>>(),
        Test::Less => choose::<Two<T, Less, S>>(),
        Test::AtMost => choose::<Two<T, AtMost, S>>(),
        Test::Differ => choose::<Two<T, Differ, S>>(),
        Test::Ordered => choose::<Two<T, Ordered, S>>(),
    }
}

/// `selp.type d, a, b, c`
fn selp(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let ty = m.ty(&[B16, B32, B64, U16, U32, U64, S16, S32, S64, F32, F64])?;
    m.finish()?;
    let run = if ty.bits() == 64 {
        ternary(|a: u64, b: u64, c: bool| if c { a } else { b })
    } else {
        ternary(|a: u32, b: u32, c: bool| if c { a } else { b })
    };
    Form { class: Class::Move, run, dst: ty, src: &[ty, ty, Pred], imm: 0 }.emit(cx, i)
}

/// `slct{.ftz}.dtype.ctype d, a, b, c`: `a` where `c >= 0`. A NaN selects `b`.
fn slct(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let ftz = m.take("ftz");
    let ty = m.ty(&[B16, B32, B64, U16, U32, U64, S16, S32, S64, F32, F64])?;
    let condition = m.ty(if ftz { &[F32] } else { &[S32, F32] })?;
    m.finish()?;
    let run = match (ty.bits(), condition, ftz) {
        (64, S32, _) => ternary(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
        (64, _, false) => ternary(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b }),
        (64, _, true) => ternary(|a: u64, b: u64, c: f32| if flush(c) >= 0.0 { a } else { b }),
        (_, S32, _) => ternary(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
        (_, _, false) => ternary(|a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b }),
        (_, _, true) => ternary(|a: u32, b: u32, c: f32| if flush(c) >= 0.0 { a } else { b }),
    };
    Form { class: Class::Move, run, dst: ty, src: &[ty, ty, condition], imm: 0 }.emit(cx, i)
}
