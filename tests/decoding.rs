//! Decoders and row invariance on the embedded model.

use weft::backend::cpu::CpuBackend;
use weft::backend::{Image, Test};
use weft::decode::Acceptance;
use weft::decode::methods::Method;
use weft::engine::{Generator, Request};
use weft::models::embedded;
use weft::rng::Stream;
use weft::sampling::Sampling;

const PROMPT: &str = "a smiling woman with long red hair, glasses and a green shirt, blue background";

fn generator() -> Generator<CpuBackend> {
    Generator::load(CpuBackend::new(), &embedded::avatar()).expect("the embedded model loads")
}

fn tokens(generator: &Generator<CpuBackend>, method: Method, sampling: Sampling, seed: u64) -> (Vec<u32>, usize) {
    let request = Request { prompt: PROMPT.into(), seed, sampling, method };
    let output = generator.generate(&request, &mut |_| ()).unwrap();
    (output.outcome.tokens, output.outcome.stats.nfe)
}

#[test]
fn exact_returns_the_tokens_of_ar_at_any_temperature() {
    let generator = generator();
    let defaults = generator.default_sampling();
    let settings = [
        defaults,
        Sampling { temperature: 0.0, ..defaults },
        Sampling { temperature: 1.7, cfg: 1.0, ..defaults },
        Sampling { top_k: 40, top_p: 0.9, ..defaults },
    ];
    for (seed, sampling) in settings.into_iter().enumerate() {
        let (plain, passes) = tokens(&generator, Method::Ar, sampling, seed as u64);
        let (exact, fewer) = tokens(&generator, Method::EXACT, sampling, seed as u64);
        assert_eq!(exact, plain, "{sampling:?}");
        assert_eq!(passes, 576);
        assert!(fewer < passes / 2, "{fewer} passes");
    }
}

/// Greedy decoding leaves nothing to chance, so exact decoders agree with plain AR whatever their rule.
#[test]
fn exact_decoders_are_greedy_as_ar_is() {
    agree_with_ar_when_greedy(&PROMPTS);
}

/// The same over the first 64 held-out prompts.
#[test]
#[ignore = "takes minutes"]
fn exact_decoders_are_greedy_as_ar_is_on_64_prompts() {
    let cases: serde_json::Value = serde_json::from_slice(&embedded::avatar().read("heldout.json").unwrap()).unwrap();
    let prompts: Vec<&str> =
        cases.as_array().unwrap().iter().take(64).map(|case| case["prompt"].as_str().unwrap()).collect();
    agree_with_ar_when_greedy(&prompts);
}

const PROMPTS: [&str; 2] = [PROMPT, "a man with a beard"];

fn agree_with_ar_when_greedy(prompts: &[&str]) {
    let generator = generator();
    let sampling = Sampling { temperature: 0.0, ..generator.default_sampling() };
    for prompt in prompts {
        let run = |method: &str| {
            let request = Request { prompt: (*prompt).into(), seed: 1, sampling, method: method.parse().unwrap() };
            generator.generate(&request, &mut |_| ()).unwrap().outcome
        };
        let plain = run("ar");
        for method in [
            "sjd",
            "scd",
            "scd:coupling=gumbel",
            "gsd:g=1:distance=inf",
            "eagle1",
            "eagle1:tree=paper",
            "eagle2",
            "lantern:k=0",
            "lantern++:k=0",
            "exact",
            "exact:coupling=maximal",
            "exact:tree=16",
        ] {
            let outcome = run(method);
            assert_eq!(outcome.tokens, plain.tokens, "{method}: {prompt}");
            assert!(outcome.stats.nfe < plain.stats.nfe, "{method}: {prompt}");
        }
    }
}

/// Pictures of one prompt and of others, with guidance and without, are the same together as alone, by every kind of decoder.
#[test]
fn pictures_made_together_are_those_made_alone() {
    let generator = generator();
    let guided = generator.default_sampling();
    let free = Sampling { cfg: 1.0, temperature: 1.3, ..guided };
    let images = [(PROMPT, guided), (PROMPT, guided), ("a man with a beard", free), ("", guided)];
    for name in ["exact:tree=16", "gsd:window=64", "eagle2:nodes=16:depth=4:top=4", "mulo-sd"] {
        let method: Method = name.parse().unwrap();
        let request = |(seed, (prompt, sampling)): (usize, (&str, Sampling))| Request {
            prompt: prompt.into(),
            seed: seed as u64,
            sampling,
            method,
        };
        let requests: Vec<Request> = images.into_iter().enumerate().map(request).collect();
        let mut last = 0;
        let together = generator.generate_all(&requests, &mut |done| last = done).unwrap();
        assert_eq!((together.len(), last), (images.len(), images.len() * 576));
        let passes = together.iter().map(|output| output.outcome.stats.nfe).max().unwrap();
        for (request, output) in requests.iter().zip(&together) {
            let alone = generator.generate(request, &mut |_| ()).unwrap();
            assert_eq!(output.outcome, alone.outcome, "{name}: {request:?}");
            assert_eq!(output.picture, alone.picture);
            assert_eq!(output.passes * images.len() as f64, passes as f64);
        }
    }
    let mut other = generator.generate_all(&[], &mut |_| ()).map(|outputs| outputs.len());
    assert_eq!(other.unwrap(), 0);
    let request = Request { prompt: PROMPT.into(), seed: 0, sampling: guided, method: Method::Ar };
    let mixed = [request.clone(), Request { method: Method::EXACT, ..request }];
    other = generator.generate_all(&mixed, &mut |_| ()).map(|outputs| outputs.len());
    assert!(other.unwrap_err().to_string().contains("one decoder"));
}

