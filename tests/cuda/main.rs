//! The CUDA backend against the CPU's, op by op, on the simulator or (`WEFT_GPU=1`) on a GPU.

#![cfg(weft_cuda)]

mod attention;
mod diffusion;
mod draw;
mod errors;
mod graph;
mod image;
mod layouts;
mod linear;
mod norm;
mod rotate;
mod rows;
mod support;
mod trees;
mod verify;
