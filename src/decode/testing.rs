//! A toy model with an enumerable law, and the statistics that judge decoders on it.

use super::{Acceptance, Draft, Outcome, Round, Schedule, Target};
use crate::backend::cpu::Canvas;
use crate::backend::{Draw, Drawn, Error, Image, NONE, Rule, Test};
use crate::grid::Grid;
use crate::nn::spatial_heads::Offset;
use crate::rng::{Purpose, Stream};
use crate::sampling::{Sampling, gumbel_max, log_prob};

/// A model whose every distribution depends on every visible key, and whose keys depend on what was visible when
/// they were written: stale or missing cache entries change its output, as in a transformer.
pub struct Toy {
    grid: Grid,
    vocab: usize,
    keys: Vec<u64>,
    /// The last distribution of each position.
    passed: Vec<Vec<f32>>,
    acceptance: Acceptance,
    stream: Stream,
    canvas: Canvas,
    rounds: Vec<u32>,
    kept: usize,
    /// What is wrong with the draws, if anything.
    pub mutant: Option<Mutant>,
}

/// Wrong draws, to see that the tests of the law are sharp.
#[derive(Clone, Copy)]
pub enum Mutant {
    /// Noise that is shared by all positions: every marginal is right, the joint law is not.
    SharedNoise,
    /// Noise of the wrong temperature.
    Sharpened,
}

impl Toy {
    pub fn new(height: usize, width: usize, vocab: usize, acceptance: Acceptance, seed: u64) -> Self {
        let grid = Grid { height, width };
        Self {
            grid,
            vocab,
            keys: vec![0; grid.len()],
            passed: vec![Vec::new(); grid.len() + 1],
            acceptance,
            stream: Stream { seed, image: 0 },
            canvas: Canvas::new(1, grid.len(), vocab),
            rounds: vec![0; grid.len()],
            kept: 0,
            mutant: None,
        }
    }

    pub fn decode(&mut self, schedule: &mut dyn Schedule) -> Outcome {
        super::run(self, schedule, &mut |_| ()).expect("the host does not fail")
    }

    /// Log-weights that a hash determines, between -2 and 2.
    fn weights(&self, key: u64) -> Vec<f32> {
        (0..self.vocab as u64).map(|v| (mix(key, v) >> 40) as f32 / (1 << 22) as f32 - 2.0).collect()
    }

    fn key(&self, position: usize, token: u32, frontier: &[u32]) -> u64 {
        let (row, col) = (self.grid.row(position), self.grid.col(position));
        let above = (0..row).flat_map(|r| (0..frontier[r] as usize).map(move |c| (r, c)));
        let visible = above.chain((0..col).map(|c| (row, c)));
        let own = mix(position as u64, u64::from(token));
        visible.fold(own, |hash, (r, c)| mix(hash, self.keys[self.grid.index(r, c)]))
    }

    /// Probability of every complete grid under plain AR, indexed by its tokens as digits, first token lowest.
    pub fn law(&self) -> Vec<f64> {
        let count = self.vocab.pow(self.grid.len() as u32);
        (0..count).map(|code| self.probability(code)).collect()
    }

    fn probability(&self, mut code: usize) -> f64 {
        let mut model = Toy::new(self.grid.height, self.grid.width, self.vocab, self.acceptance, 0);
        model.passed[0] = model.weights(99);
        let (mut probability, mut frontier) = (1.0, vec![0; self.grid.height]);
        for position in 0..self.grid.len() {
            let token = (code % self.vocab) as u32;
            code /= self.vocab;
            probability *= f64::from(log_prob(&model.passed[position], token)).exp();
            frontier[self.grid.row(position)] += 1;
            model.feed(position, token, &frontier);
        }
        probability
    }

    /// The index of a grid in [`Toy::law`].
    pub fn code(&self, tokens: &[u32]) -> usize {
        tokens.iter().rev().fold(0, |code, &token| code * self.vocab + token as usize)
    }

    fn feed(&mut self, position: usize, token: u32, frontier: &[u32]) {
        self.keys[position] = self.key(position, token, frontier);
        self.passed[position + 1] = self.weights(self.keys[position]);
    }

    /// The geometric mean of a draft's heads.
    fn head(&self, draft: &Draft) -> Vec<f32> {
        let weights = |source: &super::Source| {
            let token = u64::from(self.canvas.at(source.from));
            self.weights(match source.offset {
                Offset::Right(d) => mix(d as u64, token),
                Offset::Down(d) => mix(d as u64 + 100, token),
            })
        };
        let all: Vec<Vec<f32>> = draft.sources.iter().flatten().map(weights).collect();
        (0..self.vocab).map(|v| all.iter().map(|weights| weights[v]).sum::<f32>() / all.len() as f32).collect()
    }

