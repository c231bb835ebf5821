//! Ops that move rows, and the sum of two tensors: bit for bit what the CPU backend does.

use weft::backend::{Backend, Capacity, Copy, Embedding, Image, Layout, PageTable, RowPlace, Slot, Source, Step, Test};
use weft::rng::Stream;
use weft::sampling::Sampling;

use crate::support::{Noise, assert_same, backend, bits, cpu, read, rounded, tensor};

const IMAGES: usize = 2;
const HEIGHT: usize = 4;
const WIDTH: usize = 5;
const POSITIONS: usize = HEIGHT * WIDTH;
/// Places of an image in the canvas: its positions and the nodes of a draft tree.
const PLACES: usize = POSITIONS + 16;
const VOCAB: usize = 40;
const PREFIX: usize = 3;
/// Rows of the tensors, more than any step has.
const ROOM: usize = 80;

const CAPACITY: Capacity =
    Capacity { rows: ROOM, sequences: 2 * IMAGES, pages: 32, frontiers: 32, sources: 16, groups: 4, siblings: 0 };

/// A step over two branches of each image, whose rows are `slots`, with so many copies.
fn step(slots: &[Slot], copies: u32) -> Step {
    let sampling = Sampling { cfg: 3.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
    let image = |image| Image { stream: Stream { seed: 7, image }, sampling, test: Test::Token };
    let sequence = |index: u32| PageTable {
        image: index / 2,
        prefix: vec![4 * index],
        prefix_len: PREFIX,
        grid: vec![4 * index + 1, 4 * index + 2],
        width: WIDTH,
        frontier: vec![WIDTH as u32; HEIGHT],
        scratch: vec![4 * index + 3],
    };
    let sequences = 2 * IMAGES as u32;
    let places = |sequence| slots.iter().map(move |&slot| RowPlace { sequence, slot });
    let layout =
        Layout { sequences: (0..sequences).map(sequence).collect(), rows: (0..sequences).flat_map(places).collect() };
    let rows = layout.rows.len() as u32;
    let sources = [(3, 1), (0, 0), (2 * POSITIONS as u32 + 1, POSITIONS as u32 + 3), (3, 7)];
    Step {
        images: (0..IMAGES as u32).map(image).collect(),
        layout,
        sources: sources.map(|(state, token)| Source { state, token }).to_vec(),
        groups: vec![0, 1, 4],
        predictions: (0..rows).rev().step_by(2).collect(),
        copies: (0..copies).map(|i| Copy { from: i, to: ROOM as u32 - 1 - i }).collect(),
        ..Step::default()
    }
}

/// What every op of a step leaves, run as one.
fn results<B: Backend>(b: &B, hidden: usize, steps: &[Step], fed: bool) -> Vec<Vec<f32>> {
    let mut noise = Noise(hidden as u64);
    let mut table = |rows: usize| tensor(b, &noise.values(rows * hidden), hidden);
    let (tokens, rows, cols, bias) = (table(VOCAB), table(HEIGHT), table(WIDTH), table(2 * IMAGES));
    let mut logits = table(ROOM);
    let (mut states, mut nodes) = (table(2 * IMAGES * POSITIONS), table(2 * IMAGES * (POSITIONS + 14)));
    let mut canvas = b.canvas(IMAGES, PLACES, VOCAB, false).unwrap();
    for image in 0..IMAGES {
        let tokens: Vec<u32> = (0..PLACES).map(|p| ((p * 7 + image * 11) % VOCAB) as u32).collect();
        b.set_tokens(&mut canvas, image, &tokens).unwrap();
    }
    let mut x = table(ROOM);
    let (mut embedded, mut selected) = (b.tensor(ROOM, hidden).unwrap(), b.tensor(ROOM, hidden).unwrap());
    let (mut gathered, mut operand) = (b.tensor(16, 2 * hidden).unwrap(), b.operand(16, 2 * hidden).unwrap());
    let mut device = b.step(CAPACITY).unwrap();
    let mut all = Vec::new();
    for step in steps {
        b.set_step(step.clone(), &mut device).unwrap();
        // New values: what a stale entry of the step before would move shows.
        b.upload(&noise.values(ROOM * hidden), &mut x);
        b.upload(&noise.values(ROOM * hidden), &mut logits);
        b.run(&mut device, &mut |b, step| {
            b.gather_sources(step, &states, &tokens, &canvas, &mut gathered);
            b.gather_sources(step, &states, &tokens, &canvas, &mut operand);
            if fed {
                let tables = Embedding { tokens: &tokens, rows: &rows, cols: &cols, bias: &bias };
                b.embed(step, tables, &canvas, &mut embedded);
            }
            b.keep_states(step, &x, POSITIONS, &mut states);
            // The last node has no room.
            b.keep_states(step, &x, POSITIONS + 14, &mut nodes);
            b.select(step, &x, &mut selected);
            b.copy_rows(step, &mut logits);
        });
        assert_same(&rounded(&read(b, &operand)), &rounded(&read(b, &gathered)), "sources as operands");
        let outputs = [&embedded, &selected, &gathered, &states, &nodes, &logits];
        all.extend(outputs.map(|x| b.read(x).unwrap().into_owned()));
    }
    all
}

/// The grid from `from` to `to`.
fn grid(from: u32, to: u32) -> Vec<Slot> {
    (from..to).map(Slot::Grid).collect()
}

#[test]
fn rows_are_gathered_embedded_kept_selected_and_copied() {
    let (cuda, cpu) = (backend(), cpu());
    // A recorded step is made for the next power of two: the third leaves entries of the second behind its own.
    let last = POSITIONS as u32;
    // Two nodes at one position.
    let node = |slot: u32, at| Slot::Scratch { slot, at, ancestors: 1 << slot };
    let tree = vec![Slot::Grid(6), node(0, 7), node(13, 7), node(15, 8)];
    let steps =
        [(grid(0, 1), 2), (grid(0, 7), 4), (grid(8, 14), 3), (grid(last - 2, last), 0), (grid(0, 19), 1), (tree, 1)];
    let steps = steps.map(|(slots, copies)| step(&slots, copies));
    for hidden in [192, 30, 2048] {
        let got = results(&*cuda, hidden, &steps, true);
        let want = results(&cpu, hidden, &steps, true);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let what = ["embedded", "selected", "gathered", "states", "states with nodes", "logits"][i % 6];
            assert_eq!(bits(got), bits(want), "{what} of step {} with {hidden} columns", i / 6);
        }
    }
}

