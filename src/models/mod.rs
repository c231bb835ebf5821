//! Model families: from a checkpoint to networks, prompts and embeddings.

pub mod avatar;
pub mod continuous;
pub mod embedded;
pub mod low;
