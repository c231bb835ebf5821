//! Rotary, cache and attention.

use super::*;
use crate::backend::{Axes, KvFormat, PAGE, Pairing};

/// Shared and own key heads; head dimensions that fill vectors and that do not.
const SHAPES: [AttentionShape; 3] = [
    AttentionShape { heads: 4, kv_heads: 2, head_dim: 24 },
    AttentionShape { heads: 2, kv_heads: 2, head_dim: 32 },
    AttentionShape { heads: 8, kv_heads: 1, head_dim: 76 },
];
const ROTARY: Rotary = Rotary { theta: 100.0, axes: Axes::Two, pairing: Pairing::Halves };
/// The other ways to turn a head.
const ROTARIES: [Rotary; 4] = [
    ROTARY,
    Rotary { axes: Axes::One, ..ROTARY },
    Rotary { pairing: Pairing::Interleaved, ..ROTARY },
    Rotary { axes: Axes::One, pairing: Pairing::Interleaved, ..ROTARY },
];
/// Parents of the nodes of a draft tree: a chain, then a fork, then a second tree.
const PARENTS: [Option<usize>; 21] = {
    let mut parents = [None; 21];
    let mut i = 1;
    while i < 15 {
        parents[i] = Some(if i < 9 { i - 1 } else { i / 2 });
        i += 1;
    }
    while i < 20 {
        parents[i + 1] = Some(i);
        i += 1;
    }
    parents
};
const WIDTH: usize = 7;
const HEIGHT: usize = 9;

/// Branch `index` of an image: its own pages (in an order of their own), its own prompt.
fn table(index: usize, prefix_len: usize, frontier: &[u32]) -> PageTable {
    let grid_pages = (WIDTH * HEIGHT).div_ceil(PAGE);
    let base = (index * 12) as u32;
    PageTable {
        prefix: (0..prefix_len.div_ceil(PAGE) as u32).map(|i| base + i).collect(),
        prefix_len,
        grid: (0..grid_pages as u32).map(|i| base + 9 - i).collect(),
        width: WIDTH,
        frontier: frontier.to_vec(),
        scratch: vec![base + 11, base + 10],
        ..PageTable::default()
    }
}

/// Draft nodes at positions from `first` on, one further for each generation.
fn nodes(first: u32) -> Vec<Slot> {
    let mut nodes: Vec<(u32, u128)> = Vec::new();
    for (slot, parent) in PARENTS.iter().enumerate() {
        let (at, above) = parent.map_or((first, 0), |p| (nodes[p].0 + 1, nodes[p].1));
        nodes.push((at, above | 1 << slot));
    }
    nodes.iter().zip(0..).map(|(&(at, ancestors), slot)| Slot::Scratch { slot, at, ancestors }).collect()
}

/// Three branches with different prompts and frontiers, and every slot of each, draft trees included.
fn layout() -> Layout {
    let frontiers: [&[u32]; 3] = [&[7; 9], &[7, 5, 3, 0, 2, 1, 0, 0, 0], &[7, 7, 6, 6, 0, 0, 7, 0, 0]];
    let sequences: Vec<PageTable> = frontiers.iter().enumerate().map(|(i, f)| table(i, [1, 19, 32][i], f)).collect();
    let mut rows = Vec::new();
    for (s, table) in sequences.iter().enumerate() {
        let slots = (0..table.prefix_len as u32).map(Slot::Prefix);
        let slots = slots.chain((0..(WIDTH * HEIGHT) as u32).map(Slot::Grid)).chain(nodes([0, 23, 37][s]));
        rows.extend(slots.map(|slot| RowPlace { sequence: s as u32, slot }));
    }
    Layout { sequences, rows }
}

/// Every backend with every shape.
fn cases() -> Vec<(CpuBackend, AttentionShape)> {
    backends().into_iter().flat_map(|b| SHAPES.map(|s| (CpuBackend::with_isa(b.isa()).unwrap(), s))).collect()
}

/// The rows of a matrix, their columns from one to another.
fn columns(x: &[f32], cols: usize, range: std::ops::Range<usize>) -> Vec<f32> {
    x.chunks(cols).flat_map(|row| row[range.clone()].to_vec()).collect()
}

