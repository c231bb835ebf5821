//! Attention over paged, ragged caches, against the CPU backend.

use half::bf16;
use weft::backend::cuda::CudaBackend;
use weft::backend::{
    AttentionShape, Axes, Backend, Capacity, KvFormat, KvScales, PAGE, PageTable, Pairing, Rotary, RowPlace, Slot, Step,
};

use crate::layouts::{Form, SHAPES, Sequences, set, tree};
use crate::support::*;

const ROTARY: Rotary = Rotary { theta: 1e4, axes: Axes::Two, pairing: Pairing::Halves };

/// A cache whose slots, draft nodes included, are filled, and the numbers that fill it.
struct Filled<'a, B: Backend> {
    backend: &'a B,
    kv: B::KvPool,
    sequences: &'a Sequences,
    shape: AttentionShape,
}

impl<'a, B: Backend> Filled<'a, B> {
    /// Layer 1 of 2 gets the keys and values of `qkv`, whose rows are those of `places`.
    fn with(backend: &'a B, sequences: &'a Sequences, places: &[RowPlace], shape: AttentionShape, qkv: &[f32]) -> Self {
        Self::stored(KvFormat::Bf16, backend, sequences, places, shape, qkv)
    }

    fn stored(
        format: KvFormat,
        backend: &'a B,
        sequences: &'a Sequences,
        places: &[RowPlace],
        shape: AttentionShape,
        qkv: &[f32],
    ) -> Self {
        let kv = backend.kv_pool(2, sequences.pages, shape, format).unwrap();
        let mut filled = Filled { backend, kv, sequences, shape };
        filled.store(places, qkv);
        filled
    }

    fn store(&mut self, places: &[RowPlace], qkv: &[f32]) {
        let mut x = tensor(self.backend, qkv, self.shape.qkv());
        let step = set(self.backend, self.sequences.step(places));
        self.backend.rotate_and_store(&mut x, None, ROTARY, &step, 1, &mut self.kv);
    }

    /// The attention of these rows, whose queries are given; what stands beside the queries must not matter.
    fn attend(&self, places: &[RowPlace], queries: &[f32]) -> Vec<f32> {
        let beside = vec![f32::NAN; 2 * self.shape.key()];
        let qkv: Vec<f32> = queries.chunks(self.shape.query()).flat_map(|q| [q, &beside].concat()).collect();
        let x = tensor(self.backend, &qkv, self.shape.qkv());
        let mut out = self.backend.tensor(places.len(), self.shape.query()).unwrap();
        let mut operand = self.backend.operand(places.len() + 1, self.shape.query()).unwrap();
        let step = set(self.backend, self.sequences.step(places));
        self.backend.attention(&x, &step, 1, &self.kv, &mut out);
        self.backend.attention(&x, &step, 1, &self.kv, &mut operand);
        let out = read(self.backend, &out);
        assert_same(&rounded(&read(self.backend, &operand)), &rounded(&out), "attention that writes an operand");
        out
    }
}

/// Values that are whole numbers, so that a mean of them shows each one that is missing.
fn whole_values(noise: &mut Noise, rows: usize, shape: AttentionShape) -> Vec<f32> {
    let mut qkv = noise.values(rows * shape.qkv());
    for row in qkv.chunks_mut(shape.qkv()) {
        for value in &mut row[shape.query() + shape.key()..] {
            *value = (*value * 100.0).round();
        }
    }
    qkv
}

/// How far two results with the same keys may be apart, given the largest |q|, |k| and |v|.
///
/// A score is a sum of d exact products; each of the two is off by at most d 2^-23 of sum |q k| (an f32 sum, or a tensor
/// core's that truncates). Its weight is off by that, by the exponential (2^-22 and 2 ulp), by the scaling (2^-23 of the
/// score, twice) and, on the device, by the rounding to bf16 (2^-9). Weights off by e each move a mean of values by 2 e max
/// |v| at most; sums of n weights and products are off by n 2^-23 on either side.
fn bound(shape: AttentionShape, keys: usize, q: f32, k: f32, v: f32) -> f32 {
    let d = shape.head_dim as f32;
    let score = d.sqrt() * q * k;
    let ulp = 2f32.powi(-23);
    let weight = 2.0 * score * (d + 2.0) * ulp + 6.0 * ulp + 2f32.powi(-9);
    v * (2.0 * weight + 2.0 * keys as f32 * ulp)
}

