//! Every op as its definition reads, in f64, for the tests of the backends.

use super::{AttentionShape, Axes, Layout, PageTable, Pairing, Rotary, Slot};
use half::bf16;

/// What a bf16 operand keeps of a value.
pub fn rounded(x: f32) -> f64 {
    bf16::from_f32(x).to_f64()
}

/// `x w^T` for `[m, k]` and `[n, k]`.
pub fn linear(x: &[f32], w: &[bf16], n: usize, k: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks(k) {
        for w in w.chunks(k).take(n) {
            out.push(x.iter().zip(w).map(|(&x, w)| rounded(x) * w.to_f64()).sum());
        }
    }
    out
}

/// `x / (1 + e^-x)`.
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `x / sqrt(mean(x^2) + eps) * weight`, row by row.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks(weight.len()) {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)));
    }
    out
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias`, row by row.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks(weight.len()) {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        let weighted = x.iter().zip(weight).zip(bias);
        out.extend(weighted.map(|((&x, &w), &b)| (f64::from(x) - mean) * scale * f64::from(w) + f64::from(b)));
    }
    out
}

/// Softmax attention with one head over the `pixels` rows of each image.
pub fn image_attention(qkv: [&[f32]; 3], pixels: usize, channels: usize) -> Vec<f64> {
    let [q, k, v] = qkv;
    let mut out = Vec::new();
    for (row, q) in q.chunks(channels).enumerate() {
        let image = row / pixels * pixels * channels;
        let of = |x: &[f32], pixel: usize, c: usize| rounded(x[image + pixel * channels + c]);
        let score = |pixel| (0..channels).map(|c| rounded(q[c]) * of(k, pixel, c)).sum::<f64>();
        let weights: Vec<f64> = (0..pixels).map(|p| (score(p) / (channels as f64).sqrt()).exp()).collect();
        let total: f64 = weights.iter().sum();
        out.extend((0..channels).map(|c| (0..pixels).map(|p| weights[p] * of(v, p, c)).sum::<f64>() / total));
    }
    out
}

/// The rotary embedding of one head at a slot of a sequence.
pub fn rotate(head: &[f64], rotary: Rotary, slot: Slot, table: &PageTable) -> Vec<f64> {
    let at = |p: u32| (p as usize / table.width + 1, p as usize % table.width + 1);
    let turns = match (rotary.axes, slot) {
        (Axes::One, Slot::Prefix(slot) | Slot::Open { slot, .. }) => vec![slot as usize],
        (Axes::One, Slot::Grid(p) | Slot::Scratch { at: p, .. }) => vec![table.prefix_len + p as usize],
        (Axes::Two, Slot::Prefix(_) | Slot::Open { at: None, .. }) => vec![0, 0],
        (Axes::Two, Slot::Grid(p) | Slot::Scratch { at: p, .. } | Slot::Open { at: Some(p), .. }) => {
            vec![at(p).0, at(p).1]
        }
    };
    let n = head.len() / turns.len();
    let mut out = head.to_vec();
    for (part, coordinate) in turns.into_iter().enumerate() {
        for j in 0..n / 2 {
            let (first, second) = match rotary.pairing {
                Pairing::Halves => (part * n + j, part * n + j + n / 2),
                Pairing::Interleaved => (part * n + 2 * j, part * n + 2 * j + 1),
            };
            let angle = coordinate as f64 * f64::from(rotary.theta).powf(-(j as f64) / (n / 2) as f64);
            let (a, b) = (head[first], head[second]);
            out[first] = a * angle.cos() - b * angle.sin();
            out[second] = b * angle.cos() + a * angle.sin();
        }
    }
    out
}

/// Does a row at `slot` see `key`?
pub fn sees(layout: &Layout, sequence: usize, slot: Slot, key: Slot) -> bool {
    let table = &layout.sequences[sequence];
    let key = if let Slot::Open { slot, .. } = key { Slot::Prefix(slot) } else { key };
    match (slot, key) {
        (_, Slot::Open { .. }) => unreachable!("it is a slot of the prefix"),
        (Slot::Prefix(i), Slot::Prefix(j)) => j <= i,
        (Slot::Prefix(_), _) => false,
        (_, Slot::Prefix(j)) => (j as usize) < table.prefix_len,
        (Slot::Grid(p), Slot::Grid(j)) => {
            let at = |p: u32| (p as usize / table.width, p as usize % table.width);
            let ((r, c), (kr, kc)) = (at(p), at(j));
            if kr == r { kc <= c } else { kr < r && kc < table.frontier[kr] as usize }
        }
        (Slot::Open { .. }, _) | (Slot::Grid(_), Slot::Scratch { .. }) => false,
        (Slot::Scratch { at, .. }, Slot::Grid(j)) => {
            j < at && j as usize % table.width < table.frontier[j as usize / table.width] as usize
        }
        (Slot::Scratch { ancestors, .. }, Slot::Scratch { slot, .. }) => ancestors >> slot & 1 == 1,
    }
}

/// Softmax attention of one query head over the keys and values it sees.
pub fn attend(q: &[f32], keys: &[(Vec<f32>, Vec<f32>)]) -> Vec<f64> {
    let dot = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| rounded(q) * rounded(k)).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(|(k, _)| dot(k) / (q.len() as f64).sqrt()).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let p: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let sum: f64 = p.iter().sum();
    (0..q.len()).map(|d| p.iter().zip(keys).map(|(p, (_, v))| p / sum * rounded(v[d])).sum()).collect()
}

/// The query heads that share a key head with `head` use this one.
pub fn key_head(shape: AttentionShape, head: usize) -> usize {
    head / (shape.heads / shape.kv_heads)
}

/// 3x3 convolution with padding 1 over one `[h, w, cin]` image.
pub fn conv3x3(x: &[f32], (h, w): (usize, usize), stride: usize, kernel: &[bf16], bias: &[f32]) -> Vec<f64> {
    let cin = x.len() / (h * w);
    let mut out = Vec::new();
    for y in (0..h).step_by(stride) {
        for px in (0..w).step_by(stride) {
            for (kernel, &bias) in kernel.chunks(9 * cin).zip(bias) {
                let mut sum = f64::from(bias);
                for (tap, kernel) in kernel.chunks(cin).enumerate() {
                    let (iy, ix) = (y + tap / 3, px + tap % 3);
                    if (1..=h).contains(&iy) && (1..=w).contains(&ix) {
                        let pixel = &x[((iy - 1) * w + ix - 1) * cin..][..cin];
                        sum += pixel.iter().zip(kernel).map(|(&x, k)| rounded(x) * k.to_f64()).sum::<f64>();
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

/// GroupNorm of one image `[pixels, channels]`, before any activation.
pub fn group_norm(x: &[f32], groups: usize, eps: f64, weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let channels = weight.len();
    let group = |i: usize| i % channels / (channels / groups);
    let mut out = vec![0.0; x.len()];
    for g in 0..groups {
        let members: Vec<usize> = (0..x.len()).filter(|&i| group(i) == g).collect();
        let mean = members.iter().map(|&i| f64::from(x[i])).sum::<f64>() / members.len() as f64;
        let spread = members.iter().map(|&i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / members.len() as f64;
        for i in members {
            let c = i % channels;
            out[i] = (f64::from(x[i]) - mean) / (spread + eps).sqrt() * f64::from(weight[c]) + f64::from(bias[c]);
        }
    }
    out
}
