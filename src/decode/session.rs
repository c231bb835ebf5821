//! One guided image of a model as a [`Target`]: branches, KV cache, hidden states, processed distributions.

use super::sampling::Sampling;
use super::{Placed, Source, Target};
use crate::backend::{Backend, Layout, PageTable, RowPlace, Slot};
use crate::grid::Grid;
use crate::kv::{Allocator, OutOfPages};
use crate::models::avatar::{Avatar, Condition};
use crate::nn::spatial_heads::{self, Offset};
use crate::nn::transformer;

/// The state of one image. Branch 0 is conditional, branch 1 (under guidance) unconditional.
pub struct Session<'m, B: Backend> {
    model: &'m Avatar<B>,
    sampling: Sampling,
    conditions: Vec<Condition>,
    tables: Vec<PageTable>,
    kv: B::KvPool,
    /// Hidden states before the final norm, `[branch][position][hidden]`: the one that predicted the position.
    states: Vec<f32>,
    work: Work<B>,
    passed: Distributions,
    drafted: Distributions,
}

/// Tensors and scratch, allocated once for the largest pass.
struct Work<B: Backend> {
    hidden: B::Tensor,
    logits: B::Tensor,
    source: B::Tensor,
    transformer: transformer::Scratch<B>,
    heads: spatial_heads::Scratch<B>,
}

/// Processed log-weights, `[rows, vocab]`.
struct Distributions {
    data: Vec<f32>,
    vocab: usize,
}

impl Distributions {
    fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.vocab..][..self.vocab]
    }

    /// Guides and processes the branches' logits `[branch][rows]` of row `index` into row `to`.
    fn set(&mut self, to: usize, logits: &[f32], index: usize, rows: usize, sampling: &Sampling) {
        let vocab = self.vocab;
        let needed = (to + 1) * vocab;
        if self.data.len() < needed {
            self.data.resize(needed, 0.0);
        }
        let branch = |b: usize| &logits[(b * rows + index) * vocab..][..vocab];
        let unconditional = (sampling.branches() == 2).then(|| branch(1));
        sampling.process(branch(0), unconditional, &mut self.data[to * vocab..][..vocab]);
    }
}

impl<'m, B: Backend> Session<'m, B> {
    /// Prepares an image of `condition`; `unconditional` is the other branch of guidance, unused when cfg is 1.
    pub fn new(
        model: &'m Avatar<B>,
        condition: Condition,
        unconditional: Condition,
        sampling: Sampling,
    ) -> Result<Self, OutOfPages> {
        let (config, grid, backend) = (&model.config, model.grid(), &model.backend);
        let mut conditions = vec![condition, unconditional];
        conditions.truncate(sampling.branches());
        let lengths: Vec<usize> = conditions.iter().map(|c| c.prefix.len() / config.hidden_size).collect();
        let pages = lengths.iter().map(|&tokens| Allocator::pages_for(tokens) + Allocator::pages_for(grid.len())).sum();
        let mut allocator = Allocator::new(pages);
        let tables = lengths.iter().map(|&tokens| {
            let prompt = allocator.prompt(tokens)?;
            Ok(allocator.sequence(&prompt, grid)?.page_table(grid))
        });
        let tables = tables.collect::<Result<_, OutOfPages>>()?;
        let rows = lengths.iter().copied().max().unwrap_or(0).max(grid.len()) * conditions.len();
        let vocab = config.image_vocab_size;
        Ok(Self {
            model,
            sampling,
            tables,
            kv: model.transformer.kv_pool(backend, pages),
            states: vec![0.0; conditions.len() * grid.len() * config.hidden_size],
            work: Work {
                hidden: backend.tensor(rows, config.hidden_size),
                logits: backend.tensor(rows, vocab),
                source: backend.tensor(rows, 2 * config.hidden_size),
                transformer: model.transformer.scratch(backend, rows),
                heads: model.heads.scratch(backend, rows),
            },
            conditions,
            passed: Distributions { data: Vec::new(), vocab },
            drafted: Distributions { data: Vec::new(), vocab },
        })
    }

    /// Runs `inputs` through the decoder; the hidden states stay in `work.hidden`.
    fn forward(&mut self, inputs: &[f32], layout: &Layout) {
        let Self { model, kv, work, .. } = self;
        model.backend.upload(inputs, &mut work.hidden);
        model.transformer.forward(&model.backend, &mut work.hidden, layout, kv, &mut work.transformer);
    }

    /// Keeps `hidden` as the state that predicts `position` in `branch`; past the last position there is none.
    fn keep_state(&mut self, branch: usize, position: usize, hidden: &[f32]) {
        let length = self.model.grid().len();
        if position < length {
            self.states[(branch * length + position) * hidden.len()..][..hidden.len()].copy_from_slice(hidden);
        }
    }

