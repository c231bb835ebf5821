//! Single and double precision arithmetic (PTX ISA 9.0, section 9.7.3): add, sub, mul, fma, mad, div, rcp, sqrt, abs,
//! neg, min, max, testp, copysign. The approximations are in [`super::approximate`].
//!
//! `.f32` results that are NaN are the canonical NaN. `add` and `mul` without a rounding modifier round to nearest
//! even and are never fused here, though the ISA lets a compiler do so.

use super::approximate;
use super::exact::{self, DOUBLE};
use super::lanes::{Form, binary, rare_binary, rare_ternary, rare_unary, ternary, ternary_with, unary};
use super::round::{Rounding, add_odd, divide_odd, sqrt_odd, to_f32};
use crate::code::{Class, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::ptx::ast::Instruction;
use crate::ptx::ast::Type::{self, *};

/// Lowers single and double precision arithmetic.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    if !matches!(i.modifiers.last().map(String::as_str), Some("f32" | "f64" | "f32x2")) {
        return None;
    }
    Some(match i.opcode.as_str() {
        "add" | "sub" | "mul" | "fma" | "mad" => arithmetic(cx, i),
        "div" | "rcp" | "sqrt" => division(cx, i),
        "abs" | "neg" => sign(cx, i),
        "min" | "max" => extremum(cx, i),
        "testp" => testp(cx, i),
        "copysign" => copysign(cx, i),
        _ => return None,
    })
}

/// Immediate bits of the `.f32` operations beside the two of the rounding mode.
pub(super) const FTZ: u64 = 1 << 2;
pub(super) const SAT: u64 = 1 << 3;
const NAN: u64 = 1 << 4;
const ABS: u64 = 1 << 5;
const XORSIGN: u64 = 1 << 6;

/// The canonical NaN for every NaN. On the bits: the compiler may drop a choice between two NaNs.
#[inline(always)]
pub(super) fn canonical(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff_ffff } else { bits })
}

/// `.ftz`: a zero of the same sign for a subnormal number.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// `.sat`: clamps to 0 to 1. NaN gives 0, as does -0.
#[inline(always)]
pub(super) fn saturate(x: f32) -> f32 {
    if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 }
}

/// A source as the modifiers have it.
#[inline(always)]
pub(super) fn input(x: f32, imm: u64) -> f32 {
    if imm & FTZ != 0 { flush(x) } else { x }
}

/// A result as the modifiers have it.
#[inline(always)]
pub(super) fn output(x: f32, imm: u64) -> f32 {
    let x = input(x, imm);
    if imm & SAT != 0 { saturate(x) } else { canonical(x) }
}

/// An `.f32` operation of two sources. The common modifiers have code of their own, which vectorises best.
fn binary_f32(
    imm: u64,
    nearest: impl Fn(f32, f32) -> f32 + Copy + 'static,
    rounded: impl Fn(f32, f32, Rounding) -> f32 + Copy + 'static,
) -> Run {
    match imm {
        0 => binary(move |a, b| canonical(nearest(a, b))),
        FTZ => binary(move |a, b| canonical(flush(nearest(flush(a), flush(b))))),
        _ => rare_binary(move |a, b, imm| output(rounded(input(a, imm), input(b, imm), Rounding::from_code(imm)), imm)),
    }
}

/// The same of one source.
fn unary_f32(
    imm: u64,
    nearest: impl Fn(f32) -> f32 + Copy + 'static,
    rounded: impl Fn(f32, Rounding) -> f32 + Copy + 'static,
) -> Run {
    match imm {
        0 => unary(move |a| canonical(nearest(a))),
        FTZ => unary(move |a| canonical(flush(nearest(flush(a))))),
        _ => rare_unary(move |a, imm| output(rounded(input(a, imm), Rounding::from_code(imm)), imm)),
    }
}

#[inline(always)]
pub(super) fn add_f32(a: f32, b: f32, mode: Rounding) -> f32 {
    to_f32(add_odd(a as f64, b as f64, mode), mode)
}

