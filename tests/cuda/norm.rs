//! RMSNorm against the CPU backend.

use half::bf16;
use weft::backend::{Backend, Capacity, Grouping, Source, Step};

use crate::support::{Noise, backend, bits, cpu, tensor};

const EPS: f32 = 1e-5;

/// The norm of rows of `cols`; `groups` says where the rows of each part of the weight begin.
fn normed<B: Backend>(b: &B, x: &[f32], cols: usize, weight: &[bf16], groups: Option<&[u32]>) -> Vec<f32> {
    let rows = x.len() / cols;
    let weight = b.vector(weight).unwrap();
    let x = tensor(b, x, cols);
    let mut out = b.tensor(rows, cols).unwrap();
    match groups {
        None => b.rms_norm(&x, &weight, EPS, &mut out, Grouping::One),
        Some(groups) => {
            let capacity = Capacity { sources: rows, groups: groups.len() - 1, ..Capacity::default() };
            let mut step = b.step(capacity).unwrap();
            let sources = vec![Source { state: 0, token: 0 }; rows];
            b.set_step(Step { sources, groups: groups.to_vec(), ..Step::default() }, &mut step).unwrap();
            b.rms_norm(&x, &weight, EPS, &mut out, Grouping::By(&step));
        }
    }
    b.read(&out).unwrap().into_owned()
}

/// How far two correct results may lie apart, of their size. A sum of positive terms along chains of d additions is off by
/// less than (d + 1) u of itself, u = 2^-24: d is cols / 16 + 4 on the CPU, and on the device (a thread of at least one
/// per 64 columns, at most 1024) 64 and ten levels of a tree. Half of that passes through the root; the squares, the root,
/// both divisions and the two products add less than 8 u on each side.
fn bound(cols: usize) -> f32 {
    let host = cols as f32 / 16.0 + 5.0;
    let device = (cols as f32 / 1024.0).max(64.0) + 11.0;
    ((host + device) / 2.0 + 16.0) * 2.0_f32.powi(-24)
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f32], bound: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= bound * want.abs(), "{what}: value {i} is {got}, not {want}");
    }
}

#[test]
fn rows_of_any_width_are_normalised() {
    let (cuda, cpu) = (backend(), cpu());
    for (rows, cols) in [(3, 192), (1, 4), (5, 30), (2, 7), (9, 2048), (3, 4096), (2, 9000), (1, 20_000)] {
        let mut noise = Noise(cols as u64);
        let (x, weight) = (noise.values(rows * cols), noise.weights(cols));
        let want = normed(&cpu, &x, cols, &weight, None);
        assert_close(&normed(&*cuda, &x, cols, &weight, None), &want, bound(cols), &format!("{rows} x {cols}"));
    }
}

#[test]
fn groups_of_rows_have_weights_of_their_own() {
    let (cuda, cpu) = (backend(), cpu());
    for cols in [192, 34] {
        let groups = [0, 2, 2, 7, 8, 8];
        let mut noise = Noise(1);
        let (x, weight) = (noise.values(8 * cols), noise.weights(5 * cols));
        let want = normed(&cpu, &x, cols, &weight, Some(&groups));
        assert_close(&normed(&*cuda, &x, cols, &weight, Some(&groups)), &want, bound(cols), &format!("{cols} columns"));
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let cuda = backend();
    for (rows, cols) in [(300, 192), (20, 4096), (20, 50)] {
        let mut noise = Noise(2);
        let (x, weight) = (noise.values(rows * cols), noise.weights(cols));
        let all = normed(&*cuda, &x, cols, &weight, None);
        for row in [0, 1, rows / 2, rows - 1] {
            let alone = normed(&*cuda, &x[row * cols..][..cols], cols, &weight, None);
            assert_eq!(bits(&alone), bits(&all[row * cols..][..cols]), "row {row} of {rows} x {cols}");
        }
    }
}

#[test]
fn what_lies_behind_the_rows_in_use_is_not_read() {
    let cuda = backend();
    let mut noise = Noise(3);
    let (x, weight) = (noise.values(3 * 192), cuda.vector(&noise.weights(192)).unwrap());
    let (mut tensor, mut out) = (cuda.tensor(8, 192).unwrap(), cuda.tensor(8, 192).unwrap());
    cuda.upload(&[f32::NAN; 8 * 192], &mut tensor);
    cuda.upload(&x, &mut tensor);
    cuda.rms_norm(&tensor, &weight, EPS, &mut out, Grouping::One);
    assert_eq!(cuda.read(&out).unwrap().len(), x.len());
    assert!(cuda.read(&out).unwrap().iter().all(|x| x.is_finite()));
}
