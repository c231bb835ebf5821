//! One request: prompt and settings to tokens and pixels.

use super::extras::Extras;
use super::{Error, Picture};
use crate::backend::{Backend, Image, Test};
use crate::checkpoint::Files;
use crate::decode;
use crate::decode::coarse::Coarse;
use crate::decode::cspd;
use crate::decode::methods::Method;
use crate::decode::session::{Aids, Session};
use crate::decode::{Acceptance, Outcome, Progress, Schedule, Target};
use crate::models::avatar::{Avatar, Condition, Prompt};
use crate::models::continuous;
use crate::nn::Formats;
use crate::rng::Stream;
use crate::sampling::{Sampling, log_prob};
use std::time::{Duration, Instant};

/// A model that is ready to generate.
pub struct Generator<B: Backend> {
    /// The model.
    pub model: Avatar<B>,
    unconditional: Condition,
    pub(super) extras: Extras<B>,
}

/// How a picture is to be made.
#[derive(Clone, Debug)]
pub struct Request {
    /// Words.
    pub prompt: String,
    /// Seed of all randomness.
    pub seed: u64,
    /// Guidance, temperature, truncation.
    pub sampling: Sampling,
    /// The decoder.
    pub method: Method,
}

/// A picture and how it came about.
#[derive(Clone, Debug)]
pub struct Output {
    /// Tokens, or latents, and counters.
    pub outcome: Outcome,
    /// Pixels.
    pub picture: Picture,
    /// Passes that were run, over the pictures that were made together.
    pub passes: f64,
    /// From the prompt to the last token, over the pictures that were made together.
    pub decode_time: Duration,
    /// From tokens to pixels.
    pub pixel_time: Duration,
}

impl Request {
    /// The image that it asks for.
    fn image(&self) -> Image {
        Image { stream: Stream { seed: self.seed, image: 0 }, sampling: self.sampling, test: Test::Token }
    }
}

/// The conditions of images of prompts; a prompt that several have is encoded once.
fn conditioned<B: Backend>(model: &Avatar<B>, images: &[(&str, Image)]) -> Result<Vec<(Condition, Image)>, Error> {
    let mut known: Vec<(&str, Condition)> = Vec::new();
    let mut of_prompt = |prompt| match known.iter().find(|(other, _)| *other == prompt) {
        Some((_, condition)) => Ok::<_, Error>(condition.clone()),
        None => {
            let condition = model.condition(&model.prompt(prompt)?)?;
            known.push((prompt, condition.clone()));
            Ok(condition)
        }
    };
    let conditioned = |&(prompt, image): &(_, Image)| {
        image.sampling.validate().map_err(Error::Request)?;
        Ok((of_prompt(prompt)?, image))
    };
    images.iter().map(conditioned).collect()
}

impl<B: Backend> Generator<B> {
    /// Loads a model onto a backend, all weights, keys and values as bf16.
    pub fn load(backend: B, files: &Files) -> Result<Self, Error> {
        Self::load_in(Formats::default(), backend, files)
    }

    /// Loads a model onto a backend in these formats.
    pub fn load_in(formats: Formats, backend: B, files: &Files) -> Result<Self, Error> {
        let model = Avatar::load(backend, files, formats)?;
        let unconditional = model.condition(&model.unconditional())?;
        Ok(Self { model, unconditional, extras: Extras::new(files.extra(), formats) })
    }

    /// The model's own defaults.
    pub fn default_sampling(&self) -> Sampling {
        let defaults = self.model.config.generation;
        Sampling { cfg: defaults.cfg, temperature: defaults.temperature, top_k: defaults.top_k, top_p: defaults.top_p }
    }

    /// Tokenizes and checks a prompt.
    pub fn prompt(&self, text: &str) -> Result<Prompt, Error> {
        Ok(self.model.prompt(text)?)
    }

    /// Makes a picture. `progress` is told how many tokens, or positions of a continuous picture, are done.
    pub fn generate(&self, request: &Request, progress: &mut Progress<'_>) -> Result<Output, Error> {
        Ok(self.generate_all(std::slice::from_ref(request), progress)?.remove(0))
    }

    /// Makes pictures together, each the one that [`Generator::generate`] makes of its request, bit for bit: a pass reads the
    /// weights once for all of them, and a prompt that several name is fed once. They have one method. Continuous pictures are
    /// made one after another.
    pub fn generate_all(&self, requests: &[Request], progress: &mut Progress<'_>) -> Result<Vec<Output>, Error> {
        let _span = tracing::info_span!("generate").entered();
        let Some(Request { method, .. }) = requests.first() else { return Ok(Vec::new()) };
        if requests.iter().any(|request| request.method != *method) {
            return Err(Error::Request("pictures that are made together have one decoder".into()));
        }
        if let Some(knobs) = method.continuous() {
            let positions = self.positions(*method);
            let one = |(index, request)| {
                self.generate_continuous(request, knobs, &mut |done| progress(index * positions + done))
            };
            return requests.iter().enumerate().map(one).collect();
        }
        if method.needs_heads() && self.model.heads.is_none() {
            return Err(Error::Request(format!("{} drafts with spatial heads, this model has none", method.name())));
        }
        let aids = self.aids(method)?;
        let low = method.coarse().map(|knobs| Ok::<_, Error>((knobs, self.low(method.name())?))).transpose()?;
        let images: Vec<(&str, Image)> = requests.iter().map(|request| (&*request.prompt, request.image())).collect();
        let mut session = self.aided(&images, method.acceptance(), aids)?;
        let start = Instant::now();
        let mut run = |target: &mut dyn Target| {
            let mut schedules: Vec<_> = (0..requests.len()).map(|image| method.schedule(target.scene(image))).collect();
            let mut schedules: Vec<&mut dyn Schedule> =
                schedules.iter_mut().map(|schedule| &mut **schedule as &mut dyn Schedule).collect();
            decode::run(target, &mut schedules, progress)
        };
        let outcomes = match &low {
            None => run(&mut session)?,
            Some((knobs, low)) => {
                let (images, rule) = (conditioned(&low.model, &images)?, Acceptance::Coupled);
                let drafter = Session::new(&low.model, images, &low.unconditional, rule, Aids::default())?;
                run(&mut Coarse::new(&self.model, session, low, drafter, *knobs))?
            }
        };
        let decode_time = start.elapsed() / requests.len() as u32;
        // As many as the last picture to be done needed.
        let passes = outcomes.iter().map(|outcome| outcome.stats.nfe).max().unwrap_or(0) as f64 / requests.len() as f64;
        let output = |outcome: Outcome| {
            let start = Instant::now();
            let picture = self.picture(&outcome.tokens)?;
            Ok(Output { outcome, picture, passes, decode_time, pixel_time: start.elapsed() })
        };
        outcomes.into_iter().map(output).collect()
    }

