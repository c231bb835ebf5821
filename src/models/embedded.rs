//! The model inside the binary, so that an installed `weft` needs no files.

use crate::checkpoint::Files;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/avatar/", $name)))),*]
    };
}

const AVATAR: &[(&str, &[u8])] = files![
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "vq.safetensors",
    "classifier.safetensors",
    "heldout.json",
    "reference_stats.safetensors",
];

/// The files of `models/avatar`.
pub fn avatar() -> Files {
    Files::Embedded(AVATAR)
}
