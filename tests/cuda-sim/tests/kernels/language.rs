use cuda_sim::machine::fault::Kind;

use crate::args;
use crate::harness::{ALL, Finding, Outcome, Session, fixture, line, run, sweep};
use crate::numbers::{f32s, noise, same};

fn ackermann(m: i32, n: i32) -> i32 {
    match (m, n) {
        (0, _) => n + 1,
        (_, 0) => ackermann(m - 1, 1),
        _ => ackermann(m - 1, ackermann(m, n - 1)),
    }
}

pub fn calls(s: &mut Session) -> Outcome {
    let n = 50;
    let x = f32s(1, n);
    let (dx, y, z, d) = (s.upload(&x), s.alloc::<f32>(n), s.alloc::<i32>(n), s.alloc::<f64>(n));
    s.launch("calls", line(2, 32), &args![y, z, d, dx, n as i32])?;
    let horner = |x: f32| [1.0f32, -0.5, 0.25, 2.0].iter().rev().fold(0.0f32, |sum, &c| sum.mul_add(x, c));
    same("y", &s.download::<f32>(y, n), &x.iter().map(|&x| horner(x)).collect::<Vec<f32>>())?;
    let z_of = |i: usize| ackermann(i as i32 % 3, i as i32 % 5) + 7 + i32::from(b"weft"[i % 4]);
    same("z", &s.download::<i32>(z, n), &(0..n).map(z_of).collect::<Vec<i32>>())?;
    let d_of = |i: usize| {
        let by = i % 3 + 1;
        let b = |j: usize| (i + (j + by) % 3) as f64;
        f64::from(x[i]) * by as f64 + b(0) + 10.0 * b(1) + 100.0 * b(2)
    };
    same("d", &s.download::<f64>(d, n), &(0..n).map(d_of).collect::<Vec<f64>>())
}

pub fn function_pointers(s: &mut Session) -> Outcome {
    let n = 40;
    let which = noise(1, n, |n| n.below(3) as i32);
    let (dw, y) = (s.upload(&which), s.alloc::<i32>(n));
    s.launch("function_pointers", line(2, 32), &args![y, dw, n as i32])?;
    let of = |(i, which): (usize, &i32)| match which {
        0 => 2 * i as i32,
        1 => (i * i) as i32,
        _ => -(i as i32),
    };
    same("y", &s.download::<i32>(y, n), &which.iter().enumerate().map(of).collect::<Vec<i32>>())
}

pub fn local_arrays(s: &mut Session) -> Outcome {
    let n = 77;
    let x = noise(1, n * 8, |n| n.bits() as i32 >> 20);
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(n));
    s.launch("local_arrays", line(3, 32), &args![out, dx, n as i32])?;
    let of = |x: &[i32]| {
        let mut k = x.to_vec();
        k.sort_unstable();
        match x[0] & 7 {
            0 => k[0],
            1 => k[1] * 3,
            2 => k[2] ^ k[5],
            3 => k[3] - k[4],
            4 => k[4].count_ones() as i32,
            5 => k[5] / 7,
            6 => k[6] % 7,
            _ => k[7] + k[(x[1] & 7) as usize],
        }
    };
    same("out", &s.download::<i32>(out, n), &x.chunks(8).map(of).collect::<Vec<i32>>())
}

pub fn generic_addresses(s: &mut Session) -> Outcome {
    let x = noise(1, 32, |n| n.below(100) as i32);
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(32));
    s.launch("generic_addresses", line(1, 32), &args![out, dx])?;
    let of = |t: usize| match t % 3 {
        0 => x[0] + x[31],
        1 => 2 * (x[0] + x[31]) + 1000,
        _ => x[t] + x[(t + 3) % 32],
    };
    same("out", &s.download::<i32>(out, 32), &(0..32).map(of).collect::<Vec<i32>>())
}

pub fn divergence(s: &mut Session) -> Outcome {
    let n = 90;
    let x: Vec<i32> = (1..=n as i32).collect();
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(n));
    s.launch("divergence", line(3, 32), &args![out, dx, n as i32])?;
    let of = |&x: &i32| {
        let (mut x, mut steps) = (x, 0);
        while x != 1 {
            if steps > 200 {
                return -1;
            }
            if x % 2 != 0 {
                x = 3 * x + 1;
            } else {
                x /= 2;
                if x % 5 == 3 {
                    steps += 10;
                    continue;
                }
            }
            steps += 1;
        }
        steps
    };
    same("out", &s.download::<i32>(out, n), &x.iter().map(of).collect::<Vec<i32>>())
}

#[test]
fn functions() {
    run("language", calls);
    run("language", function_pointers);
}

#[test]
fn memory() {
    run("language", local_arrays);
    run("language", generic_addresses);
}

#[test]
fn branches() {
    run("language", divergence);
}

#[test]
fn prints() {
    run("language", |s| s.launch("prints", line(1, 4), &args![2]));
}

#[test]
fn stops() {
    let stopped = |kernel: fn(&mut Session) -> Outcome, kind: Kind, error: &str| {
        let findings = sweep(&fixture("language"), kernel, ALL);
        let as_it_should = |finding: &Finding| finding.is(kind) || finding.to_string().ends_with(error);
        assert!(!findings.is_empty() && findings.iter().all(as_it_should), "{findings:?}");
    };
    let asserts = |s: &mut Session| {
        let x = s.upload(&[1, 2, -3, 4]);
        s.launch("asserts", line(1, 32), &args![x, 4])
    };
    stopped(asserts, Kind::Assert, ": CUDA_ERROR_ASSERT");
    let traps = |s: &mut Session| {
        let x = s.upload(&[1, 2, -3, 4]);
        s.launch("traps", line(1, 4), &args![x])
    };
    stopped(traps, Kind::Trap, ": CUDA_ERROR_LAUNCH_FAILED");
    run("language", |s| {
        let x = s.upload(&[1, 2, 3, 4]);
        s.launch("asserts", line(1, 32), &args![x, 4])?;
        s.launch("traps", line(1, 4), &args![x])
    });
}
