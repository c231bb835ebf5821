//! Each kernel's bandwidth: the bytes that it cannot avoid over its time, against a copy.

use super::layer::{Layer, Scene, Shape, weight};
use serde_json::{Value, json};
use weft::backend::cuda::{CudaBackend, Stopwatch};
use weft::backend::{AttentionShape, Backend, Epilogue, Error, Grouping};

/// Best of several.
fn best(mut time: impl FnMut() -> Result<f64, Error>) -> Result<f64, Error> {
    (0..7).try_fold(f64::INFINITY, |best, _| Ok(best.min(time()?)))
}

fn report(name: &str, rows: usize, bytes: usize, seconds: f64, copy: f64) -> Value {
    let rate = bytes as f64 / seconds;
    println!(
        "| {name} | {rows} | {:.1} | {:.1} | {:.0} | {:.2} |",
        bytes as f64 / 1e6,
        seconds * 1e6,
        rate / 1e9,
        rate / copy
    );
    json!({ "kernel": name, "rows": rows, "bytes": bytes, "seconds": seconds, "of_copy": rate / copy })
}

/// Prints the table.
pub fn run(backend: &CudaBackend, watch: &Stopwatch, copy: f64, small: bool) -> Result<Value, Error> {
    println!("| kernel | rows | MB that must move | us | GB/s | of the copy |\n|---|---|---|---|---|---|");
    let scale = if small { 16 } else { 1 };
    let rows: &[usize] = if small { &[1, 16] } else { &[1, 2, 8, 16, 48, 96, 144, 256, 512] };
    let mut all = Vec::new();
    let (d, f) = (4096 / scale, 11008 / scale);
    for (name, n, k) in [("linear 3d x d", 3 * d, d), ("linear d x d", d, d), ("linear d x f", d, f)] {
        let w = weight(backend, n, k)?;
        for &m in rows {
            let (x, mut out) = (filled(backend, m, k)?, backend.tensor(m, n)?);
            let bytes = 2 * n * k + m * (4 * n + 2 * k);
            let mut queue = || backend.linear(&x, &w, &mut out, Epilogue::Store, Grouping::One);
            let seconds = best(|| watch.cold_seconds(&mut queue))?;
            all.push(report(name, m, bytes, seconds, copy));
        }
    }
    let (gate, up) = (weight(backend, f, d)?, weight(backend, f, d)?);
    for &m in rows {
        let (x, mut out) = (filled(backend, m, d)?, backend.operand(m, f)?);
        let bytes = 4 * f * d + 2 * m * (f + d);
        let seconds = best(|| watch.cold_seconds(|| backend.swiglu(&x, &gate, &up, &mut out, Grouping::One)))?;
        all.push(report("SwiGLU f x d", m, bytes, seconds, copy));
    }
    attention(backend, watch, copy, small, &mut all)?;
    Ok(Value::Array(all))
}

fn filled(backend: &CudaBackend, rows: usize, cols: usize) -> Result<<CudaBackend as Backend>::Tensor, Error> {
    let mut x = backend.operand(rows, cols)?;
    backend.upload(&vec![0.5; rows * cols], &mut x);
    Ok(x)
}

/// Keys and values of everything committed, read once for all rows.
fn attention(
    backend: &CudaBackend,
    watch: &Stopwatch,
    copy: f64,
    small: bool,
    all: &mut Vec<Value>,
) -> Result<(), Error> {
    let heads = if small { 2 } else { 32 };
    let attention = AttentionShape { heads, kv_heads: heads, head_dim: 128 };
    let shape = Shape { hidden: 256, intermediate: 256, attention };
    for side in if small { [8, 12] } else { [24, 64] } {
        let scene = Scene { prompt: 32, side, branches: 2 };
        for rows in [2, 2 * side] {
            let mut layer = Layer::new(backend, shape, rows, scene.all_pages())?;
            let mut step = backend.step(scene.capacity(rows))?;
            let committed = side * side - rows / 2;
            backend.set_step(scene.step(rows, committed), &mut step)?;
            layer.project(backend, &step);
            let bytes = 2 * scene.branches * 2 * attention.key() * (scene.prompt + side * side);
            let seconds = best(|| watch.cold_seconds(|| layer.attend(backend, &step)))?;
            all.push(report(&format!("attention {side}x{side}"), rows, bytes, seconds, copy));
        }
    }
    Ok(())
}