#[inline(always)]
fn mul_f32(a: f32, b: f32, mode: Rounding) -> f32 {
    to_f32(a as f64 * b as f64, mode)
}

/// The product is exact in `f64`.
#[inline(always)]
pub(super) fn fma_f32(a: f32, b: f32, c: f32, mode: Rounding) -> f32 {
    to_f32(add_odd(a as f64 * b as f64, c as f64, mode), mode)
}

#[inline(always)]
fn div_f32(a: f32, b: f32, mode: Rounding) -> f32 {
    to_f32(divide_odd(a as f64, b as f64), mode)
}

#[inline(always)]
fn sqrt_f32(a: f32, mode: Rounding) -> f32 {
    to_f32(sqrt_odd(a as f64), mode)
}

fn fma_run(imm: u64) -> Run {
    match imm {
        0 => ternary(|a: f32, b: f32, c: f32| canonical(a.mul_add(b, c))),
        FTZ => ternary(|a: f32, b: f32, c: f32| canonical(flush(flush(a).mul_add(flush(b), flush(c))))),
        // The exponential function that compilers emit rounds down: this form is not rare.
        _ => ternary_with(|a: f32, b: f32, c: f32, imm| {
            let mode = Rounding::from_code(imm);
            output(fma_f32(input(a, imm), input(b, imm), input(c, imm), mode), imm)
        }),
    }
}

/// `add`, `sub`, `mul`, `fma`; `mad` is `fma` by another name.
fn arithmetic(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let fused = matches!(i.opcode.as_str(), "fma" | "mad");
    let mode = match m.one_of(&Rounding::MODIFIERS) {
        Some(mode) => mode,
        None if fused => return m.refuse(),
        None => Rounding::Nearest,
    };
    let mut imm = mode.code();
    imm |= if m.take("ftz") { FTZ } else { 0 };
    imm |= if m.take("sat") { SAT } else { 0 };
    if imm & SAT == 0 && i.opcode != "mad" && m.take("f32x2") {
        m.finish()?;
        let src = &[B64; 3][..if fused { 3 } else { 2 }];
        return Form { class: Class::Float32, run: two_f32(&i.opcode), dst: B64, src, imm }.emit(cx, i);
    }
    let ty = m.ty(if imm & (FTZ | SAT) == 0 { &[F32, F64] } else { &[F32] })?;
    m.finish()?;
    let run = match (i.opcode.as_str(), ty) {
        ("add", F32) => binary_f32(imm, |a, b| a + b, add_f32),
        ("sub", F32) => binary_f32(imm, |a, b| a - b, |a, b, mode| add_f32(a, -b, mode)),
        ("mul", F32) => binary_f32(imm, |a, b| a * b, mul_f32),
        (_, F32) => fma_run(imm),
        ("add", _) => binary_f64(mode, |a, b| a + b, |a, b, mode| exact::add(a, b, DOUBLE, mode)),
        ("sub", _) => binary_f64(mode, |a, b| a - b, |a, b, mode| exact::add(a, -b, DOUBLE, mode)),
        ("mul", _) => binary_f64(mode, |a, b| a * b, |a, b, mode| exact::mul(a, b, DOUBLE, mode)),
        (_, _) if mode == Rounding::Nearest => ternary(f64::mul_add),
        (_, _) => rare_ternary(|a: f64, b: f64, c: f64, imm| exact::fma(a, b, c, DOUBLE, Rounding::from_code(imm))),
    };
    let class = if ty == F32 { Class::Float32 } else { Class::Float64 };
    Form { class, run, dst: ty, src: &[ty; 3][..if fused { 3 } else { 2 }], imm }.emit(cx, i)
}

