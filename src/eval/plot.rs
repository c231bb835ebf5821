//! Speed against quality as a picture: passes on a logarithmic axis, one panel per measure, one colour per decoder.

use super::{Estimate, Report};
use std::fmt::Write;

/// What a panel shows.
struct Panel {
    title: &'static str,
    of: fn(&Report) -> Option<Estimate>,
    scale: f64,
}

const PANELS: [Panel; 3] = [
    Panel { title: "NLL of the samples, bits/token (lower is better)", of: |report| report.nll, scale: 1.0 },
    Panel {
        title: "attribute accuracy, % (higher is better)",
        of: |report| Some(report.attribute_accuracy),
        scale: 100.0,
    },
    Panel { title: "FID, classifier features (lower is better)", of: |report| Some(report.fid), scale: 1.0 },
];

/// Width and height of a panel's field, and the space left of it and above it.
const FIELD: [f64; 2] = [330.0, 250.0];
const MARGIN: [f64; 2] = [50.0, 34.0];
const LEGEND: f64 = 46.0;
const COLOURS: [&str; 10] =
    ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];

/// An axis: the values at its ends, and its length in pixels.
#[derive(Clone, Copy)]
struct Axis {
    from: f64,
    to: f64,
    length: f64,
    logarithmic: bool,
}

impl Axis {
    /// Over values, with a little room at both ends.
    fn over(values: impl Iterator<Item = f64> + Clone, length: f64, logarithmic: bool) -> Self {
        let values = values.filter(|value| value.is_finite());
        let (from, to) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max));
        let (from, to) = if from > to { (1.0, 2.0) } else { (from, to) };
        if logarithmic {
            return Self { from: from / 1.15, to: to * 1.15, length, logarithmic };
        }
        let room = ((to - from) * 0.06).max(1e-3);
        Self { from: from - room, to: to + room, length, logarithmic }
    }

    /// Pixels from the beginning.
    fn at(self, value: f64) -> f64 {
        let Self { from, to, length, logarithmic } = self;
        let scale = |value: f64| if logarithmic { value.ln() } else { value };
        (scale(value) - scale(from)) / (scale(to) - scale(from)) * length
    }

    /// Round values, not too many.
    fn ticks(self) -> Vec<f64> {
        if self.logarithmic {
            let decades = (0..6).map(|power| 10f64.powi(power));
            let all = decades.flat_map(|decade| [1.0, 2.0, 3.0, 5.0, 7.0].map(|step| step * decade));
            return all.filter(|tick| (self.from..=self.to).contains(tick)).collect();
        }
        let rough = (self.to - self.from) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let first = (self.from / step).ceil() as i64;
        let ticks = (first..).map(|tick| tick as f64 * step);
        ticks.take_while(|tick| *tick <= self.to).collect()
    }
}

