//! One guided image of a model as a [`Target`]: branches, KV cache, hidden states, draws. Tokens, states and
//! distributions stay on the backend's device; a round sends one [`Step`] and gets back what was drawn.
//!
//! Spans for profilers: `prefill`, `step`, and inside `draft`, `pass`, `verify`. A backend that records a step goes
//! through the inner ones when it records, not when it replays.

use super::drafting::{Drafting, Shared};
use super::layout::{Row, Rows, Slots, tables};
use super::tree::{Choice, Family, Growth};
use super::{Acceptance, Draft, DraftCost, Round, Scene, Source, Target};
use crate::backend::{
    Backend, Capacity, Chosen, Copy, Draw, Drawn, Error, Image, NONE, PageTable, Phase, Put, RowPlace, Rule, SCRATCH,
    Slot, Step, Test,
};
use crate::models::avatar::{Avatar, Condition};
use crate::nn::eagle::Eagle;
use crate::nn::spatial_heads::{self, Offset};
use crate::nn::transformer;
use std::sync::Arc;
use tracing::info_span;

/// The state of one image. Branch 0 is conditional, branch 1 (under guidance) unconditional.
pub struct Session<'m, B: Backend> {
    model: &'m Avatar<B>,
    image: Image,
    acceptance: Acceptance,
    /// Inputs of each branch's prompt, `[tokens, hidden]`.
    prompts: Vec<Vec<f32>>,
    tables: Vec<PageTable>,
    /// Draws made at each position.
    rounds: Vec<u32>,
    /// The position whose distribution is in the kept rows of the logits.
    kept: usize,
    capacity: Capacity,
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

/// What a step has.
#[derive(Clone, Copy)]
struct Parts {
    putting: bool,
    drafting: bool,
    feeding: bool,
}

/// What there is for each branch, however many sequences a step has: those of trees keep nothing.
#[derive(Clone, Copy)]
struct Kept {
    branches: usize,
    /// Of all branches together.
    pages: usize,
    slots: Slots,
}

/// What lives on the device.
struct State<B: Backend> {
    kv: B::KvPool,
    canvas: B::Canvas,
    /// Tokens of the canvas: of the grid, then of what is beside it.
    places: usize,
    codebook: Option<Arc<B::Codebook>>,
    /// Added to every token's input, `[sequence, hidden]`.
    bias: B::Tensor,
    /// Hidden states before the final norm, `[branch][stride][hidden]`: the one that predicted each position; behind the
    /// grid the one that each node of a draft tree predicts from.
    states: B::Tensor,
    stride: usize,
    hidden: B::Tensor,
    selected: B::Tensor,
    /// Of the predictions; the last rows, one per branch, are the kept ones.
    logits: B::Tensor,
    source: B::Tensor,
    drafted: B::Tensor,
    draft_logits: B::Tensor,
    transformer: transformer::Scratch<B>,
    heads: Option<spatial_heads::Scratch<B>>,
}

