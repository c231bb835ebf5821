use half::{bf16, f16};

use crate::args;
use crate::harness::{Outcome, Session, line, run};
use crate::numbers::{bf16s, close, f16s, f32s, matmul, noise, wide};

pub fn bf16_rows(s: &mut Session, rows: usize, cols: usize) -> Outcome {
    let (w, x) = (bf16s(1, rows * cols), bf16s(2, cols));
    let (dw, dx, y) = (s.upload(&w), s.upload(&x), s.alloc::<f32>(rows));
    s.launch("gemv_bf16", line(rows.div_ceil(4), 128), &args![y, dw, dx, rows as i32, cols as i32])?;
    let want = matmul(&wide(&w), &wide(&x), rows, 1, cols);
    close("y", &s.download::<f32>(y, rows), &want, 1e-4, 1e-5)
}

/// A bug of the host: its kernel reads what is no longer there.
pub fn freed_weights(s: &mut Session) -> Outcome {
    let (w, x, y) = (s.upload(&bf16s(1, 64)), s.upload(&bf16s(2, 8)), s.alloc::<f32>(8));
    s.free(w);
    s.launch("gemv_bf16", line(2, 128), &args![y, w, x, 8, 8])
}

#[test]
fn bf16() {
    run("gemv", |s| bf16_rows(s, 37, 72));
    run("gemv", |s| bf16_rows(s, 64, 1024));
    run("gemv", |s| bf16_rows(s, 1, 8));
}

#[test]
fn f32_with_a_shared_vector() {
    run("gemv", |s| shared_rows(s, 21, 260));
}

pub fn shared_rows(s: &mut Session, rows: usize, cols: usize) -> Outcome {
    let (w, x) = (f32s(1, rows * cols), f32s(2, cols));
    let (dw, dx, y) = (s.upload(&w), s.upload(&x), s.alloc::<f32>(rows));
    let shape = line(rows.div_ceil(8), 256).shared(cols * 4);
    s.launch("gemv_f32_shared", shape, &args![y, dw, dx, rows as i32, cols as i32])?;
    close("y", &s.download::<f32>(y, rows), &matmul(&wide(&w), &wide(&x), rows, 1, cols), 1e-4, 1e-5)
}

#[test]
fn s8_by_dp4a() {
    run("gemv", |s| {
        let (rows, cols) = (19, 544);
        let w = noise(1, rows * cols, |n| n.bits() as i8);
        let x = noise(2, cols, |n| n.bits() as i8);
        let scale = f32s(3, rows);
        let (dw, ds, dx, y) = (s.upload(&w), s.upload(&scale), s.upload(&x), s.alloc::<f32>(rows));
        let shape = line(rows.div_ceil(4), 128);
        s.launch("gemv_s8", shape, &args![y, dw, ds, dx, 0.25f32, rows as i32, cols as i32])?;
        let dot = |row: usize| (0..cols).map(|c| i32::from(w[row * cols + c]) * i32::from(x[c])).sum::<i32>();
        let want: Vec<f64> = (0..rows).map(|r| f64::from(dot(r) as f32 * scale[r] * 0.25)).collect();
        close("y", &s.download::<f32>(y, rows), &want, 0.0, 0.0)
    });
}

#[test]
fn u4_by_lop3() {
    run("gemv", |s| {
        let (rows, cols) = (13, 512);
        let w = noise(1, rows * cols / 8, |n| n.bits());
        let scale: Vec<bf16> = bf16s(2, rows * cols / 64);
        let x = bf16s(3, cols);
        let (dw, ds, dx, y) = (s.upload(&w), s.upload(&scale), s.upload(&x), s.alloc::<f32>(rows));
        s.launch("gemv_u4", line(rows.div_ceil(4), 128), &args![y, dw, ds, dx, rows as i32, cols as i32])?;
        let weight = |row: usize, col: usize| {
            let (pair, odd) = (col % 8 / 2, col % 2);
            let nibble = w[row * cols / 8 + col / 8] >> (4 * (pair + 4 * odd)) & 15;
            let scale = scale[row * cols / 64 + col / 64].to_f32();
            f64::from(bf16::from_f32((nibble as f32 - 8.0) * scale))
        };
        let dot = |row: usize| (0..cols).map(|c| weight(row, c) * f64::from(x[c])).sum();
        close("y", &s.download::<f32>(y, rows), &(0..rows).map(dot).collect::<Vec<f64>>(), 1e-3, 1e-5)
    });
}

#[test]
fn f16_in_pairs() {
    run("gemv", |s| {
        let (rows, cols) = (9, 264);
        let (w, x) = (f16s(1, rows * cols), f16s(2, cols));
        let (dw, dx, y) = (s.upload(&w), s.upload(&x), s.alloc::<f16>(rows));
        s.launch("gemv_f16", line(rows.div_ceil(4), 128), &args![y, dw, dx, rows as i32, cols as i32])?;
        close("y", &s.download::<f16>(y, rows), &matmul(&wide(&w), &wide(&x), rows, 1, cols), 2e-2, 2e-3)
    });
}
