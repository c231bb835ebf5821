//! Packed weights, and how k is cut.

use super::super::super::device::Device;
use super::super::super::memory::Buffer;
use crate::backend::quantise::GROUP;
use crate::backend::{Error, Fp8, Int4};
use half::bf16;
use rayon::prelude::*;
use std::sync::Arc;

/// Outputs of a tile.
const TILE: usize = 16;
/// Words of a unit: 16 bytes for each lane.
const UNIT: usize = 128;
/// Blocks along the rows for which a weight keeps counters.
const ROW_BLOCKS: usize = 8;

/// How the elements of a weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Bf16,
    /// The same bytes, for the products of Hopper.
    Bf16Hopper,
    Fp8,
    Int4,
}

impl Format {
    /// Steps of 16 columns in a unit.
    fn steps(self) -> usize {
        match self {
            Format::Bf16 | Format::Bf16Hopper => 1,
            Format::Fp8 => 2,
            Format::Int4 => 4,
        }
    }
}

/// An `[n, k]` matrix on the device as `[n / 16][k / unit][32]` times 16 bytes: tiles of 16 outputs, in each the units
/// along k (16 columns of bf16, 32 of fp8, 64 of int4), in a unit what each lane of a warp gives to mma.m16n8k16. With
/// `g = lane / 4` and `t = lane % 4`, register r of a step holds the pair of columns `2t + 8 * (r / 2)` and the next, of
/// output `g + 8 * (r % 2)`. n is padded to 16 and k to the unit with zeros.
pub struct Weight {
    format: Format,
    data: Buffer<u32>,
    scales: Option<Buffer<u32>>,
    /// For each block of a product, how many parts of its sum are there; zero between launches.
    arrived: Buffer<u32>,
    n: usize,
    k: usize,
}

impl Weight {
    pub(super) fn bf16(
        device: &Arc<Device>,
        format: Format,
        data: &[bf16],
        n: usize,
        k: usize,
    ) -> Result<Weight, Error> {
        assert_eq!(data.len(), n * k, "weight is not [{n}, {k}]");
        let words = pack(n, k, format, |row, col| u32::from(data[row * k + col].to_bits()));
        Self::new(device, format, &words, None, n, k)
    }

    pub(super) fn fp8(device: &Arc<Device>, weight: &Fp8) -> Result<Weight, Error> {
        let (n, k) = (weight.n(), weight.k());
        let words = pack(n, k, Format::Fp8, |row, col| u32::from(weight.codes()[row * k + col]));
        let scales: Vec<u32> = weight.scales().iter().map(|scale| scale.to_bits()).collect();
        Self::new(device, Format::Fp8, &words, Some(&scales), n, k)
    }

    pub(super) fn int4(device: &Arc<Device>, weight: &Int4) -> Result<Weight, Error> {
        let (n, k) = (weight.n(), weight.k());
        let words = pack(n, k, Format::Int4, |row, col| u32::from(weight.values()[row * k + col]));
        Self::new(device, Format::Int4, &words, Some(&pack_scales(weight)), n, k)
    }

