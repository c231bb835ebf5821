//! `wmma` (PTX ISA 9.0, section 9.7.14.4), and the forms of `mma.sync` that are seldom used: f64, 4 bits and 1 bit.

use super::aligned;
use super::fragment::{Fragment, NUMBERS, Number, Part, Rule};
use crate::code::{Class, Dst, Flow, Op, Run, Src};
use crate::isa::load_store::{address, by_region};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::access::{Access, Effect, Reach, Region};
use crate::machine::fault::Kind;
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Space, Type};

/// Rows of A, columns of B and depth.
type Shape = (usize, usize, usize);

const SHAPES: &[(&str, Shape)] = &[
    ("m16n16k16", (16, 16, 16)),
    ("m32n8k16", (32, 8, 16)),
    ("m8n32k16", (8, 32, 16)),
    ("m16n16k8", (16, 16, 8)),
    ("m8n8k4", (8, 8, 4)),
    ("m8n8k32", (8, 8, 32)),
    ("m8n8k128", (8, 8, 128)),
];

/// Lowers `wmma`.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    match m.expect(&[("load", 0), ("store", 1), ("mma", 2)])? {
        0 => lower_memory(cx, i, m, false),
        1 => lower_memory(cx, i, m, true),
        _ => lower_product(cx, i, m),
    }
}

fn aligned_modifiers(m: &mut Modifiers<'_>) -> Result<()> {
    m.expect(&[("sync", ())])?;
    m.expect(&[("aligned", ())])
}

/// Whether `wmma` has a shape with such multiplicands.
fn exists(shape: Shape, number: Number) -> bool {
    use Number as N;
    match shape {
        (_, _, 16) => matches!(number, N::F16 | N::BF16 | N::S8 | N::U8),
        (_, _, 8) => number == N::TF32,
        (_, _, 4) => number == N::F64,
        (_, _, 32) => matches!(number, N::S4 | N::U4),
        _ => number == N::B1,
    }
}

fn sums(number: Number) -> bool {
    matches!(number, Number::F16 | Number::F32 | Number::S32 | Number::F64)
}

fn fragment(part: Part, number: Number, (m, n, k): Shape) -> Fragment {
    let (rows, columns) = match part {
        Part::A => (m, k),
        Part::B => (n, k),
        Part::C => (m, n),
    };
    Fragment { part, number, rows, columns }
}

/// The registers of a fragment: for `wmma` of f16 eight, which may hold it more than once.
fn registers(fragment: Fragment) -> usize {
    if fragment.number == Number::F16 && fragment.part != Part::C { 8 } else { fragment.registers() }
}

/// What [`load`] and [`store`] are told beside the address.
struct Tile {
    fragment: Fragment,
    /// Neighbours in a row of [`Fragment`] are neighbours in memory.
    along: bool,
}

impl Tile {
    fn pack(&self) -> u64 {
        let Fragment { part, number, rows, columns } = self.fragment;
        rows as u64 | (columns as u64) << 8 | (number as u64) << 20 | (part as u64) << 24 | u64::from(self.along) << 28
    }

    fn unpack(bits: u64) -> Tile {
        let part = [Part::A, Part::B, Part::C][(bits >> 24 & 3) as usize];
        let (rows, columns) = ((bits & 0xff) as usize, (bits >> 8 & 0xfff) as usize);
        let fragment = Fragment { part, number: Number::of(bits >> 20 & 15), rows, columns };
        Tile { fragment, along: bits >> 28 & 1 != 0 }
    }
}

