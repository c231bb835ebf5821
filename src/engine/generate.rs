//! One request: prompt and settings to tokens and pixels.

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
use crate::models::continuous::{self, Continuous};
use crate::models::low::Low;
use crate::nn::Formats;
use crate::nn::eagle::Eagle;
use crate::rng::Stream;
use crate::sampling::{Sampling, log_prob};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A model that is ready to generate.
pub struct Generator<B: Backend> {
    /// The model.
    pub model: Avatar<B>,
    unconditional: Condition,
    /// Where the models are that some decoders need besides.
    extra: Files,
    codebooks: Mutex<Vec<Known<B>>>,
    low: Mutex<Option<Arc<Low<B>>>>,
    eagle: Mutex<Option<Arc<Eagle<B>>>>,
    continuous: Mutex<Option<Arc<Continuous<B>>>>,
    formats: Formats,
}

/// A codebook that an acceptance rule has looked at.
struct Known<B: Backend> {
    /// Nearest others of each token.
    neighbours: u32,
    /// Of the tokenizer's codes, rather than of the transformer's embeddings.
    of_codes: bool,
    codebook: Arc<B::Codebook>,
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
        Ok(Self {
            model,
            unconditional,
            extra: files.extra(),
            codebooks: Mutex::new(Vec::new()),
            low: Mutex::new(None),
            eagle: Mutex::new(None),
            continuous: Mutex::new(None),
            formats,
        })
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
        let outcome = cspd::run(&mut session, &plan, knobs, stream, progress)?;
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

    /// What a decoder's session needs besides the model.
    pub fn aids(&self, method: &Method) -> Result<Aids<B>, Error> {
        let eagle = method.needs_eagle().then(|| self.eagle(method.name())).transpose()?;
        Ok(Aids { codebook: self.codebook(method.acceptance())?, eagle, foresight: method.foresees() })
    }

    /// Loads what a decoder needs besides the model, which is an error where that is missing.
    pub fn prepare(&self, method: Method) -> Result<(), Error> {
        if method.needs_eagle() {
            self.eagle(method.name())?;
        }
        if method.coarse().is_some() {
            self.low(method.name())?;
        }
        if method.continuous().is_some() {
            self.continuous(method.name())?;
        }
        Ok(())
    }

    /// The EAGLE drafter, which `decoder` needs; it is loaded once.
    pub fn eagle(&self, decoder: &str) -> Result<Arc<Eagle<B>>, Error> {
        let mut eagle = self.eagle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(eagle) = &*eagle {
            return Ok(eagle.clone());
        }
        let files = self.extra(decoder, "", "eagle.safetensors")?;
        Ok(eagle.insert(Arc::new(self.model.load_eagle(&files)?)).clone())
    }

    /// The folder of the extra models in which a decoder needs the file `name`.
    pub fn extra(&self, decoder: &str, folder: &str, name: &str) -> Result<Files, Error> {
        let files = self.extra.folder(folder);
        if files.contains(name) {
            return Ok(files);
        }
        let place = files.describe();
        Err(Error::Request(format!(
            "{decoder} needs {name}, which is not in {place}; WEFT_EXTRA names the folder of the extra models"
        )))
    }

    /// The low-resolution model, loaded when it is first needed.
    fn low(&self, decoder: &str) -> Result<Arc<Low<B>>, Error> {
        let mut low = self.low.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(low) = &*low {
            return Ok(low.clone());
        }
        let files = self.extra(decoder, "low", "model.safetensors")?;
        let beside = self.extra(decoder, ".", "upsampler.safetensors")?;
        let loaded = Arc::new(Low::load(&self.model, &files, &beside, self.formats)?);
        Ok(low.insert(loaded).clone())
    }

    /// The continuous model and its draft, which `decoder` needs; they are loaded once.
    pub fn continuous(&self, decoder: &str) -> Result<Arc<Continuous<B>>, Error> {
        let mut continuous = self.continuous.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(continuous) = &*continuous {
            return Ok(continuous.clone());
        }
        let files = self.extra(decoder, "continuous", "mar_target.safetensors")?;
        Ok(continuous.insert(Arc::new(Continuous::load(&self.model, &files)?)).clone())
    }

    /// What an acceptance rule looks at: groups at the transformer's embeddings, pools at the tokenizer's codes.
    fn codebook(&self, acceptance: Acceptance) -> Result<Option<Arc<B::Codebook>>, Error> {
        let (neighbours, of_codes) = match acceptance {
            Acceptance::Judged(Test::Grouped { distance, .. }) if distance < f32::INFINITY => (0, false),
            Acceptance::Judged(Test::Pooled { neighbours, .. } | Test::Threshold { neighbours, .. }) => {
                (neighbours, true)
            }
            _ => return Ok(None),
        };
        let vocab = self.model.config.image_vocab_size;
        if neighbours as usize >= vocab {
            return Err(Error::Request(format!("{neighbours} neighbours of a token, there are {}", vocab - 1)));
        }
        let mut codebooks = self.codebooks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |known: &&Known<B>| (known.neighbours, known.of_codes) == (neighbours, of_codes);
        if let Some(known) = codebooks.iter().find(is_it) {
            return Ok(Some(known.codebook.clone()));
        }
        let backend = &self.model.backend;
        let codebook = if of_codes {
            let (vectors, dim) = self.model.vq.codebook();
            backend.codebook(vectors, dim, neighbours as usize)?
        } else {
            backend.codebook(&backend.read(self.model.token_table())?, self.model.config.hidden_size, 0)?
        };
        let codebook = Arc::new(codebook);
        codebooks.push(Known { neighbours, of_codes, codebook: codebook.clone() });
        Ok(Some(codebook))
    }
}
