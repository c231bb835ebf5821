//! The variants of the matrix product: for so many rows, in so much shared memory.

use super::super::super::kernels::{self, Fatbin};
use super::weight::Format;

/// The kernel that makes an operand of f32.
pub(super) const ROUND: (&Fatbin, &str) = (&kernels::LINEAR, "weft_linear_round");

/// One entry point of kernels/linear*.cu.
pub(super) struct Variant {
    pub(super) fatbin: &'static Fatbin,
    pub(super) name: &'static str,
    /// Rows of a block.
    pub(super) rows: usize,
    pub(super) threads: usize,
    /// Bytes of shared memory of a block.
    pub(super) shared: usize,
    /// Tiles of 16 outputs of a block along one weight, and the weights side by side.
    tiles: usize,
    sides: usize,
}

impl Variant {
    /// The variant for a product with so many rows per group: the smallest that takes them at once. What it computes
    /// does not depend on the choice.
    pub(super) fn choose(format: Format, two: bool, rows: usize) -> &'static Variant {
        let all = match format {
            Format::Bf16 => &BF16[..],
            Format::Fp8 => &FP8[..],
            Format::Int4 => &INT4[..],
            Format::Bf16Hopper => &HOPPER,
        };
        let serves = |v: &&Variant| v.sides == 2 || !two;
        let fits = |v: &&Variant| serves(v) && v.rows >= rows;
        let largest = || all.iter().rfind(serves);
        all.iter().find(fits).or_else(largest).unwrap_or(&all[0])
    }

    /// Outputs of a block.
    pub(super) fn outputs(&self, two: bool) -> usize {
        16 * self.tiles * if two { 1 } else { self.sides }
    }

    /// Sums that a block leaves for a part.
    pub(super) fn sums(&self) -> usize {
        16 * self.tiles * self.sides * self.rows
    }
}

/// The template arguments of a variant, as in the .cu file: warps along the outputs and along the rows, tiles of a warp
/// along both, columns of a stage, stages.
struct Shape(usize, usize, usize, usize, usize, usize);

/// `unit`: columns in 512 bytes of a weight's tile.
const fn variant(fatbin: &'static Fatbin, unit: usize, name: &'static str, shape: Shape) -> Variant {
    let Shape(nw, mw, nt, mt, columns, stages) = shape;
    let rows = mw * mt * 8;
    let stage = nw * nt * (columns / unit) * 512 + rows * columns * 2;
    Variant { fatbin, name, rows, threads: nw * mw * 32, shared: stages * stage, tiles: nw, sides: nt }
}

const fn bf16(name: &'static str, shape: Shape) -> Variant {
    variant(&kernels::LINEAR, 16, name, shape)
}

const fn fp8(name: &'static str, shape: Shape) -> Variant {
    variant(&kernels::LINEAR_FP8, 32, name, shape)
}

const fn int4(name: &'static str, shape: Shape) -> Variant {
    variant(&kernels::LINEAR_INT4, 64, name, shape)
}

/// A variant for Hopper: two warp groups multiply, a third copies; stages of 64 columns, two barriers for each.
const fn hopper(name: &'static str, sides: usize, rows: usize, stages: usize) -> Variant {
    let shared = stages * (sides * 8 * 2048 + rows * 128 + 16);
    Variant { fatbin: &kernels::LINEAR_HOPPER, name, rows, threads: 384, shared, tiles: 8, sides }
}

// Ascending rows. One weight alone takes narrow blocks while rows are few: more blocks, each with less to wait for.
static BF16: [Variant; 10] = [
    bf16("weft_linear_8", Shape(4, 1, 1, 1, 64, 4)),
    bf16("weft_linear_two_8", Shape(4, 1, 2, 1, 64, 4)),
    bf16("weft_linear_16", Shape(4, 1, 1, 2, 64, 4)),
    bf16("weft_linear_two_16", Shape(4, 1, 2, 2, 64, 4)),
    bf16("weft_linear_32", Shape(4, 1, 1, 4, 64, 4)),
    bf16("weft_linear_two_32", Shape(4, 1, 2, 4, 64, 4)),
    bf16("weft_linear_two_64", Shape(4, 2, 2, 4, 32, 6)),
    bf16("weft_linear_two_96", Shape(4, 2, 2, 6, 32, 6)),
    bf16("weft_linear_two_144", Shape(4, 2, 2, 9, 32, 5)),
    bf16("weft_linear_two_256", Shape(4, 2, 2, 16, 32, 4)),
];
static FP8: [Variant; 10] = [
    fp8("weft_linear_fp8_8", Shape(4, 1, 1, 1, 64, 5)),
    fp8("weft_linear_fp8_two_8", Shape(4, 1, 2, 1, 64, 5)),
    fp8("weft_linear_fp8_16", Shape(4, 1, 1, 2, 64, 5)),
    fp8("weft_linear_fp8_two_16", Shape(4, 1, 2, 2, 64, 5)),
    fp8("weft_linear_fp8_32", Shape(4, 1, 1, 4, 64, 5)),
    fp8("weft_linear_fp8_two_32", Shape(4, 1, 2, 4, 64, 5)),
    fp8("weft_linear_fp8_two_64", Shape(4, 2, 2, 4, 64, 5)),
    fp8("weft_linear_fp8_two_96", Shape(4, 2, 2, 6, 64, 4)),
    fp8("weft_linear_fp8_two_144", Shape(4, 2, 2, 9, 64, 3)),
    fp8("weft_linear_fp8_two_256", Shape(4, 2, 2, 16, 64, 2)),
];
static INT4: [Variant; 9] = [
    int4("weft_linear_int4_8", Shape(4, 1, 1, 1, 64, 6)),
    int4("weft_linear_int4_two_8", Shape(4, 1, 2, 1, 64, 6)),
    int4("weft_linear_int4_16", Shape(4, 1, 1, 2, 64, 6)),
    int4("weft_linear_int4_two_16", Shape(4, 1, 2, 2, 64, 6)),
    int4("weft_linear_int4_32", Shape(4, 1, 1, 4, 64, 6)),
    int4("weft_linear_int4_two_32", Shape(4, 1, 2, 4, 64, 6)),
    int4("weft_linear_int4_two_64", Shape(4, 2, 2, 4, 64, 6)),
    int4("weft_linear_int4_two_96", Shape(4, 2, 2, 6, 64, 5)),
    int4("weft_linear_int4_two_144", Shape(4, 2, 2, 9, 64, 4)),
];
static HOPPER: [Variant; 7] = [
    hopper("weft_linear_hopper_8", 1, 8, 8),
    hopper("weft_linear_hopper_two_8", 2, 8, 6),
    hopper("weft_linear_hopper_48", 1, 48, 8),
    hopper("weft_linear_hopper_two_48", 2, 48, 5),
    hopper("weft_linear_hopper_96", 1, 96, 6),
    hopper("weft_linear_hopper_two_96", 2, 96, 4),
    hopper("weft_linear_hopper_144", 1, 144, 6),
];
