//! Triton's kernels: the third compiler, with its own shared-memory layouts and pipelines.

use half::{bf16, f16};

use super::hopper::{BF16, matrix_map};
use crate::args;
use crate::attention::reference;
use crate::harness::{Outcome, Session, line, plane, run};
use crate::numbers::{bf16s, close, f16s, f32s, matmul, noise, same, wide};

const HEAD: usize = 64;

/// Causal attention of two heads over a length that fills no tile. Triton says how much shared memory it needs.
fn flash(s: &mut Session, shared: usize) -> Outcome {
    let (heads, tokens, scale) = (2, 100, 0.125);
    let count = heads * tokens * HEAD;
    let (q, k, v) = (bf16s(1, count), bf16s(2, count), bf16s(3, count));
    let (dq, dk, dv, out) = (s.upload(&q), s.upload(&k), s.upload(&v), s.alloc::<bf16>(count));
    let shape = plane(tokens.div_ceil(64), heads, 128).shared(shared);
    let args = args![dq, dk, dv, out, scale as f32, heads as i32, tokens as i32, 0u64, 0u64];
    s.launch("flash_attention", shape, &args)?;
    let (q, k, v) = (wide(&q), wide(&k), wide(&v));
    let mut want = Vec::new();
    for row in 0..heads * tokens {
        let first = row / tokens * tokens;
        let keys: Vec<&[f64]> = (first..=row).map(|t| &k[t * HEAD..][..HEAD]).collect();
        let values: Vec<&[f64]> = (first..=row).map(|t| &v[t * HEAD..][..HEAD]).collect();
        want.extend(reference(&q[row * HEAD..][..HEAD], &keys, &values, scale));
    }
    // The weights are rounded to bf16 before they meet the values.
    close("out", &s.download::<bf16>(out, count), &want, 8e-3, 1.0 / 128.0)
}

pub fn matmul_tma(s: &mut Session) -> Outcome {
    let [m, n, k] = [200, 136, 328];
    let (a, b) = (bf16s(1, m * k), bf16s(2, n * k));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.zeros::<bf16>(m * n));
    let map = |address, rows, cols, tile: u32| matrix_map(address, (BF16, 2), rows, cols, [64, tile], 3);
    let args = args![
        map(da, m, k, 128),
        m as i32,
        k as i32,
        k as u64,
        1u64,
        map(db, n, k, 64),
        n as i32,
        k as i32,
        k as u64,
        1u64,
        map(c, m, n, 128),
        m as i32,
        n as i32,
        n as u64,
        1u64,
        m as i32,
        n as i32,
        k as i32,
        0u64,
        0u64,
    ];
    s.launch("matmul_tma", plane(m.div_ceil(128), n.div_ceil(64), 128).shared(73752), &args)?;
    close("c", &s.download::<bf16>(c, m * n), &matmul(&wide(&a), &wide(&b), m, n, k), 1e-3, 1.0 / 256.0)
}

/// Three programs and a grid's worth of scratch memory, in which each makes its three tensor maps.
pub fn matmul_persistent(s: &mut Session) -> Outcome {
    let [m, n, k] = [256, 192, 208];
    let (a, b) = (f16s(1, m * k), f16s(2, n * k));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.alloc::<f16>(m * n));
    let scratch = s.alloc::<u8>(3 * 384);
    let args = args![da, db, c, m as i32, n as i32, k as i32, scratch, 0u64];
    s.launch("matmul_persistent", line(3, PERSISTENT.0).shared(PERSISTENT.1), &args)?;
    close("c", &s.download::<f16>(c, m * n), &matmul(&wide(&a), &wide(&b), m, n, k), 1e-3, 1.0 / 512.0)
}

/// Threads and bytes of shared memory that Triton asks for.
const PERSISTENT: (u32, usize) = (128, 90136);

pub fn softmax(s: &mut Session) -> Outcome {
    let (rows, cols) = (3, 700);
    let x = noise(1, rows * cols, |n| n.unit() * 8.0);
    let (dx, out) = (s.upload(&x), s.alloc::<f32>(rows * cols));
    s.launch("softmax_rows", line(rows, 128).shared(16), &args![dx, out, cols as i32, 0u64, 0u64])?;
    let mut want = Vec::new();
    for row in wide(&x).chunks(cols) {
        let total: f64 = row.iter().map(|v| v.exp()).sum();
        want.extend(row.iter().map(|v| v.exp() / total));
    }
    close("out", &s.download::<f32>(out, rows * cols), &want, 1e-9, 2e-5)
}

pub fn topk(s: &mut Session) -> Outcome {
    let (rows, cols) = (3, 401);
    let (x, noise) = (f32s(1, rows * cols), f32s(2, rows * cols));
    let (dx, dn, picked) = (s.upload(&x), s.upload(&noise), s.alloc::<i32>(rows * 3));
    s.launch("topk_sample", line(rows, 128).shared(64), &args![dx, dn, picked, cols as i32, 0u64, 0u64])?;
    let mut want = Vec::new();
    for row in 0..rows {
        let value = |c: usize| x[row * cols + c] + noise[row * cols + c];
        let best = (0..cols).max_by(|&a, &b| value(a).total_cmp(&value(b)).then(b.cmp(&a))).expect("not empty");
        let above = |end: usize| (0..end).filter(|&c| value(c) > 0.0).count() as i32;
        want.extend([best as i32, above(cols), above(best + 1)]);
    }
    same("picked", &s.download::<i32>(picked, rows * 3), &want)
}

#[test]
fn flash_attention() {
    run("triton_flash_sm80", |s| flash(s, 16384));
    run("triton_flash_sm90", |s| flash(s, 24576));
}

#[test]
fn pipelined_matmul() {
    run("triton_matmul_sm90", matmul_tma);
    run("triton_persistent", matmul_persistent);
}

#[test]
fn rows() {
    run("triton_softmax", softmax);
    run("triton_topk", topk);
}
