//! The named decoders: each a drafter, an acceptance rule and a schedule, with its defaults.

use super::acceptance::{Acceptance, Coupling, Group, Pool, Relaxation};
use super::drafter::{Preference, SpatialDrafter};
use super::knobs::{Knobs, choice};
use super::window::Guess;
use super::{
    Scene, Schedule, ar, coarse, cspd, dynamic_tree, eagle, jacobi, lanes, mulo, pipeline, pjd, ssd, static_tree, zipar,
};
use crate::backend::{PoolBound, Test};
use crate::models::low::Up;
use std::fmt;
use std::mem::discriminant;
use std::str::FromStr;

/// A decoder with its knobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Plain autoregressive decoding.
    Ar,
    /// Speculative Jacobi Decoding.
    Sjd(jacobi::Knobs),
    /// Speculative Coupled Decoding.
    Scd(Scd),
    /// Grouped Speculative Decoding.
    Gsd(Gsd),
    /// ZipAR.
    Zipar(zipar::Knobs),
    /// Parallel Jacobi Decoding.
    Pjd(pjd::Knobs),
    /// Spatially Speculative Decoding as published.
    Ssd(ssd::Knobs),
    /// Multi-scale local speculative decoding.
    MuloSd(mulo::Knobs),
    /// Continuous speculative decoding.
    Cspd(cspd::Knobs),
    /// EAGLE, its static tree.
    Eagle1(static_tree::Knobs),
    /// EAGLE-2, its dynamic tree.
    Eagle2(dynamic_tree::Knobs),
    /// LANTERN: the dynamic tree, relaxed.
    Lantern(Lantern<dynamic_tree::Knobs>),
    /// LANTERN++: the static tree, relaxed.
    LanternPlus(Lantern<static_tree::Knobs>),
    /// The slanted wavefront, relaxed: by slack, or by a cap on rounds.
    Wavefront(pipeline::Knobs),
    /// The slanted wavefront without them: the model's own law, and plain AR's tokens, bit for bit.
    Exact(pipeline::Knobs),
}

/// Settings of Speculative Coupled Decoding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scd {
    /// The window.
    pub window: jacobi::Knobs,
    /// What the tokens of two passes have in common.
    pub coupling: Coupling,
}

/// Settings of Grouped Speculative Decoding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gsd {
    /// The window.
    pub window: jacobi::Knobs,
    /// The groups.
    pub group: Group,
}

/// Settings of LANTERN on trees of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lantern<T> {
    /// The tree.
    pub tree: T,
    /// The neighbourhoods.
    pub pool: Pool,
}

/// A row of `weft decoders`.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Name on the command line.
    pub name: &'static str,
    /// Is the output law the model's own?
    pub exact: bool,
    /// What must have been trained besides the model.
    pub training: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// The decoder with its defaults.
    pub method: Method,
    /// Other settings, that show what its knobs do.
    pub sweep: &'static [&'static str],
}

const WINDOW: jacobi::Knobs = jacobi::Knobs { window: 16, guess: Guess::Random };
const DRAFTER: SpatialDrafter = SpatialDrafter { preference: Preference::Both };

const STATIC: static_tree::Knobs = static_tree::Knobs { plan: static_tree::Plan::Tuned, nodes: 60, depth: 8 };
const DYNAMIC: dynamic_tree::Knobs = dynamic_tree::Knobs { nodes: 60, depth: 6, top: 10 };

