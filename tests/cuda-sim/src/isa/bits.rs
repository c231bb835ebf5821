//! Integer instructions on bit fields and packed bytes (PTX ISA 9.0, section 9.7.1): popc, clz, bfind, fns, brev, bfe,
//! bfi, bmsk, szext, dp4a, dp2a.

use super::lanes::{Form, binary, quaternary, ternary, ternary_with, unary};
use crate::code::{Class, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::ptx::ast::Instruction;
use crate::ptx::ast::Type::{self, *};

/// Lowers the bit-field and dot-product instructions.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    let instruction = match i.opcode.as_str() {
        "popc" | "clz" | "brev" => count(i),
        "bfind" => bfind(i),
        "fns" => fns(i),
        "bfe" => bfe(i),
        "bfi" => bfi(i),
        "bmsk" => bmsk(i),
        "szext" => szext(i),
        "dp4a" | "dp2a" => dot(i),
        _ => return None,
    };
    Some(
        instruction
            .and_then(|(run, dst, src, imm)| Form { class: Class::Integer, run, dst, src: &src, imm }.emit(cx, i)),
    )
}

/// The semantics, the types of destination and sources, the immediate.
type Lowered = Result<(Run, Type, Vec<Type>, u64)>;

/// `popc`, `clz` and `brev`.
fn count(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let ty = m.ty(&[B32, B64])?;
    m.finish()?;
    let run = match (i.opcode.as_str(), ty) {
        ("popc", B32) => unary(u32::count_ones),
        ("popc", _) => unary(u64::count_ones),
        ("clz", B32) => unary(u32::leading_zeros),
        ("clz", _) => unary(u64::leading_zeros),
        (_, B32) => unary(u32::reverse_bits),
        (_, _) => unary(u64::reverse_bits),
    };
    let dst = if i.opcode == "brev" { ty } else { U32 };
    Ok((run, dst, vec![ty], 0))
}

fn bfind(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let shift = m.take("shiftamt");
    let ty = m.ty(&[U32, U64, S32, S64])?;
    m.finish()?;
    let run = match (ty, shift) {
        (U32, false) => unary(|a: u32| 31u32.wrapping_sub(a.leading_zeros())),
        (U32, true) => unary(|a: u32| shift_amount(a.leading_zeros(), 32)),
        (U64, false) => unary(|a: u64| 63u32.wrapping_sub(a.leading_zeros())),
        (U64, true) => unary(|a: u64| shift_amount(a.leading_zeros(), 64)),
        (S32, false) => unary(|a: i32| 31u32.wrapping_sub((a ^ a >> 31).leading_zeros())),
        (S32, true) => unary(|a: i32| shift_amount((a ^ a >> 31).leading_zeros(), 32)),
        (_, false) => unary(|a: i64| 63u32.wrapping_sub((a ^ a >> 63).leading_zeros())),
        (_, true) => unary(|a: i64| shift_amount((a ^ a >> 63).leading_zeros(), 64)),
    };
    Ok((run, U32, vec![ty], 0))
}

/// `bfind.shiftamt`: the leading zeros, or all ones if nothing is found.
#[inline(always)]
fn shift_amount(zeros: u32, bits: u32) -> u32 {
    if zeros == bits { !0 } else { zeros }
}

fn fns(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    m.ty(&[B32])?;
    m.finish()?;
    Ok((ternary(find_nth_set), B32, vec![B32, U32, S32], 0))
}

/// The position of the `offset`-th set bit of `mask`, counted from bit `base` up or, for a negative offset, down.
/// An offset of 0 asks whether bit `base` itself is set. A base beyond 31 is undefined; here nothing is found.
fn find_nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    if base > 31 {
        return !0;
    }
    let candidates = match offset {
        0 => mask & 1 << base,
        1.. => mask & !0 << base,
        _ => (mask & !0 >> (31 - base)).reverse_bits(),
    };
    let skip = offset.unsigned_abs().saturating_sub(1);
    if skip >= candidates.count_ones() {
        return !0;
    }
    let mut rest = candidates;
    for _ in 0..skip {
        rest &= rest - 1;
    }
    let found = rest.trailing_zeros();
    if offset < 0 { 31 - found } else { found }
}

fn bfe(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let ty = m.ty(&[U32, U64, S32, S64])?;
    m.finish()?;
    let run = match ty {
        U32 => ternary(|a: u32, position: u32, length: u32| extract(a as u64, position, length) as u32),
        U64 => ternary(extract),
        S32 => ternary(|a: i32, position: u32, length: u32| extract_signed(a as i64, position, length) as i32),
        _ => ternary(extract_signed),
    };
    Ok((run, ty, vec![ty, U32, U32], 0))
}

