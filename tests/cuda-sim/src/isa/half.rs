//! Half precision arithmetic, `.f16` and `.bf16`, scalar and packed (PTX ISA 9.0, sections 9.7.4 and 9.7.5): add, sub,
//! mul, fma, neg, abs, min, max, tanh, ex2, and the mixed forms of add, sub and fma with an `.f32` result.
//!
//! Results are rounded once, and are the canonical NaN if they are NaN. `fma.oob` is refused: the ISA does not give the
//! bits of the NaN that it looks for.

use super::approximate::{exp2, tanh};
use super::float::{SAT, add_f32, fma_f32, output, saturate};
use super::formats::{Bf16, F16, HALF_NAN, Half};
use super::integer::pair;
use super::lanes::{Form, binary, binary_with, ternary, ternary_with, unary, unary_with};
use super::round::{Rounding, add_odd};
use crate::code::{Class, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::ptx::ast::Instruction;
use crate::ptx::ast::Type::{self, BF16x2, F16x2};

/// Lowers half precision arithmetic.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    let bfloat = match i.modifiers.last().map(String::as_str) {
        Some("f16" | "f16x2") => false,
        Some("bf16" | "bf16x2") => true,
        _ => return None,
    };
    if !matches!(i.opcode.as_str(), "add" | "sub" | "mul" | "fma" | "neg" | "abs" | "min" | "max" | "tanh" | "ex2") {
        return None;
    }
    let instruction = if bfloat { instruction::<Bf16>(i) } else { instruction::<F16>(i) };
    Some(instruction.and_then(|(run, dst, src, imm)| Form { class: Class::Half, run, dst, src: &src, imm }.emit(cx, i)))
}

// The immediate: bits 0 to 3 as `float` has them, then these.
const FTZ: u64 = super::float::FTZ;
const RELU: u64 = 1 << 4;
const NAN: u64 = 1 << 5;
const XORSIGN_ABS: u64 = 1 << 6;

/// The semantics, the types of destination and sources, the immediate.
type Lowered = Result<(Run, Type, Vec<Type>, u64)>;

fn instruction<H: Half>(i: &Instruction) -> Lowered {
    match i.opcode.as_str() {
        "add" | "sub" | "fma" if i.modifiers.iter().any(|m| m == "f32") => mixed::<H>(i),
        "add" | "sub" | "mul" | "fma" => arithmetic::<H>(i),
        "neg" | "abs" => sign::<H>(i),
        "min" | "max" => extremum::<H>(i),
        _ => approximation::<H>(i),
    }
}

/// The scalar and the packed type.
fn types<H: Half>() -> [Type; 2] {
    if H::FORMAT == F16::FORMAT { [Type::F16, F16x2] } else { [Type::BF16, BF16x2] }
}

/// Whether the format has `.ftz` and `.sat`: only `.f16`.
fn flags<H: Half>(m: &mut Modifiers, names: &[(&str, u64)]) -> u64 {
    let mut imm = 0;
    for (name, flag) in names {
        if H::FORMAT == F16::FORMAT && m.take(name) {
            imm |= flag;
        }
    }
    imm
}

/// `add`, `sub`, `mul` and `fma`.
fn arithmetic<H: Half>(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let fused = i.opcode == "fma";
    let rounding = m.take("rn");
    if fused && !rounding {
        return m.refuse();
    }
    let mut imm = flags::<H>(&mut m, &[("ftz", FTZ), ("sat", SAT)]);
    if fused && imm & SAT == 0 && m.take("relu") {
        imm |= RELU;
    }
    let ty = m.ty(&types::<H>())?;
    m.finish()?;
    let packed = ty.bits() == 32;
    let run = match i.opcode.as_str() {
        "add" => two(packed, imm, add::<H>),
        "sub" => two(packed, imm, |a: H, b: H, imm| add(a, H::from_bits(b.to_bits() ^ 0x8000), imm)),
        "mul" => two(packed, imm, mul::<H>),
        _ => three(packed, imm, fma::<H>),
    };
    Ok((run, ty, vec![ty; if fused { 3 } else { 2 }], imm))
}