    fn state(&self, branch: usize, position: usize) -> &[f32] {
        let hidden = self.model.config.hidden_size;
        &self.states[(branch * self.model.grid().len() + position) * hidden..][..hidden]
    }

    /// Runs one head for the sources at `indices`.
    fn run_head(&mut self, offset: Offset, sources: &[Source], indices: &[usize]) {
        let branches = self.conditions.len();
        let mut inputs = Vec::with_capacity(branches * indices.len() * 2 * self.model.config.hidden_size);
        for branch in 0..branches {
            for &index in indices {
                let Placed { position, token } = sources[index].from;
                inputs.extend_from_slice(self.state(branch, position));
                inputs.extend_from_slice(self.model.embedding(token));
            }
        }
        let Self { model, work, drafted, sampling, .. } = self;
        let backend = &model.backend;
        backend.upload(&inputs, &mut work.source);
        model.heads.predict(backend, offset, &work.source, &mut work.heads, &mut work.hidden);
        model.transformer.logits(backend, &work.hidden, &mut work.transformer, &mut work.logits);
        let logits = backend.read(&work.logits);
        for (row, &index) in indices.iter().enumerate() {
            drafted.set(index, &logits, row, indices.len(), sampling);
        }
    }
}

impl<B: Backend> Target for Session<'_, B> {
    fn grid(&self) -> Grid {
        self.model.grid()
    }

    fn vocab(&self) -> usize {
        self.model.config.image_vocab_size
    }

    fn prefill(&mut self) {
        let hidden = self.model.config.hidden_size;
        let (mut inputs, mut layout, mut last) = (Vec::new(), Layout::default(), Vec::new());
        for (sequence, (condition, table)) in self.conditions.iter().zip(&self.tables).enumerate() {
            inputs.extend_from_slice(&condition.prefix);
            layout.sequences.push(table.clone());
            let slots = (0..table.prefix_len as u32).map(Slot::Prefix);
            layout.rows.extend(slots.map(|slot| RowPlace { sequence: sequence as u32, slot }));
            last.push(layout.rows.len() - 1);
        }
        self.forward(&inputs, &layout);
        let states = self.model.backend.read(&self.work.hidden).into_owned();
        let ends: Vec<f32> = last.iter().flat_map(|row| &states[row * hidden..][..hidden]).copied().collect();
        for (branch, state) in ends.chunks_exact(hidden).enumerate() {
            self.keep_state(branch, 0, state);
        }
        let Self { model, work, passed, sampling, .. } = self;
        model.backend.upload(&ends, &mut work.hidden);
        model.transformer.logits(&model.backend, &work.hidden, &mut work.transformer, &mut work.logits);
        passed.set(0, &model.backend.read(&work.logits), 0, 1, sampling);
    }

    fn feed(&mut self, block: &[Placed], frontier: &[u32]) {
        let hidden = self.model.config.hidden_size;
        let (mut inputs, mut layout) = (Vec::new(), Layout::default());
        for (sequence, (condition, table)) in self.conditions.iter().zip(&self.tables).enumerate() {
            for placed in block {
                self.model.push_input(condition, placed.position, placed.token, &mut inputs);
                let slot = Slot::Grid(placed.position as u32);
                layout.rows.push(RowPlace { sequence: sequence as u32, slot });
            }
            layout.sequences.push(PageTable { frontier: frontier.to_vec(), ..table.clone() });
        }
        self.forward(&inputs, &layout);
        let states = self.model.backend.read(&self.work.hidden).into_owned();
        for (row, state) in states.chunks_exact(hidden).enumerate() {
            self.keep_state(row / block.len(), block[row % block.len()].position + 1, state);
        }
        let Self { model, work, passed, sampling, .. } = self;
        model.transformer.logits(&model.backend, &work.hidden, &mut work.transformer, &mut work.logits);
        let logits = model.backend.read(&work.logits);
        for row in 0..block.len() {
            passed.set(row, &logits, row, block.len(), sampling);
        }
    }

    fn log_weights(&self, i: usize) -> &[f32] {
        self.passed.row(i)
    }

    fn draft(&mut self, sources: &[Source]) {
        let mut offsets: Vec<Offset> = Vec::new();
        for source in sources {
            if !offsets.contains(&source.offset) {
                offsets.push(source.offset);
            }
        }
        for offset in offsets {
            let indices: Vec<usize> = (0..sources.len()).filter(|&i| sources[i].offset == offset).collect();
            self.run_head(offset, sources, &indices);
        }
    }

    fn draft_log_weights(&self, i: usize) -> &[f32] {
        self.drafted.row(i)
    }

    fn heads(&self) -> (usize, usize) {
        let heads = self.model.config.spatial_heads;
        (heads.horizontal, heads.vertical)
    }
}