    /// The same of the continuous model.
    fn generate_continuous(
        &self,
        request: &Request,
        knobs: cspd::Knobs,
        progress: &mut Progress<'_>,
    ) -> Result<Output, Error> {
        let Request { sampling, method, .. } = *request;
        sampling.validate().map_err(Error::Request)?;
        let refused = match (sampling.temperature > 0.0, sampling.top_k == 0 && sampling.top_p >= 1.0) {
            (false, _) => Some("compares densities: the temperature must be above 0"),
            (_, false) => Some("draws no tokens: top-k and top-p do not apply"),
            _ => None,
        };
        if let Some(reason) = refused {
            return Err(Error::Request(format!("{} {reason}", method.name())));
        }
        let models = self.continuous(method.name())?;
        let stream = request.image().stream;
        let prompt = self.prompt(&request.prompt)?;
        let start = Instant::now();
        let mut session = cspd::session::Session::new(&self.model, &models, &prompt, sampling, knobs, stream)?;
        let plan = cspd::plan::Plan::new(continuous::GRID.len(), knobs.rounds, sampling.cfg, stream);
        let outcome = cspd::run(&mut session, &plan, knobs, progress)?;
        let decode_time = start.elapsed();
        let start = Instant::now();
        let (rgb, width) = models.pixels(&self.model.backend, &outcome.latents)?;
        let picture = Picture { width, height: rgb.len() / (3 * width), rgb };
        let passes = outcome.stats.nfe as f64;
        Ok(Output { outcome, picture, passes, decode_time, pixel_time: start.elapsed() })
    }

    /// Tokens, or positions of a continuous picture, that a method draws for a picture.
    pub fn positions(&self, method: Method) -> usize {
        method.continuous().map_or(self.model.grid().len(), |_| continuous::GRID.len())
    }

    /// Bytes of weights that a pass of a method's target reads.
    pub fn pass_bytes(&self, method: Method) -> Result<usize, Error> {
        match method.continuous() {
            None => Ok(self.model.transformer.weight_bytes()),
            Some(_) => Ok(self.continuous(method.name())?.target.weight_bytes()),
        }
    }

    /// Pixels of a grid of tokens.
    pub fn picture(&self, tokens: &[u32]) -> Result<Picture, Error> {
        let _span = tracing::info_span!("pixels").entered();
        let (vq, grid) = (&self.model.vq, self.model.grid());
        let rgb = vq.decode(&self.model.backend, tokens, grid)?;
        Ok(Picture { width: grid.width * vq.downscale(), height: grid.height * vq.downscale(), rgb })
    }

    /// Negative log-likelihood of a grid of tokens under the processed distribution, in bits per token.
    pub fn bits_per_token(&self, prompt: &str, sampling: Sampling, tokens: &[u32]) -> Result<f64, Error> {
        let image = Image { stream: Stream { seed: 0, image: 0 }, sampling, test: Test::Token };
        let mut session = self.session(prompt, image, Acceptance::Coupled)?;
        let grid = self.model.grid();
        let mut nats = f64::from(log_prob(&session.prompt_log_weights()?, tokens[0]));
        let block: Vec<usize> = (0..grid.len() - 1).collect();
        let rows = session.log_weights(tokens, &block, &vec![grid.width as u32; grid.height])?;
        for (row, &token) in rows.chunks_exact(self.model.config.image_vocab_size).zip(&tokens[1..]) {
            nats += f64::from(log_prob(row, token));
        }
        Ok(-nats / std::f64::consts::LN_2 / grid.len() as f64)
    }

    /// A session for one image of a prompt.
    pub fn session(&self, prompt: &str, image: Image, acceptance: Acceptance) -> Result<Session<'_, B>, Error> {
        let aids = Aids { codebook: self.codebook(acceptance)?, ..Aids::default() };
        self.aided(&[(prompt, image)], acceptance, aids)
    }

    /// A session for images of prompts, with what a decoder needs besides the model.
    pub fn aided(
        &self,
        images: &[(&str, Image)],
        acceptance: Acceptance,
        aids: Aids<B>,
    ) -> Result<Session<'_, B>, Error> {
        let images = conditioned(&self.model, images)?;
        Ok(Session::new(&self.model, images, &self.unconditional, acceptance, aids)?)
    }
}
