//! The drafter of one image: what an [`Eagle`] keeps beside a [`Session`](super::session::Session), whose canvas, states and
//! page numbers it shares. Its guesses of states go where the target's would: what the target predicts in the next pass
//! overwrites them.

use super::tree::{Choice, Growth, State};
use super::{DraftCost, frontier};
use crate::backend::{
    Backend, Capacity, Chosen, Draw, Error, Image, NONE, PageTable, Phase, Put, RowPlace, Rule, Slot, Source, Step,
};
use crate::grid::Grid;
use crate::models::avatar::Avatar;
use crate::nn::eagle::{Activations, Eagle, Inputs};
use std::sync::Arc;

/// The drafter's part of an image.
pub(super) struct Drafting<B: Backend> {
    /// Pages as the session's, without a prompt.
    tables: Vec<PageTable>,
    pass: Pass<B>,
    step: B::Step,
    /// Positions that it has seen.
    seen: usize,
    pub(super) cost: DraftCost,
}

/// What a pass of it works with.
struct Pass<B: Backend> {
    eagle: Arc<Eagle<B>>,
    kv: B::KvPool,
    /// What each branch's condition adds to its inputs.
    bias: B::Tensor,
    guesses: B::Tensor,
    logits: B::Tensor,
    activations: Activations<B>,
}

/// What it shares with the session.
pub(super) struct Shared<'a, B: Backend> {
    pub(super) model: &'a Avatar<B>,
    pub(super) image: Image,
    /// Rows of a branch in the kept states.
    pub(super) stride: usize,
    pub(super) states: &'a mut B::Tensor,
    pub(super) canvas: &'a mut B::Canvas,
}

impl<B: Backend> Drafting<B> {
    /// Beside a session with these pages, of `slots` slots; `biases` are those of its branches.
    pub(super) fn new(
        model: &Avatar<B>,
        eagle: Arc<Eagle<B>>,
        tables: &[PageTable],
        (capacity, slots): (Capacity, usize),
        biases: &[f32],
    ) -> Result<Self, Error> {
        let (config, backend, branches) = (&model.config, &model.backend, tables.len());
        let bare = |table: &PageTable| PageTable { prefix: Vec::new(), prefix_len: 0, ..table.clone() };
        // All that is fed at once: a path and a level, of a tree that has as many slots.
        let rows = branches * 2 * slots;
        let capacity = Capacity { rows, sources: rows, groups: 1, siblings: 0, ..capacity };
        Ok(Self {
            tables: tables.iter().map(bare).collect(),
            pass: Pass {
                kv: eagle.kv_pool(backend, capacity.pages)?,
                bias: eagle.project(backend, biases)?,
                guesses: backend.tensor(rows, config.hidden_size)?,
                logits: backend.tensor(rows, config.image_vocab_size)?,
                activations: eagle.activations(backend, rows)?,
                eagle,
            },
            step: backend.step(capacity)?,
            seen: 0,
            cost: DraftCost::default(),
        })
    }

    /// Makes room for all that a pass needs between its kernels.
    pub(super) fn reserve(&mut self, mut shared: Shared<'_, B>) -> Result<(), Error> {
        let Self { pass, step, .. } = self;
        let backend = &shared.model.backend;
        backend.reserve(step, &mut |backend, step| {
            backend.put(step, shared.canvas);
            pass.run(backend, step, &mut shared);
        })
    }

    /// Runs a pass; what it chose.
    pub(super) fn grow(&mut self, growth: &Growth, mut shared: Shared<'_, B>) -> Result<Vec<Chosen>, Error> {
        let backend = &shared.model.backend;
        let plan = self.plan(growth, shared.image, shared.model.grid(), shared.stride);
        let (feeding, putting) = (!plan.layout.rows.is_empty(), !plan.puts.is_empty());
        self.cost.passes += usize::from(feeding);
        self.cost.rows += growth.trunk.len() + growth.nodes.len();
        let Self { pass, step, .. } = self;
        backend.set_step(plan, step)?;
        backend.run(step, &mut |backend, step| {
            if putting {
                backend.put(step, shared.canvas);
            }
            if feeding {
                pass.run(backend, step, &mut shared);
            }
        });
        if growth.broods.iter().all(|brood| brood.choice == Choice::Drawn) {
            return Ok(Vec::new());
        }
        backend.chosen(step, shared.canvas)
    }

