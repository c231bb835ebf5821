//! Verification rules: what becomes of each token is what the CPU backend makes of it, in chains and by every test.

use std::collections::BTreeSet;

use weft::backend::{Backend, Capacity, Chosen, Draw, Drawn, Image, Phase, PoolBound, Put, Rule, Step, Test};
use weft::sampling::Sampling;

use crate::draw::{Case, PLAIN, STREAM};
use crate::support::{Noise, backend, cpu, tensor};

/// A canvas, what is drawn on it, and by which test.
pub struct Bench<B: Backend> {
    step: B::Step,
    canvas: B::Canvas,
    logits: B::Tensor,
    codebook: B::Codebook,
    sampling: Sampling,
}

/// What the host puts and what is drawn in one step.
#[derive(Default)]
pub struct Round {
    pub puts: Vec<Put>,
    pub drafts: Vec<Draw>,
    pub verdicts: Vec<Draw>,
}

impl<B: Backend> Bench<B> {
    pub fn new(
        b: &B,
        case: &Case,
        positions: usize,
        logits: &[f32],
        (vectors, dim, near): (&[f32], usize, usize),
    ) -> Self {
        let capacity =
            Capacity { rows: positions, sequences: 1, sources: positions, siblings: positions, ..Capacity::default() };
        let mut bench = Self {
            step: b.step(capacity).unwrap(),
            canvas: b.canvas(1, positions, case.vocab, true).unwrap(),
            logits: tensor(b, logits, case.vocab),
            codebook: b.codebook(vectors, dim, near).unwrap(),
            sampling: case.sampling,
        };
        let Self { step, logits, canvas, codebook, .. } = &mut bench;
        b.reserve(step, &mut |b, step| draw(b, step, logits, canvas, codebook)).unwrap();
        bench
    }

    /// What was drawn, and the tokens then.
    pub fn round(&mut self, b: &B, round: &Round, test: Test) -> (Vec<Drawn>, Vec<u32>) {
        let images = vec![Image { stream: STREAM, sampling: self.sampling, test }];
        let Round { puts, drafts, verdicts } = round;
        let (puts, drafts, verdicts) = (puts.clone(), drafts.clone(), verdicts.clone());
        b.set_step(Step { images, puts, drafts, verdicts, ..Step::default() }, &mut self.step).unwrap();
        let (logits, canvas, codebook) = (&self.logits, &mut self.canvas, &self.codebook);
        b.run(&mut self.step, &mut |b, step| draw(b, step, logits, canvas, codebook));
        (b.drawn(&self.step, &self.canvas).unwrap(), b.tokens(&self.canvas, 0).unwrap())
    }

    /// What the last round chose.
    pub fn chosen(&self, b: &B) -> Vec<Chosen> {
        b.chosen(&self.step, &self.canvas).unwrap()
    }
}

fn draw<B: Backend>(b: &B, step: &B::Step, logits: &B::Tensor, canvas: &mut B::Canvas, codebook: &B::Codebook) {
    b.put(step, canvas);
    b.draw(step, Phase::Drafts, logits, canvas, Some(codebook));
    b.draw(step, Phase::Verdicts, logits, canvas, Some(codebook));
}

/// Judges tokens that were drafted, and tokens that were put, by each test on both backends. Returns how many were kept and
/// how many were not.
fn compare(case: Case, draws: usize, (dim, near): (usize, usize), tests: &[Test]) -> (usize, usize) {
    let (cuda, cpu) = (backend(), cpu());
    let vectors = Noise(5).values(case.vocab * dim);
    // Laws to draft from, and laws near them to judge by.
    let mut logits = case.logits(draws, 3);
    let other: Vec<f32> = logits.iter().zip(Noise(4).values(logits.len())).map(|(x, y)| x + 0.7 * y).collect();
    logits.extend(other);
    let table = (&vectors[..], dim, near);
    let mut device = Bench::new(&*cuda, &case, draws, &logits, table);
    let mut host = Bench::new(&cpu, &case, draws, &logits, table);
    let mut seen = (0, 0);
    for (index, &test) in tests.iter().enumerate() {
        let round = index as u32;
        let likely = |at: usize| {
            let best = (0..case.vocab).max_by(|&a, &b| {
                let weight = |token: usize| logits[4 * at * case.vocab + token];
                weight(a).total_cmp(&weight(b))
            });
            best.unwrap() as u32
        };
        let put = |at: usize| Put { image: 0, position: at as u32, token: likely(at) };
        let (puts, drafts): (Vec<usize>, Vec<usize>) = (0..draws).partition(|at| at % 3 == index % 3);
        let first = Round {
            puts: puts.into_iter().map(put).collect(),
            drafts: drafts.into_iter().map(|at| case.draw(at, at, Rule::Draft, round)).collect(),
            ..Round::default()
        };
        let (got, want) = (device.round(&*cuda, &first, test).1, host.round(&cpu, &first, test).1);
        assert_eq!(got, want, "{case:?}: drafts");
        let verdict = |at: usize| {
            let follows = at % 4 > 1;
            Draw { follows, ..case.draw(draws + at, at, Rule::AutoCorrect, round) }
        };
        let second = Round { verdicts: (0..draws).map(verdict).collect(), ..Round::default() };
        let (got, want) = (device.round(&*cuda, &second, test), host.round(&cpu, &second, test));
        assert_eq!(got, want, "{case:?}, {test:?}");
        // Once more: the law that each now has is p, so tests that are exact at q = p keep all.
        let third = Round {
            verdicts: (0..draws).map(|at| case.draw(draws + at, at, Rule::AutoCorrect, 100 + round)).collect(),
            ..Round::default()
        };
        let kept = |drawn: &[Drawn]| drawn.iter().filter(|drawn| drawn.before == drawn.after).count();
        seen = (seen.0 + kept(&got.0), seen.1 + draws - kept(&got.0));
        let (got, want) = (device.round(&*cuda, &third, test), host.round(&cpu, &third, test));
        assert_eq!(got, want, "{case:?}, {test:?}: again");
        if !matches!(test, Test::Threshold { .. }) {
            assert_eq!(kept(&got.0), draws, "{case:?}, {test:?}: a token of law p fails p");
        }
    }
    seen
}

