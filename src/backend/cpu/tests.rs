//! Every op against its definition, on every instruction set of this machine, and row invariance bit by bit.

use super::*;
use crate::backend::{Layout, PageTable, RowPlace, Slot, reference};

/// Backends of all instruction sets that can run here.
fn backends() -> Vec<CpuBackend> {
    Isa::ALL.into_iter().filter_map(CpuBackend::with_isa).collect()
}

/// Runs `f` with a pool of so many threads.
fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// A stream of numbers from -1 to 1 that tests can repeat.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }

    fn weights(&mut self, n: usize) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f32(self.next())).collect()
    }
}

fn tensor(backend: &CpuBackend, data: &[f32], cols: usize) -> Tensor {
    let mut tensor = backend.tensor(data.len() / cols, cols).unwrap();
    backend.upload(data, &mut tensor);
    tensor
}

#[track_caller]
fn assert_near(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{what}: value {i} is {got}, not {want}");
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Asserts that `op` gives row `i` of its output the same bits whatever the rows around it and the threads.
/// `op` maps `[m, cols]` to `[m, out_cols]`.
fn assert_row_invariant(x: &[f32], cols: usize, what: &str, op: impl Fn(&[f32]) -> Vec<f32> + Sync) {
    let rows = x.len() / cols;
    let row = |i: usize| &x[i * cols..][..cols];
    let whole = op(x);
    let out_cols = whole.len() / rows;
    let want = |i: usize| bits(&whole[i * out_cols..][..out_cols]);
    for threads in [1, 2, 3] {
        assert_eq!(bits(&with_threads(threads, || op(x))), bits(&whole), "{what}: {threads} threads");
    }
    // Some rows, in an order that is not theirs, in batches of all kinds of tile shapes.
    for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 48] {
        let chosen: Vec<usize> = (0..m).map(|i| (i * 37 + m * 11) % rows).collect();
        let batch: Vec<f32> = chosen.iter().flat_map(|&i| row(i).to_vec()).collect();
        let got = op(&batch);
        for (got, &i) in got.chunks(out_cols).zip(&chosen) {
            assert_eq!(bits(got), want(i), "{what}: row {i} of {rows} in a batch of {m}");
        }
    }
}

/// Ragged in every way: n around 16, k odd and even, more k than a segment.
const SHAPES: [(usize, usize); 8] = [(1, 1), (15, 2), (16, 3), (17, 64), (50, 31), (192, 192), (33, 515), (130, 1030)];

#[test]
fn linear_is_the_sum_of_products() {
    for backend in backends() {
        for (n, k) in SHAPES {
            for m in [1, 2, 5, 8, 9, 31] {
                let mut noise = Noise((n * k + m) as u64);
                let (x, w, before) = (noise.values(m * k), noise.weights(n * k), noise.values(m * n));
                let weight = backend.weight(&w, n, k).unwrap();
                let what = format!("{} [{m}, {n}, {k}]", backend.isa());
                let want = reference::linear(&x, &w, n, k);
                let mut out = backend.tensor(m + 1, n).unwrap();
                backend.linear(&tensor(&backend, &x, k), &weight, &mut out, Epilogue::Store, Grouping::One);
                assert_near(&backend.read(&out).unwrap(), &want, 1e-6 * k as f64, &what);

                backend.upload(&before, &mut out);
                backend.linear(&tensor(&backend, &x, k), &weight, &mut out, Epilogue::Add, Grouping::One);
                let sums: Vec<f64> = want.iter().zip(&before).map(|(a, &b)| a + f64::from(b)).collect();
                assert_near(&backend.read(&out).unwrap(), &sums, 1e-6 * k as f64, &what);
            }
        }
    }
}

