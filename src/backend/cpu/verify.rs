//! Whether a token that was drawn from q passes for one that was drawn from p: the rules of [`Test`], written to be read.

use super::draw::Proposal;
use crate::backend::codebook::{nearest, squared_distance};
use crate::backend::{GROUP, PoolBound, Test};

/// A vector for each token, and the nearest others of each.
pub struct Codebook {
    vectors: Vec<f32>,
    dim: usize,
    /// `[vocab, each]`.
    neighbours: Vec<u32>,
    each: usize,
}

impl Codebook {
    /// See [`Backend::codebook`](crate::backend::Backend::codebook).
    pub(crate) fn new(vectors: &[f32], dim: usize, neighbours: usize) -> Self {
        Self { neighbours: nearest(vectors, dim, neighbours), vectors: vectors.to_vec(), dim, each: neighbours }
    }

    /// The `count` nearest others of a token.
    fn nearest(&self, token: usize, count: u32) -> &[u32] {
        assert!(count as usize <= self.each, "{count} neighbours where {} are known", self.each);
        &self.neighbours[token * self.each..][..count as usize]
    }

    fn squared_distance(&self, a: usize, b: usize) -> f32 {
        let vector = |token: usize| &self.vectors[token * self.dim..][..self.dim];
        squared_distance(vector(a), vector(b))
    }
}

/// A token that is judged, and what it is judged by.
pub(super) struct Case<'a> {
    /// The token.
    pub(super) token: usize,
    /// The processed log-weights of p.
    pub(super) log_weights: &'a [f32],
    /// Their softmax.
    pub(super) p: &'a [f32],
    /// The law that the token was drawn from.
    pub(super) q: &'a Proposal,
    /// Uniform in (0, 1).
    pub(super) uniform: f32,
    /// For tests that look at neighbours.
    pub(super) codebook: Option<&'a Codebook>,
}

/// What becomes of a token.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// It passes.
    Keep,
    /// It is replaced by one of max(0, p - q).
    Correct,
    /// The same, but by none of these.
    CorrectWithout(Vec<u32>),
    /// It is replaced by one of p.
    Redraw,
}

impl Case<'_> {
    /// Judges.
    pub(super) fn judge(&self, test: Test) -> Verdict {
        let (p, q) = (self.p[self.token], self.q.of(self.token));
        match test {
            Test::Token => {
                if self.uniform * q < p {
                    Verdict::Keep
                } else {
                    Verdict::Correct
                }
            }
            Test::Grouped { size, delta, distance } => {
                let others = self.group(size, delta, distance);
                let group = p + mass(others.iter().map(|&c| self.p[c]));
                let of = q + mass(others.iter().map(|&c| self.q.of(c)));
                if self.uniform * of < group { Verdict::Keep } else { Verdict::Correct }
            }
            Test::Pooled { neighbours, bound } => {
                let pool = self.pool(neighbours, bound);
                let pooled = p + mass(pool.iter().map(|&c| self.p[c as usize]));
                if self.uniform * q < pooled { Verdict::Keep } else { Verdict::CorrectWithout(pool.to_vec()) }
            }
            Test::Threshold { neighbours, least } => {
                let near = self.nearest(neighbours).iter().map(|&c| self.p[c as usize]);
                if p + mass(near) >= least { Verdict::Keep } else { Verdict::Redraw }
            }
        }
    }

    /// The group of the token, without it.
    fn group(&self, size: u32, delta: f32, distance: f32) -> Vec<usize> {
        assert!((1..=GROUP).contains(&size), "a group of {size} tokens");
        let (token, weights) = (self.token, self.log_weights);
        let mut ranked: Vec<usize> = (0..weights.len()).filter(|&c| weights[c] > f32::NEG_INFINITY).collect();
        ranked.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        let Some(rank) = ranked.iter().position(|&c| c == token) else { return Vec::new() };
        let size = size as usize;
        let first = rank.saturating_sub((size - 1) / 2).min(ranked.len().saturating_sub(size));
        let near = |c: usize| {
            // Without a bound there need be no vectors.
            distance == f32::INFINITY
                || self.codebook.expect("distances of the vectors of a codebook").squared_distance(c, token) < distance
        };
        let window = ranked.into_iter().skip(first).take(size);
        window.filter(|&c| c != token && (self.p[c] - self.p[token]).abs() < delta && near(c)).collect()
    }

    /// The neighbours whose mass counts as the token's.
    fn pool(&self, neighbours: u32, bound: PoolBound) -> &[u32] {
        let bound = fixed(match bound {
            PoolBound::Mass(mass) => mass,
            PoolBound::Ratio(ratio) => (ratio - 1.0) * self.p[self.token],
        });
        let nearest = self.nearest(neighbours);
        let mut mass = 0;
        let inside = nearest.iter().take_while(|&&c| {
            mass += fixed(self.p[c as usize]);
            mass <= bound
        });
        &nearest[..inside.count()]
    }

    fn nearest(&self, count: u32) -> &[u32] {
        match count {
            0 => &[],
            _ => self.codebook.expect("neighbours in a codebook").nearest(self.token, count),
        }
    }
}

/// One, in fixed point.
const ONE: f32 = (1u64 << 56) as f32;

fn fixed(probability: f32) -> u64 {
    (probability * ONE) as u64
}

/// The sum of probabilities, whatever their order.
fn mass(probabilities: impl Iterator<Item = f32>) -> f32 {
    probabilities.map(fixed).sum::<u64>() as f32 / ONE
}
