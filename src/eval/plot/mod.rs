//! Speed against quality as a picture: passes on a logarithmic axis, one panel per measure, one colour per decoder. What is
//! drawn is a [`Figure`], which is written as SVG ([`svg`]) or painted ([`pixels`]).

mod pixels;
mod svg;

use super::{Estimate, Report};
use crate::engine::Picture;

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
/// Names of decoders in a row, and the height of a row.
const LEGEND_COLUMNS: usize = 8;
const LEGEND_ROW: f64 = 20.0;
/// As many as there are decoders.
const COLOURS: [&str; 15] = [
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#0b3c5d", "#b35900", "#145a14", "#7b1113", "#4b2e83",
];

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

type Point = [f64; 2];

/// A picture of lines, marks and texts, on white; y grows downwards, one unit is a pixel of the SVG.
#[derive(Default)]
struct Figure {
    size: Point,
    lines: Vec<Line>,
    marks: Vec<Mark>,
    texts: Vec<Text>,
}

/// Straight lines from point to point.
struct Line {
    points: Vec<Point>,
    colour: &'static str,
    dashed: bool,
}

/// A disc or, open, a ring.
struct Mark {
    at: Point,
    colour: &'static str,
    open: bool,
}

/// A line of text; `at` is on its base line.
struct Text {
    at: Point,
    anchor: Anchor,
    text: String,
}

/// Which end of a text is at its point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// Radius of a mark, to the middle of its rim, and width of the rim.
const MARK: [f64; 2] = [4.0, 2.0];
const DASH: [f64; 2] = [4.0, 3.0];

/// An SVG file of the reports. Decoders are named and coloured in the order of their first report; the settings of one
/// decoder are joined by a line in the order of their passes. Exact decoders have open marks, and the dashed line is
/// plain AR.
pub fn svg(reports: &[Report]) -> String {
    svg::write(&figure(reports))
}

/// The same in pixels.
pub fn picture(reports: &[Report]) -> Picture {
    pixels::paint(&figure(reports))
}