#[test]
fn linear_and_swiglu_do_not_see_other_rows() {
    for backend in backends() {
        for (n, k) in [(17, 5), (192, 192), (512, 192), (70, 1030), (2500, 300)] {
            let mut noise = Noise((n + k) as u64);
            let (gate, up) = (noise.weights(n * k), noise.weights(n * k));
            let (gate, up) = (backend.weight(&gate, n, k).unwrap(), backend.weight(&up, n, k).unwrap());
            let rows = if n > 1000 { 50 } else { 300 };
            let x = noise.values(rows * k);
            let what = format!("{} [{n}, {k}]", backend.isa());
            assert_row_invariant(&x, k, &what, |x| {
                let mut out = backend.tensor(x.len() / k, n).unwrap();
                backend.linear(&tensor(&backend, x, k), &gate, &mut out, Epilogue::Store, Grouping::One);
                backend.linear(&tensor(&backend, x, k), &up, &mut out, Epilogue::Add, Grouping::One);
                backend.read(&out).unwrap().into_owned()
            });
            assert_row_invariant(&x, k, &what, |x| {
                let mut out = backend.tensor(x.len() / k, n).unwrap();
                backend.swiglu(&tensor(&backend, x, k), &gate, &up, &mut out, Grouping::One);
                backend.read(&out).unwrap().into_owned()
            });
        }
    }
}

#[test]
fn linear_passes_nan_and_infinity_on() {
    for backend in backends() {
        for k in [4, 5, 300] {
            let weight = backend.weight(&vec![bf16::ONE; 20 * k], 20, k).unwrap();
            for (value, at) in [(f32::NAN, 0), (f32::from_bits(0x7fff_ffff), k - 1), (f32::INFINITY, k - 1)] {
                let mut x = vec![1.0; 3 * k];
                x[k + at] = value;
                let mut out = backend.tensor(3, 20).unwrap();
                backend.linear(&tensor(&backend, &x, k), &weight, &mut out, Epilogue::Store, Grouping::One);
                let out = backend.read(&out).unwrap();
                assert!(out[..20].iter().chain(&out[40..]).all(|&y| y == k as f32), "{}", backend.isa());
                let passed = |y: f32| if value.is_nan() { y.is_nan() } else { y == f32::INFINITY };
                assert!(out[20..40].iter().all(|&y| passed(y)), "{} lost {value}", backend.isa());
            }
        }
    }
}

#[test]
fn portable_and_avx2_agree_to_the_bit() {
    let Some(avx2) = CpuBackend::with_isa(Isa::Avx2) else { return };
    let portable = CpuBackend::with_isa(Isa::Portable).unwrap();
    let mut noise = Noise(5);
    let (x, w) = (noise.values(7 * 133), noise.weights(45 * 133));
    let run = |backend: &CpuBackend| {
        let mut out = backend.tensor(7, 45).unwrap();
        backend.linear(
            &tensor(backend, &x, 133),
            &backend.weight(&w, 45, 133).unwrap(),
            &mut out,
            Epilogue::Store,
            Grouping::One,
        );
        bits(&backend.read(&out).unwrap())
    };
    assert_eq!(run(&avx2), run(&portable));
}

#[test]
fn swiglu_gates() {
    for backend in backends() {
        for (n, k) in SHAPES {
            for m in [1, 2, 7, 20] {
                let mut noise = Noise((n * k + m) as u64);
                let (x, gate, up) = (noise.values(m * k), noise.weights(n * k), noise.weights(n * k));
                let products = reference::linear(&x, &gate, n, k).into_iter().zip(reference::linear(&x, &up, n, k));
                let want: Vec<f64> = products.map(|(g, u)| reference::silu(g) * u).collect();
                let mut out = backend.tensor(m, n).unwrap();
                let (gate, up) = (backend.weight(&gate, n, k).unwrap(), backend.weight(&up, n, k).unwrap());
                backend.swiglu(&tensor(&backend, &x, k), &gate, &up, &mut out, Grouping::One);
                assert_near(
                    &backend.read(&out).unwrap(),
                    &want,
                    2e-6 * k as f64,
                    &format!("{} [{m}, {n}, {k}]", backend.isa()),
                );
            }
        }
    }
}

#[test]
fn rms_norm_normalises_and_does_not_see_other_rows() {
    for backend in backends() {
        for cols in [1, 15, 16, 192, 1000] {
            let mut noise = Noise(cols as u64);
            let x: Vec<f32> = noise.values(300 * cols).iter().map(|x| x * 3.0).collect();
            let weight = backend.vector(&noise.weights(cols)).unwrap();
            let op = |x: &[f32]| {
                let mut out = backend.tensor(x.len() / cols, cols).unwrap();
                backend.rms_norm(&tensor(&backend, x, cols), &weight, 1e-5, &mut out, Grouping::One);
                backend.read(&out).unwrap().into_owned()
            };
            let what = format!("{} {cols}", backend.isa());
            assert_near(&op(&x), &reference::rms_norm(&x, &weight.0, 1e-5), 2e-6, &what);
            assert_row_invariant(&x, cols, &what, op);
        }
    }
}

