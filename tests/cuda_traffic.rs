//! What a layer of a 7B transformer (4096 wide, 11008 in the middle) moves, counted by the simulator: its weights once,
//! whatever the rows and the format, and nothing that the next kernel could have had from the one before. Without checks
//! and in one schedule: this is about bytes.

#![cfg(weft_cuda)]

#[path = "cuda/layouts.rs"]
mod layouts;
#[path = "cuda/support.rs"]
mod support;

use std::ffi::{c_char, c_void};
use std::sync::MutexGuard;

use half::bf16;
use layouts::{Sequences, set};
use serde_json::Value;
use support::{backend, load_driver, on_gpu, operand, tensor};
use weft::backend::cuda::{CudaBackend, Weight};
use weft::backend::{
    AttentionShape, Axes, Backend, Capacity, Draw, Epilogue, Fp8, Grouping, Image, Int4, KvFormat, NONE, Pairing,
    Phase, Rotary, RowPlace, Rule, Slot, Step, Test,
};
use weft::rng::Stream;
use weft::sampling::Sampling;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The counters of the launches since the last call.
fn launches() -> Vec<Value> {
    // SAFETY: the name is a string of C; the handle is that of all loaded libraries.
    let counters = unsafe { dlsym(std::ptr::null_mut(), c"cuda_sim_counters".as_ptr()) };
    assert!(!counters.is_null(), "the simulator has counters");
    // SAFETY: this is the function's type (tests/cuda-sim/README.md).
    let counters: unsafe extern "C" fn(*mut c_char, usize) -> usize = unsafe { std::mem::transmute(counters) };
    // SAFETY: without room nothing is written.
    let mut text = vec![0u8; unsafe { counters(std::ptr::null_mut(), 0) } + 1024];
    // SAFETY: the room is that of the vector.
    let len = unsafe { counters(text.as_mut_ptr().cast(), text.len()) };
    let end = text[..len].iter().rposition(|&byte| byte == b'}').map_or(0, |i| i + 1);
    let all: Value = serde_json::from_slice(&text[..end]).unwrap();
    all["launches"].as_array().unwrap().clone()
}

fn number(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_else(|| panic!("{key} is a number in {of}"))
}

const WIDTH: usize = 4096;
const MIDDLE: usize = 11008;
const ROWS: [usize; 4] = [1, 8, 48, 144];

/// The simulator without checks; one test at a time.
fn start() -> MutexGuard<'static, CudaBackend> {
    load_driver(&[("CUDA_SIM_CHECK", "none"), ("CUDA_SIM_SWEEP", "1")]);
    backend()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Bf16,
    Fp8,
    Int4,
}

fn weight(gpu: &CudaBackend, format: Format, n: usize, k: usize) -> Weight {
    let data: Vec<bf16> = (0..n * k).map(|i| bf16::from_bits(0x3c00 + (i * 7 % 61) as u16)).collect();
    match format {
        Format::Bf16 => gpu.weight(&data, n, k),
        Format::Fp8 => gpu.weight_fp8(&Fp8::quantise(&data, n, k)),
        Format::Int4 => gpu.weight_int4(&Int4::symmetric(&data, n, k)),
    }
    .unwrap()
}

/// Bytes between memory and chip.
fn moved(launch: &Value) -> u64 {
    32 * (number(&launch["counters"], "dram_read_sectors") + number(&launch["counters"], "dram_write_sectors"))
}

