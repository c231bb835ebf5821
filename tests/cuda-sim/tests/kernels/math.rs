use half::{bf16, f16};

use crate::args;
use crate::harness::{Finding, Outcome, Session, line, run};
use crate::numbers::{BF16, F16, F32, Format, Rounding, close, exact_sum, noise, same};

/// The error function by its series; beyond four it is one to the last bit of f32.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 || x.is_nan() {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

pub fn functions_f32(s: &mut Session) -> Outcome {
    let n = 200;
    let mut x = noise(1, n, |n| n.unit() * 20.0);
    // Arguments that take the slow path of sinf's reduction, and values near one.
    x[..6].copy_from_slice(&[150_000.0, -3.0e7, 1.0e30, 1.0, 0.99999, 3.0e-5]);
    let y = noise(2, n, |n| n.unit() * 2.9 + if n.bits() & 1 == 0 { 0.01 } else { -0.01 });
    let (dx, dy, out) = (s.upload(&x), s.upload(&y), s.alloc::<f32>(20 * n));
    s.launch("functions_f32", line(n.div_ceil(64), 64), &args![out, dx, dy, n as i32])?;
    let got = s.download::<f32>(out, 20 * n);
    // Name, reference, absolute and relative tolerance: CUDA Programming Guide, mathematical functions.
    type Function = (&'static str, fn(f64, f64) -> f64, f64, f64);
    let ulp = f64::from(f32::EPSILON);
    let functions: [Function; 20] = [
        ("expf", |a, _| a.exp(), 1e-44, 2.0 * ulp),
        ("logf", |a, _| a.abs().ln(), 0.0, 2.0 * ulp),
        ("sinf", |a, _| a.sin(), 2.0 * ulp, 2.0 * ulp),
        ("cosf", |a, _| a.cos(), 2.0 * ulp, 2.0 * ulp),
        ("powf", |a, b| a.abs().powf(b), 1e-44, 8.0 * ulp),
        ("tanhf", |a, _| a.tanh(), 0.0, 3.0 * ulp),
        ("erff", |a, _| erf(a), 0.0, 3.0 * ulp),
        ("division", |a, b| a / b, 0.0, 0.0),
        ("sqrtf", |a, _| a.abs().sqrt(), 0.0, 0.0),
        ("rsqrtf", |a, _| 1.0 / a.abs().sqrt(), 0.0, 2.0 * ulp),
        ("fmodf", |a, b| a % b, 0.0, 0.0),
        ("log1pf", |a, _| a.abs().ln_1p(), 0.0, 2.0 * ulp),
        ("cbrtf", |a, _| a.cbrt(), 0.0, 2.0 * ulp),
        ("exp2f", |_, b| b.exp2(), 0.0, 2.0 * ulp),
        ("atan2f", |a, b| a.atan2(b), 0.0, 3.0 * ulp),
        ("__expf", |_, b| b.exp(), 0.0, 8.0 * ulp),
        ("__sinf", |_, b| b.sin(), 1e-6, 0.0),
        ("__logf", |a, _| a.abs().ln(), 1e-6, 3.0 * ulp),
        ("__fdividef", |a, b| a / b, 0.0, 2.0 * ulp),
        ("silu", |a, _| a / (1.0 + (-a).exp()), 1e-44, 6.0 * ulp),
    ];
    for (i, (name, function, absolute, relative)) in functions.into_iter().enumerate() {
        // Rounded to f32: what overflows there is infinite.
        let want = x.iter().zip(&y).map(|(&a, &b)| f64::from(function(a.into(), b.into()) as f32));
        close(name, &got[i * n..][..n], &want.collect::<Vec<f64>>(), absolute, relative)?;
    }
    Ok(())
}

/// Every pair of the values.
fn pairs<T: Copy>(values: &[T]) -> (Vec<T>, Vec<T>) {
    values.iter().flat_map(|&a| values.iter().map(move |&b| (a, b))).unzip()
}

const SPECIAL: [f32; 26] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    -0.75,
    0.49999997,
    8388609.0,
    -8388607.5,
    3.0e9,
    -3.0e9,
    2147483600.0,
    1e-45,
    -3e-42,
    1.1754944e-38,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    16777216.0,
    0.1,
    -7.3,
];

