//! The first tokens of images: what most decoders are tried with, to save time.

use super::{PROMPT, SEED, cpu, gpu};
use weft::backend::cpu::CpuBackend;
use weft::backend::cuda::CudaBackend;
use weft::backend::{Backend, Chosen, Drawn, Image, Test};
use weft::decode::methods::Method;
use weft::decode::tree::Growth;
use weft::decode::{Round, Schedule, Target};
use weft::engine::Generator;
use weft::rng::Stream;
use weft::sampling::Sampling;

/// Tokens of an image of which a test makes no more: seven rows and a half.
pub const BEGINNING: usize = 180;

/// Backends, and how much memory they have allocated.
pub trait Counted: Backend {
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
pub fn begin<B: Counted>(
    generator: &Generator<B>,
    method: Method,
    sampling: Sampling,
    count: usize,
) -> (Vec<u32>, usize) {
    let (mut tokens, passes) = begin_all(generator, method, &[(PROMPT, SEED)], sampling, count);
    (tokens.remove(0), passes)
}

/// The same of images of these prompts and seeds that are made together. Nothing is allocated meanwhile.
pub fn begin_all<B: Counted>(
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

/// Decodes the first `count` tokens on the device and on the processor: not the same ones, but in about as many passes.
pub fn as_many_passes(name: &str, count: usize) -> usize {
    let (method, sampling): (Method, _) = (name.parse().unwrap(), cpu().default_sampling());
    let ((_, ours), (_, theirs)) = (begin(gpu(), method, sampling, count), begin(cpu(), method, sampling, count));
    println!("{name}: {count} tokens in {ours} passes, {theirs} on the processor");
    assert!(ours.abs_diff(theirs) <= theirs / 4, "{name}: {ours} passes, {theirs} on the processor");
    ours
}
