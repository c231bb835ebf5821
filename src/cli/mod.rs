//! The `weft` command.

mod decoders;
mod device;
mod eval;
mod generate;
mod inspect;
mod options;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Runs autoregressive image models and decodes them spatially.
#[derive(Parser)]
#[command(name = "weft", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make pictures from a prompt
    Generate(generate::Args),
    /// Measure decoders: passes, time, attribute accuracy, likelihood, FID
    Eval(eval::Args),
    /// Say what a checkpoint is and what it needs
    Inspect(inspect::Args),
    /// List the decoders
    Decoders,
}

/// Anything that ends a command: one line that says what to do.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command line; 0 on success, 2 on any error.
pub fn main() -> ExitCode {
    if let Err(message) = crate::nvtx::listen() {
        eprintln!("weft: warning: {message}");
    }
    let result = match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Decoders => decoders::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has closed the pipe: that is its way of saying it has had enough.
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft: {error}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
