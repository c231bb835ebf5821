//! `weft eval`: the table of the README.

use super::Failure;
use super::device::{self, OnBackend};
use super::options::{ModelOptions, SamplingOptions};
use crate::backend::Backend;
use crate::decode::methods::{DECODERS, Method};
use crate::engine::Picture;
use crate::eval::{Estimate, Judge, Report};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::path::PathBuf;

/// Options of `weft eval`.
#[derive(clap::Args)]
pub struct Args {
    /// Decoders to measure, or "all"; each NAME or NAME:KNOB=VALUE:...
    #[arg(long, value_delimiter = ',', default_value = "all")]
    decoders: Vec<String>,
    /// Pictures per decoder, from held-out prompts
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    images: u32,
    /// Print one JSON object per decoder
    #[arg(long)]
    json: bool,
    /// Write the first pictures of the first decoder as a sheet, whatever they look like
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    methods(&args.decoders)?;
    device::on(args.model.device, args)
}

impl OnBackend for Args {
    fn run<B: Backend>(&self, backend: B) -> Result<(), Failure> {
        eval(self, backend)
    }
}

fn eval<B: Backend>(args: &Args, backend: B) -> Result<(), Failure> {
    let methods = methods(&args.decoders)?;
    let files = args.model.files()?;
    let generator = args.model.load(backend, &files)?;
    let judge = Judge::load(&generator, &files)?;
    let sampling = args.sampling.resolve(&generator)?;
    let style = ProgressStyle::with_template("{msg:<10} {bar:40} {pos}/{len} pictures {elapsed}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut out = std::io::stdout().lock();
    let (mut plain, mut sheet): (Option<Report>, _) = (None, args.sheet.as_ref());
    if !args.json {
        writeln!(
            out,
            "{} pictures per decoder, cfg {}, temperature {}, {}\n",
            args.images,
            sampling.cfg,
            sampling.temperature,
            generator.model.backend.name()
        )?;
        writeln!(
            out,
            "| decoder | law | NFE | passes saved | time saved | drafts accepted | attribute accuracy | NLL, bits/token | FID |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
    }
    for method in methods {
        bar.reset();
        bar.set_length(u64::from(args.images));
        bar.set_message(method.name());
        let report = judge.run(&generator, method, sampling, args.images as usize, &|| bar.inc(1))?;
        bar.suspend(|| -> Result<(), Failure> {
            if args.json {
                writeln!(out, "{}", serde_json::to_string(&report)?)?;
            } else {
                writeln!(out, "{}", row(&report, plain.as_ref()))?;
            }
            Ok(())
        })?;
        if let Some(path) = sheet.take() {
            Picture::sheet(&report.pictures, 5).save(path, &[("decoder", report.knobs.clone())])?;
        }
        if method == Method::Ar {
            plain = Some(report);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn methods(names: &[String]) -> Result<Vec<Method>, Failure> {
    if names == ["all"] {
        return Ok(DECODERS.iter().map(|decoder| decoder.name.parse()).collect::<Result<_, _>>()?);
    }
    Ok(names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?)
}

/// The decoder's name with its default knobs.
fn default_knobs(report: &Report) -> String {
    report.decoder.parse::<Method>().map_or_else(|_| report.decoder.clone(), |method| method.to_string())
}

/// A row of the table; ratios are to plain AR in the same run.
fn row(report: &Report, plain: Option<&Report>) -> String {
    let ratio = |value: fn(&Report) -> f64| {
        plain
            .or((report.decoder == "ar").then_some(report))
            .map_or("".into(), |plain| format!("{:.2}x", value(plain) / value(report)))
    };
    let with_error = |estimate: Estimate, scale: f64, digits: usize| {
        format!("{:.digits$} ± {:.digits$}", estimate.value * scale, estimate.error * scale)
    };
    format!(
        "| {} | {} | {:.1} | {} | {} | {:.0}% | {}% | {} | {} |",
        if report.knobs == default_knobs(report) { &report.decoder } else { &report.knobs },
        if report.exact { "exact" } else { "relaxed" },
        report.nfe.value,
        ratio(|report| report.nfe.value),
        ratio(|report| report.seconds.value),
        100.0 * report.acceptance.value,
        with_error(report.attribute_accuracy, 100.0, 1),
        with_error(report.nll, 1.0, 3),
        with_error(report.fid, 1.0, 3),
    )
}
