//! Moves between registers (PTX ISA 9.0, section 9.7.9: `mov`, `cvta`, `isspacep`).

use crate::code::{Class, Dst, Flow, Op, Run, Src};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::simd::{Semantics, choose};
use crate::machine::{Cx, LANES};
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::ptx::ast::{Instruction, Operand, Space, Type};

/// Lowers the moves.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "mov" => Some(mov(cx, i)),
        "cvta" => Some(cvta(cx, i)),
        "isspacep" => Some(isspacep(cx, i)),
        _ => None,
    }
}

fn mov(cx: &mut Lower, i: &Instruction) -> Result<()> {
    use Type::*;
    let mut m = Modifiers::new(i);
    let ty = m.ty(&[Pred, B16, B32, B64, B128, U16, U32, U64, S16, S32, S64, F16, BF16, F16x2, BF16x2, F32, F64])?;
    m.finish()?;
    cx.arity(i, &[2])?;
    match (&i.operands[0], &i.operands[1]) {
        (Operand::Vector(to), from) => unpack(cx, i, ty, to, from),
        (to, Operand::Vector(from)) => pack(cx, i, ty, to, from),
        (to, from) => {
            let mut op = cx.op(i, Class::Move, run_of(ty));
            op.src[0] = cx.src(i, from, ty)?;
            op.dst[0] = cx.dst(i, to, ty)?;
            cx.emit(op);
            Ok(())
        }
    }
}

/// The plain move of a type.
fn run_of(ty: Type) -> Run {
    match ty.bits() {
        1 => mov_pred,
        16 => choose::<Mov16>(),
        32 => choose::<Mov32>(),
        64 => choose::<Mov64>(),
        _ => choose::<Mov128>(),
    }
}

fn mov_pred(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let value = cx.pred(op.src[0]);
    cx.set_pred(op.dst[0], value);
    Flow::Next
}

struct Mov16;

impl Semantics for Mov16 {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let mut value = cx.b32(op.src[0]);
        for lane in &mut value {
            *lane &= 0xffff;
        }
        cx.set_b32(op.dst[0], value);
        Flow::Next
    }
}

struct Mov32;

impl Semantics for Mov32 {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let value = cx.b32(op.src[0]);
        cx.set_b32(op.dst[0], value);
        Flow::Next
    }
}

struct Mov64;

impl Semantics for Mov64 {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let value = cx.b64(op.src[0]);
        cx.set_b64(op.dst[0], value);
        Flow::Next
    }
}

/// The two rows of a 128-bit register are neighbours.
struct Mov128;

impl Semantics for Mov128 {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let low = cx.b64(op.src[0]);
        let high = cx.b64(Src::register(op.src[0].0 + 1));
        cx.set_b64(op.dst[0], low);
        if op.dst[0] != Dst::SINK {
            cx.set_b64(Dst(op.dst[0].0 + 1), high);
        }
        Flow::Next
    }
}

/// The type of one of `count` elements of a packed `ty`.
fn element(cx: &Lower, i: &Instruction, ty: Type, count: usize) -> Result<Type> {
    match (ty, count) {
        (Type::B16, 2) | (Type::B32, 4) => Ok(Type::B8),
        (Type::B32, 2) | (Type::B64, 4) => Ok(Type::B16),
        (Type::B64, 2) => Ok(Type::B32),
        (Type::B128, 2) => Ok(Type::B64),
        _ => cx.error(i, format_args!("{count} elements of a {ty:?}")),
    }
}

fn pack(cx: &mut Lower, i: &Instruction, ty: Type, to: &Operand, from: &[Operand]) -> Result<()> {
    let part = element(cx, i, ty, from.len())?;
    let run = match (ty, part) {
        (Type::B128, _) => choose::<Pack128>(),
        (Type::B64, Type::B32) => choose::<Pack64>(),
        (Type::B64, _) => choose::<Pack64From16>(),
        (_, Type::B16) => choose::<Pack32<16>>(),
        _ => choose::<Pack32<8>>(),
    };
    let mut op = cx.op(i, Class::Move, run);
    for (slot, operand) in op.src.iter_mut().zip(from) {
        *slot = cx.src(i, operand, part)?;
    }
    op.imm = from.len() as u64;
    op.dst[0] = cx.dst(i, to, ty)?;
    cx.emit(op);
    Ok(())
}

