//! Ops that move rows: inputs, kept states, selections.

use super::Tensor;
use super::draw::Canvas;
use crate::backend::{Embedding, PageTable, Slot, Step};

/// Row `index` of a tensor, in use or beyond.
pub(super) fn row(x: &Tensor, index: usize) -> &[f32] {
    &x.data.as_slice()[..x.max_rows * x.cols][index * x.cols..][..x.cols]
}

pub(super) fn row_mut(x: &mut Tensor, index: usize) -> &mut [f32] {
    let (cols, room) = (x.cols, x.max_rows * x.cols);
    &mut x.data.as_mut_slice()[..room][index * cols..][..cols]
}

fn table(step: &Step, index: usize) -> (&PageTable, usize) {
    let sequence = step.layout.rows[index].sequence as usize;
    (&step.layout.sequences[sequence], sequence)
}

/// See [`Backend::embed`](crate::backend::Backend::embed).
pub(super) fn embed(step: &Step, tables: Embedding<'_, Tensor>, canvas: &Canvas, out: &mut Tensor) {
    out.reshape(step.layout.rows.len(), tables.tokens.cols);
    for (index, place) in step.layout.rows.iter().enumerate() {
        let (table, sequence) = table(step, index);
        let position = match place.slot {
            Slot::Grid(position) | Slot::Scratch { at: position, .. } => position as usize,
            Slot::Prefix(_) | Slot::Open { .. } => panic!("a row of the prompt has no token"),
        };
        let place_of_token = match place.slot {
            Slot::Scratch { slot, .. } => table.width * table.frontier.len() + slot as usize,
            _ => position,
        };
        let token = canvas.token(table.image as usize, place_of_token);
        let terms = row(tables.tokens, token as usize)
            .iter()
            .zip(row(tables.rows, position / table.width))
            .zip(row(tables.cols, position % table.width))
            .zip(row(tables.bias, sequence));
        for (out, (((token, row), col), bias)) in row_mut(out, index).iter_mut().zip(terms) {
            *out = token + row + col + bias;
        }
    }
}

/// See [`Backend::keep_states`](crate::backend::Backend::keep_states).
pub(super) fn keep_states(step: &Step, x: &Tensor, positions: usize, states: &mut Tensor) {
    for (index, place) in step.layout.rows.iter().enumerate() {
        let (table, sequence) = table(step, index);
        let grid = table.width * table.frontier.len();
        let next = match place.slot {
            Slot::Prefix(i) if i as usize + 1 == table.prefix_len => 0,
            Slot::Grid(position) if (position as usize) + 1 < grid => position as usize + 1,
            Slot::Scratch { slot, .. } => grid + slot as usize,
            _ => continue,
        };
        if next >= positions {
            continue;
        }
        row_mut(states, sequence * positions + next).copy_from_slice(row(x, index));
    }
}

/// See [`Backend::gather`](crate::backend::Backend::gather).
pub(super) fn gather(step: &Step, table: &Tensor, behind: Option<&Tensor>, out: &mut Tensor) {
    assert_eq!(step.inputs.len(), step.layout.rows.len(), "a row of the pass without an input");
    out.reshape(step.inputs.len(), table.cols);
    for (to, &from) in step.inputs.iter().enumerate() {
        let from = from as usize;
        let found = match from.checked_sub(table.max_rows) {
            None => row(table, from),
            Some(from) => row(behind.expect("inputs are rows of the table"), from),
        };
        row_mut(out, to).copy_from_slice(found);
    }
}

/// See [`Backend::gather_latents`](crate::backend::Backend::gather_latents).
pub(super) fn gather_latents(step: &Step, latents: &Tensor, positions: usize, out: &mut Tensor) {
    out.reshape(step.layout.rows.len(), latents.cols);
    for (index, place) in step.layout.rows.iter().enumerate() {
        match place.slot {
            Slot::Open { at: Some(at), .. } => {
                let image = table(step, index).0.image as usize;
                row_mut(out, index).copy_from_slice(row(latents, image * positions + at as usize));
            }
            Slot::Open { at: None, .. } => row_mut(out, index).fill(0.0),
            _ => panic!("a row of tokens has no latents"),
        }
    }
}

/// `out[i] = x[rows[i]]`.
pub(super) fn select(rows: &[u32], x: &Tensor, out: &mut Tensor) {
    out.reshape(rows.len(), x.cols);
    for (to, &from) in rows.iter().enumerate() {
        row_mut(out, to).copy_from_slice(row(x, from as usize));
    }
}

/// See [`Backend::gather_sources`](crate::backend::Backend::gather_sources).
pub(super) fn gather_sources(step: &Step, states: &Tensor, tokens: &Tensor, canvas: &Canvas, out: &mut Tensor) {
    out.reshape(step.sources.len(), states.cols + tokens.cols);
    for (to, source) in step.sources.iter().enumerate() {
        let (state, token) = row_mut(out, to).split_at_mut(states.cols);
        state.copy_from_slice(row(states, source.state as usize));
        token.copy_from_slice(row(tokens, canvas.at(source.token as usize) as usize));
    }
}

/// See [`Backend::copy_rows`](crate::backend::Backend::copy_rows).
pub(super) fn copy_rows(step: &Step, logits: &mut Tensor) {
    let cols = logits.cols;
    for copy in &step.copies {
        let (from, to) = (copy.from as usize * cols, copy.to as usize * cols);
        logits.data.as_mut_slice().copy_within(from..from + cols, to);
    }
}

/// Row `index` of the logits, kept ones included.
pub(super) fn logits(x: &Tensor, index: u32) -> &[f32] {
    row(x, index as usize)
}
