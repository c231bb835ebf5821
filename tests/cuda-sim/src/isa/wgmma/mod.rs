//! Matrix products of a warpgroup (PTX ISA 9.0, section 9.7.15): `wgmma.mma_async`, `fence`, `commit_group`,
//! `wait_group`.
//!
//! A `wgmma.mma_async` is one operation of four warps: it can begin when all of them have issued it, and reads shared
//! memory once, for all. Each warp holds its own 16 of the 64 rows and sees them change when the operation lands there:
//! in the wait that requires it, or before. Operations land in the order of issue.

pub mod descriptor;
mod lower;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::marker::PhantomData;

use descriptor::Descriptor;
pub use lower::lower;

use crate::check::race;
use crate::code::{Dst, Flow, Op, Run, Src};
use crate::isa::matrix::aligned;
use crate::isa::matrix::mma::{read_f16, read_f32, spread_a, write_f16, write_f32};
use crate::isa::matrix::number::Float;
use crate::isa::matrix::product::{ROWS, accumulate};
use crate::machine::block::Block;
use crate::machine::fault::{Fault, Kind};
use crate::machine::schedule::AsyncTiming;
use crate::machine::simd::{Semantics, choose};
use crate::machine::{Cx, LANES};

/// Warps of a warpgroup.
const WARPS: u32 = 4;
/// Bytes along k that an instruction takes of each row.
const DEPTH_BYTES: usize = 32;
/// The deepest product.
const MAX_DEPTH: usize = 32;

/// What [`Op::imm`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Columns.
    pub columns: usize,
    /// A comes from registers.
    pub registers: bool,
    /// A and B are negated.
    pub negate: [bool; 2],
    /// A and B are MN-major.
    pub transposed: [bool; 2],
    /// The sums of integers are clamped.
    pub saturate: bool,
}

impl Shape {
    fn bits(self) -> u64 {
        let flags =
            [self.registers, self.negate[0], self.negate[1], self.transposed[0], self.transposed[1], self.saturate];
        flags.iter().enumerate().fold(self.columns as u64, |bits, (n, &flag)| bits | (flag as u64) << (16 + n))
    }

    fn of(bits: u64) -> Shape {
        let flag = |n: u32| bits >> (16 + n) & 1 != 0;
        Shape {
            columns: (bits & 0xffff) as usize,
            registers: flag(0),
            negate: [flag(1), flag(2)],
            transposed: [flag(3), flag(4)],
            saturate: flag(5),
        }
    }
}

/// The operations of a warpgroup that not all of its warps have landed.
#[derive(Default)]
pub struct Warpgroup {
    /// The number of the first operation in `operations`.
    first: u64,
    operations: VecDeque<Operation>,
    /// Buffers of landed operations, to be used again.
    spare: Vec<Operands>,
}

/// A `wgmma.mma_async` of a warpgroup.
struct Operation {
    /// What all warps must agree on: the instruction and the descriptors.
    key: (usize, [u64; 2]),
    issued: u32,
    landed: u32,
    /// What the race check has found of the operands.
    sources: race::Sources,
    /// The operands in shared memory, once they were read.
    operands: Option<Operands>,
    read: Run,
}

/// The operands that come from shared memory, decoded: 64 rows of A, unless it is in registers, and B by rows of k.
#[derive(Default)]
struct Operands {
    a: Vec<f32>,
    b: Vec<f32>,
}

/// What a warp remembers: the operations that have not landed in its registers, and its groups.
#[derive(Default)]
pub struct WarpState {
    /// Operations that it has issued.
    issued: u64,
    /// Those that have not landed, oldest first.
    pending: VecDeque<Issued>,
    /// For each committed group that may be pending, the number of operations issued before its end.
    groups: VecDeque<u64>,
    /// Whether a `wgmma.fence` was executed.
    fenced: bool,
}

/// An operation that a warp has issued.
struct Issued {
    number: u64,
    /// Lands it in this warp's registers.
    land: Op,
    /// The function that issued it, and where its registers begin.
    function: u32,
    window: (usize, usize, usize),
}

/// The products of a type of A and B, and the kind of sum.
struct Mma<A, B, S>(PhantomData<(A, B, S)>);