impl<'m, B: Backend> Session<'m, B> {
    /// Prepares an image of `condition`; `unconditional` is the other branch of guidance, unused when cfg is 1.
    pub fn new(
        model: &'m Avatar<B>,
        condition: Condition,
        unconditional: Condition,
        image: Image,
        acceptance: Acceptance,
        aids: Aids<B>,
    ) -> Result<Self, Error> {
        let (config, grid, backend) = (&model.config, model.grid(), &model.backend);
        let slots = Slots::new(grid, aids.eagle.is_some(), aids.foresight);
        let test = if let Acceptance::Judged(test) = acceptance { test } else { Test::Token };
        let mut conditions = vec![condition, unconditional];
        conditions.truncate(image.sampling.branches());
        let lengths: Vec<usize> = conditions.iter().map(|c| c.prefix.len() / config.hidden_size).collect();
        let (tables, pages) = tables(&lengths, grid, slots.rows);
        let branches = conditions.len();
        let sequences = if aids.foresight { 2 * branches } else { branches };
        let rows = lengths.iter().sum::<usize>().max(branches * (grid.len() + slots.rows));
        let capacity = Capacity {
            rows,
            sequences,
            // A sequence of a tree names the pages of its branch again.
            pages: pages * sequences / branches,
            frontiers: sequences * grid.height,
            sources: 2 * branches * grid.len(),
            groups: config.heads().0 + config.heads().1,
            // Of the children of each node and of the root.
            siblings: if aids.eagle.is_some() { SCRATCH + 1 } else { 0 },
        };
        let of_sequences = conditions.iter().cycle().take(sequences);
        let bias: Vec<f32> = of_sequences.flat_map(|condition| &condition.bias).copied().collect();
        let beside = |eagle| Drafting::new(model, eagle, &tables, (capacity, slots.rows), &bias);
        let drafting = aids.eagle.map(beside).transpose()?;
        let of_branches = Kept { branches, pages, slots };
        let mut session = Self {
            model,
            image: Image { test, ..image },
            acceptance,
            tables,
            rounds: vec![0; grid.len()],
            kept: 0,
            capacity,
            step: backend.step(capacity)?,
            state: State::new(model, acceptance, aids.codebook, capacity, of_branches, &bias)?,
            drafting,
            prompts: conditions.into_iter().map(|condition| condition.prefix).collect(),
        };
        session.reserve()?;
        Ok(session)
    }

    /// Makes room for all that its steps and its drafter's need between their kernels.
    fn reserve(&mut self) -> Result<(), Error> {
        let Self { model, image, step, state, drafting, .. } = self;
        let all = Parts { putting: true, drafting: state.heads.is_some(), feeding: true };
        model.backend.reserve(step, &mut |backend, step| state.run(model, backend, step, all))?;
        match drafting {
            Some(drafting) => drafting.reserve(shared(model, *image, state)),
            None => Ok(()),
        }
    }

    fn branches(&self) -> usize {
        self.tables.len()
    }

    /// The step of a round.
    fn plan(&mut self, round: &Round) -> Step {
        let branches = self.branches();
        let rows = Rows { round, branches };
        let mut step = Step { images: vec![self.image], ..Step::default() };
        self.plan_puts(round, &mut step);
        self.plan_drafts(&round.drafts, &mut step);
        step.layout = rows.layout(&self.tables);
        let wanted = round.asks.iter().map(|ask| ask.position).chain(round.keep);
        let families = round.families.iter().map(|family| rows.before(family.parent, family.position));
        let forecasts = round.forecasts.iter().map(|forecast| rows.before(forecast.parent, forecast.position));
        let wanted: Vec<Row> =
            wanted.filter_map(|position| rows.predicts(position)).chain(families).chain(forecasts).collect();
        step.predictions =
            (0..branches).flat_map(|branch| wanted.iter().map(move |&row| rows.index(branch, row))).collect();
        let mut next = 0;
        for ask in &round.asks {
            let first = match rows.predicts(ask.position) {
                Some(_) => {
                    next += 1;
                    (next - 1, wanted.len())
                }
                None => {
                    assert_eq!(ask.position, self.kept, "the position was not predicted");
                    (self.first_kept(), 1)
                }
            };
            let rule = self.rule(ask.position, ask.verify);
            let follows = ask.follows && rule.0 == Rule::AutoCorrect;
            step.verdicts.push(Draw { follows, ..draw(ask.position, rule, branches, [Some(first), None]) });
        }
        if let Some(position) = round.keep {
            step.copies = self.copies(next, wanted.len());
            self.kept = position;
        }
        let families = round.families.iter().map(|family| (family.position, self.siblings(family)));
        let foresee = |count| Rule::Foresee { count: count as u32 };
        let forecasts = round.forecasts.iter().map(|forecast| (forecast.position, foresee(forecast.count)));
        let first = wanted.len() - round.families.len() - round.forecasts.len();
        for (index, (position, rule)) in families.chain(forecasts).enumerate() {
            let rows = [Some((first + index, wanted.len())), None];
            step.verdicts.push(draw(position, (rule, 0), branches, rows));
        }
        step
    }

