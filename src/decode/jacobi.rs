//! Jacobi decoding in raster order: a window of guesses slides over the image, every pass judges all of it.
//!
//! * SJD (arXiv 2410.01699): guesses are judged in a chain by speculative sampling, q being the distribution that the
//!   guess was drawn from in the pass before; the first rejected token is drawn from the residual, those after it
//!   anew.
//! * SCD (arXiv 2510.24211): every position of the window is judged, so that a guess survives a rejection before it.
//!   Either by the same rule at each position (the maximal coupling of two passes' distributions; q is always the p
//!   that was judged last, where the released code keeps an older one for positions that were accepted beyond the
//!   first rejection), or by drawing with the noise of the position, the same in every pass (the Gumbel coupling).
//! * GSD (arXiv 2508.07747) is SJD with another acceptance test ([`Test::Grouped`](crate::backend::Test::Grouped)).
//!
//! Initial guesses are one-hot: nothing was drawn. The released code of SJD decodes the first tokens and the last ones
//! one by one; here the window covers the whole image.

use super::knobs::{choice, count};
use super::window::{Guess, Guesser, Lists, Window};
use super::{Ask, Round, Scene, Schedule, frontier};
use crate::backend::Drawn;

/// Shape of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Positions that a pass feeds: the last final one and the guesses after it.
    pub window: usize,
    /// Where guesses come from when the window moves over new positions.
    pub guess: Guess,
}

impl super::knobs::Knobs for Knobs {
    fn list(&self) -> Vec<(&'static str, String)> {
        vec![("window", self.window.to_string()), ("init", self.guess.to_string())]
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match knob {
            "window" => self.window = count(knob, value, 1)?,
            "init" => self.guess = choice(knob, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// One window over the image.
pub struct Jacobi {
    knobs: Knobs,
    scene: Scene,
    /// Is a guess judged only if the one before it was kept?
    chain: bool,
    guesser: Guesser,
    window: Window,
    asks: Vec<Ask>,
}

impl Jacobi {
    /// Over an image. In a `chain` a guess is judged only if the one before it was kept.
    pub fn new(scene: Scene, knobs: Knobs, chain: bool) -> Self {
        Self {
            knobs,
            scene,
            chain,
            guesser: Guesser::new(scene, knobs.guess),
            window: Window::new(1, scene.grid.len()),
            asks: Vec::new(),
        }
    }
}

impl Schedule for Jacobi {
    fn begin(&mut self, first: u32) {
        self.guesser.learn(0, first);
    }

    fn next(&mut self) -> Option<Round> {
        if self.window.is_done() {
            return None;
        }
        let (mut puts, mut asks) = (Vec::new(), Vec::new());
        let lists = Lists { guesser: &mut self.guesser, puts: &mut puts, asks: &mut asks };
        let guesses = self.window.pass(self.knobs.window, usize::MAX, self.chain, lists);
        self.asks.clone_from(&asks);
        Some(Round {
            puts,
            block: (guesses.start - 1..guesses.end).collect(),
            frontier: frontier(self.scene.grid, guesses.end),
            asks,
            ..Round::default()
        })
    }

    fn learn(&mut self, drawn: &[Drawn]) {
        self.window.learn(&self.asks, drawn, &mut self.guesser);
    }

    fn done(&self) -> usize {
        self.window.next
    }
}
