//! The floating-point formats of 16 bits and less (PTX ISA 9.0, section 5.2): their encoding, without a branch where
//! whole warps convert them.

use super::lanes::{Value, map, value};
use super::round::{Format, Rounding, round};
use crate::code::{Dst, Src};
use crate::machine::{Cx, Row};

/// The canonical NaN of `.f16` and of `.bf16`.
pub const HALF_NAN: u16 = 0x7fff;

/// A format of 16 bits. All but [`Half::decode`] and [`Half::encode`] follows from the format.
pub trait Half: Value + PartialOrd {
    /// Precision and range.
    const FORMAT: Format;
    /// The number 1.
    const ONE: u16;
    /// The magnitudes below are subnormal.
    const LEAST_NORMAL: u16;
    /// From its bits.
    fn from_bits(bits: u16) -> Self;
    /// Its bits.
    fn to_bits(self) -> u16;
    /// The same number.
    fn decode(self) -> f32;
    /// The nearest number; every NaN gives the canonical one.
    fn encode(x: f32) -> Self;

    /// The number that `mode` rounds to; every NaN gives the canonical one.
    #[inline(always)]
    fn rounded(x: f64, mode: Rounding) -> Self {
        // What `round` gives is a number of the format, so that the second conversion is exact.
        Self::encode(round(x, Self::FORMAT, mode) as f32)
    }

    /// `.ftz`: a zero of the same sign for a subnormal number.
    #[inline(always)]
    fn flushed(self) -> Self {
        let bits = self.to_bits();
        Self::from_bits(if bits & 0x7fff < Self::LEAST_NORMAL { bits & 0x8000 } else { bits })
    }
}

/// An `.f16`, by its bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct F16(pub u16);

/// A `.bf16`, by its bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bf16(pub u16);

value! {
    F16: b32 as |word| F16(word as u16), set_b32 as |half: F16| half.0 as u32;
    Bf16: b32 as |word| Bf16(word as u16), set_b32 as |half: Bf16| half.0 as u32;
}

macro_rules! ordered {
    ($($ty:ty),*) => {$(
        impl PartialEq for $ty {
            #[inline(always)]
            fn eq(&self, other: &Self) -> bool {
                self.decode() == other.decode()
            }
        }
        impl PartialOrd for $ty {
            #[inline(always)]
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                self.decode().partial_cmp(&other.decode())
            }
        }
    )*};
}
ordered!(F16, Bf16);

impl Half for F16 {
    const FORMAT: Format = Format::F16;
    const ONE: u16 = 0x3c00;
    const LEAST_NORMAL: u16 = 0x0400;

    #[inline(always)]
    fn from_bits(bits: u16) -> F16 {
        F16(bits)
    }

    #[inline(always)]
    fn to_bits(self) -> u16 {
        self.0
    }

    #[inline(always)]
    fn decode(self) -> f32 {
        let magnitude = self.0 as u32 & 0x7fff;
        // The exponent's bias grows by 112; that of infinities and NaNs to the greatest.
        let bias = if magnitude < 0x7c00 { 112 << 23 } else { 224 << 23 };
        let normal = (magnitude << 13) + bias;
        let subnormal = (magnitude as f32 * (1.0 / 16_777_216.0)).to_bits();
        let bits = if magnitude < 0x0400 { subnormal } else { normal };
        f32::from_bits(bits | (self.0 as u32 & 0x8000) << 16)
    }

    #[inline(always)]
    fn encode(x: f32) -> F16 {
        let bits = x.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        // To nearest even by an addition that carries into the exponent; beyond the range, infinity.
        let rounded = magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
        let normal = if magnitude < 0x4780_0000 { rounded } else { 0x7c00 };
        // 0.5 has the unit of the subnormal numbers, 2^-24: adding it rounds to them.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let number = if magnitude < 0x3880_0000 { subnormal } else { normal } | bits >> 16 & 0x8000;
        F16(if magnitude > 0x7f80_0000 { HALF_NAN } else { number as u16 })
    }
}

impl Half for Bf16 {
    const FORMAT: Format = Format::BF16;
    const ONE: u16 = 0x3f80;
    const LEAST_NORMAL: u16 = 0x0080;

    #[inline(always)]
    fn from_bits(bits: u16) -> Bf16 {
        Bf16(bits)
    }

    #[inline(always)]
    fn to_bits(self) -> u16 {
        self.0
    }

    #[inline(always)]
    fn decode(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    #[inline(always)]
    fn encode(x: f32) -> Bf16 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        Bf16(if bits & 0x7fff_ffff > 0x7f80_0000 { HALF_NAN } else { rounded as u16 })
    }
}