/// Runs a product, to its end, and compares what it moved with the least that it could. `bytes` is that of an output.
fn check(what: &str, format: Format, m: usize, weights: &[&Weight], bytes: usize, product: impl FnOnce()) {
    launches();
    product();
    let launches = launches();
    assert_eq!(launches.len(), 1, "{what}: launches");
    let (launch, counters) = (&launches[0], &launches[0]["counters"]);

    // Every sector of the weights is asked for once.
    let (n, k) = (weights[0].n(), weights[0].k());
    let size =
        (n * k * [2, 1][usize::from(format != Format::Bf16)] / if format == Format::Int4 { 2 } else { 1 }) as u64;
    let allocations = launch["allocations"].as_array().unwrap();
    let of_weights: Vec<&Value> = allocations.iter().filter(|a| number(a, "size") == size).collect();
    assert_eq!(of_weights.len(), weights.len(), "{what}: allocations of the weights");
    for a in of_weights {
        assert_eq!((number(a, "load_bytes"), number(a, "load_sectors")), (size, size / 32), "{what}, {m} rows");
    }

    // What memory sees: the weights with their scales, the rounded input, the output.
    let compulsory = weights.iter().map(|w| w.bytes()).sum::<usize>() + m * k * 2 + m * n * bytes;
    let ratio = moved(launch) as f64 / compulsory as f64;
    let conflicts = number(counters, "bank_conflicts") as f64 / number(counters, "shared_passes") as f64;
    let level2 = 32 * (number(counters, "global_load_sectors") + number(counters, "global_store_sectors"));
    println!(
        "{what:8} {format:?} {m:3} rows: {:6.1} MB, {ratio:.4} of the least; {:6.1} MB through the level 2 cache; {:.2}% \
         conflicts",
        moved(launch) as f64 / 1e6,
        level2 as f64 / 1e6,
        conflicts * 100.0
    );
    assert!(ratio <= 1.03, "{what} {format:?}, {m} rows: {ratio} of {compulsory} bytes");
    assert!(conflicts <= 0.01, "{what} {format:?}, {m} rows: {conflicts} of the passes are conflicts");
}

fn products_of(format: Format, plain: &[(&str, usize, usize)]) {
    if on_gpu() {
        return;
    }
    let gpu = start();
    // There before the product is counted.
    let rows = |m: usize, k: usize| {
        let rows = operand(&*gpu, &vec![0.5; m * k], k);
        gpu.read(&rows).unwrap();
        rows
    };
    for &(what, n, k) in plain {
        let w = weight(&gpu, format, n, k);
        for m in ROWS {
            let (x, mut out) = (rows(m, k), gpu.tensor(m, n).unwrap());
            check(what, format, m, &[&w], 4, || {
                gpu.linear(&x, &w, &mut out, Epilogue::Store, Grouping::One);
                gpu.read(&out).unwrap();
            });
        }
    }
    let (gate, up) = (weight(&gpu, format, MIDDLE, WIDTH), weight(&gpu, format, MIDDLE, WIDTH));
    for m in ROWS {
        let (x, mut out) = (rows(m, WIDTH), gpu.operand(m, MIDDLE).unwrap());
        check("gate, up", format, m, &[&gate, &up], 2, || {
            gpu.swiglu(&x, &gate, &up, &mut out, Grouping::One);
            gpu.read(&out).unwrap();
        });
    }
}

#[test]
fn bf16_weights_are_read_once() {
    let plain = [("qkv", 3 * WIDTH, WIDTH), ("output", WIDTH, WIDTH), ("down", WIDTH, MIDDLE)];
    products_of(Format::Bf16, &plain);
}

#[test]
fn fp8_weights_are_read_once() {
    products_of(Format::Fp8, &[("output", WIDTH, WIDTH), ("down", WIDTH, MIDDLE)]);
}

#[test]
fn int4_weights_are_read_once() {
    products_of(Format::Int4, &[("output", WIDTH, WIDTH), ("down", WIDTH, MIDDLE)]);
}