/// `.f32x2`: two operations on the halves of 64-bit registers.
fn two_f32(opcode: &str) -> Run {
    #[inline(always)]
    fn both(f: impl Fn(f32, f32, f32, Rounding) -> f32, a: u64, b: u64, c: u64, imm: u64) -> u64 {
        let half = |shift: u32| {
            let part = |x: u64| input(f32::from_bits((x >> shift) as u32), imm);
            (output(f(part(a), part(b), part(c), Rounding::from_code(imm)), imm).to_bits() as u64) << shift
        };
        half(0) | half(32)
    }
    match opcode {
        "add" => rare_binary(|a: u64, b: u64, imm| both(|a, b, _, mode| add_f32(a, b, mode), a, b, 0, imm)),
        "sub" => rare_binary(|a: u64, b: u64, imm| both(|a, b, _, mode| add_f32(a, -b, mode), a, b, 0, imm)),
        "mul" => rare_binary(|a: u64, b: u64, imm| both(|a, b, _, mode| mul_f32(a, b, mode), a, b, 0, imm)),
        _ => rare_ternary(|a: u64, b: u64, c: u64, imm| both(fma_f32, a, b, c, imm)),
    }
}

fn binary_f64(
    mode: Rounding,
    nearest: impl Fn(f64, f64) -> f64 + Copy + 'static,
    rounded: impl Fn(f64, f64, Rounding) -> f64 + Copy + 'static,
) -> Run {
    match mode {
        Rounding::Nearest => binary(nearest),
        _ => rare_binary(move |a, b, imm| rounded(a, b, Rounding::from_code(imm))),
    }
}

/// `div`, `rcp` and `sqrt`: rounded, or approximate.
fn division(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let approximation = m.one_of(&[("approx", true), ("full", false)]);
    if approximation == Some(false) && i.opcode != "div" {
        return cx.error(i, "`.full` is a modifier of `div` only");
    }
    let mode = match approximation {
        Some(_) => Rounding::Nearest,
        None => m.expect(&Rounding::MODIFIERS)?,
    };
    let mut imm = mode.code();
    imm |= if m.take("ftz") { FTZ } else { 0 };
    let double = approximation.is_none() && imm & FTZ == 0;
    // `rcp.approx.ftz.f64` is the one approximation of doubles here.
    let gross = i.opcode == "rcp" && approximation.is_some() && imm & FTZ != 0;
    let ty = m.ty(if double || gross { &[F32, F64] } else { &[F32] })?;
    m.finish()?;
    let run = match (i.opcode.as_str(), ty, approximation) {
        ("div", F32, Some(approx)) => approximate::div(approx, imm & FTZ != 0),
        ("rcp", F64, Some(_)) => unary(approximate::gross_reciprocal),
        ("div", F32, None) => binary_f32(imm, |a, b| a / b, div_f32),
        // Correctly rounded, which is within the documented bound of the approximations too.
        ("rcp", F32, _) => unary_f32(imm, |a| 1.0 / a, |a, mode| div_f32(1.0, a, mode)),
        ("sqrt", F32, _) => unary_f32(imm, f32::sqrt, sqrt_f32),
        ("div", ..) => binary_f64(mode, |a, b| a / b, |a, b, mode| exact::div(a, b, DOUBLE, mode)),
        ("rcp", ..) => unary_f64(mode, |a| 1.0 / a, |a, mode| exact::div(1.0, a, DOUBLE, mode)),
        (..) => unary_f64(mode, f64::sqrt, |a, mode| exact::sqrt(a, DOUBLE, mode)),
    };
    let class = if ty == F32 { Class::Float32 } else { Class::Float64 };
    Form { class, run, dst: ty, src: &[ty; 2][..if i.opcode == "div" { 2 } else { 1 }], imm }.emit(cx, i)
}

fn unary_f64(
    mode: Rounding,
    nearest: impl Fn(f64) -> f64 + Copy + 'static,
    rounded: impl Fn(f64, Rounding) -> f64 + Copy + 'static,
) -> Run {
    match mode {
        Rounding::Nearest => unary(nearest),
        _ => rare_unary(move |a, imm| rounded(a, Rounding::from_code(imm))),
    }
}

