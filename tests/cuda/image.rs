//! The image decoder's ops against the CPU backend.

use half::bf16;
use weft::backend::{Backend, GroupNorm};

use crate::support::{Noise, assert_near, backend, bits, cpu, tensor};

/// A convolution over `images` images.
#[derive(Clone, Copy, Debug)]
struct Shape {
    images: usize,
    size: (usize, usize),
    stride: usize,
    cin: usize,
    cout: usize,
}

impl Shape {
    fn square(side: usize, cin: usize, cout: usize) -> Self {
        Shape { images: 1, size: (side, side), stride: 1, cin, cout }
    }

    fn depth(&self) -> usize {
        9 * self.cin
    }

    fn inputs(&self) -> usize {
        self.images * self.size.0 * self.size.1
    }

    fn outputs(&self) -> usize {
        self.images * self.size.0.div_ceil(self.stride) * self.size.1.div_ceil(self.stride)
    }
}

/// The embedded model's, ragged ones, and published ones.
fn shapes() -> Vec<Shape> {
    let square = Shape::square;
    vec![
        square(24, 16, 96),
        square(48, 96, 64),
        square(48, 32, 3),
        square(3, 64, 512),
        square(16, 512, 512),
        square(40, 128, 128),
        square(1, 1, 1),
        square(1, 4, 17),
        Shape { images: 2, size: (5, 9), stride: 1, cin: 3, cout: 20 },
        Shape { images: 3, size: (7, 6), stride: 2, cin: 12, cout: 70 },
        Shape { images: 2, size: (9, 7), stride: 2, cin: 6, cout: 16 },
        Shape { images: 1, size: (17, 33), stride: 2, cin: 3, cout: 32 },
        Shape { images: 1, size: (6, 5), stride: 1, cin: 7, cout: 5 },
    ]
}

fn convolved<B: Backend>(b: &B, shape: Shape, x: &[f32], weight: &[bf16], bias: &[bf16]) -> Vec<f32> {
    let (w, bias) = (b.weight(weight, shape.cout, shape.depth()).unwrap(), b.vector(bias).unwrap());
    // Behind the images lie NaN.
    let mut x_tensor = tensor(b, &vec![f32::NAN; (shape.inputs() + 3) * shape.cin], shape.cin);
    b.upload(x, &mut x_tensor);
    let mut out = b.tensor(shape.outputs(), shape.cout).unwrap();
    b.conv3x3(&x_tensor, shape.size, shape.stride, &w, &bias, &mut out);
    b.read(&out).unwrap().into_owned()
}

/// Small integers: every product and sum is exact, in any order, so that nothing but the right sum will do.
#[test]
fn convolutions_of_integers_are_exact() {
    let (cuda, cpu) = (backend(), cpu());
    for shape in shapes() {
        let mut noise = Noise(shape.cin as u64);
        let x: Vec<f32> = noise.values(shape.inputs() * shape.cin).iter().map(|x| (x * 4.0).round()).collect();
        let mut integers = |n: usize, scale: f32| -> Vec<bf16> {
            noise.values(n).iter().map(|x| bf16::from_f32((x * scale).round())).collect()
        };
        let (weight, bias) = (integers(shape.cout * shape.depth(), 3.0), integers(shape.cout, 100.0));
        let got = convolved(&*cuda, shape, &x, &weight, &bias);
        assert!(got == convolved(&cpu, shape, &x, &weight, &bias), "{shape:?}");
    }
}