/// Bits `position ..` of a value that zeros extend without end, `length` of them. Only 8 bits of both count.
#[inline(always)]
fn extract(a: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let shifted = if position > 63 { 0 } else { a >> position };
    if length > 63 { shifted } else { shifted & ((1 << length) - 1) }
}

/// The same of a value that its sign extends without end, sign-extended from the field's last bit. An empty field is 0.
#[inline(always)]
fn extract_signed(a: i64, position: u32, length: u32) -> i64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let shifted = a >> position.min(63);
    match length {
        0 => 0,
        1..=63 => shifted << (64 - length) >> (64 - length),
        _ => shifted,
    }
}

fn bfi(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let ty = m.ty(&[B32, B64])?;
    m.finish()?;
    let run = match ty {
        B32 => {
            quaternary(|a: u32, b: u32, position: u32, length: u32| insert(a as u64, b as u64, position, length) as u32)
        }
        _ => quaternary(insert),
    };
    Ok((run, ty, vec![ty, ty, U32, U32], 0))
}

/// `b` with its bits `position .. position + length` replaced by the low ones of `a`. Only 8 bits of both count.
#[inline(always)]
fn insert(a: u64, b: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let field = if length > 63 { !0 } else { (1 << length) - 1 };
    let (field, a) = if position > 63 { (0, 0) } else { (field << position, a << position) };
    a & field | b & !field
}

/// Whether a mode clamps; else it wraps.
const CLAMP: [(&str, bool); 2] = [("clamp", true), ("wrap", false)];

fn bmsk(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let clamp = m.expect(&CLAMP)?;
    m.ty(&[B32])?;
    m.finish()?;
    let run = if clamp {
        binary(|a: u32, b: u32| mask(a.min(32), b.min(32)))
    } else {
        binary(|a: u32, b: u32| mask(a & 31, b & 31))
    };
    Ok((run, B32, vec![B32, B32], 0))
}

/// `width` ones from bit `position` up, both at most 32; what passes bit 31 is lost.
#[inline(always)]
fn mask(position: u32, width: u32) -> u32 {
    (((1u64 << width) - 1) << position) as u32
}

fn szext(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let clamp = m.expect(&CLAMP)?;
    let ty = m.ty(&[U32, S32])?;
    m.finish()?;
    let run = match (ty, clamp) {
        (U32, true) => binary(|a: u32, n: u32| a & mask(0, n.min(32))),
        (U32, false) => binary(|a: u32, n: u32| a & mask(0, n & 31)),
        (_, true) => binary(|a: i32, n: u32| sign_extend(a, n.min(32))),
        (_, false) => binary(|a: i32, n: u32| sign_extend(a, n & 31)),
    };
    Ok((run, ty, vec![ty, U32], 0))
}

/// The low `bits` (0 to 32) as a signed number.
#[inline(always)]
fn sign_extend(a: i32, bits: u32) -> i32 {
    ((a as i64) << (64 - bits.max(1)) >> (64 - bits.max(1))) as i32 * (bits > 0) as i32
}

/// `dp4a` and `dp2a`. The immediate holds the signedness of both sources and, for `dp2a.hi`, the shift of `b`.
fn dot(i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(i);
    let high = i.opcode == "dp2a" && m.expect(&[("lo", false), ("hi", true)])?;
    let a = m.ty(&[U32, S32])?;
    let b = m.ty(&[U32, S32])?;
    m.finish()?;
    let run = if i.opcode == "dp4a" { ternary_with(dp4a) } else { ternary_with(dp2a) };
    let ty = if a == U32 && b == U32 { U32 } else { S32 };
    let imm = (a == S32) as u64 | ((b == S32) as u64) << 1 | (if high { 16 } else { 0 }) << 2;
    Ok((run, ty, vec![a, b, ty], imm))
}

/// Bits `at .. at + width` of `word`, extended.
#[inline(always)]
fn element(word: u32, at: u32, width: u32, signed: bool) -> i32 {
    let top = word >> at << (32 - width);
    if signed { top as i32 >> (32 - width) } else { (top >> (32 - width)) as i32 }
}

#[inline(always)]
fn dp4a(a: u32, b: u32, c: u32, imm: u64) -> u32 {
    let (sa, sb) = (imm & 1 != 0, imm & 2 != 0);
    let mut sum = c;
    for at in [0, 8, 16, 24] {
        sum = sum.wrapping_add((element(a, at, 8, sa) * element(b, at, 8, sb)) as u32);
    }
    sum
}

#[inline(always)]
fn dp2a(a: u32, b: u32, c: u32, imm: u64) -> u32 {
    let (sa, sb, b) = (imm & 1 != 0, imm & 2 != 0, b >> (imm >> 2));
    let low = element(a, 0, 16, sa) * element(b, 0, 8, sb);
    let high = element(a, 16, 16, sa) * element(b, 8, 8, sb);
    c.wrapping_add(low as u32).wrapping_add(high as u32)
}
