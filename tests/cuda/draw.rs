//! Draws: the CPU backend's tokens for the same seed, and the laws of the rules.

use weft::backend::{Backend, Capacity, Draw, Drawn, Image, NONE, Phase, Rule, Step, Test};
use weft::rng::{Purpose, Stream};
use weft::sampling::Sampling;

use crate::support::{Noise, backend, cpu, tensor};

/// How far the noise of CPU and device may lie apart (kernels/philox.cuh), and with it the sum of noise and log-weight,
/// which each side rounds once more: half an ulp of a sum below 64.
pub const NOISE: f32 = 4.2e-6 + 1.9e-6;

pub const STREAM: Stream = Stream { seed: 0x1234_5678_9abc_def0, image: 5 };

pub const PLAIN: Sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };

/// What the draws of one size do, on logits that come from `Noise`.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub vocab: usize,
    pub sampling: Sampling,
    /// The mean of two distributions.
    pub two: bool,
    /// Logits are multiples of this: many are equal.
    pub grain: f32,
}

impl Case {
    pub fn new(vocab: usize, sampling: Sampling) -> Self {
        Self { vocab, sampling, two: false, grain: 0.0 }
    }

    /// Rows of logits of a draw: two conditional branches, two unconditional ones.
    pub fn logits(&self, draws: usize, seed: u64) -> Vec<f32> {
        let mut noise = Noise(seed);
        let value = |x: f32| if self.grain > 0.0 { (6.0 * x / self.grain).round() * self.grain } else { 6.0 * x };
        noise.values(4 * draws * self.vocab).into_iter().map(value).collect()
    }

    pub fn draw(&self, index: usize, position: usize, rule: Rule, round: u32) -> Draw {
        let row = |branch: usize, there: bool| if there { (4 * index + branch) as u32 } else { NONE };
        let guided = self.sampling.cfg != 1.0;
        Draw {
            image: 0,
            position: position as u32,
            rule,
            follows: false,
            round,
            conditional: [row(0, true), row(1, self.two)],
            unconditional: [row(2, guided), row(3, guided && self.two)],
        }
    }

    /// The log-weights that a draw is made from.
    fn weights(&self, logits: &[f32], draw: &Draw) -> Vec<f32> {
        let row = |index: u32| (index != NONE).then(|| &logits[index as usize * self.vocab..][..self.vocab]);
        let process = |which: usize| {
            let mut out = vec![0.0; self.vocab];
            self.sampling.process(row(draw.conditional[which]).unwrap(), row(draw.unconditional[which]), &mut out);
            out
        };
        let first = process(0);
        if !self.two { first } else { first.iter().zip(process(1)).map(|(a, b)| a / 2.0 + b / 2.0).collect() }
    }
}

/// A canvas and what is needed to draw on it.
struct Easel<B: Backend> {
    step: B::Step,
    canvas: B::Canvas,
    logits: B::Tensor,
    sampling: Sampling,
}

impl<B: Backend> Easel<B> {
    fn new(b: &B, case: &Case, positions: usize, draws: usize) -> Self {
        let capacity = Capacity { rows: positions, sequences: 1, sources: positions, ..Capacity::default() };
        let mut canvas = b.canvas(1, positions, case.vocab, true).unwrap();
        let tokens: Vec<u32> = (0..positions).map(|p| (p * 13 % case.vocab) as u32).collect();
        b.set_tokens(&mut canvas, 0, &tokens).unwrap();
        // What lies behind the rows in use must not count.
        let room = 4 * draws + 4;
        let mut logits = tensor(b, &vec![f32::NAN; room * case.vocab], case.vocab);
        b.upload(&[], &mut logits);
        Self { step: b.step(capacity).unwrap(), canvas, logits, sampling: case.sampling }
    }

    /// Draws; drafts are reported as what the canvas holds.
    fn draw(&mut self, b: &B, phase: Phase, logits: &[f32], draws: &[Draw]) -> (Vec<Drawn>, Vec<u32>) {
        b.upload(logits, &mut self.logits);
        let mut step = Step {
            images: vec![Image { stream: STREAM, sampling: self.sampling, test: Test::Token }],
            ..Step::default()
        };
        match phase {
            Phase::Drafts => step.drafts = draws.to_vec(),
            Phase::Verdicts => step.verdicts = draws.to_vec(),
        }
        b.set_step(step, &mut self.step).unwrap();
        let (logits, canvas) = (&self.logits, &mut self.canvas);
        b.run(&mut self.step, &mut |b, step| b.draw(step, phase, logits, canvas, None));
        let drawn = if phase == Phase::Verdicts { b.drawn(&self.step, &self.canvas).unwrap() } else { Vec::new() };
        (drawn, b.tokens(&self.canvas, 0).unwrap())
    }
}

