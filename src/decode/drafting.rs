//! The drafter of a session's images: what an [`Eagle`] keeps beside a [`Session`](super::session::Session), whose canvas,
//! states and page numbers it shares. Its guesses of states go where the target's would: what the target predicts in the next
//! pass overwrites them. A pass of it is over one image, as how many an image needs before its next round is its own.

use super::session::Subject;
use super::tree::{Brood, Choice, Growth, State};
use super::{DraftCost, frontier};
use crate::backend::{
    Backend, Capacity, Chosen, Draw, Error, NONE, PageTable, Phase, Put, RowPlace, Rule, Slot, Source, Step,
};
use crate::models::avatar::Avatar;
use crate::nn::eagle::{Activations, Eagle, Inputs};
use std::sync::Arc;

/// The drafter's part of images.
pub(super) struct Drafting<B: Backend> {
    pass: Pass<B>,
    step: B::Step,
    images: Vec<Image>,
}

/// Of one image.
#[derive(Clone, Copy, Default)]
struct Image {
    /// Positions that the drafter has seen.
    seen: usize,
    cost: DraftCost,
}

/// What a pass of it works with.
struct Pass<B: Backend> {
    eagle: Arc<Eagle<B>>,
    kv: B::KvPool,
    /// What each sequence's condition adds to its inputs.
    bias: B::Tensor,
    guesses: B::Tensor,
    logits: B::Tensor,
    activations: Activations<B>,
}

/// What it shares with the session.
pub(super) struct Shared<'a, B: Backend> {
    pub(super) model: &'a Avatar<B>,
    /// Rows of a branch in the kept states.
    pub(super) stride: usize,
    /// Tokens of an image in the canvas.
    pub(super) places: usize,
    pub(super) states: &'a mut B::Tensor,
    pub(super) canvas: &'a mut B::Canvas,
}

impl<B: Backend> Drafting<B> {
    /// Beside a session of so many images, with steps of this capacity and `slots` slots a branch; `biases` are those of its
    /// sequences.
    pub(super) fn new(
        model: &Avatar<B>,
        eagle: Arc<Eagle<B>>,
        images: usize,
        (capacity, slots): (Capacity, usize),
        biases: &[f32],
    ) -> Result<Self, Error> {
        let (config, backend) = (&model.config, &model.backend);
        // All that is fed at once: a path and a level, of a tree that has as many slots, in both branches.
        let rows = 2 * 2 * slots;
        let capacity = Capacity { rows, sources: rows, groups: 1, siblings: 0, ..capacity };
        Ok(Self {
            pass: Pass {
                kv: eagle.kv_pool(backend, capacity.pages)?,
                bias: eagle.project(backend, biases)?,
                guesses: backend.tensor(rows, config.hidden_size)?,
                logits: backend.tensor(rows, config.image_vocab_size)?,
                activations: eagle.activations(backend, rows)?,
                eagle,
            },
            step: backend.step(capacity)?,
            images: vec![Image::default(); images],
        })
    }

    /// What it has cost an image so far.
    pub(super) fn cost(&self, image: usize) -> DraftCost {
        self.images[image].cost
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

    /// Runs a pass over an image; what it chose.
    pub(super) fn grow(
        &mut self,
        image: usize,
        growth: &Growth,
        subjects: &[Subject],
        mut shared: Shared<'_, B>,
    ) -> Result<Vec<Chosen>, Error> {
        let backend = &shared.model.backend;
        let plan = self.plan(image, growth, subjects, &shared);
        let (feeding, putting) = (!plan.layout.rows.is_empty(), !plan.puts.is_empty());
        let cost = &mut self.images[image].cost;
        cost.passes += usize::from(feeding);
        cost.rows += growth.trunk.len() + growth.nodes.len();
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

    fn plan(&mut self, image: usize, growth: &Growth, subjects: &[Subject], shared: &Shared<'_, B>) -> Step {
        let (subject, grid, places) = (&subjects[image], shared.model.grid(), shared.places);
        let Image { seen, .. } = &mut self.images[image];
        *seen = growth.trunk.last().map_or(*seen, |(position, _)| position + 1);
        let mut step = Step { images: subjects.iter().map(|subject| subject.image).collect(), ..Step::default() };
        let choosing = growth.broods.iter().any(|brood| brood.choice == Choice::Likeliest);
        let sampling = &mut step.images[image].sampling;
        // Greedy, one token has all of the probability; which other ones to judge is a matter of the law before that.
        if choosing && sampling.temperature == 0.0 {
            sampling.temperature = 1.0;
        }
        let put = |&(place, token): &(usize, u32)| Put { image: image as u32, position: place as u32, token };
        step.puts = growth.puts.iter().map(put).collect();
        let trunk = growth.trunk.iter().map(|&(position, state)| (Slot::Grid(position as u32), position, state));
        let nodes = growth.nodes.iter().map(|&(node, state)| {
            let slot = Slot::Scratch { slot: node.slot as u32, at: node.at as u32, ancestors: node.ancestors };
            (slot, grid.len() + node.slot, state)
        });
        let rows: Vec<_> = trunk.chain(nodes).collect();
        // The sequences of all images, so that each has its number, without their prompts.
        let bare = |table: &PageTable| PageTable { prefix: Vec::new(), prefix_len: 0, ..table.clone() };
        step.layout.sequences = subjects.iter().flat_map(|subject| subject.tables.iter().map(bare)).collect();
        for branch in 0..subject.tables.len() {
            let sequence = subject.first + branch;
            step.layout.sequences[sequence].frontier = frontier(grid, *seen);
            for &(slot, place, state) in &rows {
                step.layout.rows.push(RowPlace { sequence: sequence as u32, slot });
                let state = match state {
                    State::Of(position) => subject.state(branch, position, shared.stride),
                    State::After(slot) => subject.state(branch, grid.len() + slot, shared.stride),
                };
                step.sources.push(Source { state: state as u32, token: (image * places + place) as u32 });
            }
        }
        step.groups = vec![0, step.sources.len() as u32];
        step.verdicts = draws(image, growth, (subject.tables.len(), rows.len()), grid.len());
        step
    }
}

/// The draws of a pass's broods, which has so many rows in each of so many branches.
fn draws(image: usize, growth: &Growth, (branches, rows): (usize, usize), positions: usize) -> Vec<Draw> {
    let fed = |slot| growth.nodes.iter().position(|(node, _)| node.slot == slot).map(|row| growth.trunk.len() + row);
    let draw = |brood: &Brood| {
        let row = brood.parent.map_or_else(|| growth.trunk.len().checked_sub(1), fed).expect("a parent is fed");
        let of = |branch: usize| if branch < branches { (branch * rows + row) as u32 } else { NONE };
        let count = brood.count as u32;
        Draw {
            image: image as u32,
            position: (positions + brood.first) as u32,
            rule: match brood.choice {
                Choice::Drawn => Rule::Children { count },
                Choice::Likeliest => Rule::Likeliest { count },
            },
            follows: false,
            round: growth.round,
            conditional: [of(0), NONE],
            unconditional: [of(1), NONE],
        }
    };
    growth.broods.iter().map(draw).collect()
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
