//! Matrix products.

use crate::support::*;
use half::bf16;
use weft::backend::cpu::CpuBackend;
use weft::backend::cuda::{CudaBackend, Weight};
use weft::backend::{Backend, Capacity, Epilogue, Fp8, Grouping, Int4, Step, Storage, WeightFormat};

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

/// `[m, k]` times a gate and an up of `[n, k]`, on one backend.
fn swiglu<B: Backend>(backend: &B, x: &[f32], gate: &Matrix, up: &Matrix) -> Vec<f32> {
    let [g, u] = [gate, up].map(|w| backend.weight(&w.data, w.n, w.k).unwrap());
    let x = tensor(backend, x, gate.k);
    let mut out = backend.tensor(backend.read(&x).unwrap().len() / gate.k, gate.n).unwrap();
    backend.swiglu(&x, &g, &u, &mut out, Grouping::One);
    read(backend, &out)
}

#[test]
fn swiglu_is_that_of_the_cpu() {
    let (gpu, oracle, mut noise) = (backend(), cpu(), Noise(3));
    for ((n, k), rows) in [((70, 100), &[1, 16, 31, 64, 150][..]), ((24, 1500), &[7, 40])] {
        let (gate, up) = (Matrix::noise(&mut noise, n, k), Matrix::noise(&mut noise, n, k));
        for &m in rows {
            let x: Vec<f32> = noise.values(m * k).iter().map(|v| v * 0.1).collect();
            let (got, want) = (swiglu(&*gpu, &x, &gate, &up), swiglu(&oracle, &x, &gate, &up));
            let sums = |w: &Matrix| linear(&oracle, &x, &oracle.weight(&w.data, n, k).unwrap(), n, k);
            let (g, u, g_off, u_off) = (sums(&gate), sums(&up), bounds(&oracle, &x, &gate), bounds(&oracle, &x, &up));
            // silu has a slope of at most 1.1; the CPU's is within 2^-20 of it, the device's exp and quotient are closer.
            let bound = |i: usize| {
                let silu = g[i] / (1.0 + (-g[i]).exp());
                1.1 * g_off[i] * (u[i].abs() + u_off[i]) + silu.abs() * u_off[i] + want[i].abs() * 2f32.powi(-19)
            };
            assert_near(&got, &want, bound, &format!("swiglu of [{m}, {k}] with [{n}, {k}]"));
        }
    }
}

#[test]
fn sums_are_added_after_they_are_complete() {
    let (gpu, mut noise) = (backend(), Noise(4));
    let (n, k) = (70, 1500);
    let w = Matrix::noise(&mut noise, n, k);
    let ours = gpu.weight(&w.data, n, k).unwrap();
    for m in [3, 40] {
        let (x, base) = (noise.values(m * k), noise.values(m * n));
        let product = linear(&*gpu, &x, &ours, n, k);
        let mut out = tensor(&*gpu, &base, n);
        gpu.linear(&tensor(&*gpu, &x, k), &ours, &mut out, Epilogue::Add, Grouping::One);
        let want: Vec<f32> = base.iter().zip(&product).map(|(a, b)| a + b).collect();
        assert_same(&read(&*gpu, &out), &want, "residual");

        let bias = noise.weights(n);
        let mut out = gpu.tensor(m, n).unwrap();
        gpu.linear_with_bias(&tensor(&*gpu, &x, k), &ours, &gpu.vector(&bias).unwrap(), &mut out);
        let want: Vec<f32> = product.iter().enumerate().map(|(i, v)| v + bias[i % n].to_f32()).collect();
        assert_same(&read(&*gpu, &out), &want, "bias");
    }
}

