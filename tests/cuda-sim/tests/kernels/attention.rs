use crate::args;
use crate::harness::{Outcome, Session, plane, run};
use crate::numbers::{Noise, bf16s, close, wide};

const HEAD: usize = 64;
const PAGE: usize = 16;

/// Softmax attention of one query over rows of keys and values.
pub fn reference(query: &[f64], keys: &[&[f64]], values: &[&[f64]], scale: f64) -> Vec<f64> {
    let dot = |key: &&[f64]| query.iter().zip(*key).map(|(q, k)| q * k).sum::<f64>() * scale;
    let scores: Vec<f64> = keys.iter().map(dot).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    let column = |c: usize| values.iter().zip(&weights).map(|(v, w)| v[c] * w).sum::<f64>() / total;
    (0..query.len()).map(column).collect()
}

pub fn paged(s: &mut Session) -> Outcome {
    let (heads, kv_heads, max_pages) = (8, 2, 6);
    let lengths = [37_i32, 1, 96];
    let pages = 20;
    let q = bf16s(1, lengths.len() * heads * HEAD);
    let (k, v) = (bf16s(2, pages * PAGE * kv_heads * HEAD), bf16s(3, pages * PAGE * kv_heads * HEAD));
    // Pages in no order, none used twice; places past a sequence's end point nowhere.
    let mut free: Vec<i32> = (0..pages as i32).collect();
    let mut noise = Noise::new(4);
    let mut table = vec![i32::MAX; lengths.len() * max_pages];
    for (seq, &length) in lengths.iter().enumerate() {
        for page in 0..(length as usize).div_ceil(PAGE) {
            table[seq * max_pages + page] = free.swap_remove(noise.below(free.len() as u32) as usize);
        }
    }
    let out = s.alloc::<f32>(lengths.len() * heads * HEAD);
    let (dq, dk, dv, dt, dl) = (s.upload(&q), s.upload(&k), s.upload(&v), s.upload(&table), s.upload(&lengths));
    let args = args![out, dq, dk, dv, dt, dl, heads as i32, kv_heads as i32, max_pages as i32, 0.125f32];
    s.launch("paged_attention", plane(heads, lengths.len(), 128), &args)?;

    let (q, k, v) = (wide(&q), wide(&k), wide(&v));
    let mut want = Vec::new();
    for (seq, &length) in lengths.iter().enumerate() {
        for head in 0..heads {
            let row = |t: usize| {
                let page = table[seq * max_pages + t / PAGE] as usize;
                ((page * PAGE + t % PAGE) * kv_heads + head / (heads / kv_heads)) * HEAD
            };
            let keys: Vec<&[f64]> = (0..length as usize).map(|t| &k[row(t)..][..HEAD]).collect();
            let values: Vec<&[f64]> = (0..length as usize).map(|t| &v[row(t)..][..HEAD]).collect();
            want.extend(reference(&q[(seq * heads + head) * HEAD..][..HEAD], &keys, &values, 0.125));
        }
    }
    close("out", &s.download::<f32>(out, want.len()), &want, 1e-4, 1e-4)
}

#[test]
fn over_pages_with_grouped_queries() {
    run("attention", paged);
}
