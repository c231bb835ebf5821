//! Draft trees: children and siblings are those of the CPU backend.

use std::collections::BTreeSet;

use weft::backend::{CHILDREN, Chosen, Draw, Drawn, NONE, PoolBound, Put, Rule, Test};
use weft::sampling::Sampling;

use crate::draw::{Case, NOISE, PLAIN};
use crate::support::{Noise, backend, bits, cpu};
use crate::verify::{Bench, Round};

/// Before a tree's nodes there is a grid of five positions.
const GRID: usize = 5;

/// Logits of so many nodes, and others that are half those.
fn drafted_and_true(case: &Case, nodes: usize) -> Vec<f32> {
    let mut logits = case.logits(nodes, 3);
    let other: Vec<f32> = logits.iter().zip(Noise(4).values(logits.len())).map(|(x, y)| 0.5 * x + 4.0 * y).collect();
    logits.extend(other);
    logits
}

/// Nodes of so many children each are drawn, or chosen, and judged by each test on both backends. Returns which child
/// passed.
fn compare(case: Case, nodes: usize, children: u32, tests: &[Test]) -> BTreeSet<u32> {
    let (cuda, cpu) = (backend(), cpu());
    let places = GRID + nodes * children as usize;
    let logits = drafted_and_true(&case, nodes);
    let vectors = Noise(5).values(case.vocab * 3);
    let table = (&vectors[..], 3, case.vocab.min(100) - 1);
    let mut device = Bench::new(&*cuda, &case, places, &logits, table);
    let mut host = Bench::new(&cpu, &case, places, &logits, table);
    let mut passed = BTreeSet::new();
    let first = |node: usize| (GRID + node * children as usize) as u32;
    for (round, &test) in tests.iter().enumerate() {
        for drawn in [true, false] {
            let rule = if drawn { Rule::Children { count: children } } else { Rule::Likeliest { count: children } };
            let draft = |node: usize| case.draw(node, first(node) as usize, rule, round as u32);
            let plan = Round { drafts: (0..nodes).map(draft).collect(), ..Round::default() };
            let (got, want) = (device.round(&*cuda, &plan, test).1, host.round(&cpu, &plan, test).1);
            assert_eq!(got, want, "{case:?}: {children} children, drawn: {drawn}");
            // Nodes share a position.
            let verdict = |node: usize| {
                let rule = Rule::Siblings { first: first(node), count: children, drawn };
                case.draw(nodes + node, node % GRID, rule, round as u32)
            };
            let plan = Round { verdicts: (0..nodes).map(verdict).collect(), ..Round::default() };
            let (got, want) = (device.round(&*cuda, &plan, test), host.round(&cpu, &plan, test));
            assert_eq!(got, want, "{case:?}, {test:?}: {children} siblings, drawn: {drawn}");
            passed.extend(got.0.iter().map(|drawn| drawn.before));
            for (node, Drawn { before, after }) in got.0.iter().enumerate().filter(|(_, d)| d.before != NONE) {
                assert_eq!(*after, got.1[(first(node) + before) as usize], "the token of the child that passed");
            }
        }
    }
    passed
}

/// The settings that trees are drawn with: all tokens, and those that two cut laws share.
fn cases() -> [Case; 2] {
    let cut = Sampling { cfg: 1.5, temperature: 4.0, top_k: 200, top_p: 0.95 };
    [Case::new(64, Sampling { temperature: 3.0, ..PLAIN }), Case { two: true, ..Case::new(517, cut) }]
}

#[test]
fn siblings_are_judged_as_on_the_cpu() {
    let tests = [Test::Token, Test::Threshold { neighbours: 5, least: 0.3 }, Test::Token];
    let mut passed = BTreeSet::new();
    for case in cases() {
        passed.extend(compare(case, 16, 4, &tests));
        compare(case, 5, 1, &tests[..2]);
    }
    assert_eq!(passed, BTreeSet::from([0, 1, 2, 3, NONE]), "each child passed once, or none did");
    // Of few tokens, what is left of q after a child differs much from q.
    compare(Case::new(7, Sampling { temperature: 5.0, ..PLAIN }), 48, 4, &tests[..1]);
}

