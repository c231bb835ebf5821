//! Per-head RMSNorm and the rotary embedding.

use super::isa::{Level, per_isa};
use super::memory::Shared;
use super::{norm, parallel};
use crate::backend::{Axes, Layout, Pairing, Rotary, Slot, rotary_table};
use std::ops::Range;
use std::sync::{Arc, RwLock};

/// Cosines and sines by coordinate.
struct Table {
    theta: f32,
    pairs: usize,
    /// See [`rotary_table`].
    rows: Vec<f32>,
}

impl Table {
    fn coordinates(&self) -> usize {
        self.rows.len() / (2 * self.pairs)
    }

    fn at(&self, coordinate: usize) -> &[f32] {
        &self.rows[coordinate * 2 * self.pairs..][..2 * self.pairs]
    }
}

/// Tables made so far; a process needs one or two.
#[derive(Default)]
pub(super) struct Tables(RwLock<Vec<Arc<Table>>>);

impl Tables {
    fn get(&self, theta: f32, pairs: usize, coordinates: usize) -> Arc<Table> {
        let same = |t: &Table| t.theta.to_bits() == theta.to_bits() && t.pairs == pairs;
        let found = |tables: &[Arc<Table>]| tables.iter().find(|t| same(t) && t.coordinates() >= coordinates).cloned();
        if let Some(table) = found(&self.0.read().unwrap_or_else(|e| e.into_inner())) {
            return table;
        }
        let mut tables = self.0.write().unwrap_or_else(|e| e.into_inner());
        let rows = rotary_table(theta, pairs, coordinates.next_power_of_two().max(64));
        let table = Arc::new(Table { theta, pairs, rows });
        tables.retain(|t| !same(t));
        tables.push(Arc::clone(&table));
        table
    }
}

per_isa! {
    /// Normalises a head (when `weight` is given) and rotates its parts, each by its `[cosines, sines]`.
    fn rotate_head(head: &mut [f32], weight: &[f32], eps: f32, parts: &[&[f32]], pairing: Pairing) {
        if !weight.is_empty() {
            let scale = norm::inverse_rms(head, eps);
            for (h, w) in head.iter_mut().zip(weight) {
                *h = *h * scale * w;
            }
        }
        let turning = head.len() / parts.len();
        for (part, angles) in head.chunks_exact_mut(turning).zip(parts) {
            let (cos, sin) = angles.split_at(turning / 2);
            match pairing {
                Pairing::Halves => {
                    let (a, b) = part.split_at_mut(turning / 2);
                    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
                Pairing::Interleaved => {
                    for ((pair, cos), sin) in part.chunks_exact_mut(2).zip(cos).zip(sin) {
                        let (a, b) = (pair[0], pair[1]);
                        (pair[0], pair[1]) = (a * cos - b * sin, b * cos + a * sin);
                    }
                }
            }
        }
    }
}

/// Coordinates by which a row's heads turn: its index in the sequence (twice), or its row and column of the grid.
fn coordinates(layout: &Layout, axes: Axes, row: usize) -> [usize; 2] {
    let place = layout.rows[row];
    let table = &layout.sequences[place.sequence as usize];
    match (axes, place.slot) {
        (Axes::One, Slot::Prefix(slot) | Slot::Open { slot, .. }) => [slot as usize; 2],
        (Axes::One, Slot::Grid(p) | Slot::Scratch { at: p, .. }) => [table.prefix_len + p as usize; 2],
        (Axes::Two, Slot::Prefix(_) | Slot::Open { at: None, .. }) => [0, 0],
        (Axes::Two, Slot::Grid(p) | Slot::Scratch { at: p, .. } | Slot::Open { at: Some(p), .. }) => {
            [p as usize / table.width + 1, p as usize % table.width + 1]
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
    let Heads { x, cols, range, head_dim } = heads;
    let rows = layout.rows.len();
    let Rotary { theta, axes, pairing } = rotary;
    let parts = if axes == Axes::One { 1 } else { 2 };
    let most = (0..rows).flat_map(|row| coordinates(layout, axes, row)).max().unwrap_or(0);
    let table = tables.get(theta, head_dim / (2 * parts), most + 1);
    let (weight, eps) = norm.unwrap_or((&[], 0.0));
    let threads = parallel::threads_for((rows * range.len()) as f64 / 2.0);
    let tasks = if threads == 1 { 1 } else { rows.div_ceil(16) };
    let x = Shared::new(x, cols);
    parallel::for_each(threads, tasks, |t| {
        for row in rows * t / tasks..rows * (t + 1) / tasks {
            let angles = coordinates(layout, axes, row).map(|c| table.at(c));
            // SAFETY: every row belongs to one task.
            let heads = unsafe { x.part(row, range.start, range.len()) };
            for head in heads.chunks_exact_mut(head_dim) {
                rotate_head(level, head, weight, eps, &angles[..parts], pairing);
            }
        }
    });
}
