//! Rounding: what the formats and modes of PTX have in common, as functions on `f64` that vectorise.
//!
//! A result is first formed in `f64` so that nothing is lost that could still decide the rounding: exactly, or
//! "rounded to odd" (an inexact value takes the neighbour whose last bit is set, which later roundings to at least two
//! bits less see as "not a tie"). Then [`round`] rounds it once, to the precision and range of the destination.

/// The rounding modes of floating-point results (PTX ISA 9.0, section 9.7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to even.
    Nearest,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards negative infinity.
    Down,
    /// `.rp`: towards positive infinity.
    Up,
}

impl Rounding {
    /// The four modifiers.
    pub const MODIFIERS: [(&'static str, Rounding); 4] =
        [("rn", Rounding::Nearest), ("rz", Rounding::Zero), ("rm", Rounding::Down), ("rp", Rounding::Up)];

    /// The mode of [`Rounding::code`].
    #[inline(always)]
    pub fn from_code(code: u64) -> Rounding {
        match code & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Zero,
            2 => Rounding::Down,
            _ => Rounding::Up,
        }
    }

    /// Two bits for an operation's immediate.
    pub fn code(self) -> u64 {
        self as u64
    }
}

/// A binary floating-point format of at most 24 bits of precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    /// Significant bits, the hidden one included.
    pub precision: i32,
    /// Exponent of the least normal number.
    pub least: i32,
    /// The greatest finite number.
    pub max: f64,
    /// Whether results beyond `max` are infinities; else the caller says what they are.
    pub infinity: bool,
}

impl Format {
    /// `.f32`
    pub const F32: Format = Format { precision: 24, least: -126, max: f32::MAX as f64, infinity: true };
    /// `.tf32`: the range of `.f32`, ten bits of fraction.
    pub const TF32: Format = Format { precision: 11, least: -126, max: 3.4011621342146535e38, infinity: true };
    /// `.bf16`
    pub const BF16: Format = Format { precision: 8, least: -126, max: 3.3895313892515355e38, infinity: true };
    /// `.f16`
    pub const F16: Format = Format { precision: 11, least: -14, max: 65504.0, infinity: true };
    /// `.e5m2`
    pub const E5M2: Format = Format { precision: 3, least: -14, max: 57344.0, infinity: true };
    /// `.e4m3`
    pub const E4M3: Format = Format { precision: 4, least: -6, max: 448.0, infinity: false };
    /// `.e3m2`
    pub const E3M2: Format = Format { precision: 3, least: -2, max: 28.0, infinity: false };
    /// `.e2m3`
    pub const E2M3: Format = Format { precision: 4, least: 0, max: 7.5, infinity: false };
    /// `.e2m1`
    pub const E2M1: Format = Format { precision: 2, least: 0, max: 6.0, infinity: false };
}

/// `2^exponent`, for normal results.
#[inline(always)]
pub fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// Rounds to the format's precision. Beyond `max`: infinity or `max`, as the mode has it, where the format has
/// infinities; otherwise a value greater than `max`. NaN, infinities and zeros are returned as they are.
#[inline(always)]
pub fn round(x: f64, format: Format, mode: Rounding) -> f64 {
    let magnitude = x.abs();
    // Whatever lies far beyond every format's range may be rounded at the wrong place: it overflows all the same.
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).clamp(format.least, 256);
    let unit = power_of_two(exponent - format.precision + 1);
    // The numbers from 2^52 units on are the multiples of the unit: the addition rounds to nearest even.
    let shift = unit * 4503599627370496.0;
    let nearest = (magnitude + shift) - shift;
    let below = if nearest > magnitude { nearest - unit } else { nearest };
    let above = if below < magnitude { below + unit } else { below };
    let negative = x.is_sign_negative();
    let outward = match mode {
        Rounding::Nearest | Rounding::Zero => false,
        Rounding::Down => negative,
        Rounding::Up => !negative,
    };
    let rounded = match mode {
        Rounding::Nearest => nearest,
        _ if outward => above,
        _ => below,
    };
    let to_infinity = mode == Rounding::Nearest || outward;
    let limit = if to_infinity { f64::INFINITY } else { format.max };
    let rounded = if format.infinity && rounded > format.max { limit } else { rounded };
    if magnitude < f64::INFINITY { rounded.copysign(x) } else { x }
}

