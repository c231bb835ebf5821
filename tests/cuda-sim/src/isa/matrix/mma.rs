//! `mma.sync` (PTX ISA 9.0, section 9.7.14.5.14).

use std::marker::PhantomData;

use super::fragment::{NUMBERS, Number};
use super::number::{BF16, Byte, E4M3, E5M2, F16, Float, S8, TF32, U8, canonical, decode_bytes, decode_floats, to_f16};
use super::product::{ROWS, accumulate, accumulate_integers};
use super::{aligned, registers};
use crate::code::{Class, Dst, Flow, Op, Run, Src};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::simd::{Semantics, choose};
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::Instruction;

/// Columns of matrices B, C and D.
const COLUMNS: usize = 8;
/// The deepest product of a shape.
const MAX_DEPTH: usize = 32;

/// The types of C and D.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sum {
    /// `.f16`
    F16,
    /// `.f32`
    F32,
    /// `.s32`
    S32,
}

/// Their names.
pub const SUMS: &[(&str, Sum)] = &[("f16", Sum::F16), ("f32", Sum::F32), ("s32", Sum::S32)];

/// Lowers `mma.sync`.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.expect(&[("sync", ())])?;
    m.expect(&[("aligned", ())])?;
    let (rows, depth) = m.expect(&[
        ("m16n8k4", (16, 4)),
        ("m16n8k8", (16, 8)),
        ("m16n8k16", (16, 16)),
        ("m16n8k32", (16, 32)),
        ("m8n8k16", (8, 16)),
    ])?;
    m.expect(&[("row", ())])?;
    m.expect(&[("col", ())])?;
    let mixed = m.take("kind::f8f6f4");
    let saturate = m.take("satfinite");
    let d = m.expect(SUMS)?;
    let a = m.expect(NUMBERS)?;
    let b = m.expect(NUMBERS)?;
    let c = m.expect(SUMS)?;
    m.finish()?;
    let Some((run, blocks)) = select(rows, depth, d, a, b, mixed, saturate).filter(|_| c == d) else {
        return cx.error(i, "there is no such combination of shape and types, or it is not supported");
    };
    cx.arity(i, &[4])?;
    let halves = rows / 8;
    let sums = if d == Sum::F16 { halves } else { 2 * halves };
    let mut list = Vec::new();
    for (operand, count) in i.operands.iter().zip([sums, halves * blocks, blocks, sums]) {
        list.extend(registers(cx, i, operand, count, list.is_empty())?);
    }
    let mut op = cx.op(i, Class::Matrix, run);
    op.list = cx.list(list);
    op.imm = (2 * rows * COLUMNS * depth) as u64;
    cx.emit(op);
    Ok(())
}

/// The semantics of a combination and the number of 32-bit registers along k, if the ISA has it.
fn select(
    rows: usize,
    depth: usize,
    sum: Sum,
    a: Number,
    b: Number,
    mixed: bool,
    saturate: bool,
) -> Option<(Run, usize)> {
    use Number as E;
    let float = rows == 16 && !saturate;
    let run = match (a, b, sum, depth) {
        (E::F16, E::F16, Sum::F16, 8) if float && !mixed => choose::<Floats<F16, F16, 1, true>>(),
        (E::F16, E::F16, Sum::F16, 16) if float && !mixed => choose::<Floats<F16, F16, 2, true>>(),
        (E::F16, E::F16, Sum::F32, 8) if float && !mixed => choose::<Floats<F16, F16, 1, false>>(),
        (E::F16, E::F16, Sum::F32, 16) if float && !mixed => choose::<Floats<F16, F16, 2, false>>(),
        (E::BF16, E::BF16, Sum::F32, 8) if float && !mixed => choose::<Floats<BF16, BF16, 1, false>>(),
        (E::BF16, E::BF16, Sum::F32, 16) if float && !mixed => choose::<Floats<BF16, BF16, 2, false>>(),
        (E::TF32, E::TF32, Sum::F32, 4) if float && !mixed => choose::<Floats<TF32, TF32, 1, false>>(),
        (E::TF32, E::TF32, Sum::F32, 8) if float && !mixed => choose::<Floats<TF32, TF32, 2, false>>(),
        (E::E4M3 | E::E5M2, E::E4M3 | E::E5M2, Sum::F16 | Sum::F32, 32) if float => eights::<2>(a, b, sum),
        (E::E4M3 | E::E5M2, E::E4M3 | E::E5M2, Sum::F16 | Sum::F32, 16) if float && !mixed => eights::<1>(a, b, sum),
        (E::S8 | E::U8, E::S8 | E::U8, Sum::S32, 16 | 32) if !mixed && (rows == 16 || depth == 16) => {
            match (rows, depth) {
                (8, _) => integers::<1, 1>(a, b, saturate),
                (_, 16) => integers::<2, 1>(a, b, saturate),
                _ => integers::<2, 2>(a, b, saturate),
            }
        }
        _ => return None,
    };
    let blocks = depth
        / match a {
            E::TF32 => 4,
            E::F16 | E::BF16 => 8,
            _ => 16,
        };
    Some((run, blocks))
}

