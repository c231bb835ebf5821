//! Guided images of a model as a [`Target`]: branches, KV cache, hidden states, draws. Tokens, states and distributions stay
//! on the backend's device; rounds of all images are one [`Step`](crate::backend::Step), which gives back what was drawn.
//!
//! Images with one prompt share its pages, and it is fed once. Every branch of every image is a sequence of each step, with
//! rows or without, so that a sequence has one number from the first step to the last.
//!
//! Spans for profilers: `prefill`, `step`.

mod plan;
mod state;

use super::drafting::{Drafting, Shared};
use super::layout::{Pages, Slots};
use super::tree::Growth;
use super::{Acceptance, Draft, DraftCost, Round, Scene, Source, Target};
use crate::backend::{Backend, Capacity, Chosen, Drawn, Error, Image, SCRATCH, Step, Test};
use crate::models::avatar::{Avatar, Condition};
use crate::nn::eagle::Eagle;
use crate::nn::spatial_heads::Offset;
use plan::Planner;
pub(super) use plan::Subject;
use state::{Parts, Room, State};
use std::sync::Arc;
use tracing::info_span;

/// Images in the making. Branch 0 of each is conditional, branch 1 (under guidance) unconditional.
pub struct Session<'m, B: Backend> {
    model: &'m Avatar<B>,
    planner: Planner,
    /// Inputs of the prompts, each once, `[tokens, hidden]`.
    prompts: Vec<f32>,
    /// Tokens that the last step was to choose for each image.
    choices: Vec<usize>,
    step: B::Step,
    state: State<B>,
    drafting: Option<Drafting<B>>,
}

/// What some decoders need besides the model.
pub struct Aids<B: Backend> {
    /// For acceptance rules that look at one.
    pub codebook: Option<Arc<B::Codebook>>,
    /// For draft trees.
    pub eagle: Option<Arc<Eagle<B>>>,
    /// Rows for a tree with a trunk of its own ([`Round::trunk`]).
    pub foresight: bool,
}

impl<B: Backend> Default for Aids<B> {
    fn default() -> Self {
        Self { codebook: None, eagle: None, foresight: false }
    }
}

impl<'m, B: Backend> Session<'m, B> {
    /// Prepares images, each of a condition; `unconditional` is the other branch of guidance, unused when cfg is 1. An
    /// acceptance rule's test is that of all of them.
    ///
    /// # Panics
    /// Without an image.
    pub fn new(
        model: &'m Avatar<B>,
        images: Vec<(Condition, Image)>,
        unconditional: &Condition,
        acceptance: Acceptance,
        aids: Aids<B>,
    ) -> Result<Self, Error> {
        assert!(!images.is_empty(), "a session without images");
        let (config, grid, backend) = (&model.config, model.grid(), &model.backend);
        let slots = Slots::new(grid, aids.eagle.is_some(), aids.foresight);
        let of_image = |(condition, image)| [condition, unconditional].into_iter().take(branches(image));
        let conditions: Vec<Vec<&Condition>> =
            images.iter().map(|(condition, image)| of_image((condition, image)).collect()).collect();
        let prompts: Vec<Vec<&[f32]>> = conditions
            .iter()
            .map(|branches| branches.iter().map(|condition| &condition.prefix[..]).collect())
            .collect();
        let pages = Pages::new(&prompts, config.hidden_size, grid, slots.rows);
        let all: Vec<&[f32]> = prompts.into_iter().flatten().collect();
        let fed = |(sequence, owner): (usize, &usize)| (sequence == *owner).then_some(all[sequence]);
        let prompts: Vec<f32> = pages.owners.iter().enumerate().filter_map(fed).flatten().copied().collect();
        let branches = all.len();
        let capacity = capacity(model, &pages, prompts.len() / config.hidden_size, slots, &aids);
        let of_sequences = conditions.iter().flatten().cycle().take(capacity.sequences);
        let bias: Vec<f32> = of_sequences.flat_map(|condition| &condition.bias).copied().collect();
        let room = Room { images: images.len(), branches, pages: pages.count, slots };
        let beside = |eagle| Drafting::new(model, eagle, images.len(), (capacity, slots.rows), &bias);
        let drafting = aids.eagle.map(beside).transpose()?;
        let state = State::new(model, acceptance, aids.codebook, capacity, room, &bias)?;
        let planner = Planner {
            grid,
            acceptance,
            heads: config.heads(),
            places: state.places,
            stride: state.stride,
            kept: capacity.rows,
            subjects: subjects(images.into_iter().map(|(_, image)| image), acceptance, pages, grid.len()),
        };
        let step = backend.step(capacity)?;
        let mut session = Self { model, planner, prompts, choices: Vec::new(), step, state, drafting };
        session.reserve()?;
        Ok(session)
    }

