//! Checks: what is looked for beside the results.

pub use crate::device::Checks;
