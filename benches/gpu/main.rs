//! The CUDA backend against its device's limits: `cargo bench --bench gpu` on a machine with a GPU.
//!
//! It prints three tables and, with `-- --json FILE`, writes them: each kernel's bandwidth against a copy measured in the
//! same run (cold cache, device time between events), a step of a transformer against its rows, whole images. On the
//! simulator (`LD_LIBRARY_PATH` with its `libcuda.so.1`) it is a smoke test on small shapes: its times mean nothing.
//! `-- roofline` counts, on the simulator, what a step of published models moves, and predicts its time on several GPUs.
//! `benches/README.md` says how to look at the same run with Nsight Systems and Nsight Compute.

#[cfg(weft_cuda)]
mod images;
#[cfg(weft_cuda)]
mod kernels;
#[cfg(weft_cuda)]
mod layer;
#[cfg(weft_cuda)]
mod roofline;
#[cfg(weft_cuda)]
mod step;

use std::process::ExitCode;

#[cfg(not(weft_cuda))]
fn main() -> ExitCode {
    eprintln!("gpu: built without nvcc: `cargo xtask toolkit`, then again");
    ExitCode::SUCCESS
}

#[cfg(weft_cuda)]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("gpu: {message}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(weft_cuda)]
fn run() -> Result<(), Box<dyn std::error::Error>> {
    use weft::backend::Backend;
    use weft::backend::cuda::{CudaBackend, Stopwatch};

    // `cargo bench` adds --bench; `cargo test --benches` runs without it and only wants to see it start.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let json = arguments.iter().position(|argument| argument == "--json").and_then(|at| arguments.get(at + 1));
    let backend = match CudaBackend::new(0) {
        Ok(backend) => backend,
        Err(error) => {
            println!("{error}");
            return Ok(());
        }
    };
    let device = backend.device().clone();
    println!("{}, {} multiprocessors", backend.name(), device.multiprocessors());
    if arguments.first().is_some_and(|argument| argument == "roofline") {
        return roofline::run(&backend);
    }
    let small = backend.name().contains("cuda-sim");
    if small {
        println!("a simulator: small shapes, and times that mean nothing\n");
    }
    let watch = Stopwatch::new(&backend, if small { 1 << 20 } else { 256 << 20 })?;
    let copy = watch.copy_bandwidth()?;
    println!("copy within the device: {:.0} GB/s, read and written\n", copy / 1e9);
    let mut report = serde_json::json!({ "device": backend.name(), "copy_bytes_per_second": copy });
    report["kernels"] = kernels::run(&backend, &watch, copy, small)?;
    report["steps"] = step::run(&backend, &watch, copy, small)?;
    drop((watch, backend));
    report["images"] = images::run(small)?;
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
        println!("\nwritten to {path}");
    }
    Ok(())
}