#[test]
fn layer_norm_normalises_and_does_not_see_other_rows() {
    for backend in backends() {
        for (cols, offset, bound) in [(1, 0.0, 2e-6), (15, 0.0, 5e-6), (192, 0.0, 5e-6), (1000, 20.0, 4e-5)] {
            let mut noise = Noise(cols as u64);
            // Rows far from zero too, where a one-pass variance would lose its digits.
            let x: Vec<f32> = noise.values(300 * cols).iter().map(|x| x * 3.0 + offset).collect();
            let (weight, bias) =
                (backend.vector(&noise.weights(cols)).unwrap(), backend.vector(&noise.weights(cols)).unwrap());
            let op = |x: &[f32]| {
                let mut out = backend.tensor(x.len() / cols, cols).unwrap();
                backend.layer_norm(&tensor(&backend, x, cols), &weight, &bias, 1e-5, &mut out);
                backend.read(&out).unwrap().into_owned()
            };
            let what = format!("{} {cols}", backend.isa());
            assert_near(&op(&x), &reference::layer_norm(&x, &weight.0, &bias.0, 1e-5), bound, &what);
            assert_row_invariant(&x, cols, &what, op);
        }
    }
}

#[test]
fn group_norm_normalises_images_apart() {
    for backend in backends() {
        for (pixels, channels, groups) in [(1, 4, 2), (9, 6, 3), (576, 96, 32), (1000, 40, 8)] {
            let mut noise = Noise(pixels as u64);
            // Far from zero, where a one-pass variance would lose its digits.
            let x: Vec<f32> = noise.values(2 * pixels * channels).iter().map(|x| 50.0 + x).collect();
            let (weight, bias) =
                (backend.vector(&noise.weights(channels)).unwrap(), backend.vector(&noise.weights(channels)).unwrap());
            for activate in [false, true] {
                let run = |threads| {
                    with_threads(threads, || {
                        let mut out = backend.tensor(2 * pixels, channels).unwrap();
                        let x = tensor(&backend, &x, channels);
                        backend.group_norm(
                            &x,
                            pixels,
                            GroupNorm { groups, eps: 1e-3, activate },
                            &weight,
                            &bias,
                            &mut out,
                        );
                        backend.read(&out).unwrap().into_owned()
                    })
                };
                let want: Vec<f64> = x
                    .chunks(pixels * channels)
                    .flat_map(|x| reference::group_norm(x, groups, 1e-3, &weight.0, &bias.0))
                    .map(|y| if activate { reference::silu(y) } else { y })
                    .collect();
                // At 50 an ulp is 4e-6, divided by a spread of 0.6.
                assert_near(&run(1), &want, 1e-4, &format!("{} [{pixels}, {channels}]", backend.isa()));
                assert_eq!(bits(&run(1)), bits(&run(2)), "{} threads change the image", backend.isa());
            }
        }
    }
}

#[test]
fn conv3x3_sums_the_neighbourhood() {
    for backend in backends() {
        for (h, w, cin, cout) in [(1, 1, 2, 3), (3, 5, 3, 16), (6, 4, 4, 17), (24, 24, 32, 40), (13, 20, 6, 100)] {
            for stride in [1, 2] {
                let mut noise = Noise((h * w + cin) as u64);
                let (x, kernel) = (noise.values(2 * h * w * cin), noise.weights(cout * 9 * cin));
                let bias = backend.vector(&noise.weights(cout)).unwrap();
                let weight = backend.weight(&kernel, cout, 9 * cin).unwrap();
                let run = |threads| {
                    with_threads(threads, || {
                        let mut out = backend.tensor(2 * h * w, cout).unwrap();
                        let x = tensor(&backend, &x, cin);
                        backend.conv3x3(&x, (h, w), stride, &weight, &bias, &mut out);
                        backend.read(&out).unwrap().into_owned()
                    })
                };
                let images = x.chunks(h * w * cin);
                let want: Vec<f64> =
                    images.flat_map(|x| reference::conv3x3(x, (h, w), stride, &kernel, &bias.0)).collect();
                let what = format!("{} {h}x{w}x{cin} -> {cout}, stride {stride}", backend.isa());
                assert_near(&run(1), &want, 1e-5 * cin as f64, &what);
                assert_eq!(bits(&run(1)), bits(&run(2)), "{what}: threads change the image");
            }
        }
    }
}

