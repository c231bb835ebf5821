//! The CPU kernels against this machine's limits.
//!
//! `cargo bench --bench cpu_kernels` prints criterion's times; `cargo bench --bench cpu_kernels -- ratios` prints
//! the figures that are quoted: ratios of times taken in turns in one process, so that a busy machine slows both.

use criterion::{Criterion, Throughput};
use half::bf16;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;
use weft::backend::cpu::{CpuBackend, Isa, KvPool, Tensor, Weight};
use weft::backend::{
    AttentionShape, Axes, Backend, Epilogue, GroupNorm, Grouping, KvFormat, Layout, PAGE, PageTable, Pairing, Rotary,
    RowPlace, Slot, Step,
};

/// Repeatable numbers from -1 to 1.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let step = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| step(&mut state)).collect()
}

const MEMORY: &str = "memory for the benchmark";

fn weight(backend: &CpuBackend, n: usize, k: usize) -> Weight {
    let scale = 1.0 / (k as f32).sqrt();
    let source: Vec<bf16> = noise(n * k).into_iter().map(|x| bf16::from_f32(x * scale)).collect();
    backend.weight(&source, n, k).expect(MEMORY)
}

fn tensor(backend: &CpuBackend, rows: usize, cols: usize) -> Tensor {
    let mut x = backend.tensor(rows, cols).expect(MEMORY);
    backend.upload(&noise(rows * cols), &mut x);
    x
}

/// Sums a buffer as fast as it can be read: the ceiling for a matrix-vector product.
fn read_only(buffer: &[u64]) -> u64 {
    let sum = |part: &[u64]| part.iter().fold(0_u64, |a, &x| a.wrapping_add(x));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        return buffer.par_chunks(1 << 17).map(sum_avx512).reduce(|| 0, u64::wrapping_add);
    }
    buffer.par_chunks(1 << 17).map(sum).reduce(|| 0, u64::wrapping_add)
}

#[cfg(target_arch = "x86_64")]
fn sum_avx512(part: &[u64]) -> u64 {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f")]
    fn sum(part: &[u64]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 8];
        for part in part.chunks_exact(64) {
            for (sum, x) in sums.iter_mut().zip(part.chunks_exact(8)) {
                // SAFETY: eight u64 are one vector.
                *sum = _mm512_add_epi64(*sum, unsafe { _mm512_loadu_si512(x.as_ptr().cast()) });
            }
        }
        sums.into_iter().fold(0, |a, x| a.wrapping_add(_mm512_reduce_add_epi64(x) as u64))
    }
    // SAFETY: the caller checked for the feature.
    unsafe { sum(part) }
}

/// What one thread reaches on bf16 products without touching memory, times the threads: the ceiling for many rows.
#[cfg(target_arch = "x86_64")]
fn peak_gflops() -> Option<f64> {
    use std::arch::x86_64::*;
    const CHAINS: usize = 14;
    const STEPS: usize = 1 << 18;
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn multiply() -> f32 {
        // SAFETY: both are 512 bits without invalid values.
        let ones: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(black_box(0x3f80_3f80))) };
        let mut sums: [__m512; CHAINS] = black_box([_mm512_setzero_ps(); CHAINS]);
        for _ in 0..STEPS {
            // By index: references keep the sums in memory.
            #[allow(clippy::needless_range_loop)]
            for i in 0..CHAINS {
                sums[i] = _mm512_dpbf16_ps(sums[i], ones, ones);
            }
        }
        sums.into_iter().fold(0.0, |a, x| a + _mm512_reduce_add_ps(x))
    }
    if !is_x86_feature_detected!("avx512bf16") {
        return None;
    }
    let mut run = || {
        // SAFETY: the feature is there.
        black_box(unsafe { multiply() });
    };
    let best = in_turns(100, &mut [&mut run])[0];
    Some((64 * CHAINS * STEPS * rayon::current_num_threads()) as f64 / best / 1e9)
}

/// A buffer on huge pages like the weights.
struct Probe(memmap2::MmapMut);

impl Probe {
    fn new(bytes: usize) -> Self {
        let mut map = memmap2::MmapMut::map_anon(bytes).expect("memory for the probe");
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        map.fill(1);
        Self(map)
    }

    fn read(&self) -> u64 {
        read_only(bytemuck::cast_slice(&self.0))
    }
}

/// Two branches of a 24x24 image with everything committed up to `rows` new tokens.
fn image(rows: usize) -> Step {
    let pages = 576 / PAGE as u32;
    let table = |s: u32| PageTable {
        prefix: vec![s * (pages + 1)],
        prefix_len: 12,
        grid: (1..=pages).map(|i| s * (pages + 1) + i).collect(),
        width: 24,
        frontier: vec![24; 24],
        ..PageTable::default()
    };
    let first = 576 - rows as u32 / 2;
    let rows = (0..2).flat_map(|sequence| (first..576).map(move |p| RowPlace { sequence, slot: Slot::Grid(p) }));
    let layout = Layout { sequences: vec![table(0), table(1)], rows: rows.collect() };
    Step { layout, ..Step::default() }
}

