//! Approximations (PTX ISA 9.0, section 9.7.3): div.approx, div.full, rsqrt, sin, cos, lg2, ex2, tanh, and the gross
//! reciprocals of doubles.
//!
//! The ISA bounds their errors (an ulp or two; 2^-20.5 for `sin` and `cos`, 2^-11 for `tanh`) and leaves the bits to
//! the hardware. Here each is formed in `f64` with an error below 2^-40 and rounded once, so that it is within every
//! bound, and the same on every machine; it is not the hardware's bits. No function of a math library is called: the
//! series vectorise.

use std::f64::consts::{FRAC_2_PI, FRAC_PI_2, LN_2, LOG2_E};

use super::float::{FTZ, canonical, flush};
use super::lanes::{Form, binary, unary};
use super::round::power_of_two;
use crate::code::{Class, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::ptx::ast::Instruction;
use crate::ptx::ast::Type::*;

/// Lowers the approximations that have no rounded form, `.f32` and `.f64`.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    if !matches!(i.modifiers.last().map(String::as_str), Some("f32" | "f64")) {
        return None;
    }
    Some(match i.opcode.as_str() {
        "sin" | "cos" | "lg2" | "ex2" | "tanh" | "rsqrt" => approximation(cx, i),
        _ => return None,
    })
}

fn approximation(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.expect(&[("approx", ())])?;
    let ftz = i.opcode != "tanh" && m.take("ftz");
    let ty = m.ty(if i.opcode == "rsqrt" { &[F32, F64] } else { &[F32] })?;
    m.finish()?;
    let run = match (i.opcode.as_str(), ty) {
        ("sin", _) => of(ftz, sine),
        ("cos", _) => of(ftz, cosine),
        ("lg2", _) => of(ftz, log2),
        ("ex2", _) => of(ftz, exp2),
        ("tanh", _) => of(ftz, tanh),
        (_, F32) => of(ftz, |x| 1.0 / x.sqrt()),
        (_, _) if ftz => unary(gross_inverse_root),
        (_, _) => unary(|x: f64| 1.0 / x.sqrt()),
    };
    let class = if ty == F32 { Class::Float32 } else { Class::Float64 };
    Form { class, run, dst: ty, src: &[ty], imm: if ftz { FTZ } else { 0 } }.emit(cx, i)
}

/// The operation on `.f32` that rounds a function on `.f64`.
fn of(ftz: bool, f: impl Fn(f64) -> f64 + Copy + 'static) -> Run {
    if ftz {
        unary(move |x| canonical(flush(f(flush(x) as f64) as f32)))
    } else {
        unary(move |x: f32| canonical(f(x as f64) as f32))
    }
}

/// `div.approx` or `div.full`.
pub(super) fn div(approx: bool, ftz: bool) -> Run {
    match (approx, ftz) {
        (true, false) => binary(div_approx),
        (true, true) => binary(|a, b| flush(div_approx(flush(a), flush(b)))),
        (false, false) => binary(|a: f32, b: f32| canonical(a / b)),
        (false, true) => binary(|a, b| canonical(flush(flush(a) / flush(b)))),
    }
}

/// `div.approx`: for a divisor beyond 2^126 the reciprocal is 0, so that the quotient is 0, or NaN of an infinity.
#[inline(always)]
fn div_approx(a: f32, b: f32) -> f32 {
    const LARGE: f32 = 8.507_059e37;
    let quotient = if b.abs() > LARGE { a * 0f32.copysign(b) } else { a / b };
    canonical(quotient)
}

/// The upper word of a double, as the gross approximations read and write it; subnormal numbers are zeros.
#[inline(always)]
fn upper_word(x: f64) -> f64 {
    let bits = x.to_bits() & 0xffff_ffff_0000_0000;
    match (x.is_nan(), bits & 0x7ff0_0000_0000_0000) {
        (true, _) => f64::from_bits(0x7fff_ffff_0000_0000),
        (_, 0) => f64::from_bits(bits & 1 << 63),
        _ => f64::from_bits(bits),
    }
}

/// `rcp.approx.ftz.f64`
#[inline(always)]
pub(super) fn gross_reciprocal(x: f64) -> f64 {
    upper_word(1.0 / upper_word(x))
}

