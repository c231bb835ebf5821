//! Whole images of the embedded model on the device: every decoder, against plain AR on the same device and against the
//! processor. They run on the simulator with its cheap checks and one schedule (every kernel by itself meets all of them
//! in `tests/cuda`), or on a GPU with `WEFT_GPU=1`.

#![cfg(weft_cuda)]

#[path = "../cuda/support.rs"]
mod support;

#[path = "../common/mod.rs"]
mod common;

mod beginnings;
mod continuous;
mod decoders;
mod failures;
mod formats;
mod steps;

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};
use std::time::Duration;

use weft::backend::cpu::CpuBackend;
use weft::backend::cuda::CudaBackend;
use weft::backend::{Backend, Image, Test};
use weft::decode::methods::Method;
use weft::decode::{Acceptance, Outcome};
use weft::engine::{Generator, Output, Request};
use weft::models::embedded;
use weft::rng::Stream;
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
