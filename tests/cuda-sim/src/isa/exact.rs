//! Floating-point arithmetic on integers: slow, exact until one rounding. The directed roundings of `.f64` use it, for
//! which nothing wider is at hand; the tests check the fast paths of the other formats against it.

use super::round::{Format, Rounding};

/// A number, or none for NaN and the infinities: `significand * 2^exponent`.
#[derive(Clone, Copy, Debug)]
struct Number {
    negative: bool,
    significand: u128,
    exponent: i32,
}

/// `.f64` as a format to round to.
pub const DOUBLE: Format = Format { precision: 53, least: -1022, max: f64::MAX, infinity: true };

impl Number {
    /// A finite number; the significand of a nonzero one has exactly 53 bits.
    fn of(x: f64) -> Number {
        let bits = x.to_bits();
        let (field, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
        let (significand, exponent) = if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
        let shift = if significand == 0 { 0 } else { significand.leading_zeros() - 11 };
        Number {
            negative: x.is_sign_negative(),
            significand: (significand << shift) as u128,
            exponent: exponent - shift as i32,
        }
    }

    /// The exponent of the first bit.
    fn top(self) -> i32 {
        self.exponent + 127 - self.significand.leading_zeros() as i32
    }

    /// The same number, or one on the same side of every tie, with its last bit worth `2^exponent`.
    fn aligned(self, exponent: i32) -> u128 {
        let shift = exponent - self.exponent;
        match shift {
            ..=0 => self.significand << -shift,
            1..=127 => self.significand >> shift | (self.significand << (128 - shift) != 0) as u128,
            _ => (self.significand != 0) as u128,
        }
    }

    /// The nearest number of a format as `mode` has it.
    fn round(self, format: Format, mode: Rounding) -> f64 {
        let Number { negative, significand, exponent } = self;
        let mut last = (self.top() - format.precision + 1).max(format.least - format.precision + 1);
        let shift = last - exponent;
        let (mut kept, rest, half) = match shift {
            ..=0 => (significand << -shift, 0, 1),
            1..=127 => (significand >> shift, significand & ((1 << shift) - 1), 1 << (shift - 1)),
            // Less than half a unit: no significand here reaches bit 127.
            _ => (0, 1, 2),
        };
        let outward = match mode {
            Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
            Rounding::Zero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
        };
        kept += outward as u128;
        if kept >> format.precision != 0 {
            kept >>= 1;
            last += 1;
        }
        // In two steps, since the power alone may be below the normal numbers.
        let magnitude =
            if last > 971 { f64::INFINITY } else { kept as f64 * 2f64.powi(last / 2) * 2f64.powi(last - last / 2) };
        let to_infinity = match mode {
            Rounding::Nearest => true,
            Rounding::Zero => false,
            Rounding::Down => negative,
            Rounding::Up => !negative,
        };
        let magnitude = match magnitude > format.max {
            true if to_infinity => f64::INFINITY,
            true => format.max,
            false => magnitude,
        };
        if negative { -magnitude } else { magnitude }
    }
}

/// The sum of two zeros, or of two numbers that cancel.
fn zero(first: bool, second: bool, mode: Rounding) -> f64 {
    let negative = if first == second { first } else { mode == Rounding::Down };
    if negative { -0.0 } else { 0.0 }
}

/// `a * b + c`, rounded once.
pub fn fma(a: f64, b: f64, c: f64, format: Format, mode: Rounding) -> f64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        // Nothing is rounded. The product of finite factors must not overflow where `c` is infinite.
        return if a.is_finite() && b.is_finite() { c } else { a * b + c };
    }
    let (x, y, c) = (Number::of(a), Number::of(b), Number::of(c));
    let product = Number {
        negative: x.negative != y.negative,
        significand: x.significand * y.significand,
        exponent: x.exponent + y.exponent,
    };
    match (product.significand == 0, c.significand == 0) {
        (true, true) => return zero(product.negative, c.negative, mode),
        (true, false) => return c.round(format, mode),
        (false, true) => return product.round(format, mode),
        (false, false) => {}
    }
    let (high, low) = if product.top() >= c.top() { (product, c) } else { (c, product) };
    let exponent = high.top() - 125;
    let (long, short) = (high.aligned(exponent), low.aligned(exponent));
    let (negative, significand) = match (high.negative == low.negative, long >= short) {
        (true, _) => (high.negative, long + short),
        (false, true) => (high.negative, long - short),
        (false, false) => (low.negative, short - long),
    };
    if significand == 0 {
        return zero(true, false, mode);
    }
    Number { negative, significand, exponent }.round(format, mode)
}

/// `a + b`, rounded once.
pub fn add(a: f64, b: f64, format: Format, mode: Rounding) -> f64 {
    fma(a, 1.0, b, format, mode)
}