/// `abs` and `neg`: the sign bit alone changes, of NaNs too.
fn sign(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let ftz = m.take("ftz");
    let ty = m.ty(if ftz { &[F32] } else { &[F32, F64] })?;
    m.finish()?;
    let run = match (i.opcode.as_str(), ty, ftz) {
        ("abs", F32, false) => unary(f32::abs),
        ("abs", F32, true) => unary(|a| flush(a).abs()),
        ("abs", ..) => unary(f64::abs),
        (_, F32, false) => unary(|a: f32| -a),
        (_, F32, true) => unary(|a| -flush(a)),
        (..) => unary(|a: f64| -a),
    };
    let class = if ty == F32 { Class::Float32 } else { Class::Float64 };
    Form { class, run, dst: ty, src: &[ty], imm: 0 }.emit(cx, i)
}

/// The lesser of two numbers, -0 being less than +0; a NaN gives way to a number.
#[inline(always)]
pub(super) fn lesser(a: f32, b: f32) -> f32 {
    let first = a < b || a == b && a.is_sign_negative() || b.is_nan();
    canonical(if first { a } else { b })
}

/// The greater of two numbers, by the same rules.
#[inline(always)]
pub(super) fn greater(a: f32, b: f32) -> f32 {
    let first = a > b || a == b && a.is_sign_positive() || b.is_nan();
    canonical(if first { a } else { b })
}

/// `min` or `max`, as `pick` has it, with `.ftz`, `.NaN`, `.abs` and `.xorsign`.
#[inline(always)]
fn pick_f32(pick: impl Fn(f32, f32) -> f32, a: f32, b: f32, imm: u64) -> f32 {
    let (a, b) = (input(a, imm), input(b, imm));
    let (x, y) = if imm & ABS != 0 { (a.abs(), b.abs()) } else { (a, b) };
    let picked = pick(x, y);
    let nan = picked.is_nan() || imm & NAN != 0 && (a.is_nan() || b.is_nan());
    let sign = if imm & XORSIGN != 0 { (a.to_bits() ^ b.to_bits()) & 0x8000_0000 } else { 0 };
    f32::from_bits(if nan { 0x7fff_ffff } else { picked.to_bits() | sign })
}

fn extremum(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let min = i.opcode == "min";
    let three = i.operands.len() == 4;
    let mut imm = if m.take("ftz") { FTZ } else { 0 };
    imm |= if m.take("NaN") { NAN } else { 0 };
    if three {
        imm |= if m.take("abs") { ABS } else { 0 };
    } else if m.take("xorsign") {
        m.expect(&[("abs", ())])?;
        imm |= ABS | XORSIGN;
    }
    let ty = m.ty(if imm == 0 && !three { &[F32, F64] } else { &[F32] })?;
    m.finish()?;
    let run = match (ty, min, three) {
        (F64, true, _) => binary(lesser_f64),
        (F64, false, _) => binary(greater_f64),
        (_, true, true) => rare_ternary(|a, b, c, imm| pick_f32(lesser, pick_f32(lesser, a, b, imm), c, imm)),
        (_, false, true) => rare_ternary(|a, b, c, imm| pick_f32(greater, pick_f32(greater, a, b, imm), c, imm)),
        (_, true, false) if imm == 0 => binary(lesser),
        (_, false, false) if imm == 0 => binary(greater),
        (_, true, false) => rare_binary(|a, b, imm| pick_f32(lesser, a, b, imm)),
        (_, false, false) => rare_binary(|a, b, imm| pick_f32(greater, a, b, imm)),
    };
    let class = if ty == F32 { Class::Float32 } else { Class::Float64 };
    Form { class, run, dst: ty, src: &[ty; 3][..if three { 3 } else { 2 }], imm }.emit(cx, i)
}

#[inline(always)]
fn lesser_f64(a: f64, b: f64) -> f64 {
    if a < b || a == b && a.is_sign_negative() || b.is_nan() { a } else { b }
}