/// Rounds to `f32`.
#[inline(always)]
pub fn to_f32(x: f64, mode: Rounding) -> f32 {
    if mode == Rounding::Nearest { x as f32 } else { round(x, Format::F32, mode) as f32 }
}

/// Given a result rounded to nearest and the sign of what the rounding dropped (exact minus result), rounds to odd.
#[inline(always)]
pub fn odd(result: f64, dropped: f64) -> f64 {
    let bits = result.to_bits();
    // False of a NaN, which is what infinite results drop.
    let inexact = dropped.abs() > 0.0;
    let outward = (dropped > 0.0) == (result > 0.0);
    let neighbour = if outward { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let even = bits & 1 == 0;
    f64::from_bits(if inexact && even && result.is_finite() { neighbour } else { bits })
}

/// The sum rounded to odd. An exact zero has the sign that `mode` asks for.
#[inline(always)]
pub fn add_odd(a: f64, b: f64, mode: Rounding) -> f64 {
    let sum = a + b;
    let part = sum - a;
    let dropped = (a - (sum - part)) + (b - part);
    let negative_zero = mode == Rounding::Down && sum == 0.0 && (a.is_sign_negative() || b.is_sign_negative());
    if negative_zero { -0.0 } else { odd(sum, dropped) }
}

/// The quotient of two numbers that came from formats of at most 24 bits, rounded to odd.
#[inline(always)]
pub fn divide_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    let rest = (-quotient).mul_add(b, a);
    odd(quotient, if b < 0.0 { -rest } else { rest })
}

/// The square root of a number that came from a format of at most 24 bits, rounded to odd.
#[inline(always)]
pub fn sqrt_odd(a: f64) -> f64 {
    let root = a.sqrt();
    odd(root, (-root).mul_add(root, a))
}

/// An integer with its last 11 bits rounded to odd where it has more than 53.
#[inline(always)]
pub fn unsigned_odd(x: u64) -> f64 {
    let short = if x >> 53 == 0 { x } else { x & !0x7ff | ((x & 0x7ff != 0) as u64) << 11 };
    short as f64
}