fn lower_memory(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>, store: bool) -> Result<()> {
    const SPACES: &[(&str, Space)] =
        &[("global", Space::Global), ("shared", Space::Shared), ("shared::cta", Space::Shared)];
    let part = match store {
        true => m.expect(&[("d", Part::C)])?,
        false => m.expect(&[("a", Part::A), ("b", Part::B), ("c", Part::C)])?,
    };
    aligned_modifiers(&mut m)?;
    let row = m.expect(&[("row", true), ("col", false)])?;
    let shape = m.expect(SHAPES)?;
    let space = m.one_of(SPACES).unwrap_or(Space::Generic);
    let number = m.expect(NUMBERS)?;
    m.finish()?;
    let known = match part {
        Part::C => match shape.2 {
            4 => number == Number::F64,
            8 => number == Number::F32,
            16 => matches!(number, Number::F16 | Number::F32 | Number::S32),
            _ => number == Number::S32,
        },
        _ => exists(shape, number) && (number.bits() >= 8 || row == (part == Part::A)),
    };
    if !known {
        return cx.error(i, "there is no such combination of shape, layout and type");
    }
    cx.arity(i, &[2, 3])?;
    let fragment = fragment(part, number, shape);
    // The rows of B's fragment are the matrix's columns.
    let tile = Tile { fragment, along: row == (part != Part::B) };
    let (place, registers_at) = if store { (0, 1) } else { (1, 0) };
    let (base, access) = address(cx, i, &i.operands[place], space)?;
    let class = if space == Space::Shared {
        if store { Class::SharedStore } else { Class::SharedLoad }
    } else if store {
        Class::GlobalStore
    } else {
        Class::GlobalLoad
    };
    let list = fragment.operand(cx, i, &i.operands[registers_at], registers(fragment), !store)?;
    let mut op = cx.op(i, class, if store { run_store as Run } else { run_load as Run });
    op.imm = access.pack();
    op.src[0] = base;
    op.src[1] = match i.operands.get(2) {
        Some(stride) => cx.src(i, stride, Type::U32)?,
        None => cx.constant(if tile.along { fragment.columns } else { fragment.rows } as u64),
    };
    op.src[2] = cx.constant(tile.pack());
    op.list = cx.list(list);
    cx.emit(op);
    Ok(())
}

/// Calls `each` with the host addresses of one piece of every lane: its register, its first element there, and the bytes.
fn pieces(
    cx: &mut Cx<'_>,
    op: &Op,
    effect: Effect,
    mut each: impl FnMut(&mut Cx<'_>, usize, usize, &Row<u64>),
) -> Flow {
    let tile = Tile::unpack(op.src[2].as_constant().map_or(0, |at| cx.code.constants[at]));
    let (fragment, access) = (tile.fragment, Access::unpack(op.imm));
    let (bases, strides) = (cx.addresses(op.src[0], access), cx.b32(op.src[1]));
    if bases.iter().any(|base| *base != bases[0]) || strides.iter().any(|stride| *stride != strides[0]) {
        return cx.fault(Kind::InvalidOperation, "lanes of a warp name different matrices");
    }
    let (bits, stride) = (fragment.number.bits(), u64::from(strides[0]));
    // Elements of less than a byte are moved by registers, along which they are neighbours.
    let step = if bits < 8 { fragment.number.per_register() } else { 1 };
    let size = (bits * step / 8) as u64;
    let per = fragment.number.per_register();
    for index in (0..fragment.registers() * per).step_by(step) {
        let addresses = std::array::from_fn(|lane| {
            let (i, j) = fragment.place(lane, index);
            let (i, j) = if tile.along { (i, j) } else { (j, i) };
            bases[0].wrapping_add((i as u64).wrapping_mul(stride).wrapping_add(j as u64).wrapping_mul(bits as u64) / 8)
        });
        let flow = by_region(cx, access, addresses, |cx, region, mut addresses| {
            if matches!(region, Region::Local | Region::Param) {
                return cx.fault(Kind::InvalidOperation, "a matrix outside of global and shared memory");
            }
            let hosts = match cx.reach(region, &mut addresses, size, effect, access) {
                Err(flow) => return flow,
                Ok(Reach::Contiguous(at)) => std::array::from_fn(|lane| at as u64 + lane as u64 * size),
                Ok(Reach::Uniform(at)) => [at as u64; LANES],
                Ok(Reach::Scattered) => addresses,
            };
            each(cx, index / per, index % per, &hosts);
            Flow::Next
        });
        if flow != Flow::Next {
            return flow;
        }
    }
    Flow::Next
}

/// The bytes of an element, or of a register of small ones.
fn piece_bits(number: Number) -> usize {
    if number.bits() < 8 { 32 } else { number.bits() }
}

fn run_load(cx: &mut Cx<'_>, op: &Op) -> Flow {
    if let Some(flow) = aligned(cx) {
        return flow;
    }
    let fragment = Tile::unpack(op.src[2].as_constant().map_or(0, |at| cx.code.constants[at])).fragment;
    let bits = piece_bits(fragment.number);
    let mut rows = vec![[0u64; LANES]; fragment.registers()];
    let flow = pieces(cx, op, Effect::Load, |cx, register, element, hosts| {
        for lane in (0..LANES).filter(|lane| cx.mask >> lane & 1 != 0) {
            let (at, mut bytes) = (hosts[lane] as *const u8, [0; 8]);
            // SAFETY: `reach` has checked the bytes of the lanes in the mask.
            unsafe { std::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), bits / 8) };
            rows[register][lane] |= u64::from_le_bytes(bytes) << (element * bits);
        }
    });
    if flow != Flow::Next {
        return flow;
    }
    for at in 0..(op.list.1 - op.list.0) as usize {
        let (dst, row) = (Dst(cx.code.list[op.list.0 as usize + at].0), rows[at % rows.len()]);
        if fragment.number == Number::F64 {
            cx.set_b64(dst, row);
        } else {
            cx.set_b32(dst, row.map(|word| word as u32));
        }
    }
    Flow::Next
}