struct Pack128;

impl Semantics for Pack128 {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let (low, high) = (cx.b64(op.src[0]), cx.b64(op.src[1]));
        if op.dst[0] != Dst::SINK {
            cx.set_b64(op.dst[0], low);
            cx.set_b64(Dst(op.dst[0].0 + 1), high);
        }
        Flow::Next
    }
}

struct Pack64;

impl Semantics for Pack64 {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let (low, high) = (cx.b32(op.src[0]), cx.b32(op.src[1]));
        let mut out = [0; LANES];
        for lane in 0..LANES {
            out[lane] = low[lane] as u64 | (high[lane] as u64) << 32;
        }
        cx.set_b64(op.dst[0], out);
        Flow::Next
    }
}

struct Pack64From16;

impl Semantics for Pack64From16 {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let mut out = [0; LANES];
        for (part, &src) in op.src.iter().enumerate() {
            let value = cx.b32(src);
            for lane in 0..LANES {
                out[lane] |= (value[lane] as u64 & 0xffff) << (16 * part);
            }
        }
        cx.set_b64(op.dst[0], out);
        Flow::Next
    }
}

/// `imm` elements of `BITS` bits.
struct Pack32<const BITS: u32>;

impl<const BITS: u32> Semantics for Pack32<BITS> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let mut out = [0; LANES];
        for (part, &src) in op.src[..op.imm as usize].iter().enumerate() {
            let value = cx.b32(src);
            for lane in 0..LANES {
                out[lane] |= (value[lane] & ((1 << BITS) - 1)) << (BITS * part as u32);
            }
        }
        cx.set_b32(op.dst[0], out);
        Flow::Next
    }
}

/// One operation for each element that is not `_`. The source is read before any element is written: a destination may
/// be the source.
fn unpack(cx: &mut Lower, i: &Instruction, ty: Type, to: &[Operand], from: &Operand) -> Result<()> {
    let part = element(cx, i, ty, to.len())?;
    let run = match (ty, part) {
        (Type::B128, _) => choose::<Unpack128>(),
        (Type::B64, Type::B32) => choose::<Unpack64<32>>(),
        (Type::B64, _) => choose::<Unpack64<16>>(),
        (_, Type::B16) => choose::<Unpack32<16>>(),
        _ => choose::<Unpack32<8>>(),
    };
    let mut op = cx.op(i, Class::Move, run);
    op.src[0] = cx.src(i, from, ty)?;
    let mut parts = Vec::new();
    for operand in to {
        let Dst(row) = cx.dst(i, operand, part)?;
        parts.push(Src(row));
    }
    op.list = cx.list(parts);
    cx.emit(op);
    Ok(())
}

struct Unpack128;

impl Semantics for Unpack128 {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let low = cx.b64(op.src[0]);
        let high = cx.b64(Src::register(op.src[0].0 + 1));
        let first = op.list.0 as usize;
        cx.set_b64(Dst(cx.code.list[first].0), low);
        cx.set_b64(Dst(cx.code.list[first + 1].0), high);
        Flow::Next
    }
}

struct Unpack64<const BITS: u32>;

impl<const BITS: u32> Semantics for Unpack64<BITS> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let value = cx.b64(op.src[0]);
        for (part, entry) in (op.list.0..op.list.1).enumerate() {
            let mut out = [0; LANES];
            for lane in 0..LANES {
                out[lane] = (value[lane] >> (BITS * part as u32)) as u32;
                if BITS < 32 {
                    out[lane] &= (1 << (BITS & 31)) - 1;
                }
            }
            cx.set_b32(Dst(cx.code.list[entry as usize].0), out);
        }
        Flow::Next
    }
}

struct Unpack32<const BITS: u32>;

impl<const BITS: u32> Semantics for Unpack32<BITS> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let value = cx.b32(op.src[0]);
        for (part, entry) in (op.list.0..op.list.1).enumerate() {
            let mut out = [0; LANES];
            for lane in 0..LANES {
                out[lane] = value[lane] >> (BITS * part as u32) & ((1 << BITS) - 1);
            }
            cx.set_b32(Dst(cx.code.list[entry as usize].0), out);
        }
        Flow::Next
    }
}