/// The same of a signed integer.
#[inline(always)]
pub fn signed_odd(x: i64) -> f64 {
    let magnitude = unsigned_odd(x.unsigned_abs());
    if x < 0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every finite non-negative number of a format, ascending, from its definition.
    fn numbers(format: Format) -> Vec<f64> {
        let hidden = 1u64 << (format.precision - 1);
        let scale = |exponent: i32| 2f64.powi(exponent - format.precision + 1);
        let mut all: Vec<f64> = (0..hidden).map(|fraction| fraction as f64 * scale(format.least)).collect();
        for exponent in format.least.. {
            for significand in hidden..2 * hidden {
                let value = significand as f64 * scale(exponent);
                if value > format.max {
                    return all;
                }
                all.push(value);
            }
        }
        all
    }

    /// Rounds by looking the neighbours up.
    fn reference(x: f64, all: &[f64], format: Format, mode: Rounding) -> f64 {
        let magnitude = x.abs();
        let at = all.partition_point(|n| *n <= magnitude) - 1;
        let (below, top) = (all[at], at + 1 == all.len());
        let above = if top { below + (below - all[at - 1]) } else { all[at + 1] };
        let towards_above = match mode {
            Rounding::Nearest => {
                let (down, up) = (magnitude - below, above - magnitude);
                up < down || up == down && at % 2 == 1
            }
            Rounding::Zero => false,
            Rounding::Down => x < 0.0 && magnitude != below,
            Rounding::Up => x > 0.0 && magnitude != below,
        };
        let rounded = match (towards_above, top) {
            (false, true) if magnitude >= above && mode == Rounding::Nearest => f64::INFINITY,
            (false, _) => below,
            (true, true) if format.infinity => f64::INFINITY,
            (true, _) => above,
        };
        if x < 0.0 { -rounded } else { rounded }
    }

    #[test]
    fn small_formats_round_like_a_table() {
        for format in [Format::F16, Format::E5M2, Format::E4M3, Format::E3M2, Format::E2M3, Format::E2M1] {
            let all = numbers(format);
            let last = all.len() - 1;
            for at in 0..last {
                let (low, high) = (all[at], all[at + 1]);
                let middle = (low + high) / 2.0;
                for x in [low, low.next_up(), middle.next_down(), middle, middle.next_up(), high.next_down()] {
                    for (_, mode) in Rounding::MODIFIERS {
                        for x in [x, -x] {
                            let (got, want) = (round(x, format, mode), reference(x, &all, format, mode));
                            assert_eq!(got, want, "{x:e} in {format:?} by {mode:?}");
                            assert_eq!(got.is_sign_negative(), x.is_sign_negative());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_greatest_number_is_one() {
        for (format, most) in [(Format::F32, 127), (Format::TF32, 127), (Format::BF16, 127), (Format::F16, 15)] {
            let max = (2.0 - 2f64.powi(1 - format.precision)) * 2f64.powi(most);
            assert_eq!(format.max, max, "{format:?}");
            for (_, mode) in Rounding::MODIFIERS {
                assert_eq!(round(max, format, mode), max, "{format:?} by {mode:?}");
                assert_eq!(round(-max, format, mode), -max, "{format:?} by {mode:?}");
            }
        }
    }

    #[test]
    fn overflow_follows_the_mode() {
        use Rounding::*;
        let beyond = 65520.0;
        assert_eq!(round(65519.99, Format::F16, Nearest), 65504.0);
        assert_eq!(round(beyond, Format::F16, Nearest), f64::INFINITY);
        assert_eq!(round(beyond, Format::F16, Zero), 65504.0);
        assert_eq!(round(-beyond, Format::F16, Up), -65504.0);
        assert_eq!(round(-beyond, Format::F16, Down), f64::NEG_INFINITY);
        assert_eq!(round(1e300, Format::F32, Zero), f32::MAX as f64);
        assert_eq!(round(1e300, Format::F32, Nearest), f64::INFINITY);
        assert_eq!(round(f64::INFINITY, Format::F16, Zero), f64::INFINITY);
        assert!(round(500.0, Format::E4M3, Nearest) > 448.0);
        assert!(round(f64::NAN, Format::F32, Up).is_nan());
    }

    #[test]
    fn nearest_f32_agrees_with_the_machine() {
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Exponents around the whole range of f32, subnormals and overflow included.
            let x = f64::from_bits(state & 0x800f_ffff_ffff_ffff | (860 + (state >> 53) % 300) << 52);
            assert_eq!(round(x, Format::F32, Rounding::Nearest), x as f32 as f64, "{x:e}");
        }
    }

    #[test]
    fn odd_sums_keep_what_decides_a_tie() {
        let tie = 1.0 + 2f64.powi(-8);
        let rounded = |c: f64| round(add_odd(tie, c, Rounding::Nearest), Format::BF16, Rounding::Nearest);
        assert_eq!(rounded(0.0), 1.0);
        assert_eq!(rounded(2f64.powi(-300)), 1.0 + 2f64.powi(-7));
        assert_eq!(rounded(-(2f64.powi(-300))), 1.0);
        assert_eq!(unsigned_odd(u64::MAX), (u64::MAX - 0x7ff) as f64);
        assert_eq!(unsigned_odd((1 << 63) + 1), ((1u64 << 63) + (1 << 11)) as f64);
        assert_eq!(signed_odd(i64::MIN), -9223372036854775808.0);
    }

    #[test]
    fn exact_zeros_have_the_sign_of_the_mode() {
        let negative = |a: f64, b: f64, mode| add_odd(a, b, mode).is_sign_negative();
        assert!(!negative(1.0, -1.0, Rounding::Nearest) && negative(1.0, -1.0, Rounding::Down));
        assert!(!negative(0.0, -0.0, Rounding::Up) && negative(0.0, -0.0, Rounding::Down));
        assert!(!negative(0.0, 0.0, Rounding::Down) && negative(-0.0, -0.0, Rounding::Zero));
    }
}
