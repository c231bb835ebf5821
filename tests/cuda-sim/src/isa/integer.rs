//! Integer arithmetic (PTX ISA 9.0, section 9.7.1): add, sub, mul, mad, mul24, mad24, sad, div, rem, abs, neg, min, max.

use super::lanes::{Form, Value, binary, has, ternary, unary};
use crate::code::{Class, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::ptx::ast::Instruction;
use crate::ptx::ast::Type::{self, *};

/// Lowers the integer arithmetic instructions that leave the carry alone.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    if !has(i, &["u16", "s16", "u32", "s32", "u64", "s64", "u16x2", "s16x2"]) || has(i, &["cc"]) {
        return None;
    }
    Some(match i.opcode.as_str() {
        "add" | "sub" => add(cx, i),
        "mul" => multiply(cx, i, false),
        "mad" => multiply(cx, i, true),
        "mul24" => multiply24(cx, i, false),
        "mad24" => multiply24(cx, i, true),
        "div" | "rem" | "sad" => plain(cx, i),
        "abs" | "neg" => sign(cx, i),
        "min" | "max" => extremum(cx, i),
        _ => return None,
    })
}

const ALL: [Type; 6] = [U16, S16, U32, S32, U64, S64];

/// The operation at the integer type that a [`Type`] names; `None` for every other type.
macro_rules! by_type {
    ($ty:expr, $t:ident => $run:expr) => {
        match $ty {
            U16 => {
                type $t = u16;
                Some($run)
            }
            S16 => {
                type $t = i16;
                Some($run)
            }
            U32 => {
                type $t = u32;
                Some($run)
            }
            S32 => {
                type $t = i32;
                Some($run)
            }
            U64 => {
                type $t = u64;
                Some($run)
            }
            S64 => {
                type $t = i64;
                Some($run)
            }
            _ => None,
        }
    };
}

/// The operation was chosen for a type that the instruction has, or the instruction is refused.
fn chosen(m: &Modifiers, run: Option<Run>) -> Result<Run> {
    match run {
        Some(run) => Ok(run),
        None => m.refuse(),
    }
}

/// `add{.sat}`, `sub{.sat}`, with the packed forms of `add`.
fn add(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let sub = i.opcode == "sub";
    if !sub && (m.take("u16x2") || m.take("s16x2")) {
        m.finish()?;
        let run = binary(|a: u32, b: u32| pair(a, b, u16::wrapping_add));
        return Form { class: Class::Integer, run, dst: B32, src: &[B32, B32], imm: 0 }.emit(cx, i);
    }
    let saturate = m.take("sat");
    let ty = m.ty(if saturate { &[S32] } else { &ALL })?;
    let run = match (saturate, sub) {
        (true, false) => Some(binary(i32::saturating_add)),
        (true, true) => Some(binary(i32::saturating_sub)),
        (false, false) => by_type!(ty, T => binary(T::wrapping_add)),
        (false, true) => by_type!(ty, T => binary(T::wrapping_sub)),
    };
    let run = chosen(&m, run)?;
    m.finish()?;
    Form { class: Class::Integer, run, dst: ty, src: &[ty, ty], imm: 0 }.emit(cx, i)
}

/// `mul` and `mad` in the modes `.lo`, `.hi` and `.wide`, and `mad.hi.sat.s32`.
fn multiply(cx: &mut Lower, i: &Instruction, addend: bool) -> Result<()> {
    let mut m = Modifiers::new(i);
    let mode = m.expect(&[("lo", Mode::Low), ("hi", Mode::High), ("wide", Mode::Wide)])?;
    let saturate = addend && mode == Mode::High && m.take("sat");
    let ty = m.ty(match (saturate, mode) {
        (true, _) => &[S32],
        (_, Mode::Wide) => &[U16, S16, U32, S32],
        _ => &ALL,
    })?;
    let run = match (mode, addend) {
        (Mode::Low, false) => by_type!(ty, T => binary(T::wrapping_mul)),
        (Mode::Low, true) => by_type!(ty, T => ternary(|a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c))),
        (Mode::High, false) => by_type!(ty, T => binary(<T as Product>::high)),
        (Mode::High, true) if saturate => Some(ternary(|a: i32, b: i32, c: i32| a.high(b).saturating_add(c))),
        (Mode::High, true) => by_type!(ty, T => ternary(|a: T, b: T, c: T| a.high(b).wrapping_add(c))),
        (Mode::Wide, false) => wide(ty),
        (Mode::Wide, true) => wide_add(ty),
    };
    let run = chosen(&m, run)?;
    m.finish()?;
    let dst = if mode == Mode::Wide { doubled(ty) } else { ty };
    let src: &[Type] = if addend { &[ty, ty, dst] } else { &[ty, ty] };
    Form { class: Class::Integer, run, dst, src, imm: 0 }.emit(cx, i)
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Low,
    High,
    Wide,
}

