//! Kernels from four compilers, run through the driver API and compared with references on the CPU: on the simulator under
//! every check and several schedules, with `WEFT_GPU=1` on the machine's GPU.
//!
//! The PTX is in `fixtures/`, the sources in `kernels/`, and `fixtures/make.py` makes the one of the other.

// Every call of the C ABI is unsafe for the same reason: the handles and buffers are the test's own, alive until its end.
#![allow(clippy::undocumented_unsafe_blocks)]

mod device;
mod harness;
mod numbers;
#[path = "../simulator/mod.rs"]
mod simulator;

mod attention;
mod cluster;
mod cub;
mod cute;
mod fp8;
mod gemm;
mod gemv;
mod hardware;
mod hopper;
mod lanes;
mod language;
mod math;
mod mutants;
mod reduce;
mod runtime;
mod sync;
mod triton;
mod warps;
mod wmma;
