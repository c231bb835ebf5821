//! The law of the decoder on a pair of scalar models whose law is known, and the bias of its variants.

use super::criterion::{Criterion, Sigma};
use super::plan::Plan;
use super::*;
use crate::backend::cpu::{CpuBackend, Tensor};
use crate::backend::gaussian::{Law, Settlement};
use crate::backend::{Backend, Image, NONE, Step, Test};
use crate::rng::{Purpose, Stream};
use crate::sampling::Sampling;

/// A model of numbers: the mean of a position is `base + slope * mean of those that are known`, reached in two denoising
/// steps from shared noise; the first has deviation `wide`, the last `narrow`.
#[derive(Clone, Copy)]
struct Model {
    base: f32,
    slope: f32,
    wide: f32,
    narrow: f32,
}

/// Two models, and the numbers of an image, which the backend settles.
struct Scalars {
    target: Model,
    draft: Model,
    stream: Stream,
    /// One denoising step instead of two.
    one_step: bool,
    settlement: Settlement,
    backend: CpuBackend,
    latents: Tensor,
    laws: [Tensor; 2],
    verdicts: Tensor,
}

impl Model {
    fn law(&self, view: &View<'_>, latents: &[f32], normal: f32, one_step: bool) -> Law {
        let known = view.known.iter().map(|&position| latents[position]).sum::<f32>();
        let mean = self.base + self.slope * known / view.known.len().max(1) as f32;
        match one_step {
            true => Law { mean: vec![mean], log_deviation: vec![self.narrow.ln()], spread: 0.0 },
            false => Law {
                mean: vec![mean + self.wide * normal],
                log_deviation: vec![self.narrow.ln()],
                spread: f64::from(self.wide.ln()),
            },
        }
    }
}

impl Scalars {
    fn new([target, draft]: [Model; 2], one_step: bool, knobs: Knobs, stream: Stream, positions: usize) -> Self {
        let backend = CpuBackend::new();
        let zeros = |cols: usize| {
            let mut tensor = backend.tensor(positions, cols).unwrap();
            backend.upload(&vec![0.0; positions * cols], &mut tensor);
            tensor
        };
        let (latents, laws) = (zeros(1), [zeros(Law::cols(1)), zeros(Law::cols(1))]);
        let settlement = Settlement { criterion: knobs.criterion, noise: knobs.noise };
        Self { target, draft, stream, one_step, settlement, latents, laws, verdicts: zeros(1), backend }
    }
}