/// The operation that gives the address of a local variable of this frame: where the frame begins is known when it runs.
pub fn local_address(cx: &Lower, i: &Instruction, dst: Dst, ty: Type, offset: u64) -> Op {
    let run: Run = if ty.bits() == 64 { local_address_64 } else { local_address_32 };
    Op { dst: [dst, Dst::SINK], imm: offset, ..cx.op(i, Class::Move, run) }
}

fn local_address_64(cx: &mut Cx<'_>, op: &Op) -> Flow {
    cx.set_b64(op.dst[0], [(cx.warp.local_base as u64).wrapping_add(op.imm); LANES]);
    Flow::Next
}

fn local_address_32(cx: &mut Cx<'_>, op: &Op) -> Flow {
    cx.set_b32(op.dst[0], [cx.warp.local_base.wrapping_add(op.imm as u32); LANES]);
    Flow::Next
}

/// The operation that takes the low half of a 64-bit register, for conversions that read it as something narrower.
pub fn low_half(cx: &Lower, i: &Instruction, dst: Dst, src: Src) -> Op {
    let op = cx.op(i, Class::Move, choose::<LowHalf>());
    Op { dst: [dst, Dst::SINK], src: [src; 4], ..op }
}

struct LowHalf;

impl Semantics for LowHalf {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let value = cx.b64(op.src[0]);
        let mut out = [0; LANES];
        for lane in 0..LANES {
            out[lane] = value[lane] as u32;
        }
        cx.set_b32(op.dst[0], out);
        Flow::Next
    }
}

/// The operation that gives the address of the dynamic shared memory, for functions that several kernels call.
pub fn dynamic_shared_address(cx: &Lower, i: &Instruction, dst: Dst, ty: Type, offset: i64) -> Op {
    let run: Run = if ty.bits() == 64 { dynamic_shared_64 } else { dynamic_shared_32 };
    Op { dst: [dst, Dst::SINK], imm: offset as u64, ..cx.op(i, Class::Move, run) }
}

fn dynamic_shared_64(cx: &mut Cx<'_>, op: &Op) -> Flow {
    cx.set_b64(op.dst[0], [(cx.grid.dynamic_shared_offset as u64).wrapping_add(op.imm); LANES]);
    Flow::Next
}

fn dynamic_shared_32(cx: &mut Cx<'_>, op: &Op) -> Flow {
    cx.set_b32(op.dst[0], [cx.grid.dynamic_shared_offset.wrapping_add(op.imm as u32); LANES]);
    Flow::Next
}

/// State spaces by their modifier.
const SPACES: &[(&str, Space)] = &[
    ("global", Space::Global),
    ("const", Space::Const),
    ("local", Space::Local),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("param", Space::Param),
    ("param::entry", Space::Param),
];

/// What is added to an address of a space to make it generic.
fn window(cx: &Lower, space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        // A device function's own parameters are in local memory.
        Space::Param if cx.in_kernel => PARAM_WINDOW,
        Space::Param => LOCAL_WINDOW,
        _ => 0,
    }
}

fn cvta(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let to = m.take("to");
    let space = if m.take("shared::cluster") { Space::Shared } else { m.expect(SPACES)? };
    m.ty(&[Type::U64])?;
    m.finish()?;
    cx.arity(i, &[2])?;
    let base = window(cx, space);
    let mut op = cx.op(i, Class::Move, if base == 0 { choose::<Mov64>() } else { choose::<AddConstant>() });
    op.imm = if to { base.wrapping_neg() } else { base };
    op.src[0] = cx.src(i, &i.operands[1], Type::U64)?;
    op.dst[0] = cx.dst(i, &i.operands[0], Type::U64)?;
    cx.emit(op);
    Ok(())
}

struct AddConstant;

impl Semantics for AddConstant {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let mut value = cx.b64(op.src[0]);
        for lane in &mut value {
            *lane = lane.wrapping_add(op.imm);
        }
        cx.set_b64(op.dst[0], value);
        Flow::Next
    }
}

