//! Distances between the vectors of tokens. They are computed in one order everywhere, so that all backends agree on the
//! bits, and on which tokens are near.

use rayon::prelude::*;

/// Partial sums of a distance: those of the lanes of a warp.
const LANES: usize = 32;

/// Squared Euclidean distance: lane `l` adds the squares of dimensions `l`, `l + 32`, .. upwards; then lanes are added in
/// pairs 16 apart, 8 apart, .. No product is fused with a sum.
pub(super) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += (a - b) * (a - b);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = sums.split_at_mut(width);
        low.iter_mut().zip(&*high).for_each(|(low, high)| *low += high);
        width /= 2;
    }
    sums[0]
}

/// For each of the vectors `[vocab, dim]` the indices of its nearest others, `[vocab, neighbours]`, sorted by (distance,
/// index).
///
/// # Panics
/// If there are not so many others, or the vectors are no rows of `dim` finite values.
pub(super) fn nearest(vectors: &[f32], dim: usize, neighbours: usize) -> Vec<u32> {
    assert!(dim > 0 && vectors.len().is_multiple_of(dim), "{} values in vectors of {dim}", vectors.len());
    assert!(vectors.iter().all(|x| x.is_finite()), "a vector that is not finite");
    let vocab = vectors.len() / dim;
    assert!(neighbours == 0 || neighbours < vocab, "{neighbours} neighbours of {vocab} tokens");
    let mut nearest = vec![0; vocab * neighbours];
    if neighbours == 0 {
        return nearest;
    }
    let vector = |token: usize| &vectors[token * dim..][..dim];
    nearest.par_chunks_mut(neighbours).enumerate().for_each(|(token, nearest)| {
        // The bits of floats that are not negative are in the order of the floats.
        let key =
            |other: usize| (u64::from(squared_distance(vector(token), vector(other)).to_bits()) << 32) | other as u64;
        let mut others: Vec<u64> = (0..vocab).filter(|&other| other != token).map(key).collect();
        others.select_nth_unstable(neighbours - 1);
        others.truncate(neighbours);
        others.sort_unstable();
        nearest.iter_mut().zip(others).for_each(|(nearest, key)| *nearest = key as u32);
    });
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_first_and_of_equals_the_lower_index() {
        // On a line at 0, 1, 2, 5, 2.
        let vectors = [0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 5.0, 0.0, 2.0, 0.0];
        assert_eq!(
            nearest(&vectors, 2, 4),
            [[1, 2, 4, 3], [0, 2, 4, 3], [4, 1, 0, 3], [2, 4, 1, 0], [2, 1, 0, 3]].concat()
        );
        assert_eq!(nearest(&vectors, 2, 1), [1, 0, 4, 2, 2]);
        assert!(nearest(&vectors, 2, 0).is_empty());
    }

    #[test]
    fn distances_are_sums_of_squares_in_any_dimension() {
        for dim in [1, 5, 31, 32, 33, 100] {
            let a: Vec<f32> = (0..dim).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..dim).map(|i| (i % 3) as f32).collect();
            let want: f32 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
            assert_eq!(squared_distance(&a, &b), want, "integers are summed exactly");
        }
    }
}
