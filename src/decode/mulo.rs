//! MuLo-SD (arXiv 2601.05149): a low-resolution model drafts rows, one pass judges all their tokens, and what is rejected
//! is drawn again with its neighbourhood, everything else is kept.
//!
//! A token passes if the mass of the tokens that look like it reaches a threshold ([`Test::Threshold`]
//! (crate::backend::Test::Threshold)). The paper leaves open, and here it is so: the first rejected token is final, its
//! context being verified; while islands are drawn again a token sees the current values of all before it, those that wait
//! to be drawn included; what was drawn again is not judged again; keys and values behind a token that was drawn again are
//! stale until the islands are done, or with `refresh` until the next pass, and are written again with the next rows. That
//! costs rows and no pass.

use super::islands::{components, expand, ready};
use super::knobs::{choice, count, number};
use super::{Acceptance, Ask, Round, Scene, Schedule, coarse, frontier};
use crate::backend::{Drawn, Test};
use crate::grid::Grid;
use crate::models::low::Up;
use std::collections::BTreeSet;
use std::ops::Range;

super::knobs::names!(Up { Pixel = "pixel", Latent = "latent" });

/// How what was rejected is drawn again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// One token a pass, in raster order.
    Serial,
    /// All islands at once, each as ZipAR would.
    Parallel,
}

super::knobs::names!(Resample { Serial = "serial", Parallel = "parallel" });

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knobs {
    /// Low-resolution rows that are drafted at once.
    pub rows: usize,
    /// How they are drafted.
    pub draft: coarse::Knobs,
    /// Nearest others in the codebook whose mass counts as a token's.
    pub pool: u32,
    /// The mass that passes.
    pub tau: f32,
    /// How far around a rejected token others are drawn again.
    pub radius: usize,
    /// In which order.
    pub resample: Resample,
    /// Tokens that a row of an island is behind the ones above it.
    pub window: usize,
    /// Write stale keys and values in every pass.
    pub refresh: bool,
}

impl Knobs {
    /// The test of drafts.
    pub fn acceptance(&self) -> Acceptance {
        Acceptance::Judged(Test::Threshold { neighbours: self.pool, least: self.tau })
    }
}