#[test]
fn only_the_last_row_of_a_prompt_is_kept() {
    let (cuda, cpu) = (backend(), cpu());
    let slots: Vec<Slot> = (0..PREFIX as u32).map(Slot::Prefix).chain(grid(0, 2)).collect();
    for hidden in [192, 7] {
        let got = results(&*cuda, hidden, &[step(&slots, 1)], false);
        let want = results(&cpu, hidden, &[step(&slots, 1)], false);
        assert_eq!(bits(&got[3]), bits(&want[3]), "{hidden} columns");
    }
}

#[test]
fn tensors_are_added() {
    let (cuda, cpu) = (backend(), cpu());
    fn sum<B: Backend>(b: &B, rows: usize, cols: usize) -> Vec<f32> {
        let mut noise = Noise(5);
        let (mut x, y) = (tensor(b, &noise.values(rows * cols), cols), tensor(b, &noise.values(rows * cols), cols));
        b.add(&mut x, &y);
        b.read(&x).unwrap().into_owned()
    }
    for (rows, cols) in [(1, 1), (3, 192), (5, 7), (300, 64), (4096, 32)] {
        assert_eq!(bits(&sum(&*cuda, rows, cols)), bits(&sum(&cpu, rows, cols)), "{rows} x {cols}");
    }
}

#[test]
fn products_are_added() {
    let (cuda, cpu) = (backend(), cpu());
    fn sum<B: Backend>(b: &B, rows: usize, cols: usize) -> Vec<f32> {
        let mut noise = Noise(6);
        let mut next = || tensor(b, &noise.values(rows * cols), cols);
        let (mut x, y, z) = (next(), next(), next());
        b.add_product(&mut x, &y, &z);
        b.read(&x).unwrap().into_owned()
    }
    for (rows, cols) in [(1, 1), (3, 192), (5, 7), (300, 64), (4096, 32)] {
        assert_eq!(bits(&sum(&*cuda, rows, cols)), bits(&sum(&cpu, rows, cols)), "{rows} x {cols}");
    }
}

/// Both are within 4 ulp of the true value, and no number is too large or too small.
#[test]
fn tensors_are_activated() {
    let (cuda, cpu) = (backend(), cpu());
    fn activated<B: Backend>(b: &B, x: &[f32], cols: usize) -> Vec<f32> {
        let mut out = b.tensor(x.len() / cols, cols).unwrap();
        b.silu(&tensor(b, x, cols), &mut out);
        b.read(&out).unwrap().into_owned()
    }
    for (rows, cols) in [(1, 1), (3, 192), (5, 7), (300, 64)] {
        let mut x: Vec<f32> = Noise(6).values(rows * cols).iter().map(|x| 30.0 * x).collect();
        x[0] = -200.0;
        let mut operand = cuda.operand(rows + 3, cols).unwrap();
        cuda.silu(&tensor(&*cuda, &x, cols), &mut operand);
        assert_same(&read(&*cuda, &operand), &rounded(&activated(&*cuda, &x, cols)), "as an operand");
        for (got, want) in activated(&*cuda, &x, cols).iter().zip(activated(&cpu, &x, cols)) {
            assert!((got - want).abs() <= 8.0 * f32::EPSILON * want.abs() + f32::MIN_POSITIVE, "{got}, not {want}");
        }
    }
}
