//! Numbers in fewer bits: weights, keys and values. All of them stand for bf16 numbers exactly, so that a backend without
//! products of its own for them multiplies the same operands.

use half::bf16;

/// How the weights of a network's linear layers are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As they are.
    #[default]
    Bf16,
    /// [`Fp8`].
    Fp8,
    /// [`Int4`], with zero points.
    Int4,
}

impl WeightFormat {
    /// Bytes of so many elements, scales apart.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            WeightFormat::Bf16 => 2 * elements,
            WeightFormat::Fp8 => elements,
            WeightFormat::Int4 => elements.div_ceil(2),
        }
    }
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum KvFormat {
    /// Rounded to bf16.
    #[default]
    Bf16,
    /// Rounded to fp8 (e4m3).
    Fp8(KvScales),
}

/// Numbers of an fp8 cache times these are keys and values; powers of two, so that they are bf16. The numbers reach from
/// 2^-9 to 448 in steps of at most an eighth of themselves; what is larger is stored as 448.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvScales {
    /// Of keys, after norm and rotation.
    pub keys: f32,
    /// Of values.
    pub values: f32,
}

impl Default for KvScales {
    fn default() -> Self {
        Self { keys: 1.0, values: 1.0 }
    }
}

/// Names of the formats, as the command line has them.
macro_rules! named {
    ($type:ty, $($name:literal => $value:expr),*) => {
        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                $(if name == $name {
                    return Ok($value);
                })*
                Err(format!("must be one of {}", [$($name),*].join(", ")))
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $(if *self == $value {
                    return f.write_str($name);
                })*
                write!(f, "{self:?}")
            }
        }
    };
}
named!(WeightFormat, "bf16" => Self::Bf16, "fp8" => Self::Fp8, "int4" => Self::Int4);
named!(KvFormat, "bf16" => Self::Bf16, "fp8" => Self::Fp8(KvScales::default()));

/// Columns that share a scale in int4.
pub(crate) const GROUP: usize = 128;

/// An `[n, k]` weight in e4m3 (four bits of exponent, three of mantissa, no infinity) with a factor per output.
///
/// A product is `scale[n] * sum_k bf16(x[k]) * code[n, k]`: the codes are exact in bf16. Factors are powers of two, which
/// cost e4m3 no precision (its steps are relative), so `code * scale` is bf16 too and the product is that of these.
pub struct Fp8 {
    codes: Vec<u8>,
    scales: Vec<f32>,
    n: usize,
    k: usize,
}

impl Fp8 {
    /// Quantises to the nearest code (ties to even) of `w / scale`, the scale being the least power of two with which the
    /// largest magnitude of an output is no larger than the largest of e4m3, 448.
    pub fn quantise(data: &[bf16], n: usize, k: usize) -> Fp8 {
        assert_eq!(data.len(), n * k, "weight is not [{n}, {k}]");
        let (mut codes, mut scales) = (Vec::with_capacity(n * k), Vec::with_capacity(n));
        for row in data.chunks_exact(k.max(1)) {
            let largest = row.iter().fold(0.0f32, |max, w| max.max(w.to_f32().abs()));
            let scale = if largest > 0.0 { power_of_two_above(largest / 448.0) } else { 1.0 };
            codes.extend(row.iter().map(|w| to_e4m3(w.to_f32() / scale)));
            scales.push(scale);
        }
        Fp8 { codes, scales, n, k }
    }

    /// The weight that the codes stand for, row-major.
    pub fn dequantise(&self) -> Vec<bf16> {
        let rows = self.codes.chunks_exact(self.k.max(1)).zip(&self.scales);
        rows.flat_map(|(row, scale)| row.iter().map(move |&code| bf16::from_f32(from_e4m3(code) * scale))).collect()
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Row-major codes.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Factors of the outputs.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }
}

/// The least power of two that is not smaller than a positive number.
fn power_of_two_above(x: f32) -> f32 {
    let below = f32::from_bits(x.to_bits() & 0x7f80_0000);
    // No smaller than the smallest normal number of bf16, so that a scaled code keeps its bits.
    (if below < x { 2.0 * below } else { below }).max(f32::MIN_POSITIVE * 512.0)
}

/// The nearest e4m3, ties to even; what is too large becomes the largest, 448.
pub(crate) fn to_e4m3(x: f32) -> u8 {
    let (sign, x) = (if x.is_sign_negative() { 0x80 } else { 0 }, x.abs());
    let code = if x < 2f32.powi(-6) {
        // Multiples of 2^-9; eight of them are the smallest normal number, whose code follows.
        (x * 512.0).round_ties_even() as u32
    } else {
        let bits = x.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20).saturating_sub((127 - 7) << 3).min(0x7e)
    };
    sign | code as u8
}

/// The value of an e4m3 that is a number.
pub(crate) fn from_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// An `[n, k]` weight of integers 0 to 15 in groups of 128 columns, each with a scale and a zero point: an element is
/// `bf16((value - zero) * scale)`, and a product is that of these bf16.
pub struct Int4 {
    values: Vec<u8>,
    scales: Vec<bf16>,
    zeros: Vec<u8>,
    n: usize,
    k: usize,
}

impl Int4 {
    /// Quantises with the zero point in the middle: integers -7 to 7 times the largest magnitude of the group over 7.
    pub fn symmetric(data: &[bf16], n: usize, k: usize) -> Int4 {
        Self::quantise(data, n, k, |low, high| (low.abs().max(high.abs()) / 7.0, None))
    }

