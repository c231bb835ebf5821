//! Parallel Jacobi Decoding (arXiv 2606.05703): a row begins when the one above has `threshold` tokens, and in each row
//! that has begun up to `drafts` guesses are judged in a chain, as in SJD. Guesses of one row are not seen from
//! another, and a row stays `threshold` tokens behind the one above it (the paper bounds its start only).

use super::knobs::{choice, count};
use super::lanes::Shape;
use super::window::Guess;

/// Settings of PJD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Tokens that a row is behind the one above it, at least.
    pub threshold: usize,
    /// Guesses in a row.
    pub drafts: usize,
    /// Where guesses come from.
    pub guess: Guess,
}

impl Knobs {
    /// One lane per row, a window of guesses in each.
    pub fn shape(self) -> Shape {
        Shape { context: self.threshold, window: self.drafts + 1, guess: self.guess, adaptive: false }
    }
}

impl super::knobs::Knobs for Knobs {
    fn list(&self) -> Vec<(&'static str, String)> {
        let Self { threshold, drafts, guess } = self;
        vec![("threshold", threshold.to_string()), ("drafts", drafts.to_string()), ("init", guess.to_string())]
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match knob {
            "threshold" => self.threshold = count(knob, value, 1)?,
            "drafts" => self.drafts = count(knob, value, 0)?,
            "init" => self.guess = choice(knob, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}