#[inline(always)]
fn greater_f64(a: f64, b: f64) -> f64 {
    if a > b || a == b && a.is_sign_positive() || b.is_nan() { a } else { b }
}

/// `testp`: zeros count as normal numbers.
fn testp(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let test =
        m.expect(&[("finite", 0), ("infinite", 1), ("number", 2), ("notanumber", 3), ("normal", 4), ("subnormal", 5)])?;
    let ty = m.ty(&[F32, F64])?;
    m.finish()?;
    let run = match (test, ty) {
        (0, F32) => rare_unary(|a: f32, _| a.is_finite()),
        (1, F32) => rare_unary(|a: f32, _| a.is_infinite()),
        (2, F32) => rare_unary(|a: f32, _| !a.is_nan()),
        (3, F32) => rare_unary(|a: f32, _| a.is_nan()),
        (4, F32) => rare_unary(|a: f32, _| a.is_normal() || a == 0.0),
        (_, F32) => rare_unary(|a: f32, _| a.is_subnormal()),
        (0, _) => rare_unary(|a: f64, _| a.is_finite()),
        (1, _) => rare_unary(|a: f64, _| a.is_infinite()),
        (2, _) => rare_unary(|a: f64, _| !a.is_nan()),
        (3, _) => rare_unary(|a: f64, _| a.is_nan()),
        (4, _) => rare_unary(|a: f64, _| a.is_normal() || a == 0.0),
        (_, _) => rare_unary(|a: f64, _| a.is_subnormal()),
    };
    let class = if ty == F32 { Class::Float32 } else { Class::Float64 };
    Form { class, run, dst: Pred, src: &[ty], imm: 0 }.emit(cx, i)
}