    fn siblings(&self, family: &Family) -> Rule {
        // A family without children names no place.
        let slot = if family.count == 0 { 0 } else { family.first };
        let first = (self.model.grid().len() + slot) as u32;
        Rule::Siblings { first, count: family.count as u32, drawn: family.choice == Choice::Drawn }
    }

    fn plan_puts(&mut self, round: &Round, step: &mut Step) {
        for &(position, token) in &round.puts {
            if let Some(rounds) = self.rounds.get_mut(position) {
                *rounds = 0;
            }
            // The token of a row beside the cache has its place behind the grid.
            let slot = round.temporary.iter().position(|&at| at == position);
            let place = slot.map_or(position, |slot| self.model.grid().len() + slot);
            step.puts.push(Put { image: 0, position: place as u32, token });
        }
    }

    /// Copies of the branches' row `row` of `rows` to the kept rows.
    fn copies(&self, row: usize, rows: usize) -> Vec<Copy> {
        let copy = |branch| Copy { from: (branch * rows + row) as u32, to: (self.first_kept() + branch) as u32 };
        (0..self.branches()).map(copy).collect()
    }

    /// The first of the logits' kept rows: behind all that a pass may predict.
    fn first_kept(&self) -> usize {
        self.capacity.rows
    }

    /// Rule and round of the next draw at a position.
    fn rule(&mut self, position: usize, verify: bool) -> (Rule, u32) {
        let rounds = &mut self.rounds[position];
        match (self.acceptance, verify) {
            (Acceptance::Clinging { slack }, true) => (Rule::Cling { slack }, 0),
            (Acceptance::Coupled | Acceptance::Clinging { .. }, _) => (Rule::Coupled, 0),
            (Acceptance::Judged(_), false) => {
                *rounds = 0;
                (Rule::Draft, 0)
            }
            (Acceptance::Judged(_), true) => {
                *rounds += 1;
                (Rule::AutoCorrect, *rounds - 1)
            }
        }
    }

    /// Sources sorted by head, then branch; drafts that refer to them.
    fn plan_drafts(&mut self, drafts: &[Draft], step: &mut Step) {
        let (branches, length) = (self.branches(), self.state.stride);
        let Scene { heads: (horizontal, vertical), .. } = self.scene();
        let all =
            |draft: usize| drafts[draft].sources.iter().flatten().enumerate().map(move |(which, &s)| (draft, which, s));
        let mut rows = vec![[None; 2]; drafts.len()];
        step.groups.push(0);
        for head in 0..horizontal + vertical {
            let of_head = |source: &Source| head_index(source.offset, horizontal) == head;
            let entries: Vec<_> = (0..drafts.len()).flat_map(all).filter(|(_, _, source)| of_head(source)).collect();
            let first = step.sources.len();
            for branch in 0..branches {
                let source = |&(_, _, Source { from, .. }): &(usize, usize, Source)| crate::backend::Source {
                    state: (branch * length + from) as u32,
                    token: from as u32,
                };
                step.sources.extend(entries.iter().map(source));
            }
            for (index, (draft, which, _)) in entries.iter().enumerate() {
                rows[*draft][*which] = Some((first + index, entries.len()));
            }
            step.groups.push(step.sources.len() as u32);
        }
        for (draft, rows) in drafts.iter().zip(rows) {
            let rule = self.rule(draft.position, false);
            step.drafts.push(draw(draft.position, rule, branches, rows));
        }
    }

    /// The step that feeds the prompt.
    fn plan_prompt(&self) -> Step {
        let mut step = Step { images: vec![self.image], groups: vec![0], ..Step::default() };
        for (sequence, table) in self.tables.iter().enumerate() {
            let slots = (0..table.prefix_len as u32).map(Slot::Prefix);
            step.layout.rows.extend(slots.map(|slot| RowPlace { sequence: sequence as u32, slot }));
            step.layout.sequences.push(table.clone());
            step.predictions.push(step.layout.rows.len() as u32 - 1);
        }
        step.copies = self.copies(0, 1);
        step
    }

