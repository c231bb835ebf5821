//! A toy model with an enumerable law, and the statistics that judge decoders on it.

use super::{Placed, Source, Target};
use crate::grid::Grid;
use crate::nn::spatial_heads::Offset;

/// A model whose every distribution depends on every visible key, and whose keys depend on what was visible when
/// they were written: stale or missing cache entries change its output, as in a transformer.
pub struct Toy {
    grid: Grid,
    vocab: usize,
    keys: Vec<u64>,
    passed: Vec<Vec<f32>>,
    drafted: Vec<Vec<f32>>,
}

impl Toy {
    pub fn new(height: usize, width: usize, vocab: usize) -> Self {
        let grid = Grid { height, width };
        Self { grid, vocab, keys: vec![0; grid.len()], passed: Vec::new(), drafted: Vec::new() }
    }

    /// Log-weights that a hash determines, between -2 and 2.
    fn weights(&self, key: u64) -> Vec<f32> {
        (0..self.vocab as u64).map(|v| (mix(key, v) >> 40) as f32 / (1 << 22) as f32 - 2.0).collect()
    }

    fn key(&self, placed: Placed, frontier: &[u32]) -> u64 {
        let (row, col) = (self.grid.row(placed.position), self.grid.col(placed.position));
        let above = (0..row).flat_map(|r| (0..frontier[r] as usize).map(move |c| (r, c)));
        let visible = above.chain((0..col).map(|c| (row, c)));
        let own = mix(placed.position as u64, u64::from(placed.token));
        visible.fold(own, |hash, (r, c)| mix(hash, self.keys[self.grid.index(r, c)]))
    }

    /// Probability of every complete grid under plain AR, indexed by its tokens as digits, first token lowest.
    pub fn law(&self) -> Vec<f64> {
        let count = self.vocab.pow(self.grid.len() as u32);
        (0..count).map(|code| self.probability(code)).collect()
    }

    fn probability(&self, mut code: usize) -> f64 {
        let mut model = Toy::new(self.grid.height, self.grid.width, self.vocab);
        model.prefill();
        let (mut probability, mut frontier) = (1.0, vec![0; self.grid.height]);
        for position in 0..self.grid.len() {
            let token = (code % self.vocab) as u32;
            code /= self.vocab;
            probability *= f64::from(super::sampling::log_prob(model.log_weights(0), token)).exp();
            frontier[self.grid.row(position)] += 1;
            model.feed(&[Placed { position, token }], &frontier);
        }
        probability
    }

    /// The index of a grid in [`Toy::law`].
    pub fn code(&self, tokens: &[u32]) -> usize {
        tokens.iter().rev().fold(0, |code, &token| code * self.vocab + token as usize)
    }
}