/// Decoders with the noise of plain AR return its tokens at any temperature.
#[test]
fn gumbel_coupling_returns_the_tokens_of_ar() {
    let generator = generator();
    let sampling = generator.default_sampling();
    let (plain, _) = tokens(&generator, Method::Ar, sampling, 3);
    let (coupled, passes) = tokens(&generator, "scd:coupling=gumbel".parse().unwrap(), sampling, 3);
    assert_eq!(coupled, plain);
    assert!(passes < 400, "{passes} passes");
    let (foreseen, fewer) = tokens(&generator, "exact:tree=32".parse().unwrap(), sampling, 3);
    assert_eq!(foreseen, plain);
    let (_, without) = tokens(&generator, Method::EXACT, sampling, 3);
    assert!(fewer * 20 < without * 19, "{fewer} passes, {without} without the tree");
    // Without slack what a relaxed wavefront settles is exact too.
    let relaxed = "wavefront:lag=1:slope=0.04:window=3:slack=0:tree=32".parse().unwrap();
    assert_eq!(tokens(&generator, relaxed, sampling, 3), (plain.clone(), fewer));
    // What is asked early has its own slack, and what is improbable has less.
    let slack = |knobs: &str| {
        let method = format!("wavefront:slack=1:{knobs}").parse().unwrap();
        tokens(&generator, method, sampling, 1).0
    };
    assert_ne!(slack("early=0"), slack("early=1"));
    assert_ne!(slack("penalty=0.6"), slack("penalty=0"));
    // As many rows and questions as there can be: all positions, and the largest tree.
    let (most, _) = tokens(&generator, "exact:lag=0:slope=0:window=inf:tree=128".parse().unwrap(), sampling, 3);
    assert_eq!(most, plain);
}

/// 24 columns and six passes more for each of the other 23 rows.
#[test]
fn zipar_makes_the_passes_of_its_formula() {
    let generator = generator();
    let method = "zipar:window=6".parse().unwrap();
    assert_eq!(tokens(&generator, method, generator.default_sampling(), 0).1, 24 + 6 * 23);
}

#[test]
fn ssd_makes_eighty_passes() {
    let generator = generator();
    assert_eq!(tokens(&generator, Method::SSD, generator.default_sampling(), 0).1, 80);
}

#[test]
fn seeds_differ_and_repeat() {
    let generator = generator();
    let sampling = generator.default_sampling();
    let run = |seed| tokens(&generator, Method::WAVEFRONT, sampling, seed).0;
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// The distribution after position p is bitwise the same whether p is fed alone, in blocks of any size, or again in
/// place after garbage was written to the slots behind it.
#[test]
fn a_row_does_not_depend_on_its_company() {
    let generator = generator();
    let (grid, vocab) = (generator.model.grid(), generator.model.config.image_vocab_size);
    let image =
        Image { stream: Stream { seed: 0, image: 0 }, sampling: generator.default_sampling(), test: Test::Token };
    let tokens: Vec<u32> = (0..grid.len()).map(|position| (position * 37 % 512) as u32).collect();
    let distributions = |sizes: &[usize], garbage: bool| {
        let mut session = generator.session(PROMPT, image, Acceptance::Coupled).unwrap();
        session.prompt_log_weights().unwrap();
        let (mut rows, mut start, mut sizes) = (Vec::new(), 0, sizes.iter().cycle());
        while start < 5 * grid.width {
            let end = start + sizes.next().unwrap();
            let mut frontier: Vec<u32> =
                (0..grid.height).map(|row| end.saturating_sub(row * grid.width).min(grid.width) as u32).collect();
            if garbage {
                let beyond = vec![grid.width as u32; grid.height];
                let block: Vec<usize> = (start..end + 30).collect();
                session.log_weights(&vec![3; grid.len()], &block, &beyond).unwrap();
            }
            frontier.iter_mut().skip(grid.row(end - 1) + 1).for_each(|columns| *columns = 0);
            let block: Vec<usize> = (start..end).collect();
            let log_weights = session.log_weights(&tokens, &block, &frontier).unwrap();
            rows.extend(log_weights.chunks_exact(vocab).map(<[f32]>::to_vec));
            start = end;
        }
        rows.truncate(5 * grid.width);
        rows
    };
    let alone = distributions(&[1], false);
    for (sizes, garbage) in [(&[24usize][..], false), (&[7, 1, 48], false), (&[120], false), (&[13, 2], true)] {
        let together = distributions(sizes, garbage);
        let differing = alone.iter().zip(&together).position(|(a, b)| a != b);
        assert_eq!(differing, None, "blocks of {sizes:?}, garbage {garbage}");
    }
}
