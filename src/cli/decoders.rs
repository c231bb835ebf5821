//! `weft decoders`: the decoders and what they promise.

use super::Failure;
use crate::decode::methods::DECODERS;
use std::io::Write;

/// Runs the command.
pub fn run() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<10} {:<8} {:<14} {:<42} knobs and defaults", "decoder", "law", "training", "source")?;
    for decoder in DECODERS {
        let law = if decoder.exact { "exact" } else { "relaxed" };
        let knobs: Vec<_> = decoder.method.knobs().iter().map(|(knob, value)| format!("{knob}={value}")).collect();
        let knobs = knobs.join(":");
        writeln!(out, "{:<10} {law:<8} {:<14} {:<42} {knobs}", decoder.name, decoder.training, decoder.source)?;
    }
    Ok(())
}