/// Products of bf16 are exact in f32. With S the sum of their sizes, a chain of d additions loses at most d u S: on the CPU
/// pairs are added one after another (u = 2^-24), the tensor cores add 16 products and the sum before, whose last bits are
/// theirs to choose (u = 2^-23). Both add the bias once.
#[test]
fn convolutions_round_as_the_contract_says() {
    let (cuda, cpu) = (backend(), cpu());
    for shape in
        [Shape::square(24, 16, 96), Shape::square(9, 128, 130), Shape { stride: 2, ..Shape::square(11, 3, 33) }]
    {
        let mut noise = Noise(9);
        let x = noise.values(shape.inputs() * shape.cin);
        let (weight, bias) = (noise.weights(shape.cout * shape.depth()), noise.weights(shape.cout));
        let got = convolved(&*cuda, shape, &x, &weight, &bias);
        let want = convolved(&cpu, shape, &x, &weight, &bias);
        let positive = |w: &[bf16]| w.iter().map(|w| bf16::from_f32(w.to_f32().abs())).collect::<Vec<_>>();
        let sizes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        let sizes = convolved(&cpu, shape, &sizes, &positive(&weight), &positive(&bias));
        let k = shape.depth() as f32;
        let unit = (k / 2.0 + 9.0) * 2.0_f32.powi(-24) + (k / 16.0 + 17.0) * 2.0_f32.powi(-23);
        for (i, ((got, want), size)) in got.iter().zip(&want).zip(&sizes).enumerate() {
            assert!((got - want).abs() <= unit * size, "{shape:?}: value {i} is {got}, not {want}");
        }
    }
}

#[test]
fn an_image_does_not_depend_on_its_neighbours() {
    let cuda = backend();
    let shape = Shape { images: 3, size: (5, 7), stride: 1, cin: 20, cout: 24 };
    let mut noise = Noise(4);
    let x = noise.values(shape.inputs() * shape.cin);
    let (weight, bias) = (noise.weights(shape.cout * shape.depth()), noise.weights(shape.cout));
    let together = convolved(&*cuda, shape, &x, &weight, &bias);
    let (inputs, outputs) = (x.len() / 3, together.len() / 3);
    let alone = convolved(&*cuda, Shape { images: 1, ..shape }, &x[inputs..2 * inputs], &weight, &bias);
    assert_eq!(bits(&alone), bits(&together[outputs..2 * outputs]));
}

fn group_normed<B: Backend>(
    b: &B,
    x: &[f32],
    pixels: usize,
    norm: GroupNorm,
    weight: &[bf16],
    bias: &[bf16],
) -> Vec<f32> {
    let channels = weight.len();
    let (weight, bias) = (b.vector(weight).unwrap(), b.vector(bias).unwrap());
    let mut out = b.tensor(x.len() / channels, channels).unwrap();
    b.group_norm(&tensor(b, x, channels), pixels, norm, &weight, &bias, &mut out);
    b.read(&out).unwrap().into_owned()
}

/// With a = weight / deviation, out = a x + (bias - mean a). Sums of at most 300 terms in f32 (CPU: 256 pixels; device: the
/// pixels of a thread, its neighbours, a group's channels) and f64 beyond leave mean and deviation within 300 u of the
/// largest value and of themselves, u = 2^-24; a, the shift and the result are rounded a few times more. SiLU enlarges an
/// error by at most 1.1 and adds 4 u.
fn group_norm_bound(x: f32, largest: f32, y: f32, a: f32) -> f32 {
    2.0_f32.powi(-24) * (2.0 * 1.1 * (300.0 * a * largest + 300.0 * y + 4.0 * a * x) + 8.0 * y)
}

