//! Kernels from four compilers, run and compared with references on the CPU, under every check and several schedules.
//!
//! The PTX is in `fixtures/`, the sources in `kernels/`, and `fixtures/make.py` makes the one of the other.

mod harness;
mod numbers;

mod attention;
mod cluster;
mod cute;
mod fp8;
mod gemm;
mod gemv;
mod hopper;
mod lanes;
mod language;
mod math;
mod mutants;
mod reduce;
mod runtime;
mod sync;
mod triton;
mod wmma;
