//! Checkpoints: safetensors files and JSON configs, from a directory or from inside the binary.
//!
//! Reading is strict: a tensor that is missing, unknown, of another shape or dtype, or that lies outside its file
//! is an error that names it. Nothing is allocated on the word of a header before the header is checked.

mod config;
mod tensors;

pub use config::{ClassifierConfig, Config, GenerationConfig, GridConfig, HeadsConfig, TextConfig, VqConfig};
pub use tensors::{Element, Tensors};

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's bytes are not what its format says.
    #[error("{file} is not valid: {reason}")]
    Format {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error("{file}: tensor {name} is missing")]
    Missing {
        /// The file's name.
        file: String,
        /// The tensor's name.
        name: String,
    },
    /// Tensors that the architecture does not have.
    #[error("{file}: unknown tensors: {}", names.join(", "))]
    Unknown {
        /// The file's name.
        file: String,
        /// The tensors' names.
        names: Vec<String>,
    },
    /// A tensor of the wrong shape.
    #[error("{file}: tensor {name} has shape {found:?}, the config asks for {expected:?}")]
    Shape {
        /// The file's name.
        file: String,
        /// The tensor's name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that follows from the config.
        expected: Vec<usize>,
    },
    /// The backend has no room for it.
    #[error(transparent)]
    Backend(#[from] crate::backend::Error),
    /// A tensor of the wrong dtype.
    #[error("{file}: tensor {name} is {found}, only {expected} is supported here")]
    Dtype {
        /// The file's name.
        file: String,
        /// The tensor's name.
        name: String,
        /// Dtype in the file.
        found: String,
        /// Dtype wanted.
        expected: &'static str,
    },
}

/// The files of one model.
#[derive(Clone, Debug)]
pub enum Files {
    /// A directory.
    Directory(PathBuf),
    /// Files inside the binary: (name, bytes).
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// Name for people: the directory, or "embedded".
    pub fn describe(&self) -> String {
        match self {
            Files::Directory(path) => path.display().to_string(),
            Files::Embedded(_) => "embedded".into(),
        }
    }

    /// Where the models are that some decoders need besides this one: the folder that `WEFT_EXTRA` names, else `extra` in
    /// this model's own. Of the embedded model that is `extra` beside the executable, else the one of the source tree.
    pub fn extra(&self) -> Files {
        let beside = || Some(std::env::current_exe().ok()?.parent()?.join("extra")).filter(|path| path.is_dir());
        let source = || concat!(env!("CARGO_MANIFEST_DIR"), "/models/avatar/extra").into();
        let own = || match self {
            Files::Directory(path) => path.join("extra"),
            Files::Embedded(_) => beside().unwrap_or_else(source),
        };
        Files::Directory(std::env::var_os("WEFT_EXTRA").map_or_else(own, PathBuf::from))
    }

    /// The files of a model in a folder of this one.
    pub fn folder(&self, name: &str) -> Files {
        match self {
            Files::Directory(path) => Files::Directory(path.join(name)),
            Files::Embedded(_) => Files::Embedded(&[]),
        }
    }

    /// Is there a file of this name?
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Files::Directory(path) => path.join(name).is_file(),
            Files::Embedded(files) => files.iter().any(|(known, _)| *known == name),
        }
    }

    /// Bytes of a small file. Files over 64 MiB are refused: configs and tokenizers are far smaller.
    pub fn read(&self, name: &str) -> Result<Cow<'static, [u8]>, Error> {
        const LIMIT: u64 = 64 << 20;
        match self {
            Files::Embedded(files) => embedded(files, name).map(Cow::Borrowed),
            Files::Directory(path) => {
                let path = path.join(name);
                let io = |source| Error::Io { path: path.clone(), source };
                let size = std::fs::metadata(&path).map_err(io)?.len();
                if size > LIMIT {
                    return Err(format_error(name, format!("{size} bytes are more than a {LIMIT}-byte limit")));
                }
                Ok(Cow::Owned(std::fs::read(&path).map_err(io)?))
            }
        }
    }

    /// The parsed and validated `config.json`.
    pub fn config(&self) -> Result<Config, Error> {
        let name = "config.json";
        let config: Config =
            serde_json::from_slice(&self.read(name)?).map_err(|error| format_error(name, error.to_string()))?;
        config.validate().map_err(|reason| format_error(name, reason))?;
        Ok(config)
    }

    /// The tensors of `{stem}.safetensors`, or of the shards that `{stem}.safetensors.index.json` names.
    pub fn tensors(&self, stem: &str) -> Result<Tensors, Error> {
        let index = format!("{stem}.safetensors.index.json");
        let name = format!("{stem}.safetensors");
        if !self.contains(&index) {
            return Tensors::open(&name, vec![(name.clone(), self.open(&name)?)]);
        }
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        let parsed: Index =
            serde_json::from_slice(&self.read(&index)?).map_err(|error| format_error(&index, error.to_string()))?;
        let shards: std::collections::BTreeSet<String> = parsed.weight_map.into_values().collect();
        if let Some(shard) = shards.iter().find(|shard| Path::new(shard).components().count() != 1) {
            return Err(format_error(&index, format!("shard {shard:?} is not a plain file name")));
        }
        let opened =
            shards.into_iter().map(|shard| Ok((shard.clone(), self.open(&shard)?))).collect::<Result<_, Error>>()?;
        Tensors::open(&name, opened)
    }

    fn open(&self, name: &str) -> Result<tensors::Bytes, Error> {
        match self {
            Files::Embedded(files) => embedded(files, name).map(tensors::Bytes::Static),
            Files::Directory(path) => tensors::Bytes::map(&path.join(name)),
        }
    }
}

fn embedded(files: &'static [(&'static str, &'static [u8])], name: &str) -> Result<&'static [u8], Error> {
    files.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes).ok_or_else(|| Error::Io {
        path: name.into(),
        source: std::io::Error::new(std::io::ErrorKind::NotFound, "not in the embedded model"),
    })
}

fn format_error(file: &str, reason: impl Into<String>) -> Error {
    Error::Format { file: file.into(), reason: reason.into() }
}
