//! `weft eval`: the tables and the plot of the documentation.

use super::Failure;
use super::device::{self, OnBackend};
use super::options::{ModelOptions, SamplingOptions};
use crate::backend::Backend;
use crate::decode::methods::{DECODERS, Method};
use crate::engine::picture::write_whole;
use crate::engine::{Error, Generator, Picture};
use crate::eval::{Cost, Estimate, Judge, Report, plot};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Options of `weft eval`.
#[derive(clap::Args)]
pub struct Args {
    /// Decoders to measure, "all", or "sweep" for all with several settings each; each NAME or NAME:KNOB=VALUE:...
    #[arg(long, value_delimiter = ',', default_value = "all")]
    decoders: Vec<String>,
    /// Pictures per decoder, from held-out prompts
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    images: u32,
    /// Print one JSON object per decoder instead of the table, or write them to FILE beside it
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Draw speed against quality, as SVG or PNG by the name
    #[arg(long, value_name = "FILE.svg|FILE.png")]
    plot: Option<PathBuf>,
    /// Measure nothing: take the reports that --json wrote to these files
    #[arg(long, value_name = "FILE", value_delimiter = ',', conflicts_with_all = ["decoders", "images", "sheet", "json"])]
    from: Vec<PathBuf>,
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
    if !args.from.is_empty() {
        return again(args);
    }
    methods(&args.decoders)?;
    device::on(args.model.device, args)
}

impl OnBackend for Args {
    fn run<B: Backend>(&self, backend: B) -> Result<(), Failure> {
        eval(self, backend)
    }
}