/// A whole layer in the middle of a 24x24 image with a prompt of 64 tokens, both branches: eight launches, and everything
/// that they move together against the weights, keys, values and activations that each has to.
#[test]
fn a_layer_is_eight_launches_that_move_what_they_must() {
    if on_gpu() {
        return;
    }
    let gpu = start();
    let shape = AttentionShape { heads: 32, kv_heads: 32, head_dim: 128 };
    let norm = gpu.vector(&vec![bf16::ONE; WIDTH]).unwrap();
    let of = |n: usize, k: usize| weight(&gpu, Format::Bf16, n, k);
    let (qkv, o, down) = (of(shape.qkv(), WIDTH), of(WIDTH, WIDTH), of(WIDTH, MIDDLE));
    let (gate, up) = (of(MIDDLE, WIDTH), of(MIDDLE, WIDTH));
    let (prompt, side) = (64, 24);
    for m in ROWS {
        let branches = if m == 1 { 1 } else { 2 };
        let frontier = vec![side as u32; side];
        let sequences = Sequences::of(&vec![(prompt, side, &frontier[..]); branches]);
        let positions = (side * side) as u32;
        let rows: Vec<RowPlace> = (0..branches as u32)
            .flat_map(|sequence| {
                (positions - (m / branches) as u32..positions).map(move |p| RowPlace { sequence, slot: Slot::Grid(p) })
            })
            .collect();
        let step = set(&*gpu, sequences.step(&rows));
        let mut kv = gpu.kv_pool(1, sequences.pages, shape, KvFormat::Bf16).unwrap();
        let mut x = tensor(&*gpu, &vec![0.5; m * WIDTH], WIDTH);
        let (mut normed, mut mixed) = (gpu.operand(m, WIDTH).unwrap(), gpu.operand(m, WIDTH).unwrap());
        let (mut heads, mut inner) = (gpu.tensor(m, shape.qkv()).unwrap(), gpu.operand(m, MIDDLE).unwrap());
        let rotary = Rotary { theta: 1e4, axes: Axes::Two, pairing: Pairing::Halves };
        gpu.read(&x).unwrap();
        launches();
        gpu.rms_norm(&x, &norm, 1e-5, &mut normed, Grouping::One);
        gpu.linear(&normed, &qkv, &mut heads, Epilogue::Store, Grouping::One);
        gpu.rotate_and_store(&mut heads, None, rotary, &step, 0, &mut kv);
        gpu.attention(&heads, &step, 0, &kv, &mut mixed);
        gpu.linear(&mixed, &o, &mut x, Epilogue::Add, Grouping::One);
        gpu.rms_norm(&x, &norm, 1e-5, &mut normed, Grouping::One);
        gpu.swiglu(&normed, &gate, &up, &mut inner, Grouping::One);
        gpu.linear(&inner, &down, &mut x, Epilogue::Add, Grouping::One);
        gpu.read(&x).unwrap();

        let weights = |all: &[&Weight]| all.iter().map(|w| w.bytes()).sum::<usize>();
        let (wide, half) = (m * WIDTH * 4, m * WIDTH * 2);
        let (cached, own) = (branches * (prompt + side * side) * 2 * WIDTH * 2, m * 2 * WIDTH * 2);
        let least = [
            ("norm", WIDTH * 4 + wide + half),
            ("qkv", weights(&[&qkv]) + half + 3 * wide),
            // Queries are turned in place, keys and values go to the cache.
            ("rotate", 4 * wide + own),
            ("attention", cached + wide + half),
            ("output", weights(&[&o]) + half + 2 * wide),
            ("norm", WIDTH * 4 + wide + half),
            ("gate, up", weights(&[&gate, &up]) + half + m * MIDDLE * 2),
            ("down", weights(&[&down]) + m * MIDDLE * 2 + 2 * wide),
        ];
        let all = launches();
        let names: Vec<&str> = all.iter().map(|launch| launch["kernel"].as_str().unwrap()).collect();
        assert_eq!(all.len(), least.len(), "{m} rows: {names:?}");
        let (mut moved_by_all, mut least_of_all) = (0, 0);
        for (launch, (what, least)) in all.iter().zip(least) {
            println!(
                "{m:3} rows, {what:9}: {:.4} of {:8.2} MB",
                moved(launch) as f64 / least as f64,
                least as f64 / 1e6
            );
            moved_by_all += moved(launch) as usize;
            least_of_all += least;
        }
        let ratio = moved_by_all as f64 / least_of_all as f64;
        println!("{m:3} rows, the layer: {ratio:.4} of {:.2} MB", least_of_all as f64 / 1e6);
        assert!(ratio <= 1.03, "{m} rows: a layer moves {ratio} of what it must");
    }
}

