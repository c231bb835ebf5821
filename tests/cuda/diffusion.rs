//! Denoising and what is decided by it, against the CPU backend.
//!
//! The f32 arithmetic is the same operation by operation. Normals, exponentials and densities are f64 on both sides, from
//! functions that differ by a unit or two in the last place: rounded to f32 they are the same or, where the f64 lies half-way
//! between two, neighbours.

use weft::backend::gaussian::{Criterion, Denoising, Law, Settlement, Sigma, Trajectories};
use weft::backend::{Backend, Capacity, Fate, Goal, Image, Layout, NONE, PAGE, PageTable, RowPlace, Slot, Step, Test};
use weft::rng::Stream;
use weft::sampling::Sampling;

use crate::support::{Noise, assert_near, assert_same, backend, bits, cpu, operand, read, rounded, tensor};

const ULP: f32 = f32::EPSILON;
const IMAGES: usize = 2;
const POSITIONS: usize = 160;
/// The most goals of a step, in two branches.
const ROOM: usize = 600;
const DENOISING: Denoising =
    Denoising { level: 7, signal: 0.6, noise: 0.8, from_x0: 0.3, from_xt: 0.65, low: -3.5, high: -0.4 };

/// A step over goals at `(image, position)`, in two branches or in one by turns, judged and drawn by turns.
fn step(places: &[(usize, usize)]) -> Step {
    let image = |image: u32| Image {
        stream: Stream { seed: 77 + (5 << 40), image },
        sampling: Sampling { cfg: 3.0, temperature: [1.0, 0.9][image as usize], top_k: 0, top_p: 1.0 },
        test: Test::Token,
    };
    let count = places.len() as u32;
    let goal = |(&(image, position), index): (&(usize, usize), u32)| Goal {
        image: image as u32,
        position: position as u32,
        guidance: 1.0 + 0.1 * position as f32,
        conditional: index,
        unconditional: if position % 3 == 0 { NONE } else { count + index },
        fate: if position % 4 == 0 { Fate::Draw } else { Fate::Judge },
    };
    // Goals look at predictions, and those at rows, of which they have none here.
    let sequence = PageTable { prefix: vec![0], prefix_len: 1, width: 1, ..PageTable::default() };
    Step {
        images: (0..IMAGES as u32).map(image).collect(),
        layout: Layout {
            sequences: vec![sequence],
            rows: vec![RowPlace { sequence: 0, slot: Slot::Open { slot: 0, at: None } }],
        },
        predictions: vec![0; 2 * places.len()],
        goals: places.iter().zip(0..).map(goal).collect(),
        ..Step::default()
    }
}

/// Every position of both images, in an order of their own.
fn everywhere() -> Vec<(usize, usize)> {
    (0..IMAGES * POSITIONS).map(|i| i * 37 % (IMAGES * POSITIONS)).map(|i| (i / POSITIONS, i % POSITIONS)).collect()
}

fn set<B: Backend>(b: &B, step: Step) -> B::Step {
    let capacity = Capacity { rows: 2 * ROOM, sequences: IMAGES, pages: 64, ..Capacity::default() };
    let mut device = b.step(capacity).unwrap();
    b.set_step(step, &mut device).unwrap();
    device
}

/// `[rows, cols]` with room for any step.
fn roomy<B: Backend>(b: &B, data: &[f32], cols: usize) -> B::Tensor {
    let mut tensor = b.tensor(2 * ROOM, cols).unwrap();
    b.upload(data, &mut tensor);
    tensor
}

fn laws_of(x: &[f32], places: &[(usize, usize)], channels: usize) -> Vec<Law> {
    let row = |&(image, position): &(usize, usize)| &x[(image * POSITIONS + position) * Law::cols(channels)..];
    places.iter().map(|place| Law::from_row(&row(place)[..Law::cols(channels)])).collect()
}

/// Trajectories whose laws go to these rows.
fn into<'a, T>(laws: &'a mut T, normals: Option<&'a T>) -> Trajectories<'a, T> {
    Trajectories { positions: POSITIONS, normals, laws }
}

