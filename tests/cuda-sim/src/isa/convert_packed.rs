//! The packed and narrow forms of cvt, and cvt.pack (PTX ISA 9.0, section 9.7.9): `.f16x2` and `.bf16x2` from two
//! `.f32`, `.tf32`, and the pairs of 8, 6 and 4 bit floats.
//!
//! Refused: stochastic rounding (`.rs`) with the four-element formats it is for, and `.ue8m0x2`.

use super::convert::{FTZ, Mode, Options, RELU, SAT, SATFINITE, finite, half};
use super::formats::{Bf16, F16, Half, Small, tf32};
use super::lanes::{Form, binary, binary_with, ternary_with, unary_with};
use super::round::{Format, Rounding};
use crate::code::{Class, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::ptx::ast::Instruction;
use crate::ptx::ast::Type::{self, B8, B16, B32, S32};

/// What a conversion reads or writes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Element {
    F32,
    F16x2,
    BF16x2,
    Tf32,
    /// Two of a small format, by its place in [`SMALL`].
    Pair(u64),
}

const SMALL: [Small; 5] = [Small::E4M3, Small::E5M2, Small::E2M3, Small::E3M2, Small::E2M1];

const ELEMENTS: [(&str, Element); 9] = [
    ("f32", Element::F32),
    ("f16x2", Element::F16x2),
    ("bf16x2", Element::BF16x2),
    ("tf32", Element::Tf32),
    ("e4m3x2", Element::Pair(0)),
    ("e5m2x2", Element::Pair(1)),
    ("e2m3x2", Element::Pair(2)),
    ("e3m2x2", Element::Pair(3)),
    ("e2m1x2", Element::Pair(4)),
];

/// Where the immediate holds the place in [`SMALL`].
const FORMAT: u32 = 8;

/// The type of a pair's register.
fn register(pair: u64) -> Type {
    if SMALL[pair as usize] == Small::E2M1 { B8 } else { B16 }
}

/// Lowers the forms whose destination is none of the scalar types.
pub(super) fn narrow(cx: &mut Lower, i: &Instruction, mut m: Modifiers, options: Options) -> Result<()> {
    use Element::*;
    let dst = m.expect(&ELEMENTS)?;
    let src = m.expect(&ELEMENTS)?;
    m.finish()?;
    let Options { mode, flags } = options;
    let (nearest, zero) = (mode == Mode::Float(Rounding::Nearest), mode == Mode::Float(Rounding::Zero));
    let legal = match (dst, src) {
        (F16x2 | BF16x2 | Tf32, F32) => {
            nearest || zero || mode == Mode::NearestAway && dst == Tf32 && flags & RELU == 0
        }
        (Pair(_), F32) => nearest && flags & SATFINITE != 0,
        (Pair(0 | 1), F16x2) => nearest && flags & SATFINITE != 0,
        (F16x2, Pair(_)) => nearest && flags & SATFINITE == 0,
        _ => false,
    };
    if !legal || flags & (FTZ | SAT) != 0 {
        return cx.error(i, "no such combination of types and modifiers");
    }
    let (run, ty, sources): (Run, Type, &[Type]) = match (dst, src) {
        (F16x2, F32) => (pair_of_halves::<F16>(nearest && flags == 0), Type::F16x2, &[Type::F32, Type::F32]),
        (BF16x2, F32) => (pair_of_halves::<Bf16>(nearest && flags == 0), Type::BF16x2, &[Type::F32, Type::F32]),
        (Tf32, _) if mode == Mode::NearestAway => (unary_with(tf32_away), B32, &[Type::F32]),
        (Tf32, _) => (unary_with(tf32_rounded), B32, &[Type::F32]),
        (Pair(at), F32) => (binary_with(small_from_f32), register(at), &[Type::F32, Type::F32]),
        (Pair(at), _) => (unary_with(small_from_f16), register(at), &[Type::F16x2]),
        (_, Pair(at)) => (unary_with(small_to_f16), Type::F16x2, if register(at) == B8 { &[B8] } else { &[B16] }),
        _ => return cx.error(i, "no such combination of types"),
    };
    let format = match (dst, src) {
        (Pair(at), _) | (_, Pair(at)) => at,
        _ => 0,
    };
    let code = if zero { Rounding::Zero } else { Rounding::Nearest }.code();
    Form { class: Class::Convert, run, dst: ty, src: sources, imm: code | flags | format << FORMAT }.emit(cx, i)
}

