//! `weft inspect`: what a checkpoint is and what it needs.

use super::Failure;
use crate::backend::PAGE;
use crate::backend::cpu::CpuBackend;
use crate::checkpoint::Files;
use crate::engine::Generator;
use crate::kv::Allocator;
use crate::models::embedded;
use std::io::Write;
use std::path::PathBuf;

/// Options of `weft inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of a model; the embedded one when absent
    model: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Runs the command. Loading checks every tensor, so an answer means that the checkpoint is whole.
pub fn run(args: &Args) -> Result<(), Failure> {
    let files = args.model.clone().map_or_else(embedded::avatar, Files::Directory);
    let generator = Generator::load(CpuBackend::new(), &files)?;
    let classifier = generator.model.load_classifier(&files)?;
    let config = &generator.model.config;
    let (grid, shape) = (config.grid(), config.attention());
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "model       {} ({}), {}",
        config.model_type,
        Files::describe(&files),
        config.architectures.join(", ")
    )?;
    writeln!(
        out,
        "decoder     {} layers, {} wide, {} heads of {}, SwiGLU {}, rotary base {}",
        config.num_hidden_layers,
        config.hidden_size,
        shape.heads,
        shape.head_dim,
        config.intermediate_size,
        config.rope_theta
    )?;
    writeln!(
        out,
        "image       {}x{} tokens of {}, {}x{} pixels",
        grid.height,
        grid.width,
        config.image_vocab_size,
        grid.height * config.vq.downscale,
        grid.width * config.vq.downscale
    )?;
    let (horizontal, vertical) = config.heads();
    writeln!(out, "drafts      {horizontal} horizontal and {vertical} vertical heads")?;
    writeln!(
        out,
        "prompt      {} words known, {} at most",
        config.text_encoder.vocab_size,
        config.text_encoder.max_positions - 1
    )?;
    let defaults = config.generation;
    writeln!(
        out,
        "defaults    cfg {}, temperature {}, top-k {}, top-p {}",
        defaults.cfg, defaults.temperature, defaults.top_k, defaults.top_p
    )?;
    let judged = classifier.map_or(0, |classifier| classifier.attributes().count());
    writeln!(out, "evaluation  {judged} attributes")?;
    let mut total = 0;
    for stem in ["model", "vq", "classifier"].into_iter().filter(|stem| files.contains(&format!("{stem}.safetensors")))
    {
        let tensors = files.tensors(stem)?;
        total += tensors.byte_len();
        writeln!(out, "weights     {:<10} {:>12} bytes, {} tensors", stem, tensors.byte_len(), tensors.list().count())?;
        if args.tensors {
            for (name, dtype, shape) in tensors.list() {
                writeln!(out, "            {name} {dtype} {shape:?}")?;
            }
        }
    }
    let page = config.num_hidden_layers * 2 * shape.kv_heads * shape.head_dim * PAGE * 2;
    let pages = Allocator::pages_for(grid.len());
    writeln!(
        out,
        "memory      {total} bytes of weights; keys and values {} bytes per branch of an image, and {page} per {PAGE} prompt tokens",
        pages * page
    )?;
    Ok(())
}
