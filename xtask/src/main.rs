//! Project chores: `cargo xtask test` does what a change must pass.

mod abi;
mod gpu;
mod nvcc;
mod toolkit;

use std::path::Path;
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo xtask test           check the format, lint, run every test, compare what is generated with its sources
       cargo xtask test --gpu     run the tests of kernels on this machine's GPU instead of the simulator
       cargo xtask toolkit        find nvcc, or install it; print its path on the last line
       cargo xtask abi [--check]  make src/backend/cuda/abi.rs from include/kernel_abi.h, or see that it is up to date";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["test"] => test(),
        ["test", "--gpu"] => test_on_gpu(),
        ["toolkit"] => toolkit::nvcc().map(|nvcc| println!("{}", nvcc.display())),
        ["abi"] => abi::write(),
        ["abi", "--check"] => abi::check(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs each step, stopping at the first that fails; the tests all run, so that one run shows all that fail.
fn test() -> Result<(), String> {
    // First: what is not there is not tested.
    let nvcc = here(toolkit::nvcc())?;
    let disassembler = here(toolkit::disassembler())?;
    let clang = here(toolkit::clang())?;
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(arguments).envs(disassembler.iter().map(|folder| ("WEFT_DISASSEMBLER", folder)));
        command
    };
    for step in [
        &["fmt", "--all", "--check"][..],
        &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        &["test", "--workspace", "--no-fail-fast"],
    ] {
        run(&mut cargo(step), &format!("cargo {}", step.join(" ")))?;
    }
    // The simulated device was a Hopper that ran eight schedules; this one is an Ampere, with one to save time: all checks,
    // races too, are made in that one.
    let mut ampere = cargo(&["test", "--package", "weft", "--test", "cuda"]);
    ampere.env("CUDA_SIM_CC", "8.0").env("CUDA_SIM_SWEEP", "1");
    run(&mut ampere, "cargo test --test cuda, compute capability 8.0")?;
    if clang.is_some() {
        abi::check()?;
    }
    nvcc.map_or(Ok(()), |nvcc| fixtures(&nvcc))
}

/// The same tests of kernels that [`test`] runs on the simulator.
fn test_on_gpu() -> Result<(), String> {
    gpu::find_driver(&toolkit::target_dir())?;
    for step in gpu::TESTS {
        run(
            Command::new(env!("CARGO")).args(step).env("WEFT_GPU", "1"),
            &format!("WEFT_GPU=1 cargo {}", step.join(" ")),
        )?;
    }
    Ok(())
}

/// A developer without a network loses what needs it; CI must not.
fn here<T>(outcome: Result<T, String>) -> Result<Option<T>, String> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(message) if std::env::var_os("CI").is_none() => {
            eprintln!("xtask: left out: {message}");
            Ok(None)
        }
        Err(message) => Err(message),
    }
}

/// The PTX that the simulator's tests run is what its kernels compile to.
fn fixtures(nvcc: &Path) -> Result<(), String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace");
    let script = workspace.join("tests/cuda-sim/fixtures/make.py");
    run(Command::new("python3").arg(script).arg(nvcc).arg("--check"), "make.py --check")
}

fn run(command: &mut Command, name: &str) -> Result<(), String> {
    eprintln!("xtask: {name}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{name} failed ({status})")),
        Err(error) => Err(format!("cannot run {name}: {error}")),
    }
}