fn eights<const BLOCKS: usize>(a: Number, b: Number, sum: Sum) -> Run {
    use Number::E4M3 as Four;
    match (a == Four, b == Four, sum == Sum::F16) {
        (true, true, false) => choose::<Floats<E4M3, E4M3, BLOCKS, false>>(),
        (true, true, true) => choose::<Floats<E4M3, E4M3, BLOCKS, true>>(),
        (true, false, false) => choose::<Floats<E4M3, E5M2, BLOCKS, false>>(),
        (true, false, true) => choose::<Floats<E4M3, E5M2, BLOCKS, true>>(),
        (false, true, false) => choose::<Floats<E5M2, E4M3, BLOCKS, false>>(),
        (false, true, true) => choose::<Floats<E5M2, E4M3, BLOCKS, true>>(),
        (false, false, false) => choose::<Floats<E5M2, E5M2, BLOCKS, false>>(),
        (false, false, true) => choose::<Floats<E5M2, E5M2, BLOCKS, true>>(),
    }
}

fn integers<const HALVES: usize, const BLOCKS: usize>(a: Number, b: Number, saturate: bool) -> Run {
    match (a == Number::S8, b == Number::S8, saturate) {
        (true, true, false) => choose::<Integers<S8, S8, HALVES, BLOCKS, false>>(),
        (true, true, true) => choose::<Integers<S8, S8, HALVES, BLOCKS, true>>(),
        (true, false, false) => choose::<Integers<S8, U8, HALVES, BLOCKS, false>>(),
        (true, false, true) => choose::<Integers<S8, U8, HALVES, BLOCKS, true>>(),
        (false, true, false) => choose::<Integers<U8, S8, HALVES, BLOCKS, false>>(),
        (false, true, true) => choose::<Integers<U8, S8, HALVES, BLOCKS, true>>(),
        (false, false, false) => choose::<Integers<U8, U8, HALVES, BLOCKS, false>>(),
        (false, false, true) => choose::<Integers<U8, U8, HALVES, BLOCKS, true>>(),
    }
}

/// Spreads the fragment of matrix A in `rows` (registers by row half, then by k) over a row-major tile of `depth`.
#[inline(always)]
pub fn spread_a<T: Float>(rows: &[Row<u32>], halves: usize, depth: usize, tile: &mut [f32]) {
    let width = 4 * T::PER_REGISTER;
    let mut block = [0f32; LANES * 4];
    for (r, row) in rows.iter().enumerate() {
        decode_floats::<T>(row, &mut block);
        let (half, at) = (r % halves, r / halves * width);
        for g in 0..8 {
            tile[(half * 8 + g) * depth + at..][..width].copy_from_slice(&block[g * width..][..width]);
        }
    }
}

/// An accumulator of f32 registers, as 16 rows of `columns`.
#[inline(always)]
pub fn read_f32(cx: &Cx<'_>, list: &[Src], columns: usize, tile: &mut [f32]) {
    for (r, &src) in list.iter().enumerate() {
        let row = cx.b32(src);
        let at = r / 2 % 2 * 8 * columns + r / 4 * COLUMNS + r % 2;
        for g in 0..8 {
            for t in 0..4 {
                tile[at + g * columns + 2 * t] = f32::from_bits(row[4 * g + t]);
            }
        }
    }
}

/// The reverse of [`read_f32`].
#[inline(always)]
pub fn write_f32(cx: &mut Cx<'_>, list: &[Src], columns: usize, tile: &[f32]) {
    for (r, &dst) in list.iter().enumerate() {
        let mut row: Row<u32> = [0; LANES];
        let at = r / 2 % 2 * 8 * columns + r / 4 * COLUMNS + r % 2;
        for g in 0..8 {
            for t in 0..4 {
                row[4 * g + t] = canonical(tile[at + g * columns + 2 * t]);
            }
        }
        cx.set_b32(Dst(dst.0), row);
    }
}

/// An accumulator of packed f16 registers.
#[inline(always)]
pub fn read_f16(cx: &Cx<'_>, list: &[Src], columns: usize, tile: &mut [f32]) {
    for (r, &src) in list.iter().enumerate() {
        let mut block = [0f32; 64];
        decode_floats::<F16>(&cx.b32(src), &mut block);
        let at = r % 2 * 8 * columns + r / 2 * COLUMNS;
        for g in 0..8 {
            tile[at + g * columns..][..8].copy_from_slice(&block[8 * g..][..8]);
        }
    }
}

