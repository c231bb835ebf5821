//! What a session keeps on the device, and the ops of its steps.
//!
//! Spans for profilers, inside of `step`: `draft`, `pass`, `verify`. A backend that records a step goes through them when
//! it records, not when it replays.

use crate::backend::{Backend, Capacity, Error, Phase};
use crate::decode::Acceptance;
use crate::decode::layout::Slots;
use crate::models::avatar::Avatar;
use crate::nn::{spatial_heads, transformer};
use std::sync::Arc;
use tracing::info_span;

/// What lives on the device.
pub(super) struct State<B: Backend> {
    kv: B::KvPool,
    pub(super) canvas: B::Canvas,
    /// Tokens of an image in the canvas: of the grid, then of what is beside it.
    pub(super) places: usize,
    codebook: Option<Arc<B::Codebook>>,
    /// Added to every token's input, `[sequence, hidden]`.
    bias: B::Tensor,
    /// Hidden states before the final norm, `[sequence][stride][hidden]`: the one that predicted each position; behind the
    /// grid the one that each node of a draft tree predicts from.
    pub(super) states: B::Tensor,
    pub(super) stride: usize,
    pub(super) hidden: B::Tensor,
    selected: B::Tensor,
    /// Of the predictions; the last rows, one per branch, are the kept ones.
    pub(super) logits: B::Tensor,
    source: B::Tensor,
    drafted: B::Tensor,
    pub(super) draft_logits: B::Tensor,
    transformer: transformer::Scratch<B>,
    pub(super) heads: Option<spatial_heads::Scratch<B>>,
}

/// What a step has.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub(super) putting: bool,
    pub(super) drafting: bool,
    pub(super) feeding: bool,
}

/// What there is for each branch of each image, however many sequences a step has: those of trees keep nothing.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) images: usize,
    /// Of all images together.
    pub(super) branches: usize,
    /// Of all branches together.
    pub(super) pages: usize,
    pub(super) slots: Slots,
}

impl<B: Backend> State<B> {
    pub(super) fn new(
        model: &Avatar<B>,
        acceptance: Acceptance,
        codebook: Option<Arc<B::Codebook>>,
        capacity: Capacity,
        Room { images, branches, pages, slots }: Room,
        bias: &[f32],
    ) -> Result<Self, Error> {
        let (config, grid, backend) = (&model.config, model.grid(), &model.backend);
        let (hidden, vocab) = (config.hidden_size, config.image_vocab_size);
        let proposals = matches!(acceptance, Acceptance::Judged(_));
        let (places, stride) = (grid.len() + slots.places, grid.len() + slots.states);
        let mut state = Self {
            kv: model.transformer.kv_pool(backend, pages)?,
            canvas: backend.canvas(images, places, vocab, proposals)?,
            places,
            stride,
            codebook,
            bias: backend.tensor(capacity.sequences, hidden)?,
            states: backend.tensor(branches * stride, hidden)?,
            hidden: backend.tensor(capacity.rows, hidden)?,
            selected: backend.tensor(capacity.rows, hidden)?,
            logits: backend.tensor(capacity.rows + branches, vocab)?,
            source: backend.operand(capacity.sources, 2 * hidden)?,
            drafted: backend.tensor(capacity.sources, hidden)?,
            draft_logits: backend.tensor(capacity.sources, vocab)?,
            transformer: model.transformer.scratch(backend, capacity.rows)?,
            heads: model.heads.as_ref().map(|heads| heads.scratch(backend, capacity.sources)).transpose()?,
        };
        backend.upload(bias, &mut state.bias);
        Ok(state)
    }

    /// The ops of a step.
    pub(super) fn run(&mut self, model: &Avatar<B>, backend: &B, step: &B::Step, parts: Parts) {
        if parts.putting {
            backend.put(step, &mut self.canvas);
        }
        if parts.drafting {
            self.draft(model, step);
        }
        if parts.feeding {
            backend.embed(step, model.embedding(&self.bias), &self.canvas, &mut self.hidden);
            self.pass(model, step);
        }
    }

    /// Runs the heads of the step's sources and draws its drafts.
    fn draft(&mut self, model: &Avatar<B>, step: &B::Step) {
        let _span = info_span!("draft").entered();
        let backend = &model.backend;
        let (heads, scratch) = model.heads.as_ref().zip(self.heads.as_mut()).expect("drafts are asked of heads");
        backend.gather_sources(step, &self.states, model.token_table(), &self.canvas, &mut self.source);
        heads.predict(backend, step, &self.source, scratch, &mut self.drafted);
        model.transformer.logits(backend, &self.drafted, &mut scratch.normed, &mut self.draft_logits);
        backend.draw(step, Phase::Drafts, &self.draft_logits, &mut self.canvas, None);
    }

    /// Runs the step's rows, whose inputs are in `hidden`, and draws its verdicts.
    pub(super) fn pass(&mut self, model: &Avatar<B>, step: &B::Step) {
        let backend = &model.backend;
        let span = info_span!("pass").entered();
        model.transformer.forward(backend, &mut self.hidden, step, &mut self.kv, &mut self.transformer);
        backend.keep_states(step, &self.hidden, self.stride, &mut self.states);
        backend.select(step, &self.hidden, &mut self.selected);
        model.transformer.logits(backend, &self.selected, &mut self.transformer.normed, &mut self.logits);
        backend.copy_rows(step, &mut self.logits);
        drop(span);
        let _span = info_span!("verify").entered();
        backend.draw(step, Phase::Verdicts, &self.logits, &mut self.canvas, self.codebook.as_deref());
    }
}
