//! Numbers for the tests: as bytes, as noise, rounded, compared.

use half::{bf16, f16};

use crate::harness::{Finding, Outcome};

/// A value that can be copied to the device.
pub trait Pod: Copy {
    /// Bytes of one.
    const SIZE: usize;
    /// The little-endian bytes.
    fn bytes(values: &[Self]) -> Vec<u8>;
    /// The values of such bytes.
    fn values(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! pod {
    ($($ty:ty),*) => {
        $(impl Pod for $ty {
            const SIZE: usize = size_of::<$ty>();
            fn bytes(values: &[Self]) -> Vec<u8> {
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            fn values(bytes: &[u8]) -> Vec<Self> {
                bytes.chunks_exact(Self::SIZE).map(|c| <$ty>::from_le_bytes(c.try_into().expect("exact"))).collect()
            }
        })*
    };
}

pod!(u8, i8, u16, u32, i32, u64, i64, f32, f64, f16, bf16);

/// Repeatable random bits (a 64-bit linear congruence; the high half is good enough).
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 32) as u32
    }

    /// From -1 to 1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// From 0 to `bound` - 1.
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.bits()) * u64::from(bound)) >> 32) as u32
    }
}

/// `count` values of a function of the noise.
pub fn noise<T>(seed: u64, count: usize, mut value: impl FnMut(&mut Noise) -> T) -> Vec<T> {
    let mut noise = Noise::new(seed);
    (0..count).map(|_| value(&mut noise)).collect()
}

/// Values from -1 to 1 in bf16.
pub fn bf16s(seed: u64, count: usize) -> Vec<bf16> {
    noise(seed, count, |n| bf16::from_f32(n.unit()))
}

/// Values from -1 to 1 in f16.
pub fn f16s(seed: u64, count: usize) -> Vec<f16> {
    noise(seed, count, |n| f16::from_f32(n.unit()))
}

/// Values from -1 to 1.
pub fn f32s(seed: u64, count: usize) -> Vec<f32> {
    noise(seed, count, Noise::unit)
}

/// `c[m][n] = a[m][k] b[n][k]`, exact to the last bits.
pub fn matmul(a: &[f64], b: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
    let dot = |i: usize, j: usize| a[i * k..][..k].iter().zip(&b[j * k..][..k]).map(|(x, y)| x * y).sum();
    (0..m * n).map(|at| dot(at / n, at % n)).collect()
}

/// Widened values.
pub fn wide<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// `[rows][cols]` with the dimensions exchanged.
pub fn transposed<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..rows * cols).map(|at| values[at % rows * cols + at / rows]).collect()
}

/// Every value is within `absolute + relative * |want|`; NaN is only near NaN.
pub fn close<T: Copy + Into<f64>>(what: &str, got: &[T], want: &[f64], absolute: f64, relative: f64) -> Outcome {
    if got.len() != want.len() {
        return Err(Finding::Wrong(format!("{what}: {} values, not {}", got.len(), want.len())));
    }
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let got: f64 = got.into();
        let near =
            got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= absolute + relative * want.abs();
        if !near {
            return Err(Finding::Wrong(format!("{what}[{i}] is {got:e}, not {want:e}")));
        }
    }
    Ok(())
}

/// Every value is the same.
pub fn same<T: Copy + PartialEq + std::fmt::Debug>(what: &str, got: &[T], want: &[T]) -> Outcome {
    if got.len() != want.len() {
        return Err(Finding::Wrong(format!("{what}: {} values, not {}", got.len(), want.len())));
    }
    match got.iter().zip(want).position(|(g, w)| g != w) {
        None => Ok(()),
        Some(i) => Err(Finding::Wrong(format!("{what}[{i}] is {:?}, not {:?}", got[i], want[i]))),
    }
}

/// How a result that does not fit is rounded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

/// A binary float format narrower than f64.
#[derive(Clone, Copy)]
pub struct Format {
    /// Bits of the significand, the hidden one included.
    pub precision: i32,
    /// Exponent of the smallest normal number.
    pub least: i32,
    /// The largest number.
    pub largest: f64,
}

pub const F16: Format = Format { precision: 11, least: -14, largest: 65504.0 };
pub const BF16: Format = Format { precision: 8, least: -126, largest: 3.3895313892515355e38 };
pub const F32: Format = Format { precision: 24, least: -126, largest: f32::MAX as f64 };

impl Format {
    /// The number of the format that an exact value rounds to.
    pub fn round(self, x: f64, rounding: Rounding) -> f64 {
        if x == 0.0 || !x.is_finite() {
            return x;
        }
        let exponent = (x.abs().to_bits() >> 52) as i32 - 1023;
        let unit = 2f64.powi(exponent.max(self.least) - self.precision + 1);
        let scaled = x / unit;
        let whole = match rounding {
            Rounding::Nearest => scaled.round_ties_even(),
            Rounding::Zero => scaled.trunc(),
            Rounding::Down => scaled.floor(),
            Rounding::Up => scaled.ceil(),
        };
        let rounded = (whole * unit).copysign(x);
        if rounded.abs() <= self.largest {
            return rounded;
        }
        let to_infinity = match rounding {
            Rounding::Nearest => true,
            Rounding::Zero => false,
            Rounding::Down => x < 0.0,
            Rounding::Up => x > 0.0,
        };
        if to_infinity { f64::INFINITY.copysign(x) } else { self.largest.copysign(x) }
    }
}

/// The sum, and whether it is exact.
pub fn exact_sum(a: f64, b: f64) -> (f64, bool) {
    let sum = a + b;
    let back = sum - a;
    (sum, !sum.is_finite() || ((a - (sum - back)) + (b - back)) == 0.0)
}
