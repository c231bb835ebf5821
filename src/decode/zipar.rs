//! ZipAR (arXiv 2412.04062): every row that has begun draws one token in every pass; a row begins when the one above
//! has `window` tokens. An image of R rows and C columns takes C + window (R - 1) passes.
//!
//! In the adaptive variant the first token of a row is drawn when the row above has `window` tokens, and judged again
//! in every pass while that row grows, p against the p of the pass before: the row begins when it is kept.

use super::acceptance::Acceptance;
use super::knobs::count;
use super::lanes::Shape;
use super::window::Guess;
use crate::backend::Test;

/// Settings of ZipAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Tokens that a row is behind the one above it, at least.
    pub window: usize,
    /// Begin a row only when its first token has been kept once.
    pub adaptive: bool,
}

impl Knobs {
    /// One lane per row, one token per pass in each.
    pub fn shape(self) -> Shape {
        Shape { context: self.window, window: 1, guess: Guess::Random, adaptive: self.adaptive }
    }

    /// First tokens that are judged need a law.
    pub fn acceptance(self) -> Acceptance {
        if self.adaptive { Acceptance::Judged(Test::Token) } else { Acceptance::Coupled }
    }
}

impl super::knobs::Knobs for Knobs {
    fn list(&self) -> Vec<(&'static str, String)> {
        vec![("window", self.window.to_string()), ("adaptive", u8::from(self.adaptive).to_string())]
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match (knob, value) {
            ("window", _) => self.window = count(knob, value, 1)?,
            ("adaptive", "0" | "1") => self.adaptive = value == "1",
            ("adaptive", _) => return Err(format!("{knob}={value}: must be 0 or 1")),
            _ => return Ok(false),
        }
        Ok(true)
    }
}
