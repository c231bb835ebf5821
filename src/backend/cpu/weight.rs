//! Packed weights.

use super::memory::Aligned;
use crate::backend::Error;
use half::bf16;

/// Outputs of one block: the lanes of one 512-bit accumulator.
pub(super) const BLOCK: usize = 16;

/// A `[n, k]` matrix as `[n / 16][k / 2][16][2]`: one cache line holds two consecutive k of 16 outputs, so a
/// matmul walks k with one output per lane and never adds across lanes. n is padded to 16 and k to 2 with zeros.
pub struct Weight {
    /// Pairs of bf16, the even k in the low half.
    data: Aligned<u32>,
    n: usize,
    k: usize,
}

impl Weight {
    pub(super) fn pack(source: &[bf16], n: usize, k: usize) -> Result<Self, Error> {
        assert_eq!(source.len(), n * k, "weight is not [{n}, {k}]");
        let pairs = k.div_ceil(2);
        let mut data = Aligned::<u32>::zeroed(n.div_ceil(BLOCK) * pairs * BLOCK, "a weight")?;
        for (block, packed) in data.as_mut_slice().chunks_exact_mut((pairs * BLOCK).max(1)).enumerate() {
            for (lane, row) in source[block * BLOCK * k..].chunks_exact(k).take(BLOCK).enumerate() {
                for (pair, values) in row.chunks(2).enumerate() {
                    let odd = values.get(1).map_or(0, |v| v.to_bits());
                    packed[pair * BLOCK + lane] = u32::from(values[0].to_bits()) | u32::from(odd) << 16;
                }
            }
        }
        Ok(Self { data, n, k })
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// All of it.
    pub(super) fn whole(&self) -> Part<'_> {
        Part { weight: self, first: 0, n: self.n }
    }

    /// Part `index` of `count` weights that are stacked in this one.
    pub(super) fn part(&self, index: usize, count: usize) -> Part<'_> {
        if count == 1 {
            return self.whole();
        }
        let n = self.n / count;
        assert!(n * count == self.n && n.is_multiple_of(BLOCK), "{} outputs are no {count} stacked weights", self.n);
        Part { weight: self, first: index * n / BLOCK, n }
    }
}

/// Consecutive outputs of a weight, from the start of a block on.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    weight: &'a Weight,
    /// First block.
    first: usize,
    n: usize,
}

impl<'a> Part<'a> {
    pub(super) fn n(self) -> usize {
        self.n
    }

    pub(super) fn k(self) -> usize {
        self.weight.k
    }

    pub(super) fn pairs(self) -> usize {
        self.weight.k.div_ceil(2)
    }

    pub(super) fn blocks(self) -> usize {
        self.n.div_ceil(BLOCK)
    }

    /// The pairs of outputs `16 * block ..`.
    pub(super) fn block(self, block: usize) -> &'a [u32] {
        let len = self.pairs() * BLOCK;
        &self.weight.data.as_slice()[(self.first + block) * len..][..len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_every_weight_and_pads_with_zeros() {
        for (n, k) in [(1, 1), (16, 2), (17, 5), (33, 64), (48, 7)] {
            let source: Vec<bf16> = (0..n * k).map(|i| bf16::from_bits(i as u16 + 1)).collect();
            let weight = Weight::pack(&source, n, k).unwrap();
            let weight = weight.whole();
            assert_eq!(weight.blocks(), n.div_ceil(16));
            for row in 0..weight.blocks() * 16 {
                for col in 0..weight.pairs() * 2 {
                    let pair = weight.block(row / 16)[col / 2 * 16 + row % 16];
                    let got = (pair >> (16 * (col % 2))) as u16;
                    let want = if row < n && col < k { source[row * k + col].to_bits() } else { 0 };
                    assert_eq!(got, want, "[{n}, {k}] at {row}, {col}");
                }
            }
        }
    }
}
