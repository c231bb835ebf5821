//! A toy model with an enumerable law, and the statistics that judge decoders on it.

mod law;

use super::tree::{Choice, Family, Growth, Node, State};
use super::{Acceptance, Ask, Draft, Forecast, Outcome, Round, Scene, Schedule, Target};
use crate::backend::cpu::{Canvas, Codebook};
use crate::backend::{Chosen, Draw, Drawn, Error, Image, NONE, Rule, SCRATCH, Test};
use crate::grid::Grid;
use crate::nn::spatial_heads::Offset;
use crate::rng::{Purpose, Stream};
use crate::sampling::{Sampling, gumbel_max, log_prob};

/// A model whose every distribution depends on every visible key, and whose keys depend on what was visible when
/// they were written: stale or missing cache entries change its output, as in a transformer.
pub struct Toy {
    grid: Grid,
    vocab: usize,
    /// Of the positions; one further, those of a tree's nodes.
    keys: Vec<u64>,
    /// The last distribution of each position.
    passed: Vec<Vec<f32>>,
    /// What a drafter sees of each position, and of the nodes of a tree.
    states: Vec<u64>,
    /// For tests that look at neighbours.
    codebook: Option<Codebook>,
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
    /// What fails its test is replaced by a token of p, not of the residual.
    NoResidual,
    /// A token that was kept counts as drawn from the law that it was drawn from first.
    StaleLaw,
    /// Every tree of an image is drawn with the same noise.
    SameTree,
    /// A tree's node does not see its parent.
    Orphan,
}

impl Toy {
    pub fn new(height: usize, width: usize, vocab: usize, acceptance: Acceptance, seed: u64) -> Self {
        let grid = Grid { height, width };
        let places = grid.len() + SCRATCH + 16;
        Self {
            grid,
            vocab,
            keys: vec![0; places + 1],
            passed: vec![Vec::new(); places + 1],
            states: vec![0; places + 1],
            codebook: None,
            acceptance,
            stream: Stream { seed, image: 0 },
            canvas: Canvas::new(1, places, vocab),
            rounds: vec![0; grid.len()],
            kept: 0,
            mutant: None,
        }
    }

    pub fn grid(&self) -> Grid {
        self.grid
    }

    pub fn heads(&self) -> (usize, usize) {
        (3, 2)
    }

