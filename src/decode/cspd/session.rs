//! One picture of a continuous model as a [`Pair`]: prompts, caches, the noise of every position.

use super::{Knobs, Pair, Side, View};
use crate::backend::{Backend, Error};
use crate::models::avatar::{Avatar, Prompt};
use crate::models::continuous::{CHANNELS, Continuous};
use crate::nn::diffusion::{Law, Schedule};
use crate::nn::diffusion_head::{Items, Steps};
use crate::nn::mar::{self, Activations, Mar};
use crate::rng::{Purpose, Stream};
use crate::sampling::Sampling;

/// The noise of a position: `level` 0 is of the last step of its diffusion, that of all steps is where it begins.
pub type Noise<'a> = dyn Fn(usize, usize, &mut [f32]) + Sync + 'a;

/// A target and its draft, and the picture that they are at.
pub struct Session<'m, B: Backend> {
    backend: &'m B,
    target: Model<'m, B>,
    draft: Model<'m, B>,
    temperature: f32,
    noise: Box<Noise<'m>>,
}

/// One of the two.
struct Model<'m, B: Backend> {
    mar: &'m Mar<B>,
    /// Of each branch: conditional, unconditional under guidance.
    prompts: Vec<mar::Prompt>,
    steps: Steps,
    activations: Activations<B>,
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
        let noise =
            move |position, level: usize, out: &mut [f32]| stream.normal(Purpose::Denoise, level as u32, position, out);
        Self::between(family, models, [&models.target, &models.draft], prompt, sampling, knobs, Box::new(noise))
    }

    /// The same between any two of the models, with this noise.
    pub fn between(
        family: &'m Avatar<B>,
        models: &'m Continuous<B>,
        [target, draft]: [&'m Mar<B>; 2],
        prompt: &Prompt,
        sampling: Sampling,
        knobs: Knobs,
        noise: Box<Noise<'m>>,
    ) -> Result<Self, Error> {
        let backend = &family.backend;
        let mut prompts = vec![prompt.clone(), family.unconditional()];
        prompts.truncate(sampling.branches());
        let words = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(1);
        let model = |mar: &'m Mar<B>, views: usize| {
            Ok::<_, Error>(Model {
                mar,
                prompts: prompts.iter().map(|prompt| models.prompt(family, mar, prompt)).collect::<Result<_, _>>()?,
                steps: mar.head.steps(backend, Schedule::new(knobs.steps))?,
                activations: mar.activations(backend, views * prompts.len(), words)?,
            })
        };
        let views = match knobs.schedule {
            super::Schedule::Truncate => knobs.drafts.min(knobs.rounds) + 1,
            super::Schedule::Fixed => 1,
        };
        Ok(Self {
            backend,
            target: model(target, views)?,
            draft: model(draft, 1)?,
            temperature: sampling.temperature,
            noise,
        })
    }
}

impl<B: Backend> Model<'_, B> {
    /// States of all goals, `[branch][goal][hidden]`.
    fn states(&mut self, backend: &B, views: &[View<'_>]) -> Result<Vec<f32>, Error> {
        let goals: Vec<Vec<usize>> =
            views.iter().map(|view| view.goals.iter().map(|goal| goal.position).collect()).collect();
        let of_branch = |prompt| {
            let views = views.iter().zip(&goals);
            views.map(move |(view, goals)| mar::View { prompt, latents: view.latents, known: view.known, goals })
        };
        let all: Vec<mar::View<'_>> = self.prompts.iter().flat_map(of_branch).collect();
        self.mar.forward(backend, &all, &mut self.activations)
    }
}

impl<B: Backend> Pair for Session<'_, B> {
    fn channels(&self) -> usize {
        CHANNELS
    }

    fn laws(&mut self, side: Side, views: &[View<'_>]) -> Result<(Vec<Vec<Law>>, usize), Error> {
        let model = if side == Side::Target { &mut self.target } else { &mut self.draft };
        let states = {
            let _span = tracing::info_span!("pass").entered();
            model.states(self.backend, views)?
        };
        let _span = tracing::info_span!("denoise").entered();
        let goals: Vec<_> = views.iter().flat_map(|view| &view.goals).collect();
        let guidance: Vec<f32> = goals.iter().map(|goal| goal.guidance).collect();
        let items = Items { states: &states, guidance: &guidance, temperature: self.temperature };
        let noise = |item: usize, level: usize, out: &mut [f32]| (self.noise)(goals[item].position, level, out);
        let mut laws = model.mar.head.denoise(self.backend, &model.steps, &items, &noise)?.into_iter();
        // A known position goes through the encoder, every position through the decoder.
        let rows = views.iter().map(|view| view.known.len() + view.latents.len() / CHANNELS).sum();
        Ok((views.iter().map(|view| laws.by_ref().take(view.goals.len()).collect()).collect(), rows))
    }
}
