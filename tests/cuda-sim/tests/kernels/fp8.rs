use half::f16;

use crate::args;
use crate::harness::{Outcome, Session, line, run};
use crate::numbers::{close, matmul, noise, same};

/// The value of an e4m3 byte (OCP FP8: no infinities, NaN is all ones).
pub fn e4m3(bits: u8) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => fraction / 8.0 * 2f64.powi(-6),
        _ => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
    };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The value of an e5m2 byte (as IEEE 754).
pub fn e5m2(bits: u8) -> f64 {
    f16::from_bits(u16::from(bits) << 8).to_f64()
}

/// The byte that a float converts to with satfinite: the nearest value, ties to the even code, too large to the largest.
fn nearest(x: f32, largest: u8, value: fn(u8) -> f64) -> u8 {
    let sign = (x.to_bits() >> 31) as u8 * 0x80;
    if x.is_nan() {
        return 0x7f;
    }
    let magnitude = f64::from(x.abs()).min(value(largest));
    let distance = |code: u8| (value(code) - magnitude).abs();
    let order = |a: &u8, b: &u8| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1)));
    sign | (0..=largest).min_by(order).expect("not empty")
}

pub fn round_trip(s: &mut Session) -> Outcome {
    let mut x = noise(1, 600, |n| n.unit() * 2f32.powi(n.below(26) as i32 - 15));
    let ties = [1.0625, 1.1875, 464.0, 465.0, 448.0, 2f32.powi(-10), 3.0 * 2f32.powi(-10), 2f32.powi(-17), 57344.0];
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1e-45, 61440.0];
    x.extend(ties.iter().chain(&special));
    x.resize(x.len().next_multiple_of(2), 1.0);
    let n = x.len() / 2;
    let (dx, a, b, back) = (s.upload(&x), s.alloc::<u16>(n), s.alloc::<u16>(n), s.alloc::<f16>(2 * n));
    s.launch("fp8_round_trip", line(n.div_ceil(64), 64), &args![a, b, back, dx, n as i32])?;
    let want: Vec<u8> = x.iter().map(|&x| nearest(x, 0x7e, e4m3)).collect();
    same("e4m3", &s.download::<u8>(a, 2 * n), &want)?;
    same("e5m2", &s.download::<u8>(b, 2 * n), &x.iter().map(|&x| nearest(x, 0x7b, e5m2)).collect::<Vec<u8>>())?;
    let halves: Vec<f64> = want.iter().map(|&code| e4m3(code)).collect();
    close("back", &s.download::<f16>(back, 2 * n), &halves, 0.0, 0.0)
}

pub fn mma(s: &mut Session) -> Outcome {
    // Codes without NaN and infinities in either format.
    let code = |n: &mut crate::numbers::Noise| (n.bits() & 0xbf) as u8;
    let (a, b) = (noise(1, 16 * 32, code), noise(2, 8 * 32, code));
    let (da, db, d, mixed) = (s.upload(&a), s.upload(&b), s.alloc::<f32>(128), s.alloc::<f32>(128));
    s.launch("fp8_mma", line(1, 32), &args![d, da, db, mixed])?;
    let of = |codes: &[u8], value: fn(u8) -> f64| codes.iter().map(|&c| value(c)).collect::<Vec<f64>>();
    let want = matmul(&of(&a, e4m3), &of(&b, e4m3), 16, 8, 32);
    close("d", &s.download::<f32>(d, 128), &want, 1e-3, 1e-4)?;
    let want = matmul(&of(&a, e5m2), &of(&b, e4m3), 16, 8, 32);
    close("mixed", &s.download::<f32>(mixed, 128), &want, 1e-3, 1e-4)
}

#[test]
fn converts() {
    run("fp8", round_trip);
}

#[test]
fn multiplies() {
    run("fp8", mma);
}
