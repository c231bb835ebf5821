//! Norms of heads, the rotary embedding and the cache: the bits of the CPU backend.

use half::bf16;
use weft::backend::cuda::KvPool;
use weft::backend::{AttentionShape, Axes, Backend, KvFormat, KvScales, PAGE, Pairing, Rotary, RowPlace, Slot};

use crate::layouts::{SHAPES, Sequences, set, tree};
use crate::support::*;

const FORMS: [(usize, usize, &[u32]); 3] = [(19, 7, &[7, 5, 3, 0, 2]), (1, 5, &[5; 7]), (33, 9, &[0; 3])];

/// Rotary embeddings of all forms.
fn rotaries() -> impl Iterator<Item = Rotary> {
    let axes = [Axes::Two, Axes::One];
    axes.into_iter()
        .flat_map(|axes| [Pairing::Halves, Pairing::Interleaved].map(|pairing| Rotary { theta: 1e4, axes, pairing }))
}

/// Rows whose key heads hold the numbers of the query head that uses them first.
fn rows(shape: AttentionShape, count: usize, noise: &mut Noise) -> Vec<f32> {
    let group = shape.heads / shape.kv_heads;
    let mut rows = Vec::new();
    for _ in 0..count {
        let queries = noise.values(shape.query());
        let keys = queries.chunks(group * shape.head_dim).flat_map(|heads| heads[..shape.head_dim].to_vec());
        let keys: Vec<f32> = keys.collect();
        rows.extend([queries, keys, noise.values(shape.key())].concat());
    }
    rows
}

#[test]
fn heads_and_their_slots_have_the_bits_of_the_oracle() {
    let (gpu, oracle) = (backend(), cpu());
    let sequences = Sequences::of(&FORMS);
    let places = sequences.slots(|index| tree(20, [3, 0, 11][index]));
    for shape in SHAPES {
        for (case, rotary) in rotaries().enumerate() {
            // The table of a cache is as large as the most that it may need: both formats, both numbers of axes.
            let format = [Format::Bf16, Format::Fp8, Format::Fp8, Format::Bf16][case];
            let mut noise = Noise(case as u64 + 11);
            let qkv = rows(shape, places.len(), &mut noise);
            let weights = noise.weights(shape.head_dim);
            let what = format!("{shape:?} {rotary:?} {format:?}");

            let norm = oracle.vector(&weights).unwrap();
            // Queries and keys must be normed alike here; that they use their own weights is another test's.
            let mut want = tensor(&oracle, &qkv, shape.qkv());
            let mut kv = oracle.kv_pool(2, sequences.pages, shape, KvFormat::Bf16).unwrap();
            let step = set(&oracle, sequences.step(&places));
            let norms = (case % 2 == 0).then_some((&norm, &norm, 1e-5));
            oracle.rotate_and_store(&mut want, norms, rotary, &step, 1, &mut kv);
            let want = read(&oracle, &want);

            let norm = gpu.vector(&weights).unwrap();
            let mut got = tensor(&*gpu, &qkv, shape.qkv());
            let mut kv = match format {
                Format::Bf16 => gpu.kv_pool(2, sequences.pages, shape, KvFormat::Bf16).unwrap(),
                Format::Fp8 => gpu.kv_pool(2, sequences.pages, shape, KvFormat::Fp8(format.scales())).unwrap(),
            };
            let step = set(&*gpu, sequences.step(&places));
            let norms = (case % 2 == 0).then_some((&norm, &norm, 1e-5));
            gpu.rotate_and_store(&mut got, norms, rotary, &step, 1, &mut kv);
            let got = read(&*gpu, &got);

            for (row, place) in places.iter().enumerate() {
                let of = |x: &[f32]| x[row * shape.qkv()..][..shape.query()].to_vec();
                assert_same(&of(&got), &of(&want), &format!("{what}: queries at {place:?}"));
            }
            assert_slots(&sequences, &places, shape, &kv, &want, &qkv, format, &what);
        }
    }
}

/// How a cache stores numbers.
#[derive(Clone, Copy, Debug)]
enum Format {
    Bf16,
    Fp8,
}

impl Format {
    fn scales(self) -> KvScales {
        match self {
            Format::Bf16 => KvScales { keys: 1.0, values: 1.0 },
            // So that some keys are too large, and some values subnormal.
            Format::Fp8 => KvScales { keys: 1.0 / 512.0, values: 2.0 },
        }
    }