/// The settings that a vocabulary is drawn from with.
fn settings() -> Vec<Sampling> {
    vec![
        PLAIN,
        Sampling { cfg: 3.0, ..PLAIN },
        Sampling { cfg: 7.5, temperature: 0.7, ..PLAIN },
        Sampling { cfg: 2.0, temperature: 0.0, ..PLAIN },
        Sampling { cfg: 3.0, top_k: 50, ..PLAIN },
        Sampling { top_k: 1, ..PLAIN },
        Sampling { top_p: 0.3, ..PLAIN },
        Sampling { cfg: 5.0, temperature: 1.3, top_k: 100, top_p: 0.9 },
    ]
}

/// Draws on both backends, and compares.
fn compare(case: Case, draws: usize) {
    let (cuda, cpu) = (backend(), cpu());
    let positions = 2 * draws + 1;
    let (mut device, mut host) =
        (Easel::new(&*cuda, &case, positions, draws), Easel::new(&cpu, &case, positions, draws));
    let (first, second) = (case.logits(draws, 1), case.logits(draws, 2));
    let all = |rule, round| (0..draws).map(|i| case.draw(i, 2 * i + 1, rule, round)).collect::<Vec<_>>();

    let coupled = all(Rule::Coupled, 3);
    let got = device.draw(&*cuda, Phase::Verdicts, &first, &coupled);
    let want = host.draw(&cpu, Phase::Verdicts, &first, &coupled);
    for (i, draw) in coupled.iter().enumerate() {
        assert_eq!(got.0[i].before, want.0[i].before, "{case:?}, draw {i}");
        assert_eq!(got.0[i].after, got.1[2 * i + 1], "{case:?}, draw {i}: the canvas");
        assert_tie(&case, &first, draw, (Purpose::Token, 0), got.0[i].after, want.0[i].after);
    }

    let drafts = all(Rule::Draft, 0);
    let got = device.draw(&*cuda, Phase::Drafts, &first, &drafts).1;
    let want = host.draw(&cpu, Phase::Drafts, &first, &drafts).1;
    for draw in &drafts {
        let at = draw.position as usize;
        assert_tie(&case, &first, draw, (Purpose::Draft, 0), got[at], want[at]);
    }
    if got != want {
        return; // a tie went two ways: what follows depends on it
    }
    // In the second round q is the p of the first, in the third p is q: nothing may change.
    for (round, logits) in [&second, &first, &first].into_iter().enumerate() {
        let verdicts = all(Rule::AutoCorrect, round as u32);
        let got = device.draw(&*cuda, Phase::Verdicts, logits, &verdicts);
        assert_eq!(got, host.draw(&cpu, Phase::Verdicts, logits, &verdicts), "{case:?}, round {round}");
        if round == 2 {
            assert!(
                got.0.iter().all(|drawn| drawn.before == drawn.after),
                "{case:?}: a token of law p was corrected to p"
            );
        }
    }
}

/// Two tokens may differ where their scores lie closer than the noise is known.
fn assert_tie(case: &Case, logits: &[f32], draw: &Draw, (purpose, round): (Purpose, u32), got: u32, want: u32) {
    if got == want {
        return;
    }
    let mut noise = vec![0.0; case.vocab];
    STREAM.gumbel(purpose, round, draw.position as usize, &mut noise);
    let weights = case.weights(logits, draw);
    let score = |token: u32| weights[token as usize] + noise[token as usize];
    let gap = (score(got) - score(want)).abs();
    assert!(gap <= 2.0 * NOISE, "{case:?}: {got} instead of {want} at {}, {gap} apart", draw.position);
}

#[test]
fn tokens_are_those_of_the_cpu() {
    for sampling in settings() {
        for vocab in [512, 517] {
            compare(Case::new(vocab, sampling), 9);
        }
        compare(Case { two: true, ..Case::new(512, sampling) }, 3);
        compare(Case { grain: 0.5, ..Case::new(515, sampling) }, 5);
    }
}

#[test]
fn tokens_cling_as_on_the_cpu() {
    let (cuda, cpu, draws) = (backend(), cpu(), 24);
    let guided = Sampling { cfg: 3.0, top_k: 50, ..PLAIN };
    for (vocab, sampling, apart) in [(517, PLAIN, 0.4), (16_384, PLAIN, 0.4), (512, guided, 0.2)] {
        let case = Case::new(vocab, sampling);
        let (first, noise) = (case.logits(draws, 1), case.logits(draws, 2));
        // Near enough that the token of the first is often nearly the best of the second.
        let second: Vec<f32> = first.iter().zip(noise).map(|(first, noise)| first + apart * noise).collect();
        let all = |rule| (0..draws).map(|i| case.draw(i, i, rule, 0)).collect::<Vec<_>>();
        let (coupled, clinging) = (all(Rule::Coupled), all(Rule::Cling { slack: 1.5, penalty: 0.5 }));
        let (mut device, mut host) = (Easel::new(&*cuda, &case, draws, draws), Easel::new(&cpu, &case, draws, draws));
        device.draw(&*cuda, Phase::Verdicts, &first, &coupled);
        host.draw(&cpu, Phase::Verdicts, &first, &coupled);
        let got = device.draw(&*cuda, Phase::Verdicts, &second, &clinging);
        assert_eq!(got, host.draw(&cpu, Phase::Verdicts, &second, &clinging), "{case:?}");
        let without = host.draw(&cpu, Phase::Verdicts, &second, &coupled).1;
        let stayed = got.1.iter().zip(&without).filter(|(clung, best)| clung != best).count();
        let left = got.0.iter().filter(|drawn| drawn.before != drawn.after).count();
        assert!(stayed > 1 && left > 1, "{case:?}: {stayed} stayed, {left} left");
    }
}

