//! Regions of the grid that are drawn again after a local rejection, as pure functions of positions (MuLo-SD, arXiv
//! 2601.05149): the neighbourhoods of what was rejected, their 8-connected islands, and the order inside an island, which
//! is ZipAR's: a row of it goes ahead when the rows above are some columns further.

use crate::grid::Grid;

/// What is drawn again: positions within `radius` rows and columns of a rejected one (Chebyshev distance), none of them
/// before the first rejected one nor from `end` on. `rejected` and the result are ascending.
pub fn expand(rejected: &[usize], radius: usize, grid: Grid, end: usize) -> Vec<usize> {
    let Some(&first) = rejected.first() else { return Vec::new() };
    let near = |position: &usize| {
        let away = |a: usize, b: usize| a.abs_diff(b) <= radius;
        let is_near =
            |&other: &usize| away(grid.row(*position), grid.row(other)) && away(grid.col(*position), grid.col(other));
        rejected.iter().any(is_near)
    };
    (first..end).filter(near).collect()
}

/// The 8-connected components of ascending positions, each ascending, by their first positions.
pub fn components(positions: &[usize], grid: Grid) -> Vec<Vec<usize>> {
    let mut island = vec![usize::MAX; positions.len()];
    let mut count = 0;
    for start in 0..positions.len() {
        if island[start] != usize::MAX {
            continue;
        }
        let mut reached = vec![start];
        island[start] = count;
        while let Some(at) = reached.pop() {
            for neighbour in neighbours(positions[at], grid) {
                if let Ok(found) = positions.binary_search(&neighbour)
                    && island[found] == usize::MAX
                {
                    island[found] = count;
                    reached.push(found);
                }
            }
        }
        count += 1;
    }
    let members = |which| positions.iter().zip(&island).filter(move |(_, of)| **of == which).map(|(&p, _)| p);
    (0..count).map(|which| members(which).collect()).collect()
}

/// The positions around one, of the grid.
fn neighbours(position: usize, grid: Grid) -> impl Iterator<Item = usize> {
    let around = |at: usize, size: usize| at.saturating_sub(1)..(at + 2).min(size);
    let columns = around(grid.col(position), grid.width);
    around(grid.row(position), grid.height)
        .flat_map(move |row| columns.clone().map(move |col| grid.index(row, col)))
        .filter(move |&neighbour| neighbour != position)
}

/// The positions of an island that are drawn next, of those that `remain` (ascending): in each row the first, unless
/// something to the left of `lag` columns further on remains in a row above it. With a lag of the grid's width that is the
/// first of all: raster order.
pub fn ready(remain: &[usize], grid: Grid, lag: usize) -> Vec<usize> {
    let mut least = usize::MAX;
    let mut ready = Vec::new();
    for row in remain.chunk_by(|&a, &b| grid.row(a) == grid.row(b)) {
        let first = grid.col(row[0]);
        if least >= first.saturating_add(lag) {
            ready.push(row[0]);
        }
        least = least.min(first);
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { height: 5, width: 6 };

    /// A picture of positions: `#` those that are there.
    fn picture(positions: &[usize]) -> Vec<String> {
        let mark = |row, col| if positions.contains(&GRID.index(row, col)) { '#' } else { '.' };
        (0..GRID.height).map(|row| (0..GRID.width).map(|col| mark(row, col)).collect()).collect()
    }

    fn positions(picture: [&str; 5]) -> Vec<usize> {
        let all = picture.concat();
        all.char_indices().filter(|(_, mark)| *mark == '#').map(|(index, _)| index).collect()
    }

    #[test]
    fn neighbourhoods_are_squares_that_begin_at_the_first_rejection() {
        let rejected = positions([
            "......", //
            "..#...", "......", ".....#", "......",
        ]);
        // Nothing to the left of the first in its row; the second's square ends where the drafts do.
        let expect = [
            "......", //
            "..##..", ".#####", "....##", "......",
        ];
        assert_eq!(picture(&expand(&rejected, 1, GRID, 4 * 6)), expect);
        assert_eq!(expand(&rejected, 0, GRID, 30), rejected);
        assert_eq!(expand(&rejected, 9, GRID, 30), (rejected[0]..30).collect::<Vec<_>>());
        assert!(expand(&[], 3, GRID, 30).is_empty());
    }

    #[test]
    fn nothing_wraps_around_the_edges() {
        let last_of_a_row = [GRID.index(1, 5)];
        assert_eq!(expand(&last_of_a_row, 1, GRID, 30), [11, 16, 17]);
        let ends = [GRID.index(1, 5), GRID.index(2, 0)];
        assert_eq!(components(&ends, GRID).len(), 2);
    }

    #[test]
    fn islands_are_connected_across_corners() {
        let region = positions([
            "#...##", //
            ".#....", "..#..#", "....#.", "#.....",
        ]);
        let islands = components(&region, GRID);
        assert_eq!(islands, [vec![0, 7, 14], vec![4, 5], vec![17, 22], vec![24]]);
    }

    #[test]
    fn a_row_waits_for_the_rows_above_it() {
        let region = positions([
            "......", //
            "..####", ".####.", "#.....", "....#.",
        ]);
        let first = |lag| ready(&region, GRID, lag);
        // (1, 2) is first; (2, 1) has it one column to the right, so a lag of 1 lets it go and a lag of 2 does not.
        assert_eq!(first(2), [GRID.index(1, 2)]);
        assert_eq!(first(1), [GRID.index(1, 2), GRID.index(2, 1), GRID.index(3, 0)]);
        assert_eq!(first(6), [GRID.index(1, 2)]);
        // What is above and far to the right holds nothing up.
        assert_eq!(ready(&[GRID.index(0, 4), GRID.index(3, 1)], GRID, 3).len(), 2);
        assert_eq!(ready(&[GRID.index(0, 4), GRID.index(3, 2)], GRID, 3).len(), 1);
        assert!(ready(&[], GRID, 1).is_empty());
    }

    /// A whole grid takes the passes of ZipAR.
    #[test]
    fn an_island_of_everything_is_zipar() {
        for lag in 1..=6 {
            let mut remain: Vec<usize> = (0..GRID.len()).collect();
            let mut passes = 0;
            while !remain.is_empty() {
                let drawn = ready(&remain, GRID, lag);
                assert!(!drawn.is_empty());
                remain.retain(|position| !drawn.contains(position));
                passes += 1;
            }
            assert_eq!(passes, GRID.width + lag * (GRID.height - 1));
        }
    }
}