    fn alignment(self) -> usize {
        match self {
            Format::Bf16 => 8,
            Format::Fp8 => 16,
        }
    }

    /// The nearest number, of two the even one.
    fn round(self, x: f32) -> f32 {
        match self {
            Format::Bf16 => bf16::from_f32(x).to_f32(),
            Format::Fp8 => {
                let exponent = (x.abs().log2().floor() as i32).max(-6);
                let step = 2f32.powi(exponent - 3);
                ((x / step).round_ties_even() * step).clamp(-448.0, 448.0)
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
/// Asserts that the cache holds the keys, which are those queries that `turned` has, and the values of `qkv`.
fn assert_slots(
    sequences: &Sequences,
    places: &[RowPlace],
    shape: AttentionShape,
    kv: &KvPool,
    turned: &[f32],
    qkv: &[f32],
    format: Format,
    what: &str,
) {
    let padded = shape.head_dim.next_multiple_of(format.alignment());
    let pages: Vec<Vec<f32>> = (0..sequences.pages).map(|page| kv.read(1, page).unwrap()).collect();
    let stored = |x: &[f32], scale: f32| -> Vec<f32> {
        let zeros = vec![0.0; padded - x.len()];
        x.iter().chain(&zeros).map(|&x| format.round(x / scale) * scale).collect()
    };
    for (row, place) in places.iter().enumerate() {
        let table = &sequences.tables[place.sequence as usize];
        let (list, slot) = match place.slot {
            Slot::Prefix(slot) | Slot::Open { slot, .. } => (&table.prefix, slot),
            Slot::Grid(slot) => (&table.grid, slot),
            Slot::Scratch { slot, .. } => (&table.scratch, slot),
        };
        let page = &pages[list[slot as usize / PAGE] as usize];
        for head in 0..shape.kv_heads {
            let side =
                |side: usize| page[((head * 2 + side) * PAGE + slot as usize % PAGE) * padded..][..padded].to_vec();
            let query = row * shape.qkv() + head * (shape.heads / shape.kv_heads) * shape.head_dim;
            let value = row * shape.qkv() + shape.query() + shape.key() + head * shape.head_dim;
            let key = stored(&turned[query..][..shape.head_dim], format.scales().keys);
            let value = stored(&qkv[value..][..shape.head_dim], format.scales().values);
            assert_same(&side(0), &key, &format!("{what}: key {head} of {place:?}"));
            assert_same(&side(1), &value, &format!("{what}: value {head} of {place:?}"));
        }
    }
}

#[test]
fn queries_and_keys_have_norms_of_their_own() {
    let (gpu, oracle) = (backend(), cpu());
    let sequences = Sequences::of(&FORMS[..1]);
    let places = sequences.slots(|_| Vec::new());
    let shape = SHAPES[1];
    let rotary = Rotary { theta: 1e4, axes: Axes::One, pairing: Pairing::Halves };
    let mut noise = Noise(3);
    let qkv = noise.values(places.len() * shape.qkv());
    let (query, key) = (noise.weights(shape.head_dim), noise.weights(shape.head_dim));

    // What is normed like keys, as queries.
    let keys: Vec<f32> = qkv.chunks(shape.qkv()).flat_map(|row| row[shape.query()..][..shape.key()].to_vec()).collect();
    let as_queries = AttentionShape { heads: shape.kv_heads, ..shape };
    let mut turned = Vec::new();
    for (data, shape, weights) in [(&qkv, shape, &query), (&wide(&keys, as_queries), as_queries, &key)] {
        let norm = oracle.vector(weights).unwrap();
        let mut x = tensor(&oracle, data, shape.qkv());
        let mut kv = oracle.kv_pool(1, sequences.pages, shape, KvFormat::Bf16).unwrap();
        let step = set(&oracle, sequences.step(&places));
        oracle.rotate_and_store(&mut x, Some((&norm, &norm, 1e-6)), rotary, &step, 0, &mut kv);
        turned.push(read(&oracle, &x));
    }

    let norms = (gpu.vector(&query).unwrap(), gpu.vector(&key).unwrap());
    let mut x = tensor(&*gpu, &qkv, shape.qkv());
    let mut kv = gpu.kv_pool(1, sequences.pages, shape, KvFormat::Bf16).unwrap();
    let step = set(&*gpu, sequences.step(&places));
    gpu.rotate_and_store(&mut x, Some((&norms.0, &norms.1, 1e-6)), rotary, &step, 0, &mut kv);
    let got = read(&*gpu, &x);
    let table = &sequences.tables[0];
    for (row, place) in places.iter().enumerate() {
        let queries = |x: &[f32]| x[row * shape.qkv()..][..shape.query()].to_vec();
        assert_same(&queries(&got), &queries(&turned[0]), &format!("queries at {place:?}"));
        let (list, slot) = match place.slot {
            Slot::Prefix(slot) | Slot::Open { slot, .. } => (&table.prefix, slot as usize),
            Slot::Grid(slot) | Slot::Scratch { slot, .. } => (&table.grid, slot as usize),
        };
        let page = kv.read(0, list[slot / PAGE] as usize).unwrap();
        let want = &turned[1][row * as_queries.qkv()..][..shape.head_dim];
        let want: Vec<f32> = want.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        assert_same(&page[slot % PAGE * shape.head_dim..][..shape.head_dim], &want, &format!("key at {place:?}"));
    }
}

/// Rows `[queries, zeros, zeros]`.
fn wide(queries: &[f32], shape: AttentionShape) -> Vec<f32> {
    let zeros = vec![0.0; 2 * shape.key()];
    queries.chunks(shape.query()).flat_map(|row| [row, &zeros].concat()).collect()
}

#[test]
fn a_copied_page_is_the_same_in_all_layers() {
    let gpu = backend();
    let sequences = Sequences::of(&FORMS);
    let places = sequences.slots(|_| Vec::new());
    let shape = SHAPES[3];
    let rotary = Rotary { theta: 1e4, axes: Axes::Two, pairing: Pairing::Halves };
    let mut kv = gpu.kv_pool(3, sequences.pages, shape, KvFormat::Bf16).unwrap();
    let step = set(&*gpu, sequences.step(&places));
    for layer in 0..3 {
        let mut x = tensor(&*gpu, &Noise(layer as u64).values(places.len() * shape.qkv()), shape.qkv());
        gpu.rotate_and_store(&mut x, None, rotary, &step, layer, &mut kv);
    }
    let (from, to) = (sequences.tables[1].grid[1], sequences.pages - 1);
    let before: Vec<_> = (0..3).map(|layer| kv.read(layer, to - 1).unwrap()).collect();
    gpu.copy_page(&mut kv, from, to as u32);
    for (layer, before) in before.iter().enumerate() {
        let copied = kv.read(layer, to).unwrap();
        assert!(copied.iter().any(|x| *x != 0.0));
        assert_eq!(copied, kv.read(layer, from as usize).unwrap(), "layer {layer}");
        assert_eq!(*before, kv.read(layer, to - 1).unwrap(), "the page before, layer {layer}");
    }
}

#[test]
fn a_pool_has_the_bytes_that_were_announced() {
    let gpu = backend();
    for shape in SHAPES {
        let padded = shape.head_dim.next_multiple_of(8);
        let values = 3 * 5 * shape.kv_heads * 2 * PAGE * padded * 2;
        let table = (5 * PAGE + 1) * shape.head_dim * 4;
        assert_eq!(gpu.kv_bytes(3, 5, shape, KvFormat::Bf16), (values + table + 4 * 4096) as u64);
        let values = 3 * 5 * shape.kv_heads * 2 * PAGE * shape.head_dim.next_multiple_of(16);
        assert_eq!(gpu.kv_bytes(3, 5, shape, KvFormat::Fp8(KvScales::default())), (values + table + 4 * 4096) as u64);
        let (free, _) = gpu.device().memory().unwrap();
        let pool = gpu.kv_pool(3, 5, shape, KvFormat::Bf16).unwrap();
        let (left, _) = gpu.device().memory().unwrap();
        assert!(free - left >= gpu.kv_bytes(3, 5, shape, KvFormat::Bf16), "{free} bytes before, {left} after");
        drop(pool);
    }
    let odd = AttentionShape { heads: 2, kv_heads: 2, head_dim: 72 };
    let error = gpu.kv_pool(1, 1, odd, KvFormat::Bf16).err().expect("there is no kernel for 72 dimensions").to_string();
    assert!(error.contains("72"), "{error}");
}
