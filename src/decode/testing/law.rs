//! The law of every decoder on the toy model, mutants that must not have it, and step counts that follow from arithmetic.

use super::*;
use crate::backend::PoolBound;
use crate::decode::acceptance::Coupling;
use crate::decode::ar::Ar;
use crate::decode::eagle::Eagle;
use crate::decode::jacobi::{self, Jacobi};
use crate::decode::pipeline::{Knobs, Wave};
use crate::decode::ssd::{self, Ssd};
use crate::decode::static_tree::Plan;
use crate::decode::window::Guess;
use crate::decode::{Acceptance::*, drafter, dynamic_tree, lanes, mulo, static_tree, zipar};

const SEEDS: u64 = 40_000;

/// The law of the toy model.
fn law() -> Vec<f64> {
    Toy::new(2, 2, 4, Coupled, 0).law()
}

/// How often each grid comes out.
fn counts(acceptance: Acceptance, mutant: Option<Mutant>, schedule: impl Fn(&Toy) -> Box<dyn Schedule>) -> Vec<usize> {
    let mut counts = vec![0; 256];
    for seed in 0..SEEDS {
        let mut toy = Toy { mutant, ..Toy::new(2, 2, 4, acceptance, seed) };
        if let Judged(Test::Pooled { neighbours: 1.., .. }) = acceptance {
            toy.codebook = Some(Codebook::new(&[0.0, 1.0, 3.0, 3.5], 1, 3));
        }
        let tokens = toy.decode(&mut *schedule(&toy)).tokens;
        counts[toy.code(&tokens)] += 1;
    }
    counts
}

fn wave(rounds: Option<u32>) -> impl Fn(&Toy) -> Box<dyn Schedule> {
    coupled_wave(rounds, Coupling::Gumbel)
}