/// An SVG file of the reports. Decoders are named and coloured in the order of their first report; the settings of one
/// decoder are joined by a line in the order of their passes. Exact decoders have open marks, and the dashed line is
/// plain AR.
pub fn svg(reports: &[Report]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for report in reports {
        if !names.contains(&report.decoder.as_str()) {
            names.push(&report.decoder);
        }
    }
    let width = PANELS.len() as f64 * (FIELD[0] + MARGIN[0]) + 16.0;
    let height = LEGEND + MARGIN[1] + FIELD[1] + 40.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    legend(&mut out, reports, &names);
    for (index, panel) in PANELS.iter().enumerate() {
        let left = MARGIN[0] + index as f64 * (FIELD[0] + MARGIN[0]);
        let _ = writeln!(out, "<g transform=\"translate({left} {})\">", LEGEND + MARGIN[1]);
        field(&mut out, panel, reports, &names);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// Writing to a string cannot fail.
fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
    out.push('\n');
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

fn mark(out: &mut String, (x, y): (f64, f64), exact: bool, colour: &str) {
    let fill = if exact { "white" } else { colour };
    push(
        out,
        format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        ),
    );
}

fn legend(out: &mut String, reports: &[Report], names: &[&str]) {
    let mut left = MARGIN[0];
    for (index, name) in names.iter().enumerate() {
        let exact = reports.iter().any(|report| report.decoder == *name && report.exact);
        mark(out, (left, 20.0), exact, colour(index));
        let law = if exact { " (exact)" } else { "" };
        push(out, format_args!("<text x=\"{}\" y=\"24\" font-size=\"13\">{name}{law}</text>", left + 9.0));
        left += 34.0 + 7.5 * (name.len() + law.len()) as f64;
    }
}

fn field(out: &mut String, panel: &Panel, reports: &[Report], names: &[&str]) {
    let estimate = |report: &Report| (panel.of)(report).unwrap_or(Estimate { value: f64::NAN, error: f64::NAN });
    let value = |report: &Report| estimate(report).value * panel.scale;
    // A measure that has no meaning for a report is not drawn.
    let reports = || reports.iter().filter(|report| (panel.of)(report).is_some());
    let across = Axis::over(reports().map(|report| report.nfe.value), FIELD[0], true);
    let up = Axis::over(reports().map(value), FIELD[1], false);
    let [width, height] = FIELD;
    push(out, format_args!("<text x=\"0\" y=\"-10\" font-size=\"13\">{}</text>", panel.title));
    push(out, format_args!("<rect width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#888\"/>"));
    for tick in across.ticks() {
        let x = across.at(tick);
        push(out, format_args!("<path d=\"M{x:.1} 0V{height}\" stroke=\"#eee\"/>"));
        push(out, format_args!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>", height + 15.0));
    }
    for tick in up.ticks() {
        let y = height - up.at(tick);
        let label = (tick * 1e6).round() / 1e6;
        push(out, format_args!("<path d=\"M0 {y:.1}H{width}\" stroke=\"#eee\"/>"));
        push(out, format_args!("<text x=\"-5\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", y + 4.0));
    }
    let x = width / 2.0;
    push(out, format_args!("<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">forward passes</text>", height + 31.0));
    if let Some(plain) = reports().find(|report| report.decoder == "ar") {
        let y = height - up.at(value(plain));
        push(out, format_args!("<path d=\"M0 {y:.1}H{width}\" stroke=\"#444\" stroke-dasharray=\"4 3\"/>"));
    }
    for (index, name) in names.iter().enumerate() {
        let mut of_name: Vec<&Report> = reports().filter(|report| report.decoder == *name).collect();
        of_name.sort_by(|a, b| a.nfe.value.total_cmp(&b.nfe.value));
        let point = |report: &&Report| (across.at(report.nfe.value), height - up.at(value(report)));
        let points: Vec<(f64, f64)> = of_name.iter().map(point).collect();
        let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let stroke = colour(index);
        push(out, format_args!("<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\"/>", line.join(" ")));
        for (report, &(x, y)) in of_name.iter().zip(&points) {
            let error = estimate(report).error * panel.scale / (up.to - up.from) * height;
            if error.is_finite() {
                push(out, format_args!("<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"{stroke}\"/>", y - error, y + error));
            }
            mark(out, (x, y), report.exact, stroke);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(decoder: &str, nfe: f64, quality: f64) -> Report {
        let estimate = |value| Estimate { value, error: 0.1 };
        Report {
            decoder: decoder.into(),
            knobs: decoder.into(),
            exact: decoder == "ar",
            images: 2,
            nfe: estimate(nfe),
            rows: None,
            draft_passes: None,
            draft_rows: None,
            passes_ratio: None,
            seconds: estimate(1.0),
            time_ratio: None,
            acceptance: estimate(0.5),
            acceptance_by_position: Vec::new(),
            attribute_accuracy: estimate(quality),
            nll: Some(estimate(quality)),
            fid: estimate(quality),
            pictures: Vec::new(),
        }
    }

    #[test]
    fn every_decoder_is_named_and_every_report_is_a_mark_in_every_panel() {
        let reports = [report("ar", 576.0, 3.0), report("zipar", 162.0, 4.0), report("zipar", 93.0, 5.0)];
        let svg = svg(&reports);
        assert_eq!(svg.matches("<circle").count(), 2 + 3 * 3);
        assert_eq!(svg.matches("<polyline").count(), 2 * 3);
        assert!(svg.contains(">ar (exact)</text>") && svg.contains(">zipar</text>"));
        assert_eq!(svg.matches("stroke-dasharray").count(), 3);
        let continuous = Report { nll: None, ..report("cspd", 36.0, 3.0) };
        let with = super::svg(&[reports.to_vec(), vec![continuous]].concat());
        assert_eq!(with.matches("<circle").count(), 3 + 4 * 3 - 1, "it has no mark among the likelihoods");
        assert!(!with.contains("NaN"));
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
    }

    #[test]
    fn an_axis_maps_its_ends_and_its_ticks_are_round() {
        let axis = Axis::over([10.0, 20.0].into_iter(), 100.0, false);
        assert!(axis.at(10.0) > 0.0 && axis.at(20.0) < 100.0 && (axis.at(15.0) - 50.0).abs() < 1e-9);
        assert_eq!(axis.ticks(), [10.0, 15.0, 20.0]);
        let passes = Axis::over([30.0, 576.0].into_iter(), 100.0, true);
        assert!((passes.at((30.0f64 * 576.0).sqrt()) - 50.0).abs() < 1e-9);
        assert_eq!(passes.ticks(), [30.0, 50.0, 70.0, 100.0, 200.0, 300.0, 500.0]);
    }
}
