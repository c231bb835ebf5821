//! The element types of matrix fragments (PTX ISA 9.0, sections 5.2.3 and 9.7.14.5).

use crate::machine::{LANES, Row};

/// A floating-point element of the multiplicands. Every value of each type is exact in f32.
pub trait Float {
    /// Elements in a 32-bit register, low bits first.
    const PER_REGISTER: usize;
    /// The value of an element given in the low bits; the bits above it are zero.
    fn decode(bits: u32) -> f32;
}

/// `.bf16`
pub struct BF16;
/// `.f16`
pub struct F16;
/// `.tf32`: the tensor cores ignore the 13 low bits of the register.
pub struct TF32;
/// `.e4m3`
pub struct E4M3;
/// `.e5m2`
pub struct E5M2;

impl Float for BF16 {
    const PER_REGISTER: usize = 2;
    #[inline(always)]
    fn decode(bits: u32) -> f32 {
        f32::from_bits(bits << 16)
    }
}

impl Float for F16 {
    const PER_REGISTER: usize = 2;
    #[inline(always)]
    fn decode(bits: u32) -> f32 {
        // The exponent moves from bias 15 to 127 by a product, which makes subnormals normal on the way.
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        let special = 0u32.wrapping_sub((bits & 0x7c00 == 0x7c00) as u32) & 0x7f80_0000;
        f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
    }
}

impl Float for TF32 {
    const PER_REGISTER: usize = 1;
    #[inline(always)]
    fn decode(bits: u32) -> f32 {
        f32::from_bits(bits & 0xffff_e000)
    }
}

impl Float for E4M3 {
    const PER_REGISTER: usize = 4;
    #[inline(always)]
    fn decode(bits: u32) -> f32 {
        let magnitude = f32::from_bits((bits & 0x7f) << 20) * f32::from_bits((127 + 120) << 23);
        // The type has no infinity: the only special value is the NaN 0x7f.
        let nan = 0u32.wrapping_sub((bits & 0x7f == 0x7f) as u32) & 0x7fc0_0000;
        f32::from_bits(magnitude.to_bits() | nan | (bits & 0x80) << 24)
    }
}

impl Float for E5M2 {
    const PER_REGISTER: usize = 4;
    #[inline(always)]
    fn decode(bits: u32) -> f32 {
        F16::decode(bits << 8)
    }
}

/// An 8-bit integer element.
pub trait Byte {
    /// Its value.
    fn decode(bits: u8) -> i32;
}

/// `.s8`
pub struct S8;
/// `.u8`
pub struct U8;

impl Byte for S8 {
    #[inline(always)]
    fn decode(bits: u8) -> i32 {
        bits as i8 as i32
    }
}

impl Byte for U8 {
    #[inline(always)]
    fn decode(bits: u8) -> i32 {
        bits as i32
    }
}

/// Decodes a register of the warp. Four neighbouring lanes hold a row of an 8-row block (a column, for matrix B), so
/// the elements come out row by row: `out[row * 4 * PER_REGISTER + column]`.
#[inline(always)]
pub fn decode_floats<T: Float>(row: &Row<u32>, out: &mut [f32]) {
    let out = &mut out[..LANES * T::PER_REGISTER];
    let (width, mask) = (32 / T::PER_REGISTER as u32, (u32::MAX as u64 >> (32 - 32 / T::PER_REGISTER)) as u32);
    for (register, chunk) in row.iter().zip(out.chunks_exact_mut(T::PER_REGISTER)) {
        for (i, value) in chunk.iter_mut().enumerate() {
            *value = T::decode(register >> (i as u32 * width) & mask);
        }
    }
}

/// As [`decode_floats`], for bytes.
#[inline(always)]
pub fn decode_bytes<T: Byte>(row: &Row<u32>, out: &mut [i32]) {
    for (register, chunk) in row.iter().zip(out[..LANES * 4].chunks_exact_mut(4)) {
        for (value, byte) in chunk.iter_mut().zip(register.to_le_bytes()) {
            *value = T::decode(byte);
        }
    }
}