/// Both backends attend from `rows` over everything in `sequences`.
fn compare(
    forms: &[Form<'_>],
    shape: AttentionShape,
    trees: impl Fn(usize) -> Vec<Slot>,
    rows: &[RowPlace],
    what: &str,
) {
    let (gpu, oracle) = (backend(), cpu());
    let sequences = Sequences::of(forms);
    let places = sequences.slots(trees);
    let mut noise = Noise(91);
    let qkv = whole_values(&mut noise, places.len(), shape);
    let device = Filled::with(&*gpu, &sequences, &places, shape, &qkv);
    let host = Filled::with(&oracle, &sequences, &places, shape, &qkv);

    // Without queries all weights are one, and sums of whole numbers are exact: nothing hides a key.
    let nothing = vec![0.0; rows.len() * shape.query()];
    let (got, want) = (device.attend(rows, &nothing), host.attend(rows, &nothing));
    assert_near(&got, &want, |i| 3.0 * f32::EPSILON * want[i].abs(), &format!("{what}: mean of the keys"));

    let queries: Vec<f32> = noise.values(rows.len() * shape.query()).iter().map(|x| 3.0 * x).collect();
    let (got, want) = (device.attend(rows, &queries), host.attend(rows, &queries));
    let most = bound(shape, places.len(), 3.0, 1.0, 100.0);
    assert_near(&got, &want, |_| most, what);
}

/// Rows of models that look everywhere: each sees all of its sequence, what comes after it too, and turns by its position or
/// as a word.
#[test]
fn open_rows_see_all_of_their_sequence() {
    let (gpu, oracle) = (backend(), cpu());
    let lengths = [5usize, 70, 301];
    let mut step = Step::default();
    for (sequence, &length) in lengths.iter().enumerate() {
        let before: usize = lengths[..sequence].iter().map(|length| length.div_ceil(PAGE)).sum();
        let prefix = (before as u32..).take(length.div_ceil(PAGE)).collect();
        step.layout.sequences.push(PageTable { prefix, prefix_len: length, width: 18, ..PageTable::default() });
        step.layout.rows.extend((0..length as u32).map(|slot| {
            let at = (slot >= 5).then(|| (slot - 5) * 7 % 301);
            RowPlace { sequence: sequence as u32, slot: Slot::Open { slot, at } }
        }));
    }
    fn attended<B: Backend>(b: &B, step: &Step, rotary: Rotary, shape: AttentionShape, qkv: &[f32]) -> [Vec<f32>; 2] {
        let capacity = Capacity { rows: 400, sequences: 3, pages: 40, ..Capacity::default() };
        let mut device = b.step(capacity).unwrap();
        b.set_step(step.clone(), &mut device).unwrap();
        let mut kv = b.kv_pool(1, 40, shape, KvFormat::Bf16).unwrap();
        let mut x = tensor(b, qkv, shape.qkv());
        let mut out = b.tensor(qkv.len() / shape.qkv(), shape.query()).unwrap();
        b.rotate_and_store(&mut x, None, rotary, &device, 0, &mut kv);
        b.attention(&x, &device, 0, &kv, &mut out);
        let turned = read(b, &x).chunks(shape.qkv()).flat_map(|row| row[..shape.query()].to_vec()).collect();
        [turned, read(b, &out)]
    }
    for shape in SHAPES {
        for axes in [Axes::One, Axes::Two] {
            let mut noise = Noise(3);
            let qkv = whole_values(&mut noise, step.layout.rows.len(), shape);
            let rotary = Rotary { axes, ..ROTARY };
            let [ours, theirs] =
                [attended(&*gpu, &step, rotary, shape, &qkv), attended(&oracle, &step, rotary, shape, &qkv)];
            let what = format!("{shape:?}, {axes:?}");
            assert_same(&ours[0], &theirs[0], &format!("{what}: queries"));
            let most = bound(shape, 301, 1.0, 1.0, 100.0);
            assert_near(&ours[1], &theirs[1], |_| most, &what);
        }
    }
}

/// Every so many-th row.
fn some(rows: &[RowPlace], step: usize) -> Vec<RowPlace> {
    rows.iter().copied().step_by(step).collect()
}

const FORMS: [Form<'_>; 3] = [(1, 7, &[7; 5]), (37, 7, &[7, 5, 3, 0, 2]), (300, 7, &[7, 7, 0, 4, 0])];

fn trees(sequence: usize) -> Vec<Slot> {
    tree([32, 20, 31][sequence], [0, 9, 23][sequence])
}

#[test]
fn every_slot_of_small_grids_in_all_shapes() {
    for shape in SHAPES {
        let rows = Sequences::of(&FORMS).slots(trees);
        compare(&FORMS, shape, trees, &rows, &format!("{shape:?}"));
    }
}

#[test]
fn wavefronts_of_a_24x24_grid() {
    let shape = SHAPES[0];
    let mut frontier = [0; 24];
    for (r, columns) in frontier.iter_mut().enumerate() {
        *columns = 24_u32.saturating_sub(5 * (r as u32).saturating_sub(8));
    }
    let forms: [Form; 2] = [(40, 24, &frontier), (3, 24, &frontier)];
    // The four positions ahead of each frontier.
    let mut rows = Vec::new();
    for sequence in 0..2 {
        for (r, &columns) in frontier.iter().enumerate() {
            let ahead = (columns..24).take(4).map(|c| r as u32 * 24 + c);
            rows.extend(ahead.map(|p| RowPlace { sequence, slot: Slot::Grid(p) }));
        }
    }
    compare(&forms, shape, |_| Vec::new(), &rows, "wavefront");
}

#[test]
fn a_few_rows_of_4096_positions() {
    let frontier: Vec<u32> = (0..64).map(|r| if r < 40 { 64 } else { 64 - r }).collect();
    let forms: [Form; 1] = [(20, 64, &frontier)];
    let rows: Vec<RowPlace> =
        [4095, 4031, 2600, 2559, 64].map(|p| RowPlace { sequence: 0, slot: Slot::Grid(p) }).to_vec();
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 80 };
    compare(&forms, shape, |_| Vec::new(), &rows, "4096 positions");
}

#[test]
fn heads_of_large_models() {
    for (heads, kv_heads) in [(32, 8), (32, 32)] {
        let shape = AttentionShape { heads, kv_heads, head_dim: 128 };
        let forms: [Form; 1] = [(21, 5, &[5, 5, 3, 0, 0, 0, 0])];
        let rows = some(&Sequences::of(&forms).slots(|_| Vec::new()), 3);
        compare(&forms, shape, |_| Vec::new(), &rows, &format!("{shape:?}"));
    }
}

/// On a device with one multiprocessor a block takes many parts in turn, in the same shared memory.
#[test]
fn blocks_begin_again_on_small_devices() {
    if !on_gpu() {
        let environment = [("CUDA_SIM_CHECK", "all"), ("CUDA_SIM_SWEEP", "4"), ("CUDA_SIM_SMS", "1")];
        child("attention::large_heads_on_a_small_device", &environment);
    }
}

#[test]
#[ignore = "run by blocks_begin_again_on_small_devices"]
fn large_heads_on_a_small_device() {
    heads_of_large_models();
}

#[test]
fn a_row_does_not_depend_on_what_else_is_in_the_launch() {
    let gpu = backend();
    for shape in [SHAPES[0], SHAPES[3], SHAPES[4]] {
        let sequences = Sequences::of(&FORMS);
        let places = sequences.slots(trees);
        let mut noise = Noise(7);
        let qkv = noise.values(places.len() * shape.qkv());
        let filled = Filled::with(&*gpu, &sequences, &places, shape, &qkv);
        let cols = shape.query();
        let queries: Vec<f32> = noise.values(places.len() * cols).iter().map(|x| 3.0 * x).collect();
        let whole = filled.attend(&places, &queries);
        // One row, a few rows of a sequence, many rows of all; every row in some batch.
        for (m, stride) in [(1, 53), (2, 31), (5, 17), (40, 3), (300, 1)] {
            for start in (0..places.len()).step_by(m * stride) {
                let chosen: Vec<usize> = (0..m).map(|i| start + i * stride).filter(|i| *i < places.len()).collect();
                let batch: Vec<RowPlace> = chosen.iter().map(|&i| places[i]).collect();
                let q: Vec<f32> = chosen.iter().flat_map(|&i| queries[i * cols..][..cols].to_vec()).collect();
                let got = filled.attend(&batch, &q);
                for (got, &i) in got.chunks(cols).zip(&chosen) {
                    let what = format!("{shape:?} {:?} among {m}", places[i]);
                    assert_same(got, &whole[i * cols..][..cols], &what);
                }
            }
        }
    }
}

#[test]
fn what_a_row_does_not_see_does_not_change_a_bit() {
    let gpu = backend();
    let shape = SHAPES[1];
    let sequences = Sequences::of(&FORMS);
    let places = sequences.slots(trees);
    let mut noise = Noise(8);
    let qkv = noise.values(places.len() * shape.qkv());
    let mut filled = Filled::with(&*gpu, &sequences, &places, shape, &qkv);
    let q: Vec<f32> = noise.values(shape.query());
    for place in some(&places, 37) {
        let before = filled.attend(&[place], &q);
        let hidden: Vec<RowPlace> = places.iter().copied().filter(|key| !sees(&sequences, place, *key)).collect();
        filled.store(&hidden, &vec![-1e30; hidden.len() * shape.qkv()]);
        assert_same(&filled.attend(&[place], &q), &before, &format!("{place:?}"));
        filled.store(&places, &qkv);
    }
}

/// The definition of what a row sees.
fn sees(sequences: &Sequences, row: RowPlace, key: RowPlace) -> bool {
    if row.sequence != key.sequence {
        return false;
    }
    let table = &sequences.tables[row.sequence as usize];
    let committed = |j: u32| j as usize % table.width < table.frontier[j as usize / table.width] as usize;
    match (row.slot, key.slot) {
        (Slot::Prefix(i), Slot::Prefix(j)) => j <= i,
        (Slot::Prefix(_), _) => false,
        (_, Slot::Prefix(_)) | (Slot::Open { .. }, Slot::Open { .. }) => true,
        (Slot::Open { .. }, _) | (_, Slot::Open { .. }) => false,
        (Slot::Grid(p), Slot::Grid(j)) => {
            let row = |p: u32| p as usize / table.width;
            j <= p && (row(j) == row(p) || committed(j))
        }
        (Slot::Grid(_), Slot::Scratch { .. }) => false,
        (Slot::Scratch { at, .. }, Slot::Grid(j)) => j < at && committed(j),
        (Slot::Scratch { ancestors, .. }, Slot::Scratch { slot, .. }) => ancestors >> slot & 1 == 1,
    }
}

/// Softmax attention in f64 of a query at `row` over the slots it sees, as the cache holds them.
fn definition(filled: &Filled<'_, CudaBackend>, places: &[RowPlace], row: RowPlace, queries: &[f32]) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_dim } = filled.shape;
    let pages: Vec<Vec<f32>> = (0..filled.sequences.pages).map(|page| filled.kv.read(1, page).unwrap()).collect();
    let padded = pages[0].len() / (kv_heads * 2 * PAGE);
    let side = |key: &RowPlace, head: usize, side: usize| {
        let table = &filled.sequences.tables[key.sequence as usize];
        let (list, slot) = match key.slot {
            Slot::Prefix(slot) | Slot::Open { slot, .. } => (&table.prefix, slot as usize),
            Slot::Grid(slot) => (&table.grid, slot as usize),
            Slot::Scratch { slot, .. } => (&table.scratch, slot as usize),
        };
        &pages[list[slot / PAGE] as usize][((head * 2 + side) * PAGE + slot % PAGE) * padded..][..head_dim]
    };
    let seen: Vec<&RowPlace> = places.iter().filter(|key| sees(filled.sequences, row, **key)).collect();
    let mut out = Vec::new();
    for (head, query) in queries.chunks(head_dim).enumerate() {
        let kv_head = head / (heads / kv_heads);
        let dot = |key: &[f32]| -> f64 {
            query.iter().zip(key).map(|(&q, &k)| bf16::from_f32(q).to_f64() * f64::from(k)).sum()
        };
        let scores: Vec<f64> = seen.iter().map(|key| dot(side(key, kv_head, 0)) / (head_dim as f64).sqrt()).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..head_dim {
            let values = seen.iter().map(|key| f64::from(side(key, kv_head, 1)[d]));
            out.push(values.zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / sum);
        }
    }
    out
}

/// The oracle keeps the bf16 that the numbers of an fp8 cache stand for.
#[test]
fn fp8_keys_and_values_are_those_of_the_cpu() {
    let (gpu, oracle) = (backend(), cpu());
    for shape in SHAPES {
        let sequences = Sequences::of(&FORMS);
        let places = sequences.slots(trees);
        let mut noise = Noise(27);
        let qkv = whole_values(&mut noise, places.len(), shape);
        let format = KvFormat::Fp8(KvScales { keys: 0.25, values: 0.5 });
        let device = Filled::stored(format, &*gpu, &sequences, &places, shape, &qkv);
        let host = Filled::stored(format, &oracle, &sequences, &places, shape, &qkv);
        let rows = some(&places, 5);
        let nothing = vec![0.0; rows.len() * shape.query()];
        let (got, want) = (device.attend(&rows, &nothing), host.attend(&rows, &nothing));
        assert_near(&got, &want, |i| 3.0 * f32::EPSILON * want[i].abs(), &format!("{shape:?}: mean of the keys"));
        let queries: Vec<f32> = noise.values(rows.len() * shape.query()).iter().map(|x| 3.0 * x).collect();
        let (got, want) = (device.attend(&rows, &queries), host.attend(&rows, &queries));
        let most = bound(shape, places.len(), 3.0, 1.0, 104.0);
        assert_near(&got, &want, |_| most, &format!("{shape:?}"));
    }
}

#[test]
fn fp8_keys_and_values_are_what_they_stand_for() {
    let gpu = backend();
    let forms = [FORMS[1], (5, 7, &[0; 2][..])];
    let trees = |sequence: usize| tree([20, 4][sequence], [9, 0][sequence]);
    for shape in SHAPES {
        let sequences = Sequences::of(&forms);
        let places = sequences.slots(trees);
        let mut noise = Noise(17);
        let qkv = noise.values(places.len() * shape.qkv());
        let scales = KvScales { keys: 1.0 / 128.0, values: 1.0 / 32.0 };
        let kv = gpu.kv_pool(2, sequences.pages, shape, KvFormat::Fp8(scales)).unwrap();
        let mut filled = Filled { backend: &*gpu, kv, sequences: &sequences, shape };
        filled.store(&places, &qkv);
        let queries: Vec<f32> = noise.values(places.len() * shape.query()).iter().map(|x| 3.0 * x).collect();
        let whole = filled.attend(&places, &queries);
        let most = bound(shape, places.len(), 3.0, 1.5, 1.1);
        for i in (0..places.len()).step_by(7) {
            let query = &queries[i * shape.query()..][..shape.query()];
            let want: Vec<f32> = definition(&filled, &places, places[i], query).into_iter().map(|x| x as f32).collect();
            let (got, what) = (&whole[i * shape.query()..][..shape.query()], format!("{shape:?} {:?}", places[i]));
            assert_near(got, &want, |_| most, &what);
            assert_same(&filled.attend(&places[i..][..1], query), got, &format!("{what} alone"));
        }
    }
}

#[test]
fn a_recorded_step_follows_lengths_and_frontiers() {
    let gpu = backend();
    let shape = SHAPES[2];
    let forms: [Form; 2] = [(200, 24, &[24; 24]), (9, 24, &[24; 24])];
    let mut sequences = Sequences::of(&forms);
    let places = sequences.slots(|_| Vec::new());
    let mut noise = Noise(23);
    let qkv = noise.values(places.len() * shape.qkv());
    let filled = Filled::with(&*gpu, &sequences, &places, shape, &qkv);
    let kv = filled.kv;
    let beside = vec![f32::NAN; 2 * shape.key()];
    let rows = |at: u32| -> Vec<RowPlace> {
        (0..4).map(|i| RowPlace { sequence: i / 2, slot: Slot::Grid(at + 24 * (i % 2)) }).collect()
    };
    let mut step = set(&*gpu, sequences.step(&rows(0)));
    let mut x = gpu.tensor(4, shape.qkv()).unwrap();
    let mut out = gpu.tensor(4, shape.query()).unwrap();
    for at in [3_u32, 30, 100, 250, 320, 540, 7, 511] {
        for table in &mut sequences.tables {
            for (r, columns) in table.frontier.iter_mut().enumerate() {
                *columns = (at + 30).saturating_sub(24 * r as u32).min(24);
            }
        }
        let queries = noise.values(4 * shape.query());
        let wide: Vec<f32> = queries.chunks(shape.query()).flat_map(|q| [q, &beside].concat()).collect();
        gpu.upload(&wide, &mut x);
        gpu.set_step(sequences.step(&rows(at)), &mut step).unwrap();
        let mut attend =
            |gpu: &CudaBackend, step: &<CudaBackend as Backend>::Step| gpu.attention(&x, step, 1, &kv, &mut out);
        gpu.reserve(&mut step, &mut attend).unwrap();
        gpu.run(&mut step, &mut attend);
        let replayed = read(&*gpu, &out);
        let step = set(&*gpu, sequences.step(&rows(at)));
        gpu.attention(&x, &step, 1, &kv, &mut out);
        assert_same(&replayed, &read(&*gpu, &out), &format!("at {at}"));
    }
}

/// A quarter of the heads of a 7B model, on a quarter of an H100: without shared key heads, and with.
const LARGE: [AttentionShape; 2] =
    [AttentionShape { heads: 8, kv_heads: 8, head_dim: 128 }, AttentionShape { heads: 8, kv_heads: 2, head_dim: 128 }];
const QUARTER: (&str, &str) = ("CUDA_SIM_SMS", "33");
const PROMPT: usize = 64;

/// A launch whose traffic is counted.
#[derive(Clone, Copy)]
struct Counted {
    shape: AttentionShape,
    fp8: bool,
    /// Of the grid.
    side: usize,
    /// Of the pass. Rows in a guided image are those of two branches.
    rows: usize,
}

impl Counted {
    fn all() -> impl Iterator<Item = Counted> {
        let sizes = || [24, 64].into_iter().flat_map(|side| [1, 8, 48, 144].map(|rows| (side, rows)));
        let of = move |(shape, fp8)| sizes().map(move |(side, rows)| Counted { shape, fp8, side, rows });
        [(LARGE[0], false), (LARGE[1], false), (LARGE[1], true)].into_iter().flat_map(of)
    }

    fn branches(&self) -> usize {
        if self.rows == 1 { 1 } else { 2 }
    }

    fn sequences(&self) -> Sequences {
        let frontier = vec![self.side as u32; self.side];
        Sequences::of(&vec![(PROMPT, self.side, &frontier[..]); self.branches()])
    }

    /// Of a number in the cache.
    fn bytes(&self) -> usize {
        if self.fp8 { 1 } else { 2 }
    }

    /// Visible keys and values of all branches.
    fn visible(&self) -> usize {
        self.branches() * (PROMPT + self.side * self.side) * 2 * self.shape.key() * self.bytes()
    }

    /// The compulsory traffic: each visible key and value once, queries in, results out.
    fn compulsory(&self) -> usize {
        self.visible() + self.rows * self.shape.query() * 4 * 2
    }

    fn run(&self, gpu: &CudaBackend) {
        let (sequences, shape) = (self.sequences(), self.shape);
        let (positions, per_branch) = ((self.side * self.side) as u32, (self.rows / self.branches()) as u32);
        let places: Vec<RowPlace> = (0..self.branches() as u32)
            .flat_map(|sequence| {
                (positions - per_branch..positions).map(move |p| RowPlace { sequence, slot: Slot::Grid(p) })
            })
            .collect();
        // What is in the cache does not matter for its traffic.
        let kv = match self.fp8 {
            true => gpu.kv_pool(1, sequences.pages, shape, KvFormat::Fp8(KvScales::default())),
            false => gpu.kv_pool(1, sequences.pages, shape, KvFormat::Bf16),
        };
        let x = tensor(gpu, &vec![0.0; self.rows * shape.qkv()], shape.qkv());
        let mut out = gpu.tensor(self.rows, shape.query()).unwrap();
        let step = set(gpu, sequences.step(&places));
        gpu.attention(&x, &step, 0, &kv.unwrap(), &mut out);
        read(gpu, &out);
    }

    /// Compares what a launch moved with what it had to.
    fn check(&self, launch: &serde_json::Value) {
        let Counted { shape, side, rows, .. } = *self;
        let count = |name: &str| launch["counters"][name].as_f64().unwrap();
        let moved = 32.0 * (count("dram_read_sectors") + count("dram_write_sectors"));
        let share = moved / self.compulsory() as f64;
        let size = self.sequences().pages * PAGE * 2 * shape.key() * self.bytes();
        let mut allocations = launch["allocations"].as_array().unwrap().iter();
        let pool = allocations.find(|a| a["size"] == size).unwrap();
        let slices = (rows / self.branches()).div_ceil(64 / (shape.heads / shape.kv_heads));
        let requested = pool["load_sectors"].as_f64().unwrap() * 32.0 / (slices * self.visible()) as f64;
        let conflicts = count("bank_conflicts") / (count("shared_passes") - count("bank_conflicts"));
        let heads = format!("{}/{}{}", shape.heads, shape.kv_heads, if self.fp8 { " fp8" } else { "" });
        println!("{heads:7} {:9} {rows:4} | {share:17.3} | {requested:23.3} | {conflicts:.4}", side * side);
        let what = format!("{heads}, {side}x{side}, {rows} rows");
        assert!(share <= 1.02, "{what}: {share} of the compulsory bytes");
        assert!(requested <= 1.001, "{what}: keys requested {requested} times per tile");
        assert!(conflicts <= 0.01, "{what}: {conflicts} of the passes over shared memory are conflicts");
    }
}

#[test]
#[ignore = "run by keys_are_read_once"]
fn large_launches() {
    let gpu = backend();
    Counted::all().for_each(|launch| launch.run(&gpu));
}

#[test]
fn keys_are_read_once() {
    if on_gpu() {
        return;
    }
    let file = std::env::temp_dir().join(format!("weft-attention-{}.json", std::process::id()));
    let counters = ("CUDA_SIM_COUNTERS", file.to_str().unwrap());
    let environment = [("CUDA_SIM_CHECK", "none"), ("CUDA_SIM_CC", "9.0"), ("CUDA_SIM_SWEEP", "1"), QUARTER, counters];
    child("attention::large_launches", &environment);
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    let launches = json["launches"].as_array().unwrap();
    let launches = || launches.iter().filter(|launch| launch["kernel"].as_str().unwrap().starts_with("attention_"));
    println!("heads   positions rows | DRAM / compulsory | keys requested per tile | bank conflicts");
    assert_eq!(launches().count(), Counted::all().count());
    Counted::all().zip(launches()).for_each(|(counted, launch)| counted.check(launch));
}
