//! Project chores: `cargo xtask test` does what a change must pass.

mod abi;
mod nvcc;
mod toolkit;

use std::path::Path;
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo xtask test           check the format, lint, run every test, compare what is generated with its sources
       cargo xtask toolkit        find nvcc, or install it; print its path on the last line
       cargo xtask abi [--check]  make src/backend/cuda/abi.rs from include/kernel_abi.h, or see that it is up to date";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["test"] => test(),
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

/// Runs each step, stopping at the first that fails.
fn test() -> Result<(), String> {
    let steps: [&[&str]; 3] = [
        &["fmt", "--all", "--check"],
        &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        &["test", "--workspace"],
    ];
    for step in steps {
        run(Command::new(env!("CARGO")).args(step), &format!("cargo {}", step.join(" ")))?;
    }
    kernels()
}

/// The PTX that the tests run is what the kernels compile to.
fn kernels() -> Result<(), String> {
    let nvcc = match toolkit::nvcc() {
        Ok(nvcc) => nvcc,
        // A developer without a network loses this step only; CI must not.
        Err(message) if std::env::var_os("CI").is_none() => {
            eprintln!("xtask: the kernels are not compiled: {message}");
            return Ok(());
        }
        Err(message) => return Err(message),
    };
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
