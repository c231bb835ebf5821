//! Matrix products.

use crate::support::*;
use half::bf16;
use weft::backend::cpu::CpuBackend;
use weft::backend::cuda::{CudaBackend, Fp8, Int4};
use weft::backend::{Backend, Capacity, Epilogue, Grouping, Step};

/// A matrix and its magnitudes, for bounds.
struct Matrix {
    data: Vec<bf16>,
    n: usize,
    k: usize,
}

impl Matrix {
    fn noise(noise: &mut Noise, n: usize, k: usize) -> Matrix {
        Matrix { data: noise.weights(n * k), n, k }
    }

    fn magnitudes(&self) -> Vec<bf16> {
        self.data.iter().map(|w| bf16::from_f32(w.to_f32().abs())).collect()
    }
}

fn linear<B: Backend>(backend: &B, x: &[f32], w: &B::Weight, n: usize, k: usize) -> Vec<f32> {
    let x = tensor(backend, x, k);
    let mut out = backend.tensor(backend.read(&x).unwrap().len() / k, n).unwrap();
    backend.linear(&x, w, &mut out, Epilogue::Store, Grouping::One);
    read(backend, &out)
}

/// How far two sums of the same k products may be apart, as a part of the sum of their magnitudes: each addition of a
/// tensor core loses less than a unit in the last place of f32 (it may cut instead of rounding), one of the CPU half a
/// unit; products of bf16 are exact. There are at most 16 parts to add besides.
fn drift(k: usize) -> f32 {
    (1.5 * k as f32 + 20.0) * f32::EPSILON
}

/// `drift(k) * |x| |w|^T`.
fn bounds(oracle: &CpuBackend, x: &[f32], w: &Matrix) -> Vec<f32> {
    let magnitudes: Vec<f32> = x.iter().map(|v| v.abs()).collect();
    let weight = oracle.weight(&w.magnitudes(), w.n, w.k).unwrap();
    let drift = drift(w.k);
    linear(oracle, &magnitudes, &weight, w.n, w.k).iter().map(|sum| sum * drift).collect()
}

/// Multiplies on both backends and compares.
fn check(gpu: &CudaBackend, oracle: &CpuBackend, noise: &mut Noise, (n, k): (usize, usize), rows: &[usize]) {
    let w = Matrix::noise(noise, n, k);
    let (ours, theirs) = (gpu.weight(&w.data, n, k).unwrap(), oracle.weight(&w.data, n, k).unwrap());
    for &m in rows {
        let x = noise.values(m * k);
        let (got, want) = (linear(gpu, &x, &ours, n, k), linear(oracle, &x, &theirs, n, k));
        let bounds = bounds(oracle, &x, &w);
        assert_near(&got, &want, |i| bounds[i], &format!("[{m}, {k}] times [{n}, {k}]"));
    }
}

#[test]
fn products_are_those_of_the_cpu() {
    let (gpu, oracle, mut noise) = (backend(), cpu(), Noise(1));
    // Each variant meets ragged rows, outputs and columns; k is no multiple of 4 here, nor of 8.
    check(&gpu, &oracle, &mut noise, (33, 515), &[1, 2, 5, 8, 9, 31, 64, 90, 144, 300]);
    check(&gpu, &oracle, &mut noise, (192, 192), &[1, 48, 512]);
    check(&gpu, &oracle, &mut noise, (512, 192), &[8, 144]);
    check(&gpu, &oracle, &mut noise, (192, 512), &[5, 64]);
    check(&gpu, &oracle, &mut noise, (1, 64), &[1, 9, 300]);
    check(&gpu, &oracle, &mut noise, (1, 1), &[2]);
    // k in several parts.
    check(&gpu, &oracle, &mut noise, (130, 1032), &[2, 31, 144]);
    check(&gpu, &oracle, &mut noise, (20, 4096), &[9]);
}

#[test]
fn rows_do_not_know_of_each_other() {
    let (gpu, mut noise) = (backend(), Noise(2));
    // In one part and in several.
    for (n, k) in [(40, 200), (24, 2048)] {
        let w = Matrix::noise(&mut noise, n, k);
        let ours = gpu.weight(&w.data, n, k).unwrap();
        let x = noise.values(300 * k);
        assert_row_invariant(&x, k, &[1, 2, 8, 13, 32, 50, 90, 130], "linear", |x| linear(&*gpu, x, &ours, n, k));
    }
}