impl Pair for Scalars {
    fn pass(&mut self, side: Side, views: &[View<'_>]) -> Result<usize, Error> {
        let model = if side == Side::Target { self.target } else { self.draft };
        let sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
        let images = vec![Image { stream: self.stream, sampling, test: Test::Token }];
        let (mut step, backend) = (Step { images, ..Step::default() }, &self.backend);
        let latents = backend.read(&self.latents)?.into_owned();
        let mut laws = backend.read(&self.laws[side as usize])?.into_owned();
        for view in views {
            for goal in &view.goals {
                let mut normal = [0.0];
                self.stream.normal(Purpose::Denoise, 1, goal.position, &mut normal);
                let law = model.law(view, &latents, normal[0], self.one_step);
                let row = &mut laws[goal.position * Law::cols(1)..][..Law::cols(1)];
                row.copy_from_slice(&law.to_row());
                let (position, guidance) = (goal.position as u32, goal.guidance);
                let (conditional, unconditional) = (step.goals.len() as u32, NONE);
                step.goals.push(crate::backend::Goal {
                    image: 0,
                    position,
                    guidance,
                    conditional,
                    unconditional,
                    fate: view.fate,
                });
            }
        }
        backend.upload(&laws, &mut self.laws[side as usize]);
        let laws = [&self.laws[side as usize], &self.laws[Side::Draft as usize]];
        backend.settle(&step, self.settlement, latents.len(), laws, &mut self.latents, &mut self.verdicts);
        Ok(views.len())
    }

    fn verdicts(&mut self) -> Result<Vec<bool>, Error> {
        Ok(self.backend.read(&self.verdicts)?.iter().map(|&verdict| verdict > 0.0).collect())
    }

    fn latents(&mut self) -> Result<Vec<f32>, Error> {
        Ok(self.backend.read(&self.latents)?.into_owned())
    }
}

const TARGET: Model = Model { base: 0.3, slope: 0.8, wide: 0.7, narrow: 0.5 };
const DRAFT: Model = Model { base: 0.0, slope: 0.6, wide: 0.5, narrow: 0.8 };
const POSITIONS: usize = 5;
const SEEDS: u64 = 20_000;
const EXACT: Criterion = Criterion { sigma: Sigma::One, temper: 1.0 };

fn knobs(drafts: usize, schedule: Schedule, criterion: Criterion) -> Knobs {
    Knobs { drafts, schedule, criterion, prefill: 0.0, rounds: POSITIONS, steps: 2, noise: true }
}

fn decode(target: Model, draft: Model, one_step: bool, knobs: Knobs, seed: u64) -> Outcome {
    let stream = Stream { seed, image: 0 };
    let plan = Plan::over((0..POSITIONS).collect(), knobs.rounds, 1.0);
    run(&mut Scalars::new([target, draft], one_step, knobs, stream, POSITIONS), &plan, knobs, &mut |_| ()).unwrap()
}

/// Largest distance between the distribution functions of two samples.
fn kolmogorov_smirnov(mut a: Vec<f32>, mut b: Vec<f32>) -> f64 {
    a.sort_by(f32::total_cmp);
    b.sort_by(f32::total_cmp);
    let below = |sample: &[f32], x: f32| sample.partition_point(|y| *y <= x) as f64 / sample.len() as f64;
    a.iter().chain(&b).map(|&x| (below(&a, x) - below(&b, x)).abs()).fold(0.0, f64::max)
}

/// Of two samples of the size of these tests, of one law: exceeded once in 10^5.
fn bound() -> f64 {
    (-0.5 * (0.5e-5f64).ln()).sqrt() * (2.0 / SEEDS as f64).sqrt()
}

/// What is looked at of a picture: each position, neighbours together, all of them.
const STATISTICS: usize = 2 * POSITIONS;

fn statistics(latents: &[f32]) -> [f32; STATISTICS] {
    std::array::from_fn(|index| match index {
        0..POSITIONS => latents[index],
        POSITIONS => latents.iter().sum(),
        _ => latents[index - POSITIONS] - latents[index - POSITIONS - 1],
    })
}

/// Largest distance from plain decoding with other seeds, over all statistics.
fn distance(one_step: bool, knobs: Knobs) -> f64 {
    let sample = |knobs: Knobs, first: u64| -> Vec<[f32; STATISTICS]> {
        let seeds = first..first + SEEDS;
        seeds.map(|seed| statistics(&decode(TARGET, DRAFT, one_step, knobs, seed).latents)).collect()
    };
    let plain = Knobs { drafts: 0, ..knobs };
    let (ours, theirs) = (sample(knobs, 0), sample(plain, 1 << 32));
    let of = |sample: &[[f32; STATISTICS]], index: usize| sample.iter().map(|s| s[index]).collect();
    (0..STATISTICS).map(|index| kolmogorov_smirnov(of(&ours, index), of(&theirs, index))).fold(0.0, f64::max)
}

/// The target itself, by arithmetic: the first position is a Gaussian whose moments are known.
#[test]
fn plain_decoding_has_the_law_of_the_target() {
    let plain = knobs(0, Schedule::Truncate, EXACT);
    for (one_step, variance) in [(true, 0.25), (false, 0.25 + 0.49)] {
        let first: Vec<f64> =
            (0..SEEDS).map(|seed| f64::from(decode(TARGET, DRAFT, one_step, plain, seed).latents[0])).collect();
        let mean = first.iter().sum::<f64>() / SEEDS as f64;
        let square = first.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / SEEDS as f64;
        assert!((mean - 0.3).abs() < 0.03 && (square / variance - 1.0).abs() < 0.05, "{mean}, {square}");
    }
}

#[test]
fn the_exact_criterion_has_the_law_of_the_target() {
    for (one_step, drafts) in [(true, 1), (true, 3), (false, 1), (false, 3), (false, 9)] {
        let apart = distance(one_step, knobs(drafts, Schedule::Truncate, EXACT));
        assert!(apart < bound(), "one step {one_step}, {drafts} drafts: {apart} of {}", bound());
    }
}

/// Of one step there is no Sigma, so all conventions are exact. (Not where a position is drafted from one context and judged
/// in another: the fixed schedule.)
#[test]
fn of_one_denoising_step_every_sigma_is_exact() {
    for sigma in [Sigma::Paper, Sigma::Code] {
        let apart = distance(true, knobs(3, Schedule::Truncate, Criterion { sigma, temper: 1.0 }));
        assert!(apart < bound(), "{sigma:?}: {apart}");
    }
}

/// The fixed schedule draws positions in a context that is older than it should be; one draft at a time is exact.
#[test]
fn the_fixed_schedule_is_exact_for_single_drafts_only() {
    assert!(distance(false, knobs(1, Schedule::Fixed, EXACT)) < bound());
    assert!(distance(false, knobs(3, Schedule::Fixed, EXACT)) > 2.0 * bound());
}

/// What is not exact, and how far it is off; `--nocapture` prints the table of the documentation.
#[test]
fn variants_are_biased_as_documented() {
    println!("{:.4}: 1 in 100000 samples of one law are further apart", bound());
    let of = |sigma, temper| Criterion { sigma, temper };
    for (name, one_step, criterion) in [
        ("sigma=paper, two steps", false, of(Sigma::Paper, 1.0)),
        ("sigma=code, two steps", false, of(Sigma::Code, 1.0)),
        ("temper=42, one step", true, of(Sigma::One, 42.0)),
        ("temper=42, two steps", false, of(Sigma::One, 42.0)),
        ("sigma=paper:temper=42, two steps", false, of(Sigma::Paper, 42.0)),
        ("sigma=code:temper=42, two steps", false, of(Sigma::Code, 42.0)),
    ] {
        let apart = distance(one_step, knobs(3, Schedule::Truncate, criterion));
        let outcomes =
            (0..2000).map(|seed| decode(TARGET, DRAFT, one_step, knobs(3, Schedule::Truncate, criterion), seed));
        let (kept, all) = outcomes.fold((0, 0), |(kept, all), o| (kept + o.stats.accepted, all + o.stats.drafted));
        println!("{name}: {apart:.3}, {:.0}% accepted", 100.0 * kept as f64 / all as f64);
        assert!(apart > bound(), "{name}: {apart}");
    }
}

/// Mutants of the exact criterion that the distance must show, on laws of one step.
#[test]
fn mutants_of_the_criterion_are_caught() {
    let (p, q) = (
        Law { mean: vec![0.3], log_deviation: vec![0.5f32.ln()], spread: 0.4 },
        Law { mean: vec![0.0], log_deviation: vec![0.8f32.ln()], spread: 0.0 },
    );
    type Rule<'a> = &'a dyn Fn(&Law, &Law, &[f32], f32, Stream) -> Option<Vec<f32>>;
    let law = |rule: Rule<'_>| {
        let one = |seed| {
            let stream = Stream { seed, image: 0 };
            let mut normal = [0.0];
            stream.normal(Purpose::Denoise, 0, 0, &mut normal);
            let x = q.at(&normal);
            rule(&p, &q, &x, stream.uniform(Purpose::Accept, 0, 0), stream).unwrap_or(x)[0]
        };
        let plain = |seed| {
            let mut normal = [0.0];
            Stream { seed, image: 0 }.normal(Purpose::Denoise, 0, 0, &mut normal);
            p.at(&normal)[0]
        };
        kolmogorov_smirnov((0..SEEDS).map(one).collect(), (SEEDS..2 * SEEDS).map(plain).collect())
    };
    let with = |criterion: Criterion| {
        move |p: &Law, q: &Law, x: &[f32], uniform, stream| {
            (!criterion.passes(p, q, x, uniform)).then(|| criterion.residual(p, q, stream, 0))
        }
    };
    assert!(law(&with(EXACT)) < bound());
    // Sigma of deviations before the last step, either way up.
    for sigma in [Sigma::Paper, Sigma::Code] {
        assert!(law(&with(Criterion { sigma, temper: 1.0 })) > 2.0 * bound(), "{sigma:?}");
    }
    // The deviations of the last step, the other way up.
    let inverted: Rule<'_> = &|p, q, x, uniform, stream| {
        let upside_down = |law: &Law, x: &[f32]| law.log_density(x, 1.0) + 2.0 * f64::from(law.log_deviation[0]);
        let passes = f64::from(uniform).ln() < upside_down(p, x) - upside_down(q, x);
        (!passes).then(|| EXACT.residual(p, q, stream, 0))
    };
    assert!(law(inverted) > 2.0 * bound(), "deviations inverted");
    let from_p: Rule<'_> = &|p, q, x, uniform, stream| {
        (!EXACT.passes(p, q, x, uniform)).then(|| {
            let mut normal = [0.0];
            stream.normal(Purpose::Residual, 0, 0, &mut normal);
            p.at(&normal)
        })
    };
    assert!(law(from_p) > 2.0 * bound(), "p in place of the residual");
    let of_q: Rule<'_> =
        &|p, q, x, uniform, stream| (!EXACT.passes(p, q, x, uniform)).then(|| EXACT.residual(q, p, stream, 0));
    assert!(law(of_q) > 2.0 * bound(), "the residual of q");
    let unjudged: Rule<'_> = &|_, _, _, _, _| None;
    assert!(law(unjudged) > 2.0 * bound(), "everything accepted");
}

