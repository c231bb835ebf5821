use half::bf16;

use crate::args;
use crate::harness::{Outcome, Session, plane, run};
use crate::numbers::{bf16s, close, matmul, wide};

pub fn product(s: &mut Session, m: usize, n: usize, k: usize) -> Outcome {
    let (a, b) = (bf16s(1, m * k), bf16s(2, n * k));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.alloc::<bf16>(m * n));
    let shape = plane(n.div_ceil(64), m.div_ceil(64), 128);
    s.launch("gemm_bf16", shape, &args![c, da, db, m as i32, n as i32, k as i32])?;
    let want = matmul(&wide(&a), &wide(&b), m, n, k);
    close("c", &s.download::<bf16>(c, m * n), &want, 1e-3, 1.0 / 256.0)
}

/// Ragged in every dimension, and more steps than buffers.
pub fn ragged(s: &mut Session) -> Outcome {
    product(s, 100, 72, 200)
}

#[test]
fn bf16_ragged() {
    run("gemm", ragged);
}

#[test]
fn bf16_whole_tiles() {
    run("gemm", |s| product(s, 128, 64, 96));
}

#[test]
fn bf16_one_row() {
    run("gemm", |s| product(s, 1, 7, 8));
}