/// `rsqrt.approx.ftz.f64`
#[inline(always)]
fn gross_inverse_root(x: f64) -> f64 {
    upper_word(1.0 / upper_word(x).sqrt())
}

/// `2^x`, for results within the range of `f32` and beyond its ends.
#[inline(always)]
pub(super) fn exp2(x: f64) -> f64 {
    // NaN passes the clamp; infinities end beyond `f32`'s range, at infinity and zero.
    let x = x.clamp(-300.0, 300.0);
    let whole = x.round_ties_even();
    let t = (x - whole) * LN_2;
    // The exponential series: |t| < 0.35, so that what follows the last term is below 2^-42.
    let mut sum = 1.0;
    for k in [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        sum = 1.0 + sum * t * (1.0 / k);
    }
    sum * power_of_two(whole as i32)
}

/// The logarithm to base 2, with its values at zeros, infinities and negative numbers.
#[inline(always)]
pub(super) fn log2(x: f64) -> f64 {
    let bits = x.to_bits();
    // The significand between sqrt(1/2) and sqrt(2), so that the logarithm of numbers near 1 has no exponent to cancel.
    let above = bits & 0xf_ffff_ffff_ffff > 0x6_a09e_667f_3bcd;
    let exponent = (bits >> 52) as i32 - 1023 + above as i32;
    let significand = f64::from_bits(bits & 0xf_ffff_ffff_ffff | if above { 1022 << 52 } else { 1023 << 52 });
    let s = (significand - 1.0) / (significand + 1.0);
    let square = s * s;
    // ln(m) = 2 atanh(s), |s| < 0.172: what follows the last term is below 2^-44 of the sum.
    let mut sum = 1.0 / 15.0;
    for k in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / k;
    }
    let logarithm = exponent as f64 + 2.0 * LOG2_E * s * sum;
    if x > 0.0 && x < f64::INFINITY {
        logarithm
    } else if x == 0.0 {
        f64::NEG_INFINITY
    } else if x > 0.0 {
        x
    } else {
        f64::NAN
    }
}

/// Sine and cosine of an angle reduced to a quarter turn, and the quarter's number. Good for angles to 2^50; beyond,
/// the ISA promises nothing, and the results are merely between -1 and 1.
#[inline(always)]
fn quarter_turn(x: f64) -> (f64, f64, i64) {
    // pi/2 in two parts.
    const HIGH: f64 = FRAC_PI_2;
    const LOW: f64 = 6.123_233_995_736_766e-17;
    let quarters = (x * FRAC_2_PI).round_ties_even();
    let r = (-quarters).mul_add(LOW, (-quarters).mul_add(HIGH, x));
    let square = r * r;
    let (mut sine, mut cosine) = (1.0, 1.0);
    // The series, each term from the one before: |r| < 0.79, so that the rest is below 2^-40.
    for k in [6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        sine = 1.0 - sine * square * (1.0 / (2.0 * k * (2.0 * k + 1.0)));
        cosine = 1.0 - cosine * square * (1.0 / (2.0 * k * (2.0 * k - 1.0)));
    }
    ((r * sine).clamp(-1.0, 1.0), cosine.clamp(-1.0, 1.0), quarters as i64)
}

#[inline(always)]
fn sine(x: f64) -> f64 {
    let (sine, cosine, quarter) = quarter_turn(x);
    let value = if quarter & 1 == 0 { sine } else { cosine };
    let value = if quarter & 2 == 0 { value } else { -value };
    if x == 0.0 { x } else { value }
}

#[inline(always)]
fn cosine(x: f64) -> f64 {
    let (sine, cosine, quarter) = quarter_turn(x);
    let value = if quarter & 1 == 0 { cosine } else { sine };
    if quarter.wrapping_add(1) & 2 == 0 { value } else { -value }
}

/// The hyperbolic tangent. Close to zero the difference of exponentials would cancel: there, two terms of its series.
#[inline(always)]
pub(super) fn tanh(x: f64) -> f64 {
    let magnitude = x.abs();
    let difference = 1.0 - 2.0 / (exp2(2.0 * LOG2_E * magnitude) + 1.0);
    let series = magnitude - magnitude * magnitude * magnitude * (1.0 / 3.0);
    (if magnitude < 1e-3 { series } else { difference }).copysign(x)
}

