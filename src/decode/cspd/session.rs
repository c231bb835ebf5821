//! One picture of a continuous model as a [`Pair`]. Its numbers, their laws and what is decided by them stay where the backend
//! has them: a pass gets what it is asked and returns a verdict for each goal.

use super::{Knobs, Pair, Side, View};
use crate::backend::gaussian::{Law, Settlement, Trajectories};
use crate::backend::{Backend, Error, Fate, Goal, Image, NONE, Test};
use crate::models::avatar::{Avatar, Prompt};
use crate::models::continuous::{CHANNELS, Continuous, GRID};
use crate::nn::diffusion::Schedule;
use crate::nn::diffusion_head::{Scratch, Steps};
use crate::nn::mar::{self, Activations, Latents, Mar, Wanted};
use crate::rng::Stream;
use crate::sampling::Sampling;

/// A target and its draft, and the picture that they are at.
pub struct Session<'m, B: Backend> {
    backend: &'m B,
    target: Model<'m, B>,
    draft: Model<'m, B>,
    image: Image,
    latents: Latents<B>,
    state: State<B>,
    settlement: Settlement,
}

/// One of the two.
struct Model<'m, B: Backend> {
    mar: &'m Mar<B>,
    /// Conditional, unconditional under guidance.
    branches: usize,
    steps: Steps<B>,
    activations: Activations<B>,
    scratch: Scratch<B>,
}

/// What both share.
struct State<B: Backend> {
    /// Of the target and of the draft, `[positions, 2 * channels + 2]`.
    laws: [B::Tensor; 2],
    verdicts: B::Tensor,
    normals: Option<B::Tensor>,
}

impl<'m, B: Backend> Session<'m, B> {
    /// A picture of `prompt`. Only guidance and temperature of the sampling apply.
    pub fn new(
        family: &'m Avatar<B>,
        models: &'m Continuous<B>,
        prompt: &Prompt,
        sampling: Sampling,
        knobs: Knobs,
        stream: Stream,
    ) -> Result<Self, Error> {
        let image = Image { stream, sampling, test: Test::Token };
        Self::between(family, models, [&models.target, &models.draft], prompt, image, knobs, None)
    }

    /// The same between any two of the models. Normals that are given, `[steps + 1, positions, channels]`, are those of the
    /// trajectories, by level; see [`Backend::begin_denoising`].
    pub fn between(
        family: &'m Avatar<B>,
        models: &'m Continuous<B>,
        [target, draft]: [&'m Mar<B>; 2],
        prompt: &Prompt,
        image: Image,
        knobs: Knobs,
        normals: Option<&[f32]>,
    ) -> Result<Self, Error> {
        let (backend, sampling) = (&family.backend, image.sampling);
        let mut prompts = vec![prompt.clone(), family.unconditional()];
        prompts.truncate(sampling.branches());
        let model = |mar: &'m Mar<B>, views: usize| {
            let of = |prompt: &Prompt| models.prompt(family, mar, prompt);
            let encoded = prompts.iter().map(of).collect::<Result<Vec<mar::Prompt>, _>>()?;
            let activations = mar.activations(backend, &encoded, views * prompts.len())?;
            Ok::<_, Error>(Model {
                mar,
                branches: prompts.len(),
                steps: mar.head.steps(backend, Schedule::new(knobs.steps))?,
                scratch: mar.head.scratch(backend, activations.rows())?,
                activations,
            })
        };
        let views = match knobs.schedule {
            super::Schedule::Truncate => knobs.drafts.min(knobs.rounds) + 1,
            super::Schedule::Fixed => 1,
        };
        let (target, draft) = (model(target, views)?, model(draft, 1)?);
        let filled = |values: &[f32], cols: usize| {
            let mut tensor = backend.tensor(values.len() / cols, cols)?;
            backend.upload(values, &mut tensor);
            Ok::<_, Error>(tensor)
        };
        let zeros = |cols: usize| filled(&vec![0.0; GRID.len() * cols], cols);
        let latents = zeros(CHANNELS)?;
        let state = State {
            laws: [zeros(Law::cols(CHANNELS))?, zeros(Law::cols(CHANNELS))?],
            verdicts: backend.tensor(target.activations.rows().max(draft.activations.rows()), 1)?,
            normals: normals.map(|normals| filled(normals, CHANNELS)).transpose()?,
        };
        let settlement = Settlement { criterion: knobs.criterion, noise: knobs.noise };
        let mut session = Self { backend, target, draft, image, latents, state, settlement };
        session.reserve()?;
        Ok(session)
    }

