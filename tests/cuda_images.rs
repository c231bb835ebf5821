//! Whole images of the embedded model on the device: every decoder, against plain AR on the same device and against the
//! processor. They run on the simulator with its cheap checks and one schedule (every kernel by itself meets all of them
//! in `tests/cuda`), or on a GPU with `WEFT_GPU=1`.

#![cfg(weft_cuda)]

#[path = "cuda/support.rs"]
mod support;

mod common;

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};
use std::time::Duration;

use weft::backend::cpu::{CpuBackend, Isa};
use weft::backend::cuda::CudaBackend;
use weft::backend::{
    Backend, Capacity, Chosen, Drawn, Error, Image, KvFormat, KvScales, Layout, PAGE, PageTable, RowPlace, Slot, Step,
    Test, WeightFormat,
};
use weft::decode::cspd;
use weft::decode::methods::Method;
use weft::decode::tree::Growth;
use weft::decode::{Acceptance, Outcome, Round, Schedule, Target};
use weft::engine::{Generator, Output, Request};
use weft::models::avatar::Condition;
use weft::models::{continuous, embedded};
use weft::nn::Formats;
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

/// Tests at a time: each has a device, with a stream and counters, and a model to itself.
const LANES: usize = 2;

/// A test's turn in a lane.
struct Turn(#[allow(dead_code, reason = "held until the test ends")] MutexGuard<'static, ()>);

thread_local! {
    /// The lane of the test that runs on this thread.
    static LANE: Cell<usize> = const { Cell::new(0) };
}

/// Waits for a free lane.
fn turn() -> Turn {
    static FREE: [Mutex<()>; LANES] = [const { Mutex::new(()) }; LANES];
    loop {
        for (lane, free) in FREE.iter().enumerate() {
            let taken = match free.try_lock() {
                Err(TryLockError::WouldBlock) => continue,
                // A test that failed has left the lane as it was.
                Err(TryLockError::Poisoned(left)) => left.into_inner(),
                Ok(taken) => taken,
            };
            LANE.set(lane);
            return Turn(taken);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The simulator with its cheap checks, one thread for each lane.
fn load_driver() {
    support::load_driver(&[("CUDA_SIM_CHECK", "mem"), ("CUDA_SIM_THREADS", "1")]);
}

fn gpu() -> &'static Generator<CudaBackend> {
    static GENERATORS: [OnceLock<Generator<CudaBackend>>; LANES] = [const { OnceLock::new() }; LANES];
    load_driver();
    GENERATORS[LANE.get()].get_or_init(|| {
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

/// Tokens of an image of which a test makes no more: seven rows and a half.
const BEGINNING: usize = 180;

/// The image that several tests look at: by the default decoder, on the device and on the processor.
fn image() -> &'static [Outcome; 2] {
    static IMAGE: OnceLock<[Outcome; 2]> = OnceLock::new();
    let sampling = cpu().default_sampling();
    IMAGE.get_or_init(|| {
        [generate(gpu(), Method::EXACT, sampling).outcome, generate(cpu(), Method::EXACT, sampling).outcome]
    })
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
    let _turn = turn();
    let defaults = gpu().default_sampling();
    let plain = generate(gpu(), Method::Ar, defaults).outcome;
    let exact = &image()[0];
    assert_eq!(exact.tokens, plain.tokens);
    assert_eq!(plain.stats.nfe, 576);
    assert!(exact.stats.nfe < plain.stats.nfe / 2, "{} passes", exact.stats.nfe);
    let [(tree, with), (_, without)] =
        ["exact:tree=32", "exact"].map(|name| begin(gpu(), name.parse().unwrap(), defaults, BEGINNING));
    println!("{BEGINNING} tokens in {without} passes, {with} with second guesses");
    assert_eq!(tree, plain.tokens[..BEGINNING]);
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
    let (ours, theirs) = (generate(gpu(), Method::WAVEFRONT, sampling), generate(cpu(), Method::WAVEFRONT, sampling));
    let (ours, theirs) = (ours.outcome.stats, theirs.outcome.stats);
    assert!(ours.nfe.abs_diff(theirs.nfe) <= 4, "{} passes, {} on the processor", ours.nfe, theirs.nfe);
    assert!((ours.acceptance() - theirs.acceptance()).abs() < 0.1);
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

/// Backends, and how much memory they have allocated.
trait Counted: Backend {
    fn allocations(&self) -> u64;
}

impl Counted for CpuBackend {
    fn allocations(&self) -> u64 {
        0
    }
}

impl Counted for CudaBackend {
    fn allocations(&self) -> u64 {
        self.device().traffic().allocations
    }
}

/// Decodes the first `count` tokens of an image; the tokens, and the passes that they took.
fn begin<B: Counted>(generator: &Generator<B>, method: Method, sampling: Sampling, count: usize) -> (Vec<u32>, usize) {
    let (mut tokens, passes) = begin_all(generator, method, &[(PROMPT, SEED)], sampling, count);
    (tokens.remove(0), passes)
}

/// The same of images of these prompts and seeds that are made together. Nothing is allocated meanwhile.
fn begin_all<B: Counted>(
    generator: &Generator<B>,
    method: Method,
    images: &[(&str, u64)],
    sampling: Sampling,
    count: usize,
) -> (Vec<Vec<u32>>, usize) {
    let image = |seed| Image { stream: Stream { seed, image: 0 }, sampling, test: Test::Token };
    let aids = generator.aids(&method).unwrap();
    let images: Vec<_> = images.iter().map(|&(prompt, seed)| (prompt, image(seed))).collect();
    let mut session = generator.aided(&images, method.acceptance(), aids).unwrap();
    let until = |image| Until { schedule: method.schedule(session.scene(image)), count };
    let mut schedules: Vec<Until> = (0..images.len()).map(until).collect();
    let mut schedules: Vec<&mut dyn Schedule> = schedules.iter_mut().map(|until| until as _).collect();
    let before = generator.model.backend.allocations();
    let mut outcomes = weft::decode::run(&mut session, &mut schedules, &mut |_| ()).unwrap();
    assert_eq!(generator.model.backend.allocations(), before, "{} allocates while it decodes", method.name());
    let passes = outcomes.iter().map(|outcome| outcome.stats.nfe - 1).max().unwrap();
    outcomes.iter_mut().for_each(|outcome| outcome.tokens.truncate(count));
    (outcomes.into_iter().map(|outcome| outcome.tokens).collect(), passes)
}

/// A schedule that ends when so many tokens are done.
struct Until {
    schedule: Box<dyn Schedule + Send>,
    count: usize,
}

impl Schedule for Until {
    fn begin(&mut self, first: u32) {
        self.schedule.begin(first);
    }

    /// The last tokens of a tree are put before the next grows.
    fn grow(&mut self) -> Option<Growth> {
        self.schedule.grow()
    }

    fn grown(&mut self, chosen: &[Chosen]) {
        self.schedule.grown(chosen);
    }

    fn next(&mut self) -> Option<Round> {
        if self.done() < self.count { self.schedule.next() } else { None }
    }

    fn foreseen(&mut self, chosen: &[Chosen]) {
        self.schedule.foreseen(chosen);
    }

    fn learn(&mut self, drawn: &[Drawn]) {
        self.schedule.learn(drawn);
    }

    fn done(&self) -> usize {
        self.schedule.done()
    }
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

/// Decodes the first `count` tokens on the device and on the processor: not the same ones, but in about as many passes.
fn as_many_passes(name: &str, count: usize) -> usize {
    let (method, sampling): (Method, _) = (name.parse().unwrap(), cpu().default_sampling());
    let ((_, ours), (_, theirs)) = (begin(gpu(), method, sampling, count), begin(cpu(), method, sampling, count));
    println!("{name}: {count} tokens in {ours} passes, {theirs} on the processor");
    assert!(ours.abs_diff(theirs) <= theirs / 4, "{name}: {ours} passes, {theirs} on the processor");
    ours
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

/// The continuous model and its draft: passes over several contexts, the diffusion heads, the KL tokenizer's decoder. The
/// bound is that of `tests/continuous.rs`, where the other side is fp32: a diffusion of few steps magnifies a rounding (0.18 apart with
/// two steps, 0.03 with ten, 0.01 with twenty).
#[test]
fn continuous_pictures_are_those_of_the_processor() {
    let _turn = turn();
    let sampling = cpu().default_sampling();
    for name in
        ["cspd:drafts=0:rounds=2:steps=10", "cspd:drafts=1:prefill=0:rounds=2:steps=10:sigma=one:temper=1000000"]
    {
        let method: Method = name.parse().unwrap();
        let [ours, theirs] = [generate(gpu(), method, sampling), generate(cpu(), method, sampling)];
        assert_eq!(ours.outcome.stats, theirs.outcome.stats, "{name}");
        let apart = common::distance(&ours.outcome.latents, &theirs.outcome.latents);
        println!("{name}: {apart}");
        assert!(apart < 0.1, "{name}: {apart}");
        assert_eq!(ours.picture.rgb.len(), theirs.picture.rgb.len());
    }
}

/// A pass of a continuous model is two uploads and two graphs; what comes back is a verdict for each goal of the target's, and
/// the latents at the end. Nothing is allocated.
#[test]
fn a_continuous_pass_is_two_uploads_and_two_graphs() {
    let _turn = turn();
    let generator = gpu();
    let (knobs, stream) = (
        "cspd:drafts=1:prefill=0:rounds=2:steps=3".parse::<Method>().unwrap().continuous().unwrap(),
        Stream { seed: SEED, image: 0 },
    );
    let (models, sampling) = (generator.continuous("cspd").unwrap(), generator.default_sampling());
    let prompt = generator.prompt(PROMPT).unwrap();
    let mut session = cspd::session::Session::new(&generator.model, &models, &prompt, sampling, knobs, stream).unwrap();
    let plan = cspd::plan::Plan::new(continuous::GRID.len(), knobs.rounds, sampling.cfg, stream);
    let device = generator.model.backend.device();
    let before = device.traffic();
    let stats = cspd::run(&mut session, &plan, knobs, &mut |_| ()).unwrap().stats;
    let after = device.traffic();
    let passes = (stats.nfe + stats.draft.passes) as u64;
    assert_eq!((after.uploads - before.uploads, after.replays - before.replays), (2 * passes, 2 * passes));
    // Each pass of the target judges here.
    assert_eq!(after.downloads - before.downloads, stats.nfe as u64 + 1);
    assert_eq!(after.allocations, before.allocations);
}

/// A step is one upload, one graph and one download, and allocates nothing.
#[test]
fn a_step_is_one_upload_one_graph_and_one_download() {
    let _turn = turn();
    let generator = gpu();
    let image =
        Image { stream: Stream { seed: SEED, image: 0 }, sampling: generator.default_sampling(), test: Test::Token };
    let mut session = generator.session(PROMPT, image, Acceptance::Coupled).unwrap();
    let mut schedule = Method::EXACT.schedule(session.scene(0));
    let device = generator.model.backend.device();
    let before = device.traffic();
    let outcome = weft::decode::run(&mut session, &mut [&mut *schedule], &mut |_| ()).unwrap().remove(0);
    let steps = outcome.stats.nfe as u64 - 1;
    let after = device.traffic();
    assert_eq!(after.replays - before.replays, steps);
    assert!(after.recordings - before.recordings < steps / 2, "few sizes of step");
    // The prompt's inputs and its step; the first token, and all of them at the end.
    assert_eq!(after.uploads - before.uploads, steps + 2);
    assert_eq!(after.downloads - before.downloads, steps + 2);
    assert_eq!(after.allocations, before.allocations);
    // Eight kernels a layer, the heads' seven and the draw of drafts, and around the layers: inputs, kept states, selection,
    // norm, head, copies, verdicts. Nothing rounds the input of a product. The prompt was not recorded.
    let most = 8 * generator.model.config.num_hidden_layers as u64 + 8 + 7;
    let (launches, recordings) = (after.launches - before.launches, after.recordings - before.recordings);
    assert!(launches <= (recordings + 1) * most, "{launches} kernels in {recordings} steps, {most} at most in one");
}

/// The distribution after a position is bitwise the same whether its row is fed with one other (the other branch) or
/// among 300, and again in place after garbage was written to the slots behind it.
#[test]
fn a_row_does_not_depend_on_its_company() {
    let _turn = turn();
    let generator = gpu();
    let (grid, vocab) = (generator.model.grid(), generator.model.config.image_vocab_size);
    let image =
        Image { stream: Stream { seed: SEED, image: 0 }, sampling: generator.default_sampling(), test: Test::Token };
    let tokens: Vec<u32> = (0..grid.len()).map(|position| (position * 37 % 512) as u32).collect();
    let garbage = vec![3; grid.len()];
    let beyond = vec![grid.width as u32; grid.height];
    let mut session = generator.session(PROMPT, image, Acceptance::Coupled).unwrap();
    let before = generator.model.backend.allocations();
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
    // Nor does it allocate, up to the largest step that there is.
    feed(&tokens, 0, grid.len(), &beyond);
    assert_eq!(generator.model.backend.allocations(), before);
}

/// A branch of an image in a batch: its condition, the tokens of its image, and which positions each step feeds.
struct Branch {
    image: u32,
    condition: Condition,
    feeds: [std::ops::Range<usize>; 2],
}

impl Branch {
    fn of(image: u32, prompt: &str, feeds: [std::ops::Range<usize>; 2]) -> Branch {
        let model = &gpu().model;
        let prompt = if prompt.is_empty() { model.unconditional() } else { model.prompt(prompt).unwrap() };
        Branch { image, condition: model.condition(&prompt).unwrap(), feeds }
    }

    fn prompt_len(&self) -> usize {
        self.condition.prefix.len() / gpu().model.config.hidden_size
    }
}

const IMAGES: usize = 3;

/// Logits of every row of every step of these branches, fed together: those after the prompt, then those of each feed.
fn batch(branches: &[&Branch], first_page: u32) -> Vec<Vec<Vec<f32>>> {
    let model = &gpu().model;
    let (backend, grid, vocab) = (&model.backend, model.grid(), model.config.image_vocab_size);
    let hidden = model.config.hidden_size;
    let mut next = first_page;
    let mut pages = |tokens: usize| -> Vec<u32> {
        let first = next;
        next += tokens.div_ceil(PAGE) as u32;
        (first..next).collect()
    };
    let tables: Vec<PageTable> = branches
        .iter()
        .map(|branch| PageTable {
            image: branch.image,
            prefix: pages(branch.prompt_len()),
            prefix_len: branch.prompt_len(),
            grid: pages(grid.len()),
            width: grid.width,
            ..PageTable::default()
        })
        .collect();
    let rows = 400;
    let (sequences, all_pages) = (branches.len(), next as usize);
    let capacity = Capacity {
        rows,
        sequences: sequences.max(IMAGES),
        pages: all_pages,
        frontiers: sequences * grid.height,
        ..Capacity::default()
    };
    let tensor = |rows: usize, cols: usize| backend.tensor(rows, cols).unwrap();
    let (mut x, mut logits, mut bias) = (tensor(rows, hidden), tensor(rows, vocab), tensor(sequences, hidden));
    let mut selected = tensor(rows, hidden);
    let mut normed = backend.operand(rows, hidden).unwrap();
    let mut scratch = model.transformer.scratch(backend, rows).unwrap();
    let mut kv = model.transformer.kv_pool(backend, all_pages).unwrap();
    let mut canvas = backend.canvas(IMAGES, grid.len(), vocab, false).unwrap();
    for image in 0..IMAGES {
        let tokens: Vec<u32> = (0..grid.len()).map(|p| ((p * 37 + image * 101) % vocab) as u32).collect();
        backend.set_tokens(&mut canvas, image, &tokens).unwrap();
    }
    backend.upload(&branches.iter().flat_map(|b| b.condition.bias.clone()).collect::<Vec<f32>>(), &mut bias);
    let mut step = backend.step(capacity).unwrap();
    let sampling = gpu().default_sampling();
    let images: Vec<Image> = (0..IMAGES as u32)
        .map(|image| Image { stream: Stream { seed: SEED, image }, sampling, test: Test::Token })
        .collect();

    let mut results = vec![Vec::new(); sequences];
    for stage in 0..3 {
        let mut layout = Layout::default();
        for (sequence, (branch, table)) in branches.iter().zip(&tables).enumerate() {
            let slots: Vec<Slot> = match stage {
                0 => (0..branch.prompt_len() as u32).map(Slot::Prefix).collect(),
                _ => branch.feeds[stage - 1].clone().map(|position| Slot::Grid(position as u32)).collect(),
            };
            let end = if stage == 0 { 0 } else { branch.feeds[stage - 1].end };
            let frontier =
                (0..grid.height).map(|row| end.saturating_sub(row * grid.width).min(grid.width) as u32).collect();
            layout.sequences.push(PageTable { frontier, ..table.clone() });
            layout.rows.extend(slots.into_iter().map(|slot| RowPlace { sequence: sequence as u32, slot }));
        }
        let owners: Vec<u32> = layout.rows.iter().map(|row| row.sequence).collect();
        let predictions = (0..owners.len() as u32).collect();
        backend.set_step(Step { images: images.clone(), layout, predictions, ..Step::default() }, &mut step).unwrap();
        if stage == 0 {
            let prefixes: Vec<f32> = branches.iter().flat_map(|b| b.condition.prefix.clone()).collect();
            backend.upload(&prefixes, &mut x);
        } else {
            backend.embed(&step, model.embedding(&bias), &canvas, &mut x);
        }
        model.transformer.forward(backend, &mut x, &step, &mut kv, &mut scratch);
        backend.select(&step, &x, &mut selected);
        model.transformer.logits(backend, &selected, &mut normed, &mut logits);
        let all = backend.read(&logits).unwrap();
        for (owner, row) in owners.iter().zip(all.chunks(vocab)) {
            results[*owner as usize].push(row.to_vec());
        }
    }
    results
}

/// Images with different prompts at different stages in one step: each row's logits are bitwise those of its branch alone,
/// where it may be the only row or one of 300, in other pages.
#[test]
fn the_model_gives_a_row_the_same_logits_in_any_batch() {
    let _turn = turn();
    let branches = [
        Branch::of(0, PROMPT, [0..1, 1..25]),
        Branch::of(0, "", [0..1, 1..25]),
        Branch::of(1, "a bald man with a beard", [0..300, 300..301]),
        Branch::of(2, "a woman", [0..37, 37..61]),
    ];
    let together = batch(&branches.iter().collect::<Vec<_>>(), 0);
    for (index, branch) in branches.iter().enumerate() {
        let apart = batch(&[branch], 3);
        assert_eq!(apart[0].len(), together[index].len());
        for (row, (alone, mixed)) in apart[0].iter().zip(&together[index]).enumerate() {
            support::assert_same(mixed, alone, &format!("row {row} of branch {index}"));
        }
    }
}

/// The model in other formats, on the device and on the processor.
fn in_formats(formats: Formats) -> (Generator<CudaBackend>, Generator<CpuBackend>) {
    load_driver();
    let device = Generator::load_in(formats, CudaBackend::new(0).unwrap(), &embedded::avatar()).unwrap();
    (device, Generator::load_in(formats, CpuBackend::new(), &embedded::avatar()).unwrap())
}

/// Few passes, in which all that a wavefront does is done.
fn quick() -> Method {
    "wavefront:lag=0.8:slope=0.1:rounds=3".parse().unwrap()
}

/// Makes an image on the device, and asserts that its log-weights are within a bound of the processor's with the same
/// quantised numbers.
fn check_formats(formats: Formats, method: Method, bound: f32) {
    let _turn = turn();
    let (device, host) = in_formats(formats);
    let sampling = host.default_sampling();
    let image = tokens(&device, method, sampling);
    if method == Method::EXACT {
        assert_eq!(begin(&device, Method::Ar, sampling, BEGINNING).0, image[..BEGINNING], "{formats:?}");
    }
    let (ours, theirs) = (forced(&device, sampling, &image), forced(&host, sampling, &image));
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (off, moved) = (apart(&ours, &theirs), apart(&ours, &forced(gpu(), sampling, &image)));
    println!("{formats:?}: {off} from the processor, {moved} from bf16");
    assert!(off <= bound, "{formats:?}: log-weights are {off} apart");
    // The formats make a difference: they are not silently bf16.
    assert!(formats.rows.is_some() || moved > BOUND, "{formats:?}: {moved}");
}

#[test]
fn images_with_fp8_weights_are_those_of_the_processor() {
    check_formats(Formats { weights: WeightFormat::Fp8, ..Formats::default() }, quick(), BOUND);
}

#[test]
fn images_with_int4_weights_are_those_of_the_processor() {
    check_formats(Formats { weights: WeightFormat::Int4, ..Formats::default() }, quick(), BOUND);
}

#[test]
fn images_with_the_layout_for_many_rows_are_those_of_the_processor() {
    check_formats(Formats { rows: Some(512), ..Formats::default() }, quick(), BOUND);
}

/// A last bit that tips a key or a value to the next number of e4m3 moves it by up to 2^-3 of itself, where bf16 would
/// move it by 2^-7: so two correct orders of summing lie further apart (1.5 where this was written). That the cache's
/// numbers are those of the processor is shown by the tests of the ops, bit by bit.
#[test]
fn exact_is_ar_with_an_fp8_cache_too() {
    let kv = KvFormat::Fp8(KvScales::default());
    check_formats(Formats { weights: WeightFormat::Fp8, kv, rows: None }, Method::EXACT, 3.0);
}

/// Loads the model, begins an image, feeds some of it and decodes pixels, all on a device of its own.
fn an_attempt() -> Result<(), weft::engine::Error> {
    let generator = Generator::load(CudaBackend::new(0)?, &embedded::avatar())?;
    let sampling = generator.default_sampling();
    let image = Image { stream: Stream { seed: SEED, image: 0 }, sampling, test: Test::Token };
    let mut session = generator.session("a man", image, Acceptance::Judged(Test::Token))?;
    session.prompt_log_weights()?;
    let grid = generator.model.grid();
    session.log_weights(&vec![7; grid.len()], &[0, 1, 2], &vec![0; grid.height])?;
    Ok(())
}

/// Whichever allocation fails, the error says what was needed, nothing leaks, and the next attempt in the process works.
#[test]
fn any_allocation_of_a_model_and_an_image_may_fail() {
    if support::on_gpu() {
        return;
    }
    let _turn = turn();
    support::child("attempts_with_failing_allocations", &[("CUDA_SIM_CHECK", "mem")]);
}

/// In a process of its own: all devices of one share memory and failures.
#[test]
#[ignore = "run by any_allocation_of_a_model_and_an_image_may_fail"]
fn attempts_with_failing_allocations() {
    load_driver();
    let watch = CudaBackend::new(0).unwrap();
    let free = || watch.device().memory().unwrap().0;
    let before = free();
    let mut number = 1;
    loop {
        support::simulate("CUDA_SIM_FAIL", &format!("alloc={number}"));
        let outcome = an_attempt();
        assert_eq!(free(), before, "allocation {number} leaks");
        match outcome {
            Ok(()) => break,
            Err(weft::engine::Error::Backend(Error::OutOfMemory { needed, .. })) => assert!(needed > 0),
            Err(weft::engine::Error::Checkpoint(error)) => {
                assert!(error.to_string().contains("bytes of memory on cuda:0"), "allocation {number}: {error}");
            }
            Err(error) => panic!("allocation {number}: {error:?}"),
        }
        number += 1;
    }
    support::simulate("CUDA_SIM_FAIL", "");
    println!("{} allocations", number - 1);
    assert!(number > 100, "a model makes more than {number} allocations");
}

/// The same of a session of continuous models, which are loaded.
#[test]
fn any_allocation_of_a_continuous_session_may_fail() {
    if support::on_gpu() {
        return;
    }
    let _turn = turn();
    support::child("continuous_sessions_with_failing_allocations", &[("CUDA_SIM_CHECK", "mem")]);
}

#[test]
#[ignore = "run by any_allocation_of_a_continuous_session_may_fail"]
fn continuous_sessions_with_failing_allocations() {
    let generator = gpu();
    let knobs = "cspd:drafts=1:rounds=2:steps=3".parse::<Method>().unwrap().continuous().unwrap();
    let (models, sampling) = (generator.continuous("cspd").unwrap(), generator.default_sampling());
    let prompt = generator.prompt("a man").unwrap();
    let session = || {
        let stream = Stream { seed: SEED, image: 0 };
        cspd::session::Session::new(&generator.model, &models, &prompt, sampling, knobs, stream).map(drop)
    };
    // The workspace grows once, and stays.
    session().unwrap();
    let free = || generator.model.backend.device().memory().unwrap().0;
    let before = free();
    let mut number = 1;
    loop {
        support::simulate("CUDA_SIM_FAIL", &format!("alloc={number}"));
        let outcome = session();
        assert_eq!(free(), before, "allocation {number} leaks");
        match outcome {
            Ok(()) => break,
            Err(Error::OutOfMemory { needed, .. }) => assert!(needed > 0),
            Err(error) => panic!("allocation {number}: {error:?}"),
        }
        number += 1;
    }
    support::simulate("CUDA_SIM_FAIL", "");
    assert!(number > 50, "a session makes more than {number} allocations");
}

/// In a process of its own: the device is lost.
#[test]
#[ignore = "run by a_device_that_is_lost_in_an_image_is_an_error"]
fn an_image_on_a_device_that_is_lost() {
    support::load_driver(&[]);
    let generator = Generator::load(CudaBackend::new(0).unwrap(), &embedded::avatar()).unwrap();
    let sampling = generator.default_sampling();
    let request = Request { prompt: PROMPT.into(), seed: SEED, sampling, method: Method::EXACT };
    let mut done = 0;
    let first = generator.generate(&request, &mut |tokens| done = tokens).unwrap_err();
    println!("\nerror: {first:?} after {done} tokens");
    let again = generator.generate(&request, &mut |_| ()).unwrap_err();
    assert_eq!(again.to_string(), first.to_string(), "it stays lost");
    drop(generator);
    // The process goes on.
    let sampling = cpu().default_sampling();
    assert_eq!(tokens(cpu(), Method::EXACT, sampling).len(), 576);
}

#[test]
fn a_device_that_is_lost_in_an_image_is_an_error() {
    if support::on_gpu() {
        return;
    }
    let _turn = turn();
    for failure in ["lost=2500", "sticky=2500"] {
        let environment = [("CUDA_SIM_CHECK", "mem"), ("CUDA_SIM_FAIL", failure)];
        let (stdout, _) = support::child("an_image_on_a_device_that_is_lost", &environment);
        let error = stdout.lines().find_map(|line| line.strip_prefix("error: ")).expect("an error");
        println!("{failure}: {error}");
        assert!(error.starts_with("Backend(Device"), "{failure}: {error}");
        assert!(!error.ends_with("after 0 tokens"), "{failure}: {error}");
    }
}