#[test]
fn siblings_are_pooled_and_grouped_as_on_the_cpu() {
    let pooled = |neighbours, bound| Test::Pooled { neighbours, bound };
    let grouped = |size, delta, distance| Test::Grouped { size, delta, distance };
    let tests = [
        pooled(10, PoolBound::Mass(0.1)),
        pooled(60, PoolBound::Ratio(3.0)),
        grouped(5, 0.1, f32::INFINITY),
        grouped(14, 1.0, 4.0),
    ];
    for case in cases() {
        let passed = compare(case, 8, 3, &tests);
        assert!(passed.len() > 2, "{passed:?} of three children passed");
    }
}

#[test]
fn there_may_be_fewer_tokens_than_children() {
    let grouped = Test::Grouped { size: 2, delta: f32::INFINITY, distance: f32::INFINITY };
    compare(Case::new(64, Sampling { top_k: 3, ..PLAIN }), 24, 6, &[Test::Token, grouped]);
    compare(Case::new(64, Sampling { temperature: 0.0, ..PLAIN }), 6, 3, &[Test::Token]);
}

#[test]
fn trees_of_large_vocabularies() {
    compare(Case::new(16_384, Sampling { cfg: 3.0, ..PLAIN }), 1, 10, &[Test::Token]);
}

/// What two backends chose, as `Backend::chosen` says, and three times the noise of what is foreseen: a token's, and that of
/// all exponentials.
fn assert_chosen(case: &Case, got: &[Chosen], want: &[Chosen]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        let (log, bound) = (want.log_probability, (2 * case.vocab + 64) as f32 * 0.5f32.powi(24) + 3.0 * NOISE);
        let near = got.log_probability == log || (got.log_probability - log).abs() <= bound * log.abs().max(1.0);
        assert!(got.token == want.token && near, "{case:?}: {got:?} instead of {want:?}");
    }
}

/// The likeliest of several nodes, in both phases.
fn choose(case: Case, count: u32) {
    let (cuda, cpu) = (backend(), cpu());
    let nodes = 4;
    let places = GRID + nodes * count as usize;
    let logits = drafted_and_true(&case, nodes);
    let table = (&vec![0.0; case.vocab][..], 1, 0);
    let mut device = Bench::new(&*cuda, &case, places, &logits, table);
    let mut host = Bench::new(&cpu, &case, places, &logits, table);
    let likeliest = |node: usize| case.draw(node, GRID + node * count as usize, Rule::Likeliest { count }, 0);
    let all: Vec<Draw> = (0..nodes).map(likeliest).collect();
    let mut together = Vec::new();
    // Drafts and verdicts, each with draws of other rules before them; then each alone.
    let lone = |at, rule| case.draw(nodes + at, at, rule, 1);
    let foresee = |at| lone(at, Rule::Foresee { count: 1 });
    let mixed = Round {
        drafts: [vec![lone(0, Rule::Draft)], all[..3].to_vec()].concat(),
        verdicts: [vec![lone(0, Rule::AutoCorrect)], all[3..].to_vec(), vec![foresee(1), foresee(2)]].concat(),
        ..Round::default()
    };
    let alone = |node: usize| Round { verdicts: vec![all[node]], ..Round::default() };
    for plan in [mixed].into_iter().chain([0, 3, 2].map(alone)) {
        let (got, want) = (device.round(&*cuda, &plan, Test::Token), host.round(&cpu, &plan, Test::Token));
        assert_eq!(got, want, "{case:?}: {count} of the likeliest");
        let (got, want) = (device.chosen(&*cuda), host.chosen(&cpu));
        assert_chosen(&case, &got, &want);
        let logs: Vec<f32> = got.iter().map(|chosen| chosen.log_probability).collect();
        match plan.verdicts[..] {
            [one] => {
                let node = all.iter().position(|draw| *draw == one).unwrap();
                assert_eq!(bits(&logs), bits(&together[node * count as usize..][..count as usize]), "alone");
            }
            _ => together = logs,
        }
    }
}

