//! weft runs autoregressive image models and decodes them spatially.
//!
//! The data's way through the crate, and its layers from the lowest to the highest: [`checkpoint`] -> [`nn`] over a
//! [`backend`] -> [`models`] -> [`decode`] -> [`engine`] -> the `weft` binary. A lower layer never imports a higher one.

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod decode;
pub mod engine;
pub mod eval;
pub mod grid;
pub mod kv;
pub mod models;
pub mod nn;
pub mod nvtx;
pub mod rng;
pub mod sampling;