/// Tokens drawn under guidance from a vocabulary of 16384, plain ones and those of draft trees: a launch for each kind
/// that there is, and each logit, kept probability and row of scratch between memory and chip once, however often it is
/// looked at.
#[test]
fn draws_read_each_logit_once_and_launch_what_there_is() {
    const VOCAB: usize = 16384;
    const NODES: usize = 12;
    const CHILDREN: usize = 4;
    if on_gpu() {
        return;
    }
    let gpu = start();
    let places = NODES * (CHILDREN + 2);
    let mut canvas = gpu.canvas(1, places, VOCAB, true).unwrap();
    let noise = |i: usize| (i * 2654435761 % 65521) as f32 / 16384.0;
    let logits = tensor(&*gpu, &(0..2 * NODES * VOCAB).map(noise).collect::<Vec<_>>(), VOCAB);
    let capacity =
        Capacity { rows: 2 * NODES, sequences: 1, sources: 2 * NODES, siblings: NODES, ..Capacity::default() };
    let mut step = gpu.step(capacity).unwrap();
    let draw = |node: usize, position: usize, rule: Rule| Draw {
        image: 0,
        position: position as u32,
        rule,
        follows: false,
        round: 0,
        conditional: [node as u32, NONE],
        unconditional: [(NODES + node) as u32, NONE],
    };
    let first = |node: usize| node * CHILDREN;
    let of_all = |of: &dyn Fn(usize) -> Draw| (0..NODES).map(of).collect::<Vec<Draw>>();
    let count = CHILDREN as u32;
    let children = of_all(&|node| draw(node, first(node), Rule::Children { count }));
    let plain = of_all(&|node| draw(node, first(NODES) + node, Rule::Coupled));
    let judged = |node: usize| Rule::Siblings { first: first(node) as u32, count, drawn: true };
    let siblings = of_all(&|node| draw(node, first(NODES) + NODES + node, judged(node)));
    let row = NODES * VOCAB * 4;
    let both = [plain.clone(), siblings.clone()].concat();
    for (verdicts, wanted) in [
        (plain, vec![("draw", 2 * row)]),
        // Logits, and the law that is kept.
        (children, vec![("children", 3 * row)]),
        // Logits, the law that was kept, two rows that are written; the first child passes, for the laws are the same.
        (siblings, vec![("siblings", 5 * row)]),
        (both, vec![("draw", 2 * row), ("siblings", 5 * row)]),
    ] {
        let sampling = Sampling { cfg: 3.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
        let images = vec![Image { stream: Stream { seed: 5, image: 0 }, sampling, test: Test::Token }];
        gpu.set_step(Step { images, verdicts, ..Step::default() }, &mut step).unwrap();
        gpu.reserve(&mut step, &mut |gpu, step| gpu.draw(step, Phase::Verdicts, &logits, &mut canvas, None)).unwrap();
        gpu.read(&logits).unwrap();
        launches();
        gpu.draw(&step, Phase::Verdicts, &logits, &mut canvas, None);
        gpu.drawn(&step, &canvas).unwrap();
        let all = launches();
        let names: Vec<&str> = all.iter().map(|launch| launch["kernel"].as_str().unwrap()).collect();
        assert_eq!(names, wanted.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for (launch, (name, most)) in all.iter().zip(wanted) {
            let ratio = moved(launch) as f64 / most as f64;
            println!("{name}: {:.2} MB, {ratio:.4} of what it may", moved(launch) as f64 / 1e6);
            assert!(ratio <= 1.03, "{name}: {ratio} of {most} bytes");
            assert!(ratio > 0.97, "{name}: {ratio}: it did not look");
        }
    }
}