fn run_store(cx: &mut Cx<'_>, op: &Op) -> Flow {
    if let Some(flow) = aligned(cx) {
        return flow;
    }
    let fragment = Tile::unpack(op.src[2].as_constant().map_or(0, |at| cx.code.constants[at])).fragment;
    let bits = piece_bits(fragment.number);
    let sources: Vec<Src> = cx.code.list[op.list.0 as usize..op.list.1 as usize].to_vec();
    cx.block.advance();
    pieces(cx, op, Effect::Store, |cx, register, element, hosts| {
        let src = sources[register];
        let row = if fragment.number == Number::F64 { cx.b64(src) } else { cx.b32(src).map(u64::from) };
        for lane in (0..LANES).filter(|lane| cx.mask >> lane & 1 != 0) {
            let bytes = (row[lane] >> (element * bits)).to_le_bytes();
            // SAFETY: `reach` has checked the bytes of the lanes in the mask.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), hosts[lane] as *mut u8, bits / 8) };
        }
    })
}

/// A product, packed into [`Op::imm`].
struct Product {
    shape: Shape,
    /// The types of A, B, C and D.
    numbers: [Number; 4],
    rule: Rule,
}

impl Product {
    fn pack(&self) -> u64 {
        let (m, n, k) = self.shape;
        let numbers = self.numbers.iter().rev().fold(0, |bits, number| bits << 4 | *number as u64);
        m as u64 | (n as u64) << 8 | (k as u64) << 16 | numbers << 28 | (self.rule as u64) << 44
    }

    fn unpack(bits: u64) -> Product {
        let shape = ((bits & 0xff) as usize, (bits >> 8 & 0xff) as usize, (bits >> 16 & 0xfff) as usize);
        let numbers = std::array::from_fn(|n| Number::of(bits >> (28 + 4 * n) & 15));
        Product { shape, numbers, rule: Rule::of(bits >> 44 & 7) }
    }

    /// A, B, C and D.
    fn fragments(&self) -> [Fragment; 4] {
        let parts = [Part::A, Part::B, Part::C, Part::C];
        std::array::from_fn(|n| fragment(parts[n], self.numbers[n], self.shape))
    }

    /// Appends the operation.
    fn emit(self, cx: &mut Lower, i: &Instruction) -> Result<()> {
        cx.arity(i, &[4])?;
        let [a, b, c, d] = self.fragments();
        let mut list = d.operand(cx, i, &i.operands[0], registers(d), true)?;
        for (fragment, operand) in [a, b, c].into_iter().zip(&i.operands[1..]) {
            list.extend(fragment.operand(cx, i, operand, registers(fragment), false)?);
        }
        let mut op = cx.op(i, Class::Matrix, run_product);
        op.imm = self.pack();
        op.list = cx.list(list);
        cx.emit(op);
        Ok(())
    }
}

/// The rule for multiplicands and the form that `.satfinite`, `.xor` or `.and` ask for.
fn rule(number: Number, saturate: bool, bits: Option<Rule>) -> Option<Rule> {
    match (number, bits, saturate) {
        (Number::B1, Some(rule), false) => Some(rule),
        (Number::B1, ..) | (_, Some(_), _) => None,
        (Number::F64, _, false) => Some(Rule::Double),
        (number, _, saturate) if number.is_integer() => Some(if saturate { Rule::Saturate } else { Rule::Wrap }),
        (_, _, false) => Some(Rule::Single),
        // Of f16 sums alone `.satfinite` was once known: it is gone from the ISA.
        _ => None,
    }
}