/// `.tf32`: the bits of an `.f32` whose last 13 are zero; every NaN gives the canonical `.f32` one.
pub fn tf32(x: f64, mode: Rounding) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { (round(x, Format::TF32, mode) as f32).to_bits() }
}

/// A format of 8 bits and less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Small {
    /// Precision and range.
    pub format: Format,
    /// The place of the sign; what is above is zero.
    pub sign: u32,
    /// The code of infinity, and of NaN, which is canonical.
    special: (Option<u8>, Option<u8>),
}

impl Small {
    /// 4 bits of exponent, 3 of fraction; no infinity.
    pub const E4M3: Small = Small { format: Format::E4M3, sign: 7, special: (None, Some(0x7f)) };
    /// 5 bits of exponent, 2 of fraction.
    pub const E5M2: Small = Small { format: Format::E5M2, sign: 7, special: (Some(0x7c), Some(0x7f)) };
    /// 3 bits of exponent, 2 of fraction; numbers only.
    pub const E3M2: Small = Small { format: Format::E3M2, sign: 5, special: (None, None) };
    /// 2 bits of exponent, 3 of fraction; numbers only.
    pub const E2M3: Small = Small { format: Format::E2M3, sign: 5, special: (None, None) };
    /// 2 bits of exponent, 1 of fraction; numbers only.
    pub const E2M1: Small = Small { format: Format::E2M1, sign: 3, special: (None, None) };

    /// The nearest number, the greatest in place of what lies beyond it (`.satfinite`). NaN gives the format's NaN, or
    /// the greatest number where there is none.
    pub fn encode(self, x: f64) -> u8 {
        let Format { precision, least, max, .. } = self.format;
        if x.is_nan() {
            return self.special.1.unwrap_or_else(|| self.encode(max));
        }
        let magnitude = round(x, self.format, Rounding::Nearest).abs().min(max);
        // Codes ascend with the numbers: the exponent counted from the least, then the fraction, as in a double.
        let fraction = precision - 1;
        let code = if magnitude < 2f64.powi(least) {
            (magnitude * 2f64.powi(fraction - least)) as u64
        } else {
            (magnitude.to_bits() >> (52 - fraction)) - (((1022 + least) as u64) << fraction)
        };
        code as u8 | (x.is_sign_negative() as u8) << self.sign
    }