/// The tensor cores give one NaN.
#[inline(always)]
pub fn canonical(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}

/// Rounds to the nearest f16, ties to even; NaN becomes the canonical one.
#[inline(always)]
pub fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    if magnitude > 0x7f80_0000 {
        return 0x7fff;
    }
    // From 65520 on the nearest f16 is infinity; a sum with 0.5 aligns the last bit of a subnormal result.
    let rounded = if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000
    } else {
        (magnitude - 0x3800_0000 + 0xfff + (magnitude >> 13 & 1)) >> 13
    };
    sign | rounded as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// A float of `exponent` and `mantissa` bits by its definition.
    fn by_definition(bits: u32, exponent: u32, mantissa: u32) -> f64 {
        let bias = (1i32 << (exponent - 1)) - 1;
        let e = (bits >> mantissa & ((1 << exponent) - 1)) as i32;
        let m = (bits & ((1 << mantissa) - 1)) as f64 / (1u32 << mantissa) as f64;
        let sign = if bits >> (exponent + mantissa) & 1 != 0 { -1.0 } else { 1.0 };
        sign * if e == 0 { m * 2f64.powi(1 - bias) } else { (1.0 + m) * 2f64.powi(e - bias) }
    }

    #[test]
    fn every_half_decodes() {
        for bits in 0..=u16::MAX {
            let (got, expect) = (F16::decode(bits as u32), f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == expect.to_bits() || got.is_nan() && expect.is_nan(), "f16 {bits:04x}: {got}");
            let (got, expect) = (BF16::decode(bits as u32), bf16::from_bits(bits).to_f32());
            assert!(got.to_bits() == expect.to_bits() || got.is_nan() && expect.is_nan(), "bf16 {bits:04x}: {got}");
        }
    }

    #[test]
    fn every_fp8_decodes() {
        for bits in 0..=255u32 {
            let got = E4M3::decode(bits);
            if bits & 0x7f == 0x7f {
                assert!(got.is_nan());
            } else {
                assert_eq!((got as f64).to_bits(), by_definition(bits, 4, 3).to_bits(), "e4m3 {bits:02x}");
            }
            let got = E5M2::decode(bits);
            match bits & 0x7f {
                0x7c => assert!(got.is_infinite() && (got < 0.0) == (bits & 0x80 != 0)),
                0x7d.. => assert!(got.is_nan()),
                _ => assert_eq!((got as f64).to_bits(), by_definition(bits, 5, 2).to_bits(), "e5m2 {bits:02x}"),
            }
        }
        assert_eq!(E4M3::decode(0x7e), 448.0);
        assert_eq!(E5M2::decode(0x7b), 57344.0);
    }

    #[test]
    fn tf32_drops_the_low_bits() {
        assert_eq!(TF32::decode(1.0f32.to_bits() | 0x1fff), 1.0);
        assert_eq!(TF32::decode(1.0f32.to_bits() | 0x2000), 1.0 + 2f32.powi(-10));
    }

    #[test]
    fn f16_rounding_is_to_nearest_even() {
        // Every f16, the midpoints between neighbours and what lies just beside them, against `half`.
        for bits in 0..0x7c00u16 {
            let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
            let middle = if high.is_infinite() { 65520.0 } else { (low + high) / 2.0 };
            for value in [low, middle, middle.next_up(), middle.next_down(), -middle, -low] {
                assert_eq!(to_f16(value), f16::from_f32(value).to_bits(), "{value:e}");
            }
        }
        assert_eq!(to_f16(f32::INFINITY), 0x7c00);
        assert_eq!(to_f16(f32::MAX), 0x7c00);
        assert_eq!(to_f16(-f32::NAN), 0x7fff);
        assert_eq!(to_f16(f32::from_bits(1)), 0);
    }
}