/// A product gives the same bits for a tensor, which it rounds, and for an operand; what it writes as an operand is what it
/// writes otherwise, rounded.
#[test]
fn operands_are_what_tensors_are_rounded_to() {
    let (gpu, mut noise) = (backend(), Noise(10));
    for (n, k) in [(33, 515), (70, 1500), (16, 8)] {
        let w = gpu.weight(&noise.weights(n * k), n, k).unwrap();
        let up = gpu.weight(&noise.weights(n * k), n, k).unwrap();
        for m in [1, 5, 8, 9, 20, 33, 70, 150] {
            let data = noise.values(m * k);
            let (plain, rounded_there) = (tensor(&*gpu, &data, k), operand(&*gpu, &data, k));
            assert_same(&read(&*gpu, &rounded_there), &rounded(&data), "an upload");
            let launches = gpu.device().traffic().launches;
            let (mut out, mut next) = (gpu.tensor(m, n).unwrap(), gpu.operand(m + 1, n).unwrap());
            gpu.linear(&rounded_there, &w, &mut out, Epilogue::Store, Grouping::One);
            assert_eq!(gpu.device().traffic().launches, launches + 1, "nothing but the product is launched");
            let want = linear(&*gpu, &data, &w, n, k);
            assert_same(&read(&*gpu, &out), &want, &format!("[{m}, {k}] times [{n}, {k}]"));
            gpu.linear(&rounded_there, &w, &mut next, Epilogue::Store, Grouping::One);
            assert_same(&read(&*gpu, &next), &rounded(&want), &format!("[{m}, {k}] times [{n}, {k}], rounded"));
            gpu.swiglu(&plain, &w, &up, &mut out, Grouping::One);
            gpu.swiglu(&rounded_there, &w, &up, &mut next, Grouping::One);
            assert_same(&read(&*gpu, &next), &rounded(&read(&*gpu, &out)), &format!("swiglu of {m} rows, rounded"));
        }
    }
}

/// A step whose groups end there.
fn groups<B: Backend>(backend: &B, ends: &[u32]) -> B::Step {
    let sources = *ends.last().unwrap() as usize;
    let capacity = Capacity { sources: 64, groups: 8, ..Capacity::default() };
    let mut step = backend.step(capacity).unwrap();
    let sources = vec![weft::backend::Source { state: 0, token: 0 }; sources];
    let groups = std::iter::once(0).chain(ends.iter().copied()).collect();
    backend.set_step(Step { sources, groups, ..Step::default() }, &mut step).unwrap();
    step
}

#[test]
fn each_group_of_rows_has_its_own_weight() {
    let (gpu, oracle, mut noise) = (backend(), cpu(), Noise(5));
    // One group is empty, one has most of the rows; the second weight is summed in parts.
    for (n, k) in [(48, 100), (16, 1500)] {
        let w = Matrix::noise(&mut noise, 3 * n, k);
        let up = Matrix::noise(&mut noise, 3 * n, k);
        for ends in [&[4, 4, 7][..], &[0, 33, 40]] {
            let x: Vec<f32> = noise.values(ends[2] as usize * k).iter().map(|v| v * 0.1).collect();
            let part = |w: &Matrix, g: usize| Matrix { data: w.data[g * n * k..][..n * k].to_vec(), n, k };
            let rows = |g: usize| if g == 0 { 0 } else { ends[g - 1] as usize }..ends[g] as usize;

            let step = groups(&*gpu, ends);
            let (tensor, mut out) = (tensor(&*gpu, &x, k), gpu.tensor(64, n).unwrap());
            gpu.linear(
                &tensor,
                &gpu.weight(&w.data, 3 * n, k).unwrap(),
                &mut out,
                Epilogue::Store,
                Grouping::By(&step),
            );
            let got = read(&*gpu, &out);
            let [gates, ups] = [&w, &up].map(|w| gpu.weight(&w.data, 3 * n, k).unwrap());
            gpu.swiglu(&tensor, &gates, &ups, &mut out, Grouping::By(&step));
            let both = read(&*gpu, &out);
            let mut next = gpu.operand(64, n).unwrap();
            gpu.swiglu(&operand(&*gpu, &x, k), &gates, &ups, &mut next, Grouping::By(&step));
            assert_same(&read(&*gpu, &next), &rounded(&both), &format!("operands of groups {ends:?}"));
            for g in 0..3 {
                let (x, w, up) = (&x[rows(g).start * k..rows(g).end * k], part(&w, g), part(&up, g));
                if x.is_empty() {
                    continue;
                }
                let of = |all: &[f32]| all[rows(g).start * n..rows(g).end * n].to_vec();
                let bounds = bounds(&oracle, x, &w);
                let want = linear(&oracle, x, &oracle.weight(&w.data, n, k).unwrap(), n, k);
                assert_near(&of(&got), &want, |i| bounds[i], &format!("group {g} of {ends:?}"));
                // Alone it is cut into the parts of a smaller weight, so it is near, not the same.
                let want = swiglu(&oracle, x, &w, &up);
                assert_near(&of(&both), &want, |_| 1e-3, &format!("swiglu of group {g} of {ends:?}"));
            }
        }
    }
}