#[test]
fn large_vocabularies_are_shared_by_blocks() {
    for (vocab, draws) in [(16_384, 3), (65_536, 1), (65_533, 1)] {
        compare(Case::new(vocab, Sampling { cfg: 3.0, ..PLAIN }), draws);
    }
    compare(Case { two: true, ..Case::new(16_384, PLAIN) }, 2);
}

#[test]
fn large_vocabularies_are_cut() {
    compare(Case::new(16_384, Sampling { cfg: 3.0, temperature: 0.9, top_k: 2000, top_p: 0.8 }), 1);
    compare(Case::new(16_384, Sampling { temperature: 0.0, ..PLAIN }), 1);
    compare(Case { grain: 0.25, ..Case::new(16_384, Sampling { top_p: 0.5, ..PLAIN }) }, 1);
}

#[test]
fn a_draw_does_not_depend_on_the_others() {
    let (cuda, case) = (backend(), Case::new(512, Sampling { cfg: 3.0, ..PLAIN }));
    let logits = case.logits(40, 1);
    let mut easel = Easel::new(&*cuda, &case, 40, 40);
    let all: Vec<Draw> = (0..40).map(|i| case.draw(i, i, Rule::Coupled, 0)).collect();
    let (together, _) = easel.draw(&*cuda, Phase::Verdicts, &logits, &all);
    // Fewer draws than the step before had: the rest of the grid has no work.
    for i in [0, 7, 39] {
        let (alone, tokens) = easel.draw(&*cuda, Phase::Verdicts, &logits, &all[i..=i]);
        assert_eq!((alone.len(), alone[0].after), (1, together[i].after));
        let others = tokens.iter().zip(&together).filter(|(token, drawn)| **token == drawn.after);
        assert_eq!(others.count(), 40, "tokens that were not drawn changed");
    }
    // Recorded for eight: the last is one of the step before.
    easel.draw(&cuda, Phase::Verdicts, &logits, &all[..8]);
    let (_, tokens) = easel.draw(&cuda, Phase::Verdicts, &case.logits(40, 2), &all[..7]);
    assert_eq!(tokens[7], together[7].after, "a draw of the step before was made again");
}

#[test]
fn drafts_follow_q_and_corrections_follow_p() {
    const DRAWS: usize = 2000;
    let q = [0.05_f32, 0.3, 0.01, 0.14, 0.2, 0.1, 0.1, 0.02, 0.03, 0.05];
    let p = [0.2_f32, 0.1, 0.05, 0.05, 0.05, 0.3, 0.0, 0.15, 0.02, 0.08];
    let cuda = backend();
    let case = Case::new(q.len(), PLAIN);
    let mut easel = Easel::new(&*cuda, &case, DRAWS, 1);
    let mut step = |phase, law: &[f32], rule, round| {
        let logits: Vec<f32> = law.iter().map(|p| p.ln()).collect();
        let draws: Vec<Draw> = (0..DRAWS).map(|i| case.draw(0, i, rule, round)).collect();
        easel.draw(&*cuda, phase, &logits, &draws)
    };
    assert_follows(&q, &step(Phase::Drafts, &q, Rule::Draft, 0).1);
    let (drawn, tokens) = step(Phase::Verdicts, &p, Rule::AutoCorrect, 0);
    assert_follows(&p, &tokens);
    // A token is kept with probability sum min(p, q), or drawn again by chance: no residual holds what was refused.
    let kept = drawn.iter().filter(|drawn| drawn.before == drawn.after).count() as f32 / DRAWS as f32;
    let expected: f32 = p.iter().zip(&q).map(|(p, q)| p.min(*q)).sum();
    let deviation = (expected * (1.0 - expected) / DRAWS as f32).sqrt();
    assert!((kept - expected).abs() < 5.0 * deviation, "{kept} kept, not {expected}");
    assert_follows(&q, &step(Phase::Verdicts, &q, Rule::AutoCorrect, 1).1);
    assert_follows(&p, &step(Phase::Verdicts, &p, Rule::Coupled, 0).1);
}

/// Pearson's test, at one in a million.
#[track_caller]
fn assert_follows(law: &[f32], tokens: &[u32]) {
    let count = |token: usize| tokens.iter().filter(|&&t| t as usize == token).count() as f32;
    let possible = law.iter().enumerate().filter(|(_, p)| **p > 0.0);
    assert!(law.iter().enumerate().all(|(token, p)| *p > 0.0 || count(token) == 0.0), "an impossible token");
    let statistic: f32 =
        possible.map(|(token, p)| (count(token) - p * tokens.len() as f32).powi(2) / (p * tokens.len() as f32)).sum();
    // Nine degrees of freedom at most.
    assert!(statistic < 44.8, "chi-square {statistic}");
}
