//! A figure as pixels, two for each of its units.

use super::{Anchor, DASH, Figure, MARK, Text};
use crate::engine::Picture;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use tiny_skia::{Color, FillRule, Paint, Path, PathBuilder, Pixmap, Stroke, StrokeDash, Transform};

const SCALE: f64 = 2.0;
const WEIGHT: FontWeight = FontWeight::Regular;
const LETTER: RasterHeight = RasterHeight::Size20;
/// Rows of a letter's raster above its base line.
const ASCENT: f64 = 16.0;

/// Paints it on white; nothing of a figure without an area.
pub(super) fn paint(figure: &Figure) -> Picture {
    let [width, height] = figure.size.map(|side| (side * SCALE).ceil() as u32);
    let Some(mut pixmap) = Pixmap::new(width, height) else {
        return Picture { width: 0, height: 0, rgb: Vec::new() };
    };
    pixmap.fill(Color::WHITE);
    lines_and_marks(&mut pixmap, figure);
    // All is opaque: nothing is premultiplied.
    let mut rgb: Vec<u8> =
        pixmap.pixels().iter().flat_map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]).collect();
    for text in &figure.texts {
        write(&mut rgb, [width as usize, height as usize], text);
    }
    Picture { width: width as usize, height: height as usize, rgb }
}

fn lines_and_marks(pixmap: &mut Pixmap, figure: &Figure) {
    let scale = Transform::from_scale(SCALE as f32, SCALE as f32);
    for line in &figure.lines {
        let dash = line.dashed.then(|| StrokeDash::new(DASH.map(|length| length as f32).to_vec(), 0.0)).flatten();
        if let Some(path) = path(&line.points) {
            pixmap.stroke_path(&path, &paint_of(line.colour), &Stroke { dash, ..Stroke::default() }, scale, None);
        }
    }
    for mark in &figure.marks {
        let [radius, rim] = MARK.map(|length| length as f32);
        let Some(disc) = PathBuilder::from_circle(mark.at[0] as f32, mark.at[1] as f32, radius) else { continue };
        let fill = paint_of(if mark.open { "#ffffff" } else { mark.colour });
        pixmap.fill_path(&disc, &fill, FillRule::Winding, scale, None);
        let stroke = Stroke { width: rim, ..Stroke::default() };
        pixmap.stroke_path(&disc, &paint_of(mark.colour), &stroke, scale, None);
    }
}

fn path(points: &[[f64; 2]]) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (index, [x, y]) in points.iter().map(|point| point.map(|at| at as f32)).enumerate() {
        if index == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    path.finish()
}

/// Of a colour written as `#rrggbb`.
fn paint_of(colour: &str) -> Paint<'static> {
    let part = |at: usize| colour.get(at..at + 2).and_then(|part| u8::from_str_radix(part, 16).ok()).unwrap_or(0);
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(part(1), part(3), part(5), 255);
    paint
}

/// Writes a text in black; what lies outside of the picture is cut off.
fn write(rgb: &mut [u8], [width, height]: [usize; 2], text: &Text) {
    let advance = get_raster_width(WEIGHT, LETTER);
    let [x, y] = text.at.map(|at| at * SCALE);
    let length = (text.text.chars().count() * advance) as f64;
    let left = match text.anchor {
        Anchor::Start => x,
        Anchor::Middle => x - length / 2.0,
        Anchor::End => x - length,
    };
    let (left, top) = (left.round() as i64, (y - ASCENT).round() as i64);
    for (index, letter) in text.text.chars().enumerate() {
        let Some(raster) = get_raster(letter, WEIGHT, LETTER) else { continue };
        for (row, line) in raster.rows().enumerate() {
            for (column, &ink) in line.iter().enumerate() {
                let (x, y) = (left + (index * advance + column) as i64, top + row as i64);
                let inside = (0..width as i64).contains(&x) && (0..height as i64).contains(&y);
                if inside {
                    let at = 3 * (y as usize * width + x as usize);
                    rgb[at..at + 3].iter_mut().for_each(|value| *value = value.saturating_sub(ink));
                }
            }
        }
    }
}
