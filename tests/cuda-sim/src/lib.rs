//! A CUDA driver that runs, checks and counts PTX kernels on the CPU.

pub mod code;
pub mod device;
pub mod isa;
pub mod lower;
pub mod machine;
pub mod ptx;
#[cfg(test)]
pub(crate) mod testing;