fn coupled_wave(rounds: Option<u32>, coupling: Coupling) -> impl Fn(&Toy) -> Box<dyn Schedule> {
    let drafter = drafter::SpatialDrafter { preference: drafter::Preference::Both };
    let knobs = Knobs {
        lag: 1.0,
        slope: 0.5,
        window: 2.0,
        rounds,
        reach: None,
        drafter,
        coupling,
        relaxation: None,
        slack: 0.0,
        early: None,
        penalty: 0.0,
        tree: 0,
    };
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

fn jacobi(window: usize, guess: Guess, chain: bool) -> impl Fn(&Toy) -> Box<dyn Schedule> {
    move |toy| Box::new(Jacobi::new(toy.scene(), jacobi::Knobs { window, guess }, chain))
}

const TOKEN: Acceptance = Judged(Test::Token);

#[test]
fn jacobi_decoders_have_the_law_of_the_model() {
    let law = law();
    for guess in [Guess::Random, Guess::Left, Guess::Above] {
        assert!(follows(&law, &counts(TOKEN, None, jacobi(3, guess, true))), "sjd from {guess}");
    }
    assert!(follows(&law, &counts(TOKEN, None, jacobi(4, Guess::Random, true))), "sjd, all at once");
    assert!(follows(&law, &counts(TOKEN, None, jacobi(3, Guess::Random, false))), "scd, maximal coupling");
    assert!(follows(&law, &counts(TOKEN, None, jacobi(4, Guess::Left, false))), "scd, all at once");
    assert!(follows(&law, &counts(Coupled, None, jacobi(3, Guess::Random, false))), "scd, Gumbel coupling");
}

#[test]
fn a_maximally_coupled_wavefront_has_the_law_of_the_model() {
    assert!(follows(&law(), &counts(TOKEN, None, coupled_wave(None, Coupling::Maximal))));
}

/// With a threshold that nothing passes every token is drawn again, in raster order and in its context.
#[test]
fn a_mulo_that_rejects_everything_has_the_law_of_the_model() {
    let law = law();
    let nothing = Judged(Test::Threshold { neighbours: 0, least: 1.5 });
    for (rows, radius, refresh) in [(1, 0, false), (2, 3, false), (2, 0, true)] {
        let knobs = mulo::testing::knobs(rows, radius, mulo::Resample::Serial, refresh);
        let counts =
            counts(nothing, None, move |toy| Box::new(mulo::MuLo::new(toy.scene(), knobs)) as Box<dyn Schedule>);
        assert!(follows(&law, &counts), "{rows} rows, radius {radius}, refresh {refresh}");
    }
    // What passes does not have the law, and the test is sharp enough to see it.
    let knobs = mulo::testing::knobs(2, 0, mulo::Resample::Serial, false);
    let some = Judged(Test::Threshold { neighbours: 0, least: 0.3 });
    assert!(!follows(&law, &counts(some, None, move |toy| Box::new(mulo::MuLo::new(toy.scene(), knobs)))));
}

fn static_tree(plan: static_tree::Plan, nodes: usize) -> impl Fn(&Toy) -> Box<dyn Schedule> {
    let knobs = static_tree::Knobs { plan, nodes, depth: 3 };
    move |toy| Box::new(Eagle::new(toy.grid(), static_tree::StaticTree::new(&knobs)))
}

fn dynamic_tree(nodes: usize, depth: usize, top: usize) -> impl Fn(&Toy) -> Box<dyn Schedule> {
    let knobs = dynamic_tree::Knobs { nodes, depth, top };
    move |toy| Box::new(Eagle::new(toy.grid(), dynamic_tree::DynamicTree::new(toy.grid(), knobs)))
}

#[test]
fn trees_have_the_law_of_the_model() {
    let law = law();
    assert!(follows(&law, &counts(TOKEN, None, static_tree(Plan::Tuned, 9))), "eagle1");
    assert!(follows(&law, &counts(TOKEN, None, static_tree(Plan::Paper, 0))), "eagle1, every token a child");
    assert!(follows(&law, &counts(TOKEN, None, dynamic_tree(6, 3, 2))), "eagle2");
    assert!(follows(&law, &counts(TOKEN, None, dynamic_tree(20, 2, 4))), "eagle2, every token a child");
}

#[test]
fn mutants_of_trees_are_caught() {
    let law = law();
    let mutant =
        |mutant, schedule: &dyn Fn(&Toy) -> Box<dyn Schedule>| follows(&law, &counts(TOKEN, Some(mutant), schedule));
    assert!(!mutant(Mutant::SameTree, &static_tree(Plan::Tuned, 3)), "noise of another tree");
    assert!(!mutant(Mutant::Orphan, &static_tree(Plan::Tuned, 9)), "a parent unseen, eagle1");
    assert!(!mutant(Mutant::Orphan, &dynamic_tree(6, 3, 2)), "a parent unseen, eagle2");
}

#[test]
fn trees_save_passes_and_lantern_without_neighbours_is_eagle() {
    let none = |bound| Judged(Test::Pooled { neighbours: 0, bound });
    for seed in 0..50 {
        let run = |acceptance, schedule: &dyn Fn(&Toy) -> Box<dyn Schedule>| {
            let mut toy = Toy::new(5, 7, 6, acceptance, seed);
            let mut schedule = schedule(&toy);
            let outcome = toy.decode(&mut *schedule);
            assert_eq!(schedule.done(), 35);
            outcome
        };
        let (fixed, dynamic) = (static_tree(Plan::Paper, 0), dynamic_tree(12, 4, 4));
        let (eagle1, eagle2) = (run(TOKEN, &fixed), run(TOKEN, &dynamic));
        assert_eq!(run(none(PoolBound::Ratio(3.0)), &fixed), eagle1);
        assert_eq!(run(none(PoolBound::Mass(0.5)), &dynamic), eagle2);
        assert!(eagle1.stats.nfe < 30 && eagle2.stats.nfe < 30, "{:?} {:?}", eagle1.stats, eagle2.stats);
        assert_eq!(eagle1.first.iter().filter(|first| first.is_some()).count(), eagle1.stats.drafted);
    }
}

#[test]
fn mutants_of_the_rules_are_caught() {
    let law = law();
    for chain in [true, false] {
        let mutant = |mutant| follows(&law, &counts(TOKEN, Some(mutant), jacobi(4, Guess::Random, chain)));
        assert!(!mutant(Mutant::NoResidual), "p instead of the residual, chain {chain}");
    }
    // The released code of SCD keeps the old law of what it accepts beyond the first rejection.
    let stale = counts(TOKEN, Some(Mutant::StaleLaw), jacobi(4, Guess::Random, false));
    assert!(!follows(&law, &stale), "a stale law");
    assert!(!follows(&law, &counts(TOKEN, Some(Mutant::StaleLaw), coupled_wave(None, Coupling::Maximal))));
    assert!(!follows(&law, &counts(TOKEN, Some(Mutant::NoResidual), coupled_wave(None, Coupling::Maximal))));
    assert!(!follows(&law, &counts(TOKEN, None, coupled_wave(Some(1), Coupling::Maximal))), "one round");
}

/// Total variation between the law of the model and that of a decoder's samples, and how much of it is sampling
/// noise: what as many samples of the model itself show.
#[test]
fn relaxed_decoders_diverge() {
    let law = law();
    let distance = |acceptance, schedule: &dyn Fn(&Toy) -> Box<dyn Schedule>| {
        let counts = counts(acceptance, None, schedule);
        let away = law.iter().zip(&counts).map(|(p, &count)| (p - count as f64 / SEEDS as f64).abs());
        away.sum::<f64>() / 2.0
    };
    let lanes = |context, window, adaptive| {
        let shape = lanes::Shape { context, window, guess: Guess::Random, adaptive };
        move |toy: &Toy| -> Box<dyn Schedule> { Box::new(lanes::Lanes::new(toy.scene(), shape)) }
    };
    let gsd = |size| Judged(Test::Grouped { size, delta: f32::INFINITY, distance: f32::INFINITY });
    let pooled = |neighbours, bound| Judged(Test::Pooled { neighbours, bound });
    let paper = |rounds| {
        let knobs = ssd::Knobs { rounds, ..ssd::Knobs::default() };
        move |toy: &Toy| -> Box<dyn Schedule> { Box::new(Ssd::new(toy.grid(), toy.heads(), &knobs)) }
    };
    let scales = |least, radius| {
        let knobs = mulo::testing::knobs(1, radius, mulo::Resample::Parallel, false);
        let test = Judged(Test::Threshold { neighbours: 0, least });
        distance(test, &move |toy: &Toy| -> Box<dyn Schedule> { Box::new(mulo::MuLo::new(toy.scene(), knobs)) })
    };
    let clinging = |slack, penalty| Acceptance::Clinging { slack, early: 1.0, penalty };
    let measured = [
        ("ar", distance(Coupled, &|toy| Box::new(Ar::new(toy.grid())))),
        ("gsd:g=2", distance(gsd(2), &jacobi(3, Guess::Random, true))),
        ("gsd:g=4", distance(gsd(4), &jacobi(3, Guess::Random, true))),
        ("zipar:window=1", distance(Coupled, &lanes(1, 1, false))),
        ("zipar:window=1:adaptive=1", distance(TOKEN, &lanes(1, 1, true))),
        ("pjd:threshold=1:drafts=2", distance(TOKEN, &lanes(1, 3, false))),
        ("mulo-sd:rows=1:pool=0:tau=0.1:radius=0", scales(0.1, 0)),
        ("mulo-sd:rows=1:pool=0:tau=0.3:radius=0", scales(0.3, 0)),
        ("mulo-sd:rows=1:pool=0:tau=0.3:radius=1", scales(0.3, 1)),
        ("mulo-sd:rows=1:pool=0:tau=0.6:radius=1", scales(0.6, 1)),
        ("ssd:rounds=1", distance(TOKEN, &paper(1))),
        ("ssd", distance(TOKEN, &paper(2))),
        ("eagle1", distance(TOKEN, &static_tree(Plan::Tuned, 9))),
        ("eagle2", distance(TOKEN, &dynamic_tree(6, 3, 2))),
        ("lantern:k=1:delta=0.1", distance(pooled(1, PoolBound::Mass(0.1)), &dynamic_tree(6, 3, 2))),
        ("lantern:k=3:delta=0.4", distance(pooled(3, PoolBound::Mass(0.4)), &dynamic_tree(6, 3, 2))),
        ("lantern++:k=1:lambda=2", distance(pooled(1, PoolBound::Ratio(2.0)), &static_tree(Plan::Tuned, 9))),
        ("lantern++:k=3:lambda=5", distance(pooled(3, PoolBound::Ratio(5.0)), &static_tree(Plan::Tuned, 9))),
        ("wavefront:rounds=1:slack=0", distance(Coupled, &wave(Some(1)))),
        ("wavefront:slack=1:penalty=0", distance(clinging(1.0, 0.0), &wave(None))),
        ("wavefront:slack=1", distance(clinging(1.0, 0.6), &wave(None))),
        ("wavefront", distance(clinging(3.0, 0.6), &wave(None))),
    ];
    // The table of docs/decoders.md.
    for (name, distance) in measured {
        println!("| `{name}` | {distance:.3} |");
        // Two rounds are enough for rows of two tokens.
        assert_eq!(distance < 0.03, ["ar", "ssd", "eagle1", "eagle2"].contains(&name), "{name}: {distance}");
    }
}

#[test]
fn groups_of_one_are_sjd() {
    let one = Judged(Test::Grouped { size: 1, delta: f32::INFINITY, distance: f32::INFINITY });
    for seed in 0..200 {
        let run = |acceptance| {
            let mut toy = Toy::new(5, 7, 6, acceptance, seed);
            let mut schedule = jacobi(8, Guess::Random, true)(&toy);
            toy.decode(&mut *schedule)
        };
        assert_eq!(run(one), run(TOKEN));
    }
}

#[test]
fn coupled_jacobi_returns_the_tokens_of_ar() {
    for seed in 0..40 {
        let run = |schedule: &dyn Fn(&Toy) -> Box<dyn Schedule>| {
            let mut toy = Toy::new(5, 7, 6, Coupled, seed);
            let mut schedule = schedule(&toy);
            toy.decode(&mut *schedule)
        };
        let plain = run(&|toy| Box::new(Ar::new(toy.grid())));
        for (window, guess) in [(1, Guess::Left), (2, Guess::Random), (9, Guess::Above), (100, Guess::Random)] {
            let coupled = run(&jacobi(window, guess, false));
            assert_eq!(coupled.tokens, plain.tokens, "seed {seed}, window {window}");
            assert!(coupled.stats.nfe <= plain.stats.nfe && window > 1 || coupled.stats.nfe == plain.stats.nfe);
        }
    }
}

#[test]
fn zipar_makes_exactly_the_passes_of_its_formula() {
    let passes = |height, width, window| {
        let shape = zipar::Knobs { window, adaptive: false }.shape();
        let mut toy = Toy::new(height, width, 4, Coupled, 1);
        let mut schedule = lanes::Lanes::new(toy.scene(), shape);
        toy.decode(&mut schedule).stats.nfe
    };
    for (height, width, window) in [(24, 24, 6), (5, 7, 1), (5, 7, 6), (1, 9, 3), (4, 2, 1)] {
        assert_eq!(passes(height, width, window), width + window * (height - 1));
    }
    // Emu3, 90x90, window 7: 713 passes.
    assert_eq!(passes(90, 90, 7), 713);
}

#[test]
fn lanes_fill_every_position_whatever_their_shape() {
    for (context, window, adaptive) in [(1, 1, true), (3, 4, false), (6, 9, false), (100, 3, false), (2, 5, true)] {
        for seed in 0..20 {
            let mut toy = Toy::new(5, 7, 6, TOKEN, seed);
            let shape = lanes::Shape { context, window, guess: Guess::Left, adaptive };
            let mut schedule = lanes::Lanes::new(toy.scene(), shape);
            let outcome = toy.decode(&mut schedule);
            assert_eq!(schedule.done(), 35);
            // One row can be no faster than its windows, and no slower than plain AR.
            assert!(outcome.stats.nfe <= 7 + 5 * 7 && outcome.stats.nfe >= 5, "{:?}", outcome.stats);
        }
    }
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
    assert!(!follows(&law, &counts(Judged(Test::Token), None, ssd)), "one round of auto correction");
}

#[test]
fn ssd_makes_exactly_the_passes_of_the_step_model() {
    for (height, width, rounds, rows_per_block, refinements) in
        [(24, 24, 0, 1, 0), (24, 24, 1, 1, 0), (24, 24, 2, 1, 0), (6, 7, 5, 2, 4), (6, 7, 3, 2, 0)]
    {
        let knobs = ssd::Knobs { rounds, rows_per_block, refinements };
        let mut toy = Toy::new(height, width, 4, Judged(Test::Token), 1);
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