/// An operation of one source, scalar or packed, with code of its own where there are no flags.
fn one<H: Half>(packed: bool, imm: u64, f: impl Fn(H, u64) -> H + Copy + 'static) -> Run {
    let halves = move |a, imm| pair(a, a, |x, _| f(H::from_bits(x), imm).to_bits());
    match (packed, imm) {
        (false, 0) => unary(move |a| f(a, 0)),
        (false, _) => unary_with(f),
        (true, 0) => unary(move |a: u32| halves(a, 0)),
        (true, _) => unary_with(halves),
    }
}

/// The same of two sources.
fn two<H: Half>(packed: bool, imm: u64, f: impl Fn(H, H, u64) -> H + Copy + 'static) -> Run {
    let halves = move |a, b, imm| pair(a, b, |x, y| f(H::from_bits(x), H::from_bits(y), imm).to_bits());
    match (packed, imm) {
        (false, 0) => binary(move |a, b| f(a, b, 0)),
        (false, _) => binary_with(f),
        (true, 0) => binary(move |a: u32, b: u32| halves(a, b, 0)),
        (true, _) => binary_with(halves),
    }
}

/// The same of three sources.
fn three<H: Half>(packed: bool, imm: u64, f: impl Fn(H, H, H, u64) -> H + Copy + 'static) -> Run {
    let halves = move |a: u32, b: u32, c: u32, imm| {
        let half = |shift: u32| {
            let part = |word: u32| H::from_bits((word >> shift) as u16);
            (f(part(a), part(b), part(c), imm).to_bits() as u32) << shift
        };
        half(0) | half(16)
    };
    match (packed, imm) {
        (false, 0) => ternary(move |a, b, c| f(a, b, c, 0)),
        (false, _) => ternary_with(f),
        (true, 0) => ternary(move |a: u32, b: u32, c: u32| halves(a, b, c, 0)),
        (true, _) => ternary_with(halves),
    }
}

/// A source as `.ftz` has it.
#[inline(always)]
fn source<H: Half>(x: H, imm: u64) -> H {
    if imm & FTZ != 0 { x.flushed() } else { x }
}

/// A result as `.ftz`, `.sat` and `.relu` have it.
#[inline(always)]
fn result<H: Half>(x: H, imm: u64) -> H {
    let x = source(x, imm);
    if imm & SAT != 0 {
        H::encode(saturate(x.decode()))
    } else if imm & RELU != 0 {
        relu(x)
    } else {
        x
    }
}

/// `.relu`: 0 for what is negative, -0 included; NaN stays.
#[inline(always)]
pub(super) fn relu<H: Half>(x: H) -> H {
    let bits = x.to_bits();
    let negative = bits & 0x8000 != 0 && bits & 0x7fff <= H::encode(f32::INFINITY).to_bits();
    H::from_bits(if negative { 0 } else { bits })
}

/// An `.f32` sum has more than twice the precision of either format and two bits more, and what it may lose below its
/// range neither format has: rounding it again gives what one rounding would.
#[inline(always)]
fn add<H: Half>(a: H, b: H, imm: u64) -> H {
    result(H::encode(source(a, imm).decode() + source(b, imm).decode()), imm)
}

/// The product is exact in `f64`, not always in `f32`, whose subnormal numbers are no finer than those of products.
#[inline(always)]
fn mul<H: Half>(a: H, b: H, imm: u64) -> H {
    let product = source(a, imm).decode() as f64 * source(b, imm).decode() as f64;
    result(H::rounded(product, Rounding::Nearest), imm)
}

#[inline(always)]
fn fma<H: Half>(a: H, b: H, c: H, imm: u64) -> H {
    let product = source(a, imm).decode() as f64 * source(b, imm).decode() as f64;
    let sum = add_odd(product, source(c, imm).decode() as f64, Rounding::Nearest);
    result(H::rounded(sum, Rounding::Nearest), imm)
}

/// `neg` and `abs`: the sign bit alone changes, of NaNs too.
fn sign<H: Half>(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let imm = flags::<H>(&mut m, &[("ftz", FTZ)]);
    let ty = m.ty(&types::<H>())?;
    m.finish()?;
    let packed = ty.bits() == 32;
    let run = match i.opcode.as_str() {
        "neg" => one(packed, imm, |a: H, imm| H::from_bits(source(a, imm).to_bits() ^ 0x8000)),
        _ => one(packed, imm, |a: H, imm| H::from_bits(source(a, imm).to_bits() & 0x7fff)),
    };
    Ok((run, ty, vec![ty], imm))
}