/// The reverse of [`read_f16`].
#[inline(always)]
pub fn write_f16(cx: &mut Cx<'_>, list: &[Src], columns: usize, tile: &[f32]) {
    for (r, &dst) in list.iter().enumerate() {
        let at = r % 2 * 8 * columns + r / 2 * COLUMNS;
        let mut row: Row<u32> = [0; LANES];
        for g in 0..8 {
            for t in 0..4 {
                let pair = &tile[at + g * columns + 2 * t..][..2];
                row[4 * g + t] = to_f16(pair[0]) as u32 | (to_f16(pair[1]) as u32) << 16;
            }
        }
        cx.set_b32(Dst(dst.0), row);
    }
}

/// Floating-point products; `HALF` says that C and D are f16.
struct Floats<A, B, const BLOCKS: usize, const HALF: bool>(PhantomData<(A, B)>);

impl<A: Float, B: Float, const BLOCKS: usize, const HALF: bool> Semantics for Floats<A, B, BLOCKS, HALF> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        if let Some(flow) = aligned(cx) {
            return flow;
        }
        cx.counters.sums.matrix_flops += op.imm;
        let code = cx.code;
        let list = &code.list[op.list.0 as usize..op.list.1 as usize];
        let (d, list) = list.split_at(if HALF { 2 } else { 4 });
        let (a, list) = list.split_at(2 * BLOCKS);
        let (b, c) = list.split_at(BLOCKS);
        let width = 4 * A::PER_REGISTER;
        let depth = BLOCKS * width;

        let mut tile_a = [0f32; ROWS * MAX_DEPTH];
        let mut rows_a = [[0u32; LANES]; 4];
        for (row, &src) in rows_a.iter_mut().zip(a) {
            *row = cx.b32(src);
        }
        spread_a::<A>(&rows_a[..2 * BLOCKS], 2, depth, &mut tile_a);

        let mut tile_b = [0f32; MAX_DEPTH * COLUMNS];
        let mut block = [0f32; LANES * 4];
        for (j, &src) in b.iter().enumerate() {
            decode_floats::<B>(&cx.b32(src), &mut block);
            for k in 0..width {
                for n in 0..COLUMNS {
                    tile_b[(j * width + k) * COLUMNS + n] = block[n * width + k];
                }
            }
        }

        let mut sum = [0f32; ROWS * COLUMNS];
        if HALF {
            read_f16(cx, c, COLUMNS, &mut sum)
        } else {
            read_f32(cx, c, COLUMNS, &mut sum)
        }
        accumulate(&tile_a[..ROWS * depth], &tile_b, &mut sum, depth, COLUMNS);
        if HALF {
            write_f16(cx, d, COLUMNS, &sum)
        } else {
            write_f32(cx, d, COLUMNS, &sum)
        }
        Flow::Next
    }
}

/// Integer products.
struct Integers<A, B, const HALVES: usize, const BLOCKS: usize, const SATURATE: bool>(PhantomData<(A, B)>);

impl<A: Byte, B: Byte, const HALVES: usize, const BLOCKS: usize, const SATURATE: bool> Semantics
    for Integers<A, B, HALVES, BLOCKS, SATURATE>
{
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        if let Some(flow) = aligned(cx) {
            return flow;
        }
        cx.counters.sums.matrix_flops += op.imm;
        let code = cx.code;
        let list = &code.list[op.list.0 as usize..op.list.1 as usize];
        let (d, list) = list.split_at(2 * HALVES);
        let (a, list) = list.split_at(HALVES * BLOCKS);
        let (b, c) = list.split_at(BLOCKS);
        let depth = BLOCKS * 16;

        let mut block = [0i32; LANES * 4];
        let mut tile_a = [0i32; ROWS * MAX_DEPTH];
        for (r, &src) in a.iter().enumerate() {
            decode_bytes::<A>(&cx.b32(src), &mut block);
            for g in 0..8 {
                tile_a[(r % HALVES * 8 + g) * depth + r / HALVES * 16..][..16].copy_from_slice(&block[16 * g..][..16]);
            }
        }
        let mut tile_b = [0i32; MAX_DEPTH * COLUMNS];
        for (j, &src) in b.iter().enumerate() {
            decode_bytes::<B>(&cx.b32(src), &mut block);
            for k in 0..16 {
                for n in 0..COLUMNS {
                    tile_b[(j * 16 + k) * COLUMNS + n] = block[n * 16 + k];
                }
            }
        }
        // The products of one instruction never overflow; only their sum with C can.
        let mut product = [0i32; ROWS * COLUMNS];
        let rows = 8 * HALVES;
        accumulate_integers(&tile_a[..rows * depth], &tile_b, &mut product[..rows * COLUMNS], depth, COLUMNS);
        for (r, (&src, &dst)) in c.iter().zip(d).enumerate() {
            let mut row = cx.b32(src);
            for (lane, value) in row.iter_mut().enumerate() {
                let term = product[r / 2 * 64 + 2 * lane + r % 2];
                let sum = *value as i32;
                *value = if SATURATE { sum.saturating_add(term) } else { sum.wrapping_add(term) } as u32;
            }
            cx.set_b32(Dst(dst.0), row);
        }
        Flow::Next
    }
}