/// Every decoder.
pub const DECODERS: [Description; 15] = [
    Description {
        name: "ar",
        exact: true,
        training: "none",
        source: "one token a pass",
        method: Method::Ar,
        sweep: &[],
    },
    Description {
        name: "sjd",
        exact: true,
        training: "none",
        source: "arXiv 2410.01699",
        method: Method::Sjd(WINDOW),
        sweep: &["sjd:window=32"],
    },
    Description {
        name: "scd",
        exact: true,
        training: "none",
        source: "arXiv 2510.24211",
        method: Method::Scd(Scd { window: jacobi::Knobs { window: 32, ..WINDOW }, coupling: Coupling::Maximal }),
        sweep: &["scd:coupling=gumbel", "scd:window=64", "scd:window=96"],
    },
    Description {
        name: "gsd",
        exact: false,
        training: "none",
        source: "arXiv 2508.07747",
        method: Method::Gsd(Gsd { window: WINDOW, group: Group { size: 10, delta: 0.15, distance: 122.0 } }),
        sweep: &["gsd:g=3", "gsd:g=25", "gsd:g=50"],
    },
    Description {
        name: "zipar",
        exact: false,
        training: "none",
        source: "arXiv 2412.04062",
        method: Method::Zipar(zipar::Knobs { window: 6, adaptive: false }),
        sweep: &["zipar:window=1", "zipar:window=2", "zipar:window=3", "zipar:window=12", "zipar:adaptive=1"],
    },
    Description {
        name: "pjd",
        exact: false,
        training: "none",
        source: "arXiv 2606.05703",
        method: Method::Pjd(pjd::Knobs { threshold: 6, drafts: 15, guess: Guess::Random }),
        sweep: &["pjd:threshold=2", "pjd:threshold=4", "pjd:threshold=8", "pjd:threshold=12"],
    },
    Description {
        name: "ssd",
        exact: false,
        training: "spatial heads",
        source: "arXiv 2606.20543",
        method: Method::SSD,
        sweep: &["ssd:rounds=0", "ssd:rounds=1"],
    },
    Description {
        name: "mulo-sd",
        exact: false,
        training: "low model",
        source: "arXiv 2601.05149",
        method: Method::MULO_SD,
        sweep: &["mulo-sd:tau=0", "mulo-sd:radius=0", "mulo-sd:window=1", "mulo-sd:radius=2", "mulo-sd:up=latent"],
    },
    Description {
        name: "cspd",
        exact: false,
        training: "continuous",
        source: "arXiv 2411.11925",
        method: Method::CSPD,
        sweep: &["cspd:drafts=0", "cspd:sigma=one", "cspd:sigma=code:temper=42:schedule=fixed"],
    },
    Description {
        name: "eagle1",
        exact: true,
        training: "EAGLE drafter",
        source: "arXiv 2401.15077",
        method: Method::Eagle1(STATIC),
        sweep: &["eagle1:tree=paper"],
    },
    Description {
        name: "eagle2",
        exact: true,
        training: "EAGLE drafter",
        source: "arXiv 2406.16858",
        method: Method::Eagle2(DYNAMIC),
        sweep: &["eagle2:nodes=25:depth=5"],
    },
    Description {
        name: "lantern",
        exact: false,
        training: "EAGLE drafter",
        source: "arXiv 2410.03355",
        method: Method::Lantern(Lantern { tree: DYNAMIC, pool: Pool { neighbours: 32, bound: PoolBound::Mass(0.1) } }),
        sweep: &["lantern:delta=0.05", "lantern:delta=0.2", "lantern:delta=0.4"],
    },
    Description {
        name: "lantern++",
        exact: false,
        training: "EAGLE drafter",
        source: "arXiv 2502.06352",
        method: Method::LanternPlus(Lantern {
            tree: STATIC,
            pool: Pool { neighbours: 10, bound: PoolBound::Ratio(5.0) },
        }),
        sweep: &["lantern++:k=5:lambda=10", "lantern++:k=10:lambda=2"],
    },
    Description {
        name: "wavefront",
        exact: false,
        training: "spatial heads",
        source: "weft: rows in flight, coupled noise",
        method: Method::WAVEFRONT,
        sweep: &[
            "wavefront:lag=0.6:slope=0.02:window=8:slack=9:early=3:penalty=1",
            "wavefront:slack=4.5:early=1.5:penalty=0.8",
            "wavefront:window=4",
            "wavefront:slack=1:early=0.4:tree=64",
        ],
    },
    Description {
        name: "exact",
        exact: true,
        training: "spatial heads",
        source: "weft: the same, committed when verified",
        method: Method::EXACT,
        sweep: &[
            "exact:window=2",
            "exact:coupling=maximal",
            "exact:tree=64",
            "exact:lag=0.5:slope=0.02:window=10:tree=128",
        ],
    },
];