#[test]
fn the_likeliest_are_those_of_the_cpu() {
    for sampling in [
        PLAIN,
        Sampling { cfg: 3.0, temperature: 0.7, ..PLAIN },
        Sampling { cfg: 2.0, top_p: 0.6, ..PLAIN },
        Sampling { top_k: 3, ..PLAIN },
        Sampling { temperature: 0.0, ..PLAIN },
    ] {
        choose(Case::new(131, sampling), 5);
    }
    // Many are equal: those of one thread, and of several.
    choose(Case { grain: 2.0, ..Case::new(1000, PLAIN) }, CHILDREN);
    choose(Case { two: true, ..Case::new(2051, Sampling { cfg: 3.0, ..PLAIN }) }, 10);
    choose(Case::new(16_384, Sampling { cfg: 3.0, ..PLAIN }), 10);
}

/// The coupled draws of several positions are foreseen, and then made.
fn foresee(case: Case, count: u32) {
    let (cuda, cpu) = (backend(), cpu());
    let nodes = 4;
    let logits = case.logits(nodes, 6);
    let table = (&vec![0.0; case.vocab][..], 1, 0);
    let mut device = Bench::new(&*cuda, &case, 64, &logits, table);
    let mut host = Bench::new(&cpu, &case, 64, &logits, table);
    let draws = |rule| (0..nodes).map(|node| case.draw(node, 7 * node + 1, rule, 3)).collect();
    let plan = Round { verdicts: draws(Rule::Foresee { count }), ..Round::default() };
    let (got, want) = (device.round(&*cuda, &plan, Test::Token), host.round(&cpu, &plan, Test::Token));
    assert_eq!(got, want, "{case:?}: {count} are foreseen");
    assert_eq!(got.1, [0; 64], "nothing is written");
    let chosen = device.chosen(&*cuda);
    assert_chosen(&case, &chosen, &host.chosen(&cpu));
    let plan = Round { verdicts: draws(Rule::Coupled), ..Round::default() };
    let coupled = device.round(&*cuda, &plan, Test::Token).0;
    for (node, coupled) in coupled.iter().enumerate() {
        assert_eq!((got.0[node].before, got.0[node].after), (NONE, coupled.after), "{case:?}: node {node}");
        assert_eq!(chosen[node * count as usize].token, coupled.after);
    }
}

#[test]
fn coupled_draws_are_foreseen() {
    let cut = Sampling { cfg: 3.0, temperature: 0.9, top_k: 40, top_p: 0.9 };
    for case in [Case::new(131, PLAIN), Case::new(512, cut), Case::new(512, Sampling { temperature: 0.0, ..PLAIN })] {
        foresee(case, 5);
    }
    // Coupled draws of so many tokens are shared by blocks.
    foresee(Case::new(16_384, Sampling { cfg: 3.0, ..PLAIN }), 8);
}

#[test]
fn trees_and_lone_draws_share_a_list() {
    let (cuda, cpu) = (backend(), cpu());
    let case = Case::new(40, PLAIN);
    let logits = case.logits(9, 9);
    let table = (&[0.0; 40][..], 1, 0);
    let mut device = Bench::new(&*cuda, &case, 30, &logits, table);
    let mut host = Bench::new(&cpu, &case, 30, &logits, table);
    for round in 0..4 {
        let draw = |at: usize, position: usize, rule| case.draw(at, position, rule, round);
        let count = 2 + round % 2;
        let siblings = Rule::Siblings { first: 10, count, drawn: true };
        let leaf = Rule::Siblings { first: 30, count: 0, drawn: round < 2 };
        let puts = vec![Put { image: 0, position: 3, token: 7 + round }, Put { image: 0, position: 4, token: 8 }];
        let drafts = vec![draw(0, 1, Rule::Draft), draw(1, 10, Rule::Children { count }), draw(2, 2, Rule::Coupled)];
        let verdicts = vec![
            draw(3, 1, Rule::AutoCorrect),
            draw(4, 5, siblings),
            draw(5, 3, Rule::AutoCorrect),
            Draw { follows: true, ..draw(6, 4, Rule::AutoCorrect) },
            draw(7, 6, Rule::Coupled),
            draw(8, 7, leaf),
            draw(2, 20, Rule::Children { count: 3 }),
        ];
        let plan = Round { puts, drafts, verdicts };
        let (got, want) = (device.round(&*cuda, &plan, Test::Token), host.round(&cpu, &plan, Test::Token));
        assert_eq!(got, want, "round {round}");
    }
}
