//! Whole images of the embedded model on the device: every decoder, against plain AR on the same device and against the
//! processor. They run on the simulator with its cheap checks and one schedule (every kernel by itself meets all of them
//! in `tests/cuda`), or on a GPU with `WEFT_GPU=1`.

#![cfg(weft_cuda)]

#[path = "cuda/support.rs"]
mod support;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use weft::backend::cpu::{CpuBackend, Isa};
use weft::backend::cuda::CudaBackend;
use weft::backend::{Backend, Image, Test};
use weft::decode::Acceptance;
use weft::decode::methods::Method;
use weft::engine::{Generator, Output, Request};
use weft::models::embedded;
use weft::rng::{Purpose, Stream};
use weft::sampling::Sampling;

const PROMPT: &str = "a smiling woman with long red hair, glasses and a green shirt, blue background";
const SEED: u64 = 1;

/// How far the processed log-weights of the two backends may lie apart.
///
/// Both round the same operands to bf16 and sum products in f32, in orders of their own; what differs in the last bits of
/// a sum turns, now and then, into a bf16 operand of the next product that is 2^-8 of its value apart. That goes through
/// nine layers and the head, and guidance with cfg 3 adds three times the conditional error and twice the other. So the
/// scale is that of two correct orders of summing: over the 576 x 512 log-weights of the test's image the largest
/// difference was 0.36, and 0.33 between the processor's AVX-512 and its portable code.
const BOUND: f32 = 0.5;

/// One test at a time: they count what is asked of the one device.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gpu() -> &'static Generator<CudaBackend> {
    static GENERATOR: OnceLock<Generator<CudaBackend>> = OnceLock::new();
    support::load_driver(&[("CUDA_SIM_CHECK", "mem")]);
    GENERATOR.get_or_init(|| {
        let backend = CudaBackend::new(0).unwrap_or_else(|error| panic!("{error}"));
        Generator::load(backend, &embedded::avatar()).unwrap_or_else(|error| panic!("{error}"))
    })
}

fn cpu() -> &'static Generator<CpuBackend> {
    static GENERATOR: OnceLock<Generator<CpuBackend>> = OnceLock::new();
    GENERATOR.get_or_init(|| Generator::load(CpuBackend::new(), &embedded::avatar()).unwrap())
}

fn generate<B: Backend>(generator: &Generator<B>, method: Method, sampling: Sampling) -> Output {
    let request = Request { prompt: PROMPT.into(), seed: SEED, sampling, method };
    generator.generate(&request, &mut |_| ()).unwrap_or_else(|error| panic!("{error}"))
}

fn tokens<B: Backend>(generator: &Generator<B>, method: Method, sampling: Sampling) -> Vec<u32> {
    generate(generator, method, sampling).outcome.tokens
}

/// Processed log-weights of every position, `[positions, vocab]`, given the tokens before it.
fn forced<B: Backend>(generator: &Generator<B>, sampling: Sampling, tokens: &[u32]) -> Vec<f32> {
    let grid = generator.model.grid();
    let image = Image { stream: Stream { seed: SEED, image: 0 }, sampling, test: Test::Token };
    let mut session = generator.session(PROMPT, image, Acceptance::Coupled).unwrap();
    let mut log_weights = session.prompt_log_weights().unwrap();
    let block: Vec<usize> = (0..grid.len() - 1).collect();
    log_weights.extend(session.log_weights(tokens, &block, &vec![grid.width as u32; grid.height]).unwrap());
    log_weights
}

#[test]
fn exact_returns_the_tokens_of_ar_at_any_temperature() {
    let _turn = alone();
    let defaults = gpu().default_sampling();
    let settings = [defaults, Sampling { temperature: 1.7, cfg: 1.0, ..defaults }];
    for sampling in settings {
        let plain = generate(gpu(), Method::Ar, sampling).outcome;
        let exact = generate(gpu(), Method::EXACT, sampling).outcome;
        assert_eq!(exact.tokens, plain.tokens, "{sampling:?}");
        assert_eq!(plain.stats.nfe, 576);
        assert!(exact.stats.nfe < plain.stats.nfe / 2, "{} passes", exact.stats.nfe);
    }
}