/// Kinds of sums.
trait Sum: 'static {
    fn combine(cx: &mut Cx<'_>, list: &[Src], shape: Shape, keep: bool, a: &[f32], b: &[f32], depth: usize);
}

struct SumF32;
struct SumF16;
struct SumS32;

/// A tile of the largest accumulator of a warp.
const TILE: usize = ROWS * 256;

impl Sum for SumF32 {
    #[inline(always)]
    fn combine(cx: &mut Cx<'_>, list: &[Src], shape: Shape, keep: bool, a: &[f32], b: &[f32], depth: usize) {
        let mut tile = [0f32; TILE];
        if keep {
            read_f32(cx, list, shape.columns, &mut tile);
        }
        accumulate(a, b, &mut tile[..ROWS * shape.columns], depth, shape.columns);
        write_f32(cx, list, shape.columns, &tile);
    }
}

impl Sum for SumF16 {
    #[inline(always)]
    fn combine(cx: &mut Cx<'_>, list: &[Src], shape: Shape, keep: bool, a: &[f32], b: &[f32], depth: usize) {
        let mut tile = [0f32; TILE];
        if keep {
            read_f16(cx, list, shape.columns, &mut tile);
        }
        accumulate(a, b, &mut tile[..ROWS * shape.columns], depth, shape.columns);
        write_f16(cx, list, shape.columns, &tile);
    }
}

impl Sum for SumS32 {
    /// The products of an instruction and their sums are below 2^24, so f32 holds them exactly.
    #[inline(always)]
    fn combine(cx: &mut Cx<'_>, list: &[Src], shape: Shape, keep: bool, a: &[f32], b: &[f32], depth: usize) {
        let mut tile = [0f32; TILE];
        accumulate(a, b, &mut tile[..ROWS * shape.columns], depth, shape.columns);
        for (r, &dst) in list.iter().enumerate() {
            let mut row = if keep { cx.b32(dst) } else { [0; LANES] };
            let at = r / 2 % 2 * 8 * shape.columns + r / 4 * 8 + r % 2;
            for (lane, value) in row.iter_mut().enumerate() {
                let term = tile[at + lane / 4 * shape.columns + lane % 4 * 2] as i32;
                let sum = *value as i32;
                *value = if shape.saturate { sum.saturating_add(term) } else { sum.wrapping_add(term) } as u32;
            }
            cx.set_b32(Dst(dst.0), row);
        }
    }
}

/// Issues a `wgmma.mma_async`: sources 0 and 1 are the descriptors (0 unused if A is in registers), 2 the predicate
/// scale-d; the list is D, then A if it is in registers.
struct Issue<A, B, S>(PhantomData<(A, B, S)>);

impl<A: Float + 'static, B: Float + 'static, S: Sum> Semantics for Issue<A, B, S> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        match issue(cx, op, choose::<Mma<A, B, S>>(), choose::<Read<A, B>>()) {
            Ok(()) => Flow::Next,
            Err(flow) => flow,
        }
    }
}