/// The type of twice the width.
fn doubled(ty: Type) -> Type {
    match ty {
        U16 => U32,
        S16 => S32,
        U32 => U64,
        _ => S64,
    }
}

fn wide(ty: Type) -> Option<Run> {
    match ty {
        U16 => Some(binary(|a: u16, b: u16| a as u32 * b as u32)),
        S16 => Some(binary(|a: i16, b: i16| a as i32 * b as i32)),
        U32 => Some(binary(|a: u32, b: u32| a as u64 * b as u64)),
        S32 => Some(binary(|a: i32, b: i32| a as i64 * b as i64)),
        _ => None,
    }
}

fn wide_add(ty: Type) -> Option<Run> {
    match ty {
        U16 => Some(ternary(|a: u16, b: u16, c: u32| (a as u32 * b as u32).wrapping_add(c))),
        S16 => Some(ternary(|a: i16, b: i16, c: i32| (a as i32 * b as i32).wrapping_add(c))),
        U32 => Some(ternary(|a: u32, b: u32, c: u64| (a as u64 * b as u64).wrapping_add(c))),
        S32 => Some(ternary(|a: i32, b: i32, c: i64| (a as i64 * b as i64).wrapping_add(c))),
        _ => None,
    }
}

/// The upper half of the product of twice the width.
pub(super) trait Product: Value {
    /// `(self * other)` shifted right by the type's width.
    fn high(self, other: Self) -> Self;
}

macro_rules! product {
    ($($ty:ty => $wide:ty),*) => {$(
        impl Product for $ty {
            #[inline(always)]
            fn high(self, other: Self) -> Self {
                (self as $wide * other as $wide >> <$ty>::BITS) as $ty
            }
        }
    )*};
}
product!(u16 => u32, i16 => i32, u32 => u64, i32 => i64, u64 => u128, i64 => i128);

/// `mul24` and `mad24`: the product of the low 24 bits, bits 31..0 or 47..16 of it.
fn multiply24(cx: &mut Lower, i: &Instruction, addend: bool) -> Result<()> {
    let mut m = Modifiers::new(i);
    let high = m.expect(&[("lo", false), ("hi", true)])?;
    let saturate = addend && high && m.take("sat");
    let ty = m.ty(if saturate { &[S32] } else { &[U32, S32] })?;
    m.finish()?;
    let run = match (high, ty, addend) {
        (false, U32, false) => binary(|a: u32, b: u32| product_u24(a, b) as u32),
        (true, U32, false) => binary(|a: u32, b: u32| (product_u24(a, b) >> 16) as u32),
        (false, _, false) => binary(|a: u32, b: u32| product_s24(a, b) as u32),
        (true, _, false) => binary(|a: u32, b: u32| (product_s24(a, b) >> 16) as u32),
        (false, U32, true) => ternary(|a: u32, b: u32, c: u32| (product_u24(a, b) as u32).wrapping_add(c)),
        (true, U32, true) => ternary(|a: u32, b: u32, c: u32| ((product_u24(a, b) >> 16) as u32).wrapping_add(c)),
        (false, _, true) => ternary(|a: u32, b: u32, c: u32| (product_s24(a, b) as u32).wrapping_add(c)),
        (true, _, true) if saturate => {
            ternary(|a: u32, b: u32, c: i32| ((product_s24(a, b) >> 16) as i32).saturating_add(c))
        }
        (true, _, true) => ternary(|a: u32, b: u32, c: u32| ((product_s24(a, b) >> 16) as u32).wrapping_add(c)),
    };
    let src: &[Type] = if addend { &[ty, ty, ty] } else { &[ty, ty] };
    Form { class: Class::Integer, run, dst: ty, src, imm: 0 }.emit(cx, i)
}

#[inline(always)]
fn product_u24(a: u32, b: u32) -> u64 {
    (a & 0xff_ffff) as u64 * (b & 0xff_ffff) as u64
}

#[inline(always)]
fn product_s24(a: u32, b: u32) -> i64 {
    let extend = |x: u32| ((x << 8) as i32 >> 8) as i64;
    extend(a) * extend(b)
}