/// The table and the plot of earlier reports.
fn again(args: &Args) -> Result<(), Failure> {
    let mut reports: Vec<Report> = Vec::new();
    for path in &args.from {
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
        let lines = text.lines().map(serde_json::from_str);
        reports.extend(lines.collect::<Result<Vec<Report>, _>>().map_err(|error| named(&error))?);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{HEADER}")?;
    let mut plain = Plain::default();
    reports.iter().for_each(|report| plain.learn(report));
    for report in &mut reports {
        plain.compare(report);
        writeln!(out, "{}", row(report))?;
    }
    draw(args.plot.as_deref(), &reports)
}

/// What plain decoding costs: of the tokens' model, and of the continuous one.
#[derive(Default)]
struct Plain([Option<Cost>; 2]);

impl Plain {
    fn of(&mut self, report: &Report) -> Option<(Method, &mut Option<Cost>)> {
        let method: Method = report.knobs.parse().ok()?;
        Some((method, &mut self.0[usize::from(method.continuous().is_some())]))
    }

    fn learn(&mut self, report: &Report) {
        if let Some((method, cost @ None)) = self.of(report)
            && method.is_plain()
        {
            *cost = Some(report.cost());
        }
    }

    fn compare(&mut self, report: &mut Report) {
        if let Some((_, Some(cost))) = self.of(report) {
            report.compare(cost);
        }
    }
}

fn draw(path: Option<&Path>, reports: &[Report]) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        return Ok(plot::picture(reports).save(path, &[])?);
    }
    write_whole(path, plot::svg(reports).as_bytes()).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn eval<B: Backend>(args: &Args, backend: B) -> Result<(), Failure> {
    let methods = methods(&args.decoders)?;
    let files = args.model.files()?;
    let generator = args.model.load(backend, &files)?;
    let methods = available(&generator, methods, &args.decoders)?;
    let judge = Judge::load(&generator, &files)?;
    let sampling = args.sampling.resolve(&generator)?;
    let style = ProgressStyle::with_template("{msg:<10} {bar:40} {pos}/{len} pictures {elapsed}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut out = std::io::stdout().lock();
    let printed = args.json.as_deref().is_some_and(|path| path == Path::new("-"));
    let mut file = args.json.as_ref().filter(|_| !printed).map(std::fs::File::create).transpose()?;
    let (mut plain, mut sheet) = (Plain::default(), args.sheet.as_ref());
    let mut reports = Vec::new();
    if !printed {
        writeln!(
            out,
            "{} pictures per decoder, cfg {}, temperature {}, {}\n",
            args.images,
            sampling.cfg,
            sampling.temperature,
            generator.model.backend.name()
        )?;
        writeln!(out, "{HEADER}")?;
    }
    for method in methods {
        bar.reset();
        bar.set_length(u64::from(args.images));
        bar.set_message(method.name());
        let mut report = judge.run(&generator, method, sampling, args.images as usize, &|| bar.inc(1))?;
        plain.learn(&report);
        plain.compare(&mut report);
        bar.suspend(|| -> Result<(), Failure> {
            let object = serde_json::to_string(&report)?;
            if let Some(file) = &mut file {
                writeln!(file, "{object}")?;
            }
            writeln!(out, "{}", if printed { object } else { row(&report) })?;
            Ok(())
        })?;
        if let Some(path) = sheet.take() {
            Picture::sheet(&report.pictures, 5).save(path, &[("decoder", report.knobs.clone())])?;
        }
        report.pictures.clear();
        reports.push(report);
    }
    bar.finish_and_clear();
    draw(args.plot.as_deref(), &reports)
}

/// The decoders that a list of names stands for.
fn methods(names: &[String]) -> Result<Vec<Method>, Failure> {
    let mut methods = Vec::new();
    for name in names {
        match name.as_str() {
            "all" => methods.extend(DECODERS.map(|decoder| decoder.method)),
            "sweep" => {
                for decoder in DECODERS {
                    methods.push(decoder.method);
                    let others = decoder.sweep.iter().map(|other| other.parse());
                    methods.extend(others.collect::<Result<Vec<Method>, _>>()?);
                }
            }
            _ => methods.push(name.parse()?),
        }
    }
    Ok(methods)
}

/// Those whose models are there: hours of measuring should not end at a missing file. What was asked for by name must be
/// there; of all decoders the others are left out.
fn available<B: Backend>(
    generator: &Generator<B>,
    methods: Vec<Method>,
    names: &[String],
) -> Result<Vec<Method>, Failure> {
    let all = names.iter().any(|name| name == "all" || name == "sweep");
    let mut there = Vec::with_capacity(methods.len());
    for method in methods {
        match generator.prepare(method) {
            Ok(()) => there.push(method),
            Err(error @ Error::Request(_)) if all => eprintln!("left out: {error}"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(there)
}

const HEADER: &str =
    "| decoder | law | NFE | passes saved | time saved | drafts accepted | attribute accuracy | NLL, bits/token | FID |
|---|---|---|---|---|---|---|---|---|";

/// The decoder's name with the knobs that are not at their defaults.
fn short_name(report: &Report) -> String {
    let Ok(method) = report.knobs.parse::<Method>() else { return report.knobs.clone() };
    let Ok(default) = report.decoder.parse::<Method>() else { return report.knobs.clone() };
    let defaults = default.knobs();
    let changed = method.knobs().into_iter().filter(|knob| !defaults.contains(knob));
    changed.fold(report.decoder.clone(), |name, (knob, value)| format!("{name}:{knob}={value}"))
}

/// A row of the table.
fn row(report: &Report) -> String {
    let ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}x"));
    let with_error = |estimate: Estimate, scale: f64, digits: usize| {
        format!("{:.digits$} ± {:.digits$}", estimate.value * scale, estimate.error * scale)
    };
    format!(
        "| {} | {} | {:.1} | {} | {} | {:.0}% | {}% | {} | {} |",
        short_name(report),
        if report.exact { "exact" } else { "relaxed" },
        report.nfe.value,
        ratio(report.passes_ratio),
        ratio(report.time_ratio),
        100.0 * report.acceptance.value,
        with_error(report.attribute_accuracy, 100.0, 1),
        report.nll.map_or("-".into(), |nll| with_error(nll, 1.0, 3)),
        with_error(report.fid, 1.0, 3),
    )
}
