//! Drafters: where the first guess of a token comes from.

use super::accept::Acceptance;
use super::{Placed, Source, Target};
use crate::nn::spatial_heads::Offset;
use std::fmt;
use std::str::FromStr;

/// What a drafter may look at: tokens so far, and which positions the target has predicted (so that the state they
/// were predicted from exists).
pub struct Canvas<'a> {
    /// One token per position; meaningless where `predicted` is false.
    pub tokens: &'a [u32],
    /// Has the predecessor of this position been fed?
    pub predicted: &'a [bool],
}

/// Which heads draft a position that has a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// The nearest head to the left, else the nearest above.
    Left,
    /// The nearest head above, else the nearest to the left.
    Above,
    /// The geometric mean of both.
    Both,
}

impl FromStr for Preference {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = [Self::Left, Self::Above, Self::Both];
        let found = known.into_iter().find(|preference| preference.to_string() == name);
        found.ok_or_else(|| format!("draft={name}: must be left, above or both"))
    }
}

impl fmt::Display for Preference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "left",
            Self::Above => "above",
            Self::Both => "both",
        })
    }
}

/// Drafts each position from spatial heads whose source the target has predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpatialDrafter {
    /// Which heads to use.
    pub preference: Preference,
}

impl SpatialDrafter {
    /// Drafts `positions`; the tokens come back in their order.
    pub fn draft<T: Target>(
        self,
        target: &mut T,
        rule: &mut impl Acceptance,
        canvas: &Canvas<'_>,
        positions: &[usize],
    ) -> Vec<u32> {
        let mut sources = Vec::new();
        let mut counts = Vec::with_capacity(positions.len());
        for &position in positions {
            let before = sources.len();
            self.sources(target, canvas, position, &mut sources);
            counts.push(sources.len() - before);
        }
        target.draft(&sources);
        let mut first = 0;
        let mut mean = vec![0.0; target.vocab()];
        let drafted = positions.iter().zip(counts).map(|(&position, count)| {
            let rows = first..first + count;
            first += count;
            mean.fill(0.0);
            for row in rows {
                let terms = target.draft_log_weights(row).iter();
                mean.iter_mut().zip(terms).for_each(|(mean, term)| *mean += term / count as f32);
            }
            rule.draft(position, &mean)
        });
        drafted.collect()
    }

    /// Appends the sources of one position: at least one, since position 0 is always predicted and every position is
    /// right of, or below the row of, some predicted one. A source farther than the farthest head uses that head.
    fn sources<T: Target>(self, target: &T, canvas: &Canvas<'_>, position: usize, out: &mut Vec<Source>) {
        let (grid, (right, down)) = (target.grid(), target.heads());
        let (row, col) = (grid.row(position), grid.col(position));
        let at = |from: usize, offset| Source { from: Placed { position: from, token: canvas.tokens[from] }, offset };
        let left = (1..=col.min(right)).find(|&d| canvas.predicted[position - d]);
        let left = left.map(|d| at(position - d, Offset::Right(d)));
        let above = (1..=row.min(down)).find(|&d| canvas.predicted[position - d * grid.width]);
        let above = above.map(|d| at(position - d * grid.width, Offset::Down(d)));
        let chosen = match self.preference {
            Preference::Left => [left.or(above), None],
            Preference::Above => [above.or(left), None],
            Preference::Both => [left, above],
        };
        let before = out.len();
        out.extend(chosen.into_iter().flatten());
        if out.len() == before {
            let nearest = (0..position).rev().find(|&p| canvas.predicted[p]).unwrap_or(0);
            out.push(at(nearest, Offset::Right(right)));
        }
    }
}
