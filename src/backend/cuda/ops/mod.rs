//! The ops of the contract: what each checks, and which kernels it launches.

mod attention;
mod conv;
mod diffusion;
pub(super) mod draw;
mod elementwise;
mod group_norm;
mod image_attention;
pub(super) mod linear;
mod norm;
mod rotate;
mod rows;