    pub fn decode(&mut self, schedule: &mut dyn Schedule) -> Outcome {
        Toys(vec![self]).decode(vec![schedule]).remove(0)
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

    /// The first position before `end` whose key is not the one that feeding these tokens one by one would give it.
    pub fn stale(&self, tokens: &[u32], end: usize) -> Option<usize> {
        let mut plain = Toy::new(self.grid.height, self.grid.width, self.vocab, self.acceptance, 0);
        let mut frontier = vec![0; self.grid.height];
        (0..end).find(|&position| {
            frontier[self.grid.row(position)] += 1;
            plain.feed(position, tokens[position], &frontier);
            plain.keys[position] != self.keys[position]
        })
    }

    /// The index of a grid in [`Toy::law`].
    pub fn code(&self, tokens: &[u32]) -> usize {
        tokens.iter().rev().fold(0, |code, &token| code * self.vocab + token as usize)
    }

    fn feed(&mut self, position: usize, token: u32, frontier: &[u32]) {
        self.keys[position] = self.key(position, token, frontier);
        self.passed[position + 1] = self.weights(self.keys[position]);
        self.states[position + 1] = self.keys[position];
    }

    /// What a token predicts that is fed beside the cache: of its own row it sees what the rows below see.
    fn feed_beside(&mut self, position: usize, frontier: &[u32]) {
        let above = (0..=self.grid.row(position)).flat_map(|r| (0..frontier[r] as usize).map(move |c| (r, c)));
        let visible = above.map(|(r, c)| self.grid.index(r, c)).filter(|&p| p < position);
        let own = mix(position as u64, u64::from(self.canvas.at(position)));
        let key = visible.fold(own, |hash, p| mix(hash, self.keys[p]));
        self.passed[position + 1] = self.weights(key);
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

    fn draw(&mut self, ask: Ask, log_weights: &[f32]) -> Drawn {
        let Ask { position, verify, follows, .. } = ask;
        let (rule, round, test) = match (self.acceptance, verify) {
            (Acceptance::Clinging { slack, early, penalty }, true) => {
                let slack = if ask.early { early } else { slack };
                (Rule::Cling { slack, penalty }, 0, Test::Token)
            }
            (Acceptance::Coupled | Acceptance::Clinging { .. }, _) => (Rule::Coupled, 0, Test::Token),
            (Acceptance::Judged(test), false) => (Rule::Draft, 0, test),
            (Acceptance::Judged(test), true) => (Rule::AutoCorrect, self.rounds[position], test),
        };
        self.rounds[position] = if verify { round + 1 } else { 0 };
        let follows = follows && rule == Rule::AutoCorrect;
        let (conditional, unconditional) = ([0, NONE], [NONE; 2]);
        let draw = Draw { image: 0, position: position as u32, rule, follows, round, conditional, unconditional };
        let image = self.image(test);
        let (at, scale) = match self.mutant {
            Some(Mutant::SharedNoise) => (0, 1.0),
            Some(Mutant::Sharpened) => (position, 0.9),
            _ => return self.judge(&draw, &image, log_weights),
        };
        let mut noise = vec![0.0; self.vocab];
        self.stream.gumbel(Purpose::Token, 0, at, &mut noise);
        noise.iter_mut().for_each(|x| *x *= scale);
        self.canvas.put(position, gumbel_max(log_weights, &noise))
    }

    fn image(&self, test: Test) -> Image {
        let sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
        Image { stream: self.stream, sampling, test }
    }

    /// What a node predicts: it sees the grid up to its position as far as the frontiers let, and its ancestors.
    fn feed_node(&mut self, node: Node, frontier: &[u32]) {
        let beside = self.grid.len() + 1;
        let above = (0..=self.grid.row(node.at)).flat_map(|r| (0..frontier[r] as usize).map(move |c| (r, c)));
        let visible = above.map(|(r, c)| self.grid.index(r, c)).filter(|&p| p < node.at);
        let mut seen = node.ancestors & !(1 << node.slot);
        if matches!(self.mutant, Some(Mutant::Orphan)) && seen != 0 {
            seen &= !(1 << seen.ilog2());
        }
        let ancestors = (0..SCRATCH).filter(|&slot| seen >> slot & 1 == 1);
        let own = mix(node.at as u64, u64::from(self.canvas.at(self.grid.len() + node.slot)));
        let key = visible.chain(ancestors.map(|slot| beside + slot)).fold(own, |hash, p| mix(hash, self.keys[p]));
        self.keys[beside + node.slot] = key;
        self.passed[beside + node.slot] = self.weights(key);
        self.states[beside + node.slot] = key;
    }

    fn judge_family(&mut self, family: &Family, log_weights: &[f32]) -> Drawn {
        let Acceptance::Judged(test) = self.acceptance else { panic!("trees are judged") };
        let (first, count) = ((self.grid.len() + family.first) as u32, family.count as u32);
        let rule = Rule::Siblings { first, count, drawn: family.choice == Choice::Drawn };
        let (conditional, unconditional) = ([0, NONE], [NONE; 2]);
        let position = family.position as u32;
        let draw = Draw { image: 0, position, rule, follows: false, round: 0, conditional, unconditional };
        let image = self.image(test);
        self.canvas.apply(&draw, &image, self.codebook.as_ref(), log_weights)
    }

    fn foresee(&mut self, forecast: &Forecast) {
        let predicted = forecast.parent.map_or(forecast.position, |slot| self.grid.len() + 1 + slot);
        let log_weights = self.passed[predicted].clone();
        let (rule, (conditional, unconditional)) =
            (Rule::Foresee { count: forecast.count as u32 }, ([0, NONE], [NONE; 2]));
        let position = forecast.position as u32;
        let draw = Draw { image: 0, position, rule, follows: false, round: 0, conditional, unconditional };
        self.canvas.apply(&draw, &self.image(Test::Token), None, &log_weights);
    }

    fn judge(&mut self, draw: &Draw, image: &Image, log_weights: &[f32]) -> Drawn {
        let earlier = matches!(self.mutant, Some(Mutant::StaleLaw)).then(|| self.canvas.clone());
        let drawn = self.canvas.apply(draw, image, None, log_weights);
        let kept = drawn.before == drawn.after;
        match self.mutant {
            Some(Mutant::NoResidual) if draw.rule == Rule::AutoCorrect && !kept => {
                let again =
                    self.canvas.apply(&Draw { rule: Rule::Draft, follows: false, ..*draw }, image, None, log_weights);
                Drawn { after: again.after, ..drawn }
            }
            Some(Mutant::StaleLaw) if draw.rule == Rule::AutoCorrect && kept => {
                self.canvas.take_law(draw.position as usize, &earlier.expect("it was cloned"));
                drawn
            }
            _ => drawn,
        }
    }
}

impl Toy {
    pub fn scene(&self) -> Scene {
        Scene { grid: self.grid, heads: self.heads(), scale: 1, vocab: self.vocab, stream: self.stream }
    }

    pub fn begin(&mut self) -> Drawn {
        self.passed[0] = self.weights(99);
        let first = self.passed[0].clone();
        self.draw(Ask::draw(0), &first)
    }

    pub fn round(&mut self, round: &Round) -> Vec<Drawn> {
        let sketched =
            round.sketch.clone().map_or(0..0, |rows| rows.start * self.grid.width..rows.end * self.grid.width);
        for position in sketched.filter(|&position| position > 0) {
            // As good a draft as any that depends on the image so far.
            let above: u32 = (0..self.grid.width.min(position)).map(|back| self.canvas.at(position - 1 - back)).sum();
            self.canvas.put(position, (above + position as u32 + self.stream.seed as u32) % self.vocab as u32);
        }
        for &(position, token) in &round.puts {
            self.canvas.put(position, token);
            if let Some(rounds) = self.rounds.get_mut(position) {
                *rounds = 0;
            }
        }
        for draft in &round.drafts {
            let log_weights = self.head(draft);
            self.draw(Ask::draw(draft.position), &log_weights);
        }
        for &position in &round.block {
            let token = self.canvas.at(position);
            self.feed(position, token, &round.frontier);
        }
        for &node in &round.nodes {
            self.feed_node(node, round.trunk.as_ref().unwrap_or(&round.frontier));
        }
        for &position in round.temporary.iter().filter(|position| !round.block.contains(position)) {
            self.feed_beside(position, &round.frontier);
        }
        let was_fed = |position: usize| round.block.iter().chain(&round.temporary).any(|&fed| fed + 1 == position);
        let mut drawn = Vec::new();
        for ask in &round.asks {
            // What a device would have overwritten is not asked for, unless it was kept.
            assert!(was_fed(ask.position) || self.kept == ask.position, "position {} is unknown", ask.position);
            let log_weights = self.passed[ask.position].clone();
            drawn.push(self.draw(*ask, &log_weights));
        }
        for family in &round.families {
            let predicted = family.parent.map_or(family.position, |slot| self.grid.len() + 1 + slot);
            let log_weights = self.passed[predicted].clone();
            drawn.push(self.judge_family(family, &log_weights));
        }
        for forecast in &round.forecasts {
            self.foresee(forecast);
        }
        self.kept = round.keep.unwrap_or(self.kept);
        drawn
    }

    pub fn tokens(&self) -> Vec<u32> {
        (0..self.grid.len()).map(|position| self.canvas.at(position)).collect()
    }

    fn grow(&mut self, growth: &Growth) -> Vec<Chosen> {
        for &(place, token) in &growth.puts {
            self.canvas.put(place, token);
        }
        let length = self.grid.len();
        let trunk = growth.trunk.iter().map(|&(position, state)| (position, position + 1, state));
        let nodes = growth.nodes.iter().map(|&(node, state)| (length + node.slot, length + 1 + node.slot, state));
        // What a row's state and token say of the next token: something, of no use to the law.
        for (place, next, state) in trunk.chain(nodes) {
            let state = match state {
                State::Of(position) => self.states[position],
                State::After(slot) => self.states[length + 1 + slot],
            };
            self.states[next] = mix(state, u64::from(self.canvas.at(place)));
        }
        let mut chosen = Vec::new();
        for brood in &growth.broods {
            let trunk = || growth.trunk.last().expect("it is fed").0 + 1;
            let log_weights = self.weights(self.states[brood.parent.map_or_else(trunk, |slot| length + 1 + slot)]);
            let count = brood.count as u32;
            let rule = match brood.choice {
                Choice::Drawn => Rule::Children { count },
                Choice::Likeliest => Rule::Likeliest { count },
            };
            let (conditional, unconditional) = ([0, NONE], [NONE; 2]);
            let position = (length + brood.first) as u32;
            let round = if matches!(self.mutant, Some(Mutant::SameTree)) { 0 } else { growth.round };
            let draw = Draw { image: 0, position, rule, follows: false, round, conditional, unconditional };
            self.canvas.apply(&draw, &self.image(Test::Token), None, &log_weights);
            chosen.extend(self.canvas.take_chosen());
        }
        chosen
    }
}

/// Images that are made together, each by a model of its own.
pub struct Toys<'a>(pub Vec<&'a mut Toy>);

impl Toys<'_> {
    pub fn decode(&mut self, mut schedules: Vec<&mut dyn Schedule>) -> Vec<Outcome> {
        super::run(self, &mut schedules, &mut |_| ()).expect("the host does not fail")
    }
}