#[test]
fn groups_of_channels_are_normalised() {
    let (cuda, cpu) = (backend(), cpu());
    // Images, pixels, channels, groups, offset of the values.
    let cases = [
        (1, 24 * 24, 96, 8, 0.0),
        (1, 96 * 96, 32, 8, 0.0),
        (1, 256, 512, 32, 0.0),
        (1, 64 * 64, 128, 32, 2.0),
        (3, 35, 64, 8, 0.0),
        (2, 100, 30, 5, 0.0),
        (1, 40, 7, 7, 0.0),
        (2, 1, 8, 2, 0.0),
        // Far from zero: squares of the values would swallow the variance.
        (1, 1000, 64, 4, 1000.0),
    ];
    for (images, pixels, channels, groups, offset) in cases {
        let mut noise = Noise(pixels as u64);
        let x: Vec<f32> = noise.values(images * pixels * channels).iter().map(|x| x + offset).collect();
        let (weight, bias) = (noise.weights(channels), noise.weights(channels));
        for activate in [false, true] {
            let norm = GroupNorm { groups, eps: 1e-6, activate };
            let got = group_normed(&*cuda, &x, pixels, norm, &weight, &bias);
            let want = group_normed(&cpu, &x, pixels, norm, &weight, &bias);
            let largest = x.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                // The deviation of uniform values in -1..1 is 0.58; of two values it may be anything.
                let a = weight[i % channels].to_f32().abs() / if pixels > 1 { 0.4 } else { 0.01 };
                let tolerance = group_norm_bound(x[i].abs(), largest, a * 2.0 + 1.0, a);
                let what = format!("{images} x {pixels} x {channels} in {groups}, {norm:?}");
                assert!((got - want).abs() <= tolerance, "{what}: value {i} is {got}, not {want}");
            }
        }
    }
}

#[test]
fn images_are_doubled() {
    let (cuda, cpu) = (backend(), cpu());
    fn doubled<B: Backend>(b: &B, x: &[f32], size: (usize, usize), channels: usize) -> Vec<f32> {
        let mut out = b.tensor(4 * x.len() / channels, channels).unwrap();
        b.upsample(&tensor(b, x, channels), size, &mut out);
        b.read(&out).unwrap().into_owned()
    }
    for (images, size, channels) in [(1, (24, 24), 96), (2, (3, 5), 8), (3, (2, 1), 3), (1, (64, 64), 128)] {
        let x = Noise(1).values(images * size.0 * size.1 * channels);
        let (got, want) = (doubled(&*cuda, &x, size, channels), doubled(&cpu, &x, size, channels));
        assert_eq!(bits(&got), bits(&want), "{images} x {size:?} x {channels}");
    }
}

fn attended<B: Backend>(b: &B, qkv: &[Vec<f32>; 3], pixels: usize, channels: usize) -> Vec<f32> {
    let [q, k, v] = qkv.each_ref().map(|x| tensor(b, x, channels));
    let mut out = b.tensor(qkv[0].len() / channels, channels).unwrap();
    b.image_attention(&q, &k, &v, pixels, &mut out);
    b.read(&out).unwrap().into_owned()
}

/// The device rounds each weight of the softmax to bf16, by at most 2^-9 of itself, and so the result by 2^-9 of the largest
/// value; scores of size at most 3 sqrt(channels) are sums of `channels` products whose order differs: their error of
/// 2 channels u times that, u = 2^-23, and that of the exponentials, 4 u, come on top, twice because both sums have it.
#[test]
fn pixels_attend_to_their_image() {
    let (cuda, cpu) = (backend(), cpu());
    for (images, pixels, channels) in [(1, 16, 64), (2, 33, 20), (1, 5, 4), (1, 256, 512), (3, 1, 8), (1, 100, 100)] {
        let mut noise = Noise(channels as u64);
        let [q, k, v] = [3.0, 3.0, 1.0]
            .map(|size| noise.values(images * pixels * channels).iter().map(|x| x * size).collect::<Vec<_>>());
        let qkv = [q, k, v];
        let (got, want) = (attended(&*cuda, &qkv, pixels, channels), attended(&cpu, &qkv, pixels, channels));
        let score = 3.0 * (channels as f32).sqrt() * 2.0 * channels as f32 * 2.0_f32.powi(-23);
        let bound = 2.0_f32.powi(-9) + 2.0 * (score + 4.0 * 2.0_f32.powi(-23));
        assert_near(&got, &want, |_| bound, &format!("{images} x {pixels} x {channels}"));
    }
}
