//! The named decoders: each a drafter, an acceptance rule and a schedule, with its defaults.

use super::accept::{AutoCorrect, Coupled};
use super::drafter::{Preference, SpatialDrafter};
use super::{Outcome, Target, ar, pipeline, ssd};
use crate::rng::Stream;
use std::str::FromStr;

/// A decoder with its knobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Plain autoregressive decoding.
    Ar,
    /// Spatially Speculative Decoding as published.
    Ssd(ssd::Knobs),
    /// The slanted wavefront with a cap on rounds.
    Wavefront(pipeline::Knobs),
    /// The slanted wavefront without one: plain AR's tokens, bit for bit.
    Exact(pipeline::Knobs),
}

/// A row of `weft decoders`.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Name on the command line.
    pub name: &'static str,
    /// Is the output law the model's own?
    pub exact: bool,
    /// What it needs to have been trained.
    pub needs: &'static str,
    /// Where it comes from.
    pub source: &'static str,
}

/// Every decoder.
pub const DECODERS: [Description; 4] = [
    Description { name: "ar", exact: true, needs: "nothing", source: "one token a pass, Gumbel-max sampling" },
    Description { name: "ssd", exact: false, needs: "spatial heads", source: "arXiv 2606.20543" },
    Description { name: "wavefront", exact: false, needs: "spatial heads", source: "weft: rows in flight, coupled noise" },
    Description { name: "exact", exact: true, needs: "spatial heads", source: "weft: the same, committed when verified" },
];

const DRAFTER: SpatialDrafter = SpatialDrafter { preference: Preference::Both };

impl Method {
    /// The published schedule for a 24x24 grid.
    pub const SSD: Self = Self::Ssd(ssd::Knobs { rounds: 2, rows_per_block: 1, refinements: 0 });
    /// The shape that the exploration in `docs/wavefront.md` chose.
    pub const WAVEFRONT: Self = Self::Wavefront(pipeline::Knobs {
        lag: 1.5,
        slope: 0.25,
        window: f64::INFINITY,
        rounds: Some(3),
        drafter: DRAFTER,
    });
    /// A window of about four rows.
    pub const EXACT: Self =
        Self::Exact(pipeline::Knobs { lag: 1.0, slope: 1.0 / 24.0, window: 4.0, rounds: None, drafter: DRAFTER });

    /// Name on the command line.
    pub fn name(&self) -> &'static str {
        self.description().name
    }

    /// Is the output law the model's own?
    pub fn is_exact(&self) -> bool {
        self.description().exact
    }

    fn description(&self) -> &'static Description {
        match self {
            Self::Ar => &DECODERS[0],
            Self::Ssd(_) => &DECODERS[1],
            Self::Wavefront(_) => &DECODERS[2],
            Self::Exact(_) => &DECODERS[3],
        }
    }

    /// The same decoder with another number of rounds, or why it has none.
    pub fn with_rounds(self, rounds: u32) -> Result<Self, String> {
        match self {
            Self::Ssd(knobs) => Ok(Self::Ssd(ssd::Knobs { rounds: rounds as usize, ..knobs })),
            Self::Wavefront(_) if rounds == 0 => Err("wavefront needs at least one round".into()),
            Self::Wavefront(knobs) => Ok(Self::Wavefront(pipeline::Knobs { rounds: Some(rounds), ..knobs })),
            Self::Ar | Self::Exact(_) => Err(format!("decoder {} has no rounds to set", self.name())),
        }
    }

    /// Decodes one image. `progress` is told how many tokens are done.
    pub fn decode<T: Target>(&self, target: &mut T, stream: Stream, progress: &mut dyn FnMut(usize)) -> Outcome {
        match self {
            Self::Ar => ar::decode(target, stream, progress),
            Self::Ssd(knobs) => ssd::decode(target, AutoCorrect::new(stream), knobs, progress),
            Self::Wavefront(knobs) | Self::Exact(knobs) => {
                pipeline::decode(target, Coupled::new(stream), knobs, progress)
            }
        }
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Ar, Self::SSD, Self::WAVEFRONT, Self::EXACT].into_iter().find(|method| method.name() == name).ok_or_else(
            || {
                let names: Vec<_> = DECODERS.iter().map(|decoder| decoder.name).collect();
                format!("unknown decoder {name:?}, known are {}", names.join(", "))
            },
        )
    }
}
