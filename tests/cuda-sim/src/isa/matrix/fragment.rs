//! Fragments of small matrices, where speed is no matter: which lane holds which element, for every type.
//!
//! The layouts are those of `mma.sync` (PTX ISA 9.0, section 9.7.14.5). A fragment of `wmma` has a layout that programs must
//! not know; here it is that of the `mma` fragments of which it could be made.

use super::number::{BF16, Byte, E4M3, E5M2, F16, Float, S8, TF32, U8, canonical, to_f16};
use crate::code::{Dst, Src};
use crate::lower::{Lower, Result};
use crate::machine::{Cx, LANES};
use crate::ptx::ast::{Instruction, Operand, Type};

/// The type of the elements of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Number {
    F16,
    BF16,
    TF32,
    E4M3,
    E5M2,
    S8,
    U8,
    S4,
    U4,
    B1,
    F32,
    S32,
    F64,
}

use Number as N;

/// Their names.
pub const NUMBERS: &[(&str, Number)] = &[
    ("f16", N::F16),
    ("bf16", N::BF16),
    ("tf32", N::TF32),
    ("e4m3", N::E4M3),
    ("e5m2", N::E5M2),
    ("s8", N::S8),
    ("u8", N::U8),
    ("s4", N::S4),
    ("u4", N::U4),
    ("b1", N::B1),
    ("f32", N::F32),
    ("s32", N::S32),
    ("f64", N::F64),
];

impl Number {
    /// By its number, as [`Number`] is cast.
    pub fn of(raw: u64) -> Number {
        NUMBERS[raw as usize].1
    }

    /// Bits in memory.
    pub fn bits(self) -> usize {
        match self {
            N::F64 => 64,
            N::F32 | N::S32 | N::TF32 => 32,
            N::F16 | N::BF16 => 16,
            N::E4M3 | N::E5M2 | N::S8 | N::U8 => 8,
            N::S4 | N::U4 => 4,
            N::B1 => 1,
        }
    }

    /// Whether it is an integer, whose products are summed exactly.
    pub fn is_integer(self) -> bool {
        matches!(self, N::S8 | N::U8 | N::S4 | N::U4 | N::B1 | N::S32)
    }

    /// Elements in a register: 64 bits for f64, else 32.
    pub fn per_register(self) -> usize {
        if self == N::F64 { 1 } else { 32 / self.bits() }
    }

    /// The value of an element whose bits are the low ones; exact.
    pub fn decode(self, bits: u64) -> f64 {
        let low = bits as u32;
        f64::from(match self {
            N::F64 => return f64::from_bits(bits),
            N::S32 => return f64::from(low as i32),
            N::S4 => return f64::from((low << 28) as i32 >> 28),
            N::U4 | N::B1 => return f64::from(low),
            N::S8 => return f64::from(S8::decode(low as u8)),
            N::U8 => return f64::from(U8::decode(low as u8)),
            N::F32 => f32::from_bits(low),
            N::F16 => F16::decode(low),
            N::BF16 => BF16::decode(low),
            N::TF32 => TF32::decode(low),
            N::E4M3 => E4M3::decode(low),
            N::E5M2 => E5M2::decode(low),
        })
    }

    /// The bits of a result, which is f16, f32, s32 or f64.
    pub fn encode(self, value: f64) -> u64 {
        match self {
            N::F64 => value.to_bits(),
            N::S32 => u64::from(value as i64 as u32),
            N::F16 => u64::from(to_f16(value as f32)),
            _ => u64::from(canonical(value as f32)),
        }
    }
}

/// What a fragment is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The left factor, by rows.
    A,
    /// The right factor, by columns: its rows here are the columns of B.
    B,
    /// A sum.
    C,
}

/// A fragment: `rows` times `columns` elements in the registers of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What it is.
    pub part: Part,
    /// The type of its elements.
    pub number: Number,
    /// Rows: of A and C those of the matrix, of B its columns.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
}

impl Fragment {
    /// Elements of a row of a block of eight rows, the piece that four lanes hold in a register, or in two.
    fn width(self) -> usize {
        if self.part == Part::C { 8 } else { 4 * self.number.per_register() }
    }

    /// Elements of a lane in a block.
    fn per_block(self) -> usize {
        self.width() / 4
    }

    /// Registers that hold it once. `wmma` repeats the halves of some.
    pub fn registers(self) -> usize {
        self.rows / 8 * (self.columns / self.width()) * self.per_block() / self.number.per_register()
    }