fn isspacep(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    if m.peek() == Some("const") {
        // Constant variables lie among the global ones here: an address does not tell them apart.
        return m.refuse();
    }
    let space = if m.take("shared::cluster") { Space::Shared } else { m.expect(SPACES)? };
    m.finish()?;
    cx.arity(i, &[2])?;
    let mut op = cx.op(i, Class::Move, is_space);
    op.imm = window(cx, space) >> 56;
    op.src[0] = cx.src(i, &i.operands[1], Type::U64)?;
    op.dst[0] = cx.dst(i, &i.operands[0], Type::Pred)?;
    cx.emit(op);
    Ok(())
}

fn is_space(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let address = cx.b64(op.src[0]);
    let mut out = 0;
    for (lane, address) in address.iter().enumerate() {
        out |= u32::from(address >> 56 == op.imm) << lane;
    }
    cx.set_pred(op.dst[0], out);
    Flow::Next
}

#[cfg(test)]
mod tests {
    use crate::machine::LANES;
    use crate::testing::Snippet;

    const KEEP: u32 = 0xdead_beef;

    #[test]
    fn halves_pack_low_first_and_unpack_to_where_they_came_from() {
        let mut s = Snippet::new(
            ".reg .b16 %h<4>; .reg .b32 %r<3>; .reg .b64 %d<2>;
             mov.b32 %r0, {%h0, %h1}; mov.b64 %d0, {%r0, %r1}; mov.b32 {%h2, _}, %r0; mov.b32 {_, %h3}, %r0;
             mov.b64 {%r0, %r1}, %d0; mov.b64 %d1, {%h0, %h1, %h0, 0xffff};",
        )
        .unwrap();
        s.set_b32("%h0", std::array::from_fn(|lane| lane as u32));
        s.set_b32("%h1", [0xabcd; LANES]);
        s.set_b32("%r1", [0x1234_5678; LANES]);
        s.run();
        for lane in 0..LANES {
            let low = lane as u64;
            assert_eq!(s.b64("%d0")[lane], 0x1234_5678_abcd_0000 | low);
            assert_eq!(s.b64("%d1")[lane], 0xffff_0000_abcd_0000 | low << 32 | low);
            assert_eq!((s.b32("%h2")[lane], s.b32("%h3")[lane]), (lane as u32, 0xabcd));
            assert_eq!((s.b32("%r0")[lane], s.b32("%r1")[lane]), (0xabcd_0000 | lane as u32, 0x1234_5678));
        }
    }

    #[test]
    fn unpacking_over_the_source_reads_it_once() {
        let mut s = Snippet::new(
            ".reg .b64 %d<3>; .reg .b128 %q; .reg .b32 %r; .reg .b16 %h<4>;
             mov.b128 %q, {%d0, %d1}; mov.b128 {%d1, %d0}, %q; mov.b32 {%h0, %h1}, %r; mov.b16 %h2, -1;",
        )
        .unwrap();
        s.set_b64("%d0", [1; LANES]);
        s.set_b64("%d1", [2; LANES]);
        s.set_b32("%r", [0x8000_ffff; LANES]);
        s.run();
        assert_eq!((s.b64("%d0")[7], s.b64("%d1")[7]), (2, 1));
        assert_eq!((s.b32("%h0")[7], s.b32("%h1")[7], s.b32("%h2")[7]), (0xffff, 0x8000, 0xffff));
    }

    #[test]
    fn bytes_pack_and_what_is_above_them_is_cut() {
        let mut s = Snippet::new(
            ".reg .b8 %b<4>; .reg .b32 %r; .reg .b16 %h;
             mov.b32 %r, {%b0, %b1, %b2, %b3}; mov.b16 %h, {%b0, %b1};",
        )
        .unwrap();
        for (name, value) in [("%b0", 0x01), ("%b1", 0xff02), ("%b2", 0x03), ("%b3", 0x04)] {
            s.set_b32(name, [value; LANES]);
        }
        s.run();
        assert_eq!((s.b32("%r")[0], s.b32("%h")[0]), (0x0403_0201, 0x0201));
    }

