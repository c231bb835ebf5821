//! What a step costs against its rows: a layer of a 7B model as one graph, the weights' bytes over the copy's bandwidth as
//! the floor.

use super::layer::{Layer, Scene, Shape};
use serde_json::{Value, json};
use weft::backend::cuda::{CudaBackend, Stopwatch};
use weft::backend::{AttentionShape, Backend, Error};

/// Prints the table.
pub fn run(backend: &CudaBackend, watch: &Stopwatch, copy: f64, small: bool) -> Result<Value, Error> {
    println!("\n| rows of a step | us a layer | of one row | of the weights' floor |\n|---|---|---|---|");
    let attention =
        AttentionShape { heads: if small { 2 } else { 32 }, kv_heads: if small { 2 } else { 32 }, head_dim: 128 };
    let hidden = attention.query();
    let shape = Shape { hidden, intermediate: hidden * 43 / 16, attention };
    let scene = Scene { prompt: 32, side: if small { 8 } else { 24 }, branches: 2 };
    let rows: &[usize] = if small { &[2, 16] } else { &[2, 8, 16, 48, 96, 144, 256, 512] };
    let most = rows.iter().copied().max().unwrap_or(2);
    let mut layer = Layer::new(backend, shape, most, scene.all_pages())?;
    let (mut one, mut all) = (0.0, Vec::new());
    for &m in rows {
        layer.set_rows(backend, m);
        let mut step = backend.step(scene.capacity(most))?;
        backend.set_step(scene.step(m, scene.side * scene.side / 4), &mut step)?;
        backend.reserve(&mut step, &mut |backend, step| layer.forward(backend, step))?;
        let mut seconds = f64::INFINITY;
        for _ in 0..7 {
            let queue = || backend.run(&mut step, &mut |backend, step| layer.forward(backend, step));
            seconds = seconds.min(watch.cold_seconds(queue)?);
        }
        one = if one == 0.0 { seconds } else { one };
        let floor = layer.weight_bytes() as f64 / copy;
        println!("| {m} | {:.1} | {:.2}x | {:.2}x |", seconds * 1e6, seconds / one, seconds / floor);
        all.push(json!({ "rows": m, "seconds": seconds, "of_floor": seconds / floor }));
    }
    Ok(Value::Array(all))
}
