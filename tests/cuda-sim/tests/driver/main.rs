//! The driver API as programs meet it: cudarc, unmodified, loaded through the simulator, and plain C calls for what
//! cudarc does not call. What needs an environment of its own runs in a process of its own (`children`).

mod capture;
mod children;
mod errors;
mod fatbins;
mod graphs;
mod launches;
mod memory;
mod streams;
mod support;
