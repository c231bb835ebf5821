//! Requests in, pictures out.

mod extras;
pub mod generate;
pub mod picture;

pub use generate::{Generator, Output, Request};
pub use picture::Picture;

/// What can go wrong between a request and its picture.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// The machine: its memory, its device.
    #[error(transparent)]
    Backend(#[from] crate::backend::Error),
    /// The request asks for something impossible.
    #[error("{0}")]
    Request(String),
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