/// The bits, any NaN as the canonical one.
fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// `maxf` of PTX: a number before NaN, +0 before -0.
fn max(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => f32::from_bits(a.to_bits() & b.to_bits()),
        _ => a.max(b),
    }
}

/// A sum rounded once; none where f64 does not hold it.
fn sum(a: f32, b: f32, rounding: Rounding) -> Option<f32> {
    let (sum, exact) = exact_sum(a.into(), b.into());
    // An exact zero of two numbers that cancel is -0 only when rounding down.
    let cancels = sum == 0.0 && a != 0.0;
    let zero = if rounding == Rounding::Down { -0.0 } else { 0.0 };
    let both_zero_differ = a == 0.0 && b == 0.0 && a.is_sign_negative() != b.is_sign_negative();
    if cancels || both_zero_differ {
        return Some(zero);
    }
    exact.then(|| F32.round(sum, rounding) as f32)
}

pub fn exact_f32(s: &mut Session) -> Outcome {
    let (x, y) = pairs(&SPECIAL);
    let n = x.len();
    let (dx, dy, out) = (s.upload(&x), s.upload(&y), s.alloc::<f32>(20 * n));
    s.launch("exact_f32", line(n.div_ceil(128), 128), &args![out, dx, dy, n as i32])?;
    let got = s.download::<f32>(out, 20 * n);
    type Function = (&'static str, fn(f32, f32) -> Option<f32>);
    let functions: [Function; 20] = [
        ("floorf", |a, _| Some(a.floor())),
        ("ceilf", |a, _| Some(a.ceil())),
        ("truncf", |a, _| Some(a.trunc())),
        ("rintf", |a, _| Some(a.round_ties_even())),
        ("roundf", |a, _| Some(a.round())),
        ("fmaxf", |a, b| Some(max(a, b))),
        ("fminf", |a, b| Some(if a.is_nan() || b.is_nan() { max(a, b) } else { -max(-a, -b) })),
        ("copysignf", |a, b| (!a.is_nan()).then(|| a.copysign(b))),
        ("fmaf", |a, b| Some(a.mul_add(b, a))),
        ("__fadd_rz", |a, b| sum(a, b, Rounding::Zero)),
        ("__fmul_ru", |a, b| Some(F32.round(f64::from(a) * f64::from(b), Rounding::Up) as f32)),
        ("__frcp_rn", |_, b| Some(1.0 / b)),
        ("__fsqrt_rd", |a, _| {
            let root = a.abs().sqrt();
            let above = f64::from(root) * f64::from(root) > f64::from(a.abs());
            Some(if above { root.next_down() } else { root })
        }),
        ("__saturatef", |a, _| Some(if a > 0.0 { a.min(1.0) } else { 0.0 })),
        ("ldexpf", |a, b| {
            let b = if b.is_nan() { 0.0 } else { b.trunc().clamp(-400.0, 400.0) };
            Some((f64::from(a) * 2f64.powi(b as i32)) as f32)
        }),
        ("__float2int_rn", |a, _| Some(a.round_ties_even() as i32 as f32)),
        ("__float2uint_rz", |a, _| Some(a as u32 as f32)),
        ("isnan", |a, b| {
            Some(if a.is_nan() {
                1.0
            } else if b.is_infinite() {
                2.0
            } else {
                3.0
            })
        }),
        ("__fdiv_rn", |a, b| Some(a / b)),
        ("__fsub_rd", |a, b| sum(a, -b, Rounding::Down)),
    ];
    for (i, (name, function)) in functions.into_iter().enumerate() {
        for (at, (&a, &b)) in x.iter().zip(&y).enumerate() {
            let (got, want) = (got[i * n + at], function(a, b));
            if want.is_some_and(|want| canonical(got) != canonical(want)) {
                return Err(Finding::Wrong(format!("{name}({a:e}, {b:e}) is {got:e}, not {want:?}")));
            }
        }
    }
    Ok(())
}

pub fn functions_f64(s: &mut Session) -> Outcome {
    let n = 150;
    let mut x = noise(1, n, |n| f64::from(n.unit()) * 30.0 + f64::from(n.unit()) * 1e-9);
    x[..3].copy_from_slice(&[1e15 + 0.5, -1e-300, 700.0]);
    let y = noise(2, n, |n| f64::from(n.unit()) * 7.0 + 7.5);
    let (dx, dy, out) = (s.upload(&x), s.upload(&y), s.alloc::<f64>(8 * n));
    s.launch("functions_f64", line(n.div_ceil(64), 64), &args![out, dx, dy, n as i32])?;
    let got = s.download::<f64>(out, 8 * n);
    type Function = (&'static str, fn(f64, f64) -> f64, f64);
    let ulp = f64::EPSILON;
    let functions: [Function; 8] = [
        ("exp", |a, _| a.exp(), 2.0 * ulp),
        ("log", |a, _| a.abs().ln(), 2.0 * ulp),
        ("division", |a, b| a / b, 0.0),
        ("sqrt", |a, _| a.abs().sqrt(), 0.0),
        ("fma", |a, b| a.mul_add(b, a), 0.0),
        ("to f32", |a, _| f64::from(a as f32), 0.0),
        ("to s64", |a, _| a as i64 as f64, 0.0),
        ("rint", |_, b| b.round_ties_even(), 0.0),
    ];
    for (i, (name, function, relative)) in functions.into_iter().enumerate() {
        let want: Vec<f64> = x.iter().zip(&y).map(|(&a, &b)| function(a, b)).collect();
        close(name, &got[i * n..][..n], &want, 0.0, relative)?;
    }
    Ok(())
}

fn bytes_of(a: u32, b: u32, of: fn(u8, u8) -> u8) -> u32 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u32::from_le_bytes(std::array::from_fn(|i| of(a[i], b[i])))
}

fn integer(function: usize, a: u64, b: u64) -> u64 {
    let (sa, sb, ua, ub) = (a as i64, b as i64, a as u32, b as u32);
    let (ia, ib, shift) = (ua as i32, ub as i32, b as u32 & 63);
    let both = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    match function {
        0 => a / b,
        1 => sa.wrapping_rem(sb) as u64,
        2 => ((u128::from(a) * u128::from(b)) >> 64) as u64,
        3 => ((i128::from(sa) * i128::from(sb)) >> 64) as u64,
        4 => a << shift ^ a >> shift ^ (sa >> shift) as u64,
        5 => ua.checked_div(ub).unwrap_or(0).into(),
        6 => (if ib == 0 { 0 } else { ia.wrapping_rem(ib) } as u32).into(),
        7 => {
            let first = if a == 0 { 0 } else { a.trailing_zeros() + 1 };
            u64::from(a.count_ones() + 100 * b.leading_zeros() + 10000 * first)
        }
        8 => a.reverse_bits(),
        9 => {
            let all = both(ua, ub).to_le_bytes();
            let picked = u32::from_le_bytes([all[5], all[1], all[7], all[3]]);
            both(picked, (both(ua, ub) << (shift & 31) >> 32) as u32)
        }
        10 => {
            let low = bytes_of(ua, ub, u8::wrapping_add);
            let half = |s: u32| i32::from((ua >> s) as i16).max(i32::from((ub >> s) as i16)) as u32 & 0xffff;
            both(low, half(0) | half(16) << 16)
        }
        11 => both(ia.abs_diff(ib).wrapping_add(ua), ((u64::from(ua) + u64::from(ub)) >> 1) as u32),
        12 => ((ua & 0xffff).wrapping_mul(ub & 0xffff)).wrapping_add((ua & 0xff) % 37).into(),
        _ => {
            let wide = u128::from(a) * u128::from(b) + u128::from(a);
            (wide >> 64) as u64 ^ wide as u64
        }
    }
}

pub fn integers(s: &mut Session) -> Outcome {
    let mut special =
        vec![1, 2, 3, 7, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, u64::MAX, 1 << 63, (1 << 63) - 1];
    special.extend(noise(1, 12, |n| u64::from(n.bits()) << 32 | u64::from(n.bits())));
    special.extend(noise(2, 5, |n| u64::from(n.bits() >> 12)));
    let (x, y) = pairs(&special);
    let n = x.len();
    let (dx, dy, out) = (s.upload(&x), s.upload(&y), s.alloc::<u64>(14 * n));
    s.launch("integers", line(n.div_ceil(128), 128), &args![out, dx, dy, n as i32])?;
    let got = s.download::<u64>(out, 14 * n);
    for function in 0..14 {
        let want: Vec<u64> = x.iter().zip(&y).map(|(&a, &b)| integer(function, a, b)).collect();
        same(&format!("function {function}"), &got[function * n..][..n], &want)?;
    }
    Ok(())
}

/// An exact value rounded to nearest; none where it is not known exactly.
fn rounded(format: Format, (exact, known): (f64, bool)) -> Option<f64> {
    known.then(|| format.round(exact, Rounding::Nearest))
}

fn half_function(function: usize, x: u16, y: u16) -> Option<f64> {
    let (a, b) = (f16::from_bits(x).to_f64(), f16::from_bits(y).to_f64());
    let (c, d) = (bf16::from_bits(x).to_f64(), bf16::from_bits(y).to_f64());
    let larger = |a: f64, b: f64| f64::from(max(a as f32, b as f32));
    match function {
        0 => rounded(F16, exact_sum(a, b)),
        1 => rounded(F16, (a * b, true)),
        2 => rounded(F16, exact_sum(a * b, a)),
        3 => Some(larger(a, b)),
        4 => Some(if a.is_nan() || b.is_nan() { f64::NAN } else { -larger(-a, -b) }),
        5 => rounded(F16, exact_sum(a * b, a)).map(|r| if r < 0.0 { 0.0 } else { r }),
        6 => rounded(F16, exact_sum(a, b)).map(|r| if r > 0.0 { r.min(1.0) } else { 0.0 }),
        7 => Some(a.round_ties_even()),
        8 => rounded(BF16, exact_sum(c, d)),
        9 => rounded(BF16, (c * d, true)),
        10 => rounded(BF16, exact_sum(c * d, c)),
        11 => Some(larger(c, d)),
        15 => Some(BF16.round(a, Rounding::Zero)),
        _ => None,
    }
}

pub fn halves(s: &mut Session) -> Outcome {
    let mut special =
        vec![0, 0x8000, 0x3c00, 0xbc00, 1, 0x8001, 0x3ff, 0x400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x3555];
    special.extend([0x3f80, 0x7f7f, 0x7f80, 0xff80, 0x0080, 0x4248, 0xc2f7, 0x7fff]);
    special.extend(noise(1, 20, |n| (n.bits() >> 7) as u16));
    let (x, y) = pairs(&special);
    let n = x.len();
    let (dx, dy, out) = (s.upload(&x), s.upload(&y), s.alloc::<u16>(16 * n));
    s.launch("halves", line(n.div_ceil(128), 128), &args![out, dx, dy, n as i32])?;
    let got = s.download::<u16>(out, 16 * n);
    for function in 0..16 {
        for (at, (&x, &y)) in x.iter().zip(&y).enumerate() {
            let got = got[function * n + at];
            let (a, b, c, d) = (f16::from_bits(x), f16::from_bits(y), bf16::from_bits(x), bf16::from_bits(y));
            let compared = |bits: [bool; 5]| bits.iter().enumerate().fold(0, |m, (i, &bit)| m | u16::from(bit) << i);
            let right = match function {
                12 => got == compared([a < b, a >= b, a != b || a.is_nan() || b.is_nan(), c < d, c == d]),
                13 => got == f32::from(a).floor() as i16 as u16,
                14 => f64::from(f16::from_bits(got)) == F16.round(y.into(), Rounding::Nearest),
                _ => {
                    let bf = matches!(function, 8..=11 | 15);
                    let value = if bf { bf16::from_bits(got).to_f64() } else { f16::from_bits(got).to_f64() };
                    half_function(function, x, y).is_none_or(|want| value == want || value.is_nan() && want.is_nan())
                }
            };
            if !right {
                return Err(Finding::Wrong(format!("function {function} of {x:#x} and {y:#x} is {got:#x}")));
            }
        }
    }
    Ok(())
}

#[test]
fn library_functions() {
    run("math", functions_f32);
    run("math", functions_f64);
}

#[test]
fn roundings_of_f32() {
    run("math", exact_f32);
}

#[test]
fn integers_of_64_bits() {
    run("math", integers);
}

#[test]
fn halves_of_both_kinds() {
    run("math", halves);
}