    /// Makes room for all that its steps and its drafter's need between their kernels.
    fn reserve(&mut self) -> Result<(), Error> {
        let Self { model, step, state, drafting, .. } = self;
        let all = Parts { putting: true, drafting: state.heads.is_some(), feeding: true };
        model.backend.reserve(step, &mut |backend, step| state.run(model, backend, step, all))?;
        match drafting {
            Some(drafting) => drafting.reserve(shared(model, state)),
            None => Ok(()),
        }
    }

    /// Feeds the prompts; the distributions of position 0 are kept, and drawn from if `drawn`.
    fn feed_prompts(&mut self, drawn: bool) -> Result<(), Error> {
        let _span = info_span!("prefill").entered();
        let Self { model, planner, prompts, step, state, .. } = self;
        model.backend.set_step(planner.prompts(drawn), step)?;
        model.backend.upload(prompts, &mut state.hidden);
        state.pass(model, step);
        Ok(())
    }

    /// Runs a step.
    fn execute(&mut self, plan: Step) -> Result<(), Error> {
        let Self { model, step, state, .. } = self;
        let parts = Parts {
            putting: !plan.puts.is_empty(),
            drafting: !plan.sources.is_empty(),
            feeding: !plan.layout.rows.is_empty(),
        };
        model.backend.set_step(plan, step)?;
        model.backend.run(step, &mut |backend, step| state.run(model, backend, step, parts));
        Ok(())
    }

    /// The only image.
    ///
    /// # Panics
    /// If there are more.
    fn alone(&self) -> &Subject {
        let [subject] = &self.planner.subjects[..] else { panic!("a session of more than one image") };
        subject
    }

    /// Log-weights `[rows, vocab]` of branch logits `[branch][rows]` of the only image, guided and processed on the host.
    fn process(&self, logits: &[f32]) -> Vec<f32> {
        let (vocab, subject) = (self.model.config.image_vocab_size, self.alone());
        let (conditional, unconditional) = logits.split_at(logits.len() / subject.tables.len());
        let mut out = vec![0.0; conditional.len()];
        let rows = conditional.chunks_exact(vocab).zip(out.chunks_exact_mut(vocab));
        for (row, (conditional, out)) in rows.enumerate() {
            subject.image.sampling.process(conditional, unconditional.chunks_exact(vocab).nth(row), out);
        }
        out
    }

    /// Of a session of one image: feeds the prompt; the processed log-weights of position 0, `[vocab]`, on the host.
    pub fn prompt_log_weights(&mut self) -> Result<Vec<f32>, Error> {
        self.feed_prompts(false)?;
        let fed = self.model.backend.read(&self.state.logits)?;
        // Both branches may have the same prompt, which was fed once.
        let rows = self.alone().owners.iter().map(|&owner| &fed[owner * self.model.config.image_vocab_size..]);
        let logits: Vec<f32> = rows.flat_map(|row| &row[..self.model.config.image_vocab_size]).copied().collect();
        Ok(self.process(&logits))
    }

    /// Teacher forcing of a session of one image: feeds `block` (ascending positions) of an image's `tokens` in one pass,
    /// with so many columns of each grid row visible below it; the processed log-weights of the block's successors,
    /// `[block, vocab]`, on the host.
    pub fn log_weights(&mut self, tokens: &[u32], block: &[usize], frontier: &[u32]) -> Result<Vec<f32>, Error> {
        let mut padded = tokens.to_vec();
        padded.resize(self.state.places, 0);
        self.model.backend.set_tokens(&mut self.state.canvas, 0, &padded)?;
        let round = Round { block: block.to_vec(), frontier: frontier.to_vec(), ..Round::default() };
        let mut plan = self.planner.step(&[Some(round)]);
        plan.predictions = (0..plan.layout.rows.len() as u32).collect();
        self.execute(plan)?;
        let logits = self.model.backend.read(&self.state.logits)?;
        Ok(self.process(&logits))
    }

    /// Of a session of one image: the processed log-weights of the heads at `offset` of positions that were predicted, given
    /// the canvas, `[from, vocab]`, on the host.
    pub fn draft_log_weights(&mut self, offset: Offset, from: &[usize]) -> Result<Vec<f32>, Error> {
        let draft = |&from: &usize| Draft { position: 0, sources: [Some(Source { from, offset }), None] };
        let drafts: Vec<Draft> = from.iter().map(draft).collect();
        let mut plan = Step { images: vec![self.alone().image], ..Step::default() };
        self.planner.drafts(&[(0, &drafts)], &mut plan);
        plan.drafts.clear();
        self.execute(plan)?;
        let logits = self.model.backend.read(&self.state.draft_logits)?;
        Ok(self.process(&logits))
    }

