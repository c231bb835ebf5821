//! What some decoders need besides the model: drafters, a continuous pair, codebooks. Each is loaded when it is first asked
//! for, and once.

use super::{Error, Generator};
use crate::backend::{Backend, Test};
use crate::checkpoint::Files;
use crate::decode::Acceptance;
use crate::decode::methods::Method;
use crate::decode::session::Aids;
use crate::models::continuous::Continuous;
use crate::models::low::Low;
use crate::nn::Formats;
use crate::nn::eagle::Eagle;
use std::sync::{Arc, Mutex, PoisonError};

/// What has been loaded.
pub(super) struct Extras<B: Backend> {
    files: Files,
    formats: Formats,
    codebooks: Mutex<Vec<Known<B>>>,
    low: Mutex<Option<Arc<Low<B>>>>,
    eagle: Mutex<Option<Arc<Eagle<B>>>>,
    continuous: Mutex<Option<Arc<Continuous<B>>>>,
}

/// A codebook that an acceptance rule has looked at.
struct Known<B: Backend> {
    /// Nearest others of each token.
    neighbours: u32,
    /// Of the tokenizer's codes, rather than of the transformer's embeddings.
    of_codes: bool,
    codebook: Arc<B::Codebook>,
}

impl<B: Backend> Extras<B> {
    /// Nothing yet, of these files.
    pub(super) fn new(files: Files, formats: Formats) -> Self {
        Self {
            files,
            formats,
            codebooks: Mutex::new(Vec::new()),
            low: Mutex::new(None),
            eagle: Mutex::new(None),
            continuous: Mutex::new(None),
        }
    }
}

impl<B: Backend> Generator<B> {
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
        let mut eagle = self.extras.eagle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(eagle) = &*eagle {
            return Ok(eagle.clone());
        }
        let files = self.extra(decoder, "", "eagle.safetensors")?;
        Ok(eagle.insert(Arc::new(self.model.load_eagle(&files)?)).clone())
    }

    /// The folder of the extra models in which a decoder needs the file `name`.
    pub fn extra(&self, decoder: &str, folder: &str, name: &str) -> Result<Files, Error> {
        let files = self.extras.files.folder(folder);
        if files.contains(name) {
            return Ok(files);
        }
        let place = files.describe();
        Err(Error::Request(format!(
            "{decoder} needs {name}, which is not in {place}; WEFT_EXTRA names the folder of the extra models"
        )))
    }

    /// The low-resolution model, loaded when it is first needed.
    pub(super) fn low(&self, decoder: &str) -> Result<Arc<Low<B>>, Error> {
        let mut low = self.extras.low.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(low) = &*low {
            return Ok(low.clone());
        }
        let files = self.extra(decoder, "low", "model.safetensors")?;
        let beside = self.extra(decoder, ".", "upsampler.safetensors")?;
        let loaded = Arc::new(Low::load(&self.model, &files, &beside, self.extras.formats)?);
        Ok(low.insert(loaded).clone())
    }

    /// The continuous model and its draft, which `decoder` needs; they are loaded once.
    pub fn continuous(&self, decoder: &str) -> Result<Arc<Continuous<B>>, Error> {
        let mut continuous = self.extras.continuous.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(continuous) = &*continuous {
            return Ok(continuous.clone());
        }
        let files = self.extra(decoder, "continuous", "mar_target.safetensors")?;
        Ok(continuous.insert(Arc::new(Continuous::load(&self.model, &files)?)).clone())
    }

    /// What an acceptance rule looks at: groups at the transformer's embeddings, pools at the tokenizer's codes.
    pub(super) fn codebook(&self, acceptance: Acceptance) -> Result<Option<Arc<B::Codebook>>, Error> {
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
        let mut codebooks = self.extras.codebooks.lock().unwrap_or_else(PoisonError::into_inner);
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
