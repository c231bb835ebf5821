//! The driver API as programs meet it: cudarc, unmodified, loaded through the simulator, and plain C calls for what
//! cudarc does not call. What needs an environment of its own runs in a process of its own (`children`).

// Every call of the C ABI is unsafe for the same reason: the handles and buffers are the test's own, alive until its end.
#![allow(clippy::undocumented_unsafe_blocks)]

mod capture;
mod children;
mod errors;
mod fatbins;
mod graphs;
mod launches;
mod memory;
#[path = "../simulator/mod.rs"]
mod simulator;
mod streams;
mod support;
