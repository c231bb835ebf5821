use super::*;
use crate::isa::probe::{Bits, eval, floats, integers, refused};
use crate::isa::round::Format;

const INTEGERS: [&str; 8] = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"];

fn width(ty: &str) -> u32 {
    ty.trim_start_matches(['u', 's', 'f', 'b']).parse().unwrap()
}

/// The register that holds a type: none is narrower than 16 bits, so that 8-bit results are seen to be extended.
fn register(ty: &str) -> String {
    format!("b{}", width(ty).max(16))
}

/// The least and the greatest value of an integer type.
fn range(ty: &str) -> (i128, i128) {
    let width = width(ty);
    if ty.starts_with('s') { (-1 << (width - 1), (1 << (width - 1)) - 1) } else { (0, (1 << width) - 1) }
}

/// The value of the low bits of a word as a type has them.
fn value(bits: u64, ty: &str) -> i128 {
    let (_, most) = range(ty);
    let modulus = 1i128 << width(ty);
    let low = (bits as i128).rem_euclid(modulus);
    if low > most { low - modulus } else { low }
}

/// A value of an integer type as its register holds it.
fn stored(value: i128, ty: &str) -> u64 {
    value as u64 & u64::MAX >> (64 - width(ty).max(16))
}

/// The bits of corners of a type, with noise in the register above them.
fn sources(ty: &str) -> Vec<u64> {
    let noise = if width(ty) < 16 { 0x5a00 } else { 0 };
    integers(width(ty)).iter().map(|x| x | noise).collect()
}

#[test]
fn between_integers_bits_are_cut_and_extended() {
    for src in INTEGERS {
        for dst in INTEGERS {
            let all = sources(src);
            let args = [(&*register(src), &all[..])];
            let plain = eval(&format!("cvt.{dst}.{src}"), &register(dst), &args);
            let clamped = eval(&format!("cvt.sat.{dst}.{src}"), &register(dst), &args);
            let (least, most) = range(dst);
            for at in 0..all.len() {
                let x = value(all[at], src);
                assert_eq!(plain[at], stored(value(x as u64, dst), dst), "cvt.{dst}.{src} {x}");
                assert_eq!(clamped[at], stored(x.clamp(least, most), dst), "cvt.sat.{dst}.{src} {x}");
            }
        }
    }
}

#[test]
fn narrow_results_fill_their_register() {
    let run = |dst, register, bits| eval(dst, register, &[("b32", &[bits])])[0];
    assert_eq!(run("cvt.s8.s32", "b32", 0x1ff), 0xffff_ffff);
    assert_eq!(run("cvt.s8.s32", "b16", 0x1ff), 0xffff);
    assert_eq!(run("cvt.u8.s32", "b32", 0x1ff), 0xff);
    assert_eq!(run("cvt.s16.u32", "b32", 0x1_8000), 0xffff_8000);
    assert_eq!(run("cvt.rzi.s8.f32", "b32", (-3f32).to_bits() as u64), 0xffff_fffd);
    assert_eq!(run("cvt.u32.u8", "b32", 0xffff_ff80), 0x80);
}

type Decode = fn(u64) -> f64;
type Encode = fn(f64) -> u64;

/// A float type by name: what its bits are worth, and the bits of what has been rounded to it.
fn float(ty: &str) -> (Format, Decode, Encode) {
    match ty {
        "f16" => (Format::F16, |x| formats::F16(x as u16).decode() as f64, |x| formats::F16::encode(x as f32).0 as u64),
        "bf16" => (Format::BF16, |x| Bf16(x as u16).decode() as f64, |x| Bf16::encode(x as f32).0 as u64),
        "f32" => (
            Format::F32,
            |x| f32::from_bits(x as u32) as f64,
            |x| {
                if x.is_nan() { 0x7fff_ffff } else { (x as f32).to_bits() as u64 }
            },
        ),
        _ => (exact::DOUBLE, f64::from_bits, f64::to_bits),
    }
}

fn float_width(ty: &str) -> String {
    match ty {
        "f16" | "bf16" => "b16".into(),
        other => format!("b{}", &other[1..]),
    }
}

