//! Per-head RMSNorm and the rotary embedding over the axes of the grid.

use super::isa::{Level, per_isa};
use super::memory::Shared;
use super::{norm, parallel};
use crate::backend::{Axes, Layout, Pairing, Rotary, Slot};
use std::ops::Range;
use std::sync::{Arc, RwLock};

/// Cosines and sines by coordinate: row c holds `quarter` cosines, then `quarter` sines.
struct Table {
    theta: f32,
    quarter: usize,
    rows: Vec<f32>,
}

impl Table {
    fn new(theta: f32, quarter: usize, coordinates: usize) -> Self {
        let mut rows = Vec::with_capacity(coordinates * 2 * quarter);
        for c in 0..coordinates {
            let angle = |j: usize| c as f64 * f64::from(theta).powf(-(j as f64) / quarter as f64);
            rows.extend((0..quarter).map(|j| angle(j).cos() as f32));
            rows.extend((0..quarter).map(|j| angle(j).sin() as f32));
        }
        Self { theta, quarter, rows }
    }

    fn coordinates(&self) -> usize {
        self.rows.len() / (2 * self.quarter)
    }

    fn at(&self, coordinate: usize) -> &[f32] {
        &self.rows[coordinate * 2 * self.quarter..][..2 * self.quarter]
    }
}

/// Tables made so far; a process needs one or two.
#[derive(Default)]
pub(super) struct Tables(RwLock<Vec<Arc<Table>>>);

impl Tables {
    fn get(&self, theta: f32, quarter: usize, coordinates: usize) -> Arc<Table> {
        let same = |t: &Table| t.theta.to_bits() == theta.to_bits() && t.quarter == quarter;
        let found = |tables: &[Arc<Table>]| tables.iter().find(|t| same(t) && t.coordinates() >= coordinates).cloned();
        if let Some(table) = found(&self.0.read().unwrap_or_else(|e| e.into_inner())) {
            return table;
        }
        let mut tables = self.0.write().unwrap_or_else(|e| e.into_inner());
        let table = Arc::new(Table::new(theta, quarter, coordinates.next_power_of_two().max(64)));
        tables.retain(|t| !same(t));
        tables.push(Arc::clone(&table));
        table
    }
}

per_isa! {
    /// Rotates one head: the first half by `y`, the second by `x`, each as `[cosines, sines]`.
    fn rotate_head(head: &mut [f32], weight: &[f32], eps: f32, y: &[f32], x: &[f32]) {
        if !weight.is_empty() {
            let scale = norm::inverse_rms(head, eps);
            for (h, w) in head.iter_mut().zip(weight) {
                *h = *h * scale * w;
            }
        }
        let half = head.len() / 2;
        for (part, angles) in head.chunks_exact_mut(half).zip([y, x]) {
            let (a, b) = part.split_at_mut(half / 2);
            let (cos, sin) = angles.split_at(half / 2);
            for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// Row and column by which a slot turns.
fn coordinates(layout: &Layout, row: usize) -> (usize, usize) {
    let place = layout.rows[row];
    match place.slot {
        Slot::Prefix(_) => (0, 0),
        Slot::Grid(p) | Slot::Scratch { at: p, .. } => {
            let width = layout.sequences[place.sequence as usize].width;
            (p as usize / width + 1, p as usize % width + 1)
        }
    }
}

/// Columns of a matrix that are heads.
pub(super) struct Heads<'a> {
    /// `[rows, cols]`
    pub(super) x: &'a mut [f32],
    pub(super) cols: usize,
    /// Those that are heads of `head_dim`.
    pub(super) range: Range<usize>,
    pub(super) head_dim: usize,
}

/// Normalises (when `norm` is given) and rotates heads.
pub(super) fn rotate(
    level: Level,
    tables: &Tables,
    rotary: Rotary,
    layout: &Layout,
    heads: Heads<'_>,
    norm: Option<(&[f32], f32)>,
) {
    assert_eq!((rotary.axes, rotary.pairing), (Axes::Two, Pairing::Halves), "not yet");
    let Heads { x, cols, range, head_dim } = heads;
    let rows = layout.rows.len();
    let most = (0..rows).map(|row| coordinates(layout, row)).fold(0, |most, (y, x)| most.max(y).max(x));
    let table = tables.get(rotary.theta, head_dim / 4, most + 1);
    let (weight, eps) = norm.unwrap_or((&[], 0.0));
    let threads = parallel::threads_for((rows * range.len()) as f64 / 2.0);
    let tasks = if threads == 1 { 1 } else { rows.div_ceil(16) };
    let x = Shared::new(x, cols);
    parallel::for_each(threads, tasks, |t| {
        for row in rows * t / tasks..rows * (t + 1) / tasks {
            let (cy, cx) = coordinates(layout, row);
            // SAFETY: every row belongs to one task.
            let heads = unsafe { x.part(row, range.start, range.len()) };
            for head in heads.chunks_exact_mut(head_dim) {
                rotate_head(level, head, weight, eps, table.at(cy), table.at(cx));
            }
        }
    });
}