fn issue(cx: &mut Cx<'_>, op: &Op, landing: Run, read: Run) -> Result<(), Flow> {
    if let Some(flow) = aligned(cx) {
        return Err(flow);
    }
    let warp = cx.warp.id;
    let threads: u64 = cx.grid.block_dim.iter().map(|&n| n as u64).product();
    if u64::from(warp / WARPS + 1) * 128 > threads {
        return Err(cx.fault(Kind::InvalidOperation, "wgmma in a warpgroup of less than four warps"));
    }
    if !cx.warp.pending.fenced {
        return Err(cx.fault(Kind::Async, "a wgmma.mma_async without a wgmma.fence before it"));
    }
    let shape = Shape::of(op.imm);
    let mut descriptors = [0; 2];
    for (n, value) in descriptors.iter_mut().enumerate().skip(shape.registers as usize) {
        let row = cx.b64(op.src[n]);
        *value = row[0];
        if row.iter().any(|&other| other != row[0]) {
            return Err(cx.fault(Kind::InvalidOperation, "the lanes give different matrix descriptors"));
        }
    }
    let keep = cx.pred(op.src[2]);
    if keep != 0 && keep != u32::MAX {
        return Err(cx.fault(Kind::InvalidOperation, "the lanes give different values of scale-d"));
    }
    let number = cx.warp.pending.issued;
    let group = group(cx.block, warp);
    // Operations are told apart by their place in the program.
    let key = (std::ptr::from_ref(cx.code) as usize ^ (cx.pc as usize) << 1, descriptors);
    let at = (number - group.first) as usize;
    match group.operations.get_mut(at) {
        None => {
            let sources = watch(cx, op, shape, descriptors, number).map_err(|fault| cx.fail(fault))?;
            let issued = 1 << (warp % WARPS);
            let operation = Operation { key, issued, landed: 0, sources, operands: None, read };
            self::group(cx.block, warp).operations.push_back(operation);
        }
        Some(operation) if operation.key == key => operation.issued |= 1 << (warp % WARPS),
        Some(_) => {
            let message = "the warps of a warpgroup execute different wgmma.mma_async, or with different descriptors";
            return Err(cx.fault(Kind::DivergentBarrier, message));
        }
    }
    let sources = cx.block.queue.warpgroups[(warp / WARPS) as usize].operations[at].sources.clone();
    race::matrix_issue(cx.block, warp, &sources).map_err(|fault| cx.fail(fault))?;
    // The landing finds its number and the predicate where the issue has its descriptors and immediates.
    let mut landing = Op { run: landing, ..op.clone() };
    landing.dst = [Dst(number as u32), Dst(keep)];
    cx.warp.pending.issued += 1;
    let function = cx.warp.groups[cx.warp.current].function;
    cx.warp.pending.pending.push_back(Issued { number, land: landing, function, window: cx.warp.window });
    let now = match cx.grid.schedule.async_timing {
        AsyncTiming::Early => true,
        AsyncTiming::Late => false,
        AsyncTiming::Random => cx.block.rng.below(2) == 0,
    };
    if now { land(cx, number + 1).map(|_| ()) } else { Ok(()) }
}

/// Shows the operands in shared memory to the race check.
fn watch(cx: &mut Cx<'_>, op: &Op, shape: Shape, descriptors: [u64; 2], number: u64) -> Result<race::Sources, Fault> {
    if cx.block.race.is_none() {
        return Ok(Vec::new());
    }
    let rows = [4 * ROWS, shape.columns];
    let mut addresses = Vec::with_capacity(2 * (rows[0] + rows[1]));
    for n in shape.registers as usize..2 {
        let matrix = Matrix::new(cx, descriptors[n], shape.transposed[n], shape.negate[n])?;
        // Only 16-bit elements can be MN-major, so 32 bytes along k are 16 elements.
        let (outer, inner) = if shape.transposed[n] { (16, rows[n] / 8) } else { (rows[n], 2) };
        for x in 0..outer {
            addresses.extend((0..inner).map(|unit| matrix.unit(x as u64, unit as u64)));
        }
    }
    race::matrix_reads(cx.block, cx.warp.id, number, &addresses, op.line)
}

/// The warpgroup of a warp.
fn group(block: &mut Block, warp: u32) -> &mut Warpgroup {
    let at = (warp / WARPS) as usize;
    if block.queue.warpgroups.len() <= at {
        block.queue.warpgroups.resize_with(at + 1, Warpgroup::default);
    }
    &mut block.queue.warpgroups[at]
}

/// Lands the warp's operations below `end`, in order, as far as all four warps have issued them; whether all of them have.
fn land(cx: &mut Cx<'_>, end: u64) -> Result<bool, Flow> {
    while let Some(issued) = cx.warp.pending.pending.front() {
        if issued.number >= end {
            return Ok(true);
        }
        let (warp, number) = (cx.warp.id, issued.number);
        let group = group(cx.block, warp);
        let at = (number - group.first) as usize;
        let operation = &group.operations[at];
        if operation.issued != 0xf {
            return Ok(false);
        }
        let issued = cx.warp.pending.pending.pop_front().expect("it was just seen");
        let read = operation.operands.is_none().then_some(operation.read);
        in_place(cx, &issued, read)?;
        cx.block.progress += 1;
        retire(self::group(cx.block, warp), at, warp);
    }
    Ok(true)
}