/// Sizes of groups, with and without each filter.
fn groups(sizes: &[u32]) -> Vec<Test> {
    let infinite = f32::INFINITY;
    sizes
        .iter()
        .flat_map(|&size| {
            [(infinite, infinite), (0.004, infinite), (infinite, 0.8), (0.01, 1.5)]
                .map(|(delta, distance)| Test::Grouped { size, delta, distance })
        })
        .collect()
}

/// Numbers of neighbours, with each bound.
fn pools(neighbours: &[u32]) -> Vec<Test> {
    neighbours
        .iter()
        .flat_map(|&neighbours| {
            let pooled = |bound| Test::Pooled { neighbours, bound };
            [
                pooled(PoolBound::Mass(0.01)),
                pooled(PoolBound::Mass(0.3)),
                pooled(PoolBound::Ratio(5.0)),
                Test::Threshold { neighbours, least: 0.02 },
                // Fails always, and is sometimes replaced by the same.
                Test::Threshold { neighbours, least: 1.5 },
            ]
        })
        .collect()
}

#[test]
fn groups_are_judged_as_on_the_cpu() {
    let cut = Sampling { cfg: 3.0, temperature: 1.1, top_k: 60, top_p: 0.95 };
    let sizes = groups(&[1, 2, 14, 1000]);
    for case in [
        Case::new(512, PLAIN),
        Case { two: true, ..Case::new(517, cut) },
        // Many weights are equal, so that ranks are decided by the tokens.
        Case { grain: 2.0, ..Case::new(512, PLAIN) },
    ] {
        let (kept, failed) = compare(case, 6, (5, 0), &sizes);
        assert!(kept > 10 && failed > 10, "{case:?}: {kept} kept, {failed} failed");
    }
    // Vectors of more dimensions than a warp has lanes.
    compare(Case::new(64, PLAIN), 9, (70, 0), &[Test::Grouped { size: 9, delta: 0.1, distance: 45.0 }]);
}

#[test]
fn pools_are_judged_as_on_the_cpu() {
    let cut = Sampling { cfg: 3.0, temperature: 1.1, top_k: 60, top_p: 0.95 };
    let tests = pools(&[0, 1, 10, 300]);
    for case in [Case::new(512, PLAIN), Case { two: true, ..Case::new(517, cut) }] {
        let (kept, failed) = compare(case, 6, (5, 300), &tests);
        assert!(kept > 10 && failed > 10, "{case:?}: {kept} kept, {failed} failed");
    }
}

#[test]
fn large_vocabularies_are_judged_as_on_the_cpu() {
    let guided = Sampling { cfg: 3.0, ..PLAIN };
    compare(Case::new(16_384, guided), 2, (8, 1000), &pools(&[1000])[1..]);
    compare(Case::new(16_384, guided), 2, (8, 0), &[Test::Grouped { size: 25, delta: 0.15, distance: 2.0 }]);
    compare(Case::new(65_536, PLAIN), 1, (3, 0), &[Test::Grouped { size: 50, delta: 1.0, distance: 0.5 }]);
}

#[test]
fn greedy_tokens_become_the_best() {
    let greedy = Sampling { cfg: 2.0, temperature: 0.0, ..PLAIN };
    let mut tests = pools(&[0, 50]);
    tests.retain(|test| matches!(test, Test::Pooled { .. }));
    tests.extend(groups(&[1, 14]));
    compare(Case::new(512, greedy), 9, (5, 50), &tests);
}