fn figure(reports: &[Report]) -> Figure {
    let mut names: Vec<&str> = Vec::new();
    for report in reports {
        if !names.contains(&report.decoder.as_str()) {
            names.push(&report.decoder);
        }
    }
    let width = PANELS.len() as f64 * (FIELD[0] + MARGIN[0]) + 16.0;
    let rows = names.len().div_ceil(LEGEND_COLUMNS) as f64;
    let top = 12.0 + rows * LEGEND_ROW + MARGIN[1];
    let mut figure = Figure { size: [width, top + FIELD[1] + 40.0], ..Figure::default() };
    figure.legend(reports, &names);
    for (index, panel) in PANELS.iter().enumerate() {
        let left = MARGIN[0] + index as f64 * (FIELD[0] + MARGIN[0]);
        let mut field = Figure::default();
        field.panel(panel, reports, &names);
        figure.add(field, [left, top]);
    }
    figure
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

impl Figure {
    fn line(&mut self, points: Vec<Point>, colour: &'static str) {
        self.lines.push(Line { points, colour, dashed: false });
    }

    fn text(&mut self, at: Point, anchor: Anchor, text: impl Into<String>) {
        self.texts.push(Text { at, anchor, text: text.into() });
    }

    /// Puts another one at a place.
    fn add(&mut self, mut other: Figure, to: Point) {
        let points = other.lines.iter_mut().flat_map(|line| &mut line.points);
        let marks = other.marks.iter_mut().map(|mark| &mut mark.at);
        let texts = other.texts.iter_mut().map(|text| &mut text.at);
        for at in points.chain(marks).chain(texts) {
            *at = [at[0] + to[0], at[1] + to[1]];
        }
        self.lines.append(&mut other.lines);
        self.marks.append(&mut other.marks);
        self.texts.append(&mut other.texts);
    }

    fn legend(&mut self, reports: &[Report], names: &[&str]) {
        for (index, name) in names.iter().enumerate() {
            let open = reports.iter().any(|report| report.decoder == *name && report.exact);
            let apart = (PANELS.len() as f64 * (FIELD[0] + MARGIN[0]) - MARGIN[0]) / LEGEND_COLUMNS as f64;
            let (column, row) = (index % LEGEND_COLUMNS, index / LEGEND_COLUMNS);
            let at = [MARGIN[0] + column as f64 * apart, 20.0 + row as f64 * LEGEND_ROW];
            self.marks.push(Mark { at, colour: colour(index), open });
            let law = if open { " (exact)" } else { "" };
            self.text([at[0] + 9.0, at[1] + 4.0], Anchor::Start, format!("{name}{law}"));
        }
    }

    fn panel(&mut self, panel: &Panel, reports: &[Report], names: &[&str]) {
        let estimate = |report: &Report| (panel.of)(report).unwrap_or(Estimate { value: f64::NAN, error: f64::NAN });
        let value = |report: &Report| estimate(report).value * panel.scale;
        // A measure that has no meaning for a report is not drawn.
        let reports = || reports.iter().filter(|report| (panel.of)(report).is_some());
        let across = Axis::over(reports().map(|report| report.nfe.value), FIELD[0], true);
        let ends = |report: &Report| {
            let Estimate { value, error } = estimate(report);
            [-1.0, 1.0].map(|sign| (value + sign * if error.is_finite() { error } else { 0.0 }) * panel.scale)
        };
        let up = Axis::over(reports().flat_map(ends), FIELD[1], false);
        self.axes(panel.title, across, up);
        let [width, height] = FIELD;
        if let Some(plain) = reports().find(|report| report.decoder == "ar") {
            let y = height - up.at(value(plain));
            self.lines.push(Line { points: vec![[0.0, y], [width, y]], colour: "#444444", dashed: true });
        }
        for (index, name) in names.iter().enumerate() {
            let mut of_name: Vec<&Report> = reports().filter(|report| report.decoder == *name).collect();
            of_name.sort_by(|a, b| a.nfe.value.total_cmp(&b.nfe.value));
            let point = |report: &&Report| [across.at(report.nfe.value), height - up.at(value(report))];
            let points: Vec<Point> = of_name.iter().map(point).collect();
            self.line(points.clone(), colour(index));
            for (report, [x, y]) in of_name.iter().zip(points) {
                let error = estimate(report).error * panel.scale / (up.to - up.from) * height;
                if error.is_finite() {
                    self.line(vec![[x, y - error], [x, y + error]], colour(index));
                }
                self.marks.push(Mark { at: [x, y], colour: colour(index), open: report.exact });
            }
        }
    }

    /// The frame of a panel, its title, what its ticks mean.
    fn axes(&mut self, title: &str, across: Axis, up: Axis) {
        let [width, height] = FIELD;
        self.text([0.0, -10.0], Anchor::Start, title);
        for tick in across.ticks() {
            let x = across.at(tick);
            self.line(vec![[x, 0.0], [x, height]], "#eeeeee");
            self.text([x, height + 15.0], Anchor::Middle, tick.to_string());
        }
        for tick in up.ticks() {
            let y = height - up.at(tick);
            self.line(vec![[0.0, y], [width, y]], "#eeeeee");
            self.text([-5.0, y + 4.0], Anchor::End, ((tick * 1e6).round() / 1e6).to_string());
        }
        let corners = vec![[0.0, 0.0], [width, 0.0], [width, height], [0.0, height], [0.0, 0.0]];
        self.line(corners, "#888888");
        self.text([width / 2.0, height + 31.0], Anchor::Middle, "forward passes of the target");
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
        assert!(svg.contains(">ar (exact)</text>") && svg.contains(">zipar</text>"));
        assert_eq!(svg.matches("stroke-dasharray").count(), 3);
        let continuous = Report { nll: None, ..report("cspd", 36.0, 3.0) };
        let with = super::svg(&[reports.to_vec(), vec![continuous]].concat());
        assert_eq!(with.matches("<circle").count(), 3 + 4 * 3 - 1, "it has no mark among the likelihoods");
        assert!(!with.contains("NaN"));
    }

    /// Whatever is in the figure is in the pixels, where the figure says.
    #[test]
    fn figures_are_painted() {
        let reports = [report("ar", 576.0, 3.0), report("zipar", 162.0, 4.0), report("zipar", 93.0, 5.0)];
        let (figure, picture) = (figure(&reports), picture(&reports));
        assert_eq!([picture.width as f64, picture.height as f64], figure.size.map(|side| 2.0 * side));
        let at = |[x, y]: Point| &picture.rgb[3 * ((2.0 * y) as usize * picture.width + (2.0 * x) as usize)..][..3];
        for mark in &figure.marks {
            let colour: Vec<u8> =
                (0..3).map(|part| u8::from_str_radix(&mark.colour[1 + 2 * part..][..2], 16).unwrap()).collect();
            let [x, y] = mark.at;
            assert_eq!(at([x + MARK[0], y]), colour, "the rim of {:?}", mark.at);
            assert_eq!(at(mark.at) == [255; 3], mark.open);
        }
        let dark = |from: Point, to: Point| {
            let rows = (2.0 * from[1]) as usize..(2.0 * to[1]) as usize;
            let pixels = rows.flat_map(|row| {
                picture.rgb[3 * (row * picture.width + (2.0 * from[0]) as usize)
                    ..3 * (row * picture.width + (2.0 * to[0]) as usize)]
                    .chunks(3)
            });
            pixels.filter(|pixel| pixel.iter().all(|&value| value < 64)).count()
        };
        let title = figure.texts.iter().find(|text| text.text.starts_with("FID")).unwrap().at;
        assert!(dark([title[0], title[1] - 10.0], [title[0] + 30.0, title[1]]) > 50, "no letters");
        assert_eq!(
            dark([title[0], title[1] - 22.0], [title[0] + 30.0, title[1] - 12.0]),
            0,
            "letters above their line"
        );
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