    /// Makes room for all that passes need between their kernels.
    fn reserve(&mut self) -> Result<(), Error> {
        let Self { backend, target, draft, latents, state, settlement, .. } = self;
        for (side, model) in [(Side::Target, target), (Side::Draft, draft)] {
            let Model { mar, activations, steps, scratch, .. } = model;
            let mut after = state.after(side, mar, (steps, scratch), *settlement);
            mar.reserve(backend, latents, activations, &mut after)?;
        }
        Ok(())
    }

    /// The laws of all positions, of the last pass of this model over each.
    pub fn laws(&self, side: Side) -> Result<Vec<Law>, Error> {
        let laws = self.backend.read(&self.state.laws[side as usize])?;
        Ok(laws.chunks_exact(Law::cols(CHANNELS)).map(Law::from_row).collect())
    }

    /// Replaces the numbers of all positions.
    pub fn set_latents(&mut self, latents: &[f32]) {
        assert_eq!(latents.len(), GRID.len() * CHANNELS, "latents of all positions");
        self.backend.upload(latents, &mut self.latents);
    }
}

impl<B: Backend> State<B> {
    /// What a pass does once it has the states of its goals: their laws, and what becomes of them.
    fn after<'a>(
        &'a mut self,
        side: Side,
        mar: &'a Mar<B>,
        (steps, scratch): (&'a Steps<B>, &'a mut Scratch<B>),
        settlement: Settlement,
    ) -> impl FnMut(&B, &B::Step, &B::Tensor, &mut Latents<B>) + 'a {
        let Self { laws, verdicts, normals } = self;
        move |backend: &B, step: &B::Step, states: &B::Tensor, latents: &mut Latents<B>| {
            let (positions, own) = (GRID.len(), side as usize);
            let mut trajectories = Trajectories { positions, normals: normals.as_ref(), laws: &mut laws[own] };
            mar.head.denoise(backend, step, steps, states, &mut trajectories, scratch);
            backend.settle(step, settlement, positions, [&laws[own], &laws[Side::Draft as usize]], latents, verdicts);
        }
    }
}

impl<B: Backend> Pair for Session<'_, B> {
    fn pass(&mut self, side: Side, views: &[View<'_>]) -> Result<usize, Error> {
        let _span = tracing::info_span!("pass").entered();
        let Self { backend, target, draft, image, latents, state, settlement } = self;
        let Model { mar, branches, steps, activations, scratch } = if side == Side::Target { target } else { draft };
        let positions: Vec<Vec<usize>> =
            views.iter().map(|view| view.goals.iter().map(|goal| goal.position).collect()).collect();
        let of_branch = |branch| {
            let views = views.iter().zip(&positions);
            views.map(move |(view, goals)| mar::View { branch, known: view.known, goals })
        };
        let all: Vec<mar::View<'_>> = (0..*branches).flat_map(of_branch).collect();
        let count: usize = positions.iter().map(Vec::len).sum();
        let goals = views.iter().flat_map(|view| view.goals.iter().map(|goal| (goal, view.fate)));
        let goal = |(index, (goal, fate)): (usize, (&super::Goal, Fate))| Goal {
            image: 0,
            position: goal.position as u32,
            guidance: goal.guidance,
            conditional: index as u32,
            unconditional: if *branches > 1 { (count + index) as u32 } else { NONE },
            fate,
        };
        let wanted = Wanted { images: vec![*image], goals: goals.enumerate().map(goal).collect() };
        let mut after = state.after(side, mar, (steps, scratch), *settlement);
        mar.run(backend, &all, wanted, latents, activations, &mut after)?;
        // A known position goes through the encoder, every position through the decoder.
        Ok(views.iter().map(|view| view.known.len() + GRID.len()).sum())
    }

    fn verdicts(&mut self) -> Result<Vec<bool>, Error> {
        Ok(self.backend.read(&self.state.verdicts)?.iter().map(|&verdict| verdict > 0.0).collect())
    }

    fn latents(&mut self) -> Result<Vec<f32>, Error> {
        Ok(self.backend.read(&self.latents)?.into_owned())
    }
}