impl Method {
    /// The published schedule for a 24x24 grid.
    pub const SSD: Self = Self::Ssd(ssd::Knobs { rounds: 2, rows_per_block: 1, refinements: 0 });
    /// What a small sweep chose (docs/decoders.md).
    pub const MULO_SD: Self = Self::MuloSd(mulo::Knobs {
        rows: 12,
        draft: coarse::Knobs { up: Up::Pixel, ahead: 3 },
        pool: 16,
        tau: 0.1,
        radius: 1,
        resample: mulo::Resample::Parallel,
        window: 2,
        refresh: false,
    });
    /// The paper's criterion and share of pre-filling.
    pub const CSPD: Self = Self::Cspd(cspd::Knobs {
        drafts: 4,
        schedule: cspd::Schedule::Truncate,
        criterion: cspd::criterion::Criterion { sigma: cspd::criterion::Sigma::Paper, temper: 1.0 },
        prefill: 0.05,
        rounds: 36,
        steps: 50,
        noise: true,
    });
    /// What the exploration in `docs/wavefront.md` chose: `ar`'s quality in the fewest passes.
    pub const WAVEFRONT: Self = Self::Wavefront(pipeline::Knobs {
        lag: 0.8,
        slope: 0.05,
        window: 6.0,
        rounds: None,
        reach: None,
        drafter: DRAFTER,
        coupling: Coupling::Gumbel,
        relaxation: Some(Relaxation::NONE),
        slack: 3.0,
        early: Some(1.0),
        penalty: 0.6,
        tree: 0,
    });
    /// A window of about three rows: wider ones save few passes and feed many more rows.
    pub const EXACT: Self = Self::Exact(pipeline::Knobs {
        lag: 1.0,
        slope: 0.04,
        window: 3.0,
        rounds: None,
        reach: None,
        drafter: DRAFTER,
        coupling: Coupling::Gumbel,
        relaxation: None,
        slack: 0.0,
        early: None,
        penalty: 0.0,
        tree: 0,
    });

    /// Name on the command line.
    pub fn name(&self) -> &'static str {
        self.description().name
    }

    /// Is the output law the model's own?
    pub fn is_exact(&self) -> bool {
        self.description().exact
    }

    /// Does it draft with the model's spatial heads?
    pub fn needs_heads(&self) -> bool {
        matches!(self, Self::Ssd(_) | Self::Wavefront(_) | Self::Exact(_))
    }

    /// How a low-resolution model drafts for it, if one does.
    pub fn coarse(&self) -> Option<coarse::Knobs> {
        if let Self::MuloSd(knobs) = self { Some(knobs.draft) } else { None }
    }

    /// Is it plain decoding of its target, which others are compared with?
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Ar | Self::Cspd(cspd::Knobs { drafts: 0, .. }))
    }

    /// Its settings, if it draws a picture of a continuous model, which has no tokens.
    pub fn continuous(&self) -> Option<cspd::Knobs> {
        if let Self::Cspd(knobs) = self { Some(*knobs) } else { None }
    }

    /// Does it draft with an EAGLE drafter?
    pub fn needs_eagle(&self) -> bool {
        matches!(self, Self::Eagle1(_) | Self::Eagle2(_) | Self::Lantern(_) | Self::LanternPlus(_))
    }

    fn description(&self) -> &'static Description {
        let of_kind = |description: &&Description| discriminant(&description.method) == discriminant(self);
        DECODERS.iter().find(of_kind).expect("every kind has its row")
    }

    /// None of plain decoding, which has no knobs.
    fn settings(&mut self) -> Option<&mut dyn Knobs> {
        Some(match self {
            Self::Ar => return None,
            Self::Sjd(knobs) => knobs,
            Self::Scd(knobs) => knobs,
            Self::Gsd(knobs) => knobs,
            Self::Zipar(knobs) => knobs,
            Self::Pjd(knobs) => knobs,
            Self::Ssd(knobs) => knobs,
            Self::MuloSd(knobs) => knobs,
            Self::Cspd(knobs) => knobs,
            Self::Eagle1(knobs) => knobs,
            Self::Eagle2(knobs) => knobs,
            Self::Lantern(knobs) => knobs,
            Self::LanternPlus(knobs) => knobs,
            Self::Wavefront(knobs) | Self::Exact(knobs) => knobs,
        })
    }

    /// Every knob with its value.
    pub fn knobs(mut self) -> Vec<(&'static str, String)> {
        self.settings().map_or(Vec::new(), |knobs| knobs.list())
    }

    /// The same decoder with one knob changed, or why that cannot be.
    pub fn with_knob(mut self, knob: &str, value: &str) -> Result<Self, String> {
        let known = self.settings().map_or(Ok(false), |knobs| knobs.set(knob, value))?;
        if known { Ok(self) } else { Err(format!("{} has no knob {knob:?}", self.name())) }
    }

    /// Does it feed a tree beside its block?
    pub fn foresees(&self) -> bool {
        matches!(self, Self::Wavefront(knobs) | Self::Exact(knobs) if knobs.foresees())
    }

    /// What becomes of a token once its distribution is known.
    pub fn acceptance(&self) -> Acceptance {
        match self {
            Self::Ar | Self::Cspd(_) => Acceptance::Coupled,
            Self::Sjd(_) | Self::Pjd(_) | Self::Ssd(_) | Self::Eagle1(_) | Self::Eagle2(_) => {
                Acceptance::Judged(Test::Token)
            }
            Self::Scd(scd) => scd.coupling.acceptance(),
            Self::Gsd(gsd) => Acceptance::Judged(gsd.group.test()),
            Self::Zipar(knobs) => knobs.acceptance(),
            Self::MuloSd(knobs) => knobs.acceptance(),
            Self::Lantern(Lantern { pool, .. }) | Self::LanternPlus(Lantern { pool, .. }) => {
                Acceptance::Judged(pool.test())
            }
            Self::Wavefront(knobs) | Self::Exact(knobs) => knobs.acceptance(),
        }
    }

    /// The schedule for an image.
    ///
    /// # Panics
    /// If the method is [`Self::continuous`]: it has a loop of its own.
    pub fn schedule(&self, scene: Scene) -> Box<dyn Schedule + Send> {
        let Scene { grid, heads, .. } = scene;
        let fixed = |knobs| Box::new(eagle::Eagle::new(grid, static_tree::StaticTree::new(knobs)));
        let dynamic = |knobs| Box::new(eagle::Eagle::new(grid, dynamic_tree::DynamicTree::new(grid, knobs)));
        match self {
            Self::Ar => Box::new(ar::Ar::new(grid)),
            Self::Sjd(window) => Box::new(jacobi::Jacobi::new(scene, *window, true)),
            Self::Scd(scd) => Box::new(jacobi::Jacobi::new(scene, scd.window, false)),
            Self::Gsd(gsd) => Box::new(jacobi::Jacobi::new(scene, gsd.window, true)),
            Self::Zipar(knobs) => Box::new(lanes::Lanes::new(scene, knobs.shape())),
            Self::Pjd(knobs) => Box::new(lanes::Lanes::new(scene, knobs.shape())),
            Self::Eagle1(knobs) | Self::LanternPlus(Lantern { tree: knobs, .. }) => fixed(knobs),
            Self::Eagle2(knobs) | Self::Lantern(Lantern { tree: knobs, .. }) => dynamic(*knobs),
            Self::Ssd(knobs) => Box::new(ssd::Ssd::new(grid, heads, knobs)),
            Self::MuloSd(knobs) => Box::new(mulo::MuLo::new(scene, *knobs)),
            Self::Cspd(_) => panic!("a continuous picture has no schedule of tokens"),
            Self::Wavefront(knobs) | Self::Exact(knobs) => Box::new(pipeline::Wave::new(grid, heads, *knobs)),
        }
    }
}