/// `a * b`, rounded once.
pub fn mul(a: f64, b: f64, format: Format, mode: Rounding) -> f64 {
    // A zero of the product's sign leaves the sign of a product that is zero.
    let zero = if a.is_sign_negative() != b.is_sign_negative() { -0.0 } else { 0.0 };
    fma(a, b, zero, format, mode)
}

/// `a / b`, rounded once.
pub fn div(a: f64, b: f64, format: Format, mode: Rounding) -> f64 {
    if !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return a / b;
    }
    let (x, y) = (Number::of(a), Number::of(b));
    let dividend = x.significand << 66;
    let sticky = (dividend % y.significand != 0) as u128;
    let significand = (dividend / y.significand) << 1 | sticky;
    let exponent = x.exponent - y.exponent - 67;
    Number { negative: x.negative != y.negative, significand, exponent }.round(format, mode)
}

/// The square root, rounded once.
pub fn sqrt(a: f64, format: Format, mode: Rounding) -> f64 {
    if !a.is_finite() || a <= 0.0 {
        return a.sqrt();
    }
    let x = Number::of(a);
    let odd = x.exponent & 1;
    let square = x.significand << (66 + odd);
    let root = square.isqrt();
    let significand = root << 1 | (root * root != square) as u128;
    Number { negative: false, significand, exponent: (x.exponent - odd - 66) / 2 - 1 }.round(format, mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubles with few and with many bits, near and far, zeros, subnormals and infinities.
    fn samples() -> Vec<f64> {
        let mut all =
            vec![0.0, 1.0, 3.0, 1.0 + f64::EPSILON, f64::MIN_POSITIVE, 5e-324, f64::MAX, f64::INFINITY, 1e-300];
        let mut state = 7u64;
        for _ in 0..150 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            all.push(f64::from_bits(state >> 1));
            all.push(f64::from_bits(state & 0x000f_ffff_ffff_ffff | (1023 + (state >> 58)) << 52));
        }
        all.retain(|x| !x.is_nan());
        all.iter().flat_map(|x| [*x, -x]).collect()
    }

    fn same(got: f64, want: f64) -> bool {
        got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
    }

    #[test]
    fn nearest_agrees_with_the_machine() {
        let all = samples();
        for &a in &all {
            assert!(same(sqrt(a, DOUBLE, Rounding::Nearest), a.sqrt()), "sqrt {a:e}");
            for &b in &all {
                assert!(same(add(a, b, DOUBLE, Rounding::Nearest), a + b), "{a:e} + {b:e}");
                assert!(same(mul(a, b, DOUBLE, Rounding::Nearest), a * b), "{a:e} * {b:e}");
                assert!(same(div(a, b, DOUBLE, Rounding::Nearest), a / b), "{a:e} / {b:e}");
                let c = all[(a.to_bits() ^ b.to_bits().rotate_left(7)) as usize % all.len()];
                assert!(same(fma(a, b, c, DOUBLE, Rounding::Nearest), a.mul_add(b, c)), "{a:e} * {b:e} + {c:e}");
            }
        }
    }

    #[test]
    fn directed_roundings_enclose_the_nearest() {
        let all = samples();
        for &a in &all {
            for &b in &all {
                let by = |mode| add(a, b, DOUBLE, mode);
                let (down, near, up) = (by(Rounding::Down), a + b, by(Rounding::Up));
                if near.is_nan() {
                    continue;
                }
                assert!(down <= near && near <= up, "{a:e} + {b:e}");
                assert!(up == down || up == down.next_up(), "{a:e} + {b:e}");
                assert_eq!(by(Rounding::Zero), if near < 0.0 || down < 0.0 { up } else { down }, "{a:e} + {b:e}");
                // The machine's own error term says whether the sum is exact.
                let part = near - a;
                let dropped = (a - (near - part)) + (b - part);
                if dropped.is_finite() {
                    assert_eq!(down == up, dropped == 0.0, "{a:e} + {b:e}");
                }
            }
        }
    }

    #[test]
    fn a_product_below_the_subnormals_rounds_by_the_mode() {
        let tiny = f64::from_bits(1);
        assert_eq!(mul(tiny, tiny, DOUBLE, Rounding::Up), tiny);
        assert_eq!(mul(tiny, -tiny, DOUBLE, Rounding::Up).to_bits(), (-0.0f64).to_bits());
        assert_eq!(mul(tiny, -tiny, DOUBLE, Rounding::Down), -tiny);
        assert_eq!(mul(f64::MAX, 2.0, DOUBLE, Rounding::Zero), f64::MAX);
        assert_eq!(mul(f64::MAX, -2.0, DOUBLE, Rounding::Up), -f64::MAX);
        assert_eq!(mul(f64::MAX, -2.0, DOUBLE, Rounding::Down), f64::NEG_INFINITY);
    }
}