/// `x` of all branches and the laws after a beginning, after a step from other numbers, and after the last step.
fn denoised<B: Backend>(b: &B, places: &[(usize, usize)], channels: usize) -> [Vec<f32>; 6] {
    let mut noise = Noise(channels as u64);
    let device = set(b, step(places));
    // By place, so that a goal's numbers are the same in every company.
    let mut by_place = |cols: usize, scale: f32| -> Vec<Vec<f32>> {
        (0..2 * IMAGES * POSITIONS).map(|_| noise.values(cols).iter().map(|x| scale * x).collect()).collect()
    };
    let (predicted, start) = (by_place(2 * channels, 1.0), by_place(channels, 3.0));
    let rows = |table: &[Vec<f32>]| -> Vec<f32> {
        let branch = |branch: usize| {
            places
                .iter()
                .flat_map(move |&(image, position)| table[(branch * IMAGES + image) * POSITIONS + position].clone())
        };
        branch(0).chain(branch(1)).collect()
    };
    let mut x = roomy(b, &rows(&start), channels);
    let mut laws = tensor(b, &vec![0.5; IMAGES * POSITIONS * Law::cols(channels)], Law::cols(channels));
    b.begin_denoising(&device, 8, &mut x, &mut into(&mut laws, None));
    let (begun, laws_begun) = (read(b, &x), read(b, &laws));
    b.upload(&rows(&start), &mut x);
    let predicted = roomy(b, &rows(&predicted), 2 * channels);
    b.denoise(&device, &DENOISING, &predicted, &mut x, &mut into(&mut laws, None));
    let (moved, laws_moved) = (read(b, &x), read(b, &laws));
    b.upload(&rows(&start), &mut x);
    let last = Denoising { level: 0, from_x0: 0.9, ..DENOISING };
    b.denoise(&device, &last, &predicted, &mut x, &mut into(&mut laws, None));
    assert_same(&read(b, &x), &rows(&start), "the last step is not drawn");
    [begun, laws_begun, moved, laws_moved, read(b, &x), read(b, &laws)]
}

#[test]
fn goals_are_denoised_as_on_the_processor() {
    let (cuda, cpu) = (backend(), cpu());
    let places = everywhere();
    for channels in [8, 1, 5, 40] {
        let got = denoised(&*cuda, &places, channels);
        let want = denoised(&cpu, &places, channels);
        let what = format!("{channels} numbers");
        // Normals: next to none is not the same.
        assert_near(&got[0], &want[0], |i| ULP * want[0][i].abs(), &format!("{what}: normals"));
        let others = bits(&got[0]).iter().zip(bits(&want[0])).filter(|(a, b)| *a != b).count();
        assert!(others * 1000 <= want[0].len(), "{others} of {} normals are neighbours", want[0].len());
        assert_same(&got[1], &want[1], &format!("{what}: laws at the beginning"));
        let (ours, theirs) = (laws_of(&got[3], &places, channels), laws_of(&want[3], &places, channels));
        // The temperature's logarithm may be a neighbour: it and the sum with it are off by a unit.
        let apart = |log: f32| ULP * (log.abs() + 1.0);
        for (index, ((ours, theirs), place)) in ours.iter().zip(&theirs).zip(&places).enumerate() {
            let what = format!("{what} at {place:?}");
            assert_same(&ours.mean, &theirs.mean, &format!("{what}: mean"));
            assert_near(&ours.log_deviation, &theirs.log_deviation, |i| apart(theirs.log_deviation[i]), &what);
            // Equal logarithms are added up without an error.
            let same = bits(&ours.log_deviation) == bits(&theirs.log_deviation);
            assert!(!same || (ours.spread - theirs.spread).abs() < 1e-9, "{what}: {} {}", ours.spread, theirs.spread);
            let most: f32 = theirs.log_deviation.iter().map(|&log| apart(log)).sum();
            assert!(
                (ours.spread - theirs.spread).abs() <= f64::from(most),
                "{what}: {} {}",
                ours.spread,
                theirs.spread
            );
            // Deviation, normal and product are off by a unit each, the deviation by what its logarithm is besides.
            let goal = &want[2][index * channels..][..channels];
            let bound = |i: usize| {
                let far = (goal[i] - theirs.mean[i]).abs();
                far * (3.0 * ULP + apart(theirs.log_deviation[i])) + ULP * goal[i].abs()
            };
            assert_near(&got[2][index * channels..][..channels], goal, bound, &format!("{what}: the draw"));
        }
        let (ours, theirs) = (laws_of(&got[5], &places, channels), laws_of(&want[5], &places, channels));
        for (((ours, theirs), before), place) in
            ours.iter().zip(&theirs).zip(laws_of(&got[3], &places, channels)).zip(&places)
        {
            assert_same(&ours.mean, &theirs.mean, &format!("{what} at {place:?}: last mean"));
            assert_eq!(ours.spread, before.spread, "{what} at {place:?}: the last step is not counted");
        }
        // Both branches have the same; of those that are alone the other row is not touched.
        let half = places.len() * channels;
        for (index, &(_, position)) in places.iter().enumerate() {
            let rows = [0, half].map(|first| &got[2][first + index * channels..][..channels]);
            assert_eq!(bits(rows[0]) == bits(rows[1]), position % 3 != 0, "{what}: branches at {position}");
        }
    }
}