#[cfg(test)]
mod tests {
    use crate::isa::probe::{Bits, eval, floats, refused};

    /// Checks an approximation: the relative error, or with `absolute` the absolute one, against the math library.
    fn check(instruction: &str, inputs: &[f32], bound: f64, absolute: bool, want: impl Fn(f64) -> f64) {
        let bits: Vec<u64> = inputs.iter().map(|x| x.to_bits() as u64).collect();
        let got = eval(instruction, "f32", &[("f32", &bits)]);
        for (x, got) in inputs.iter().zip(got) {
            let (got, want) = (f32::from_bits(got as u32) as f64, want(*x as f64));
            let scale = if absolute { 1.0 } else { want.abs().max(f32::MIN_POSITIVE as f64) };
            assert!(
                (got - want).abs() <= bound * scale || got == want as f32 as f64,
                "{instruction} {x:e}: {got:e}, not {want:e}"
            );
        }
    }

    /// Numbers across `low` to `high`, and close to zero on both sides.
    fn across(low: f32, high: f32) -> Vec<f32> {
        let mut random = Bits(77);
        let spread = (0..3000).map(|_| low + (high - low) * (random.next() >> 40) as f32 / (1 << 24) as f32);
        spread.chain([1e-3, -1e-3, 1e-8, -1e-8, 1e-30, 0.999e-3, 1.001e-3]).collect()
    }

    #[test]
    fn errors_are_within_an_ulp() {
        let ulp = 2f64.powi(-23);
        check("ex2.approx.f32", &across(-140.0, 127.9), ulp, false, f64::exp2);
        let positive: Vec<f32> = floats().iter().map(|b| f32::from_bits(*b as u32)).filter(|x| *x > 0.0).collect();
        check("lg2.approx.f32", &positive, ulp, false, f64::log2);
        check("lg2.approx.f32", &across(0.5, 2.0).iter().map(|x| x.abs()).collect::<Vec<_>>(), ulp, false, f64::log2);
        check("sin.approx.f32", &across(-400.0, 400.0), ulp, true, f64::sin);
        check("cos.approx.f32", &across(-400.0, 400.0), ulp, true, f64::cos);
        check("sin.approx.f32", &across(-1e7, 1e7), ulp, true, f64::sin);
        check("tanh.approx.f32", &across(-12.0, 12.0), ulp, false, f64::tanh);
        check("rsqrt.approx.f32", &positive, ulp, false, |x| 1.0 / x.sqrt());
        check("rcp.approx.f32", &positive, ulp, false, |x| 1.0 / x);
        check("sqrt.approx.f32", &positive, ulp, false, f64::sqrt);
    }

    fn single(instruction: &str, x: f32) -> f32 {
        f32::from_bits(eval(instruction, "f32", &[("f32", &[x.to_bits() as u64])])[0] as u32)
    }