/// Runs the landing of an operation as if the function that issued it were running.
fn in_place(cx: &mut Cx<'_>, issued: &Issued, read: Option<Run>) -> Result<(), Flow> {
    let (code, window) = (cx.code, cx.warp.window);
    cx.warp.window = issued.window;
    if issued.function != cx.warp.groups[cx.warp.current].function {
        let program = cx.grid.program;
        cx.code = &program.functions[issued.function as usize];
    }
    let result = read.into_iter().chain([issued.land.run]).try_for_each(|run| {
        // SAFETY: `choose` found the instruction sets of these functions on this machine.
        settle(unsafe { run(cx, &issued.land) })
    });
    (cx.code, cx.warp.window) = (code, window);
    result
}

/// A helper's flow: anything but [`Flow::Next`] ends the operation.
fn settle(flow: Flow) -> Result<(), Flow> {
    if flow == Flow::Next { Ok(()) } else { Err(flow) }
}

/// Notes that a warp has landed an operation and forgets those that all have.
fn retire(group: &mut Warpgroup, at: usize, warp: u32) {
    group.operations[at].landed |= 1 << (warp % WARPS);
    while group.operations.front().is_some_and(|operation| operation.landed == 0xf) {
        let done = group.operations.pop_front().expect("it was just seen");
        group.spare.extend(done.operands);
        group.first += 1;
    }
}

/// Reads the operands of an operation from shared memory.
struct Read<A, B>(PhantomData<(A, B)>);

impl<A: Float, B: Float> Semantics for Read<A, B> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let warp = cx.warp.id;
        let group = group(cx.block, warp);
        let at = (op.dst[0].0 as u64 - group.first) as usize;
        let mut operands = group.spare.pop().unwrap_or_default();
        let descriptors = group.operations[at].key.1;
        let shape = Shape::of(op.imm);
        let depth = DEPTH_BYTES * A::PER_REGISTER / 4;
        let result = (|| {
            if !shape.registers {
                operands.a.resize(4 * ROWS * depth, 0.0);
                let matrix = Matrix::new(cx, descriptors[0], shape.transposed[0], shape.negate[0])?;
                matrix.decode::<A>(cx.block, 4 * ROWS, |mn, k| mn * depth + k, &mut operands.a)?;
            }
            operands.b.resize(depth * shape.columns, 0.0);
            let matrix = Matrix::new(cx, descriptors[1], shape.transposed[1], shape.negate[1])?;
            matrix.decode::<B>(cx.block, shape.columns, |mn, k| k * shape.columns + mn, &mut operands.b)
        })();
        if let Err(fault) = result {
            return cx.fail(Fault { line: op.line, ..fault });
        }
        self::group(cx.block, warp).operations[at].operands = Some(operands);
        Flow::Next
    }
}

/// A matrix in shared memory.
struct Matrix {
    descriptor: Descriptor,
    transposed: bool,
    negate: bool,
    init: bool,
}

impl Matrix {
    fn new(cx: &Cx<'_>, bits: u64, transposed: bool, negate: bool) -> Result<Matrix, Fault> {
        let descriptor = Descriptor::decode(bits).map_err(|error| {
            let kind = match error {
                descriptor::Error::BaseOffset(_) => Kind::Unsupported,
                descriptor::Error::Reserved(_) => Kind::InvalidOperation,
            };
            Fault::new(kind, error.to_string())
        })?;
        Ok(Matrix { descriptor, transposed, negate, init: cx.grid.checks.init })
    }

    /// The address of 16 bytes: `unit` counts along the contiguous dimension, `x` along the other.
    #[inline(always)]
    fn unit(&self, x: u64, unit: u64) -> u64 {
        if self.transposed { self.descriptor.mn_major(unit, x) } else { self.descriptor.k_major(x, unit) }
    }

