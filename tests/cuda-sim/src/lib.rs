//! A CUDA driver that runs, checks and counts PTX kernels on the CPU.

pub mod check;
pub mod code;
pub mod counters;
pub mod device;
pub mod driver;
pub mod isa;
pub mod lower;
pub mod machine;
pub mod memory;
pub mod program;
pub mod ptx;
#[cfg(test)]
pub(crate) mod testing;
