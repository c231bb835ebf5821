//! PTX text to syntax tree.

pub mod ast;
mod expression;
mod lexer;
mod parser;

pub use parser::{parse, parse_body};

/// Why a PTX text was refused: the line of the PTX, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct Error {
    /// Line of the PTX text.
    pub line: ast::Line,
    /// What is wrong, naming the instruction.
    pub message: String,
}

/// The result of reading PTX.
pub type Result<T> = std::result::Result<T, Error>;