    #[test]
    fn special_values_are_those_of_the_tables() {
        let (infinity, tiny) = (f32::INFINITY, f32::from_bits(1));
        let same = |got: f32, want: f32, what: &str| {
            assert!(got.to_bits() == want.to_bits() || want.is_nan() && got.to_bits() == 0x7fff_ffff, "{what}: {got}");
        };
        for (instruction, input, want) in [
            ("ex2.approx.f32", -infinity, 0.0),
            ("ex2.approx.f32", infinity, infinity),
            ("ex2.approx.f32", tiny, 1.0),
            ("ex2.approx.f32", 128.0, infinity),
            ("ex2.approx.f32", -149.0, tiny),
            ("ex2.approx.f32", -151.0, 0.0),
            ("ex2.approx.ftz.f32", -149.0, 0.0),
            ("ex2.approx.f32", f32::NAN, f32::NAN),
            ("lg2.approx.f32", 0.0, -infinity),
            ("lg2.approx.f32", -0.0, -infinity),
            ("lg2.approx.f32", -1.0, f32::NAN),
            ("lg2.approx.f32", -infinity, f32::NAN),
            ("lg2.approx.f32", infinity, infinity),
            ("lg2.approx.f32", 1.0, 0.0),
            ("lg2.approx.f32", tiny, -149.0),
            ("lg2.approx.ftz.f32", tiny, -infinity),
            ("lg2.approx.f32", f32::NAN, f32::NAN),
            ("sin.approx.f32", -0.0, -0.0),
            ("sin.approx.f32", infinity, f32::NAN),
            ("sin.approx.ftz.f32", -tiny, -0.0),
            ("cos.approx.f32", 0.0, 1.0),
            ("cos.approx.f32", -infinity, f32::NAN),
            ("tanh.approx.f32", -0.0, -0.0),
            ("tanh.approx.f32", infinity, 1.0),
            ("tanh.approx.f32", -infinity, -1.0),
            ("tanh.approx.f32", f32::NAN, f32::NAN),
            ("rsqrt.approx.f32", -0.0, -infinity),
            ("rsqrt.approx.f32", 0.0, infinity),
            ("rsqrt.approx.f32", infinity, 0.0),
            ("rsqrt.approx.f32", -1.0, f32::NAN),
            ("rsqrt.approx.ftz.f32", -tiny, -infinity),
            ("rcp.approx.f32", -0.0, -infinity),
            ("rcp.approx.f32", -infinity, -0.0),
            ("rcp.approx.ftz.f32", tiny, infinity),
            ("rcp.approx.ftz.f32", 1.6e38, 0.0),
            ("sqrt.approx.f32", -0.0, -0.0),
            ("sqrt.approx.f32", -1.0, f32::NAN),
        ] {
            same(single(instruction, input), want, &format!("{instruction} {input:e}"));
        }
        for x in [1e20f32, 3e38, -1e30] {
            assert!(single("sin.approx.f32", x).abs() <= 1.0 && single("cos.approx.f32", x).abs() <= 1.0);
        }
    }

    #[test]
    fn approximate_quotients() {
        let div = |instruction: &str, a: f32, b: f32| {
            let args = [("f32", &[a.to_bits() as u64][..]), ("f32", &[b.to_bits() as u64][..])];
            f32::from_bits(eval(instruction, "f32", &args)[0] as u32)
        };
        assert_eq!(div("div.approx.f32", 1.0, 3.0), 1.0 / 3.0);
        assert_eq!(div("div.approx.f32", 2f32.powi(126), 2f32.powi(126)), 1.0);
        assert_eq!(div("div.approx.f32", 1e38, 2f32.powi(127)), 0.0);
        assert_eq!(div("div.full.f32", 1e38, 2f32.powi(127)), 1e38 / 2f32.powi(127));
        assert!(div("div.approx.f32", f32::INFINITY, 2f32.powi(127)).is_nan());
        assert_eq!(div("div.full.ftz.f32", 1e-39, 1e-39).to_bits(), 0x7fff_ffff);
        assert_eq!(div("div.approx.ftz.f32", f32::MIN_POSITIVE, 2.0), 0.0);
    }

    #[test]
    fn gross_doubles_have_no_lower_word() {
        let run = |name: &str, x: f64| eval(name, "f64", &[("f64", &[x.to_bits()])])[0];
        for x in [3.0f64, -7.5, 1e300, 1e-300, 123456.789] {
            let bits = run("rcp.approx.ftz.f64", x);
            assert_eq!(bits as u32, 0);
            assert!((f64::from_bits(bits) * x - 1.0).abs() < 2f64.powi(-18), "{x:e}");
            let bits = run("rsqrt.approx.ftz.f64", x.abs());
            assert_eq!(bits as u32, 0);
            assert!((f64::from_bits(bits).powi(2) * x.abs() - 1.0).abs() < 2f64.powi(-17), "{x:e}");
        }
        assert_eq!(f64::from_bits(run("rcp.approx.ftz.f64", -1e-310)), f64::NEG_INFINITY);
        assert!(f64::from_bits(run("rcp.approx.ftz.f64", f64::from_bits(0x7ff0_0000_0000_0001))).is_nan());
        assert!(refused(".reg .f64 %d; rcp.approx.f64 %d, %d;").contains("`.f64`"));
        assert!(refused(".reg .f32 %d; sin.f32 %d, %d;").contains("`.f32`"));
        assert!(refused(".reg .f32 %d; tanh.approx.ftz.f32 %d, %d;").contains("`.ftz`"));
    }
}
