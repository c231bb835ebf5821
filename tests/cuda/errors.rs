//! What goes wrong is a typed error that says what to do, never a panic, and leaves nothing behind. Each case runs in a
//! process of its own: a failure ends the device.

use crate::graph::Machine;
use crate::support::{child, load_driver, on_gpu};
use weft::backend::cuda::CudaBackend;
use weft::backend::{Backend, Error};

/// The error that a scenario ends with in a child process; none if it succeeds. Findings of the simulator are returned too.
fn outcome(test: &str, environment: &[(&str, &str)]) -> (Option<String>, Vec<String>) {
    let mut all = vec![("CUDA_SIM_CHECK", "mem,sync,leak")];
    all.extend(environment);
    let (stdout, findings) = child(&format!("errors::{test}"), &all);
    let error = stdout.lines().find_map(|line| line.strip_prefix("error: ").map(String::from));
    (error, findings)
}

/// Prints an error for the parent.
fn report(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        println!("\nerror: {error:?} {error}");
    }
}

/// A few steps on a small machine, from the device's opening to its end.
fn steps() -> Result<(), Error> {
    let backend = CudaBackend::new(0)?;
    let mut machine = Machine::new(&backend)?;
    for index in 0..3 {
        machine.step(&backend, index, true)?;
        machine.results(&backend)?;
    }
    Ok(())
}

#[test]
#[ignore = "run by the tests of this module"]
fn some_steps() {
    load_driver(&[]);
    report(steps());
}

#[test]
#[ignore = "run by the tests of this module"]
fn without_a_driver() {
    report(CudaBackend::new(0).map(drop));
}

#[test]
#[ignore = "run by the tests of this module"]
fn another_device() {
    load_driver(&[]);
    report(CudaBackend::new(7).map(drop));
}

#[test]
fn without_failures_there_is_no_error_and_no_leak() {
    assert_eq!(outcome("some_steps", &[]), (None, vec![]));
}

#[test]
fn no_driver_no_device_and_a_driver_that_does_not_start_say_what_to_do() {
    if on_gpu() {
        return;
    }
    let (error, _) = outcome("without_a_driver", &[]);
    let error = error.expect("there is no driver");
    assert!(error.starts_with("NoDevice") && error.contains("driver 580"), "{error}");
    let error = outcome("another_device", &[]).0.expect("there is one device");
    assert!(error.starts_with("NoDevice") && error.contains("no CUDA device 7: the driver shows 1"), "{error}");
    let (stdout, _) = child("errors::some_steps", &[("CUDA_SIM_CHECK", "nonsense")]);
    assert!(stdout.contains("error: NoDevice") && stdout.contains("does not start"), "{stdout}");
}

#[test]
fn an_old_device_and_an_old_driver_say_what_is_needed() {
    if on_gpu() {
        return;
    }
    let error = outcome("some_steps", &[("CUDA_SIM_CC", "7.5")]).0.expect("Turing is too old");
    assert!(error.starts_with("NoDevice") && error.contains("capability 7.5; weft needs 8.0"), "{error}");
    assert!(error.contains("--device cpu"), "{error}");
    let error = outcome("some_steps", &[("CUDA_SIM_DRIVER", "12.4")]).0.expect("the driver takes no PTX of CUDA 13");
    assert!(error.starts_with("NoDevice") && error.contains("a driver for CUDA 12.4"), "{error}");
    assert!(error.contains("CUDA 13.0 (580)") && error.contains("WEFT_CUDA_ARCHS"), "{error}");
}

#[test]
fn a_small_device_names_what_was_needed_and_what_was_free() {
    let (error, findings) = outcome("some_steps", &[("CUDA_SIM_MEMORY", "300K")]);
    let error = error.expect("300 KiB are not enough");
    assert!(error.starts_with("OutOfMemory") && error.contains("bytes of memory on cuda:0"), "{error}");
    assert_eq!(findings, [""; 0]);
}

#[test]
fn every_allocation_may_fail() {
    let mut number = 1;
    loop {
        let (error, findings) = outcome("some_steps", &[("CUDA_SIM_FAIL", &format!("alloc={number}"))]);
        assert_eq!(findings, [""; 0], "allocation {number}");
        match error {
            Some(error) => assert!(error.starts_with("OutOfMemory"), "allocation {number}: {error}"),
            None => break,
        }
        number += 1;
    }
    assert!(number > 10, "a machine makes more than {number} allocations");
}

#[test]
fn failures_of_the_driver_are_reported_by_the_next_call_that_can() {
    for (failure, wanted) in [
        ("pinned=1", "OutOfMemory"),
        ("module=1", "NoDevice"),
        ("copy=1", "Device"),
        ("copy=9", "Device"),
        ("launch=1", "Device"),
        ("launch=5", "Device"),
        ("sticky=1", "Device"),
        ("sticky=7", "Device"),
        ("ecc=3", "Device"),
        ("lost=2", "Device"),
    ] {
        let (error, findings) = outcome("some_steps", &[("CUDA_SIM_FAIL", failure)]);
        let error = error.unwrap_or_else(|| panic!("{failure} is not noticed"));
        assert!(error.starts_with(wanted), "{failure}: {error}");
        // The injected fault is a finding; what a dead device holds is not.
        assert!(findings.len() <= 1 && findings.iter().all(|f| !f.contains("leak")), "{failure}: {findings:#?}");
    }
}

#[test]
#[ignore = "run by the tests of this module"]
fn after_a_failure() {
    load_driver(&[]);
    let backend = CudaBackend::new(0).unwrap();
    let mut x = backend.tensor(4, 16).unwrap();
    let mut y = backend.tensor(4, 16).unwrap();
    backend.upload(&[1.0; 64], &mut x);
    backend.upload(&[1.0; 64], &mut y);
    backend.add(&mut x, &y);
    let first = backend.read(&x).unwrap_err();
    // It stays, and nothing is queued any more.
    let launches = backend.device().traffic().launches;
    backend.add(&mut x, &y);
    assert_eq!(backend.device().traffic().launches, launches);
    assert_eq!(backend.read(&x).unwrap_err(), first);
    assert_eq!(backend.tensor(4, 16).map(drop).unwrap_err(), first);
    report(Err(first));
}

#[test]
fn a_dead_device_stays_dead() {
    let (error, _) = outcome("after_a_failure", &[("CUDA_SIM_FAIL", "sticky=1")]);
    assert!(error.is_some_and(|error| error.contains("CUDA_ERROR_ILLEGAL_ADDRESS")));
}
