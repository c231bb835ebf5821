//! `config.json`: the architecture and the defaults of generation.

use crate::backend::AttentionShape;
use crate::grid::Grid;
use serde::Deserialize;
use std::collections::BTreeMap;

/// A model's configuration. Unknown keys are refused: a setting that is not understood must not be dropped.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are the keys of Hugging Face's Llama configs
pub struct Config {
    pub architectures: Vec<String>,
    pub model_type: String,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub qk_norm: bool,
    /// Number of image tokens.
    pub image_vocab_size: usize,
    pub grid: GridConfig,
    pub text_encoder: TextConfig,
    /// Absent: it has none, and decoders that draft with them do not run.
    pub spatial_heads: Option<HeadsConfig>,
    pub vq: VqConfig,
    pub classifier: Option<ClassifierConfig>,
    pub generation: GenerationConfig,
}

/// Token grid.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct GridConfig {
    pub height: usize,
    pub width: usize,
}

/// The bidirectional encoder of the prompt.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub max_positions: usize,
}

/// Spatial heads: how many offsets each direction has.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct HeadsConfig {
    pub horizontal: usize,
    pub vertical: usize,
    pub intermediate_size: usize,
}

/// The VQ tokenizer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqConfig {
    /// Channels per level, from the token grid up to the pixels.
    pub channels: Vec<usize>,
    /// Residual blocks per level of the decoder, in the same order.
    pub res_blocks: Vec<usize>,
    /// Residual blocks per level of the encoder, in the same order.
    pub encoder_res_blocks: Vec<usize>,
    /// Dimensions of a codebook entry.
    pub latent_channels: usize,
    /// Groups of every GroupNorm.
    pub group_norm_groups: usize,
    /// Pixels per token along a side.
    pub downscale: usize,
    /// Side of the square image that it was trained on.
    pub image_size: usize,
}

/// The attribute classifier that evaluation uses.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// Channels of the strided convolutions.
    pub channels: Vec<usize>,
    /// Width of the feature layer.
    pub features: usize,
    /// Attribute -> names of its classes in label order.
    pub attributes: BTreeMap<String, Vec<String>>,
}

/// Defaults of generation.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct GenerationConfig {
    pub cfg: f32,
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
}

impl Config {
    /// The architecture that this crate implements.
    pub const ARCHITECTURE: &'static str = "AvatarForImageGeneration";

    /// The token grid.
    pub fn grid(&self) -> Grid {
        Grid { height: self.grid.height, width: self.grid.width }
    }

    /// How many spatial heads look to the right, and how many down.
    pub fn heads(&self) -> (usize, usize) {
        self.spatial_heads.map_or((0, 0), |heads| (heads.horizontal, heads.vertical))
    }

    /// Shape of every attention layer.
    pub fn attention(&self) -> AttentionShape {
        AttentionShape { heads: self.num_attention_heads, kv_heads: self.num_key_value_heads, head_dim: self.head_dim }
    }

    /// Checks every size against its neighbours and against limits far above any known model, so that no later
    /// product overflows and nothing absurd is allocated.
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.architectures != [Self::ARCHITECTURE] {
            return Err(format!("architectures is {:?}, known is [{:?}]", self.architectures, Self::ARCHITECTURE));
        }
        self.check_sizes()?;
        let checks = [
            (
                self.num_attention_heads.is_multiple_of(self.num_key_value_heads),
                "num_key_value_heads must divide num_attention_heads",
            ),
            (
                self.head_dim.is_multiple_of(4),
                "head_dim must be a multiple of 4 for the rotary embedding over two axes",
            ),
            (
                self.text_encoder.hidden_size.is_multiple_of(self.text_encoder.num_attention_heads),
                "text_encoder.num_attention_heads must divide its hidden_size",
            ),
            (
                [&self.vq.res_blocks, &self.vq.encoder_res_blocks]
                    .iter()
                    .all(|blocks| blocks.len() == self.vq.channels.len()),
                "vq.channels, vq.res_blocks and vq.encoder_res_blocks must be of one length",
            ),
            (
                self.vq.channels.len() < 8 && self.vq.downscale == 1 << self.vq.channels.len().saturating_sub(1),
                "vq.downscale must be 2^(levels - 1)",
            ),
            (
                self.vq.channels.iter().all(|c| c.is_multiple_of(self.vq.group_norm_groups)),
                "vq.group_norm_groups must divide every channel count",
            ),
            (self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0, "rms_norm_eps must lie in (0, 1)"),
            (self.rope_theta > 1.0 && self.rope_theta.is_finite(), "rope_theta must be above 1"),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, message)) => Err((*message).into()),
            None => self.check_classifier(),
        }
    }

    fn check_sizes(&self) -> Result<(), String> {
        let (text, vq) = (&self.text_encoder, &self.vq);
        let bounded = [
            ("hidden_size", self.hidden_size, 65_536),
            ("num_hidden_layers", self.num_hidden_layers, 1024),
            ("num_attention_heads", self.num_attention_heads, 1024),
            ("num_key_value_heads", self.num_key_value_heads, 1024),
            ("head_dim", self.head_dim, 1024),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("image_vocab_size", self.image_vocab_size, 1 << 20),
            ("grid.height", self.grid.height, 1024),
            ("grid.width", self.grid.width, 1024),
            ("text_encoder.vocab_size", text.vocab_size, 1 << 20),
            ("text_encoder.hidden_size", text.hidden_size, 65_536),
            ("text_encoder.num_hidden_layers", text.num_hidden_layers, 1024),
            ("text_encoder.num_attention_heads", text.num_attention_heads, 1024),
            ("text_encoder.intermediate_size", text.intermediate_size, 1 << 20),
            ("text_encoder.max_positions", text.max_positions, 65_536),
            ("vq.latent_channels", vq.latent_channels, 4096),
            ("vq.group_norm_groups", vq.group_norm_groups, 4096),
            ("vq.image_size", vq.image_size, 65_536),
            ("vq.channels", vq.channels.len(), 8),
        ];
        let lists = vq.channels.iter().map(|&n| ("vq.channels", n, 65_536));
        let heads = self.spatial_heads.iter().flat_map(|heads| {
            [
                ("spatial_heads.horizontal", heads.horizontal, 64),
                ("spatial_heads.vertical", heads.vertical, 64),
                ("spatial_heads.intermediate_size", heads.intermediate_size, 1 << 20),
            ]
        });
        let blocks = vq.res_blocks.iter().chain(&vq.encoder_res_blocks).map(|&n| ("vq.res_blocks", n, 1024));
        for (name, value, limit) in bounded.into_iter().chain(heads).chain(lists).chain(blocks) {
            if value == 0 || value > limit {
                return Err(format!("{name} is {value}, it must lie in 1..={limit}"));
            }
        }
        Ok(())
    }

    fn check_classifier(&self) -> Result<(), String> {
        let Some(classifier) = &self.classifier else { return Ok(()) };
        if classifier.attributes.values().any(Vec::is_empty) {
            return Err("classifier.attributes has an attribute without classes".into());
        }
        let sizes = classifier.channels.iter().chain([&classifier.features]);
        if classifier.channels.is_empty() || sizes.into_iter().any(|&n| n == 0 || n > 65_536) {
            return Err("classifier.channels and classifier.features must lie in 1..=65536".into());
        }
        Ok(())
    }
}