/// Instructions whose only modifier is the type, any of the six: `div`, `rem`, `sad`.
fn plain(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let ty = m.ty(&ALL)?;
    let (run, sources) = match i.opcode.as_str() {
        "div" => (by_type!(ty, T => binary(<T as Quotient>::quotient)), 2),
        "rem" => (by_type!(ty, T => binary(<T as Quotient>::remainder)), 2),
        _ => {
            // The ISA's difference is of the type's width, so it wraps where a signed one overflows.
            let run = by_type!(ty, T => ternary(|a: T, b: T, c: T| {
                c.wrapping_add(if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) })
            }));
            (run, 3)
        }
    };
    let run = chosen(&m, run)?;
    m.finish()?;
    Form { class: Class::Integer, run, dst: ty, src: &[ty; 3][..sources], imm: 0 }.emit(cx, i)
}

/// Division. A zero divisor gives "an unspecified, machine-specific value": here all ones, and the dividend as remainder.
trait Quotient: Value {
    fn quotient(self, divisor: Self) -> Self;
    fn remainder(self, divisor: Self) -> Self;
}

macro_rules! quotient {
    ($($ty:ty),*) => {$(
        impl Quotient for $ty {
            #[inline(always)]
            fn quotient(self, divisor: Self) -> Self {
                if divisor == 0 { !0 } else { self.wrapping_div(divisor) }
            }
            #[inline(always)]
            fn remainder(self, divisor: Self) -> Self {
                if divisor == 0 { self } else { self.wrapping_rem(divisor) }
            }
        }
    )*};
}
quotient!(u16, i16, u32, i32, u64, i64);

/// `abs` and `neg`: signed types only; the most negative value stays as it is.
fn sign(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let ty = m.ty(&[S16, S32, S64])?;
    m.finish()?;
    let run = match (i.opcode.as_str(), ty) {
        ("abs", S16) => unary(i16::wrapping_abs),
        ("abs", S32) => unary(i32::wrapping_abs),
        ("abs", _) => unary(i64::wrapping_abs),
        (_, S16) => unary(i16::wrapping_neg),
        (_, S32) => unary(i32::wrapping_neg),
        (_, _) => unary(i64::wrapping_neg),
    };
    Form { class: Class::Integer, run, dst: ty, src: &[ty], imm: 0 }.emit(cx, i)
}

/// `min` and `max`, scalar and packed, with `.relu` for `.s32` and `.s16x2`.
fn extremum(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let min = i.opcode == "min";
    let mut relu = m.take("relu");
    let packed = m.one_of(&[("u16x2", U16), ("s16x2", S16)]);
    // Compilers also write `.s16x2.relu`, as does the ISA in an example of `min`.
    relu |= packed == Some(S16) && !relu && m.take("relu");
    if relu && packed == Some(U16) {
        return m.refuse();
    }
    let (run, ty) = match packed {
        Some(element) => (Some(packed_extremum(element, min, relu)), B32),
        None => {
            let ty = m.ty(if relu { &[S32] } else { &ALL })?;
            let run = match (min, relu) {
                (true, true) => Some(binary(|a: i32, b: i32| a.min(b).max(0))),
                (false, true) => Some(binary(|a: i32, b: i32| a.max(b).max(0))),
                (true, false) => by_type!(ty, T => binary(<T as Ord>::min)),
                (false, false) => by_type!(ty, T => binary(<T as Ord>::max)),
            };
            (run, ty)
        }
    };
    let run = chosen(&m, run)?;
    m.finish()?;
    Form { class: Class::Integer, run, dst: ty, src: &[ty, ty], imm: 0 }.emit(cx, i)
}

fn packed_extremum(element: Type, min: bool, relu: bool) -> Run {
    match (element, min, relu) {
        (U16, true, _) => binary(|a: u32, b: u32| pair(a, b, u16::min)),
        (U16, false, _) => binary(|a: u32, b: u32| pair(a, b, u16::max)),
        (_, true, false) => binary(|a: u32, b: u32| pair(a, b, signed(i16::min))),
        (_, false, false) => binary(|a: u32, b: u32| pair(a, b, signed(i16::max))),
        (_, true, true) => binary(|a: u32, b: u32| pair(a, b, signed(|x, y| x.min(y).max(0)))),
        (_, false, true) => binary(|a: u32, b: u32| pair(a, b, signed(|x, y| x.max(y).max(0)))),
    }
}

/// Applies a function to the low and to the high halves of two words.
#[inline(always)]
pub(super) fn pair(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    f(a as u16, b as u16) as u32 | (f((a >> 16) as u16, (b >> 16) as u16) as u32) << 16
}

/// A function of signed halves as one of their bits.
#[inline(always)]
fn signed(f: impl Fn(i16, i16) -> i16) -> impl Fn(u16, u16) -> u16 {
    move |a, b| f(a as i16, b as i16) as u16
}