/// `min` and `max{.ftz}{.NaN}{.xorsign.abs}`
fn extremum<H: Half>(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let mut imm = flags::<H>(&mut m, &[("ftz", FTZ)]);
    imm |= if m.take("NaN") { NAN } else { 0 };
    if m.take("xorsign") {
        m.expect(&[("abs", ())])?;
        imm |= XORSIGN_ABS;
    }
    let ty = m.ty(&types::<H>())?;
    m.finish()?;
    let packed = ty.bits() == 32;
    let run = match i.opcode.as_str() {
        "min" => two(packed, imm, |a: H, b: H, imm| pick(a, b, imm, true)),
        _ => two(packed, imm, |a: H, b: H, imm| pick(a, b, imm, false)),
    };
    Ok((run, ty, vec![ty; 2], imm))
}

#[inline(always)]
fn pick<H: Half>(a: H, b: H, imm: u64, min: bool) -> H {
    let (a, b) = (source(a, imm).to_bits(), source(b, imm).to_bits());
    let (x, y) = if imm & XORSIGN_ABS != 0 { (a & 0x7fff, b & 0x7fff) } else { (a, b) };
    let infinity = H::encode(f32::INFINITY).to_bits();
    let (nan_x, nan_y) = (x & 0x7fff > infinity, y & 0x7fff > infinity);
    // Numbers ascend with their bits, taken as sign and magnitude; so -0 is less than +0.
    let key = |bits: u16| if bits & 0x8000 != 0 { !(bits as i16 & 0x7fff) } else { bits as i16 };
    let first = if min { key(x) <= key(y) } else { key(x) >= key(y) };
    let picked = if nan_y || !nan_x && first { x } else { y };
    let sign = if imm & XORSIGN_ABS != 0 { (a ^ b) & 0x8000 } else { 0 };
    let nan = nan_x && nan_y || imm & NAN != 0 && (nan_x || nan_y);
    H::from_bits(if nan { HALF_NAN } else { picked | sign })
}

/// `tanh.approx` and `ex2.approx`, formed in `f64` and rounded once.
fn approximation<H: Half>(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    m.expect(&[("approx", ())])?;
    let mut imm = 0;
    // The power of two flushes in `.bf16`, always, and never in `.f16`.
    if i.opcode == "ex2" && H::FORMAT == Bf16::FORMAT {
        m.expect(&[("ftz", ())])?;
        imm = FTZ;
    }
    let ty = m.ty(&types::<H>())?;
    m.finish()?;
    let packed = ty.bits() == 32;
    let run = match i.opcode.as_str() {
        "tanh" => one(packed, imm, |a: H, _| H::rounded(tanh(a.decode() as f64), Rounding::Nearest)),
        _ => one(packed, imm, |a: H, imm| {
            result(H::rounded(exp2(source(a, imm).decode() as f64), Rounding::Nearest), imm)
        }),
    };
    Ok((run, ty, vec![ty], imm))
}

/// `add`, `sub` and `fma{.rnd}{.sat}.f32.atype`: the halves are widened, the result is `.f32`.
fn mixed<H: Half>(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let fused = i.opcode == "fma";
    let mode = match m.one_of(&Rounding::MODIFIERS) {
        Some(mode) => mode,
        None if fused => return m.refuse(),
        None => Rounding::Nearest,
    };
    let imm = mode.code() | if m.take("sat") { SAT } else { 0 };
    m.ty(&[Type::F32])?;
    let ty = m.ty(&types::<H>()[..1])?;
    m.finish()?;
    let run = match i.opcode.as_str() {
        "add" => binary_with(|a: H, c: f32, imm| output(add_f32(a.decode(), c, Rounding::from_code(imm)), imm)),
        "sub" => binary_with(|a: H, c: f32, imm| output(add_f32(a.decode(), -c, Rounding::from_code(imm)), imm)),
        _ => ternary_with(|a: H, b: H, c: f32, imm| {
            output(fma_f32(a.decode(), b.decode(), c, Rounding::from_code(imm)), imm)
        }),
    };
    let mut src = vec![ty; if fused { 2 } else { 1 }];
    src.push(Type::F32);
    Ok((run, Type::F32, src, imm))
}