#[test]
fn a_launch_for_many_rows_multiplies_those_that_are_there() {
    let (gpu, mut noise) = (backend(), Noise(6));
    let (n, k) = (40, 1500);
    let w = gpu.weight(&noise.weights(n * k), n, k).unwrap();
    let rows = noise.values(64 * k);
    let x = tensor(&*gpu, &rows, k);
    let mut step =
        gpu.step(Capacity { rows: 64, sequences: 1, pages: 8, frontiers: 8, ..Capacity::default() }).unwrap();
    for predictions in [vec![5], vec![], (0..23).rev().collect(), (0..60).collect::<Vec<u32>>()] {
        // Steps may be padded: a launch for up to 64 rows of which fewer are there.
        let layout = weft::backend::Layout {
            sequences: vec![weft::backend::PageTable {
                prefix: (0..4).collect(),
                prefix_len: 60,
                width: 1,
                ..Default::default()
            }],
            rows: (0..60)
                .map(|i| weft::backend::RowPlace { sequence: 0, slot: weft::backend::Slot::Prefix(i) })
                .collect(),
        };
        let images = vec![weft::backend::Image {
            stream: weft::rng::Stream { seed: 1, image: 0 },
            sampling: weft::sampling::Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 },
            test: weft::backend::Test::Token,
        }];
        let host = Step { images, layout, predictions: predictions.clone(), ..Step::default() };
        gpu.set_step(host, &mut step).unwrap();
        let (mut chosen, mut out) = (gpu.tensor(64, k).unwrap(), gpu.tensor(64, n).unwrap());
        gpu.select(&step, &x, &mut chosen);
        gpu.linear(&chosen, &w, &mut out, Epilogue::Store, Grouping::One);
        let chosen: Vec<f32> = predictions.iter().flat_map(|&i| rows[i as usize * k..][..k].to_vec()).collect();
        let want = if chosen.is_empty() { Vec::new() } else { linear(&*gpu, &chosen, &w, n, k) };
        assert_same(&read(&*gpu, &out), &want, &format!("{} rows", predictions.len()));
    }
}

/// Multiplies by a weight in fewer bits and by the bf16 that it stands for, times a factor per output.
fn check_quantised(gpu: &CudaBackend, noise: &mut Noise, w: &Weight, exact: &Matrix, scales: &[f32]) {
    let (n, k, oracle) = (exact.n, exact.k, cpu());
    let theirs = oracle.weight(&exact.data, n, k).unwrap();
    let x = noise.values(300 * k);
    let whole = linear(gpu, &x, w, n, k);
    for m in [1, 8, 13, 30, 60, 90, 144, 300] {
        let got = linear(gpu, &x[..m * k], w, n, k);
        assert_same(&got, &whole[..m * n], "rows of a quantised weight");
    }
    let (bounds, want) = (bounds(&oracle, &x, exact), linear(&oracle, &x, &theirs, n, k));
    let want: Vec<f32> = want.iter().enumerate().map(|(i, sum)| sum * scales[i % n]).collect();
    // The product with the factor is rounded on either side.
    let bound = |i: usize| bounds[i] * scales[i % n] * 1.001 + want[i].abs() * f32::EPSILON;
    assert_near(&whole, &want, bound, &format!("[300, {k}] times a quantised [{n}, {k}]"));
}

