//! CUDA's wmma: fragments whose layout only their loads and stores know.

use half::{bf16, f16};

use crate::args;
use crate::harness::{Outcome, Session, line, run};
use crate::numbers::{Pod, matmul, noise, same, transposed, wide};

/// Products whose sums are exact: `shapes` one after the other in c, each with how a and b lie in memory.
fn products<T: Pod + Into<f64>, C: Pod + PartialEq + std::fmt::Debug>(
    s: &mut Session,
    kernel: &str,
    number: fn(i32) -> T,
    result: fn(f64) -> C,
    shapes: &[([usize; 3], bool, bool)],
) -> Outcome {
    let (a, b) = (noise(1, 512, |n| number(n.below(9) as i32 - 4)), noise(2, 512, |n| number(n.below(9) as i32 - 4)));
    let count = shapes.iter().map(|([m, n, _], ..)| m * n).sum();
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.alloc::<C>(count));
    s.launch(kernel, line(1, 32), &args![da, db, c])?;
    let mut want = Vec::new();
    for &([m, n, k], a_by_rows, b_by_rows) in shapes {
        let (a, b) = (a[..m * k].to_vec(), b[..k * n].to_vec());
        // The reference takes both with k contiguous.
        let a = if a_by_rows { a } else { transposed(&a, k, m) };
        let b = if b_by_rows { transposed(&b, k, n) } else { b };
        want.extend(matmul(&wide(&a), &wide(&b), m, n, k).into_iter().map(result));
    }
    same(kernel, &s.download::<C>(c, count), &want)
}

const SQUARE: [usize; 3] = [16, 16, 16];
const TALL: [usize; 3] = [32, 8, 16];
const FLAT: [usize; 3] = [8, 32, 16];

#[test]
fn every_type_and_shape() {
    run("wmma", |s| {
        let shapes = [(SQUARE, true, false), (TALL, false, true), (FLAT, true, true)];
        products(s, "wmma_f16", |v| f16::from_f32(v as f32), |v| v as f32, &shapes)
    });
    run("wmma", |s| products(s, "wmma_f16_sums", |v| f16::from_f32(v as f32), f16::from_f64, &[(SQUARE, true, true)]));
    run("wmma", |s| {
        let shapes = [(SQUARE, true, false), (TALL, true, false)];
        products(s, "wmma_bf16", |v| bf16::from_f32(v as f32), |v| v as f32, &shapes)
    });
    run("wmma", |s| {
        let shapes = [(SQUARE, true, false), (FLAT, false, true)];
        products(s, "wmma_s8", |v| v as i8, |v| v as i32, &shapes)
    });
    run("wmma", |s| products(s, "wmma_f64", f64::from, |v| v, &[([8, 8, 4], true, false)]));
}

pub fn steps(s: &mut Session) -> Outcome {
    let few = |seed, count| noise(seed, count, |n| f16::from_f32(n.below(9) as f32 - 4.0));
    let (a, b, old) = (few(1, 768), few(2, 768), noise(3, 256, |n| n.below(9) as f32));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.upload(&old));
    s.launch("wmma_steps", line(1, 32), &args![da, db, c, 3i32])?;
    // c lies by columns.
    let mut want: Vec<f64> = wide(&transposed(&old, 16, 16));
    for step in 0..3 {
        let (a, b) = (&a[step * 256..][..256], transposed(&b[step * 256..][..256], 16, 16));
        let product = matmul(&wide(a), &wide(&b), 16, 16, 16);
        want.iter_mut().zip(product).for_each(|(sum, v)| *sum += 2.0 * v);
    }
    let want: Vec<f32> = want.iter().map(|&v| v as f32).collect();
    same("c", &transposed(&s.download::<f32>(c, 256), 16, 16), &want)
}

#[test]
fn steps_through_shared_memory() {
    run("wmma", steps);
}
