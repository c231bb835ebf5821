//! What the matrix products move, counted by the simulator: the layer of a 7B transformer (4096 wide, 11008 in the middle)
//! reads its weights once, whatever the rows. Without checks and in one schedule: this is about bytes.

#![cfg(weft_cuda)]

#[path = "cuda/support.rs"]
mod support;

use std::ffi::{c_char, c_void};

use half::bf16;
use serde_json::Value;
use support::{backend, load_driver, on_gpu, tensor};
use weft::backend::cuda::{CudaBackend, Weight};
use weft::backend::{Backend, Epilogue, Grouping};

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

fn weight(gpu: &CudaBackend, n: usize, k: usize) -> Weight {
    let data: Vec<bf16> = (0..n * k).map(|i| bf16::from_bits(0x3c00 + (i * 7 % 61) as u16)).collect();
    gpu.weight(&data, n, k).unwrap()
}

/// Runs a product, to its end, and compares what it moved with the least that it could.
fn check(what: &str, m: usize, weights: &[&Weight], n: usize, product: impl FnOnce()) {
    launches();
    product();
    let launches = launches();
    let (rounding, products): (Vec<&Value>, Vec<&Value>) =
        launches.iter().partition(|launch| launch["kernel"] == "weft_linear_round");
    assert_eq!((products.len(), rounding.len() <= 1), (1, true), "{what}: launches");
    let (launch, counters) = (products[0], &products[0]["counters"]);

    // Every sector of the weights is asked for once.
    let size = weights[0].bytes() as u64;
    let allocations = launch["allocations"].as_array().unwrap();
    let of_weights: Vec<&Value> = allocations.iter().filter(|a| number(a, "size") == size).collect();
    assert_eq!(of_weights.len(), weights.len(), "{what}: allocations of the weights");
    for a in of_weights {
        assert_eq!((number(a, "load_bytes"), number(a, "load_sectors")), (size, size / 32), "{what}, {m} rows");
    }

    // What memory sees: the weights, the input (rounded already if there are more than a few rows), the output.
    let k = weights[0].k();
    let input = m * k * if rounding.is_empty() { 4 } else { 2 };
    let compulsory = weights.iter().map(|w| w.bytes()).sum::<usize>() + input + m * n * 4;
    let moved = 32 * (number(counters, "dram_read_sectors") + number(counters, "dram_write_sectors"));
    let ratio = moved as f64 / compulsory as f64;
    let conflicts = number(counters, "bank_conflicts") as f64 / number(counters, "shared_passes") as f64;
    let level2 = 32 * (number(counters, "global_load_sectors") + number(counters, "global_store_sectors"));
    println!(
        "{what:8} {m:3} rows: {:6.1} MB, {ratio:.4} of the least; {:6.1} MB through the level 2 cache; {:.2}% conflicts",
        moved as f64 / 1e6,
        level2 as f64 / 1e6,
        conflicts * 100.0
    );
    assert!(ratio <= 1.03, "{what}, {m} rows: {ratio} of {compulsory} bytes");
    assert!(conflicts <= 0.01, "{what}, {m} rows: {conflicts} of the passes are conflicts");
}

#[test]
fn a_layer_reads_its_weights_once() {
    if on_gpu() {
        return;
    }
    load_driver(&[("CUDA_SIM_CHECK", "none"), ("CUDA_SIM_SWEEP", "1")]);
    let gpu = backend();
    let (width, middle) = (4096, 11008);
    let rows = |m: usize, k: usize| tensor(&*gpu, &vec![0.5; m * k], k);
    let plain = [("qkv", 3 * width, width), ("output", width, width), ("down", width, middle)];
    for (what, n, k) in plain {
        let w = weight(&gpu, n, k);
        for m in [1, 8, 48, 144] {
            let (x, mut out) = (rows(m, k), gpu.tensor(m, n).unwrap());
            check(what, m, &[&w], n, || {
                gpu.linear(&x, &w, &mut out, Epilogue::Store, Grouping::One);
                gpu.read(&out).unwrap();
            });
        }
    }
    let (gate, up) = (weight(&gpu, middle, width), weight(&gpu, middle, width));
    for m in [1, 8, 48, 144] {
        let (x, mut out) = (rows(m, width), gpu.tensor(m, middle).unwrap());
        check("gate, up", m, &[&gate, &up], middle, || {
            gpu.swiglu(&x, &gate, &up, &mut out, Grouping::One);
            gpu.read(&out).unwrap();
        });
    }
}