#[test]
fn fp8_weights_are_what_their_codes_stand_for() {
    let (gpu, mut noise) = (backend(), Noise(7));
    for (n, k) in [(70, 130), (20, 1030)] {
        // Magnitudes over all of e4m3, subnormal codes among them.
        let data: Vec<bf16> =
            (0..n * k).map(|_| bf16::from_f32(noise.next() * 2f32.powi(-(noise.below(14) as i32)))).collect();
        let w = Fp8::quantise(&data, n, k);
        // A code is exact in bf16; `dequantise` multiplies it by the factor.
        let codes: Vec<bf16> =
            w.dequantise().iter().enumerate().map(|(i, v)| bf16::from_f32(v.to_f32() / w.scales()[i / k])).collect();
        let exact = Matrix { data: codes, n, k };
        check_quantised(&gpu, &mut noise, &gpu.weight_fp8(&w).unwrap(), &exact, w.scales());
    }
}

#[test]
fn int4_weights_are_what_their_integers_stand_for() {
    let (gpu, mut noise) = (backend(), Noise(8));
    for (n, k) in [(70, 130), (20, 1030)] {
        let data: Vec<bf16> = noise.values(n * k).iter().map(|v| bf16::from_f32(v * 0.1 + 0.03)).collect();
        for w in [Int4::symmetric(&data, n, k), Int4::asymmetric(&data, n, k)] {
            let exact = Matrix { data: w.dequantise(), n, k };
            check_quantised(&gpu, &mut noise, &gpu.weight_int4(&w).unwrap(), &exact, &vec![1.0; n]);
        }
    }
}

/// What is laid out for wgmma, where there is such a thing.
const MANY_ROWS: Storage = Storage { format: WeightFormat::Bf16, rows: 300 };

#[test]
fn products_for_many_rows_are_those_of_the_cpu_too() {
    let (gpu, oracle, mut noise) = (backend(), cpu(), Noise(9));
    for (n, k) in [(40, 72), (150, 1030)] {
        let w = Matrix::noise(&mut noise, n, k);
        let ours = gpu.weight_in(MANY_ROWS, &w.data, n, k).unwrap();
        let x = noise.values(300 * k);
        let want = linear(&oracle, &x, &oracle.weight(&w.data, n, k).unwrap(), n, k);
        let bounds = bounds(&oracle, &x, &w);
        let whole = linear(&*gpu, &x, &ours, n, k);
        assert_near(&whole, &want, |i| bounds[i], &format!("[300, {k}] times [{n}, {k}]"));
        for m in [1, 9, 60, 100, 144] {
            let got = linear(&*gpu, &x[..m * k], &ours, n, k);
            assert_same(&got, &whole[..m * n], &format!("{m} rows of 300"));
        }
    }
    let (n, k) = (70, 200);
    let (gate, up) = (Matrix::noise(&mut noise, n, k), Matrix::noise(&mut noise, n, k));
    let [g, u] = [&gate, &up].map(|w| gpu.weight_in(MANY_ROWS, &w.data, n, k).unwrap());
    for m in [5, 40, 150] {
        let x: Vec<f32> = noise.values(m * k).iter().map(|v| v * 0.1).collect();
        let mut out = gpu.tensor(m, n).unwrap();
        gpu.swiglu(&tensor(&*gpu, &x, k), &g, &u, &mut out, Grouping::One);
        assert_near(&read(&*gpu, &out), &swiglu(&oracle, &x, &gate, &up), |_| 1e-4, "swiglu for many rows");
        let mut next = gpu.operand(m + 5, n).unwrap();
        gpu.swiglu(&operand(&*gpu, &x, k), &g, &u, &mut next, Grouping::One);
        assert_same(&read(&*gpu, &next), &rounded(&read(&*gpu, &out)), "operands for many rows");
    }
}
