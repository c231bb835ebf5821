//! The CUDA driver API: the C functions that a program finds in `libcuda.so.1`.
//!
//! * [`abi`] is the boundary: what arguments are, and the wrapper of every function (no panic crosses it).
//! * [`errors`] maps everything that can go wrong to a `CUresult`, in one place.
//! * [`state`] holds the driver's objects, behind one lock; [`queue`] the work of the streams.
//! * The other files are chapters of the API.
//!
//! Streams are asynchronous as on a device: what is issued runs when something waits for it, no sooner, and in the order
//! that streams and events impose. Work that nothing orders before a copy has therefore not run before it: a forgotten
//! wait gives the wrong result every time instead of once a month.

pub mod abi;
mod attributes;
mod capture;
mod context;
mod control;
mod copy;
mod engine;
mod errors;
mod event;
mod fatbin;
mod findings;
mod float_atomics;
mod function;
mod graph;
mod graph_exec;
mod graph_nodes;
mod handles;
mod host_memory;
mod kernel_params;
mod launch;
mod library;
mod memory;
mod module;
mod occupancy;
mod pointer;
mod pool;
mod proc_address;
mod queue;
mod state;
mod stream;
mod tally;
mod tensor_map;
mod types;
mod unpack;
mod unsupported;
mod work;

pub use errors::{CuResult, Error};