#[test]
fn integers_round_once_to_floats() {
    for src in INTEGERS {
        for dst in ["f16", "bf16", "f32", "f64"] {
            let (format, _, bits) = float(dst);
            for (name, mode) in Rounding::MODIFIERS {
                let all = sources(src);
                let instruction = format!("cvt.{name}.{dst}.{src}");
                let got = eval(&instruction, &float_width(dst), &[(&register(src), &all)]);
                for at in 0..all.len() {
                    let x = value(all[at], src);
                    // Two exact halves, added with one rounding.
                    let (high, low) = ((x >> 32 << 32) as f64, (x & 0xffff_ffff) as f64);
                    let want = if x == 0 { 0.0 } else { exact::add(high, low, format, mode) };
                    assert_eq!(got[at], bits(want), "{instruction} {x}");
                }
            }
        }
    }
    assert_eq!(eval("cvt.rn.sat.f32.s32", "f32", &[("b32", &[5, 0, 0xffff_ffff])]), [0x3f80_0000, 0, 0]);
}

/// Float bits of a type: those of `.f32`, rounded, and random ones.
fn float_sources(ty: &str) -> Vec<u64> {
    let (format, _, bits) = float(ty);
    let mut random = Bits(31);
    let mut all: Vec<u64> = floats()
        .iter()
        .map(|x| bits(exact::add(f32::from_bits(*x as u32) as f64, 0.0, format, Rounding::Nearest)))
        .collect();
    for x in [0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 128.0, -128.5, 255.5, 32767.5, 65504.0, 2147483647.5, 4294967295.5] {
        all.push(bits(exact::add(x, 0.0, format, Rounding::Zero)));
    }
    for x in [9.2e18, 9.3e18, 1.85e19, -9.3e18, 0.1, 0.9999, 1e-3, 3.7e4, -7.7e4] {
        all.push(bits(exact::add(x, 0.0, format, Rounding::Zero)));
    }
    all.extend((0..40).map(|_| random.next() >> (64 - float_width(ty)[1..].parse::<u32>().unwrap())));
    all
}

#[test]
fn floats_round_and_clamp_to_integers() {
    for src in ["f16", "bf16", "f32", "f64"] {
        let (_, decode, _) = float(src);
        let all = float_sources(src);
        for dst in INTEGERS {
            for (name, mode) in [("rni", 0), ("rzi", 1), ("rmi", 2), ("rpi", 3)] {
                let instruction = format!("cvt.{name}.{dst}.{src}");
                let got = eval(&instruction, &register(dst), &[(&float_width(src), &all)]);
                let (least, most) = range(dst);
                for at in 0..all.len() {
                    let x = decode(all[at]);
                    let below = x.floor();
                    let up = match mode {
                        0 => x - below > 0.5 || x - below == 0.5 && below % 2.0 != 0.0,
                        1 => x < 0.0 && x != below,
                        2 => false,
                        _ => x != below,
                    };
                    let whole = if up { below + 1.0 } else { below };
                    let want = if !x.is_nan() {
                        stored((whole as i128).clamp(least, most), dst)
                    } else if src == "f64" || width(dst) == 64 {
                        stored(value(1 << (width(dst) - 1), dst), dst)
                    } else {
                        0
                    };
                    assert_eq!(got[at], want, "{instruction} {x:e}");
                }
            }
        }
    }
    assert_eq!(eval("cvt.rpi.ftz.s32.f32", "b32", &[("f32", &[1, 0x0080_0000])]), [0, 1]);
}

#[test]
fn floats_round_once_to_narrower_floats() {
    for (src, dst) in [
        ("f64", "f32"),
        ("f64", "f16"),
        ("f64", "bf16"),
        ("f32", "f16"),
        ("f32", "bf16"),
        ("bf16", "f16"),
        ("f16", "bf16"),
    ] {
        let ((_, decode, _), (format, _, bits)) = (float(src), float(dst));
        let all = float_sources(src);
        for (name, mode) in Rounding::MODIFIERS {
            let instruction = format!("cvt.{name}.{dst}.{src}");
            let got = eval(&instruction, &float_width(dst), &[(&float_width(src), &all)]);
            for at in 0..all.len() {
                // Multiplying by one keeps a zero's sign.
                let want = exact::mul(decode(all[at]), 1.0, format, mode);
                assert_eq!(got[at], bits(want), "{instruction} {:e}", decode(all[at]));
            }
        }
    }
}