    /// Element `index` of a lane, counted through its registers: row and column.
    #[inline]
    pub fn place(self, lane: usize, index: usize) -> (usize, usize) {
        let (block, inner) = (index / self.per_block(), index % self.per_block());
        let across = self.columns / self.width();
        let (down, across) = match self.part {
            Part::B => (block / across, block % across),
            _ if self.rows == 8 => (0, block),
            // Tiles of 16 rows, in each the upper and the lower half of one block column after the other.
            _ => (block / (2 * across) * 2 + block % 2, block % (2 * across) / 2),
        };
        (down * 8 + lane / 4, across * self.width() + lane % 4 * self.per_block() + inner)
    }

    /// Reads it from registers, row by row.
    pub fn read(self, cx: &Cx<'_>, list: &[Src]) -> Vec<f64> {
        let mut tile = vec![0.0; self.rows * self.columns];
        let (per, bits) = (self.number.per_register(), self.number.bits());
        for (r, &src) in list.iter().enumerate().take(self.registers()) {
            let row = if bits == 64 { cx.b64(src) } else { cx.b32(src).map(u64::from) };
            for (lane, word) in row.into_iter().enumerate() {
                for e in 0..per {
                    let value = word >> (e * bits) & (u64::MAX >> (64 - bits));
                    let (i, j) = self.place(lane, r * per + e);
                    tile[i * self.columns + j] = self.number.decode(value);
                }
            }
        }
        tile
    }

    /// Writes it to registers.
    pub fn write(self, cx: &mut Cx<'_>, list: &[Src], tile: &[f64]) {
        let (per, bits) = (self.number.per_register(), self.number.bits());
        for (r, &dst) in list.iter().enumerate() {
            let mut row = [0u64; LANES];
            for (lane, word) in row.iter_mut().enumerate() {
                for e in 0..per {
                    let (i, j) = self.place(lane, r * per + e);
                    *word |= self.number.encode(tile[i * self.columns + j]) << (e * bits);
                }
            }
            if bits == 64 {
                cx.set_b64(Dst(dst.0), row);
            } else {
                cx.set_b32(Dst(dst.0), row.map(|word| word as u32));
            }
        }
    }

    /// The registers of an operand: `count` of them.
    pub fn operand(
        self,
        cx: &mut Lower,
        i: &Instruction,
        operand: &Operand,
        count: usize,
        written: bool,
    ) -> Result<Vec<Src>> {
        let items = match operand {
            Operand::Vector(items) => items.as_slice(),
            single => std::slice::from_ref(single),
        };
        if items.len() != count {
            return cx.error(i, format_args!("a vector of {} registers, not {count}", items.len()));
        }
        let ty = if self.number == N::F64 { Type::B64 } else { Type::B32 };
        let mut list = Vec::with_capacity(count);
        for item in items {
            list.push(if written { Src(cx.dst(i, item, ty)?.0) } else { cx.src(i, item, ty)? });
        }
        Ok(list)
    }
}

/// How the products of a pair of elements are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// Fused multiply-adds in f32, in the order of k.
    Single,
    /// The same in f64.
    Double,
    /// Exactly, and then the low 32 bits.
    Wrap,
    /// Exactly, and then the nearest 32-bit number.
    Saturate,
    /// The bits that differ, counted.
    Xor,
    /// The bits that both have, counted.
    And,
}

impl Rule {
    /// By its number, as [`Rule`] is cast.
    pub fn of(raw: u64) -> Rule {
        [Rule::Single, Rule::Double, Rule::Wrap, Rule::Saturate, Rule::Xor, Rule::And][raw as usize]
    }

    /// `c` and the products of a row of A and a column of B.
    pub fn sum(self, a: &[f64], b: &[f64], c: f64) -> f64 {
        let pairs = a.iter().zip(b);
        let wrap = |count: usize| f64::from((c as i64 + count as i64) as i32);
        let exact = |pairs: std::iter::Zip<_, _>| -> i64 {
            pairs.fold(c as i64, |sum, (x, y): (&f64, &f64)| sum + *x as i64 * *y as i64)
        };
        match self {
            Rule::Single => f64::from(pairs.fold(c as f32, |sum, (x, y)| (*x as f32).mul_add(*y as f32, sum))),
            Rule::Double => pairs.fold(c, |sum, (x, y)| x.mul_add(*y, sum)),
            Rule::Wrap => f64::from(exact(pairs) as i32),
            Rule::Saturate => exact(pairs).clamp(i32::MIN.into(), i32::MAX.into()) as f64,
            Rule::Xor => wrap(pairs.filter(|(x, y)| x != y).count()),
            Rule::And => wrap(pairs.filter(|(x, y)| **x != 0.0 && **y != 0.0).count()),
        }
    }
}
