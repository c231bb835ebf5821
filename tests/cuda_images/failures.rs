//! No memory, and a device that is lost.

use super::{PROMPT, SEED, cpu, gpu, load_driver, support, tokens, turn};
use weft::backend::cuda::CudaBackend;
use weft::backend::{Image, Test};
use weft::decode::methods::Method;
use weft::decode::{Acceptance, cspd};
use weft::engine::{Generator, Request};
use weft::models::embedded;
use weft::rng::Stream;

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

/// All devices of a process share memory and failures.
fn in_a_process_of_its_own(test: &str) {
    if !support::on_gpu() {
        let _turn = turn();
        support::child(test, &[("CUDA_SIM_CHECK", "mem")]);
    }
}

/// Whichever allocation fails, the error says what was needed, nothing leaks, and the next attempt in the process works.
#[test]
fn any_allocation_of_a_model_and_an_image_may_fail() {
    in_a_process_of_its_own("failures::attempts_with_failing_allocations");
}

#[test]
#[ignore = "run by any_allocation_of_a_model_and_an_image_may_fail"]
fn attempts_with_failing_allocations() {
    load_driver();
    let watch = CudaBackend::new(0).unwrap();
    let allocations = each_allocation_fails(&watch, || an_attempt().map_err(|error| error.to_string()));
    assert!(allocations > 100, "a model and an image are {allocations} allocations");
}

/// The same of a session of continuous models, which are loaded.
#[test]
fn any_allocation_of_a_continuous_session_may_fail() {
    in_a_process_of_its_own("failures::continuous_sessions_with_failing_allocations");
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
    let allocations = each_allocation_fails(&generator.model.backend, || session().map_err(|error| error.to_string()));
    assert!(allocations > 50, "a session is {allocations} allocations");
}

/// Lets one allocation after another fail until an attempt gets through; how many it makes. After each, what the device had
/// free is free again.
fn each_allocation_fails(watch: &CudaBackend, attempt: impl Fn() -> Result<(), String>) -> usize {
    let free = || watch.device().memory().unwrap().0;
    let before = free();
    let fails = |&number: &usize| {
        support::simulate("CUDA_SIM_FAIL", &format!("alloc={number}"));
        let outcome = attempt();
        assert_eq!(free(), before, "allocation {number} leaks");
        let Err(error) = outcome else { return false };
        let told = error.contains("bytes of memory on cuda:0") && !error.contains(" 0 bytes of");
        assert!(told, "allocation {number}: {error}");
        true
    };
    let allocations = (1..).take_while(fails).count();
    support::simulate("CUDA_SIM_FAIL", "");
    println!("{allocations} allocations");
    allocations
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
        let (stdout, _) = support::child("failures::an_image_on_a_device_that_is_lost", &environment);
        let error = stdout.lines().find_map(|line| line.strip_prefix("error: ")).expect("an error");
        println!("{failure}: {error}");
        assert!(error.starts_with("Backend(Device"), "{failure}: {error}");
        assert!(!error.ends_with("after 0 tokens"), "{failure}: {error}");
    }
}