#[test]
fn floats_widen_exactly() {
    for (src, dst) in [("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("f32", "f64")] {
        let ((_, decode, _), (_, widened, _)) = (float(src), float(dst));
        let all = float_sources(src);
        let got = eval(&format!("cvt.{dst}.{src}"), &float_width(dst), &[(&float_width(src), &all)]);
        for at in 0..all.len() {
            let (x, y) = (decode(all[at]), widened(got[at]));
            assert!(x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(), "cvt.{dst}.{src} {x:e}");
            assert!(dst != "f32" || !y.is_nan() || got[at] == 0x7fff_ffff);
        }
    }
}

#[test]
fn floats_round_to_whole_floats() {
    let run = |instruction: &str, x: f32| {
        f32::from_bits(eval(instruction, "f32", &[("f32", &[x.to_bits() as u64])])[0] as u32)
    };
    for (x, nearest, zero, down, up) in
        [(2.5, 2.0, 2.0, 2.0, 3.0), (-1.5, -2.0, -1.0, -2.0, -1.0), (1e30, 1e30, 1e30, 1e30, 1e30)]
    {
        assert_eq!(run("cvt.rni.f32.f32", x), nearest);
        assert_eq!(run("cvt.rzi.f32.f32", x), zero);
        assert_eq!(run("cvt.rmi.f32.f32", x), down);
        assert_eq!(run("cvt.rpi.f32.f32", x), up);
    }
    assert_eq!(run("cvt.rpi.f32.f32", -0.3).to_bits(), 0x8000_0000);
    assert_eq!(run("cvt.ftz.f32.f32", -1e-40).to_bits(), 0x8000_0000);
    assert_eq!(run("cvt.sat.f32.f32", 1.5), 1.0);
    assert_eq!(run("cvt.sat.f32.f32", f32::NAN).to_bits(), 0);
    assert_eq!(eval("cvt.rmi.f16.f16", "b16", &[("b16", &[0xbe00])]), [0xc000]);
    assert_eq!(eval("cvt.rmi.f64.f64", "f64", &[("f64", &[(-2.5f64).to_bits()])]), [(-3f64).to_bits()]);
}

#[test]
fn flags_of_half_results() {
    let inputs: Vec<u64> =
        [-1.0f32, 1e9, -1e9, f32::INFINITY, f32::NAN, 1.0, -0.0, 3e38].map(|x| x.to_bits() as u64).into();
    let run = |instruction: &str| eval(instruction, "b16", &[("f32", &inputs)]);
    assert_eq!(run("cvt.rn.relu.f16.f32"), [0, 0x7c00, 0, 0x7c00, 0x7fff, 0x3c00, 0, 0x7c00]);
    assert_eq!(run("cvt.rn.satfinite.f16.f32"), [0xbc00, 0x7bff, 0xfbff, 0x7bff, 0x7fff, 0x3c00, 0x8000, 0x7bff]);
    assert_eq!(run("cvt.rz.relu.satfinite.bf16.f32")[3..5], [0x7f7f, 0x7fff]);
    assert_eq!(run("cvt.rz.f16.f32")[1..4], [0x7bff, 0xfbff, 0x7c00]);
    let tiny = [1, 0x807f_ffff];
    assert_eq!(eval("cvt.rp.ftz.f16.f32", "b16", &[("f32", &tiny)]), [0, 0x8000]);
    assert_eq!(eval("cvt.rp.f16.f32", "b16", &[("f32", &tiny)]), [1, 0x8000]);
}

#[test]
fn what_the_isa_does_not_have_is_refused() {
    let line = |text: &str| refused(&format!(".reg .b16 %h; .reg .b32 %w; .reg .b64 %d; {text};"));
    assert!(line("cvt.s32.f32 %w, %w").contains("rounding"));
    assert!(line("cvt.rn.s32.f32 %w, %w").contains("rounding"));
    assert!(line("cvt.f32.s32 %w, %w").contains("rounding"));
    assert!(line("cvt.rni.f32.s32 %w, %w").contains("rounding"));
    assert!(line("cvt.rn.f32.f16 %w, %h").contains("rounding"));
    assert!(line("cvt.f32.f64 %w, %d").contains("rounding"));
    assert!(line("cvt.rn.f32.f32 %w, %w").contains("rounding"));
    assert!(line("cvt.rzi.u32.s32 %w, %w").contains("rounding"));
    assert!(line("cvt.ftz.f64.f16 %d, %h").contains("`.ftz`"));
    assert!(line("cvt.rn.relu.f32.f64 %w, %d").contains("`.relu`"));
    assert!(line("cvt.rp.satfinite.f16.f32 %h, %w").contains("`.satfinite`"));
    assert!(line("cvt.rn.f32.b32 %w, %w").contains("`.b32`"));
    assert!(line("cvt.rn.sat.sat.f32.s32 %w, %w").contains("`cvt.rn.sat.sat.f32.s32`"));
}