    fn new(
        device: &Arc<Device>,
        format: Format,
        words: &[u32],
        scales: Option<&[u32]>,
        n: usize,
        k: usize,
    ) -> Result<Weight, Error> {
        let data = Buffer::copied(device, words, "a weight")?;
        let scales = scales.map(|scales| Buffer::copied(device, scales, "the scales of a weight")).transpose()?;
        let arrived = Buffer::zeroed(device, n.div_ceil(TILE) * ROW_BLOCKS, "counters of a weight")?;
        Ok(Weight { format, data, scales, arrived, n, k })
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes that a product reads of it: elements and scales.
    pub fn bytes(&self) -> usize {
        self.data.bytes() + self.scales.as_ref().map_or(0, Buffer::bytes)
    }

    /// The packed elements of a weight that other ops than products take.
    ///
    /// # Panics
    /// If they are not bf16.
    pub(in crate::backend::cuda::ops) fn packed_bf16(&self) -> &Buffer<u32> {
        assert_eq!(self.format, Format::Bf16, "a quantised weight where bf16 is wanted");
        &self.data
    }

    /// The packed elements.
    pub(super) fn packed(&self) -> &Buffer<u32> {
        &self.data
    }

    /// Factors of the outputs (fp8) or of the groups of columns (int4).
    pub(super) fn scales(&self) -> Option<&Buffer<u32>> {
        self.scales.as_ref()
    }

    pub(super) fn arrived(&self) -> &Buffer<u32> {
        &self.arrived
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    pub(super) fn tiles(&self) -> usize {
        self.n.div_ceil(TILE)
    }
}

/// Packs the elements that `value` gives, each in its low bits.
fn pack(n: usize, k: usize, format: Format, value: impl Fn(usize, usize) -> u32 + Sync) -> Vec<u32> {
    let units = k.div_ceil(16 * format.steps());
    let mut words = vec![0; n.div_ceil(TILE) * units * UNIT];
    words.par_chunks_exact_mut(UNIT).enumerate().for_each(|(unit, words)| {
        let (tile, unit) = (unit / units, unit % units);
        for (lane, words) in words.chunks_exact_mut(4).enumerate() {
            for step in 0..format.steps() {
                let first = 16 * (unit * format.steps() + step) + lane % 4 * 2;
                for (register, pair) in (0..8).map(|i| (i / 2, i % 2)) {
                    let row = tile * TILE + lane / 4 + 8 * (register % 2);
                    let col = first + 8 * (register / 2) + pair;
                    if row < n && col < k {
                        let (word, shift) = place(format, step, register, pair);
                        words[word] |= value(row, col) << shift;
                    }
                }
            }
        }
    });
    words
}

/// The word of a lane's four and the bit where an element of a step's operand is: pairs lie so that a mask, or a shift
/// and a mask, leaves them in the two halves of a word.
fn place(format: Format, step: usize, register: usize, pair: usize) -> (usize, usize) {
    match format {
        Format::Bf16 | Format::Bf16Hopper => (register, 16 * pair),
        Format::Fp8 => (2 * step + register / 2, 8 * (register % 2) + 16 * pair),
        Format::Int4 => (step, 4 * register + 16 * pair),
    }
}

/// `[n / 16][k / 128][8]` of outputs g and g + 8: the scale in the low half, -(128 + zero) in the high one, as bf16.
fn pack_scales(weight: &Int4) -> Vec<u32> {
    let (tiles, groups) = (weight.n().div_ceil(TILE), weight.k().div_ceil(GROUP));
    let mut words = vec![0; tiles * groups * TILE];
    for (i, word) in words.iter_mut().enumerate() {
        let (tile, group, place) = (i / (groups * TILE), i / TILE % groups, i % TILE);
        let row = tile * TILE + place / 2 + 8 * (place % 2);
        if row < weight.n() {
            let at = row * groups + group;
            let zero = bf16::from_f32(-128.0 - f32::from(weight.zeros()[at]));
            *word = u32::from(weight.scales()[at].to_bits()) | u32::from(zero.to_bits()) << 16;
        }
    }
    words
}

/// How k is cut into parts that different blocks sum: a function of the weight's shape alone, so that a result is the
/// same whatever the number of rows and whatever the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Columns of a part, a multiple of 128.
    pub(super) part: usize,
    pub(super) parts: usize,
}

impl Split {
    /// For a product of so many outputs (of both weights, if there are two).
    ///
    /// It is the split that should take least on a device of 132 multiprocessors (an H100) with 144 rows: rounds of
    /// blocks of 128 outputs, in each so many steps of 16 columns, and what it costs to leave and to add up the sums.
    pub(super) fn of(n: usize, k: usize) -> Split {
        /// In cycles: a step at the rate of the tensor cores and of the level 2 cache; leaving and adding sums.
        const STEP: usize = 207;
        const SUMS: usize = 6000;
        let split = |parts: usize| {
            let part = k.div_ceil(parts).next_multiple_of(128).max(128);
            Split { part, parts: k.div_ceil(part).max(1) }
        };
        let cost = |split: &Split| {
            let rounds = (n.div_ceil(128) * split.parts).div_ceil(132);
            rounds * (split.part.min(k) / 16 * STEP + if split.parts > 1 { SUMS } else { 0 })
        };
        (1..=16).map(split).min_by_key(cost).unwrap_or(split(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_every_element_and_pads_with_zeros() {
        for (format, bits) in [(Format::Bf16, 16), (Format::Fp8, 8), (Format::Int4, 4)] {
            for (n, k) in [(1, 1), (16, 16), (17, 33), (40, 130)] {
                let value = |row: usize, col: usize| ((row * 31 + col * 7) as u32 % 15 + 1) & ((1 << bits) - 1);
                let words = pack(n, k, format, value);
                let sum: u64 = (0..n * k).map(|i| u64::from(value(i / k, i % k))).sum();
                let fields = words
                    .iter()
                    .flat_map(|&w| (0..32 / bits).map(move |i| u64::from(w >> (i * bits) & ((1 << bits) - 1))));
                assert_eq!(fields.sum::<u64>(), sum, "{format:?} [{n}, {k}]");
            }
        }
    }

    #[test]
    fn splits_cover_k_and_fill_a_device() {
        for (n, k) in [(192, 192), (1, 1), (4096, 4096), (12288, 4096), (22016, 4096), (4096, 11008), (65536, 4096)] {
            let Split { part, parts } = Split::of(n, k);
            assert!(part.is_multiple_of(128) && part * parts >= k && part * (parts - 1) < k, "[{n}, {k}]");
        }
        assert_eq!(Split::of(4096, 4096), Split { part: 1024, parts: 4 });
        assert_eq!(Split::of(4096, 11008).parts, 4);
        assert_eq!(Split::of(192, 192).parts, 1);
    }
}