    /// Quantises with the zero point where it makes the steps smallest: integers 0 to 15 cover the group's range, zero
    /// included.
    pub fn asymmetric(data: &[bf16], n: usize, k: usize) -> Int4 {
        Self::quantise(data, n, k, |low, high| ((high - low) / 15.0, Some(low)))
    }

    /// `range` gives the scale for a group's lowest and highest value, and the lowest if that is where the integers are
    /// to begin.
    fn quantise(data: &[bf16], n: usize, k: usize, range: impl Fn(f32, f32) -> (f32, Option<f32>)) -> Int4 {
        assert_eq!(data.len(), n * k, "weight is not [{n}, {k}]");
        let (mut values, mut scales, mut zeros) = (Vec::with_capacity(n * k), Vec::new(), Vec::new());
        for group in data.chunks_exact(k.max(1)).flat_map(|row| row.chunks(GROUP)) {
            let bounds = group.iter().map(|w| w.to_f32()).fold((0.0f32, 0.0f32), |(l, h), w| (l.min(w), h.max(w)));
            let (scale, low) = range(bounds.0, bounds.1);
            let scale = bf16::from_f32(if scale > 0.0 { scale } else { 1.0 });
            let zero = low.map_or(8.0, |low| (-low / scale.to_f32()).round_ties_even().clamp(0.0, 15.0));
            let value = |w: &bf16| (w.to_f32() / scale.to_f32() + zero).round_ties_even().clamp(0.0, 15.0) as u8;
            values.extend(group.iter().map(value));
            scales.push(scale);
            zeros.push(zero as u8);
        }
        Int4 { values, scales, zeros, n, k }
    }

    /// The weight that the integers stand for, row-major.
    pub fn dequantise(&self) -> Vec<bf16> {
        let groups = self.k.div_ceil(GROUP);
        let at = |i: usize| i / self.k * groups + i % self.k / GROUP;
        let element = |i: usize| {
            let integer = f32::from(self.values[i]) - f32::from(self.zeros[at(i)]);
            bf16::from_f32(integer * self.scales[at(i)].to_f32())
        };
        (0..self.values.len()).map(element).collect()
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Row-major integers.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// `[n, k / 128]`.
    pub fn scales(&self) -> &[bf16] {
        &self.scales
    }

    /// `[n, k / 128]`.
    pub fn zeros(&self) -> &[u8] {
        &self.zeros
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_is_its_own_nearest_and_halfway_goes_to_even() {
        for code in (0..=0xffu8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(to_e4m3(from_e4m3(code)), code);
            let next = code + 1;
            if next & 0x7f != 0 && next & 0x7f != 0x7f {
                let half = (from_e4m3(code) + from_e4m3(next)) / 2.0;
                assert_eq!(to_e4m3(half) & 1, 0, "{code:#x}");
                assert!([code, next].contains(&to_e4m3(half)));
            }
        }
        assert_eq!((from_e4m3(0x7e), to_e4m3(1e9), to_e4m3(-1e9)), (448.0, 0x7e, 0xfe));
    }

    #[test]
    fn scales_of_fp8_are_powers_of_two_and_its_weights_are_bf16() {
        for (largest, scale) in [(448.0, 1.0), (450.0, 2.0), (447.0, 1.0), (1.0, 2f32.powi(-8)), (1e-3, 2f32.powi(-18))]
        {
            let data = [largest, -largest / 3.0, largest / 1000.0, 0.0].map(bf16::from_f32);
            let weight = Fp8::quantise(&data, 1, 4);
            assert_eq!(weight.scales(), [scale], "{largest}");
            for (&code, value) in weight.codes().iter().zip(weight.dequantise()) {
                assert_eq!(value.to_f32(), from_e4m3(code) * scale);
            }
            for (got, want) in weight.dequantise().iter().zip(&data) {
                // Three bits of mantissa, or half a step of the smallest.
                let bound = (want.to_f32().abs() / 16.0).max(scale * 2f32.powi(-10));
                assert!((got.to_f32() - want.to_f32()).abs() <= bound, "{got} for {want}");
            }
        }
    }

    #[test]
    fn formats_are_named() {
        for format in [WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int4] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!("fp8".parse(), Ok(KvFormat::Fp8(KvScales::default())));
        assert!("int8".parse::<WeightFormat>().is_err() && "int4".parse::<KvFormat>().is_err());
    }

    #[test]
    fn quantising_is_off_by_half_a_step_at_most() {
        let data: Vec<bf16> = (0..3 * 200).map(|i| bf16::from_f32(((i * 37 % 101) as f32 - 30.0) / 64.0)).collect();
        for weight in [Int4::symmetric(&data, 3, 200), Int4::asymmetric(&data, 3, 200)] {
            for (i, (got, want)) in weight.dequantise().iter().zip(&data).enumerate() {
                let scale = weight.scales[i / 200 * 2 + i % 200 / GROUP].to_f32();
                // Half a step, the rounding of the result to bf16, and where the scale's own rounding cut the range.
                let bound = scale * (0.5 + 16.0 / 256.0) + want.to_f32().abs() / 256.0;
                assert!((got.to_f32() - want.to_f32()).abs() <= bound, "{i}: {got} for {want}");
            }
        }
    }
}