impl Knobs for Scd {
    fn list(&self) -> Vec<(&'static str, String)> {
        let mut list = self.window.list();
        list.push(("coupling", self.coupling.to_string()));
        list
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        if knob == "coupling" {
            self.coupling = choice(knob, value)?;
            return Ok(true);
        }
        self.window.set(knob, value)
    }
}

impl<T: Knobs> Knobs for Lantern<T> {
    fn list(&self) -> Vec<(&'static str, String)> {
        let mut list = self.tree.list();
        list.extend(self.pool.list());
        list
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        Ok(self.tree.set(knob, value)? || self.pool.set(knob, value)?)
    }

    fn check(&self) -> Result<(), String> {
        self.tree.check()
    }
}

impl Knobs for Gsd {
    fn list(&self) -> Vec<(&'static str, String)> {
        let mut list = self.window.list();
        list.extend(self.group.list());
        list
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        Ok(self.window.set(knob, value)? || self.group.set(knob, value)?)
    }
}

/// `name` or `name:knob=value:knob=value`, as on the command line.
impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let found = DECODERS.iter().find(|decoder| decoder.name == name).ok_or_else(|| {
            let names: Vec<_> = DECODERS.iter().map(|decoder| decoder.name).collect();
            format!("unknown decoder {name:?}, known are {}", names.join(", "))
        })?;
        let mut method = parts.try_fold(found.method, |method, part| {
            let (knob, value) =
                part.split_once('=').ok_or_else(|| format!("{part:?} is not of the form knob=value"))?;
            method.with_knob(knob, value)
        })?;
        method.settings().map_or(Ok(()), |knobs| knobs.check())?;
        Ok(method)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.knobs().iter().try_for_each(|(knob, value)| write!(f, ":{knob}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_knob_is_parsed_as_it_is_printed() {
        for decoder in DECODERS {
            assert_eq!(decoder.method.name(), decoder.name);
            assert_eq!(decoder.method.to_string().parse(), Ok(decoder.method));
            for other in decoder.sweep {
                assert_eq!(other.parse::<Method>().unwrap().name(), decoder.name);
            }
        }
        for text in [
            "wavefront:lag=2:rounds=5:reach=2:draft=left:slack=0:coupling=maximal:pool=9:mass=0.2",
            "wavefront:rounds=all:reach=all:slack=0.7:early=0.2:penalty=0.4:tree=32",
            "wavefront:reach=all",
            "wavefront:slack=0.35",
            "exact:window=4:tree=64",
            "scd:window=64:init=above:coupling=gumbel",
            "gsd:window=8:init=left:g=25:delta=0.3:distance=inf",
            "zipar:window=3:adaptive=1",
            "pjd:threshold=9:drafts=4:init=left",
            "ssd:rounds=4:rows=2:refinements=1",
            "mulo-sd:rows=3:up=pixel:ahead=0:pool=9:tau=0.25:radius=2:resample=serial:window=5:refresh=1",
            "cspd:drafts=3:schedule=fixed:sigma=code:temper=42:prefill=0.1:rounds=20:steps=10:noise=0",
            "eagle1:tree=paper:nodes=9:depth=3",
            "eagle2:nodes=9:depth=3:top=4",
            "lantern:top=30:depth=3",
            "lantern:top=4:k=7:delta=0.25",
            "lantern++:tree=paper:k=7:lambda=2.5",
        ] {
            let method: Method = text.parse().unwrap();
            let printed = method.to_string();
            assert_eq!(printed.parse(), Ok(method));
            assert!(text.split(':').all(|part| printed.contains(part)), "{text} became {printed}");
        }
    }

    #[test]
    fn a_wrong_knob_is_named() {
        for (text, error) in [
            ("magic", "unknown decoder"),
            ("exact:rounds=3", "exact has no knob \"rounds\""),
            ("exact:tree=200", "tree=200: must be at most 128"),
            ("lantern:top=33:depth=2", "top at most 32"),
            ("eagle2:top=30", "nodes=60, depth=6, top=30: nodes and top"),
            ("exact:coupling=maximal:tree=8", "needs coupling=gumbel"),
            ("wavefront:slack=-1", "slack=-1: must be"),
            ("wavefront:slack=0.5:coupling=maximal", "slack needs coupling=gumbel"),
            ("wavefront:penalty=-1", "penalty=-1: must be"),
            ("exact:early=0", "exact has no knob \"early\""),
            ("exact:slack=0.5", "exact has no knob \"slack\""),
            ("wavefront:slack=0:coupling=maximal:tree=8", "needs coupling=gumbel"),
            ("exact:reach=2", "exact has no knob \"reach\""),
            ("ar:lag=1", "ar has no knob \"lag\""),
            ("wavefront:lag=-1", "lag=-1: must be"),
            ("wavefront:lag=nan", "lag=nan: must be"),
            ("wavefront:rounds=0", "rounds=0: must be"),
            ("ssd:rows=x", "rows=x"),
            ("ssd:rows", "knob=value"),
            ("sjd:init=middle", "init=middle: must be random or left or above"),
            ("gsd:g=5000", "must be at most"),
            ("mulo-sd:up=sideways", "up=sideways: must be pixel or latent"),
            ("cspd:temper=0.5", "temper=0.5: must be at least 1"),
            ("cspd:sigma=two", "sigma=two: must be paper or code or one"),
            ("zipar:adaptive=2", "adaptive=2: must be 0 or 1"),
            ("eagle1:nodes=500", "must be at most 128"),
            ("eagle1:top=4", "eagle1 has no knob \"top\""),
            ("lantern:lambda=2", "lantern has no knob \"lambda\""),
            ("lantern++:lambda=0.5", "must be at least 1"),
        ] {
            let message = text.parse::<Method>().unwrap_err();
            assert!(message.contains(error), "{message}");
        }
    }
}