/// Bit by bit, whatever else is in the step.
#[test]
fn a_goal_does_not_depend_on_its_company() {
    let cuda = backend();
    let (all, channels) = (everywhere(), 8);
    let whole = denoised(&*cuda, &all, channels);
    for batch in [vec![all[0]], all[..7].to_vec(), all[100..137].to_vec()] {
        let got = denoised(&*cuda, &batch, channels);
        let laws = [&got, &whole].map(|x| laws_of(&x[3], &batch, channels));
        assert_eq!(laws[0], laws[1]);
        for (index, place) in batch.iter().enumerate() {
            let there = all.iter().position(|other| other == place).unwrap();
            for part in [0, 2] {
                let of = |x: &[Vec<f32>; 6], index: usize| x[part][index * channels..][..channels].to_vec();
                assert_same(&of(&got, index), &of(&whole, there), &format!("{place:?} among {}", batch.len()));
            }
        }
    }
}

/// Normals that are given take the place of the image's.
#[test]
fn normals_may_be_given() {
    let (cuda, cpu) = (backend(), cpu());
    fn begun<B: Backend>(b: &B, places: &[(usize, usize)], channels: usize) -> [Vec<f32>; 2] {
        let device = set(b, step(places));
        let given = tensor(b, &Noise(4).values(9 * POSITIONS * channels), channels);
        let mut x = roomy(b, &vec![0.0; 2 * places.len() * channels], channels);
        let mut laws = tensor(b, &vec![0.0; IMAGES * POSITIONS * Law::cols(channels)], Law::cols(channels));
        let predicted = roomy(b, &Noise(5).values(2 * places.len() * 2 * channels), 2 * channels);
        b.begin_denoising(&device, 8, &mut x, &mut into(&mut laws, Some(&given)));
        let first = read(b, &x);
        b.denoise(&device, &DENOISING, &predicted, &mut x, &mut into(&mut laws, Some(&given)));
        [first, read(b, &x)]
    }
    let (got, want) = (begun(&*cuda, &everywhere(), 6), begun(&cpu, &everywhere(), 6));
    assert_same(&got[0], &want[0], "where trajectories begin");
    assert_near(&got[1], &want[1], |i| 8.0 * ULP * (1.0 + want[1][i].abs()), "after a step");
}

/// Latents and verdicts of goals whose laws are these.
fn settled<B: Backend>(
    b: &B,
    places: &[(usize, usize)],
    settlement: Settlement,
    laws: &[Vec<f32>; 2],
    drafts: &[f32],
    channels: usize,
) -> [Vec<f32>; 2] {
    let device = set(b, step(places));
    let [laws, drafted] = laws.each_ref().map(|laws| tensor(b, laws, Law::cols(channels)));
    let mut latents = tensor(b, drafts, channels);
    let mut verdicts = b.tensor(2 * ROOM, 1).unwrap();
    b.settle(&device, settlement, POSITIONS, [&laws, &drafted], &mut latents, &mut verdicts);
    [read(b, &latents), read(b, &verdicts)]
}

/// Laws of a target and of a draft, so far apart, and drafts of the latter.
fn laws(channels: usize, apart: f32, spread: f32) -> ([Vec<f32>; 2], Vec<f32>) {
    let mut noise = Noise(channels as u64 + 9);
    let (mut both, mut drafts) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..IMAGES * POSITIONS {
        let mean = noise.values(channels);
        let log: Vec<f32> = noise.values(channels).iter().map(|x| x - 1.0).collect();
        let other: Vec<f32> = mean.iter().map(|mean| mean + apart * noise.next()).collect();
        let other_log: Vec<f32> = log.iter().map(|log| log + 0.5 * apart * noise.next()).collect();
        drafts.extend(other.iter().zip(&other_log).map(|(mean, log)| mean + log.exp() * noise.next()));
        both[0].extend([&mean[..], &log, &[spread * noise.next(), 1e-9]].concat());
        both[1].extend([&other[..], &other_log, &[spread * noise.next(), -1e-9]].concat());
    }
    (both, drafts)
}