    /// Of a session of one image: the processed log-weights that the drafter gives the successors of all that a pass of it is
    /// fed, `[rows, vocab]`, on the host.
    pub fn guessed_log_weights(&mut self, growth: &Growth) -> Result<Vec<f32>, Error> {
        self.grow(0, growth)?;
        let drafting = self.drafting.as_ref().expect("a session with a drafter");
        let logits = drafting.logits(self.model)?;
        Ok(self.process(&logits))
    }
}

/// Branches of an image.
fn branches(image: &Image) -> usize {
    image.sampling.branches()
}

/// What the largest step needs: that of the prompts, or one with every position of every image.
fn capacity<B: Backend>(model: &Avatar<B>, pages: &Pages, prompts: usize, slots: Slots, aids: &Aids<B>) -> Capacity {
    let (config, grid, branches) = (&model.config, model.grid(), pages.owners.len());
    // Trees with a trunk of their own are sequences of their own, which name the pages of their branch again.
    let times = if aids.foresight { 2 } else { 1 };
    Capacity {
        rows: prompts.max(branches * (grid.len() + slots.rows)),
        sequences: times * branches,
        pages: times * pages.named(),
        frontiers: times * branches * grid.height,
        sources: 2 * branches * grid.len(),
        groups: config.heads().0 + config.heads().1,
        // Of the children of each node and of the root.
        siblings: if aids.eagle.is_some() { pages.tables.len() * (SCRATCH + 1) } else { 0 },
    }
}

fn subjects(
    images: impl Iterator<Item = Image>,
    acceptance: Acceptance,
    pages: Pages,
    positions: usize,
) -> Vec<Subject> {
    let test = if let Acceptance::Judged(test) = acceptance { test } else { Test::Token };
    let mut next = 0;
    let subject = |(image, tables): (Image, Vec<_>)| {
        let first = next;
        next += tables.len();
        let owners = pages.owners[first..next].to_vec();
        Subject { image: Image { test, ..image }, tables, first, owners, rounds: vec![0; positions], kept: 0 }
    };
    images.zip(pages.tables).map(subject).collect()
}

impl<B: Backend> Target for Session<'_, B> {
    fn scene(&self, image: usize) -> Scene {
        Scene {
            grid: self.model.grid(),
            heads: self.model.config.heads(),
            scale: 1,
            vocab: self.model.config.image_vocab_size,
            stream: self.planner.subjects[image].image.stream,
        }
    }

    fn begin(&mut self) -> Result<Vec<Drawn>, Error> {
        self.feed_prompts(true)?;
        self.model.backend.drawn(&self.step, &self.state.canvas)
    }

    fn grow(&mut self, image: usize, growth: &Growth) -> Result<Vec<Chosen>, Error> {
        let _span = info_span!("grow").entered();
        let Self { model, planner, state, drafting, .. } = self;
        let drafting = drafting.as_mut().expect("trees are asked of a session with a drafter");
        drafting.grow(image, growth, &planner.subjects, shared(model, state))
    }

    fn rounds(&mut self, rounds: &[Option<Round>]) -> Result<Vec<Vec<Drawn>>, Error> {
        let sketched = rounds.iter().flatten().any(|round| round.sketch.is_some());
        assert!(!sketched, "this target has no low-resolution drafter");
        let _span = info_span!("step").entered();
        let plan = self.planner.step(rounds);
        self.execute(plan)?;
        let counts = |count: fn(&Round) -> usize| rounds.iter().map(move |round| round.as_ref().map_or(0, count));
        self.choices = counts(|round| round.forecasts.iter().map(|forecast| forecast.count).sum()).collect();
        let drawn = self.model.backend.drawn(&self.step, &self.state.canvas)?;
        let asked = counts(|round| round.asks.len() + round.families.len() + round.forecasts.len());
        Ok(split(drawn, asked))
    }

    fn foreseen(&mut self) -> Result<Vec<Vec<Chosen>>, Error> {
        let chosen = self.model.backend.chosen(&self.step, &self.state.canvas)?;
        Ok(split(chosen, self.choices.iter().copied()))
    }

    fn tokens(&mut self, image: usize) -> Result<Vec<u32>, Error> {
        let mut tokens = self.model.backend.tokens(&self.state.canvas, image)?;
        tokens.truncate(self.model.grid().len());
        Ok(tokens)
    }

    fn draft_cost(&self, image: usize) -> DraftCost {
        self.drafting.as_ref().map(|drafting| drafting.cost(image)).unwrap_or_default()
    }
}

/// What a drafter shares.
fn shared<'a, B: Backend>(model: &'a Avatar<B>, state: &'a mut State<B>) -> Shared<'a, B> {
    let State { stride, places, states, canvas, .. } = state;
    Shared { model, stride: *stride, places: *places, states, canvas }
}

/// Parts of a list, of these lengths.
fn split<T>(all: Vec<T>, lengths: impl Iterator<Item = usize>) -> Vec<Vec<T>> {
    let mut all = all.into_iter();
    lengths.map(|length| all.by_ref().take(length).collect()).collect()
}