    fn draw(&mut self, position: usize, verify: bool, log_weights: &[f32]) -> Drawn {
        let (rule, round) = match (self.acceptance, verify) {
            (Acceptance::Coupled, _) => (Rule::Coupled, 0),
            (Acceptance::AutoCorrect, false) => (Rule::Draft, 0),
            (Acceptance::AutoCorrect, true) => (Rule::AutoCorrect, self.rounds[position]),
        };
        self.rounds[position] = if verify { round + 1 } else { 0 };
        let at = position as u32;
        let (conditional, unconditional) = ([0, NONE], [NONE; 2]);
        let draw = Draw { image: 0, position: at, rule, follows: false, round, conditional, unconditional };
        let sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
        let image = Image { stream: self.stream, sampling, test: Test::Token };
        let Some(mutant) = self.mutant else { return self.canvas.apply(&draw, &image, None, log_weights) };
        let (at, scale) = match mutant {
            Mutant::SharedNoise => (0, 1.0),
            Mutant::Sharpened => (position, 0.9),
        };
        let mut noise = vec![0.0; self.vocab];
        self.stream.gumbel(Purpose::Token, 0, at, &mut noise);
        noise.iter_mut().for_each(|x| *x *= scale);
        self.canvas.put(position, gumbel_max(log_weights, &noise))
    }
}

impl Target for Toy {
    fn grid(&self) -> Grid {
        self.grid
    }

    fn heads(&self) -> (usize, usize) {
        (3, 2)
    }

    fn begin(&mut self) -> Result<(), Error> {
        self.passed[0] = self.weights(99);
        let first = self.passed[0].clone();
        self.draw(0, false, &first);
        Ok(())
    }

    fn round(&mut self, round: &Round) -> Result<Vec<Drawn>, Error> {
        for draft in &round.drafts {
            let log_weights = self.head(draft);
            self.draw(draft.position, false, &log_weights);
        }
        for &position in &round.block {
            let token = self.canvas.at(position);
            self.feed(position, token, &round.frontier);
        }
        let in_block = |position: usize| position > 0 && round.block.contains(&(position - 1));
        let ask = |ask: &super::Ask| {
            // What a device would have overwritten is not asked for, unless it was kept.
            assert!(in_block(ask.position) || self.kept == ask.position, "position {} is unknown", ask.position);
            let log_weights = self.passed[ask.position].clone();
            self.draw(ask.position, ask.verify, &log_weights)
        };
        let drawn = round.asks.iter().map(ask).collect();
        self.kept = round.keep.unwrap_or(self.kept);
        Ok(drawn)
    }

    fn tokens(&mut self) -> Result<Vec<u32>, Error> {
        Ok((0..self.grid.len()).map(|position| self.canvas.at(position)).collect())
    }
}

/// SplitMix64 of two words.
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.rotate_left(17) ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Does a sample of outcomes follow `law`? Chi-square with rare outcomes pooled, at about five standard deviations.
pub fn follows(law: &[f64], counts: &[usize]) -> bool {
    let total: usize = counts.iter().sum();
    let (mut statistic, mut cells) = (0.0, 0usize);
    let (mut pooled_expected, mut pooled_observed) = (0.0, 0.0);
    let mut add = |expected: f64, observed: f64| {
        statistic += (observed - expected).powi(2) / expected;
        cells += 1;
    };
    for (probability, &count) in law.iter().zip(counts) {
        let expected = probability * total as f64;
        if expected >= 8.0 {
            add(expected, count as f64);
        } else {
            pooled_expected += expected;
            pooled_observed += count as f64;
        }
    }
    if pooled_expected >= 8.0 {
        add(pooled_expected, pooled_observed);
    } else if pooled_observed > 40.0 {
        return false;
    }
    let freedom = cells as f64 - 1.0;
    statistic < freedom + 5.0 * (2.0 * freedom).sqrt()
}

/// Asserts that tokens drawn with seeds 0..20000 follow `p`.
pub fn assert_follows(p: &[f32], mut draw: impl FnMut(u64) -> u32) {
    let mut counts = vec![0; p.len()];
    (0..20_000).for_each(|seed| counts[draw(seed) as usize] += 1);
    let law: Vec<f64> = p.iter().map(|&p| f64::from(p)).collect();
    assert!(follows(&law, &counts), "{counts:?} does not follow {p:?}");
}