/// A matrix of rows `[queries, keys, values]`.
fn side_by_side(shape: AttentionShape, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let rows = q.chunks(shape.query()).zip(k.chunks(shape.key())).zip(v.chunks(shape.key()));
    rows.flat_map(|((q, k), v)| [q, k, v].concat()).collect()
}

fn step(layout: &Layout) -> Step {
    Step { layout: layout.clone(), ..Step::default() }
}

/// q, k and v of all rows, and a cache that holds them in layer 1 of 2.
struct Filled {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    kv: KvPool,
}

fn filled(backend: &CpuBackend, layout: &Layout, shape: AttentionShape, norm: bool, rotary: Rotary) -> Filled {
    let mut noise = Noise(77);
    let m = layout.rows.len();
    let (qd, kd) = (shape.query(), shape.key());
    let v = noise.values(m * kd);
    let q: Vec<f32> = noise.values(m * qd).iter().map(|x| x * 4.0).collect();
    let k = noise.values(m * kd);
    let weights = backend.vector(&noise.weights(shape.head_dim)).unwrap();
    let mut kv = backend.kv_pool(2, 38, shape, KvFormat::Bf16).unwrap();
    let norm = norm.then_some((&weights, &weights, 1e-5));
    let mut qkv = tensor(backend, &side_by_side(shape, &q, &k, &v), shape.qkv());
    backend.rotate_and_store(&mut qkv, norm, rotary, &step(layout), 1, &mut kv);
    let qkv = backend.read(&qkv).unwrap();
    let part = |range| columns(&qkv, shape.qkv(), range);
    Filled { q: part(0..qd), k: part(qd..qd + kd), v, kv }
}

fn attend(backend: &CpuBackend, q: &[f32], layout: &Layout, kv: &KvPool) -> Vec<f32> {
    let shape = kv.shape();
    let rest = vec![f32::NAN; layout.rows.len() * shape.key()];
    let qkv = tensor(backend, &side_by_side(shape, q, &rest, &rest), shape.qkv());
    let mut out = backend.tensor(layout.rows.len(), shape.query()).unwrap();
    backend.attention(&qkv, &step(layout), 1, kv, &mut out);
    backend.read(&out).unwrap().into_owned()
}

#[test]
fn rotary_turns_and_norms_heads() {
    for (backend, shape) in cases() {
        for (norm, rotary) in [false, true].into_iter().flat_map(|norm| ROTARIES.map(|rotary| (norm, rotary))) {
            let layout = layout();
            let got = filled(&backend, &layout, shape, norm, rotary);
            let mut noise = Noise(77);
            let (qd, kd) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
            noise.values(layout.rows.len() * kd);
            let q: Vec<f32> = noise.values(layout.rows.len() * qd).iter().map(|x| x * 4.0).collect();
            let k = noise.values(layout.rows.len() * kd);
            let weights = backend.vector(&noise.weights(shape.head_dim)).unwrap();
            for (before, after) in [(&q, &got.q), (&k, &got.k)] {
                let per_row = before.len() / layout.rows.len() / shape.head_dim;
                let heads = before.chunks(shape.head_dim).zip(after.chunks(shape.head_dim));
                for (i, (before, after)) in heads.enumerate() {
                    let head = if norm {
                        reference::rms_norm(before, &weights.0, 1e-5)
                    } else {
                        before.iter().map(|&x| f64::from(x)).collect()
                    };
                    let RowPlace { sequence, slot } = layout.rows[i / per_row];
                    let want = reference::rotate(&head, rotary, slot, &layout.sequences[sequence as usize]);
                    assert_near(after, &want, 3e-6, &format!("{} {rotary:?} head {i} at {slot:?}", backend.isa()));
                }
            }
        }
    }
}