/// The shape of the embedded model.
const D: usize = 192;
const FF: usize = 512;
const LAYERS: usize = 9;
const HEADS: AttentionShape = AttentionShape { heads: 3, kv_heads: 3, head_dim: 64 };

struct Layer {
    qkv: Weight,
    o: Weight,
    gate: Weight,
    up: Weight,
    down: Weight,
}

/// A transformer of the embedded model's shape: what one step costs in kernels.
struct Model {
    layers: Vec<Layer>,
    norm: <CpuBackend as Backend>::Vector,
    kv: KvPool,
}

/// Activations of a step.
struct Work {
    start: Vec<f32>,
    x: Tensor,
    h: Tensor,
    qkv: Tensor,
    a: Tensor,
    f: Tensor,
}

impl Model {
    fn new(b: &CpuBackend) -> Self {
        let layer = |_| Layer {
            qkv: weight(b, 3 * D, D),
            o: weight(b, D, D),
            gate: weight(b, FF, D),
            up: weight(b, FF, D),
            down: weight(b, D, FF),
        };
        let norm = b.vector(&vec![bf16::ONE; D]).expect(MEMORY);
        Self {
            layers: (0..LAYERS).map(layer).collect(),
            norm,
            kv: b.kv_pool(LAYERS, 74, HEADS, KvFormat::Bf16).expect(MEMORY),
        }
    }

    fn work(b: &CpuBackend, m: usize) -> Work {
        let t = |cols| tensor(b, m, cols);
        Work { start: noise(m * D), x: t(D), h: t(D), qkv: t(3 * D), a: t(D), f: t(FF) }
    }

    fn attention(&self, b: &CpuBackend, w: &mut Work, step: &Step) {
        for layer in 0..LAYERS {
            b.attention(&w.qkv, step, layer, &self.kv, &mut w.a);
        }
    }

    fn step(&mut self, b: &CpuBackend, w: &mut Work, step: &Step) {
        const ROTARY: Rotary = Rotary { theta: 100.0, axes: Axes::Two, pairing: Pairing::Halves };
        b.upload(&w.start, &mut w.x);
        for (i, layer) in self.layers.iter().enumerate() {
            b.rms_norm(&w.x, &self.norm, 1e-5, &mut w.h, Grouping::One);
            b.linear(&w.h, &layer.qkv, &mut w.qkv, Epilogue::Store, Grouping::One);
            b.rotate_and_store(&mut w.qkv, None, ROTARY, step, i, &mut self.kv);
            b.attention(&w.qkv, step, i, &self.kv, &mut w.a);
            b.linear(&w.a, &layer.o, &mut w.x, Epilogue::Add, Grouping::One);
            b.rms_norm(&w.x, &self.norm, 1e-5, &mut w.h, Grouping::One);
            b.swiglu(&w.h, &layer.gate, &layer.up, &mut w.f, Grouping::One);
            b.linear(&w.f, &layer.down, &mut w.x, Epilogue::Add, Grouping::One);
        }
    }
}

/// A VQ decoder's convolutions and norms: 96 channels at 24x24, 64 at 48x48, 32 at 96x96, 3 out.
struct Decoder {
    stages: Vec<(usize, usize, usize, Weight)>,
}

impl Decoder {
    fn new(b: &CpuBackend) -> Self {
        let shapes =
            [(24, 96, 96, 4), (24, 96, 64, 1), (48, 64, 64, 4), (48, 64, 32, 1), (96, 32, 32, 4), (96, 32, 3, 1)];
        let stages = shapes
            .into_iter()
            .flat_map(|(size, cin, cout, times)| (0..times).map(move |_| (size, cin, cout)))
            .map(|(size, cin, cout)| (size, cin, cout, weight(b, cout, 9 * cin)))
            .collect();
        Self { stages }
    }

    fn gflop(&self) -> f64 {
        self.stages.iter().map(|(size, _, _, w)| (2 * size * size * w.n() * w.k()) as f64 / 1e9).sum()
    }

    fn run(&self, b: &CpuBackend) {
        for (size, cin, cout, w) in &self.stages {
            let x = tensor(b, size * size, *cin);
            let mut y = b.tensor(size * size, *cin).expect(MEMORY);
            let mut out = b.tensor(size * size, *cout).expect(MEMORY);
            let [one, bias] = [*cin, *cout].map(|n| b.vector(&vec![bf16::ONE; n]).expect(MEMORY));
            b.group_norm(&x, size * size, GroupNorm { groups: cin / 4, eps: 1e-5, activate: true }, &one, &one, &mut y);
            b.conv3x3(&y, (*size, *size), 1, w, &bias, &mut out);
            black_box(b.read(&out).expect("the CPU does not fail"));
        }
    }
}