    /// Feeds the prompt; the distribution of position 0 is kept, and drawn from if `drawn`.
    fn feed_prompt(&mut self, drawn: bool) -> Result<(), Error> {
        let _span = info_span!("prefill").entered();
        let (model, branches) = (self.model, self.branches());
        let mut step = self.plan_prompt();
        if drawn {
            let rule = self.rule(0, false);
            step.verdicts.push(draw(0, rule, branches, [Some((0, 1)), None]));
        }
        self.kept = 0;
        model.backend.set_step(step, &mut self.step)?;
        let (step, state) = (&self.step, &mut self.state);
        model.backend.upload(&self.prompts.concat(), &mut state.hidden);
        state.pass(model, step);
        Ok(())
    }

    /// Runs what [`Self::plan`] made.
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

    /// Log-weights `[rows, vocab]` of branch logits `[branch][rows]`, guided and processed on the host.
    fn process(&self, logits: &[f32]) -> Vec<f32> {
        let (vocab, sampling) = (self.model.config.image_vocab_size, &self.image.sampling);
        let (conditional, unconditional) = logits.split_at(logits.len() / self.branches());
        let mut out = vec![0.0; conditional.len()];
        let rows = conditional.chunks_exact(vocab).zip(out.chunks_exact_mut(vocab));
        for (row, (conditional, out)) in rows.enumerate() {
            sampling.process(conditional, unconditional.chunks_exact(vocab).nth(row), out);
        }
        out
    }

    /// Feeds the prompt; the processed log-weights of position 0, `[vocab]`, on the host.
    pub fn prompt_log_weights(&mut self) -> Result<Vec<f32>, Error> {
        self.feed_prompt(false)?;
        let logits = self.model.backend.read(&self.state.logits)?;
        Ok(self.process(&logits))
    }

    /// Teacher forcing: feeds `block` (ascending positions) of an image's `tokens` in one pass, with so many columns
    /// of each grid row visible below it; the processed log-weights of the block's successors, `[block, vocab]`, on
    /// the host.
    pub fn log_weights(&mut self, tokens: &[u32], block: &[usize], frontier: &[u32]) -> Result<Vec<f32>, Error> {
        let mut padded = tokens.to_vec();
        padded.resize(self.state.places, 0);
        self.model.backend.set_tokens(&mut self.state.canvas, 0, &padded)?;
        let round = Round { block: block.to_vec(), frontier: frontier.to_vec(), ..Round::default() };
        let mut plan = self.plan(&round);
        plan.predictions = (0..plan.layout.rows.len() as u32).collect();
        self.execute(plan)?;
        let logits = self.model.backend.read(&self.state.logits)?;
        Ok(self.process(&logits))
    }

    /// The processed log-weights of the heads at `offset` of positions that were predicted, given the canvas,
    /// `[from, vocab]`, on the host.
    pub fn draft_log_weights(&mut self, offset: Offset, from: &[usize]) -> Result<Vec<f32>, Error> {
        let draft = |&from: &usize| Draft { position: 0, sources: [Some(Source { from, offset }), None] };
        let drafts: Vec<Draft> = from.iter().map(draft).collect();
        let mut plan = Step { images: vec![self.image], ..Step::default() };
        self.plan_drafts(&drafts, &mut plan);
        plan.drafts.clear();
        self.execute(plan)?;
        let logits = self.model.backend.read(&self.state.draft_logits)?;
        Ok(self.process(&logits))
    }

    /// The processed log-weights that the drafter gives the successors of all that a pass of it is fed, `[rows, vocab]`, on
    /// the host.
    pub fn guessed_log_weights(&mut self, growth: &Growth) -> Result<Vec<f32>, Error> {
        self.grow(growth)?;
        let drafting = self.drafting.as_ref().expect("a session with a drafter");
        let logits = drafting.logits(self.model)?;
        Ok(self.process(&logits))
    }
}