#[test]
fn attention_sees_what_it_may_and_nothing_else() {
    for (backend, shape) in cases() {
        let layout = layout();
        let Filled { q, k, v, kv } = filled(&backend, &layout, shape, false, ROTARY);
        let got = attend(&backend, &q, &layout, &kv);
        let dim = shape.head_dim;
        for (i, place) in layout.rows.iter().enumerate() {
            for head in 0..shape.heads {
                let at = |row: usize| (row * shape.kv_heads + reference::key_head(shape, head)) * dim;
                let keys: Vec<_> = (0..layout.rows.len())
                    .filter(|&j| layout.rows[j].sequence == place.sequence)
                    .filter(|&j| reference::sees(&layout, place.sequence as usize, place.slot, layout.rows[j].slot))
                    .map(|j| (k[at(j)..][..dim].to_vec(), v[at(j)..][..dim].to_vec()))
                    .collect();
                let start = (i * shape.heads + head) * dim;
                let want = reference::attend(&q[start..][..dim], &keys);
                assert_near(&got[start..][..dim], &want, 1e-5, &format!("{} {place:?} head {head}", backend.isa()));
            }
        }
    }
}

#[test]
fn attention_does_not_see_other_rows() {
    for (backend, shape) in cases() {
        let layout = layout();
        let Filled { q, kv, .. } = filled(&backend, &layout, shape, false, ROTARY);
        let cols = shape.heads * shape.head_dim;
        let whole = attend(&backend, &q, &layout, &kv);
        assert_eq!(bits(&with_threads(1, || attend(&backend, &q, &layout, &kv))), bits(&whole), "one thread");
        for m in [1, 2, 3, 5, 6, 7, 8, 48, 100] {
            for start in 0..7 {
                // Rows of one sequence are adjacent, in any order.
                let mut rows: Vec<usize> = (0..m).map(|i| (i * 29 + start * 31) % layout.rows.len()).collect();
                rows.sort_by_key(|&i| (layout.rows[i].sequence + start as u32) % 3);
                let part = Layout {
                    sequences: layout.sequences.clone(),
                    rows: rows.iter().map(|&i| layout.rows[i]).collect(),
                };
                let queries: Vec<f32> = rows.iter().flat_map(|&i| q[i * cols..][..cols].to_vec()).collect();
                let got = attend(&backend, &queries, &part, &kv);
                for (got, &i) in got.chunks(cols).zip(&rows) {
                    let want = &whole[i * cols..][..cols];
                    assert_eq!(bits(got), bits(want), "{} {:?} among {m}", backend.isa(), layout.rows[i]);
                }
            }
        }
    }
}

#[test]
fn masked_slots_do_not_change_a_bit() {
    for (backend, shape) in cases() {
        let layout = layout();
        let Filled { q, k, v, mut kv } = filled(&backend, &layout, shape, false, ROTARY);
        let (qd, kd) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        for i in (0..layout.rows.len()).step_by(5) {
            let place = layout.rows[i];
            let one = Layout { sequences: layout.sequences.clone(), rows: vec![place] };
            let own = &q[i * qd..][..qd];
            let before = attend(&backend, own, &one, &kv);
            let hidden: Vec<usize> = (0..layout.rows.len())
                .filter(|&j| {
                    let key = layout.rows[j];
                    key.sequence != place.sequence
                        || !reference::sees(&layout, place.sequence as usize, place.slot, key.slot)
                })
                .collect();
            let rows =
                Layout { sequences: layout.sequences.clone(), rows: hidden.iter().map(|&j| layout.rows[j]).collect() };
            let huge = vec![-3e38; hidden.len() * kd];
            let queries = vec![0.0; hidden.len() * qd];
            kv.store(1, &rows, &side_by_side(shape, &queries, &huge, &huge));
            assert_eq!(bits(&attend(&backend, own, &one, &kv)), bits(&before), "{} {place:?}", backend.isa());
            kv.store(1, &layout, &side_by_side(shape, &q, &k, &v));
        }
    }
}

#[test]
fn copied_pages_hold_the_same_in_all_layers() {
    let (backend, shape) = (CpuBackend::new(), SHAPES[0]);
    let mut layout = layout();
    let Filled { q, mut kv, .. } = filled(&backend, &layout, shape, false, ROTARY);
    let want = attend(&backend, &q, &layout, &kv);
    let moved = layout.sequences[1].grid[0];
    backend.copy_page(&mut kv, moved, 36);
    layout.sequences[1].grid[0] = 36;
    assert_eq!(bits(&attend(&backend, &q, &layout, &kv)), bits(&want));
}
