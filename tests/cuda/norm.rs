//! RMSNorm and LayerNorm against the CPU backend.

use half::bf16;
use weft::backend::{Backend, Capacity, Grouping, Source, Step};

use crate::support::{
    Noise, assert_near, assert_row_invariant, assert_same, backend, bits, cpu, read, rounded, tensor,
};

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

/// LayerNorm of rows of `cols`.
fn centred<B: Backend>(b: &B, x: &[f32], cols: usize, weight: &[bf16], bias: &[bf16]) -> Vec<f32> {
    let (weight, bias) = (b.vector(weight).unwrap(), b.vector(bias).unwrap());
    let mut out = b.tensor(x.len() / cols, cols).unwrap();
    b.layer_norm(&tensor(b, x, cols), &weight, &bias, EPS, &mut out);
    read(b, &out)
}

/// LayerNorm as its definition reads.
fn definition(x: &[f32], cols: usize, weight: &[bf16], bias: &[bf16]) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks(cols) {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / cols as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / cols as f64;
        let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
        let weighted = x.iter().zip(weight).zip(bias);
        out.extend(weighted.map(|((&x, w), b)| (f64::from(x) - mean) * scale * w.to_f64() + b.to_f64()));
    }
    out
}

/// The mean is a sum along the chains of [`bound`], of values of up to `most`: off by so many u of it, and with it every
/// difference, whose size against the standard deviation `spread` is what comes out, times a weight of at most one. The
/// rest is the bound of an RMSNorm of the differences, which are up to `most / spread` in size, and the rounding of the sum
/// with the bias.
#[test]
fn rows_of_any_width_are_centred_and_normalised() {
    let (cuda, cpu) = (backend(), cpu());
    for (rows, cols, offset) in
        [(3, 192, 0.0), (2, 4, 0.0), (5, 30, 8.0), (2, 7, 0.0), (9, 2048, 40.0), (3, 4096, 0.0), (2, 9000, -5.0)]
    {
        let mut noise = Noise(cols as u64);
        let x: Vec<f32> = noise.values(rows * cols).iter().map(|x| x + offset).collect();
        let (weight, bias) = (noise.weights(cols), noise.weights(cols));
        let want = definition(&x, cols, &weight, &bias);
        // The spread of a row of noise is about 0.58; of four values it may be less.
        let (most, spread) = (offset.abs() + 1.0, if cols < 8 { 0.1 } else { 0.4 });
        let off = 2.0 * bound(cols) * most / spread + (bound(cols) + f32::EPSILON) * (1.0 / spread + 1.0);
        for (name, got) in
            [("device", centred(&*cuda, &x, cols, &weight, &bias)), ("oracle", centred(&cpu, &x, cols, &weight, &bias))]
        {
            let want: Vec<f32> = want.iter().map(|&x| x as f32).collect();
            assert_near(&got, &want, |_| off, &format!("{name}: {rows} x {cols} around {offset}"));
        }
    }
}

#[test]
fn a_centred_row_does_not_depend_on_its_neighbours() {
    let cuda = backend();
    for cols in [192, 50, 4096] {
        let mut noise = Noise(4);
        let (x, weight, bias) = (noise.values(300 * cols), noise.weights(cols), noise.weights(cols));
        let op = |x: &[f32]| centred(&*cuda, x, cols, &weight, &bias);
        assert_row_invariant(&x, cols, &[1, 2, 17], "layer norm", op);
    }
}

/// What a product takes is the same number, rounded.
#[test]
fn operands_are_the_rounded_norms() {
    let cuda = backend();
    for (rows, cols) in [(1, 192), (19, 192), (5, 30), (3, 4100)] {
        let mut noise = Noise(5);
        let x = noise.values(rows * cols);
        let (weights, biases) = (noise.weights(cols), noise.weights(cols));
        let (weight, bias) = (cuda.vector(&weights).unwrap(), cuda.vector(&biases).unwrap());
        let (x_there, mut out) = (tensor(&*cuda, &x, cols), cuda.operand(rows + 2, cols).unwrap());
        cuda.rms_norm(&x_there, &weight, EPS, &mut out, Grouping::One);
        assert_same(&read(&*cuda, &out), &rounded(&normed(&*cuda, &x, cols, &weights, None)), "RMSNorm");
        cuda.layer_norm(&x_there, &weight, &bias, EPS, &mut out);
        assert_same(&read(&*cuda, &out), &rounded(&centred(&*cuda, &x, cols, &weights, &biases)), "LayerNorm");
    }
}

/// Shifts and scales of rows: bit by bit the ops that it is made of, and the rounded numbers as an operand.
#[test]
fn modulated_norms_are_the_norm_its_shift_and_its_scale() {
    let (cuda, cpu) = (backend(), cpu());
    /// Modulated at once and in parts, and modulated into an operand.
    fn modulated<B: Backend>(b: &B, rows: usize, cols: usize) -> [Vec<f32>; 3] {
        let mut noise = Noise(8);
        let norm = (&b.vector(&noise.weights(cols)).unwrap(), &b.vector(&noise.weights(cols)).unwrap());
        let [x, shift, scale] = [(); 3].map(|()| tensor(b, &noise.values(rows * cols), cols));
        let (mut at_once, mut normed) = (b.tensor(rows, cols).unwrap(), b.tensor(rows, cols).unwrap());
        let mut operand = b.operand(rows + 2, cols).unwrap();
        b.modulated_norm(&x, norm, EPS, &shift, &scale, &mut at_once);
        b.modulated_norm(&x, norm, EPS, &shift, &scale, &mut operand);
        b.layer_norm(&x, norm.0, norm.1, EPS, &mut normed);
        let mut parts = tensor(b, &read(b, &shift), cols);
        b.add(&mut parts, &normed);
        b.add_product(&mut parts, &normed, &scale);
        [read(b, &at_once), read(b, &parts), read(b, &operand)]
    }
    for (rows, cols) in [(1, 192), (300, 96), (19, 192), (5, 30), (3, 4100)] {
        let what = format!("{rows} x {cols}");
        let [at_once, parts, operand] = modulated(&*cuda, rows, cols);
        assert_same(&at_once, &parts, &format!("{what} on the device"));
        assert_same(&operand, &rounded(&at_once), &format!("{what} as an operand"));
        let [at_once, parts, _] = modulated(&cpu, rows, cols);
        assert_same(&at_once, &parts, &format!("{what} on the processor"));
    }
}
