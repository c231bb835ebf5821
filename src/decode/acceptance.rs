//! Acceptance rules: what becomes of a token once its distribution is known.

use super::knobs::{Knobs, count, number};
use crate::backend::{GROUP, PoolBound, Test};

/// How a target decides what becomes of a token once its distribution is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Acceptance {
    /// Coupled randomness: a token is argmax(log p + Gumbel noise of its position), so drafting and verifying agree
    /// whenever their distributions do, and a pass over tokens that no longer change has found plain AR's sample.
    Coupled,
    /// The same, relaxed: a token stays while the best one's sum is less than `slack` nats larger
    /// ([`Rule::Cling`](crate::backend::Rule::Cling)). Corrections that hardly matter then make no others.
    Clinging {
        /// Nats.
        slack: f32,
        /// The slack of what is asked early ([`Ask::early`](super::Ask::early)), at most the other.
        early: f32,
        /// Nats of slack that each nat takes by which the best is more probable.
        penalty: f32,
    },
    /// A token is kept if it passes a test of p against q, the law that it was drawn from, and replaced otherwise; see
    /// [`Rule::AutoCorrect`](crate::backend::Rule::AutoCorrect). With [`Test::Token`] its law is then p.
    ///
    /// Drafts are sampled from their heads' q, and in later rounds q is the p of the round before: the law that the token
    /// then has. (SSD is silent on both.)
    Judged(Test),
}

/// How the tokens that two passes draw for one position hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coupling {
    /// Both take the position's own noise: [`Acceptance::Coupled`].
    Gumbel,
    /// The second keeps the first's token as often as any coupling can: [`Test::Token`].
    Maximal,
}

super::knobs::names!(Coupling { Gumbel = "gumbel", Maximal = "maximal" });

impl Coupling {
    /// The rule.
    pub fn acceptance(self) -> Acceptance {
        match self {
            Self::Gumbel => Acceptance::Coupled,
            Self::Maximal => Acceptance::Judged(Test::Token),
        }
    }
}

/// The groups of Grouped Speculative Decoding, see [`Test::Grouped`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Tokens in a group (G).
    pub size: u32,
    /// How far their probabilities may lie apart.
    pub delta: f32,
    /// How far their embeddings may lie apart, squared.
    pub distance: f32,
}

impl Group {
    /// The test.
    pub fn test(self) -> Test {
        let Self { size, delta, distance } = self;
        Test::Grouped { size, delta, distance }
    }
}

impl Knobs for Group {
    fn list(&self) -> Vec<(&'static str, String)> {
        let Self { size, delta, distance } = self;
        vec![("g", size.to_string()), ("delta", delta.to_string()), ("distance", distance.to_string())]
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match knob {
            "g" => match count(knob, value, 1)? as u32 {
                size if size <= GROUP => self.size = size,
                size => return Err(format!("g={size}: must be at most {GROUP}")),
            },
            "delta" => self.delta = number(knob, value, f64::INFINITY)? as f32,
            "distance" => self.distance = number(knob, value, f64::INFINITY)? as f32,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The neighbourhoods of LANTERN, see [`Test::Pooled`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pool {
    /// Nearest others in the codebook that are looked at (k).
    pub neighbours: u32,
    /// What they may add.
    pub bound: PoolBound,
}

impl Pool {
    /// The test.
    pub fn test(self) -> Test {
        let Self { neighbours, bound } = self;
        Test::Pooled { neighbours, bound }
    }
}

impl Knobs for Pool {
    fn list(&self) -> Vec<(&'static str, String)> {
        let bound = match self.bound {
            PoolBound::Mass(mass) => ("delta", mass.to_string()),
            PoolBound::Ratio(ratio) => ("lambda", ratio.to_string()),
        };
        vec![("k", self.neighbours.to_string()), bound]
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match (knob, &mut self.bound) {
            ("k", _) => self.neighbours = count(knob, value, 0)? as u32,
            ("delta", PoolBound::Mass(mass)) => *mass = number(knob, value, 1.0)? as f32,
            ("lambda", PoolBound::Ratio(ratio)) => match number(knob, value, f64::INFINITY)? {
                bound if bound >= 1.0 => *ratio = bound as f32,
                bound => return Err(format!("lambda={bound}: must be at least 1")),
            },
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// How loosely a token is judged; not at all by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relaxation {
    /// With the tokens that are about as probable: [`Test::Grouped`], above a size of 1.
    pub group: Group,
    /// With so many tokens of the codebook that look most like it: [`Test::Pooled`], above 0.
    pub pool: u32,
    /// What those may add to its probability.
    pub mass: f32,
}

impl Relaxation {
    /// None.
    pub const NONE: Self =
        Self { group: Group { size: 1, delta: f32::INFINITY, distance: f32::INFINITY }, pool: 0, mass: 0.1 };

    /// The test.
    pub fn test(self) -> Test {
        match self {
            Self { pool: 0, group: Group { size: 1, .. }, .. } => Test::Token,
            Self { pool: 0, group, .. } => group.test(),
            Self { pool, mass, .. } => Test::Pooled { neighbours: pool, bound: PoolBound::Mass(mass) },
        }
    }
}

impl Knobs for Relaxation {
    fn list(&self) -> Vec<(&'static str, String)> {
        let mut list = self.group.list();
        list.extend([("pool", self.pool.to_string()), ("mass", self.mass.to_string())]);
        list
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match knob {
            "pool" => self.pool = count(knob, value, 0)? as u32,
            "mass" => self.mass = number(knob, value, 1.0)? as f32,
            _ => return self.group.set(knob, value),
        }
        Ok(true)
    }
}