    /// Logits of the last pass, `[branch][row][vocab]`, on the host.
    pub(super) fn logits(&self, model: &Avatar<B>) -> Result<Vec<f32>, Error> {
        Ok(model.backend.read(&self.pass.logits)?.into_owned())
    }

    fn plan(&mut self, growth: &Growth, mut image: Image, grid: Grid, stride: usize) -> Step {
        self.seen = growth.trunk.last().map_or(self.seen, |(position, _)| position + 1);
        let (length, branches) = (grid.len(), self.tables.len());
        let choosing = growth.broods.iter().any(|brood| brood.choice == Choice::Likeliest);
        // Greedy, one token has all of the probability; which other ones to judge is a matter of the law before that.
        if choosing && image.sampling.temperature == 0.0 {
            image.sampling.temperature = 1.0;
        }
        let puts = growth.puts.iter().map(|&(place, token)| Put { image: 0, position: place as u32, token });
        let mut step = Step { images: vec![image], puts: puts.collect(), ..Step::default() };
        let trunk = growth.trunk.iter().map(|&(position, state)| (Slot::Grid(position as u32), position, state));
        let nodes = growth.nodes.iter().map(|&(node, state)| {
            let slot = Slot::Scratch { slot: node.slot as u32, at: node.at as u32, ancestors: node.ancestors };
            (slot, length + node.slot, state)
        });
        let rows: Vec<_> = trunk.chain(nodes).collect();
        for (sequence, table) in self.tables.iter().enumerate() {
            step.layout.sequences.push(PageTable { frontier: frontier(grid, self.seen), ..table.clone() });
            for &(slot, place, state) in &rows {
                step.layout.rows.push(RowPlace { sequence: sequence as u32, slot });
                let state = match state {
                    State::Of(position) => position,
                    State::After(slot) => length + slot,
                };
                step.sources.push(Source { state: (sequence * stride + state) as u32, token: place as u32 });
            }
        }
        step.groups = vec![0, step.sources.len() as u32];
        for brood in &growth.broods {
            let of =
                |slot| growth.nodes.iter().position(|(node, _)| node.slot == slot).map(|row| growth.trunk.len() + row);
            let row = brood.parent.map_or_else(|| growth.trunk.len().checked_sub(1), of).expect("a parent is fed");
            let of = |branch: usize| if branch < branches { (branch * rows.len() + row) as u32 } else { NONE };
            let count = brood.count as u32;
            step.verdicts.push(Draw {
                image: 0,
                position: (length + brood.first) as u32,
                rule: match brood.choice {
                    Choice::Drawn => Rule::Children { count },
                    Choice::Likeliest => Rule::Likeliest { count },
                },
                follows: false,
                round: growth.round,
                conditional: [of(0), NONE],
                unconditional: [of(1), NONE],
            });
        }
        step
    }
}

impl<B: Backend> Pass<B> {
    fn run(&mut self, backend: &B, step: &B::Step, shared: &mut Shared<'_, B>) {
        let Self { eagle, kv, bias, guesses, logits, activations } = self;
        let (model, states, canvas) = (shared.model, &mut *shared.states, &mut *shared.canvas);
        let inputs = Inputs { states, tokens: model.token_table(), bias, canvas };
        eagle.forward(backend, step, inputs, kv, activations, guesses);
        backend.keep_states(step, guesses, shared.stride, states);
        model.transformer.logits(backend, guesses, &mut activations.layer.normed, logits);
        backend.draw(step, Phase::Verdicts, logits, canvas, None);
    }
}
