//! `weft decoders`: the decoders and what they promise.

use super::Failure;
use crate::decode::methods::DECODERS;
use std::io::Write;

/// Runs the command.
pub fn run() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for decoder in DECODERS {
        let law = if decoder.exact { "exact" } else { "relaxed" };
        writeln!(out, "{:<10} {law:<8} needs {:<14} {}", decoder.name, decoder.needs, decoder.source)?;
    }
    Ok(())
}