#[test]
fn add_adds() {
    for backend in backends() {
        let mut x = tensor(&backend, &[1.0, 2.0, 3.0], 3);
        backend.add(&mut x, &tensor(&backend, &[0.5, 0.25, -3.0], 3));
        assert_eq!(*backend.read(&x).unwrap(), [1.5, 2.25, 0.0]);
    }
}

#[test]
fn add_product_rounds_twice() {
    for backend in backends() {
        let of = |x: [f32; 3]| tensor(&backend, &x, 3);
        // (1 + e)^2 - 1 is 2 e once the product is rounded, and e^2 more if it is not.
        let near = 1.0 + f32::EPSILON;
        let (mut x, y) = (of([1.0, 2.0, -1.0]), of([0.5, 3.0, near]));
        backend.add_product(&mut x, &y, &of([4.0, -1.0, near]));
        assert_eq!(*backend.read(&x).unwrap(), [3.0, -1.0, 2.0 * f32::EPSILON]);
    }
}

/// Worst error of a function in units of the last place of the true value.
fn worst_ulp(f: impl Fn(f32) -> f32, truth: impl Fn(f64) -> f64, from: f32, to: f32) -> f64 {
    let steps = 400_000;
    (0..=steps)
        .map(|i| {
            let x = from + (to - from) * i as f32 / steps as f32;
            let want = truth(f64::from(x));
            let ulp = 2f64.powi(want.abs().log2().floor().max(-126.0) as i32 - 23);
            (f64::from(f(x)) - want).abs() / ulp
        })
        .fold(0.0, f64::max)
}

#[test]
fn exp_is_within_two_ulp() {
    let worst = worst_ulp(lanes::exp, f64::exp, -87.3, 88.7);
    assert!(worst <= 2.0, "exp is off by {worst} ulp");
    let worst = worst_ulp(lanes::silu, reference::silu, -80.0, 80.0);
    assert!(worst <= 4.0, "silu is off by {worst} ulp");
    assert_eq!(lanes::exp(0.0), 1.0);
    assert_eq!(lanes::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(lanes::exp(-1000.0), 0.0);
    assert_eq!(lanes::exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(lanes::exp(89.0), f32::INFINITY);
    assert!(lanes::exp(f32::NAN).is_nan());
    assert_eq!(lanes::silu(-200.0), 0.0);
}

#[test]
fn bf16_rounds_as_half_does() {
    for high in 0..=u16::MAX {
        for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let x = f32::from_bits(u32::from(high) << 16 | low);
            let (got, want) = (bf16::from_bits(lanes::to_bf16(x)), bf16::from_f32(x));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{:08x}", x.to_bits());
        }
    }
}

mod attention;

#[test]
fn pixels_attend_to_all_of_their_image() {
    for backend in backends() {
        for (images, pixels, channels) in [(1, 9, 64), (3, 4, 20), (2, 1, 5), (1, 70, 33)] {
            let mut noise = Noise(channels as u64);
            let qkv: [Vec<f32>; 3] = std::array::from_fn(|_| noise.values(images * pixels * channels));
            let [q, k, v] = qkv.each_ref().map(|x| tensor(&backend, x, channels));
            let mut out = backend.tensor(images * pixels, channels).unwrap();
            backend.image_attention(&q, &k, &v, pixels, &mut out);
            let want = reference::image_attention(qkv.each_ref().map(|x| &x[..]), pixels, channels);
            assert_near(&backend.read(&out).unwrap(), &want, 1e-5, &format!("{images} x {pixels} x {channels}"));
        }
    }
}
