//! `weft generate`: pictures from a prompt.

use super::Failure;
use super::device::{self, OnBackend};
use super::options::{ModelOptions, SamplingOptions};
use crate::backend::Backend;
use crate::checkpoint::Files;
use crate::decode::methods::Method;
use crate::engine::{Generator, Output, Picture, Request};
use crate::sampling::Sampling;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Options of `weft generate`.
#[derive(clap::Args)]
pub struct Args {
    /// What the picture shows
    #[arg(required = true)]
    prompt: Vec<String>,
    /// PNG file to write; with --n above 1, FILE-1.png, FILE-2.png, ...
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// Number of pictures
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    n: u32,
    /// Pictures of --n that are made together, so that a pass reads the weights once for all of them; the pictures are the same
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    batch: u32,
    /// Seed of all randomness; the pictures of --n take this seed and the ones after it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Decoder, see `weft decoders`; NAME or NAME:KNOB=VALUE:...
    #[arg(long, default_value = DEFAULT_DECODER)]
    decoder: Method,
    /// The same picture that plain AR would make, bit for bit: --decoder exact
    #[arg(long, conflicts_with_all = ["decoder", "rounds"])]
    exact: bool,
    /// Verifications per token, for decoders that have such a knob
    #[arg(long)]
    rounds: Option<u32>,
    /// Write all pictures as one sheet to FILE
    #[arg(long)]
    grid_sheet: bool,
    /// Print one JSON object per picture
    #[arg(long)]
    json: bool,
    /// Add the token ids to the JSON
    #[arg(long, requires = "json")]
    tokens: bool,
}

/// The fewest passes among the decoders whose pictures are as good as plain AR's, to the figures of the README's table and
/// to the eye: the wavefront has the figures, but more faces that are smudged.
pub const DEFAULT_DECODER: &str = "exact";

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    check_output(&args.output)?;
    device::on(args.model.device, args)
}

impl OnBackend for Args {
    fn run<B: Backend>(&self, backend: B) -> Result<(), Failure> {
        generate(self, backend)
    }
}

fn generate<B: Backend>(args: &Args, backend: B) -> Result<(), Failure> {
    let files = args.model.files()?;
    let generator = args.model.load(backend, &files)?;
    let request = request(args, &generator)?;
    warn_about_words(&generator, &request.prompt)?;
    let bar = progress_bar(u64::from(args.n) * generator.positions(request.method) as u64);
    let (mut totals, mut sheet) = (Totals::default(), Vec::new());
    let seeds: Vec<u64> = (0..u64::from(args.n)).map(|image| args.seed.wrapping_add(image)).collect();
    let paths = |image: usize| match args.grid_sheet {
        true => args.output.clone(),
        false => numbered(&args.output, image, args.n),
    };
    for (batch, seeds) in seeds.chunks(args.batch as usize).enumerate() {
        let requests: Vec<Request> = seeds.iter().map(|&seed| Request { seed, ..request.clone() }).collect();
        let first = batch * args.batch as usize;
        let done = first * generator.positions(request.method);
        let outputs = generator.generate_all(&requests, &mut |tokens| bar.set_position((done + tokens) as u64));
        let outputs = outputs.map_err(|error| smaller(error, requests.len()))?;
        for (index, (request, output)) in requests.iter().zip(outputs).enumerate() {
            totals.add(&output);
            let path = paths(first + index);
            if !args.grid_sheet {
                output.picture.save(&path, &texts(args, request, &files))?;
            }
            if args.json {
                let line = json(args, &generator, request, &path, &output);
                bar.suspend(|| writeln!(std::io::stdout(), "{line}"))?;
            }
            if args.grid_sheet {
                sheet.push(output.picture);
            }
        }
    }
    bar.finish_and_clear();
    if args.grid_sheet {
        let columns = (f64::from(args.n)).sqrt().ceil() as usize;
        Picture::sheet(&sheet, columns).save(&args.output, &texts(args, &request, &files))?;
    }
    let summary = totals.summary(generator.pass_bytes(request.method)?, request.method.name());
    if args.json {
        writeln!(std::io::stderr(), "{summary}")?
    } else {
        writeln!(std::io::stdout(), "{summary}")?
    }
    Ok(())
}

/// What to do when pictures have no room together.
fn smaller(error: crate::engine::Error, together: usize) -> Failure {
    match error {
        crate::engine::Error::Backend(crate::backend::Error::OutOfMemory { .. }) if together > 1 => {
            format!("{error}; --batch {together} makes so many pictures together, a smaller one needs less").into()
        }
        _ => error.into(),
    }
}

/// What it takes to make a picture again, for its text chunks.
fn texts(args: &Args, request: &Request, files: &Files) -> Vec<(&'static str, String)> {
    let Sampling { cfg, temperature, top_k, top_p } = request.sampling;
    let mut texts = vec![
        ("prompt", request.prompt.clone()),
        ("seed", request.seed.to_string()),
        ("decoder", request.method.to_string()),
        ("model", files.describe()),
        ("sampling", format!("cfg {cfg}, temperature {temperature}, top-k {top_k}, top-p {top_p}")),
    ];
    texts.extend(args.model.formats().map(|formats| ("formats", formats)));
    texts
}