/// A draft that is the target: everything passes, in each context of its own, and the picture is plain decoding's.
#[test]
fn a_draft_that_is_the_target_is_accepted() {
    for seed in 0..200 {
        let plain = decode(TARGET, TARGET, false, knobs(0, Schedule::Truncate, EXACT), seed);
        assert_eq!((plain.stats.nfe, plain.stats.drafted), (POSITIONS, 0));
        for criterion in
            [EXACT, Criterion { sigma: Sigma::Paper, temper: 1.0 }, Criterion { sigma: Sigma::Code, temper: 42.0 }]
        {
            for (drafts, schedule) in
                [(1, Schedule::Truncate), (2, Schedule::Truncate), (9, Schedule::Truncate), (1, Schedule::Fixed)]
            {
                let ours = decode(TARGET, TARGET, false, knobs(drafts, schedule, criterion), seed);
                assert_eq!(ours.latents, plain.latents, "{drafts} drafts, {schedule:?}");
                assert_eq!(ours.stats.accepted, ours.stats.drafted);
            }
        }
        // Two drafts and the target's own after each pass, then the last two.
        let ours = decode(TARGET, TARGET, false, knobs(2, Schedule::Truncate, EXACT), seed);
        assert_eq!((ours.stats.nfe, ours.stats.draft.passes, ours.stats.drafted), (2, 4, 4));
        // All positions but the target's own were judged.
        assert_eq!(ours.first, [Some(true), Some(true), None, Some(true), Some(true)]);
    }
}

