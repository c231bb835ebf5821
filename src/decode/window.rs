//! A run of positions that are decoded left to right by guessing ahead: what Jacobi decoders have in common.
//!
//! A pass feeds the last final token and the guesses after it. Every guess is judged by the distribution that the
//! pass gives it; up to the first that changes, and that one included, tokens were drawn in their final context
//! and are final. What was drawn beyond are the next pass's guesses.

use super::{Ask, Scene};
use crate::backend::Drawn;
use crate::rng::Purpose;
use std::ops::Range;

/// Where the first guess of a token comes from when there is neither a draft nor a leftover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// A token drawn uniformly from the vocabulary.
    Random,
    /// The token to the left; in the first column the one above.
    Left,
    /// The token above; in the first row the one to the left.
    Above,
}

super::knobs::names!(Guess { Random = "random", Left = "left", Above = "above" });

/// The tokens as far as the schedule was told, and guesses for the others.
pub(super) struct Guesser {
    guess: Guess,
    scene: Scene,
    tokens: Vec<u32>,
}

impl Guesser {
    pub(super) fn new(scene: Scene, guess: Guess) -> Self {
        Self { guess, scene, tokens: vec![0; scene.grid.len()] }
    }

    /// The token of a position, drawn or guessed last.
    pub(super) fn token(&self, position: usize) -> u32 {
        self.tokens[position]
    }

    /// Remembers the token of a position.
    pub(super) fn learn(&mut self, position: usize, token: u32) {
        self.tokens[position] = token;
    }

    /// Guesses positions in ascending order: position and token.
    pub(super) fn guess(&mut self, positions: Range<usize>) -> Vec<(usize, u32)> {
        positions.map(|position| (position, self.one(position))).collect()
    }

    fn one(&mut self, position: usize) -> u32 {
        let Scene { grid, vocab, stream, .. } = self.scene;
        let left = grid.col(position) > 0;
        let above = grid.row(position) > 0;
        let token = match self.guess {
            Guess::Left if left => self.tokens[position - 1],
            Guess::Left if above => self.tokens[position - grid.width],
            Guess::Above if above => self.tokens[position - grid.width],
            Guess::Above if left => self.tokens[position - 1],
            _ => {
                let uniform = stream.uniform(Purpose::Guess, 0, position);
                ((uniform * vocab as f32) as u32).min(vocab as u32 - 1)
            }
        };
        self.tokens[position] = token;
        token
    }
}

/// What a pass adds to.
pub(super) struct Lists<'a> {
    pub(super) guesser: &'a mut Guesser,
    pub(super) puts: &'a mut Vec<(usize, u32)>,
    pub(super) asks: &'a mut Vec<Ask>,
}

/// The state of one run.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// First position that is not final.
    pub(super) next: usize,
    /// One past the last position that has a token.
    guessed: usize,
    /// One past the last position of the run.
    pub(super) end: usize,
}

impl Window {
    /// Over positions `first..end`, none of which has a token.
    pub(super) fn new(first: usize, end: usize) -> Self {
        Self { next: first, guessed: first, end }
    }

    /// Is every token final?
    pub(super) fn is_done(&self) -> bool {
        self.next == self.end
    }

    /// The next pass, which may feed `length` positions, the last final one included, and ask for tokens before `limit`
    /// (there is at least one): adds what must be guessed and what is asked. Returns the positions that are fed after
    /// the last final one.
    ///
    /// In a `chain` a guess is judged only if the one before it was kept.
    pub(super) fn pass(&mut self, length: usize, limit: usize, chain: bool, to: Lists<'_>) -> Range<usize> {
        let fed = self.next..(self.next + length).min(limit.min(self.end)) - 1;
        to.puts.extend(to.guesser.guess(self.guessed.min(fed.end)..fed.end));
        let judged = self.guessed.max(fed.end);
        to.asks.extend((fed.start..=fed.end).map(|position| {
            let verify = position < judged;
            Ask { verify, follows: chain && verify && position > fed.start, ..Ask::draw(position) }
        }));
        self.guessed = self.guessed.max(fed.end + 1);
        fed
    }

    /// What became of the tokens that the pass asked for.
    pub(super) fn learn(&mut self, asks: &[Ask], drawn: &[Drawn], guesser: &mut Guesser) {
        let mut settled = true;
        for (ask, drawn) in asks.iter().zip(drawn) {
            guesser.learn(ask.position, drawn.after);
            if settled {
                self.next = ask.position + 1;
                settled = ask.verify && drawn.before == drawn.after;
            }
        }
    }
}