/// The first source goes to the upper half.
fn pair_of_halves<H: Half>(bare: bool) -> Run {
    if bare {
        binary(|a: f32, b: f32| (H::encode(a).to_bits() as u32) << 16 | H::encode(b).to_bits() as u32)
    } else {
        binary_with(|a: f32, b: f32, imm| {
            let bits = |x: f32| half::<H>(x as f64, imm).to_bits() as u32;
            bits(a) << 16 | bits(b)
        })
    }
}

/// `cvt.rn` and `cvt.rz` to `.tf32`
fn tf32_rounded(a: f32, imm: u64) -> u32 {
    let x = a as f64;
    let x = if imm & SATFINITE != 0 { finite(x, Format::TF32.max) } else { x };
    let bits = tf32(x, Rounding::from_code(imm));
    // NaN is positive, so that `.relu` keeps it.
    if imm & RELU != 0 && bits >> 31 != 0 { 0 } else { bits }
}

/// `cvt.rna`: to nearest, ties away from zero, which is half a unit more and then cut.
fn tf32_away(a: f32, imm: u64) -> u32 {
    let bits = a.to_bits();
    let rounded = if a.is_finite() { (bits + 0x1000) & !0x1fff } else { bits };
    match (a.is_nan(), imm & SATFINITE != 0 && rounded & 0x7f80_0000 == 0x7f80_0000) {
        (true, _) => 0x7fff_ffff,
        (_, true) => rounded & 0x8000_0000 | 0x7f7f_e000,
        _ => rounded,
    }
}

fn small(imm: u64) -> Small {
    SMALL[(imm >> FORMAT) as usize % SMALL.len()]
}

/// One element; `.relu` makes negative numbers 0.
fn encode(x: f64, imm: u64) -> u16 {
    small(imm).encode(if imm & RELU != 0 && x <= 0.0 { 0.0 } else { x }) as u16
}

/// The bits between the elements: 4 bit elements share a byte.
fn width(small: Small) -> u32 {
    if small == Small::E2M1 { 4 } else { 8 }
}

fn small_from_f32(a: f32, b: f32, imm: u64) -> u16 {
    encode(a as f64, imm) << width(small(imm)) | encode(b as f64, imm)
}

fn small_from_f16(a: u32, imm: u64) -> u16 {
    let part = |bits: u32| encode(F16(bits as u16).decode() as f64, imm);
    part(a >> 16) << width(small(imm)) | part(a)
}

fn small_to_f16(a: u16, imm: u64) -> u32 {
    let (small, width) = (small(imm), width(small(imm)));
    let part = |bits: u16| {
        let x = small.decode((bits & ((1 << width) - 1)) as u8);
        // Every small number is an `.f16`.
        F16::encode(if imm & RELU != 0 && x <= 0.0 { 0.0 } else { x }).0 as u32
    };
    part(a >> width) << 16 | part(a)
}

/// `cvt.pack.sat.convertType.abType{.cType} d, a, b{, c}`: both sources clamped to the narrow type and packed, `a` above
/// `b`; types of less than 16 bits push `c` up by two elements.
pub(super) fn pack(cx: &mut Lower, i: &Instruction, mut m: Modifiers) -> Result<()> {
    m.expect(&[("sat", ())])?;
    // Width and signedness.
    let (bits, signed) = m.expect(&[
        ("u16", (16, false)),
        ("s16", (16, true)),
        ("u8", (8, false)),
        ("s8", (8, true)),
        ("u4", (4, false)),
        ("s4", (4, true)),
        ("u2", (2, false)),
        ("s2", (2, true)),
    ])?;
    m.ty(&[S32])?;
    let imm = bits as u64 | (signed as u64) << 8;
    let run: Run;
    let src: &[Type];
    if bits == 16 {
        m.finish()?;
        run = binary_with(|a: i32, b: i32, imm| packed(a, b, imm));
        src = &[S32, S32];
    } else {
        m.ty(&[B32])?;
        m.finish()?;
        run = ternary_with(|a: i32, b: i32, c: u32, imm| c << (2 * (imm & 0xff)) | packed(a, b, imm));
        src = &[S32, S32, B32];
    }
    Form { class: Class::Convert, run, dst: B32, src, imm }.emit(cx, i)
}

/// Two clamped elements.
#[inline(always)]
fn packed(a: i32, b: i32, imm: u64) -> u32 {
    let (bits, signed) = (imm as u32 & 0xff, imm & 0x100 != 0);
    let (least, most) = if signed { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
    let element = |x: i32| x.clamp(least, most) as u32 & ((1 << bits) - 1);
    element(a) << bits | element(b)
}
