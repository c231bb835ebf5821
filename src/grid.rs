//! The image as a grid of token positions in raster order.

/// Token grid of an image: `height` rows of `width` columns; position `p = row * width + col`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Grid {
    /// Number of positions.
    #[allow(clippy::len_without_is_empty)] // a grid is never empty: `Config` rejects zero sides
    pub fn len(self) -> usize {
        self.height * self.width
    }

    /// Raster index of (row, col).
    pub fn index(self, row: usize, col: usize) -> usize {
        debug_assert!(row < self.height && col < self.width);
        row * self.width + col
    }

    /// Row of a raster index.
    pub fn row(self, position: usize) -> usize {
        position / self.width
    }

    /// Column of a raster index.
    pub fn col(self, position: usize) -> usize {
        position % self.width
    }
}