#[test]
fn drafts_are_judged_and_replaced_as_on_the_processor() {
    let (cuda, cpu) = (backend(), cpu());
    let places = everywhere();
    for (channels, apart, spread) in [(8, 0.3, 0.5), (5, 0.6, 0.1), (1, 1.0, 0.3), (40, 0.1, 0.2), (8, 0.3, 90.0)] {
        let (laws, drafts) = laws(channels, apart, spread);
        for (sigma, temper, noise) in [(Sigma::Paper, 1.0, true), (Sigma::Code, 42.0, false), (Sigma::One, 1.0, true)] {
            let settlement = Settlement { criterion: Criterion { sigma, temper }, noise };
            let what = format!("{channels} numbers, {settlement:?}, spread {spread}");
            let got = settled(&*cuda, &places, settlement, &laws, &drafts, channels);
            let want = settled(&cpu, &places, settlement, &laws, &drafts, channels);
            assert_eq!(got[1], want[1], "{what}: verdicts");
            let judged: Vec<f32> =
                places.iter().zip(&got[1]).filter(|((_, at), _)| at % 4 != 0).map(|(_, &verdict)| verdict).collect();
            let kept = judged.iter().sum::<f32>() as usize;
            assert!((1..judged.len()).contains(&kept), "{what}: {kept} of {} pass", judged.len());
            let bound = |i: usize| {
                let (place, channel) = (i / channels, i % channels);
                let far = (want[0][i] - laws[0][place * Law::cols(channels) + channel]).abs();
                ULP * (3.0 * far + want[0][i].abs())
            };
            assert_near(&got[0], &want[0], bound, &what);
            // What passed is as it was drafted.
            for ((&(image, position), verdict), goal) in places.iter().zip(&got[1]).zip(step(&places).goals) {
                let at = (image * POSITIONS + position) * channels;
                let same = bits(&got[0][at..][..channels]) == bits(&drafts[at..][..channels]);
                assert_eq!(same, goal.fate == Fate::Judge && *verdict > 0.0, "{what}: {image}, {position}");
            }
        }
    }
}

/// Rows of a model that looks everywhere, in two sequences of so many rows, and what is gathered for them.
fn open(lengths: &[usize]) -> Step {
    let (mut step, mut page) = (step(&[(0, 0)]), 0);
    step.layout = Layout::default();
    for (sequence, &length) in lengths.iter().enumerate() {
        let pages = length.div_ceil(PAGE) as u32;
        step.layout.sequences.push(PageTable {
            image: sequence as u32 % 2,
            prefix: (page..page + pages).rev().collect(),
            prefix_len: length,
            width: 7,
            ..PageTable::default()
        });
        page += pages;
        for slot in 0..length as u32 {
            let at = (slot > 2).then_some(slot * 11 % POSITIONS as u32);
            step.layout.rows.push(RowPlace { sequence: sequence as u32, slot: Slot::Open { slot, at } });
        }
    }
    step.inputs = (0..step.layout.rows.len()).map(|row| (row * 13 % 70) as u32).collect();
    step
}

#[test]
fn inputs_and_latents_are_gathered() {
    let (cuda, cpu) = (backend(), cpu());
    fn gathered<B: Backend>(b: &B, step: &Step, cols: usize) -> [Vec<f32>; 3] {
        let mut noise = Noise(cols as u64);
        let device = set(b, step.clone());
        let mut out = b.tensor(2 * ROOM, cols).unwrap();
        let (table, behind) = (tensor(b, &noise.values(70 * cols), cols), tensor(b, &noise.values(33 * cols), cols));
        b.gather(&device, &table, None, &mut out);
        let first = read(b, &out);
        // Rows from the 33rd on are of the other.
        b.gather(&device, &behind, Some(&table), &mut out);
        let second = read(b, &out);
        let latents = tensor(b, &noise.values(IMAGES * POSITIONS * cols), cols);
        b.gather_latents(&device, &latents, POSITIONS, &mut out);
        [first, second, read(b, &out)]
    }
    for lengths in [&[3][..], &[20, 31], &[1, 150]] {
        for cols in [8, 192, 5] {
            let step = open(lengths);
            let (got, want) = (gathered(&*cuda, &step, cols), gathered(&cpu, &step, cols));
            for (part, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_same(got, want, &format!("part {part} of {lengths:?} with {cols} columns"));
            }
        }
    }
}

#[test]
fn a_row_is_added_to_all() {
    let (cuda, cpu) = (backend(), cpu());
    fn added<B: Backend>(b: &B, rows: usize, cols: usize, activate: bool) -> [Vec<f32>; 2] {
        let mut noise = Noise(5);
        let x = tensor(b, &noise.values(rows * cols), cols);
        let table = tensor(b, &noise.values(3 * cols), cols);
        let mut out = tensor(b, &vec![0.0; rows * cols], cols);
        let mut rounded = operand(b, &vec![0.0; rows * cols], cols);
        b.add_row(&x, &table, 2, activate, &mut out);
        b.add_row(&x, &table, 2, activate, &mut rounded);
        [read(b, &out), read(b, &rounded)]
    }
    for (rows, cols) in [(1, 1), (3, 192), (5, 7), (300, 64)] {
        for activate in [false, true] {
            let (got, want) = (added(&*cuda, rows, cols, activate), added(&cpu, rows, cols, activate));
            let what = format!("{rows} x {cols}, {activate}");
            // As in `tensors_are_activated`.
            let units = if activate { 8.0 * ULP } else { 0.0 };
            assert_near(&got[0], &want[0], |i| units * want[0][i].abs(), &what);
            assert_same(&got[1], &rounded(&got[0]), &format!("{what}: as an operand"));
        }
    }
}
