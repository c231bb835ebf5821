//! The named decoders: each a drafter, an acceptance rule and a schedule, with its defaults.

use super::drafter::{Preference, SpatialDrafter};
use super::{Acceptance, Schedule, ar, pipeline, ssd};
use crate::grid::Grid;
use std::fmt;
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
    Description {
        name: "wavefront",
        exact: false,
        needs: "spatial heads",
        source: "weft: rows in flight, coupled noise",
    },
    Description {
        name: "exact",
        exact: true,
        needs: "spatial heads",
        source: "weft: the same, committed when verified",
    },
];

const DRAFTER: SpatialDrafter = SpatialDrafter { preference: Preference::Both };

impl Method {
    /// The published schedule for a 24x24 grid.
    pub const SSD: Self = Self::Ssd(ssd::Knobs { rounds: 2, rows_per_block: 1, refinements: 0 });
    /// The shape that the exploration in `docs/wavefront.md` chose.
    pub const WAVEFRONT: Self = Self::Wavefront(pipeline::Knobs {
        lag: 1.5,
        slope: 0.2,
        window: f64::INFINITY,
        rounds: Some(8),
        drafter: DRAFTER,
    });
    /// A window of about two rows: wider ones save few passes and feed many more rows.
    pub const EXACT: Self =
        Self::Exact(pipeline::Knobs { lag: 1.0, slope: 0.04, window: 2.0, rounds: None, drafter: DRAFTER });

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

    /// The same decoder with one knob changed, or why that cannot be.
    pub fn with_knob(self, knob: &str, value: &str) -> Result<Self, String> {
        let invalid = |limits: &str| format!("{knob}={value}: must be {limits}");
        let count = |least: usize| match value.parse::<usize>() {
            Ok(count) if (least..=10_000).contains(&count) => Ok(count),
            _ => Err(invalid(&format!("a whole number in {least}..=10000"))),
        };
        let number = |largest: f64| match value.parse::<f64>() {
            Ok(number) if (0.0..=largest).contains(&number) => Ok(number),
            _ => Err(invalid(&format!("a number in 0..={largest}"))),
        };
        let mut changed = self;
        match (&mut changed, knob) {
            (Self::Ssd(knobs), "rounds") => knobs.rounds = count(0)?,
            (Self::Ssd(knobs), "rows") => knobs.rows_per_block = count(1)?,
            (Self::Ssd(knobs), "refinements") => knobs.refinements = count(0)?,
            (Self::Wavefront(knobs), "rounds") => knobs.rounds = Some(count(1)? as u32),
            (Self::Wavefront(knobs) | Self::Exact(knobs), "lag") => knobs.lag = number(1e4)?,
            (Self::Wavefront(knobs) | Self::Exact(knobs), "slope") => knobs.slope = number(1e4)?,
            (Self::Wavefront(knobs) | Self::Exact(knobs), "window") => knobs.window = number(f64::INFINITY)?,
            (Self::Wavefront(knobs) | Self::Exact(knobs), "draft") => knobs.drafter.preference = value.parse()?,
            _ => return Err(format!("{} has no knob {knob:?}", self.name())),
        }
        Ok(changed)
    }

    /// What becomes of a token once its distribution is known.
    pub fn acceptance(&self) -> Acceptance {
        match self {
            Self::Ssd(_) => Acceptance::AutoCorrect,
            Self::Ar | Self::Wavefront(_) | Self::Exact(_) => Acceptance::Coupled,
        }
    }

    /// The schedule for an image, given how many horizontal and vertical heads the model has.
    pub fn schedule(&self, grid: Grid, heads: (usize, usize)) -> Box<dyn Schedule + Send> {
        match self {
            Self::Ar => Box::new(ar::Ar::new(grid)),
            Self::Ssd(knobs) => Box::new(ssd::Ssd::new(grid, heads, knobs)),
            Self::Wavefront(knobs) | Self::Exact(knobs) => Box::new(pipeline::Wave::new(grid, heads, *knobs)),
        }
    }
}

/// `name` or `name:knob=value:knob=value`, as on the command line.
impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let known = [Self::Ar, Self::SSD, Self::WAVEFRONT, Self::EXACT];
        let method = known.into_iter().find(|method| method.name() == name).ok_or_else(|| {
            let names: Vec<_> = DECODERS.iter().map(|decoder| decoder.name).collect();
            format!("unknown decoder {name:?}, known are {}", names.join(", "))
        })?;
        parts.try_fold(method, |method, part| {
            let (knob, value) =
                part.split_once('=').ok_or_else(|| format!("{part:?} is not of the form knob=value"))?;
            method.with_knob(knob, value)
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        match self {
            Self::Ar => Ok(()),
            Self::Ssd(knobs) => {
                write!(f, ":rounds={}", knobs.rounds)?;
                if knobs.rows_per_block > 1 {
                    write!(f, ":rows={}:refinements={}", knobs.rows_per_block, knobs.refinements)?;
                }
                Ok(())
            }
            Self::Wavefront(knobs) | Self::Exact(knobs) => {
                write!(f, ":lag={}:slope={}:window={}", knobs.lag, knobs.slope, knobs.window)?;
                knobs.rounds.map_or(Ok(()), |rounds| write!(f, ":rounds={rounds}"))?;
                write!(f, ":draft={}", knobs.drafter.preference)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knobs_are_parsed_and_printed() {
        let method: Method = "wavefront:lag=2:rounds=5:draft=left".parse().unwrap();
        assert_eq!(method.to_string().parse(), Ok(method));
        assert!(method.to_string().contains("lag=2") && method.to_string().contains("rounds=5:draft=left"));
        for method in [Method::Ar, Method::SSD, Method::WAVEFRONT, Method::EXACT] {
            assert_eq!(method.to_string().parse(), Ok(method));
        }
        for (text, error) in [
            ("magic", "unknown decoder"),
            ("exact:rounds=3", "exact has no knob \"rounds\""),
            ("ar:lag=1", "ar has no knob \"lag\""),
            ("wavefront:lag=-1", "lag=-1: must be"),
            ("wavefront:lag=nan", "lag=nan: must be"),
            ("wavefront:rounds=0", "rounds=0: must be"),
            ("ssd:rows=x", "rows=x"),
            ("ssd:rows", "knob=value"),
        ] {
            let message = text.parse::<Method>().unwrap_err();
            assert!(message.contains(error), "{message}");
        }
    }
}
