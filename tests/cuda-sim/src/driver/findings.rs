//! What the simulator has to say: one line each on stderr.

use std::io::Write;

use super::errors::Error;

/// Prints a finding. What runs over several lines is put on one, so that a reader of lines misses nothing.
pub fn report(finding: &str) {
    let finding = finding.strip_prefix("cuda-sim: ").unwrap_or(finding);
    let mut line = String::with_capacity(finding.len() + 16);
    line.push_str("cuda-sim: ");
    line.extend(finding.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }));
    line.push('\n');
    // One write, so that lines of several threads do not mix; a closed stderr is no reason to fail.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Prints why a call failed, if that says something new.
pub fn failed_call(call: &str, error: &Error) {
    if error.is_finding() {
        report(&format!("{call}: {error} ({})", error.result().name()));
    }
}