/// Chains of so many verdicts; a token is kept with probability 0.8.
fn chains(lengths: &[usize], rounds: u32) -> BTreeSet<(usize, usize)> {
    const VOCAB: usize = 24;
    let (cuda, cpu) = (backend(), cpu());
    let case = Case::new(VOCAB, PLAIN);
    let draws: usize = lengths.iter().sum();
    // Row 0 has a token of 0.8, the others share the rest.
    let mut logits = vec![(0.2f32 / (VOCAB - 1) as f32).ln(); VOCAB];
    logits[7] = 0.8f32.ln();
    let table = (&[0.0; VOCAB][..], 1, 0);
    let mut device = Bench::new(&*cuda, &case, draws, &logits, table);
    let mut host = Bench::new(&cpu, &case, draws, &logits, table);
    let mut stops = BTreeSet::new();
    for round in 0..rounds {
        // In an order that is not that of the positions.
        let position = |at: usize| (at * 7 + 3) % draws;
        assert!(!draws.is_multiple_of(7), "positions are drawn once");
        let heads: BTreeSet<usize> =
            lengths.iter().scan(0, |first, n| Some(std::mem::replace(first, *first + n))).collect();
        let verdict = |at: usize| {
            let follows = !heads.contains(&at);
            Draw { follows, ..case.draw(0, position(at), Rule::AutoCorrect, round) }
        };
        let puts = (0..draws).map(|at| Put { image: 0, position: at as u32, token: 7 }).collect();
        let plan = Round { puts, verdicts: (0..draws).map(verdict).collect(), ..Round::default() };
        let got = device.round(&*cuda, &plan, Test::Token);
        assert_eq!(got, host.round(&cpu, &plan, Test::Token), "round {round}, chains of {lengths:?}");
        for (&first, &length) in heads.iter().zip(lengths) {
            let chain = &got.0[first..first + length];
            stops.insert((length, chain.iter().take_while(|drawn| drawn.before == drawn.after).count()));
        }
    }
    stops
}

#[test]
fn chains_stop_where_they_stop_on_the_cpu() {
    // A token that fails is replaced by another, so the first that changes is where the chain stops.
    let stops = chains(&[5; 40], 4);
    assert_eq!(stops.len(), 6, "a chain of five stops at each place, or not at all: {stops:?}");
    for lengths in [&[1][..], &[2, 1], &[31, 1, 2], &[33, 32, 64], &[1, 5, 90, 1, 1, 3], &[8; 75]] {
        chains(lengths, 2);
    }
}

#[test]
fn links_and_lone_draws_share_a_list() {
    let (cuda, cpu) = (backend(), cpu());
    let case = Case::new(64, PLAIN);
    let logits = case.logits(40, 9);
    let table = (&[0.0; 64][..], 1, 0);
    let mut device = Bench::new(&*cuda, &case, 40, &logits, table);
    let mut host = Bench::new(&cpu, &case, 40, &logits, table);
    // The same graph with other links each time.
    for round in 0..6 {
        let verdict = |at: usize| {
            let rule = [Rule::AutoCorrect, Rule::Draft, Rule::AutoCorrect, Rule::AutoCorrect][(at + round) % 4];
            let follows = (at + round) % 4 == 3 && at > 0;
            Draw { follows, ..case.draw(at, at, rule, round as u32) }
        };
        let token = |at: usize| ((at * 5 + round) % 64) as u32;
        let puts = (0..40).map(|at| Put { image: 0, position: at as u32, token: token(at) }).collect();
        let plan = Round { puts, verdicts: (0..40).map(verdict).collect(), ..Round::default() };
        let (got, want) = (device.round(&*cuda, &plan, Test::Token), host.round(&cpu, &plan, Test::Token));
        assert_eq!(got, want, "round {round}");
    }
}

#[test]
fn puts_replace_tokens_and_their_laws() {
    let cuda = backend();
    let case = Case::new(30, PLAIN);
    // Token 11 is certain.
    let mut logits = vec![f32::NEG_INFINITY; 30];
    logits[11] = 0.0;
    let mut bench = Bench::new(&*cuda, &case, 8, &logits, (&[0.0; 30], 1, 0));
    let puts: Vec<Put> = [(2, 29), (5, 11)].map(|(position, token)| Put { image: 0, position, token }).to_vec();
    let (_, tokens) = bench.round(&cuda, &Round { puts, ..Round::default() }, Test::Token);
    assert_eq!(tokens, [0, 0, 29, 0, 0, 11, 0, 0]);
    let verdicts = vec![case.draw(0, 5, Rule::AutoCorrect, 0), case.draw(0, 2, Rule::AutoCorrect, 0)];
    let (drawn, _) = bench.round(&cuda, &Round { verdicts, ..Round::default() }, Test::Token);
    assert_eq!(drawn, [Drawn { before: 11, after: 11 }, Drawn { before: 29, after: 11 }]);
    let plain = cuda.canvas(1, 8, 30, false).unwrap();
    bench.canvas = plain;
    let puts = vec![Put { image: 0, position: 7, token: 3 }];
    bench.step = cuda.step(Capacity { rows: 8, sequences: 1, ..Capacity::default() }).unwrap();
    assert_eq!(bench.round(&cuda, &Round { puts, ..Round::default() }, Test::Token).1, [0, 0, 0, 0, 0, 0, 0, 3]);
}