/// Best seconds of each function, called in turns: on a busy machine the best of many is what the code can do.
fn in_turns(rounds: usize, functions: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    let mut best = vec![f64::INFINITY; functions.len()];
    for _ in 0..=rounds {
        for (f, best) in functions.iter_mut().zip(&mut best) {
            let start = Instant::now();
            f();
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    best
}

fn ratios_of_large_weights(isa: Isa) {
    let Some(b) = CpuBackend::with_isa(isa) else { return };
    let (n, k) = (65536, 4096);
    let bytes = n * k * 2;
    let probe = Probe::new(bytes);
    let w = weight(&b, n, k);
    let rows = [1, 2, 8, 48];
    let xs: Vec<Tensor> = rows.iter().map(|&m| tensor(&b, m, k)).collect();
    let mut outs: Vec<Tensor> = rows.iter().map(|&m| b.tensor(m, n).expect(MEMORY)).collect();
    let mut calls: Vec<Box<dyn FnMut() + '_>> = vec![Box::new(|| {
        black_box(probe.read());
    })];
    for (x, out) in xs.iter().zip(&mut outs) {
        calls.push(Box::new(|| b.linear(x, &w, out, Epilogue::Store, Grouping::One)));
    }
    let mut calls: Vec<&mut dyn FnMut()> = calls.iter_mut().map(|c| &mut **c as &mut dyn FnMut()).collect();
    let times = in_turns(7, &mut calls);
    println!("{}: weights {n}x{k} bf16", b.name());
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512Bf16, Some(peak)) = (isa, peak_gflops()) {
        println!("  products without memory: {peak:.0} GFLOP/s");
    }
    println!("  read-only    {:7.2} ms  {:6.1} GB/s", times[0] * 1e3, bytes as f64 / times[0] / 1e9);
    for (m, time) in rows.iter().zip(&times[1..]) {
        println!(
            "  M = {m:<3}      {:7.2} ms  {:6.1} GB/s of weights  {:5.2} of the ceiling  {:5.2}x one row  {:6.0} GFLOP/s",
            time * 1e3,
            bytes as f64 / time / 1e9,
            times[0] / time,
            time / times[1],
            (2 * m * n * k) as f64 / time / 1e9,
        );
    }
}

fn ratios_of_embedded(isa: Isa) {
    let Some(b) = CpuBackend::with_isa(isa) else { return };
    let mut model = Model::new(&b);
    println!("{}: {LAYERS} layers, d {D}, ff {FF}, 576 keys, two branches", b.name());
    for m in [2, 24, 100, 300] {
        let layout = image(m);
        let mut work = Model::work(&b, m);
        let rounds = if m == 2 { 101 } else { 21 };
        let mut measure = || {
            let attention = in_turns(rounds, &mut [&mut || model.attention(&b, &mut work, &layout)])[0];
            let step = in_turns(rounds, &mut [&mut || model.step(&b, &mut work, &layout)])[0];
            format!("{:7.0} us ({:.0} in attention)", step * 1e6, attention * 1e6)
        };
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let (outside, inside) = (measure(), pool(0).install(&mut measure));
        println!(
            "  M = {m:<4} step {inside}, called from outside the pool {outside}, one thread {}",
            pool(1).install(measure)
        );
    }
}

fn ratios_of_decoder(isa: Isa) {
    let Some(b) = CpuBackend::with_isa(isa) else { return };
    let decoder = Decoder::new(&b);
    let time = in_turns(15, &mut [&mut || decoder.run(&b)])[0];
    println!("{}: VQ decoder 24x24 -> 96x96, {:.2} GFLOP: {:.1} ms", b.name(), decoder.gflop(), time * 1e3);
}

fn criterion_benches(c: &mut Criterion) {
    let b = CpuBackend::new();
    let (n, k) = (16384, 4096);
    let mut group = c.benchmark_group("large");
    group.sample_size(10).throughput(Throughput::Bytes((n * k * 2) as u64));
    let probe = Probe::new(n * k * 2);
    group.bench_function("read-only", |t| t.iter(|| probe.read()));
    let w = weight(&b, n, k);
    for m in [1, 8, 48] {
        let (x, mut out) = (tensor(&b, m, k), b.tensor(m, n).expect(MEMORY));
        group.bench_function(format!("linear {m}"), |t| {
            t.iter(|| b.linear(&x, &w, &mut out, Epilogue::Store, Grouping::One))
        });
    }
    group.finish();

    let mut model = Model::new(&b);
    let mut group = c.benchmark_group("embedded");
    group.sample_size(10);
    for m in [2, 100, 300] {
        let (layout, mut work) = (image(m), Model::work(&b, m));
        group.bench_function(format!("attention {m}"), |t| t.iter(|| model.attention(&b, &mut work, &layout)));
        group.bench_function(format!("step {m}"), |t| t.iter(|| model.step(&b, &mut work, &layout)));
    }
    let decoder = Decoder::new(&b);
    group.bench_function("vq decoder", |t| t.iter(|| decoder.run(&b)));
    group.finish();
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |what: &str| arguments.iter().any(|a| a == what);
    if asked("ratios") {
        for isa in Isa::ALL
            .into_iter()
            .filter(|isa| asked(&isa.to_string()) || !Isa::ALL.iter().any(|i| asked(&i.to_string())))
        {
            if !asked("small") {
                ratios_of_large_weights(isa);
            }
            ratios_of_embedded(isa);
            ratios_of_decoder(isa);
        }
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    criterion_benches(&mut criterion);
    criterion.final_summary();
}
