//! Integer instructions on bit fields and packed bytes (PTX ISA 9.0, section 9.7.1): popc, clz, bfind, fns, brev, bfe,
//! bfi, bmsk, szext, dp4a, dp2a.

use super::lanes::{
    Form, quaternary, rare_binary, rare_quaternary, rare_ternary, rare_unary, ternary, ternary_with, unary,
};
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
        (U32, false) => rare_unary(|a: u32, _| 31u32.wrapping_sub(a.leading_zeros())),
        (U32, true) => rare_unary(|a: u32, _| shift_amount(a.leading_zeros(), 32)),
        (U64, false) => rare_unary(|a: u64, _| 63u32.wrapping_sub(a.leading_zeros())),
        (U64, true) => rare_unary(|a: u64, _| shift_amount(a.leading_zeros(), 64)),
        (S32, false) => rare_unary(|a: i32, _| 31u32.wrapping_sub((a ^ a >> 31).leading_zeros())),
        (S32, true) => rare_unary(|a: i32, _| shift_amount((a ^ a >> 31).leading_zeros(), 32)),
        (_, false) => rare_unary(|a: i64, _| 63u32.wrapping_sub((a ^ a >> 63).leading_zeros())),
        (_, true) => rare_unary(|a: i64, _| shift_amount((a ^ a >> 63).leading_zeros(), 64)),
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
    Ok((rare_ternary(|mask, base, offset, _| find_nth_set(mask, base, offset)), B32, vec![B32, U32, S32], 0))
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
        U64 => rare_ternary(|a, position, length, _| extract(a, position, length)),
        S32 => ternary(|a: i32, position: u32, length: u32| extract_signed(a as i64, position, length) as i32),
        _ => rare_ternary(|a, position, length, _| extract_signed(a, position, length)),
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
        _ => rare_quaternary(|a, b, position, length, _| insert(a, b, position, length)),
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
        rare_binary(|a: u32, b: u32, _| mask(a.min(32), b.min(32)))
    } else {
        rare_binary(|a: u32, b: u32, _| mask(a & 31, b & 31))
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
        (U32, true) => rare_binary(|a: u32, n: u32, _| a & mask(0, n.min(32))),
        (U32, false) => rare_binary(|a: u32, n: u32, _| a & mask(0, n & 31)),
        (_, true) => rare_binary(|a: i32, n: u32, _| sign_extend(a, n.min(32))),
        (_, false) => rare_binary(|a: i32, n: u32, _| sign_extend(a, n & 31)),
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
    let run = if i.opcode == "dp4a" { ternary_with(dp4a) } else { rare_ternary(dp2a) };
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

#[cfg(test)]
mod tests {
    use crate::isa::probe::{Bits, eval, integers, pairs, triples};

    /// Positions and lengths: within, at and beyond the ends, and beyond the 8 bits that count.
    const PLACES: [u64; 12] = [0, 1, 5, 31, 32, 33, 63, 64, 65, 200, 255, 256 + 4];

    fn bit(word: u64, at: u64) -> u64 {
        word >> at & 1
    }

    #[test]
    fn counts_are_those_of_a_loop() {
        for width in [32u32, 64] {
            let (all, register) = (integers(width), format!("b{width}"));
            let args = [(register.as_str(), &all[..])];
            let popc = eval(&format!("popc.b{width}"), "b32", &args);
            let clz = eval(&format!("clz.b{width}"), "b32", &args);
            let brev = eval(&format!("brev.b{width}"), &register, &args);
            for (at, a) in all.iter().enumerate() {
                let places = 0..width as u64;
                assert_eq!(popc[at], places.clone().map(|k| bit(*a, k)).sum::<u64>());
                assert_eq!(clz[at], places.clone().rev().take_while(|k| bit(*a, *k) == 0).count() as u64);
                let reversed: u64 = places.clone().map(|k| bit(*a, k) << (width as u64 - 1 - k)).sum();
                assert_eq!(brev[at], reversed);
            }
        }
    }

    #[test]
    fn bfind_looks_for_the_first_bit_unlike_the_sign() {
        for (ty, width) in [("u32", 32u64), ("s32", 32), ("u64", 64), ("s64", 64)] {
            let (all, register) = (integers(width as u32), format!("b{width}"));
            let plain = eval(&format!("bfind.{ty}"), "b32", &[(&register, &all)]);
            let shift = eval(&format!("bfind.shiftamt.{ty}"), "b32", &[(&register, &all)]);
            for (at, a) in all.iter().enumerate() {
                let sign = if ty.starts_with('s') { bit(*a, width - 1) } else { 0 };
                let found = (0..width).rev().find(|k| bit(*a, *k) != sign);
                assert_eq!(plain[at], found.unwrap_or(0xffff_ffff), "{ty} {a:#x}");
                assert_eq!(shift[at], found.map_or(0xffff_ffff, |k| width - 1 - k), "{ty} {a:#x}");
            }
        }
    }

    #[test]
    fn fns_walks_the_mask() {
        let masks = [0xaaaa_aaaa, 0, 0xffff_ffff, 1, 0x8000_0000, 0x0101_8010];
        let places: Vec<u64> = (0..masks.len() as u64 * 32 * 70).collect();
        let mask: Vec<u64> = places.iter().map(|p| masks[(p / 70 / 32) as usize]).collect();
        let base: Vec<u64> = places.iter().map(|p| p / 70 % 32).collect();
        let offset: Vec<u64> =
            places.iter().map(|p| (p % 70) as u32 as u64).map(|o| (o as i32 - 35) as u32 as u64).collect();
        let got = eval("fns.b32", "b32", &[("b32", &mask), ("b32", &base), ("b32", &offset)]);
        for at in 0..places.len() {
            let offset = offset[at] as u32 as i32;
            let mut want = 0xffff_ffff;
            if offset == 0 {
                if bit(mask[at], base[at]) != 0 {
                    want = base[at];
                }
            } else {
                let (mut place, mut count) = (base[at] as i64, offset.abs() - 1);
                while (0..32).contains(&place) {
                    if bit(mask[at], place as u64) != 0 {
                        if count == 0 {
                            want = place as u64;
                            break;
                        }
                        count -= 1;
                    }
                    place += offset.signum() as i64;
                }
            }
            assert_eq!(got[at], want, "{:#x} {} {offset}", mask[at], base[at]);
        }
    }

    #[test]
    fn fields_are_extracted_bit_by_bit() {
        for (ty, width) in [("u32", 32u64), ("s32", 32), ("u64", 64), ("s64", 64)] {
            let all = integers(width as u32);
            let (position, length) = pairs(&PLACES, &PLACES);
            let (value, place) = pairs(&all, &(0..position.len() as u64).collect::<Vec<_>>());
            let at = |list: &[u64]| -> Vec<u64> { place.iter().map(|p| list[*p as usize]).collect() };
            let (position, length) = (at(&position), at(&length));
            let register = format!("b{width}");
            let args = [(register.as_str(), &value[..]), ("b32", &position), ("b32", &length)];
            let got = eval(&format!("bfe.{ty}"), &register, &args);
            for at in 0..value.len() {
                let (a, pos, len) = (value[at], position[at] & 0xff, length[at] & 0xff);
                let sign = if ty.starts_with('s') && len > 0 { bit(a, (pos + len - 1).min(width - 1)) } else { 0 };
                let pick = |k: u64| if k < len && pos + k < width { bit(a, pos + k) } else { sign };
                let want: u64 = (0..width).map(|k| pick(k) << k).sum();
                assert_eq!(got[at], want, "bfe.{ty} {a:#x} {pos} {len}");
            }
        }
    }

    #[test]
    fn fields_are_inserted_bit_by_bit() {
        for width in [32u64, 64] {
            let (position, length) = pairs(&PLACES, &PLACES);
            let mut random = Bits(9);
            let mut word = || random.next() & u64::MAX >> (64 - width);
            let (a, b): (Vec<u64>, Vec<u64>) = position.iter().map(|_| (word(), word())).unzip();
            let register = format!("b{width}");
            let args = [(register.as_str(), &a[..]), (register.as_str(), &b), ("b32", &position), ("b32", &length)];
            let got = eval(&format!("bfi.b{width}"), &register, &args);
            for at in 0..a.len() {
                let (pos, len) = (position[at] & 0xff, length[at] & 0xff);
                let pick = |k: u64| if k >= pos && k < pos + len { bit(a[at], k - pos) } else { bit(b[at], k) };
                let want: u64 = (0..width).map(|k| pick(k) << k).sum();
                assert_eq!(got[at], want, "bfi.b{width} {pos} {len}");
            }
        }
    }

    #[test]
    fn masks_and_extensions() {
        let (a, b) = pairs(&PLACES, &PLACES);
        let clamp = eval("bmsk.clamp.b32", "b32", &[("b32", &a), ("b32", &b)]);
        let wrap = eval("bmsk.wrap.b32", "b32", &[("b32", &a), ("b32", &b)]);
        for at in 0..a.len() {
            let ones =
                |from: u64, count: u64| (0..32).filter(|k| *k >= from && *k < from + count).map(|k| 1 << k).sum();
            let (clamped, wrapped): (u64, u64) = (ones(a[at], b[at]), ones(a[at] & 31, b[at] & 31));
            assert_eq!(clamp[at], clamped, "bmsk.clamp {} {}", a[at], b[at]);
            assert_eq!(wrap[at], wrapped, "bmsk.wrap {} {}", a[at], b[at]);
        }
        let (value, bits) = pairs(&integers(32), &PLACES);
        for (instruction, signed, clamps) in [
            ("szext.clamp.u32", false, true),
            ("szext.wrap.u32", false, false),
            ("szext.clamp.s32", true, true),
            ("szext.wrap.s32", true, false),
        ] {
            let got = eval(instruction, "b32", &[("b32", &value), ("b32", &bits)]);
            for at in 0..value.len() {
                let n = if clamps { bits[at].min(32) } else { bits[at] & 31 };
                let sign = if signed && n > 0 { bit(value[at], n - 1) } else { 0 };
                let want: u64 = (0..32).map(|k| (if k < n { bit(value[at], k) } else { sign }) << k).sum();
                assert_eq!(got[at], want, "{instruction} {:#x} {}", value[at], bits[at]);
            }
        }
    }

    #[test]
    fn dot_products_extend_each_source_by_its_type() {
        let [a, b, c] = triples(&integers(32)[4..16]);
        let part = |word: u64, at: u64, width: u64, signed: bool| {
            let x = (word >> at & ((1 << width) - 1)) as i64;
            if signed && x >> (width - 1) != 0 { x - (1 << width) } else { x }
        };
        for (types, sa, sb) in
            [("u32.u32", false, false), ("s32.s32", true, true), ("u32.s32", false, true), ("s32.u32", true, false)]
        {
            let args = [("b32", &a[..]), ("b32", &b[..]), ("b32", &c[..])];
            let four = eval(&format!("dp4a.{types}"), "b32", &args);
            let low = eval(&format!("dp2a.lo.{types}"), "b32", &args);
            let high = eval(&format!("dp2a.hi.{types}"), "b32", &args);
            for at in 0..a.len() {
                let bytes = |k: u64| part(a[at], 8 * k, 8, sa) * part(b[at], 8 * k, 8, sb);
                let mixed = |k: u64, from: u64| part(a[at], 16 * k, 16, sa) * part(b[at], 8 * (from + k), 8, sb);
                let sum = |products: i64| (c[at] as i64 + products) as u32 as u64;
                assert_eq!(four[at], sum((0..4).map(bytes).sum()), "dp4a.{types}");
                assert_eq!(low[at], sum(mixed(0, 0) + mixed(1, 0)), "dp2a.lo.{types}");
                assert_eq!(high[at], sum(mixed(0, 2) + mixed(1, 2)), "dp2a.hi.{types}");
            }
        }
    }
}