impl<B: Backend> State<B> {
    fn new(
        model: &Avatar<B>,
        acceptance: Acceptance,
        codebook: Option<Arc<B::Codebook>>,
        capacity: Capacity,
        Kept { branches, pages, slots }: Kept,
        bias: &[f32],
    ) -> Result<Self, Error> {
        let (config, grid, backend) = (&model.config, model.grid(), &model.backend);
        let (hidden, vocab) = (config.hidden_size, config.image_vocab_size);
        let proposals = matches!(acceptance, Acceptance::Judged(_));
        let (places, stride) = (grid.len() + slots.places, grid.len() + slots.states);
        let mut state = Self {
            kv: model.transformer.kv_pool(backend, pages)?,
            canvas: backend.canvas(1, places, vocab, proposals)?,
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
    fn run(&mut self, model: &Avatar<B>, backend: &B, step: &B::Step, parts: Parts) {
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
    fn pass(&mut self, model: &Avatar<B>, step: &B::Step) {
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

impl<B: Backend> Target for Session<'_, B> {
    fn scene(&self) -> Scene {
        Scene {
            grid: self.model.grid(),
            heads: self.model.config.heads(),
            scale: 1,
            vocab: self.model.config.image_vocab_size,
            stream: self.image.stream,
        }
    }

    fn begin(&mut self) -> Result<Drawn, Error> {
        self.feed_prompt(true)?;
        Ok(self.model.backend.drawn(&self.step, &self.state.canvas)?[0])
    }

    fn grow(&mut self, growth: &Growth) -> Result<Vec<Chosen>, Error> {
        let _span = info_span!("grow").entered();
        let Self { model, image, state, drafting, .. } = self;
        let drafting = drafting.as_mut().expect("trees are asked of a session with a drafter");
        drafting.grow(growth, shared(model, *image, state))
    }

    fn round(&mut self, round: &Round) -> Result<Vec<Drawn>, Error> {
        assert!(round.sketch.is_none(), "this target has no low-resolution drafter");
        let _span = info_span!("step").entered();
        let plan = self.plan(round);
        self.execute(plan)?;
        self.model.backend.drawn(&self.step, &self.state.canvas)
    }

    fn foreseen(&mut self) -> Result<Vec<Chosen>, Error> {
        self.model.backend.chosen(&self.step, &self.state.canvas)
    }

    fn tokens(&mut self) -> Result<Vec<u32>, Error> {
        let mut tokens = self.model.backend.tokens(&self.state.canvas, 0)?;
        tokens.truncate(self.model.grid().len());
        Ok(tokens)
    }

    fn draft_cost(&self) -> DraftCost {
        self.drafting.as_ref().map(|drafting| drafting.cost).unwrap_or_default()
    }
}

/// What a drafter shares.
fn shared<'a, B: Backend>(model: &'a Avatar<B>, image: Image, state: &'a mut State<B>) -> Shared<'a, B> {
    let State { stride, states, canvas, .. } = state;
    Shared { model, image, stride: *stride, states, canvas }
}

/// A draw of the only image; a distribution is given by its row in the first branch and the rows of a branch.
fn draw(position: usize, (rule, round): (Rule, u32), branches: usize, rows: [Option<(usize, usize)>; 2]) -> Draw {
    let of = |branch: usize| {
        rows.map(|row| {
            row.filter(|_| branch < branches).map_or(NONE, |(first, stride)| (first + branch * stride) as u32)
        })
    };
    Draw { image: 0, position: position as u32, rule, follows: false, round, conditional: of(0), unconditional: of(1) }
}

/// Index of a head among the stacked ones.
fn head_index(offset: Offset, horizontal: usize) -> usize {
    match offset {
        Offset::Right(columns) => columns - 1,
        Offset::Down(rows) => horizontal + rows - 1,
    }
}