    /// Decodes `rows` rows of 32 bytes along k to the places that `place` gives for row and k.
    #[inline(always)]
    fn decode<T: Float>(
        &self,
        block: &Block,
        rows: usize,
        place: impl Fn(usize, usize) -> usize,
        out: &mut [f32],
    ) -> Result<(), Fault> {
        let per_unit = 4 * T::PER_REGISTER;
        let (width, mask) = (32 / T::PER_REGISTER, (u32::MAX as u64 >> (32 - 32 / T::PER_REGISTER)) as u32);
        let sign = (self.negate as u32) << 31;
        let outer = if self.transposed { 2 * per_unit } else { rows };
        let inner = if self.transposed { rows / per_unit } else { 2 };
        for x in 0..outer {
            for unit in 0..inner {
                let address = self.unit(x as u64, unit as u64);
                let Some(bytes) = block.shared.get(address, 16) else {
                    return Err(block.shared.outside(address, 16));
                };
                if self.init
                    && let Some(first) = block.shared.first_uninitialised(address, 16)
                {
                    let fault = Fault::new(Kind::UninitialisedRead, "shared memory read by wgmma.mma_async");
                    return Err(fault.at_address(first, "shared memory"));
                }
                for (w, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
                    let word = u32::from_le_bytes(*word);
                    for e in 0..T::PER_REGISTER {
                        let value = T::decode(word >> (e * width) & mask);
                        let along = unit * per_unit + w * T::PER_REGISTER + e;
                        let at = if self.transposed { place(along, x) } else { place(x, along) };
                        out[at] = f32::from_bits(value.to_bits() ^ sign);
                    }
                }
            }
        }
        Ok(())
    }
}

impl<A: Float, B: Float, S: Sum> Semantics for Mma<A, B, S> {
    /// Lands an operation in the registers of this warp.
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let warp = cx.warp.id;
        let group = group(cx.block, warp);
        let at = (op.dst[0].0 as u64 - group.first) as usize;
        let Some(operands) = group.operations[at].operands.take() else {
            return Flow::Next;
        };
        let shape = Shape::of(op.imm);
        let depth = DEPTH_BYTES * A::PER_REGISTER / 4;
        let code = cx.code;
        let list = &code.list[op.list.0 as usize..op.list.1 as usize];
        let (d, a) = list.split_at(list.len() - if shape.registers { 4 } else { 0 });
        cx.counters.sums.matrix_flops += (2 * ROWS * shape.columns * depth) as u64;
        let mask = std::mem::replace(&mut cx.mask, u32::MAX);
        let keep = op.dst[1].0 != 0;
        if shape.registers {
            let mut rows = [[0; LANES]; 4];
            for (row, &src) in rows.iter_mut().zip(a) {
                *row = cx.b32(src);
            }
            let mut tile = [0f32; ROWS * MAX_DEPTH];
            spread_a::<A>(&rows, 2, depth, &mut tile);
            if shape.negate[0] {
                tile.iter_mut().for_each(|value| *value = -*value);
            }
            S::combine(cx, d, shape, keep, &tile[..ROWS * depth], &operands.b, depth);
        } else {
            let first = (warp % WARPS) as usize * ROWS * depth;
            S::combine(cx, d, shape, keep, &operands.a[first..first + ROWS * depth], &operands.b, depth);
        }
        cx.mask = mask;
        self::group(cx.block, warp).operations[at].operands = Some(operands);
        Flow::Next
    }
}

fn fence(cx: &mut Cx<'_>, _: &Op) -> Flow {
    if let Some(flow) = aligned(cx) {
        return flow;
    }
    cx.warp.pending.fenced = true;
    Flow::Next
}

fn commit(cx: &mut Cx<'_>, _: &Op) -> Flow {
    if let Some(flow) = aligned(cx) {
        return flow;
    }
    let issued = cx.warp.pending.issued;
    cx.warp.pending.groups.push_back(issued);
    if cx.grid.schedule.async_timing == AsyncTiming::Late {
        return Flow::Next;
    }
    match land(cx, issued) {
        Ok(_) => Flow::Next,
        Err(flow) => flow,
    }
}

/// `wgmma.wait_group`: waits until all warps of the warpgroup have issued what the groups hold that must be complete.
fn wait(cx: &mut Cx<'_>, op: &Op) -> Flow {
    if let Some(flow) = aligned(cx) {
        return flow;
    }
    let groups = &cx.warp.pending.groups;
    let Some(due) = groups.len().checked_sub(op.imm as usize + 1) else {
        return Flow::Next;
    };
    let end = groups[due];
    match land(cx, end) {
        Ok(true) => {
            cx.warp.pending.groups.drain(..=due);
            race::matrix_wait(cx.block, cx.warp.id, end);
            Flow::Next
        }
        Ok(false) => Flow::Retry,
        Err(flow) => flow,
    }
}
