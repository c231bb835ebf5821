//! CuTe's products: their instructions, layouts and barriers are not of this project's making.

use half::{bf16, f16};

use super::hopper::{BF16, F16, U8, matrix_map};
use crate::args;
use crate::fp8::e4m3;
use crate::harness::{Finding, Outcome, Session, plane, run};
use crate::numbers::{Pod, bf16s, close, f16s, matmul, noise, same, transposed, wide};

/// Three stages of two operands.
fn staged(bytes_of_a_row: usize) -> usize {
    3 * 2 * 64 * bytes_of_a_row
}

/// A product of tiles of 64 by 64 whose rows in shared memory have `row` bytes.
fn launch<A: Pod, C: Pod>(
    s: &mut Session,
    kernel: &str,
    (a, b): (&[A], &[A]),
    [m, n, k]: [usize; 3],
    row: usize,
) -> Result<Vec<C>, Finding> {
    let (da, db, c) = (s.upload(a), s.upload(b), s.alloc::<C>(m * n));
    let shape = plane(n.div_ceil(64), m.div_ceil(64), 128).shared(staged(row));
    s.launch(kernel, shape, &args![c, da, db, m as i32, n as i32, k as i32])?;
    Ok(s.download::<C>(c, m * n))
}

pub fn bf16_rows(s: &mut Session) -> Outcome {
    let [m, n, k] = [72, 100, 264];
    let (a, b) = (bf16s(1, m * k), bf16s(2, n * k));
    let c = launch::<bf16, bf16>(s, "cute_bf16", (&a, &b), [m, n, k], 128)?;
    close("c", &c, &matmul(&wide(&a), &wide(&b), m, n, k), 1e-3, 1.0 / 256.0)
}

pub fn f16_columns(s: &mut Session) -> Outcome {
    let [m, n, k] = [72, 96, 90];
    // Stored with the rows contiguous: [k][m] and [k][n]. Sixteenths, so that sums in f16 stay close.
    let few = |seed, count| noise(seed, count, |n| f16::from_f32(n.below(9) as f32 / 16.0 - 0.25));
    let (a, b) = (few(1, m * k), few(2, n * k));
    let c = launch::<f16, f16>(s, "cute_f16_columns", (&a, &b), [m, n, k], 64)?;
    let want = matmul(&wide(&transposed(&a, k, m)), &wide(&transposed(&b, k, n)), m, n, k);
    close("c", &c, &want, 2e-2, 4e-3)
}

pub fn tf32(s: &mut Session) -> Outcome {
    let [m, n, k] = [65, 70, 100];
    let exact = |seed, count| noise(seed, count, |n| f32::from_bits(n.unit().to_bits() & !0x1fff));
    let (a, b) = (exact(1, m * k), exact(2, n * k));
    let c = launch::<f32, f32>(s, "cute_tf32", (&a, &b), [m, n, k], 128)?;
    close("c", &c, &matmul(&wide(&a), &wide(&b), m, n, k), 1e-4, 1e-5)
}

pub fn s8(s: &mut Session) -> Outcome {
    let [m, n, k] = [33, 80, 208];
    let bytes = |seed, count| noise(seed, count, |n| n.bits() as i8);
    let (a, b) = (bytes(1, m * k), bytes(2, n * k));
    let c = launch::<i8, i32>(s, "cute_s8", (&a, &b), [m, n, k], 128)?;
    let want: Vec<i32> = matmul(&wide(&a), &wide(&b), m, n, k).iter().map(|&v| v as i32).collect();
    same("c", &c, &want)
}

#[test]
fn mma_of_bf16() {
    run("cute_sm80", bf16_rows);
}

#[test]
fn mma_of_f16_columns() {
    run("cute_sm80", f16_columns);
}

#[test]
fn mma_of_tf32() {
    run("cute_sm80", tf32);
}

#[test]
fn mma_of_s8() {
    run("cute_sm80", s8);
}

pub fn specialised(s: &mut Session) -> Outcome {
    let [m, n, k] = [200, 136, 328];
    let (a, b) = (bf16s(1, m * k), bf16s(2, n * k));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.zeros::<bf16>(m * n));
    let map = |address, rows| matrix_map(address, (BF16, 2), rows, k, [64, 128], 3);
    let map_c = matrix_map(c, (BF16, 2), m, n, [64, 128], 3);
    let shape = plane(n.div_ceil(128), m.div_ceil(128), 384).shared(3 * 2 * 16384 + 32768 + 1024);
    s.launch("cute_specialised", shape, &args![map(da, m), map(db, n), map_c, k as i32])?;
    close("c", &s.download::<bf16>(c, m * n), &matmul(&wide(&a), &wide(&b), m, n, k), 1e-3, 1.0 / 256.0)
}

pub fn columns(s: &mut Session) -> Outcome {
    let [m, n, k] = [64, 128, 192];
    let (a, b) = (f16s(1, m * k), f16s(2, n * k));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.alloc::<f32>(m * n));
    let map = |address, cols| matrix_map(address, (F16, 2), k, cols, [64, 64], 3);
    let shape = plane(n / 64, m / 64, 128).shared(2 * 8192 + 1024);
    s.launch("cute_columns", shape, &args![c, map(da, m), map(db, n), n as i32, k as i32])?;
    let want = matmul(&wide(&transposed(&a, k, m)), &wide(&transposed(&b, k, n)), m, n, k);
    close("c", &s.download::<f32>(c, m * n), &want, 1e-4, 1e-5)
}

pub fn registers(s: &mut Session) -> Outcome {
    let [m, n, k] = [128, 64, 96];
    let (a, b) = (bf16s(1, m * k), bf16s(2, n * k));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.alloc::<f32>(m * n));
    let map = |address, rows| matrix_map(address, (BF16, 2), rows, k, [32, 64], 2);
    let shape = plane(n / 64, m / 64, 128).shared(2 * 4096 + 1024);
    s.launch("cute_registers", shape, &args![c, map(da, m), map(db, n), n as i32, k as i32])?;
    close("c", &s.download::<f32>(c, m * n), &matmul(&wide(&a), &wide(&b), m, n, k), 1e-4, 1e-5)
}

pub fn eight_bits(s: &mut Session) -> Outcome {
    let [m, n, k] = [64, 128, 160];
    let codes = |seed, count| noise(seed, count, |n| (n.bits() & 0xbf) as u8);
    let (a, b) = (codes(1, m * k), codes(2, n * k));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.alloc::<f32>(m * n));
    let map = |address, rows| matrix_map(address, (U8, 1), rows, k, [32, 64], 1);
    let shape = plane(n / 64, m / 64, 128).shared(2 * 2048 + 1024);
    s.launch("cute_e4m3", shape, &args![c, map(da, m), map(db, n), n as i32, k as i32])?;
    let values = |codes: &[u8]| codes.iter().map(|&code| e4m3(code)).collect::<Vec<f64>>();
    close("c", &s.download::<f32>(c, m * n), &matmul(&values(&a), &values(&b), m, n, k), 1e-3, 1e-4)
}

#[test]
fn wgmma_in_a_pipeline() {
    run("cute_sm90", specialised);
}

#[test]
fn wgmma_of_columns() {
    run("cute_sm90", columns);
}

#[test]
fn wgmma_from_registers() {
    run("cute_sm90", registers);
}

#[test]
fn wgmma_of_eight_bits() {
    run("cute_sm90", eight_bits);
}
