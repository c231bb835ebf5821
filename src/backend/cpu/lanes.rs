//! Sixteen f32 at a time in plain Rust; [`per_isa`](super::isa) turns these into vector instructions.
//!
//! No operation here is fused, so every instruction set gives the same bits.

pub(super) const LANES: usize = 16;

/// One vector: 512 bits, or as many smaller registers as the machine needs.
pub(super) type Lanes = [f32; LANES];

#[inline(always)]
pub(super) fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// The first lanes from `values`, the others `fill`.
#[inline(always)]
pub(super) fn load(values: &[f32], fill: f32) -> Lanes {
    match values.first_chunk::<LANES>() {
        Some(full) => *full,
        None => {
            let mut out = [fill; LANES];
            out[..values.len()].copy_from_slice(values);
            out
        }
    }
}

/// Sum of the lanes, always in the same order: halves onto halves.
#[inline(always)]
pub(super) fn sum(a: Lanes) -> f32 {
    let mut a = a;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            a[i] += a[i + half];
        }
        half /= 2;
    }
    a[0]
}

/// Largest lane; NaN lanes are passed over.
#[inline(always)]
pub(super) fn max(a: Lanes) -> f32 {
    a.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// Adding this rounds a float of modest size to an integer, found in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;

/// `e^x`, at most 2 ulp off the true value where the result is normal; below that (x < -87.3) it is 0, above the
/// largest float it is infinite. NaN stays NaN.
///
/// Not `f32::exp`: the system's libm differs between machines and does not vectorise.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; the high part of ln 2 has so few bits that n times it is exact.
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    // 2^n in two factors: for n = 128 one alone would overflow the exponent.
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = bits >> 1;
    let scale = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    let y = p * scale(half) * scale(bits - half);
    if x < -87.336_54 {
        0.0
    } else if x > 88.722_84 {
        f32::INFINITY
    } else {
        y
    }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Rounds to bf16, ties to even; NaN stays NaN. The 16 bits of the result.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// Widens a bf16 given by its bits.
#[inline(always)]
pub(super) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
