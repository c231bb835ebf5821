//! Ops that move rows: inputs, kept states, selections.

use super::super::kernels::{self, Args, Grid, args};
use super::super::step::{Bound, Count};
use super::super::tensor::Rows;
use super::super::{Canvas, CudaBackend, DeviceStep, Tensor};
use crate::backend::Embedding;

impl CudaBackend {
    /// See [`Backend::embed`](crate::backend::Backend::embed).
    pub(in crate::backend::cuda) fn op_embed(
        &self,
        step: &DeviceStep,
        tables: Embedding<'_, Tensor>,
        canvas: &Canvas,
        out: &mut Tensor,
    ) {
        let Embedding { tokens, rows, cols, bias } = tables;
        let hidden = tokens.cols;
        assert_eq!((rows.cols, cols.cols, bias.cols), (hidden, hidden, hidden), "tables of different widths");
        step.require(Bound::Images, canvas.images());
        step.require(Bound::Positions, canvas.positions());
        step.require(Bound::Places, canvas.positions());
        out.take_rows(Rows::of(step, Count::Rows), hidden);
        let (canvas, positions) = (canvas.tokens(), canvas.positions() as u32);
        let args = args![
            step.arg(),
            *tokens.floats(),
            *rows.floats(),
            *cols.floats(),
            *bias.floats(),
            *canvas,
            positions,
            *out.floats(),
            hidden as u32
        ];
        // SAFETY: the kernel's parameters are these; tokens, positions and sequences of a step lie inside of the tables.
        unsafe { self.rows(["embed", "embed_ragged"], step.most(Count::Rows), hidden, args) };
    }

    /// See [`Backend::keep_states`](crate::backend::Backend::keep_states).
    pub(in crate::backend::cuda) fn op_keep_states(
        &self,
        step: &DeviceStep,
        x: &Tensor,
        positions: usize,
        states: &mut Tensor,
    ) {
        assert_eq!(x.cols, states.cols, "states of another width");
        step.require(Bound::Positions, positions);
        let sequences = states.max_rows / positions.max(1);
        step.require(Bound::Grids, sequences);
        // Nodes of which no state is kept may be anywhere.
        if step.host().layout.sequences.iter().any(|table| table.width * table.frontier.len() < positions) {
            step.require(Bound::Trees, sequences);
        }
        let args = args![step.arg(), *x.floats(), positions as u32, *states.floats(), x.cols as u32];
        // SAFETY: the kernel's parameters are these; there is a row of `states` for each position of each sequence.
        unsafe { self.rows(["keep_states", "keep_states_ragged"], step.most(Count::Rows), x.cols, args) };
    }

    /// See [`Backend::select`](crate::backend::Backend::select).
    pub(in crate::backend::cuda) fn op_select(&self, step: &DeviceStep, x: &Tensor, out: &mut Tensor) {
        out.take_rows(Rows::of(step, Count::Predictions), x.cols);
        let args = args![step.arg(), *x.floats(), *out.floats(), x.cols as u32];
        // SAFETY: the kernel's parameters are these; predictions are rows of `x`, and `out` has room for all of them.
        unsafe { self.rows(["select_rows", "select_rows_ragged"], step.most(Count::Predictions), x.cols, args) };
    }

    /// See [`Backend::gather`](crate::backend::Backend::gather).
    pub(in crate::backend::cuda) fn op_gather(
        &self,
        step: &DeviceStep,
        table: &Tensor,
        behind: Option<&Tensor>,
        out: &mut Tensor,
    ) {
        let cols = table.cols;
        assert!(behind.is_none_or(|behind| behind.cols == cols), "tables of different widths");
        step.require(Bound::Inputs, table.max_rows + behind.map_or(0, |behind| behind.max_rows));
        let host = step.host();
        assert_eq!(host.inputs.len(), host.layout.rows.len(), "a row of the pass without an input");
        out.take_rows(Rows::of(step, Count::Rows), cols);
        let behind = behind.map(Tensor::floats);
        let args = args![step.arg(), *table.floats(), behind, table.max_rows as u32, *out.floats(), cols as u32];
        // SAFETY: the kernel's parameters are these; inputs are rows that the tables have room for.
        unsafe { self.rows(["gather_rows", "gather_rows_ragged"], step.most(Count::Rows), cols, args) };
    }

    /// See [`Backend::gather_latents`](crate::backend::Backend::gather_latents).
    pub(in crate::backend::cuda) fn op_gather_latents(
        &self,
        step: &DeviceStep,
        latents: &Tensor,
        positions: usize,
        out: &mut Tensor,
    ) {
        step.require(Bound::Positions, positions);
        step.require(Bound::Images, latents.max_rows / positions.max(1));
        out.take_rows(Rows::of(step, Count::Rows), latents.cols);
        let args = args![step.arg(), *latents.floats(), positions as u32, *out.floats(), latents.cols as u32];
        // SAFETY: the kernel's parameters are these; rows are of positions of the images whose latents these are.
        unsafe { self.rows(["gather_latents", "gather_latents_ragged"], step.most(Count::Rows), latents.cols, args) };
    }

    /// See [`Backend::gather_sources`](crate::backend::Backend::gather_sources).
    pub(in crate::backend::cuda) fn op_gather_sources(
        &self,
        step: &DeviceStep,
        states: &Tensor,
        tokens: &Tensor,
        canvas: &Canvas,
        out: &mut Tensor,
    ) {
        let hidden = states.cols;
        assert_eq!(hidden, tokens.cols, "states and embeddings of different widths");
        step.require(Bound::States, states.max_rows);
        step.require(Bound::Tokens, canvas.tokens().len());
        out.take_rows(Rows::of(step, Count::Sources), 2 * hidden);
        let args = args![step.arg(), *states.floats(), *tokens.floats(), *canvas.tokens(), out.out(), hidden as u32];
        // SAFETY: the kernel's parameters are these; a source names a row of `states` and an index into the canvas.
        unsafe { self.rows(["gather_sources", "gather_sources_ragged"], step.most(Count::Sources), hidden, args) };
    }

    /// See [`Backend::copy_rows`](crate::backend::Backend::copy_rows).
    pub(in crate::backend::cuda) fn op_copy_rows(&self, step: &DeviceStep, logits: &mut Tensor) {
        step.require(Bound::CopyLogits, logits.max_rows);
        let args = args![step.arg(), *logits.floats(), logits.cols as u32];
        // SAFETY: the kernel's parameters are these; a copy names two rows that the tensor has room for.
        unsafe { self.rows(["copy_rows", "copy_rows_ragged"], step.most(Count::Copies), logits.cols, args) };
    }

    /// Launches a block per row, of the first kernel if the columns are a multiple of 4.
    ///
    /// # Safety
    /// As [`launch`](CudaBackend::launch).
    unsafe fn rows(&self, names: [&'static str; 2], rows: usize, cols: usize, args: Args) {
        let (name, vectors) = if cols.is_multiple_of(4) { (names[0], cols / 4) } else { (names[1], cols) };
        let grid = Grid::of(rows, vectors.next_multiple_of(32).clamp(32, 512));
        // SAFETY: the caller's promise.
        unsafe { self.launch(&kernels::ROWS, name, grid, args) };
    }
}
