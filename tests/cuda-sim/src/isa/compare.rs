//! Comparison and selection (PTX ISA 9.0, sections 9.7.6 and 9.7.7): set, setp, selp, slct.

use std::marker::PhantomData;

use super::float::flush;
use super::formats::{self, Bf16, Half};
use super::lanes::{Form, Value, map, pack, predicate, rare_ternary, ternary, unpack};
use crate::code::{Class, Flow, Op, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::simd::{Semantics, choose, portable_only};
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
    /// How the common comparisons are built.
    fn build<O: Semantics>() -> Run;
    /// One comparison.
    fn one(cx: &mut Cx<'_>, op: &Op, result: u32);
    /// Those of the low and the high halves.
    fn two(cx: &mut Cx<'_>, op: &Op, low: u32, high: u32);
}

/// `setp`
struct ToPredicates;

impl Sink for ToPredicates {
    fn build<O: Semantics>() -> Run {
        choose::<O>()
    }

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
    fn build<O: Semantics>() -> Run {
        portable_only::<O>()
    }

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

/// An operation by its relation.
macro_rules! by_test {
    ($test:expr, $r:ident => $run:expr) => {
        match $test {
            Test::Equal => {
                type $r = Equal;
                $run
            }
            Test::Less => {
                type $r = Less;
                $run
            }
            Test::AtMost => {
                type $r = AtMost;
                $run
            }
            Test::Differ => {
                type $r = Differ;
                $run
            }
            Test::Ordered => {
                type $r = Ordered;
                $run
            }
        }
    };
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
        F32 => by_test!(test, R => S::build::<One<f32, R, S>>()),
        F64 => by_test!(test, R => portable_only::<One<f64, R, S>>()),
        F16 => by_test!(test, R => portable_only::<One<formats::F16, R, S>>()),
        BF16 => by_test!(test, R => portable_only::<One<Bf16, R, S>>()),
        F16x2 => by_test!(test, R => portable_only::<Two<formats::F16, R, S>>()),
        _ => by_test!(test, R => portable_only::<Two<Bf16, R, S>>()),
    }
}

/// Integers need two of the relations.
fn integer<T: Compare, S: Sink>(test: Test) -> Run {
    match test {
        Test::Less => S::build::<One<T, Less, S>>(),
        _ => S::build::<One<T, Equal, S>>(),
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
        (64, S32, _) => rare_ternary(|a: u64, b: u64, c: i32, _| if c >= 0 { a } else { b }),
        (64, _, false) => rare_ternary(|a: u64, b: u64, c: f32, _| if c >= 0.0 { a } else { b }),
        (64, _, true) => rare_ternary(|a: u64, b: u64, c: f32, _| if flush(c) >= 0.0 { a } else { b }),
        (_, S32, _) => rare_ternary(|a: u32, b: u32, c: i32, _| if c >= 0 { a } else { b }),
        (_, _, false) => rare_ternary(|a: u32, b: u32, c: f32, _| if c >= 0.0 { a } else { b }),
        (_, _, true) => rare_ternary(|a: u32, b: u32, c: f32, _| if flush(c) >= 0.0 { a } else { b }),
    };
    Form { class: Class::Move, run, dst: ty, src: &[ty, ty, condition], imm: 0 }.emit(cx, i)
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use crate::isa::formats::{Bf16, F16, Half};
    use crate::isa::probe::{eval, floats, integers, pairs, refused, set};
    use crate::testing::Snippet;

    /// Whether an ordering satisfies a comparison of a name, as section 9.7.6 describes the names.
    fn satisfies(name: &str, order: Option<Ordering>) -> bool {
        let base = match name {
            "num" => return order.is_some(),
            "nan" => return order.is_none(),
            "lo" => "lt",
            "ls" => "le",
            "hi" => "gt",
            "hs" => "ge",
            other => other,
        };
        let Some(order) = order else { return base.len() == 3 };
        match &base[..2] {
            "eq" => order == Ordering::Equal,
            "ne" => order != Ordering::Equal,
            "lt" => order == Ordering::Less,
            "le" => order != Ordering::Greater,
            "gt" => order == Ordering::Greater,
            _ => order != Ordering::Less,
        }
    }

    fn check(names: &[&str], ty: &str, register: &str, values: &[u64], order: impl Fn(u64, u64) -> Option<Ordering>) {
        let (a, b) = pairs(values, values);
        for name in names {
            let args = [(register, &a[..]), (register, &b[..])];
            let p = eval(&format!("setp.{name}.{ty}"), "pred", &args);
            let d = eval(&format!("set.{name}.u32.{ty}"), "b32", &args);
            for at in 0..a.len() {
                let want = satisfies(name, order(a[at], b[at]));
                assert_eq!(p[at] != 0, want, "setp.{name}.{ty} {:#x} {:#x}", a[at], b[at]);
                assert_eq!(d[at], if want { 0xffff_ffff } else { 0 }, "set.{name}.u32.{ty} {:#x} {:#x}", a[at], b[at]);
            }
        }
    }

    const ORDERED: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];
    const FLOATS: [&str; 14] =
        ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

    #[test]
    fn integers_compare_by_their_type() {
        for width in [16u32, 32, 64] {
            let (values, register) = (integers(width), format!("b{width}"));
            let signed = |x: u64| (x << (64 - width)) as i64;
            check(&ORDERED[..2], &format!("b{width}"), &register, &values, |a, b| Some(a.cmp(&b)));
            check(&ORDERED, &format!("s{width}"), &register, &values, |a, b| Some(signed(a).cmp(&signed(b))));
            check(&ORDERED, &format!("u{width}"), &register, &values, |a, b| Some(a.cmp(&b)));
            check(&["lo", "ls", "hi", "hs"], &format!("u{width}"), &register, &values, |a, b| Some(a.cmp(&b)));
        }
    }

    #[test]
    fn floats_compare_with_nan_as_unordered() {
        let single = |x: u64| f32::from_bits(x as u32);
        check(&FLOATS, "f32", "f32", &floats(), |a, b| single(a).partial_cmp(&single(b)));
        let doubles: Vec<u64> = floats().iter().map(|x| (single(*x) as f64).to_bits()).collect();
        check(&FLOATS, "f64", "f64", &doubles, |a, b| f64::from_bits(a).partial_cmp(&f64::from_bits(b)));
        let halves = [0, 0x8000, 1, 0x8001, 0x3c00, 0xbc00, 0x7c00, 0xfc00, 0x7e00, 0xffff, 0x7f80, 0x7f81];
        let half = |x: u64| F16(x as u16).decode();
        check(&FLOATS, "f16", "b16", &halves, |a, b| half(a).partial_cmp(&half(b)));
        let half = |x: u64| Bf16(x as u16).decode();
        check(&FLOATS, "bf16", "b16", &halves, |a, b| half(a).partial_cmp(&half(b)));
    }

    #[test]
    fn flushing_makes_subnormals_equal() {
        let args = [("f32", &[1][..]), ("f32", &[0x8000_0002][..])];
        assert_eq!(eval("setp.eq.f32", "pred", &args), [0]);
        assert_eq!(eval("setp.eq.ftz.f32", "pred", &args), [1]);
        let args = [("b16", &[1][..]), ("b16", &[0x8002][..])];
        assert_eq!(eval("setp.gt.ftz.f16", "pred", &args), [0]);
        assert_eq!(eval("setp.gt.f16", "pred", &args), [1]);
    }

    #[test]
    fn pairs_of_predicates_combine_with_a_third() {
        // The second destination has the complement of the comparison, combined in the same way.
        type Combine = fn(bool, bool) -> bool;
        let combinations: [(&str, Combine); 3] = [("and", |t, c| t & c), ("or", |t, c| t | c), ("xor", |t, c| t ^ c)];
        for (name, combine) in combinations {
            let text = format!(
                ".reg .b32 %a, %b; .reg .pred %p, %q, %c, %r, %s;
                setp.lt.{name}.s32 %p|%q, %a, %b, %c; setp.lt.{name}.s32 %r|_, %a, %b, !%c; @%c setp.lt.s32 _|%s, %a, %b;"
            );
            let mut s = Snippet::new(&text).unwrap();
            set(&mut s, "%a", "b32", std::array::from_fn(|lane| lane as u64 & 1));
            s.set_b32("%b", [1; 32]);
            s.set_pred("%c", 0b1100);
            s.set_pred("%p", 1 << 31);
            s.run_lanes(0b1111);
            let bits = |f: &dyn Fn(bool, bool) -> bool| {
                (0..4).map(|lane| (f(lane & 1 == 0, lane >= 2) as u32) << lane).sum::<u32>()
            };
            assert_eq!(s.pred("%p"), bits(&|t, c| combine(t, c)) | 1 << 31, "{name}");
            assert_eq!(s.pred("%q"), bits(&|t, c| combine(!t, c)), "{name}");
            assert_eq!(s.pred("%r"), bits(&|t, c| combine(t, !c)), "{name}");
            assert_eq!(s.pred("%s"), 0b1000);
        }
    }

    #[test]
    fn packed_halves_give_two_results() {
        let text = ".reg .b32 %a, %b, %d<4>; .reg .pred %p, %q, %c;
            setp.ne.f16x2 %p|%q, %a, %b; set.ne.f16x2.f16x2 %d0, %a, %b; set.ne.u32.f16x2 %d1, %a, %b;
            set.neu.bf16x2.bf16x2 %d2, %a, %b; set.eq.and.f16x2.f16x2 %d3, %a, %b, %c;";
        let mut s = Snippet::new(text).unwrap();
        // The low halves are NaN of both formats, the high ones differ.
        s.set_b32("%a", [0x0001_7fff; 32]);
        s.set_b32("%b", [0x0000_3c00; 32]);
        s.set_pred("%c", 1);
        s.run();
        assert_eq!((s.pred("%p"), s.pred("%q")), (0, u32::MAX));
        assert_eq!(s.b32("%d0")[0], 0x3c00_0000);
        assert_eq!(s.b32("%d1")[0], 0xffff_0000);
        assert_eq!(s.b32("%d2")[0], 0x3f80_3f80);
        assert_eq!(s.b32("%d3")[0], 0);
    }

    #[test]
    fn results_of_set_have_the_destination_type() {
        let args = [("b32", &[1, 2][..]), ("b32", &[1, 1][..])];
        assert_eq!(eval("set.eq.f32.u32", "f32", &args), [0x3f80_0000, 0]);
        assert_eq!(eval("set.gt.s32.u32", "b32", &args), [0, 0xffff_ffff]);
        assert_eq!(eval("set.eq.f16.s32", "b16", &args), [0x3c00, 0]);
        assert_eq!(eval("set.eq.bf16.b32", "b16", &args), [0x3f80, 0]);
        let args = [("b16", &[0x7e00, 0x3c00][..]), ("b16", &[0, 0][..])];
        assert_eq!(eval("set.nan.u16.f16", "b16", &args), [0xffff, 0]);
        assert_eq!(eval("set.nan.f16.f16", "b16", &args), [0x3c00, 0]);
    }

    #[test]
    fn selections() {
        let (a, b) = ([10, 11], [20, 21]);
        for ty in ["b16", "s32", "f32", "b64", "f64"] {
            let register = format!("b{}", &ty[1..]);
            let args = [(register.as_str(), &a[..]), (register.as_str(), &b[..]), ("pred", &[1, 0][..])];
            assert_eq!(eval(&format!("selp.{ty}"), &register, &args), [10, 21], "{ty}");
        }
        let c = [0x8000_0000, 0x7fc0_0000, 1, 0x8000_0001, 0xff80_0000];
        let (a, b) = ([1; 5], [2; 5]);
        let args = [("b32", &a[..]), ("b32", &b[..]), ("b32", &c[..])];
        assert_eq!(eval("slct.u32.s32", "b32", &args), [2, 1, 1, 2, 2]);
        assert_eq!(eval("slct.b32.f32", "b32", &args), [1, 2, 1, 2, 2]);
        assert_eq!(eval("slct.ftz.b32.f32", "b32", &args), [1, 2, 1, 1, 2]);
    }

    #[test]
    fn what_the_isa_does_not_have_is_refused() {
        let line = |instruction: &str| refused(&format!(".reg .b32 %a; .reg .b16 %h; .reg .pred %p; {instruction};"));
        assert!(line("setp.lt.b32 %p, %a, %a").contains("`.lt`"));
        assert!(line("setp.lo.s32 %p, %a, %a").contains("`.lo`"));
        assert!(line("setp.equ.u32 %p, %a, %a").contains("`.equ`"));
        assert!(line("setp.eq.ftz.u32 %p, %a, %a").contains("`.ftz`"));
        assert!(line("setp.eq.f16x2 %p, %a, %a").contains("pair"));
        assert!(line("setp.eq.and.u32 %p, %a, %a").contains("operands"));
        assert!(line("set.eq.f16.f16x2 %h, %a, %a").contains("types"));
        assert!(line("selp.f16 %h, %h, %h, %p").contains("`.f16`"));
    }
}