fn request<B: Backend>(args: &Args, generator: &Generator<B>) -> Result<Request, Failure> {
    let mut method = if args.exact { Method::EXACT } else { args.decoder };
    if let Some(rounds) = args.rounds {
        method = method.with_knob("rounds", &rounds.to_string())?;
    }
    let sampling = args.sampling.resolve(generator)?;
    Ok(Request { prompt: args.prompt.join(" "), seed: args.seed, sampling, method })
}

/// Finds out before any work that the output cannot be written.
fn check_output(path: &Path) -> Result<(), Failure> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if path.file_name().is_none() || path.is_dir() {
        return Err(format!("--output {}: this is not a file name", path.display()).into());
    }
    if !folder.is_dir() {
        return Err(format!("--output {}: the directory {} does not exist", path.display(), folder.display()).into());
    }
    if std::fs::metadata(folder)?.permissions().readonly() {
        return Err(format!("--output {}: the directory {} is read-only", path.display(), folder.display()).into());
    }
    Ok(())
}

fn warn_about_words<B: Backend>(generator: &Generator<B>, text: &str) -> Result<(), Failure> {
    let prompt = generator.prompt(text)?;
    if !prompt.unknown.is_empty() {
        eprintln!("weft: warning: the model never saw these words and ignores them: {}", prompt.unknown.join(", "));
    }
    if prompt.dropped > 0 {
        eprintln!("weft: warning: the prompt is too long, its last {} words are ignored", prompt.dropped);
    }
    Ok(())
}

/// `FILE` for a single picture, else `FILE-1`, `FILE-2`, ... before the extension.
fn numbered(path: &Path, image: usize, n: u32) -> PathBuf {
    if n == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or(String::new(), |extension| format!(".{}", extension.to_string_lossy()));
    path.with_file_name(format!("{stem}-{}{extension}", image + 1))
}

/// Draws on a terminal only.
fn progress_bar(tokens: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} tokens {elapsed}");
    ProgressBar::new(tokens).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn json<B: Backend>(
    args: &Args,
    generator: &Generator<B>,
    request: &Request,
    path: &Path,
    output: &Output,
) -> serde_json::Value {
    let (stats, tokens, positions) = (output.outcome.stats, &output.outcome.tokens, output.outcome.first.len());
    let mut object = serde_json::json!({
        "file": path.to_string_lossy(),
        "width": output.picture.width,
        "height": output.picture.height,
        "seed": request.seed,
        "device": generator.model.backend.name(),
        "decoder": request.method.name(),
        "exact": request.method.is_exact(),
        "nfe": stats.nfe,
        "tokens": positions,
        "tokens_per_pass": positions as f64 / stats.nfe as f64,
        "acceptance": stats.acceptance(),
        "rows": stats.rows,
        "draft_passes": stats.draft.passes,
        "draft_rows": stats.draft.rows,
        "batch": args.batch.min(args.n),
        "seconds": (output.decode_time + output.pixel_time).as_secs_f64(),
    });
    if args.tokens {
        // A continuous picture has positions and no tokens.
        object["token_ids"] = if tokens.is_empty() { serde_json::Value::Null } else { tokens.as_slice().into() };
    }
    object
}

/// Sums over the pictures of a run.
#[derive(Default)]
struct Totals {
    images: usize,
    tokens: usize,
    /// Passes, each counted once for all pictures that it served.
    passes: f64,
    stats: crate::decode::Stats,
    decode_seconds: f64,
    pixel_seconds: f64,
}

impl Totals {
    fn add(&mut self, output: &Output) {
        self.images += 1;
        self.tokens += output.outcome.first.len();
        self.passes += output.passes;
        self.stats.nfe += output.outcome.stats.nfe;
        self.stats.drafted += output.outcome.stats.drafted;
        self.stats.accepted += output.outcome.stats.accepted;
        self.decode_seconds += output.decode_time.as_secs_f64();
        self.pixel_seconds += output.pixel_time.as_secs_f64();
    }

    /// The last line: what it cost, per picture. GB/s counts every pass as one read of the decoder's weights.
    fn summary(&self, pass_bytes: usize, decoder: &str) -> String {
        let per = |total: f64| total / self.images as f64;
        let bytes = self.passes * pass_bytes as f64;
        format!(
            "{decoder}: {:.0} passes, {:.1} tokens/pass, {:.0}% accepted, {:.0} ms ({:.0} ms pixels), {:.1} GB/s of weights",
            per(self.stats.nfe as f64),
            self.tokens as f64 / self.stats.nfe as f64,
            100.0 * self.stats.acceptance(),
            per(1e3 * (self.decode_seconds + self.pixel_seconds)),
            per(1e3 * self.pixel_seconds),
            bytes / self.decode_seconds / 1e9,
        )
    }
}
