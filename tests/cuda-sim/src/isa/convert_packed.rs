//! The packed and narrow forms of cvt, and cvt.pack (PTX ISA 9.0, section 9.7.9): `.f16x2` and `.bf16x2` from two
//! `.f32`, `.tf32`, and the pairs of 8, 6 and 4 bit floats.
//!
//! Refused: stochastic rounding (`.rs`) with the four-element formats it is for, and `.ue8m0x2`.

use super::convert::{FTZ, Mode, Options, RELU, SAT, SATFINITE, finite, half};
use super::formats::{Bf16, F16, Half, Small, tf32};
use super::lanes::{Form, binary, rare_binary, rare_ternary, rare_unary};
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
        (Tf32, _) if mode == Mode::NearestAway => (rare_unary(tf32_away), B32, &[Type::F32]),
        (Tf32, _) => (rare_unary(tf32_rounded), B32, &[Type::F32]),
        (Pair(at), F32) => (rare_binary(small_from_f32), register(at), &[Type::F32, Type::F32]),
        (Pair(at), _) => (rare_unary(small_from_f16), register(at), &[Type::F16x2]),
        (_, Pair(at)) => (rare_unary(small_to_f16), Type::F16x2, if register(at) == B8 { &[B8] } else { &[B16] }),
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
        rare_binary(|a: f32, b: f32, imm| {
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
        run = rare_binary(|a: i32, b: i32, imm| packed(a, b, imm));
        src = &[S32, S32];
    } else {
        m.ty(&[B32])?;
        m.finish()?;
        run = rare_ternary(|a: i32, b: i32, c: u32, imm| c << (2 * (imm & 0xff)) | packed(a, b, imm));
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

#[cfg(test)]
mod tests {
    use crate::isa::probe::{eval, refused};

    fn single(x: f32) -> u64 {
        x.to_bits() as u64
    }

    fn two(instruction: &str, register: &str, a: f32, b: f32) -> u64 {
        eval(instruction, register, &[("f32", &[single(a)]), ("f32", &[single(b)])])[0]
    }

    #[test]
    fn the_first_source_goes_above_the_second() {
        assert_eq!(two("cvt.rn.f16x2.f32", "b32", 1.0, -2.0), 0x3c00_c000);
        assert_eq!(two("cvt.rn.bf16x2.f32", "b32", 1.0, -2.0), 0x3f80_c000);
        assert_eq!(two("cvt.rn.relu.bf16x2.f32", "b32", f32::NAN, -2.0), 0x7fff_0000);
        assert_eq!(two("cvt.rz.f16x2.f32", "b32", 1e9, 1.0 + 2f32.powi(-10) * 0.99), 0x7bff_3c00);
        assert_eq!(two("cvt.rn.satfinite.f16x2.f32", "b32", f32::NEG_INFINITY, 1e6), 0xfbff_7bff);
        assert_eq!(two("cvt.rn.satfinite.e4m3x2.f32", "b16", 1.0, -500.0), 0x38fe);
        assert_eq!(two("cvt.rn.satfinite.e5m2x2.f32", "b16", f32::INFINITY, f32::NAN), 0x7b7f);
        assert_eq!(two("cvt.rn.satfinite.relu.e4m3x2.f32", "b16", -1.0, f32::NAN), 0x007f);
        assert_eq!(two("cvt.rn.satfinite.e2m1x2.f32", "b8", 6.0, -0.5), 0x79);
        assert_eq!(two("cvt.rn.satfinite.e2m3x2.f32", "b16", 7.5, -1.0), 0x1f28);
        assert_eq!(two("cvt.rn.satfinite.e3m2x2.f32", "b16", 100.0, f32::NAN), 0x1f1f);
        // Ties in .e4m3: 1.0625 lies between 1.0 and 1.125, 1.1875 between 1.125 and 1.25.
        assert_eq!(two("cvt.rn.satfinite.e4m3x2.f32", "b16", 1.0625, 1.1875), 0x383a);
    }

    #[test]
    fn small_pairs_widen_to_halves() {
        let widen = |instruction: &str, register: &str, bits: u64| eval(instruction, "b32", &[(register, &[bits])])[0];
        assert_eq!(widen("cvt.rn.f16x2.e4m3x2", "b16", 0x38ff), 0x3c00_7fff);
        assert_eq!(widen("cvt.rn.f16x2.e5m2x2", "b16", 0xfc01), 0xfc00_0100);
        assert_eq!(widen("cvt.rn.relu.f16x2.e5m2x2", "b16", 0xbc7d), 0x0000_7fff);
        assert_eq!(widen("cvt.rn.f16x2.e2m1x2", "b8", 0x79), 0x4600_b800);
        let narrow = eval("cvt.rn.satfinite.e5m2x2.f16x2", "b16", &[("b32", &[0x7bff_3c00])])[0];
        assert_eq!(narrow, 0x7b3c);
    }

    #[test]
    fn tf32_rounds_by_its_modes() {
        let run = |instruction: &str, x: f32| eval(instruction, "b32", &[("f32", &[single(x)])])[0];
        let tie = 1.0 + 2f32.powi(-11);
        assert_eq!(run("cvt.rna.tf32.f32", tie), 0x3f80_2000);
        assert_eq!(run("cvt.rn.tf32.f32", tie), 0x3f80_0000);
        assert_eq!(run("cvt.rna.tf32.f32", -tie), 0xbf80_2000);
        assert_eq!(run("cvt.rz.tf32.f32", -1.99999), 0xbfff_e000);
        assert_eq!(run("cvt.rna.tf32.f32", f32::MAX), 0x7f80_0000);
        assert_eq!(run("cvt.rna.satfinite.tf32.f32", f32::MIN), 0xff7f_e000);
        assert_eq!(run("cvt.rna.tf32.f32", f32::NAN), 0x7fff_ffff);
        assert_eq!(run("cvt.rn.relu.tf32.f32", -3.0), 0);
        assert_eq!(run("cvt.rn.tf32.f32", f32::MAX), 0x7f80_0000);
        assert_eq!(run("cvt.rn.tf32.f32", f32::from_bits(0x7f7f_e000)), 0x7f7f_e000);
        for mode in ["rn", "rz"] {
            assert_eq!(run(&format!("cvt.{mode}.satfinite.tf32.f32"), f32::MAX), 0x7f7f_e000);
            assert_eq!(run(&format!("cvt.{mode}.satfinite.tf32.f32"), f32::NEG_INFINITY), 0xff7f_e000);
        }
    }

    #[test]
    fn packs_clamp_and_push() {
        let word = |x: i32| x as u32 as u64;
        let args = [("b32", &[word(-5)][..]), ("b32", &[word(70000)][..]), ("b32", &[0x1122_3344][..])];
        assert_eq!(eval("cvt.pack.sat.u16.s32", "b32", &args[..2]), [0x0000_ffff]);
        assert_eq!(eval("cvt.pack.sat.s16.s32", "b32", &args[..2]), [0xfffb_7fff]);
        assert_eq!(eval("cvt.pack.sat.u8.s32.b32", "b32", &args), [0x3344_00ff]);
        assert_eq!(eval("cvt.pack.sat.s8.s32.b32", "b32", &args), [0x3344_fb7f]);
        assert_eq!(eval("cvt.pack.sat.s4.s32.b32", "b32", &args), [0x2233_44b7]);
        assert_eq!(eval("cvt.pack.sat.u2.s32.b32", "b32", &args), [0x1223_3443]);
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let line = |text: &str| refused(&format!(".reg .b16 %h; .reg .b32 %w; {text};"));
        assert!(line("cvt.rn.e4m3x2.f32 %h, %w, %w").contains("combination"));
        assert!(line("cvt.rz.satfinite.e4m3x2.f32 %h, %w, %w").contains("combination"));
        assert!(line("cvt.rs.f16x2.f32 %w, %w, %w, %w").contains("`.rs`"));
        assert!(line("cvt.rp.ue8m0x2.f32 %h, %w, %w").contains("`.ue8m0x2`"));
        assert!(line("cvt.rp.f16x2.f32 %w, %w, %w").contains("combination"));
        assert!(line("cvt.rn.f16x2.f32 %w, %w").contains("operands"));
        assert!(line("cvt.rna.relu.tf32.f32 %w, %w").contains("combination"));
    }
}