    /// The number of a code.
    pub fn decode(self, code: u8) -> f32 {
        let Format { precision, least, .. } = self.format;
        let magnitude = code & ((1 << self.sign) - 1);
        let fraction = precision - 1;
        let value = match self.special {
            (Some(infinity), _) if magnitude == infinity => f32::INFINITY,
            (Some(infinity), _) if magnitude > infinity => f32::NAN,
            (None, Some(nan)) if magnitude == nan => f32::NAN,
            _ if magnitude >> fraction == 0 => magnitude as f32 * 2f32.powi(least - fraction),
            _ => f64::from_bits((magnitude as u64 + (((1022 + least) as u64) << fraction)) << (52 - fraction)) as f32,
        };
        if code >> self.sign & 1 != 0 { -value } else { value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of an `.f16` or `.bf16` from the definition of its fields.
    fn by_fields(bits: u16, exponent_bits: u32) -> f64 {
        let fraction_bits = 15 - exponent_bits;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let field = (bits as i32 & 0x7fff) >> fraction_bits;
        let fraction = (bits & ((1 << fraction_bits) - 1)) as f64 / 2f64.powi(fraction_bits as i32);
        let magnitude = match field {
            0 => fraction * 2f64.powi(1 - bias),
            f if f == 2 * bias + 1 && fraction == 0.0 => f64::INFINITY,
            f if f == 2 * bias + 1 => f64::NAN,
            f => (1.0 + fraction) * 2f64.powi(f - bias),
        };
        if bits >> 15 != 0 { -magnitude } else { magnitude }
    }

    fn every_half_number<H: Half>(exponent_bits: u32) {
        for bits in 0..=u16::MAX {
            let (value, got) = (by_fields(bits, exponent_bits), H::from_bits(bits).decode());
            if value.is_nan() {
                assert!(got.is_nan());
                assert_eq!(H::encode(got).to_bits(), HALF_NAN);
                continue;
            }
            assert_eq!((got as f64).to_bits(), value.to_bits(), "{bits:#x}");
            assert_eq!(H::encode(got).to_bits(), bits);
            for (_, mode) in Rounding::MODIFIERS {
                assert_eq!(H::rounded(value, mode).to_bits(), bits);
            }
        }
    }

    #[test]
    fn every_16_bit_code_is_its_number() {
        every_half_number::<F16>(5);
        every_half_number::<Bf16>(8);
    }

    #[test]
    fn encoding_rounds_between_every_two_neighbours() {
        fn check<H: Half>(last: u16) {
            for bits in 0..last {
                let value = |bits| H::from_bits(bits).decode();
                let (low, high) = (value(bits), value(bits + 1));
                let middle = (low as f64 + high as f64) / 2.0;
                let even = if bits & 1 == 0 { bits } else { bits + 1 };
                assert_eq!(H::encode(middle as f32).to_bits(), even);
                assert_eq!(H::encode((middle as f32).next_down()).to_bits(), bits);
                assert_eq!(H::encode(-(middle as f32).next_up()).to_bits(), (bits + 1) | 0x8000);
                assert_eq!(H::rounded(middle.next_up(), Rounding::Nearest).to_bits(), bits + 1);
                assert_eq!(H::rounded(middle.next_up(), Rounding::Zero).to_bits(), bits);
            }
        }
        check::<F16>(0x7bff);
        // The middle of the least two is not an `.f32`.
        check::<Bf16>(0x7f7f);
    }

    #[test]
    fn halves_overflow_and_flush() {
        assert_eq!(F16::encode(65519.0).0, 0x7bff);
        assert_eq!(F16::encode(65520.0).0, 0x7c00);
        assert_eq!(F16::encode(-1e30).0, 0xfc00);
        assert_eq!(Bf16::encode(f32::MAX).0, 0x7f80);
        assert_eq!(F16(0x83ff).flushed().0, 0x8000);
        assert_eq!(F16(0x0400).flushed().0, 0x0400);
        assert_eq!(Bf16(0x007f).flushed().0, 0);
        assert_eq!(F16(0x7c01).flushed().0, 0x7c01);
    }

    #[test]
    fn tf32_keeps_ten_bits_of_fraction() {
        assert_eq!(tf32(1.0 + 2f64.powi(-11), Rounding::Nearest), 0x3f80_0000);
        assert_eq!(tf32(1.0 + 3.0 * 2f64.powi(-11), Rounding::Nearest), 0x3f80_4000);
        assert_eq!(tf32(f32::MAX as f64, Rounding::Zero), 0x7f7f_e000);
        assert_eq!(tf32(f32::MAX as f64, Rounding::Nearest), 0x7f80_0000);
        assert_eq!(tf32(f64::NAN, Rounding::Nearest), 0x7fff_ffff);
    }

    #[test]
    fn small_formats_have_their_known_codes() {
        let known = [
            (Small::E4M3, 0x7e, 448.0),
            (Small::E4M3, 0x01, 2f32.powi(-9)),
            (Small::E4M3, 0x08, 2f32.powi(-6)),
            (Small::E4M3, 0xb8, -1.0),
            (Small::E5M2, 0x7b, 57344.0),
            (Small::E5M2, 0x01, 2f32.powi(-16)),
            (Small::E5M2, 0x3c, 1.0),
            (Small::E3M2, 0x1f, 28.0),
            (Small::E3M2, 0x01, 0.0625),
            (Small::E2M3, 0x1f, 7.5),
            (Small::E2M3, 0x01, 0.125),
            (Small::E2M1, 0x7, 6.0),
            (Small::E2M1, 0x9, -0.5),
        ];
        for (small, code, value) in known {
            assert_eq!(small.decode(code), value, "{small:?} {code:#x}");
            assert_eq!(small.encode(value as f64), code, "{small:?} {value}");
        }
        assert_eq!(Small::E5M2.decode(0xfc), f32::NEG_INFINITY);
        assert!(Small::E5M2.decode(0x7d).is_nan() && Small::E4M3.decode(0xff).is_nan());
    }

    #[test]
    fn small_formats_round_trip_and_saturate() {
        for small in [Small::E4M3, Small::E5M2, Small::E3M2, Small::E2M3, Small::E2M1] {
            for code in 0..1u16 << (small.sign + 1) {
                let value = small.decode(code as u8);
                if value.is_finite() {
                    assert_eq!(small.encode(value as f64), code as u8, "{small:?}");
                }
            }
            let greatest = small.encode(small.format.max);
            assert_eq!(small.encode(f64::INFINITY), greatest);
            assert_eq!(small.encode(-1e9), greatest | 1 << small.sign);
            assert_eq!(small.encode(f64::NAN), small.special.1.unwrap_or(greatest));
        }
    }
}
