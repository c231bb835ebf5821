//! What a step of published models moves and computes, counted on the simulator, and the time that follows on several
//! GPUs. Predictions, from data sheets and stated efficiencies; nothing here was measured on a device.

use super::layer::{Layer, Scene, Shape, weight};
use serde_json::Value;
use std::ffi::{CStr, c_char, c_int, c_void};
use weft::backend::cuda::CudaBackend;
use weft::backend::{AttentionShape, Backend, Epilogue, Grouping};

/// A model's decoder and the image it makes.
struct Model {
    name: &'static str,
    layers: usize,
    shape: Shape,
    vocab: usize,
    scene: Scene,
    /// Milliseconds of a step of SSD as published (arXiv 2606.20543), one RTX PRO 6000 Blackwell.
    published: f64,
}

const fn decoder(kv_heads: usize, intermediate: usize) -> Shape {
    Shape { hidden: 4096, intermediate, attention: AttentionShape { heads: 32, kv_heads, head_dim: 128 } }
}

/// Sizes from the models' published configurations; an end-of-line token widens the rows of the last two.
const MODELS: [Model; 3] = [
    Model {
        name: "Janus-Pro-7B, 24x24",
        layers: 30,
        shape: decoder(32, 11008),
        vocab: 16384,
        scene: Scene { prompt: 32, side: 24, branches: 2 },
        published: 17.3,
    },
    Model {
        name: "Lumina-mGPT-7B, 48x48",
        layers: 32,
        shape: decoder(32, 11008),
        vocab: 8192,
        scene: Scene { prompt: 64, side: 49, branches: 2 },
        published: 26.8,
    },
    Model {
        name: "Emu3-8B, 90x90",
        layers: 32,
        shape: decoder(8, 14336),
        vocab: 32768,
        scene: Scene { prompt: 64, side: 91, branches: 2 },
        published: 38.7,
    },
];

/// A GPU: bytes per second of its memory, dense bf16 operations per second with f32 sums.
struct Gpu {
    name: &'static str,
    bandwidth: f64,
    operations: f64,
}

/// NVIDIA's data sheets: H100 SXM and H200 SXM (dense is half of the rate with sparsity), the Ada and RTX Blackwell
/// architecture papers for the others.
const GPUS: [Gpu; 4] = [
    Gpu { name: "H100", bandwidth: 3.35e12, operations: 989e12 },
    Gpu { name: "H200", bandwidth: 4.8e12, operations: 989e12 },
    Gpu { name: "RTX PRO 6000", bandwidth: 1.792e12, operations: 503.8e12 },
    Gpu { name: "RTX 4090", bandwidth: 1.008e12, operations: 165.2e12 },
];

/// What a well-made kernel reaches of the data sheet's bandwidth and rate, and what a node of a graph costs besides.
const BANDWIDTH: f64 = 0.85;
const RATE: f64 = 0.6;
const NODE: f64 = 1.5e-6;

/// What a kernel moves between memory and the chip, and its tensor-core operations.
struct Kernel {
    bytes: f64,
    operations: f64,
}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The simulator's counters since the last call.
struct Counters(extern "C" fn(*mut c_char, usize) -> usize);

impl Counters {
    fn find() -> Result<Self, Box<dyn std::error::Error>> {
        const NOW: c_int = 2;
        let symbol = |name: &CStr| {
            // SAFETY: the library is loaded already, as the driver; both names are strings of C.
            unsafe { dlsym(dlopen(c"libcuda.so.1".as_ptr(), NOW), name.as_ptr()) }
        };
        let found = symbol(c"cuda_sim_counters");
        if found.is_null() {
            return Err("the roofline is made from the simulator's counters: see tests/cuda-sim/README.md".into());
        }
        // SAFETY: the simulator's function has this signature.
        let counters =
            Self(unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_char, usize) -> usize>(found) });
        counters.take()?;
        Ok(counters)
    }

    fn take(&self) -> Result<Vec<Kernel>, Box<dyn std::error::Error>> {
        let mut buffer = vec![0_u8; 1 << 20];
        loop {
            let length = self.0(buffer.as_mut_ptr().cast(), buffer.len());
            if length < buffer.len() {
                buffer.truncate(length);
                break;
            }
            buffer.resize(length + 1, 0);
        }
        let json: Value = serde_json::from_slice(&buffer)?;
        let number = |launch: &Value, key: &str| launch["counters"][key].as_f64().unwrap_or(0.0);
        let kernel = |launch: &Value| Kernel {
            bytes: 32.0 * (number(launch, "dram_read_sectors") + number(launch, "dram_write_sectors")),
            operations: number(launch, "matrix_flops"),
        };
        Ok(json["launches"].as_array().map_or(Vec::new(), |launches| launches.iter().map(kernel).collect()))
    }
}