#[test]
fn log_weights_agree_with_the_processor_at_every_position() {
    let _turn = alone();
    let sampling = cpu().default_sampling();
    let image = tokens(cpu(), Method::EXACT, sampling);
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
    let _turn = alone();
    let sampling = cpu().default_sampling();
    let (ours, theirs) = (tokens(gpu(), Method::EXACT, sampling), tokens(cpu(), Method::EXACT, sampling));
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
    let _turn = alone();
    let sampling = cpu().default_sampling();
    assert_eq!(generate(gpu(), Method::SSD, sampling).outcome.stats.nfe, 80);
    let (ours, theirs) = (generate(gpu(), Method::WAVEFRONT, sampling), generate(cpu(), Method::WAVEFRONT, sampling));
    let (ours, theirs) = (ours.outcome.stats, theirs.outcome.stats);
    assert!(ours.nfe.abs_diff(theirs.nfe) <= 4, "{} passes, {} on the processor", ours.nfe, theirs.nfe);
    assert!((ours.acceptance() - theirs.acceptance()).abs() < 0.1);
}

#[test]
fn pixels_agree_with_the_processor() {
    let _turn = alone();
    let image = tokens(cpu(), Method::EXACT, cpu().default_sampling());
    let (ours, theirs) = (gpu().picture(&image).unwrap(), cpu().picture(&image).unwrap());
    let off = ours.rgb.iter().zip(&theirs.rgb).map(|(a, b)| a.abs_diff(*b)).max();
    // Operands are rounded alike; a value between two bytes falls to either side, and a bf16 that tips moves few.
    assert!(off <= Some(3), "a pixel is off by {off:?}");
}

/// A step is one upload, one graph and one download, and allocates nothing.
#[test]
fn a_step_is_one_upload_one_graph_and_one_download() {
    let _turn = alone();
    let generator = gpu();
    let image =
        Image { stream: Stream { seed: SEED, image: 0 }, sampling: generator.default_sampling(), test: Test::Token };
    let mut session = generator.session(PROMPT, image, Acceptance::Coupled).unwrap();
    let mut schedule = Method::EXACT.schedule(generator.model.grid(), (5, 3));
    let device = generator.model.backend.device();
    let before = device.traffic();
    let outcome = weft::decode::run(&mut session, &mut *schedule, &mut |_| ()).unwrap();
    let steps = outcome.stats.nfe as u64 - 1;
    let after = device.traffic();
    assert_eq!(after.replays - before.replays, steps);
    assert!(after.recordings - before.recordings < steps / 2, "few sizes of step");
    // The prompt's inputs and its step; the tokens at the end.
    assert_eq!(after.uploads - before.uploads, steps + 2);
    assert_eq!(after.downloads - before.downloads, steps + 1);
    assert_eq!(after.allocations, before.allocations);
}

/// The distribution after a position is bitwise the same whether its row is fed with one other (the other branch) or
/// among 300, and again in place after garbage was written to the slots behind it.
#[test]
fn a_row_does_not_depend_on_its_company() {
    let _turn = alone();
    let generator = gpu();
    let (grid, vocab) = (generator.model.grid(), generator.model.config.image_vocab_size);
    let image =
        Image { stream: Stream { seed: SEED, image: 0 }, sampling: generator.default_sampling(), test: Test::Token };
    let tokens: Vec<u32> = (0..grid.len()).map(|position| (position * 37 % 512) as u32).collect();
    let garbage = vec![3; grid.len()];
    let beyond = vec![grid.width as u32; grid.height];
    let mut session = generator.session(PROMPT, image, Acceptance::Coupled).unwrap();
    session.prompt_log_weights().unwrap();
    let mut feed = |tokens: &[u32], from: usize, to: usize, frontier: &[u32]| {
        session.log_weights(tokens, &(from..to).collect::<Vec<_>>(), frontier).unwrap()
    };
    let frontier = |end: usize| -> Vec<u32> {
        (0..grid.height).map(|row| end.saturating_sub(row * grid.width).min(grid.width) as u32).collect()
    };
    let together = feed(&tokens, 0, 150, &frontier(150));
    for position in [0, 1, 23, 24, 70, 149] {
        // Everything behind is overwritten, then the position is fed alone.
        feed(&garbage, position, position + 40, &beyond);
        let alone = feed(&tokens, position, position + 1, &frontier(position + 1));
        let row = &together[position * vocab..][..vocab];
        support::assert_same(&alone, row, &format!("position {position}"));
        feed(&tokens, position, 150, &frontier(150));
    }
}