impl super::knobs::Knobs for Knobs {
    fn list(&self) -> Vec<(&'static str, String)> {
        vec![
            ("rows", self.rows.to_string()),
            ("up", self.draft.up.to_string()),
            ("ahead", self.draft.ahead.to_string()),
            ("pool", self.pool.to_string()),
            ("tau", self.tau.to_string()),
            ("radius", self.radius.to_string()),
            ("resample", self.resample.to_string()),
            ("window", self.window.to_string()),
            ("refresh", u8::from(self.refresh).to_string()),
        ]
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match (knob, value) {
            ("rows", _) => self.rows = count(knob, value, 1)?,
            ("up", _) => self.draft.up = choice(knob, value)?,
            ("ahead", _) => self.draft.ahead = count(knob, value, 0)?,
            ("pool", _) => self.pool = count(knob, value, 0)? as u32,
            ("tau", _) => self.tau = number(knob, value, 1.0)? as f32,
            ("radius", _) => self.radius = count(knob, value, 0)?,
            ("resample", _) => self.resample = choice(knob, value)?,
            ("window", _) => self.window = count(knob, value, 1)?,
            ("refresh", "0" | "1") => self.refresh = value == "1",
            ("refresh", _) => return Err(format!("{knob}={value}: must be 0 or 1")),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Bands of rows: drafted, judged, drawn again where they were rejected.
pub struct MuLo {
    knobs: Knobs,
    grid: Grid,
    /// Rows of the grid that are drafted at once.
    step: usize,
    /// The band under way.
    band: Range<usize>,
    /// The first position whose key and value are not those of its token in its context.
    stale: usize,
    /// What is still to be drawn again, by islands.
    islands: Vec<Vec<usize>>,
    /// Positions whose token is another than the one that was fed.
    changed: BTreeSet<usize>,
    /// What the last round asked for, and whether it judged drafts.
    asked: Vec<usize>,
    judging: bool,
}

impl MuLo {
    /// Over an image.
    pub fn new(scene: Scene, knobs: Knobs) -> Self {
        Self {
            knobs,
            grid: scene.grid,
            step: knobs.rows.saturating_mul(scene.scale),
            band: 0..0,
            stale: 0,
            islands: Vec::new(),
            changed: BTreeSet::new(),
            asked: Vec::new(),
            judging: false,
        }
    }

    /// The pass that drafts and judges the next band, and writes what is stale before it.
    fn judge(&mut self) -> Round {
        let Grid { width, height } = self.grid;
        self.band = self.band.end..self.band.end.saturating_add(self.step).min(height);
        let first = (self.band.start * width).max(1);
        // Nothing comes after the last position.
        let end = (self.band.end * width).min(self.grid.len() - 1);
        let block = self.stale.min(first - 1)..end;
        self.changed.clear();
        self.judging = true;
        self.asked = (first..self.band.end * width).collect();
        Round {
            sketch: Some(self.band.clone()),
            block: block.collect(),
            frontier: frontier(self.grid, end),
            asks: self.asked.iter().copied().map(Ask::verify).collect(),
            ..Round::default()
        }
    }

    /// The next pass over the islands.
    fn resample(&mut self) -> Round {
        let lag = match self.knobs.resample {
            Resample::Serial => self.grid.width,
            Resample::Parallel => self.knobs.window,
        };
        self.asked = self.islands.iter().flat_map(|island| ready(island, self.grid, lag)).collect();
        self.asked.sort_unstable();
        let last = self.asked[self.asked.len() - 1];
        let mut block: BTreeSet<usize> = self.asked.iter().map(|position| position - 1).collect();
        block.append(&mut self.changed);
        if self.knobs.refresh {
            block.extend(self.stale..last);
        }
        block.remove(&(self.grid.len() - 1));
        for island in &mut self.islands {
            island.retain(|position| self.asked.binary_search(position).is_err());
        }
        self.islands.retain(|island| !island.is_empty());
        self.judging = false;
        Round {
            block: block.into_iter().collect(),
            frontier: frontier(self.grid, (self.band.end * self.grid.width).min(self.grid.len() - 1)),
            asks: self.asked.iter().copied().map(Ask::draw).collect(),
            ..Round::default()
        }
    }

    /// Which tokens are to be drawn again, given those that were rejected.
    fn reject(&mut self, rejected: &[usize]) {
        let end = self.band.end * self.grid.width;
        self.stale = rejected.first().map_or(end, |&first| first);
        let mut again = expand(rejected, self.knobs.radius, self.grid, end);
        if !again.is_empty() {
            again.remove(0); // its context is verified, so the token that replaced it stays
        }
        self.islands = match self.knobs.resample {
            Resample::Parallel => components(&again, self.grid),
            Resample::Serial if again.is_empty() => Vec::new(),
            Resample::Serial => vec![again],
        };
    }
}

impl Schedule for MuLo {
    fn next(&mut self) -> Option<Round> {
        match (self.islands.is_empty(), self.band.end == self.grid.height) {
            (false, _) => Some(self.resample()),
            (true, false) => Some(self.judge()),
            (true, true) => None,
        }
    }

    fn learn(&mut self, drawn: &[Drawn]) {
        let asked = std::mem::take(&mut self.asked);
        let changed = asked.iter().zip(drawn).filter(|(_, drawn)| drawn.before != drawn.after);
        let changed: Vec<usize> = changed.map(|(&position, _)| position).collect();
        if self.judging {
            self.reject(&changed);
        }
        self.changed.extend(changed);
    }

    fn done(&self) -> usize {
        let waiting: usize = self.islands.iter().map(Vec::len).sum();
        (self.band.end * self.grid.width).max(1) - waiting
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::decode::Schedule;
    use crate::decode::testing::Toy;

    pub fn knobs(rows: usize, radius: usize, resample: Resample, refresh: bool) -> Knobs {
        let draft = coarse::Knobs { up: Up::Latent, ahead: 0 };
        Knobs { rows, draft, pool: 0, tau: 0.0, radius, resample, window: 2, refresh }
    }

    fn test(least: f32) -> Acceptance {
        Acceptance::Judged(Test::Threshold { neighbours: 0, least })
    }

    fn passes(height: usize, width: usize, least: f32, knobs: Knobs) -> usize {
        let mut toy = Toy::new(height, width, 5, test(least), 3);
        let outcome = toy.decode(&mut MuLo::new(toy.scene(), knobs));
        assert_eq!(outcome.tokens.len(), height * width);
        outcome.stats.nfe
    }

    #[test]
    fn passes_are_those_of_the_bands_and_the_islands() {
        let (serial, parallel) = (Resample::Serial, Resample::Parallel);
        // The prompt, and one pass for each band when everything passes.
        assert_eq!(passes(5, 7, 0.0, knobs(1, 1, parallel, false)), 1 + 5);
        assert_eq!(passes(5, 7, 0.0, knobs(2, 1, parallel, false)), 1 + 3);
        assert_eq!(passes(5, 7, 0.0, knobs(99, 1, parallel, false)), 1 + 1);
        // When nothing does, one for each token but those that are final: the image's first and the first of each band.
        assert_eq!(passes(5, 7, 1.5, knobs(99, 0, serial, false)), 1 + 1 + (35 - 2));
        assert_eq!(passes(5, 7, 1.5, knobs(1, 0, serial, false)), 1 + 5 + (35 - 1 - 5));
        // Or those of ZipAR, less the two columns of the first row that are final.
        assert_eq!(passes(5, 7, 1.5, knobs(99, 0, parallel, false)), 1 + 1 + (7 + 2 * 4) - 2);
    }

    /// Before a band is judged everything above it is in the cache as its tokens say, and with `refresh` so is everything
    /// before a token that is drawn again.
    #[test]
    fn stale_keys_are_written_again() {
        for (seed, resample) in (0..30).flat_map(|seed| [(seed, Resample::Serial), (seed, Resample::Parallel)]) {
            for refresh in [false, true] {
                let mut toy = Toy::new(6, 7, 5, test(0.25), seed);
                let mut schedule = MuLo::new(toy.scene(), knobs(2, 1, resample, refresh));
                schedule.begin(toy.begin().after);
                let mut drawn_again = 0;
                while let Some(round) = schedule.next() {
                    let before = toy.tokens();
                    let drawn = toy.round(&round);
                    let exact = match &round.sketch {
                        Some(rows) => rows.start * 7,
                        None if refresh => round.asks[round.asks.len() - 1].position,
                        None => 0,
                    };
                    assert_eq!(toy.stale(&before, exact), None, "{resample:?}, refresh {refresh}, seed {seed}");
                    drawn_again += if round.sketch.is_none() { round.asks.len() } else { 0 };
                    schedule.learn(&drawn);
                }
                assert_eq!(schedule.done(), 42);
                assert!(drawn_again > 3, "nothing was rejected");
            }
        }
    }

    /// Every position that is drawn again is drawn once, and none outside of the neighbourhoods of what was rejected.
    #[test]
    fn what_is_drawn_again_is_what_was_rejected_and_its_neighbourhood() {
        for seed in 0..30 {
            let mut toy = Toy::new(6, 7, 5, test(0.25), seed);
            let grid = toy.grid();
            let mut schedule = MuLo::new(toy.scene(), knobs(3, 1, Resample::Parallel, false));
            schedule.begin(toy.begin().after);
            let mut expected = Vec::new();
            while let Some(round) = schedule.next() {
                let drawn = toy.round(&round);
                if round.sketch.is_some() {
                    assert!(expected.is_empty(), "{expected:?} were not drawn again");
                    let rejected = round.asks.iter().zip(&drawn).filter(|(_, drawn)| drawn.before != drawn.after);
                    let rejected: Vec<usize> = rejected.map(|(ask, _)| ask.position).collect();
                    let end = round.sketch.as_ref().map_or(0, |rows| rows.end * grid.width);
                    expected = expand(&rejected, 1, grid, end).into_iter().skip(1).collect();
                } else {
                    for ask in &round.asks {
                        let found = expected.iter().position(|&position| position == ask.position);
                        expected.remove(found.expect("only once, and only those"));
                    }
                }
                schedule.learn(&drawn);
            }
            assert!(expected.is_empty());
        }
    }
}
