//! Every decoder of tokens, against plain AR on the same device and against the processor.

use super::beginnings::{BEGINNING, as_many_passes, begin, begin_all};
use super::{BOUND, PROMPT, SEED, cpu, forced, generate, gpu, image, turn};
use weft::backend::cpu::{CpuBackend, Isa};
use weft::decode::methods::Method;
use weft::engine::Generator;
use weft::models::embedded;
use weft::rng::{Purpose, Stream};
use weft::sampling::{Sampling, gumbel_max};

#[test]
fn exact_returns_the_tokens_of_ar_at_any_temperature() {
    let _turn = turn();
    let defaults = gpu().default_sampling();
    let plain = generate(gpu(), Method::Ar, defaults).outcome;
    let exact = &image()[0];
    assert_eq!(exact.tokens, plain.tokens);
    assert_eq!(plain.stats.nfe, 576);
    assert!(exact.stats.nfe < plain.stats.nfe / 2, "{} passes", exact.stats.nfe);
    // Ten rows: over fewer a tree may save no pass.
    let count = 240;
    let [(tree, with), (_, without)] =
        ["exact:tree=32", "exact"].map(|name| begin(gpu(), name.parse().unwrap(), defaults, count));
    println!("{count} tokens in {without} passes, {with} with second guesses");
    assert_eq!(tree, plain.tokens[..count]);
    assert!(with < without, "{with} passes, {without} without the tree");
    let hot = Sampling { temperature: 1.7, cfg: 1.0, ..defaults };
    let [plain, exact] = [Method::Ar, Method::EXACT].map(|method| generate(gpu(), method, hot).outcome);
    assert_eq!(exact.tokens, plain.tokens);
    assert!(exact.stats.nfe < plain.stats.nfe / 2, "{} passes", exact.stats.nfe);
}

#[test]
fn log_weights_agree_with_the_processor_at_every_position() {
    let _turn = turn();
    let sampling = cpu().default_sampling();
    let image = image()[1].tokens.clone();
    let (ours, theirs) = (forced(gpu(), sampling, &image), forced(cpu(), sampling, &image));
    let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("largest difference of a log-weight: {apart}");
    if let Some(portable) = CpuBackend::with_isa(Isa::Portable) {
        let portable = Generator::load(portable, &embedded::avatar()).unwrap();
        let among =
            forced(&portable, sampling, &image).iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("between this processor's instructions and portable code: {among}");
    }
    assert!(apart <= BOUND, "log-weights are {apart} apart");
}

#[test]
fn the_first_token_that_differs_from_the_processor_is_a_tie() {
    let _turn = turn();
    let sampling = cpu().default_sampling();
    let [ours, theirs] = image().clone().map(|outcome| outcome.tokens);
    let Some(position) = ours.iter().zip(&theirs).position(|(a, b)| a != b) else { return };
    println!("the first token that differs is at {position}");
    let vocab = cpu().model.config.image_vocab_size;
    let log_weights = forced(cpu(), sampling, &theirs);
    let mut noise = vec![0.0; vocab];
    Stream { seed: SEED, image: 0 }.gumbel(Purpose::Token, 0, position, &mut noise);
    let score = |token: u32| log_weights[position * vocab + token as usize] + noise[token as usize];
    let (here, there) = (score(ours[position]), score(theirs[position]));
    assert!(there >= here, "the processor drew {there} rather than {here}");
    assert!(there - here <= 2.0 * BOUND, "at {position} the scores are {here} and {there}: no tie");
}

#[test]
fn relaxed_decoders_make_images_in_as_many_passes() {
    let _turn = turn();
    let sampling = cpu().default_sampling();
    assert_eq!(generate(gpu(), Method::SSD, sampling).outcome.stats.nfe, 80);
    as_many_passes("wavefront:lag=1:window=2:reach=2:slack=0.75:early=0.3:tree=16", COUNT);
}

/// What the processor finds in the context of a finished picture, which two devices need not have in common: every token is
/// within its slack of the best one.
#[test]
fn a_wavefront_ends_where_all_tokens_stay() {
    let _turn = turn();
    let Method::Wavefront(knobs) = Method::WAVEFRONT else { unreachable!("it is one") };
    let sampling = cpu().default_sampling();
    let outcome = generate(gpu(), Method::WAVEFRONT, sampling).outcome;
    assert!(outcome.stats.nfe < 60, "{} passes", outcome.stats.nfe);
    let vocab = cpu().model.config.image_vocab_size;
    let weights = forced(cpu(), sampling, &outcome.tokens);
    let (mut noise, mut stayed) = (vec![0.0; vocab], 0);
    for (position, (weights, &token)) in weights.chunks(vocab).zip(&outcome.tokens).enumerate() {
        Stream { seed: SEED, image: 0 }.gumbel(Purpose::Token, 0, position, &mut noise);
        let (best, token) = (gumbel_max(weights, &noise) as usize, token as usize);
        let more_probable = weights[best] - weights[token];
        let better = more_probable + noise[best] - noise[token];
        let slack = knobs.slack - knobs.penalty * more_probable.max(0.0);
        assert!(
            better <= slack + 2.0 * BOUND,
            "at {position} {best} is better than {token} by {better}, slack {slack}"
        );
        stayed += u32::from(best != token);
    }
    assert!(stayed > 20, "{stayed} tokens stayed that are not the best");
}