/// `wmma.mma`
fn lower_product(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>) -> Result<()> {
    const COUNTED: &[(&str, Rule)] = &[("xor", Rule::Xor), ("and", Rule::And)];
    let counted = m.one_of(COUNTED);
    if counted.is_some() {
        m.expect(&[("popc", ())])?;
    }
    aligned_modifiers(&mut m)?;
    for _ in 0..2 {
        // How A and B lie in memory matters to their loads alone.
        m.expect(&[("row", ()), ("col", ())])?;
    }
    let shape = m.expect(SHAPES)?;
    let d = m.expect(NUMBERS)?;
    let second = m.expect(NUMBERS)?;
    // Two types are those of D and C, of products of f16.
    let (a, b, c) = match m.one_of(NUMBERS) {
        Some(b) => (second, b, m.expect(NUMBERS)?),
        None => (Number::F16, Number::F16, second),
    };
    if a == Number::F64 {
        m.take("rn");
    }
    let saturate = m.take("satfinite");
    m.finish()?;
    let integer = a.is_integer();
    let right = exists(shape, a)
        && exists(shape, b)
        && integer == b.is_integer()
        && (integer || a == b)
        && [c, d].iter().all(|&number| {
            sums(number)
                && match a {
                    Number::F16 => matches!(number, Number::F16 | Number::F32),
                    Number::F64 => number == Number::F64,
                    _ if integer => number == Number::S32,
                    _ => number == Number::F32,
                }
        });
    match rule(a, saturate, counted).filter(|_| right) {
        Some(rule) => Product { shape, numbers: [a, b, c, d], rule }.emit(cx, i),
        None => cx.error(i, "there is no such combination of shape and types"),
    }
}

/// The shapes of `mma.sync` for f64, 4 bits and 1 bit.
const RARE_SHAPES: &[(&str, Shape)] = &[
    ("m8n8k4", (8, 8, 4)),
    ("m16n8k4", (16, 8, 4)),
    ("m16n8k8", (16, 8, 8)),
    ("m16n8k16", (16, 8, 16)),
    ("m8n8k32", (8, 8, 32)),
    ("m16n8k32", (16, 8, 32)),
    ("m16n8k64", (16, 8, 64)),
    ("m8n8k128", (8, 8, 128)),
    ("m16n8k128", (16, 8, 128)),
    ("m16n8k256", (16, 8, 256)),
];

/// Lowers `mma.sync` of f64, s4, u4 and b1; none if it is of other types.
pub fn lower_mma(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    let rare = i.modifiers.iter().any(|m| matches!(m.as_str(), "f64" | "s4" | "u4" | "b1"));
    (rare && i.modifiers[0] == "sync").then(|| lower_rare(cx, i))
}

fn lower_rare(cx: &mut Lower, i: &Instruction) -> Result<()> {
    use Number as N;
    let mut m = Modifiers::new(i);
    aligned_modifiers(&mut m)?;
    let shape = m.expect(RARE_SHAPES)?;
    m.expect(&[("row", ())])?;
    m.expect(&[("col", ())])?;
    let saturate = m.take("satfinite");
    let d = m.expect(NUMBERS)?;
    let a = m.expect(NUMBERS)?;
    let b = m.expect(NUMBERS)?;
    let c = m.expect(NUMBERS)?;
    let saturate = m.take("satfinite") || saturate;
    let counted = m.one_of(&[("xor", Rule::Xor), ("and", Rule::And)]);
    if counted.is_some() {
        m.expect(&[("popc", ())])?;
    }
    m.finish()?;
    let right = match (a, b, shape.2) {
        (N::F64, N::F64, 4 | 8 | 16) => c == N::F64 && d == N::F64,
        (N::S4 | N::U4, N::S4 | N::U4, 32 | 64) | (N::B1, N::B1, 128 | 256) => c == N::S32 && d == N::S32,
        _ => false,
    };
    match rule(a, saturate, counted).filter(|_| right) {
        Some(rule) => Product { shape, numbers: [a, b, c, d], rule }.emit(cx, i),
        None => cx.error(i, "there is no such combination of shape and types"),
    }
}

fn run_product(cx: &mut Cx<'_>, op: &Op) -> Flow {
    if let Some(flow) = aligned(cx) {
        return flow;
    }
    let product = Product::unpack(op.imm);
    let (m, n, k) = product.shape;
    cx.counters.sums.matrix_flops += (2 * m * n * k) as u64;
    let [a, b, c, d] = product.fragments();
    let code = cx.code;
    let list = &code.list[op.list.0 as usize..op.list.1 as usize];
    let (to, list) = list.split_at(registers(d));
    let (left, list) = list.split_at(registers(a));
    let (right, sum) = list.split_at(registers(b));
    let (left, right, mut sum) = (a.read(cx, left), b.read(cx, right), c.read(cx, sum));
    for (i, row) in left.chunks_exact(k).enumerate() {
        for (j, column) in right.chunks_exact(k).enumerate() {
            sum[i * n + j] = product.rule.sum(row, column, sum[i * n + j]);
        }
    }
    d.write(cx, to, &sum);
    Flow::Next
}