impl Target for Toy {
    fn grid(&self) -> Grid {
        self.grid
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn prefill(&mut self) {
        self.passed = vec![self.weights(99)];
    }

    fn feed(&mut self, block: &[Placed], frontier: &[u32]) {
        self.passed.clear();
        for &placed in block {
            self.keys[placed.position] = self.key(placed, frontier);
            self.passed.push(self.weights(self.keys[placed.position]));
        }
    }

    fn log_weights(&self, i: usize) -> &[f32] {
        &self.passed[i]
    }

    fn draft(&mut self, sources: &[Source]) {
        let hash = |source: &Source| match source.offset {
            Offset::Right(d) => mix(d as u64, u64::from(source.from.token)),
            Offset::Down(d) => mix(d as u64 + 100, u64::from(source.from.token)),
        };
        self.drafted = sources.iter().map(|source| self.weights(hash(source))).collect();
    }

    fn draft_log_weights(&self, i: usize) -> &[f32] {
        &self.drafted[i]
    }

    fn heads(&self) -> (usize, usize) {
        (3, 2)
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
    use crate::decode::accept::{Acceptance, AutoCorrect, Coupled};
    use crate::decode::pipeline::{self, Knobs};
    use crate::decode::{ar, drafter, ssd};
    use crate::rng::{Purpose, Stream};

    const SEEDS: u64 = 40_000;

    fn counts(decode: impl Fn(&mut Toy, Stream) -> Vec<u32>) -> Vec<usize> {
        let mut toy = Toy::new(2, 2, 4);
        let mut counts = vec![0; 256];
        for seed in 0..SEEDS {
            let tokens = decode(&mut toy, Stream { seed, image: 0 });
            counts[toy.code(&tokens)] += 1;
        }
        counts
    }

    fn knobs(rounds: Option<u32>) -> Knobs {
        let drafter = drafter::SpatialDrafter { preference: drafter::Preference::Both };
        Knobs { lag: 1.0, slope: 0.5, window: 2.0, rounds, drafter }
    }

    #[test]
    fn ar_has_the_law_of_the_model() {
        let law = Toy::new(2, 2, 4).law();
        assert!((law.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        assert!(follows(&law, &counts(|toy, stream| ar::decode(toy, stream, &mut |_| ()).tokens)));
    }

    #[test]
    fn exact_has_the_law_of_the_model() {
        let knobs = knobs(None);
        let decode = |toy: &mut Toy, stream| pipeline::decode(toy, Coupled::new(stream), &knobs, &mut |_| ()).tokens;
        assert!(follows(&Toy::new(2, 2, 4).law(), &counts(decode)));
    }

    /// Noise that is shared by all positions: every marginal is right, the joint law is not.
    struct SharedNoise(Coupled);

    impl Acceptance for SharedNoise {
        fn draft(&mut self, _: usize, log_weights: &[f32]) -> u32 {
            self.0.draft(0, log_weights)
        }
        fn verify(&mut self, _: usize, token: u32, log_weights: &[f32]) -> u32 {
            self.0.verify(0, token, log_weights)
        }
        fn forget_before(&mut self, _: usize) {}
    }

    /// Noise of the wrong temperature.
    struct Sharpened(Stream);

    impl Acceptance for Sharpened {
        fn draft(&mut self, position: usize, log_weights: &[f32]) -> u32 {
            let mut noise = vec![0.0; log_weights.len()];
            self.0.gumbel(Purpose::Token, 0, position, &mut noise);
            noise.iter_mut().for_each(|x| *x *= 0.9);
            super::super::sampling::gumbel_max(log_weights, &noise)
        }
        fn verify(&mut self, position: usize, _: u32, log_weights: &[f32]) -> u32 {
            self.draft(position, log_weights)
        }
        fn forget_before(&mut self, _: usize) {}
    }

    #[test]
    fn mutants_are_caught() {
        let law = Toy::new(2, 2, 4).law();
        let exact = knobs(None);
        let shared = |toy: &mut Toy, stream| {
            pipeline::decode(toy, SharedNoise(Coupled::new(stream)), &exact, &mut |_| ()).tokens
        };
        assert!(!follows(&law, &counts(shared)), "noise shared between positions");
        let sharp = |toy: &mut Toy, stream| pipeline::decode(toy, Sharpened(stream), &exact, &mut |_| ()).tokens;
        assert!(!follows(&law, &counts(sharp)), "noise scaled by 0.9");
        // A relaxed commit and the paper's fixed rounds are not lossless, and the test is sharp enough to see it.
        let relaxed = knobs(Some(1));
        let early = |toy: &mut Toy, stream| pipeline::decode(toy, Coupled::new(stream), &relaxed, &mut |_| ()).tokens;
        assert!(!follows(&law, &counts(early)), "committed after one round");
        let paper = ssd::Knobs { rounds: 1, ..ssd::Knobs::default() };
        let ssd = |toy: &mut Toy, stream| ssd::decode(toy, AutoCorrect::new(stream), &paper, &mut |_| ()).tokens;
        assert!(!follows(&law, &counts(ssd)), "one round of auto correction");
    }

    #[test]
    fn ssd_makes_exactly_the_passes_of_the_step_model() {
        for (height, width, rounds, rows_per_block, refinements) in
            [(24, 24, 0, 1, 0), (24, 24, 1, 1, 0), (24, 24, 2, 1, 0), (6, 7, 5, 2, 4), (6, 7, 3, 2, 0)]
        {
            let knobs = ssd::Knobs { rounds, rows_per_block, refinements };
            let mut toy = Toy::new(height, width, 4);
            let stream = Stream { seed: 1, image: 0 };
            let outcome = ssd::decode(&mut toy, AutoCorrect::new(stream), &knobs, &mut |_| ());
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