/// Chains, puts, groups and rows beside the cache.
#[test]
fn published_decoders_make_images_as_on_the_processor() {
    let _turn = turn();
    let sampling = cpu().default_sampling();
    let coupled: Method = "scd:coupling=gumbel:window=64".parse().unwrap();
    assert_eq!(begin(gpu(), coupled, sampling, BEGINNING).0, image()[0].tokens[..BEGINNING]);
    as_many_passes("scd:window=64", 2 * BEGINNING);
    as_many_passes("pjd:threshold=2", 2 * BEGINNING);
    as_many_passes("sjd:window=32", BEGINNING);
    as_many_passes("zipar:window=2", 2 * BEGINNING);
    as_many_passes("gsd:window=64", 2 * BEGINNING);
}

/// Two images of one prompt, which share its pages, and one of another: tokens are bitwise those of each image alone, and a
/// step is one graph for all three.
#[test]
fn images_made_together_are_those_made_alone() {
    let _turn = turn();
    let images = [(PROMPT, 1), (PROMPT, 2), ("a man with a beard", 3)];
    let (generator, sampling) = (gpu(), gpu().default_sampling());
    let replays = || generator.model.backend.device().traffic().replays;
    for (name, count) in [("exact:tree=8", COUNT), ("eagle1:tree=paper:nodes=16:depth=4", COUNT / 3)] {
        let method: Method = name.parse().unwrap();
        let apart: Vec<(Vec<u32>, usize)> = images
            .iter()
            .map(|image| begin_all(generator, method, &[*image], sampling, count))
            .map(|(mut tokens, passes)| (tokens.remove(0), passes))
            .collect();
        let before = replays();
        let (together, passes) = begin_all(generator, method, &images, sampling, count);
        let (tokens, alone): (Vec<Vec<u32>>, Vec<usize>) = apart.into_iter().unzip();
        assert_eq!(together, tokens, "{name}");
        assert_eq!(passes, alone.into_iter().max().unwrap(), "{name}");
        // A drafter's passes are graphs too.
        if !method.needs_eagle() {
            assert_eq!(replays() - before, passes as u64);
        }
    }
}

/// Tokens that trees are tried with.
const COUNT: usize = 72;

/// Trees that are drawn and trees that are chosen, grown by a drafter and judged, all on the device.
#[test]
fn draft_trees_decode_on_the_device() {
    let _turn = turn();
    let sampling = cpu().default_sampling();
    let greedy = Sampling { temperature: 0.0, ..sampling };
    let (plain, _) = begin(gpu(), Method::Ar, greedy, COUNT);
    for name in ["eagle1:tree=paper:nodes=16:depth=4", "eagle2:nodes=16:depth=4:top=4"] {
        let method: Method = name.parse().unwrap();
        let (drafted, passes) = begin(gpu(), method, greedy, COUNT);
        println!("{name}: {COUNT} greedy tokens in {passes} passes");
        assert_eq!(drafted, plain, "{name}");
        assert!(passes < COUNT * 3 / 4, "{name}: {passes} passes");
        as_many_passes(name, COUNT);
    }
}

/// The same with the tests that take a token for others: pools of a mass, and of a ratio.
#[test]
fn relaxed_draft_trees_decode_on_the_device() {
    let _turn = turn();
    for name in ["lantern:nodes=16:depth=4:top=4", "lantern++:tree=paper:nodes=16:depth=4"] {
        let passes = as_many_passes(name, COUNT);
        assert!(passes < COUNT * 3 / 4, "{name}: {passes} passes");
    }
}

/// Rows drafted by a model of lower resolution through pixels, judged by a threshold, and drawn again in islands.
#[test]
fn drafts_of_low_resolution_decode_on_the_device() {
    let _turn = turn();
    let sampling = cpu().default_sampling();
    let method: Method = "mulo-sd:rows=6:radius=0:ahead=1".parse().unwrap();
    let (ours, theirs) = (generate(gpu(), method, sampling), generate(cpu(), method, sampling));
    let (ours, theirs) = (ours.outcome.stats, theirs.outcome.stats);
    println!("{ours:?}, {theirs:?} on the processor");
    assert!(ours.nfe.abs_diff(theirs.nfe) <= theirs.nfe / 4, "{ours:?}, {theirs:?} on the processor");
    assert!(ours.draft.passes.abs_diff(theirs.draft.passes) <= theirs.draft.passes / 4, "{ours:?}, {theirs:?}");
    assert!((ours.acceptance() - theirs.acceptance()).abs() < 0.1, "{ours:?}, {theirs:?}");
}

#[test]
fn pixels_agree_with_the_processor() {
    let _turn = turn();
    let image = &image()[1].tokens;
    let (ours, theirs) = (gpu().picture(image).unwrap(), cpu().picture(image).unwrap());
    let off = ours.rgb.iter().zip(&theirs.rgb).map(|(a, b)| a.abs_diff(*b)).max();
    // Operands are rounded alike; a value between two bytes falls to either side, and a bf16 that tips moves few.
    assert!(off <= Some(3), "a pixel is off by {off:?}");
}
