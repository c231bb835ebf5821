//! Half precision arithmetic, `.f16` and `.bf16`, scalar and packed (PTX ISA 9.0, sections 9.7.4 and 9.7.5): add, sub,
//! mul, fma, neg, abs, min, max, tanh, ex2, and the mixed forms of add, sub and fma with an `.f32` result.
//!
//! Results are rounded once, and are the canonical NaN if they are NaN. `fma.oob` is refused: the ISA does not give the
//! bits of the NaN that it looks for.

use super::approximate::{exp2, tanh};
use super::float::{SAT, add_f32, fma_f32, output, saturate};
use super::formats::{Bf16, F16, HALF_NAN, Half};
use super::integer::pair;
use super::lanes::{Form, binary, rare_binary, rare_ternary, rare_unary, ternary, unary};
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
        (false, _) => rare_unary(f),
        (true, 0) => unary(move |a: u32| halves(a, 0)),
        (true, _) => rare_unary(halves),
    }
}

/// The same of two sources.
fn two<H: Half>(packed: bool, imm: u64, f: impl Fn(H, H, u64) -> H + Copy + 'static) -> Run {
    let halves = move |a, b, imm| pair(a, b, |x, y| f(H::from_bits(x), H::from_bits(y), imm).to_bits());
    match (packed, imm) {
        (false, 0) => binary(move |a, b| f(a, b, 0)),
        (false, _) => rare_binary(f),
        (true, 0) => binary(move |a: u32, b: u32| halves(a, b, 0)),
        (true, _) => rare_binary(halves),
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
        (false, _) => rare_ternary(f),
        (true, 0) => ternary(move |a: u32, b: u32, c: u32| halves(a, b, c, 0)),
        (true, _) => rare_ternary(halves),
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
        "add" => rare_binary(|a: H, c: f32, imm| output(add_f32(a.decode(), c, Rounding::from_code(imm)), imm)),
        "sub" => rare_binary(|a: H, c: f32, imm| output(add_f32(a.decode(), -c, Rounding::from_code(imm)), imm)),
        _ => rare_ternary(|a: H, b: H, c: f32, imm| {
            output(fma_f32(a.decode(), b.decode(), c, Rounding::from_code(imm)), imm)
        }),
    };
    let mut src = vec![ty; if fused { 2 } else { 1 }];
    src.push(Type::F32);
    Ok((run, Type::F32, src, imm))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::exact;
    use crate::isa::probe::{Bits, eval, pairs, refused};

    /// Half bits: corners, and numbers of every size.
    fn halves<H: Half>(count: usize) -> Vec<u64> {
        let mut random = Bits(13);
        let mut all =
            vec![0, 1, 2, H::LEAST_NORMAL as u64 - 1, H::LEAST_NORMAL as u64, H::ONE as u64, H::ONE as u64 + 1];
        let infinity = H::encode(f32::INFINITY).to_bits() as u64;
        all.extend([infinity - 1, infinity, infinity + 1, 0x7fff]);
        all.extend((0..count).map(|_| random.next() & 0x7fff));
        all.iter().flat_map(|x| [*x, *x | 0x8000]).collect()
    }

    fn number<H: Half>(bits: u64) -> f64 {
        H::from_bits(bits as u16).decode() as f64
    }

    fn code<H: Half>(x: f64) -> u64 {
        H::encode(x as f32).to_bits() as u64
    }

    /// Checks the scalar and the packed form of an instruction on two or three sources.
    fn check(instruction: &str, ty: &str, args: &[&[u64]], want: impl Fn(&[u64]) -> u64) {
        let scalar: Vec<(&str, &[u64])> = args.iter().map(|list| ("b16", *list)).collect();
        let got = eval(&format!("{instruction}.{ty}"), "b16", &scalar);
        let at = |k: usize| args.iter().map(|list| list[k]).collect::<Vec<_>>();
        for k in 0..got.len() {
            assert_eq!(got[k], want(&at(k)), "{instruction}.{ty} {:x?}", at(k));
        }
        let words: Vec<Vec<u64>> = args
            .iter()
            .map(|list| list.iter().zip(list.iter().rev()).map(|(low, high)| low | high << 16).collect())
            .collect();
        let packed: Vec<(&str, &[u64])> = words.iter().map(|list| ("b32", &list[..])).collect();
        let both = eval(&format!("{instruction}.{ty}x2"), "b32", &packed);
        for k in 0..got.len() {
            assert_eq!(both[k], got[k] | got[got.len() - 1 - k] << 16, "{instruction}.{ty}x2 {:x?}", at(k));
        }
    }

    fn arithmetic_is_rounded_once<H: Half>(ty: &str) {
        let (a, b) = pairs(&halves::<H>(60), &halves::<H>(60));
        let mut random = Bits(17);
        let some = halves::<H>(300);
        let c: Vec<u64> = a.iter().map(|_| some[random.next() as usize % some.len()]).collect();
        let (format, nearest) = (H::FORMAT, Rounding::Nearest);
        let n = number::<H>;
        check("add", ty, &[&a, &b], |x| code::<H>(exact::add(n(x[0]), n(x[1]), format, nearest)));
        check("sub.rn", ty, &[&a, &b], |x| code::<H>(exact::add(n(x[0]), -n(x[1]), format, nearest)));
        check("mul", ty, &[&a, &b], |x| code::<H>(exact::mul(n(x[0]), n(x[1]), format, nearest)));
        let fused = |x: &[u64]| code::<H>(exact::fma(n(x[0]), n(x[1]), n(x[2]), format, nearest));
        check("fma.rn", ty, &[&a, &b, &c], fused);
        check("fma.rn.relu", ty, &[&a, &b, &c], |x| match fused(x) {
            negative if negative & 0x8000 != 0 => 0,
            other => other,
        });
        check("neg", ty, &[&a], |x| x[0] ^ 0x8000);
        check("abs", ty, &[&a], |x| x[0] & 0x7fff);
    }

    #[test]
    fn half_arithmetic_is_exact_arithmetic_rounded_once() {
        arithmetic_is_rounded_once::<F16>("f16");
        arithmetic_is_rounded_once::<Bf16>("bf16");
    }

    #[test]
    fn what_is_lost_below_a_tie_decides_it() {
        // 1 + 2^-8 is halfway between two `.bf16`; the least number tips it. So does the product of two small ones.
        let (tie, tiny) = (1.0 + 2f32.powi(-8), 0x0001);
        let (x, y) = (Bf16::encode(tie * 2.0 / 1.5).0 as u64, Bf16::encode(0.75).0 as u64);
        let product = number::<Bf16>(x) * number::<Bf16>(y);
        let want = code::<Bf16>(exact::add(product, number::<Bf16>(tiny), Bf16::FORMAT, Rounding::Nearest));
        assert_eq!(eval("fma.rn.bf16", "b16", &[("b16", &[x]), ("b16", &[y]), ("b16", &[tiny])]), [want]);
        // 3 * 2^-134 is halfway between the subnormal numbers 2^-133 and 2^-132, and less than it to an `.f32` product
        // that was rounded to 2^-149 first: 0x0041 is 65 * 2^-133.
        let args = [("b16", &[0x0041][..]), ("b16", &[Bf16::encode(0.0231).0 as u64][..])];
        let exact = exact::mul(number::<Bf16>(0x0041), number::<Bf16>(args[1].1[0]), Bf16::FORMAT, Rounding::Nearest);
        assert_eq!(eval("mul.bf16", "b16", &args), [code::<Bf16>(exact)]);
    }

    #[test]
    fn flushing_and_saturation() {
        let (a, b) = pairs(&halves::<F16>(40), &halves::<F16>(40));
        let flush = |bits: u64| if bits & 0x7c00 == 0 { bits & 0x8000 } else { bits };
        let n = number::<F16>;
        let sum = |x: u64, y: u64| code::<F16>(exact::add(n(x), n(y), F16::FORMAT, Rounding::Nearest));
        check("add.ftz", "f16", &[&a, &b], |x| flush(sum(flush(x[0]), flush(x[1]))));
        let clamp = |bits: u64| if n(bits) > 0.0 { code::<F16>(n(bits).min(1.0)) } else { 0 };
        check("add.sat", "f16", &[&a, &b], |x| clamp(sum(x[0], x[1])));
        check("add.rn.ftz.sat", "f16", &[&a, &b], |x| clamp(flush(sum(flush(x[0]), flush(x[1])))));
        check("neg.ftz", "f16", &[&a], |x| flush(x[0]) ^ 0x8000);
    }

    fn extremes<H: Half>(ty: &str) {
        let (a, b) = pairs(&halves::<H>(40), &halves::<H>(40));
        let nan = |x: u64| number::<H>(x).is_nan();
        let pick = |a: u64, b: u64, min: bool, propagate: bool| match (nan(a), nan(b)) {
            (true, true) => 0x7fff,
            (true, _) | (_, true) if propagate => 0x7fff,
            (true, _) => b,
            (_, true) => a,
            _ if number::<H>(a) == number::<H>(b) => {
                if min {
                    a.max(b)
                } else {
                    a.min(b)
                }
            }
            _ if (number::<H>(a) < number::<H>(b)) == min => a,
            _ => b,
        };
        for (name, min) in [("min", true), ("max", false)] {
            check(name, ty, &[&a, &b], |x| pick(x[0], x[1], min, false));
            check(&format!("{name}.NaN"), ty, &[&a, &b], |x| pick(x[0], x[1], min, true));
            check(&format!("{name}.NaN.xorsign.abs"), ty, &[&a, &b], |x| {
                match pick(x[0] & 0x7fff, x[1] & 0x7fff, min, true) {
                    picked if nan(picked) => 0x7fff,
                    picked => picked | (x[0] ^ x[1]) & 0x8000,
                }
            });
        }
    }

    #[test]
    fn extremes_order_zeros_and_pass_over_nan() {
        extremes::<F16>("f16");
        extremes::<Bf16>("bf16");
    }

    #[test]
    fn approximations_are_the_nearest_halves() {
        let all = halves::<F16>(500);
        check("tanh.approx", "f16", &[&all], |x| code::<F16>(number::<F16>(x[0]).tanh()));
        check("tanh.approx", "bf16", &[&all], |x| code::<Bf16>(number::<Bf16>(x[0]).tanh()));
        check("ex2.approx", "f16", &[&all], |x| code::<F16>(number::<F16>(x[0]).exp2()));
        // The powers of -127 to -133 are subnormal.
        let mut all = halves::<Bf16>(500);
        all.extend((120..135).map(|n| code::<Bf16>(f64::from(-n))));
        check("ex2.approx.ftz", "bf16", &[&all], |x| {
            let power = code::<Bf16>(number::<Bf16>(x[0]).exp2());
            if power < 0x80 { 0 } else { power }
        });
    }

    #[test]
    fn mixed_sums_are_single_precision() {
        let third = (1f32 / 3.0).to_bits() as u64;
        let half = F16::encode(0.1).0 as u64;
        let exact = |mode| {
            exact::add(number::<F16>(half), f32::from_bits(third as u32) as f64, crate::isa::round::Format::F32, mode)
                as f32
        };
        let run = |instruction: &str, ty: &str, half: u64| {
            f32::from_bits(eval(instruction, "f32", &[(ty, &[half]), ("f32", &[third])])[0] as u32)
        };
        assert_eq!(run("add.f32.f16", "b16", half), exact(Rounding::Nearest));
        assert_eq!(run("add.rp.f32.f16", "b16", half), exact(Rounding::Up));
        assert_eq!(run("sub.rz.sat.f32.bf16", "b16", 0), 0.0);
        let args = [("b16", &[half][..]), ("b16", &[half]), ("f32", &[third])];
        let fused = exact::fma(
            number::<F16>(half),
            number::<F16>(half),
            f32::from_bits(third as u32) as f64,
            crate::isa::round::Format::F32,
            Rounding::Down,
        );
        assert_eq!(eval("fma.rm.f32.f16", "f32", &args)[0] as u32, (fused as f32).to_bits());
    }

    #[test]
    fn what_the_isa_does_not_have_is_refused() {
        let line = |instruction: &str| refused(&format!(".reg .b16 %h; .reg .b32 %w; {instruction};"));
        assert!(line("add.rz.f16 %h, %h, %h").contains("`.rz`"));
        assert!(line("add.sat.bf16 %h, %h, %h").contains("`.sat`"));
        assert!(line("fma.f16 %h, %h, %h, %h").contains("`fma.f16`"));
        assert!(line("fma.rn.oob.f16 %h, %h, %h, %h").contains("`.oob`"));
        assert!(line("fma.rn.sat.relu.f16x2 %w, %w, %w, %w").contains("`.relu`"));
        assert!(line("ex2.approx.bf16 %h, %h").contains("`.bf16`"));
        assert!(line("ex2.approx.ftz.f16 %h, %h").contains("`.ftz`"));
    }
}