    #[test]
    fn only_executing_lanes_are_written() {
        let mut s = Snippet::new(
            ".reg .pred %p<2>; .reg .b32 %r<4>; .reg .b64 %d<2>;
             mov.pred %p1, %p0; mov.u32 %r0, 5; mov.b64 {%r1, %r2}, %d0; mov.f64 %d1, 0d3ff0000000000000;
             mov.f32 %r3, 1.5;",
        )
        .unwrap();
        for name in ["%r0", "%r1", "%r2", "%r3"] {
            s.set_b32(name, [KEEP; LANES]);
        }
        s.set_b64("%d0", [0x0000_0002_0000_0001; LANES]);
        s.set_pred("%p0", 0b1010);
        s.set_pred("%p1", 0b0001);
        s.run_lanes(0b1110);
        assert_eq!(s.pred("%p1"), 0b1011);
        let rows = ["%r0", "%r1", "%r2", "%r3"].map(|name| s.b32(name));
        assert_eq!(rows.map(|row| row[0]), [KEEP; 4]);
        assert_eq!(rows.map(|row| row[1]), [5, 1, 2, 1.5f32.to_bits()]);
        assert_eq!((s.b64("%d1")[0], s.b64("%d1")[3]), (0, 1f64.to_bits()));
    }

    #[test]
    fn generic_addresses_tell_their_space() {
        let mut s = Snippet::new(
            ".reg .pred %p<5>; .reg .b64 %d<6>; .local .align 8 .b8 depot[16]; .local .b32 second;
             cvta.shared.u64 %d1, %d0; cvta.local.u64 %d2, %d0; cvta.global.u64 %d3, %d0; cvta.to.shared.u64 %d4, %d1;
             mov.u64 %d5, second;
             isspacep.shared %p0, %d1; isspacep.local %p1, %d1; isspacep.global %p2, %d3; isspacep.global %p3, %d2;
             isspacep.local %p4, %d2;",
        )
        .unwrap();
        s.set_b64("%d0", [64; LANES]);
        s.run();
        assert_eq!(s.b64("%d4")[9], 64);
        assert_eq!(s.b64("%d5")[9], 16);
        assert_eq!(["%p0", "%p1", "%p2", "%p3", "%p4"].map(|p| s.pred(p)), [u32::MAX, 0, u32::MAX, 0, u32::MAX]);
    }

    #[test]
    fn a_conversion_reads_the_low_bits_of_a_wider_register() {
        let mut s = Snippet::new(
            ".reg .b64 %d<3>; .reg .b32 %r<2>;
             cvt.s64.s32 %d1, %d0; cvt.u64.u16 %d2, %d0; cvt.s32.s8 %r1, %r0;",
        )
        .unwrap();
        s.set_b64("%d0", [0x1234_5678_8765_4321; LANES]);
        s.set_b32("%r0", [0x1234_5680; LANES]);
        s.run();
        assert_eq!((s.b64("%d1")[3], s.b64("%d2")[3], s.b32("%r1")[3]), (0xffff_ffff_8765_4321, 0x4321, 0xffff_ff80));
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        for text in [
            "mov.b8 %r0, 1;",
            "mov.b32 %r0;",
            "mov.b32 %r0, %r1, %r2;",
            "mov.b32 %d0, 1;",
            "mov.b64 %d0, %r0;",
            "mov.b32 %r0, {%r1, %r1};",
            "mov.b64 %d0, {%r0, %r1, %r2};",
            "mov.s64 %d0, {%r0, %r1};",
            "mov.u32 %r0, %tid;",
            "mov.u32 %r0, %nonsense;",
            "mov.u32 %r4, 1;",
            "mov.u32 %r00, 1;",
            "mov.u32.sat %r0, 1;",
            "cvta.u64 %d0, %d1;",
            "cvta.to.shared.u32 %r0, %r1;",
            "isspacep.const %p, %d0;",
        ] {
            let text = format!(".reg .b32 %r<4>; .reg .b64 %d<2>; .reg .pred %p; {text}");
            assert!(Snippet::new(&text).is_err(), "{text}");
        }
    }
}