/// A draft that never passes: a pass for each step, whose positions the target draws.
#[test]
fn a_draft_that_fails_costs_a_pass_for_each_step() {
    let far = Model { base: 1e4, ..DRAFT };
    let ours = decode(TARGET, far, false, knobs(2, Schedule::Truncate, EXACT), 1);
    assert_eq!((ours.stats.nfe, ours.stats.accepted, ours.stats.drafted), (POSITIONS, 0, POSITIONS));
    // The draft's: two for each of the first four, one for the last.
    assert_eq!(ours.stats.draft.passes, 9);
    assert!(ours.latents.iter().all(|x| x.abs() < 100.0));
}

/// The passes of the fixed schedule are those of the formula of the published speed-ups, whatever is accepted.
#[test]
fn the_fixed_schedule_makes_the_passes_of_its_formula() {
    let far = Model { base: 1e4, ..DRAFT };
    for (rounds, drafts, prefill) in [(40, 4, 0.1), (40, 9, 0.1), (64, 8, 0.125), (20, 19, 0.05)] {
        for draft in [DRAFT, far] {
            let knobs = Knobs { rounds, prefill, ..knobs(drafts, Schedule::Fixed, EXACT) };
            let stream = Stream { seed: 0, image: 0 };
            let plan = Plan::new(200, rounds, 1.0, stream);
            assert_eq!(plan.steps.len(), rounds);
            let mut pair = Scalars::new([TARGET, draft], true, knobs, stream, 200);
            let stats = run(&mut pair, &plan, knobs, &mut |_| ()).unwrap().stats;
            for cost in [0.2, 0.65] {
                let time = stats.nfe as f64 + cost * stats.draft.passes as f64;
                let formula = plan::fixed_speed_up(prefill, drafts as f64, cost);
                assert!((rounds as f64 / time / formula - 1.0).abs() < 1e-9, "{rounds}, {drafts}: {stats:?}");
            }
        }
    }
}
