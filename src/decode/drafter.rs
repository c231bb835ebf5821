//! Drafters: where the first guess of a token comes from.

use super::{Draft, Source};
use crate::grid::Grid;
use crate::nn::spatial_heads::Offset;

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

super::knobs::names!(Preference { Left = "left", Above = "above", Both = "both" });

/// Drafts a position from spatial heads whose source the target has predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpatialDrafter {
    /// Which heads to use.
    pub preference: Preference,
}

impl SpatialDrafter {
    /// The heads for one position. `predicted` says of which positions the target has made a distribution (so that
    /// the state it was made from exists); `heads` is the number of horizontal and vertical offsets.
    ///
    /// There is at least one, since position 0 is always predicted and every position is right of, or below the row
    /// of, some predicted one. A source farther than the farthest head uses that head.
    pub fn draft(self, grid: Grid, heads: (usize, usize), predicted: &[bool], position: usize) -> Draft {
        let (right, down) = heads;
        let (row, col) = (grid.row(position), grid.col(position));
        let left = (1..=col.min(right)).find(|&d| predicted[position - d]);
        let left = left.map(|d| Source { from: position - d, offset: Offset::Right(d) });
        let above = (1..=row.min(down)).find(|&d| predicted[position - d * grid.width]);
        let above = above.map(|d| Source { from: position - d * grid.width, offset: Offset::Down(d) });
        let mut sources = match self.preference {
            Preference::Left => [left.or(above), None],
            Preference::Above => [above.or(left), None],
            Preference::Both => [left.or(above), left.and(above)],
        };
        if sources[0].is_none() {
            let nearest = (0..position).rev().find(|&p| predicted[p]).unwrap_or(0);
            sources[0] = Some(Source { from: nearest, offset: Offset::Right(right) });
        }
        Draft { position, sources }
    }
}