mod law {
    use super::*;
    use crate::decode::ar::Ar;
    use crate::decode::pipeline::{Knobs, Wave};
    use crate::decode::ssd::{self, Ssd};
    use crate::decode::{Acceptance::*, drafter};

    const SEEDS: u64 = 40_000;

    /// The law of the toy model.
    fn law() -> Vec<f64> {
        Toy::new(2, 2, 4, Coupled, 0).law()
    }

    /// How often each grid comes out.
    fn counts(
        acceptance: Acceptance,
        mutant: Option<Mutant>,
        schedule: impl Fn(&Toy) -> Box<dyn Schedule>,
    ) -> Vec<usize> {
        let mut counts = vec![0; 256];
        for seed in 0..SEEDS {
            let mut toy = Toy { mutant, ..Toy::new(2, 2, 4, acceptance, seed) };
            let tokens = toy.decode(&mut *schedule(&toy)).tokens;
            counts[toy.code(&tokens)] += 1;
        }
        counts
    }

    fn wave(rounds: Option<u32>) -> impl Fn(&Toy) -> Box<dyn Schedule> {
        let drafter = drafter::SpatialDrafter { preference: drafter::Preference::Both };
        let knobs = Knobs { lag: 1.0, slope: 0.5, window: 2.0, rounds, drafter };
        move |toy| Box::new(Wave::new(toy.grid(), toy.heads(), knobs))
    }

    #[test]
    fn ar_has_the_law_of_the_model() {
        let law = law();
        assert!((law.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        assert!(follows(&law, &counts(Coupled, None, |toy| Box::new(Ar::new(toy.grid())))));
    }

    #[test]
    fn exact_has_the_law_of_the_model() {
        assert!(follows(&law(), &counts(Coupled, None, wave(None))));
    }

    #[test]
    fn mutants_are_caught() {
        let law = law();
        assert!(!follows(&law, &counts(Coupled, Some(Mutant::SharedNoise), wave(None))), "noise shared");
        assert!(!follows(&law, &counts(Coupled, Some(Mutant::Sharpened), wave(None))), "noise scaled by 0.9");
        // A relaxed commit and the paper's fixed rounds are not lossless, and the test is sharp enough to see it.
        assert!(!follows(&law, &counts(Coupled, None, wave(Some(1)))), "committed after one round");
        let paper = ssd::Knobs { rounds: 1, ..ssd::Knobs::default() };
        let ssd = |toy: &Toy| -> Box<dyn Schedule> { Box::new(Ssd::new(toy.grid(), toy.heads(), &paper)) };
        assert!(!follows(&law, &counts(AutoCorrect, None, ssd)), "one round of auto correction");
    }

    #[test]
    fn ssd_makes_exactly_the_passes_of_the_step_model() {
        for (height, width, rounds, rows_per_block, refinements) in
            [(24, 24, 0, 1, 0), (24, 24, 1, 1, 0), (24, 24, 2, 1, 0), (6, 7, 5, 2, 4), (6, 7, 3, 2, 0)]
        {
            let knobs = ssd::Knobs { rounds, rows_per_block, refinements };
            let mut toy = Toy::new(height, width, 4, AutoCorrect, 1);
            let outcome = toy.decode(&mut Ssd::new(toy.grid(), toy.heads(), &knobs));
            assert_eq!(outcome.stats.nfe, knobs.passes(toy.grid(), 3));
            assert_eq!(outcome.tokens.len(), height * width);
        }
    }

    #[test]
    fn the_step_model_gives_the_published_counts() {
        let passes = |height, width, rounds, rows_per_block, refinements| {
            ssd::Knobs { rounds, rows_per_block, refinements }.passes(Grid { height, width }, 5)
        };
        // Janus-Pro, 24x24: r = 0, 1, 2.
        assert_eq!([0, 1, 2].map(|r| passes(24, 24, r, 1, 0)), [34, 57, 80]);
        // Lumina-mGPT, 48x48, b = 5 (its end-of-line tokens cost one pass and its first row spans 48 of them).
        let lumina = |rows, i| passes(48, 49, 5, rows, i) + 1;
        assert_eq!([1, 2, 3, 4, 5].map(|rows| lumina(rows, 4)), [304, 281, 273, 269, 267]);
        assert_eq!([1, 2, 3, 4].map(|i| lumina(2, i)), [212, 235, 258, 281]);
    }
}