/// `copysign d, a, b`: the sign of `a` on the value of `b`.
fn copysign(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let ty: Type = m.ty(&[F32, F64])?;
    m.finish()?;
    let (class, run) = match ty {
        F32 => (Class::Float32, binary(|a: f32, b: f32| b.copysign(a))),
        _ => (Class::Float64, binary(|a: f64, b: f64| b.copysign(a))),
    };
    Form { class, run, dst: ty, src: &[ty, ty], imm: 0 }.emit(cx, i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::probe::{Bits, eval, floats, pairs, refused, triples};
    use crate::isa::round::Format;

    const MODES: [(&str, Rounding); 4] = Rounding::MODIFIERS;

    fn single(bits: u64) -> f64 {
        f32::from_bits(bits as u32) as f64
    }

    /// The bits of an exact result that has been rounded to `.f32`.
    fn rounded(x: f64) -> u64 {
        if x.is_nan() { 0x7fff_ffff } else { (x as f32).to_bits() as u64 }
    }

    fn flushed(bits: u64) -> u64 {
        if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
    }

    fn check(instruction: &str, args: &[&[u64]], want: impl Fn(&[u64]) -> u64) {
        let with_types: Vec<(&str, &[u64])> = args.iter().map(|list| ("f32", *list)).collect();
        let got = eval(instruction, "f32", &with_types);
        for at in 0..args[0].len() {
            let one: Vec<u64> = args.iter().map(|list| list[at]).collect();
            assert_eq!(got[at], want(&one), "{instruction} {one:x?}");
        }
    }

    #[test]
    fn single_precision_is_exact_arithmetic_rounded_once() {
        let (a, b) = pairs(&floats(), &floats());
        let some: Vec<u64> = floats().into_iter().step_by(3).collect();
        let three = triples(&some);
        let f32 = Format::F32;
        for (name, mode) in MODES {
            check(&format!("add.{name}.f32"), &[&a, &b], |x| {
                rounded(exact::add(single(x[0]), single(x[1]), f32, mode))
            });
            check(&format!("sub.{name}.f32"), &[&a, &b], |x| {
                rounded(exact::add(single(x[0]), -single(x[1]), f32, mode))
            });
            check(&format!("mul.{name}.f32"), &[&a, &b], |x| {
                rounded(exact::mul(single(x[0]), single(x[1]), f32, mode))
            });
            check(&format!("div.{name}.f32"), &[&a, &b], |x| {
                rounded(exact::div(single(x[0]), single(x[1]), f32, mode))
            });
            check(&format!("rcp.{name}.f32"), &[&a], |x| rounded(exact::div(1.0, single(x[0]), f32, mode)));
            check(&format!("sqrt.{name}.f32"), &[&a], |x| rounded(exact::sqrt(single(x[0]), f32, mode)));
            check(&format!("fma.{name}.f32"), &[&three[0], &three[1], &three[2]], |x| {
                rounded(exact::fma(single(x[0]), single(x[1]), single(x[2]), f32, mode))
            });
        }
    }

    #[test]
    fn a_fused_multiply_add_keeps_what_the_product_loses() {
        // (1 + e)(1 - e) - 1 is -e^2; a sum far below the product's ulp decides the directed modes.
        let (up, down) = ((1.0f32 + f32::EPSILON).to_bits() as u64, (1.0f32 - f32::EPSILON).to_bits() as u64);
        let one = 1f32.to_bits() as u64;
        let run = |name: &str, c: u64| eval(name, "f32", &[("f32", &[up]), ("f32", &[down]), ("f32", &[c])])[0];
        assert_eq!(f32::from_bits(run("fma.rn.f32", (-1f32).to_bits() as u64) as u32), -(f32::EPSILON * f32::EPSILON));
        assert_eq!(run("fma.rp.f32", 1), one);
        assert_eq!(run("fma.rm.f32", 1), one - 1);
    }

    #[test]
    fn flushing_and_saturation() {
        let (a, b) = pairs(&floats(), &floats());
        let sum = |x: u64, y: u64| rounded(exact::add(single(x), single(y), Format::F32, Rounding::Nearest));
        check("add.ftz.f32", &[&a, &b], |x| flushed(sum(flushed(x[0]), flushed(x[1]))));
        // Normal numbers near one another, whose difference is not normal.
        let near: Vec<u64> = [1.0f32, 1.25, 1.5].iter().map(|x| (x * f32::MIN_POSITIVE).to_bits() as u64).collect();
        let (c, d) = pairs(&near, &near);
        check("sub.ftz.f32", &[&c, &d], |x| flushed(sum(x[0], x[1] ^ 0x8000_0000)));
        check("mul.ftz.f32", &[&a, &b], |x| {
            flushed(rounded(exact::mul(single(flushed(x[0])), single(flushed(x[1])), Format::F32, Rounding::Nearest)))
        });
        check("div.rn.ftz.f32", &[&a, &b], |x| {
            flushed(rounded(exact::div(single(flushed(x[0])), single(flushed(x[1])), Format::F32, Rounding::Nearest)))
        });
        let [x, y, z] = triples(&floats().into_iter().step_by(3).collect::<Vec<u64>>());
        for (name, mode) in MODES {
            check(&format!("fma.{name}.ftz.f32"), &[&x, &y, &z], |x| {
                let [x, y, z] = [0, 1, 2].map(|at| single(flushed(x[at])));
                flushed(rounded(exact::fma(x, y, z, Format::F32, mode)))
            });
        }
        check("mul.rz.ftz.f32", &[&a, &b], |x| {
            let (x, y) = (single(flushed(x[0])), single(flushed(x[1])));
            flushed(rounded(exact::mul(x, y, Format::F32, Rounding::Zero)))
        });
        let clamp = |bits: u64| match single(bits) {
            x if x > 0.0 => (x.min(1.0) as f32).to_bits() as u64,
            _ => 0,
        };
        check("add.sat.f32", &[&a, &b], |x| clamp(sum(x[0], x[1])));
        check("add.rn.ftz.sat.f32", &[&a, &b], |x| clamp(flushed(sum(flushed(x[0]), flushed(x[1])))));
        check("sqrt.rn.ftz.f32", &[&a], |x| flushed(rounded(single(flushed(x[0])).sqrt())));
        check("abs.ftz.f32", &[&a], |x| flushed(x[0]) & 0x7fff_ffff);
        check("neg.ftz.f32", &[&a], |x| flushed(x[0]) ^ 0x8000_0000);
        check("neg.f32", &[&a], |x| x[0] ^ 0x8000_0000);
        check("copysign.f32", &[&a, &b], |x| x[0] & 0x8000_0000 | x[1] & 0x7fff_ffff);
        let (one, two) = ((-1f64).to_bits(), 2f64.to_bits());
        assert_eq!(
            eval("copysign.f64", "f64", &[("f64", &[one, two]), ("f64", &[two, one])]),
            [two | 1 << 63, 1f64.to_bits()]
        );
    }

    /// `min` and `max` as section 9.7.3.12 states them, on a total order of the numbers' bits.
    fn extreme(a: u64, b: u64, min: bool, propagate: bool) -> u64 {
        let nan = |x: u64| x & 0x7fff_ffff > 0x7f80_0000;
        let order = |x: u64| if x >> 31 != 0 { -((x & 0x7fff_ffff) as i64) - 1 } else { x as i64 };
        match (nan(a), nan(b)) {
            (true, true) => 0x7fff_ffff,
            (true, _) | (_, true) if propagate => 0x7fff_ffff,
            (true, _) => b,
            (_, true) => a,
            _ if (order(a) <= order(b)) == min => a,
            _ => b,
        }
    }

    #[test]
    fn extremes_order_zeros_and_pass_over_nan() {
        let (a, b) = pairs(&floats(), &floats());
        for (name, min) in [("min", true), ("max", false)] {
            check(&format!("{name}.f32"), &[&a, &b], |x| extreme(x[0], x[1], min, false));
            check(&format!("{name}.NaN.f32"), &[&a, &b], |x| extreme(x[0], x[1], min, true));
            check(&format!("{name}.ftz.f32"), &[&a, &b], |x| extreme(flushed(x[0]), flushed(x[1]), min, false));
            check(&format!("{name}.xorsign.abs.f32"), &[&a, &b], |x| {
                let picked = extreme(x[0] & 0x7fff_ffff, x[1] & 0x7fff_ffff, min, false);
                if picked > 0x7f80_0000 { picked } else { picked | (x[0] ^ x[1]) & 0x8000_0000 }
            });
            let three = triples(&floats().into_iter().step_by(4).collect::<Vec<_>>());
            check(&format!("{name}.NaN.f32"), &[&three[0], &three[1], &three[2]], |x| {
                extreme(extreme(x[0], x[1], min, true), x[2], min, true)
            });
        }
        let known = eval("min.f32", "f32", &[("f32", &[0x8000_0000, 0]), ("f32", &[0, 0x8000_0000])]);
        assert_eq!(known, [0x8000_0000; 2]);
    }

    #[test]
    fn double_precision_by_every_mode() {
        let mut random = Bits(21);
        let mut all: Vec<u64> = (0..24).map(|_| random.next()).collect();
        all.extend((0..12).map(|_| random.next() & 0x803f_ffff_ffff_ffff | 0x3fc0_0000_0000_0000));
        all.extend([0.0, -0.0, 1.0, f64::INFINITY, f64::MAX, 5e-324, -1e-310].map(f64::to_bits));
        let (a, b) = pairs(&all, &all);
        let c: Vec<u64> = a.iter().map(|_| all[random.next() as usize % all.len()]).collect();
        let args = [("f64", &a[..]), ("f64", &b[..]), ("f64", &c[..])];
        for (name, mode) in MODES {
            let run = |name: String, arity: usize| eval(&name, "f64", &args[..arity]);
            let (sum, rest) = (run(format!("add.{name}.f64"), 2), run(format!("sub.{name}.f64"), 2));
            let (product, quotient) = (run(format!("mul.{name}.f64"), 2), run(format!("div.{name}.f64"), 2));
            let (fused, inverse) = (run(format!("fma.{name}.f64"), 3), run(format!("rcp.{name}.f64"), 1));
            let root = run(format!("sqrt.{name}.f64"), 1);
            for at in 0..a.len() {
                let [x, y, z] = [a[at], b[at], c[at]].map(f64::from_bits);
                for (got, want) in [
                    (sum[at], exact::add(x, y, DOUBLE, mode)),
                    (rest[at], exact::add(x, -y, DOUBLE, mode)),
                    (product[at], exact::mul(x, y, DOUBLE, mode)),
                    (quotient[at], exact::div(x, y, DOUBLE, mode)),
                    (fused[at], exact::fma(x, y, z, DOUBLE, mode)),
                    (inverse[at], exact::div(1.0, x, DOUBLE, mode)),
                    (root[at], exact::sqrt(x, DOUBLE, mode)),
                ] {
                    let got = f64::from_bits(got);
                    assert!(
                        got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                        "{name} {x:e} {y:e} {z:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn two_single_operations_in_a_register() {
        let (a, b) = pairs(&floats(), &floats());
        let words: Vec<u64> = a.iter().zip(&b).map(|(low, high)| low | high << 32).collect();
        let turned: Vec<u64> = words.iter().map(|w| w.rotate_left(32)).collect();
        let got = eval("fma.rn.f32x2", "b64", &[("b64", &words), ("b64", &turned), ("b64", &words)]);
        for at in 0..words.len() {
            let half =
                |x: u64, y: u64| rounded(exact::fma(single(x), single(y), single(x), Format::F32, Rounding::Nearest));
            assert_eq!(got[at], half(a[at], b[at]) | half(b[at], a[at]) << 32, "{:#x}", words[at]);
        }
    }

    #[test]
    fn properties() {
        // Zero, a subnormal, a normal number, infinity, NaN.
        let values: Vec<u64> = [0.0, 1e-40, -2.0, f32::NEG_INFINITY, f32::NAN].map(|x: f32| x.to_bits() as u64).into();
        let doubles: Vec<u64> = [-0.0, -1e-310, 2.0, f64::INFINITY, f64::NAN].map(f64::to_bits).into();
        for (property, want) in [
            ("finite", [1, 1, 1, 0, 0]),
            ("infinite", [0, 0, 0, 1, 0]),
            ("number", [1, 1, 1, 1, 0]),
            ("notanumber", [0, 0, 0, 0, 1]),
            ("normal", [1, 0, 1, 0, 0]),
            ("subnormal", [0, 1, 0, 0, 0]),
        ] {
            assert_eq!(eval(&format!("testp.{property}.f32"), "pred", &[("f32", &values)]), want, "{property}");
            assert_eq!(eval(&format!("testp.{property}.f64"), "pred", &[("f64", &doubles)]), want, "{property}");
        }
    }

    #[test]
    fn what_the_isa_does_not_have_is_refused() {
        let line = |instruction: &str| refused(&format!(".reg .f32 %a; .reg .f64 %d; {instruction};"));
        assert!(line("fma.f32 %a, %a, %a, %a").contains("`fma.f32`"));
        assert!(line("mad.f32 %a, %a, %a, %a").contains("`mad.f32`"));
        assert!(line("add.ftz.f64 %d, %d, %d").contains("`.f64`"));
        assert!(line("div.f32 %a, %a, %a").contains("`.f32`"));
        assert!(line("rcp.full.f32 %a, %a").contains("`.full`"));
        assert!(line("add.sat.ftz.f32 %a, %a, %a").contains("`.ftz`"));
        assert!(line("sqrt.approx.f64 %d, %d").contains("`.f64`"));
        assert!(line("max.abs.f32 %a, %a, %a").contains("`.abs`"));
    }
}
