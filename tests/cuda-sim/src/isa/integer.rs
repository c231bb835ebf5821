//! Integer arithmetic (PTX ISA 9.0, section 9.7.1): add, sub, mul, mad, mul24, mad24, sad, div, rem, abs, neg, min, max.

use super::lanes::{Form, Value, binary, has, rare_binary, rare_ternary, ternary, unary};
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

/// The operation at the unsigned type of the width that a [`Type`] names: where the sign makes no difference.
macro_rules! by_width {
    ($ty:expr, $t:ident => $run:expr) => {
        match $ty.bits() {
            16 => {
                type $t = u16;
                Some($run)
            }
            32 => {
                type $t = u32;
                Some($run)
            }
            _ => {
                type $t = u64;
                Some($run)
            }
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
        (true, false) => Some(rare_binary(|a: i32, b: i32, _| a.saturating_add(b))),
        (true, true) => Some(rare_binary(|a: i32, b: i32, _| a.saturating_sub(b))),
        (false, false) => by_width!(ty, T => binary(T::wrapping_add)),
        (false, true) => by_width!(ty, T => binary(T::wrapping_sub)),
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
        (Mode::Low, false) => by_width!(ty, T => binary(T::wrapping_mul)),
        (Mode::Low, true) => by_width!(ty, T => ternary(|a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c))),
        (Mode::High, false) if ty == U32 => Some(binary(u32::high)),
        (Mode::High, false) if ty == S32 => Some(binary(i32::high)),
        (Mode::High, false) => by_type!(ty, T => rare_binary(|a: T, b: T, _| a.high(b))),
        (Mode::High, true) if saturate => Some(rare_ternary(|a: i32, b: i32, c: i32, _| a.high(b).saturating_add(c))),
        (Mode::High, true) => by_type!(ty, T => rare_ternary(|a: T, b: T, c: T, _| a.high(b).wrapping_add(c))),
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
        (false, U32, false) => rare_binary(|a: u32, b: u32, _| product_u24(a, b) as u32),
        (true, U32, false) => rare_binary(|a: u32, b: u32, _| (product_u24(a, b) >> 16) as u32),
        (false, _, false) => rare_binary(|a: u32, b: u32, _| product_s24(a, b) as u32),
        (true, _, false) => rare_binary(|a: u32, b: u32, _| (product_s24(a, b) >> 16) as u32),
        (false, U32, true) => rare_ternary(|a: u32, b: u32, c: u32, _| (product_u24(a, b) as u32).wrapping_add(c)),
        (true, U32, true) => {
            rare_ternary(|a: u32, b: u32, c: u32, _| ((product_u24(a, b) >> 16) as u32).wrapping_add(c))
        }
        (false, _, true) => rare_ternary(|a: u32, b: u32, c: u32, _| (product_s24(a, b) as u32).wrapping_add(c)),
        (true, _, true) if saturate => {
            rare_ternary(|a: u32, b: u32, c: i32, _| ((product_s24(a, b) >> 16) as i32).saturating_add(c))
        }
        (true, _, true) => rare_ternary(|a: u32, b: u32, c: u32, _| ((product_s24(a, b) >> 16) as u32).wrapping_add(c)),
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
        "div" => (by_type!(ty, T => rare_binary(|a: T, b: T, _| a.quotient(b))), 2),
        "rem" => (by_type!(ty, T => rare_binary(|a: T, b: T, _| a.remainder(b))), 2),
        _ => {
            // The ISA's difference is of the type's width, so it wraps where a signed one overflows.
            let run = by_type!(ty, T => rare_ternary(|a: T, b: T, c: T, _| {
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
                (true, true) => Some(rare_binary(|a: i32, b: i32, _| a.min(b).max(0))),
                (false, true) => Some(rare_binary(|a: i32, b: i32, _| a.max(b).max(0))),
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
        (U16, true, _) => rare_binary(|a: u32, b: u32, _| pair(a, b, u16::min)),
        (U16, false, _) => rare_binary(|a: u32, b: u32, _| pair(a, b, u16::max)),
        (_, true, false) => rare_binary(|a: u32, b: u32, _| pair(a, b, signed(i16::min))),
        (_, false, false) => rare_binary(|a: u32, b: u32, _| pair(a, b, signed(i16::max))),
        (_, true, true) => rare_binary(|a: u32, b: u32, _| pair(a, b, signed(|x, y| x.min(y).max(0)))),
        (_, false, true) => rare_binary(|a: u32, b: u32, _| pair(a, b, signed(|x, y| x.max(y).max(0)))),
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

#[cfg(test)]
mod tests {
    use crate::isa::probe::{Bits, eval, integers, pairs, refused, triples};

    /// The value of bits as a type has them.
    fn value(bits: u64, ty: &str) -> i128 {
        let width: u32 = ty[1..].parse().unwrap();
        let unsigned = (bits as i128) & ((1 << width) - 1);
        if ty.starts_with('s') && unsigned >> (width - 1) != 0 { unsigned - (1 << width) } else { unsigned }
    }

    /// Checks an instruction of one type against exact arithmetic, whose result is cut to `width` bits.
    fn check(instruction: &str, ty: &str, width: u32, arity: usize, exact: impl Fn(i128, i128, i128) -> i128) {
        let bits: u32 = ty[1..].parse().unwrap();
        let register = |width: u32| format!("b{width}");
        let all = integers(bits);
        let (a, b) = pairs(&all, &all);
        let mut random = Bits(3);
        let c: Vec<u64> = a.iter().map(|_| random.next() & u64::MAX >> (64 - width)).collect();
        let (narrow, wide) = (register(bits), register(width));
        let args = [(narrow.as_str(), &a[..]), (narrow.as_str(), &b[..]), (wide.as_str(), &c[..])];
        let got = eval(instruction, &wide, &args[..arity]);
        let wide_type = format!("{}{width}", &ty[..1]);
        for at in 0..a.len() {
            let want = exact(value(a[at], ty), value(b[at], ty), value(c[at], &wide_type));
            let want = want as u64 & u64::MAX >> (64 - width);
            assert_eq!(got[at], want, "{instruction} {:#x} {:#x} {:#x}", a[at], b[at], c[at]);
        }
    }

    #[test]
    fn arithmetic_is_exact_arithmetic_cut_to_the_width() {
        for ty in ["u16", "s16", "u32", "s32", "u64", "s64"] {
            let width: u32 = ty[1..].parse().unwrap();
            check(&format!("add.{ty}"), ty, width, 2, |a, b, _| a + b);
            check(&format!("sub.{ty}"), ty, width, 2, |a, b, _| a - b);
            check(&format!("mul.lo.{ty}"), ty, width, 2, |a, b, _| a.wrapping_mul(b));
            check(&format!("mad.lo.{ty}"), ty, width, 3, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
            check(&format!("min.{ty}"), ty, width, 2, |a, b, _| a.min(b));
            check(&format!("max.{ty}"), ty, width, 2, |a, b, _| a.max(b));
            check(&format!("sad.{ty}"), ty, width, 3, |a, b, c| c + (a - b).abs());
            check(&format!("div.{ty}"), ty, width, 2, |a, b, _| if b == 0 { -1 } else { a / b });
            check(&format!("rem.{ty}"), ty, width, 2, |a, b, _| if b == 0 { a } else { a % b });
        }
    }

    #[test]
    fn high_and_wide_products() {
        // The product of two 64-bit unsigned values needs `u128`: the cast brings its bits back.
        let product = |a: i128, b: i128| (a as u128).wrapping_mul(b as u128) as i128;
        check("mul.hi.u64", "u64", 64, 2, |a, b, _| (product(a, b) as u128 >> 64) as i128);
        check("mad.hi.u64", "u64", 64, 3, |a, b, c| (product(a, b) as u128 >> 64) as i128 + c);
        for ty in ["u16", "s16", "u32", "s32", "s64"] {
            let width: u32 = ty[1..].parse().unwrap();
            check(&format!("mul.hi.{ty}"), ty, width, 2, |a, b, _| (a * b) >> width);
            check(&format!("mad.hi.{ty}"), ty, width, 3, |a, b, c| ((a * b) >> width) + c);
        }
        for ty in ["u16", "s16", "u32", "s32"] {
            let width = 2 * ty[1..].parse::<u32>().unwrap();
            check(&format!("mul.wide.{ty}"), ty, width, 2, |a, b, _| a * b);
            check(&format!("mad.wide.{ty}"), ty, width, 3, |a, b, c| a * b + c);
        }
    }

    #[test]
    fn saturation_clamps_to_the_signed_range() {
        let clamp = |x: i128| x.clamp(i32::MIN as i128, i32::MAX as i128);
        check("add.sat.s32", "s32", 32, 2, |a, b, _| clamp(a + b));
        check("sub.sat.s32", "s32", 32, 2, |a, b, _| clamp(a - b));
        check("mad.hi.sat.s32", "s32", 32, 3, |a, b, c| clamp(((a * b) >> 32) + c));
        check("max.relu.s32", "s32", 32, 2, |a, b, _| a.max(b).max(0));
        check("min.relu.s32", "s32", 32, 2, |a, b, _| a.min(b).max(0));
    }

    #[test]
    fn products_of_24_bits() {
        let signed = |x: i128| (x & 0xff_ffff) - (x & 0x80_0000) * 2;
        let unsigned = |x: i128| x & 0xff_ffff;
        check("mul24.lo.u32", "u32", 32, 2, |a, b, _| unsigned(a) * unsigned(b));
        check("mul24.hi.u32", "u32", 32, 2, |a, b, _| (unsigned(a) * unsigned(b)) >> 16);
        check("mul24.lo.s32", "s32", 32, 2, |a, b, _| signed(a) * signed(b));
        check("mul24.hi.s32", "s32", 32, 2, |a, b, _| (signed(a) * signed(b)) >> 16);
        check("mad24.lo.u32", "u32", 32, 3, |a, b, c| unsigned(a) * unsigned(b) + c);
        check("mad24.hi.u32", "u32", 32, 3, |a, b, c| ((unsigned(a) * unsigned(b)) >> 16) + c);
        check("mad24.lo.s32", "s32", 32, 3, |a, b, c| signed(a) * signed(b) + c);
        check("mad24.hi.s32", "s32", 32, 3, |a, b, c| ((signed(a) * signed(b)) >> 16) + c);
        let clamp = |x: i128| x.clamp(i32::MIN as i128, i32::MAX as i128);
        check("mad24.hi.sat.s32", "s32", 32, 3, |a, b, c| clamp(((signed(a) * signed(b)) >> 16) + c));
    }

    #[test]
    fn absolute_values_and_negations() {
        for ty in ["s16", "s32", "s64"] {
            let width: u32 = ty[1..].parse().unwrap();
            check(&format!("abs.{ty}"), ty, width, 1, |a, _, _| a.abs());
            check(&format!("neg.{ty}"), ty, width, 1, |a, _, _| -a);
        }
    }

    #[test]
    fn packed_halves_do_not_carry_into_one_another() {
        let halves = integers(16);
        let [a, b, c] = triples(&halves[..12]);
        let words =
            |low: &[u64], high: &[u64]| -> Vec<u64> { low.iter().zip(high).map(|(l, h)| l | h << 16).collect() };
        let (x, y) = (words(&a, &b), words(&c, &a));
        type Exact = fn(i128, i128) -> i128;
        let cases: [(&str, &str, Exact); 9] = [
            ("add.u16x2", "u16", |a, b| a + b),
            ("add.s16x2", "s16", |a, b| a + b),
            ("min.u16x2", "u16", |a, b| a.min(b)),
            ("max.u16x2", "u16", |a, b| a.max(b)),
            ("min.s16x2", "s16", |a, b| a.min(b)),
            ("max.s16x2", "s16", |a, b| a.max(b)),
            ("min.relu.s16x2", "s16", |a, b| a.min(b).max(0)),
            ("max.relu.s16x2", "s16", |a, b| a.max(b).max(0)),
            ("max.s16x2.relu", "s16", |a, b| a.max(b).max(0)),
        ];
        for (instruction, ty, exact) in cases {
            let got = eval(instruction, "b32", &[("b32", &x), ("b32", &y)]);
            for at in 0..x.len() {
                let half = |shift: u32| exact(value(x[at] >> shift, ty), value(y[at] >> shift, ty)) as u64 & 0xffff;
                assert_eq!(got[at], half(0) | half(16) << 16, "{instruction} {:#x} {:#x}", x[at], y[at]);
            }
        }
    }

    #[test]
    fn what_the_isa_does_not_have_is_refused() {
        let line = |instruction: &str| refused(&format!(".reg .b32 %a; {instruction};"));
        assert!(line("add.sat.u32 %a, %a, %a").contains("`add.sat.u32`"));
        assert!(line("mul.u32 %a, %a, %a").contains("`.u32`"));
        assert!(line("mul.lo.u32.sat %a, %a, %a").contains("`.sat`"));
        assert!(line("neg.u32 %a, %a").contains("`.u32`"));
        assert!(line("min.relu.u16x2 %a, %a, %a").contains("`min.relu.u16x2`"));
        assert!(line("add.u32 %a, %a").contains("operands"));
        assert!(line("sub.u16x2 %a, %a, %a").contains("`.u16x2`"));
    }
}
