//! A figure as SVG.

use super::{Anchor, DASH, Figure, MARK};
use std::fmt::Write;

/// The file.
pub(super) fn write(figure: &Figure) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_to(&mut out, figure);
    out
}

fn write_to(out: &mut String, figure: &Figure) -> std::fmt::Result {
    let [width, height] = figure.size;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    )?;
    for line in &figure.lines {
        let points: Vec<String> = line.points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let dash = if line.dashed { format!(" stroke-dasharray=\"{} {}\"", DASH[0], DASH[1]) } else { String::new() };
        let (points, colour) = (points.join(" "), line.colour);
        writeln!(out, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\"{dash}/>")?;
    }
    for mark in &figure.marks {
        let ([x, y], [radius, rim], colour) = (mark.at, MARK, mark.colour);
        let fill = if mark.open { "white" } else { colour };
        writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"{rim}\"/>"
        )?;
    }
    for text in &figure.texts {
        let [x, y] = text.at;
        let anchor = match text.anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\"{anchor}>{}</text>", text.text)?;
    }
    writeln!(out, "</svg>")
}