/// Prints the tables.
pub fn run(backend: &CudaBackend) -> Result<(), Box<dyn std::error::Error>> {
    let counters = Counters::find()?;
    println!(
        "predictions: bytes and operations counted on the simulator, {BANDWIDTH} of the bandwidth, {RATE} of the rate, \
         {} us a kernel\n",
        NODE * 1e6
    );
    print!("| model | rows | kernels | GB moved | GFLOP | published ms |");
    GPUS.iter().for_each(|gpu| print!(" {} floor | predicted |", gpu.name));
    println!("\n|---|---|---|---|---|---|{}", "---|---|".repeat(GPUS.len()));
    for model in &MODELS {
        for rows in [model.scene.branches, model.scene.branches * model.scene.side] {
            let step = count(backend, &counters, model, rows)?;
            let published = if rows > model.scene.branches { format!("{}", model.published) } else { String::new() };
            print_row(model, rows, &step, &published);
        }
    }
    Ok(())
}

fn print_row(model: &Model, rows: usize, step: &[(usize, Kernel)], published: &str) {
    let sum = |of: &dyn Fn(&Kernel) -> f64| step.iter().map(|(times, kernel)| *times as f64 * of(kernel)).sum::<f64>();
    let (bytes, operations) = (sum(&|kernel| kernel.bytes), sum(&|kernel| kernel.operations));
    let kernels: usize = step.iter().map(|(times, _)| times).sum();
    print!("| {} | {rows} | {kernels} | {:.2} | {:.0} | {published} |", model.name, bytes / 1e9, operations / 1e9);
    for gpu in &GPUS {
        let time = |kernel: &Kernel| {
            (kernel.bytes / (BANDWIDTH * gpu.bandwidth)).max(kernel.operations / (RATE * gpu.operations)) + NODE
        };
        let floor = sum(&|kernel| (kernel.bytes / gpu.bandwidth).max(kernel.operations / gpu.operations));
        print!(" {:.2} | {:.2} |", floor * 1e3, sum(&time) * 1e3);
    }
    println!();
}

/// The kernels of a step in the middle of an image, each with how often it runs.
fn count(
    backend: &CudaBackend,
    counters: &Counters,
    model: &Model,
    rows: usize,
) -> Result<Vec<(usize, Kernel)>, Box<dyn std::error::Error>> {
    let scene = model.scene;
    let mut layer = Layer::new(backend, model.shape, rows, scene.all_pages())?;
    let head = weight(backend, model.vocab, model.shape.hidden)?;
    let (mut x, mut logits) = (backend.operand(rows, model.shape.hidden)?, backend.tensor(rows, model.vocab)?);
    let mut step = backend.step(scene.capacity(rows))?;
    backend.set_step(scene.step(rows, scene.side * (scene.side / 2)), &mut step)?;
    backend.upload(&vec![0.5; rows * model.shape.hidden], &mut x);
    backend.read(&x)?;
    counters.take()?;
    layer.forward(backend, &step);
    backend.read(&x)?;
    let layers = counters.take()?.into_iter().map(|kernel| (model.layers, kernel));
    let layers: Vec<_> = layers.collect();
    backend.linear(&x, &head, &mut logits, Epilogue::Store, Grouping::One);
    backend.read(&x)?;
    Ok(layers.into_iter().chain(counters.take()?.into_iter().map(|kernel| (1, kernel))).collect())
}