impl Target for Toys<'_> {
    fn scene(&self, image: usize) -> Scene {
        self.0[image].scene()
    }

    fn begin(&mut self) -> Result<Vec<Drawn>, Error> {
        Ok(self.0.iter_mut().map(|toy| toy.begin()).collect())
    }

    fn grow(&mut self, image: usize, growth: &Growth) -> Result<Vec<Chosen>, Error> {
        Ok(self.0[image].grow(growth))
    }

    fn rounds(&mut self, rounds: &[Option<Round>]) -> Result<Vec<Vec<Drawn>>, Error> {
        let toys = self.0.iter_mut().zip(rounds);
        Ok(toys.map(|(toy, round)| round.as_ref().map_or_else(Vec::new, |round| toy.round(round))).collect())
    }

    fn foreseen(&mut self) -> Result<Vec<Vec<Chosen>>, Error> {
        Ok(self.0.iter_mut().map(|toy| toy.canvas.take_chosen()).collect())
    }

    fn tokens(&mut self, image: usize) -> Result<Vec<u32>, Error> {
        Ok(self.0[image].tokens())
    }
}

/// Images of different kinds of decoders, which end at different passes, do not meet.
#[test]
fn images_decoded_together_are_those_decoded_alone() {
    let schedules = |scene: Scene| -> Vec<Box<dyn Schedule + Send>> {
        let names = ["exact", "ar", "wavefront", "exact:tree=2", "zipar:window=2"];
        names.iter().map(|name| name.parse::<super::methods::Method>().unwrap().schedule(scene)).collect()
    };
    let toys = || (0..5).map(|seed| Toy::new(4, 5, 7, Acceptance::Coupled, seed)).collect::<Vec<Toy>>();
    let alone: Vec<Outcome> =
        toys().iter_mut().enumerate().map(|(image, toy)| toy.decode(&mut *schedules(toy.scene())[image])).collect();
    let mut together = toys();
    let mut each: Vec<_> =
        together.iter().enumerate().map(|(image, toy)| schedules(toy.scene()).swap_remove(image)).collect();
    let each = each.iter_mut().map(|schedule| &mut **schedule as &mut dyn Schedule).collect();
    assert_eq!(Toys(together.iter_mut().collect()).decode(each), alone);
    let mut passes: Vec<usize> = alone.iter().map(|outcome| outcome.stats.nfe).collect();
    passes.dedup();
    assert_eq!(passes.len(), 5, "they end at different passes: {passes:?}");
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
