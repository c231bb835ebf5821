//! Whole images of the embedded model.

use serde_json::{Value, json};
use weft::backend::cuda::CudaBackend;
use weft::decode::methods::Method;
use weft::engine::{Generator, Request};
use weft::models::embedded;

const PROMPT: &str = "a smiling woman with long red hair, glasses and a green shirt, blue background";

/// Prints the table.
pub fn run(small: bool) -> Result<Value, Box<dyn std::error::Error>> {
    println!("\n| decoder | passes | ms an image | ms of pixels |\n|---|---|---|---|");
    let generator = Generator::load(CudaBackend::new(0)?, &embedded::avatar())?;
    let sampling = generator.default_sampling();
    let methods: &[Method] = match small {
        true => &[Method::WAVEFRONT],
        false => &[Method::Ar, Method::SSD, Method::WAVEFRONT, Method::EXACT],
    };
    let mut all = Vec::new();
    for &method in methods {
        // The first image records the graphs.
        let images = if small { 1 } else { 5 };
        let (mut passes, mut decode, mut pixels) = (0, f64::INFINITY, f64::INFINITY);
        for seed in 0..images {
            let request = Request { prompt: PROMPT.into(), seed, sampling, method };
            let output = generator.generate(&request, &mut |_| ())?;
            passes = output.outcome.stats.nfe;
            decode = decode.min(output.decode_time.as_secs_f64());
            pixels = pixels.min(output.pixel_time.as_secs_f64());
        }
        println!("| {} | {passes} | {:.1} | {:.1} |", method.name(), decode * 1e3, pixels * 1e3);
        all.push(json!({ "decoder": method.name(), "passes": passes, "seconds": decode, "pixels": pixels }));
    }
    Ok(Value::Array(all))
}
