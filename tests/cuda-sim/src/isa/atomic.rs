//! Atomic operations (PTX ISA 9.0, sections 9.7.13: `atom`, `red`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::formats::{Bf16, F16, Half};
use super::load_store::{ORDERS, SCOPES, address, by_region};
use crate::code::{Class, Dst, Flow, Op, Src};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::access::{Access, Effect, Order, Reach, Region};
use crate::machine::fault::Kind;
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Operand, Space, Type};

/// Lowers the atomic operations; `red.async` belongs to the asynchronous ones.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "atom" => Some(atomic(cx, i, true)),
        "red" if i.modifiers.first().is_none_or(|m| m != "async") => Some(atomic(cx, i, false)),
        _ => None,
    }
}

/// What is done to the value in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Action {
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    Add,
    Increment,
    Decrement,
    Min,
    Max,
}

const ACTIONS: &[(&str, Action)] = &[
    ("and", Action::And),
    ("or", Action::Or),
    ("xor", Action::Xor),
    ("exch", Action::Exchange),
    ("cas", Action::CompareAndSwap),
    ("add", Action::Add),
    ("inc", Action::Increment),
    ("dec", Action::Decrement),
    ("min", Action::Min),
    ("max", Action::Max),
];

/// What the value in memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Value {
    Bits,
    Signed,
    F32,
    F64,
    F16,
    Bf16,
}

/// The operation, packed into the bits of [`Op::imm`] that [`Access`] leaves free.
#[derive(Clone, Copy)]
struct Work {
    action: Action,
    value: Value,
    /// Bytes of an element: 2, 4, 8 or 16.
    width: u64,
    /// Elements.
    count: usize,
    /// Subnormal numbers count as zero: `.f32` in global memory.
    flush: bool,
}

const WORK_BITS: u32 = 46;

impl Work {
    fn pack(self) -> u64 {
        let bits = self.action as u64
            | (self.value as u64) << 4
            | u64::from(self.width.trailing_zeros()) << 7
            | u64::from(self.count.trailing_zeros()) << 10;
        bits << WORK_BITS
    }

    fn unpack(imm: u64) -> Work {
        let bits = imm >> WORK_BITS;
        Work {
            action: ACTIONS[(bits & 15) as usize].1,
            value: [Value::Bits, Value::Signed, Value::F32, Value::F64, Value::F16, Value::Bf16]
                [(bits >> 4 & 7) as usize],
            width: 1 << (bits >> 7 & 7),
            count: 1 << (bits >> 10 & 7),
            flush: false,
        }
    }
}

/// The modifiers, which compilers write in several orders.
struct Form {
    space: Space,
    order: Order,
    block_scope: bool,
    action: Action,
    vector: usize,
    ty: Type,
    policy: bool,
}

fn form(i: &Instruction) -> Result<Form> {
    use Type::*;
    const SPACES: &[(&str, Space)] = &[
        ("global", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("shared::cluster", Space::Shared),
    ];
    const TYPES: &[Type] = &[B16, B32, B64, B128, U32, U64, S32, S64, F32, F64, F16, F16x2, BF16, BF16x2];
    let mut m = Modifiers::new(i);
    let (mut space, mut order, mut scope, mut action, mut vector, mut ty) = (None, None, None, None, None, None);
    let (mut policy, mut noftz) = (false, false);
    while m.peek().is_some() {
        if space.is_none()
            && let Some(found) = m.one_of(SPACES)
        {
            space = Some(found);
        } else if order.is_none()
            && let Some(found) = m.one_of(&ORDERS[2..])
        {
            order = Some(found);
        } else if scope.is_none()
            && let Some(found) = m.one_of(SCOPES)
        {
            scope = Some(found);
        } else if action.is_none()
            && let Some(found) = m.one_of(ACTIONS)
        {
            action = Some(found);
        } else if vector.is_none()
            && let Some(found) = m.one_of(&[("v2", 2), ("v4", 4), ("v8", 8)])
        {
            vector = Some(found);
        } else if !policy && m.take("L2::cache_hint") {
            policy = true;
        } else if !noftz && m.take("noftz") {
            noftz = true;
        } else if ty.is_none() {
            ty = Some(m.ty(TYPES)?);
        } else {
            return m.refuse();
        }
    }
    let (Some(action), Some(ty)) = (action, ty) else { return m.refuse() };
    let half = matches!(ty, F16 | F16x2 | BF16 | BF16x2);
    let vector = vector.unwrap_or(1);
    let allowed = match action {
        Action::And | Action::Or | Action::Xor => vector == 1 && matches!(ty, B32 | B64),
        Action::Exchange => vector == 1 && matches!(ty, B32 | B64 | B128),
        Action::CompareAndSwap => vector == 1 && matches!(ty, B16 | B32 | B64 | B128),
        Action::Increment | Action::Decrement => vector == 1 && ty == U32,
        Action::Add if vector == 1 => matches!(ty, U32 | S32 | U64 | S64 | F32 | F64) || half,
        Action::Add => ty == F32 && vector <= 4 || half,
        Action::Min | Action::Max => {
            if vector == 1 {
                matches!(ty, U32 | S32 | U64 | S64)
            } else {
                half
            }
        }
    };
    if !allowed || half != noftz || vector > 1 && space == Some(Space::Shared) || vector as u32 * ty.bits() > 128 {
        return m.refuse();
    }
    Ok(Form {
        space: space.unwrap_or(Space::Generic),
        order: order.unwrap_or(Order::Relaxed),
        block_scope: scope.unwrap_or(false),
        action,
        vector,
        ty,
        policy,
    })
}

fn atomic(cx: &mut Lower, i: &Instruction, gives: bool) -> Result<()> {
    let form = form(i)?;
    let swap = form.action == Action::CompareAndSwap;
    if !gives && (swap || form.action == Action::Exchange) {
        return cx.error(i, "`red` has no such operation");
    }
    let sources = 1 + usize::from(swap);
    let first = usize::from(gives);
    cx.arity(i, &[first + 1 + sources + usize::from(form.policy)])?;
    let (base, access) = address(cx, i, &i.operands[first], form.space)?;
    let access = Access { order: form.order, block_scope: form.block_scope, ..access };
    let value = match form.ty {
        Type::F32 => Value::F32,
        Type::F64 => Value::F64,
        Type::F16 | Type::F16x2 => Value::F16,
        Type::BF16 | Type::BF16x2 => Value::Bf16,
        Type::S32 | Type::S64 => Value::Signed,
        _ => Value::Bits,
    };
    let width = u64::from(form.ty.bits() / 8);
    let work = Work { action: form.action, value, width, count: form.vector, flush: false };
    let mut rows = Vec::new();
    for k in 0..form.vector {
        rows.push(match gives {
            true => Src(cx.dst(i, element(cx, i, &i.operands[0], form.vector, k)?, form.ty)?.0),
            false => Src(Dst::SINK.0),
        });
    }
    for operand in &i.operands[first + 1..first + 1 + sources] {
        for k in 0..form.vector {
            rows.push(cx.src(i, element(cx, i, operand, form.vector, k)?, form.ty)?);
        }
    }
    if form.policy {
        cx.src(i, &i.operands[first + 1 + sources], Type::B64)?;
    }
    let mut op = cx.op(i, Class::Atomic, run);
    op.src[0] = base;
    op.imm = access.pack() | work.pack();
    op.list = cx.list(rows);
    cx.emit(op);
    Ok(())
}

/// Element `k` of a vector operand, or the scalar operand itself.
fn element<'a>(cx: &Lower, i: &Instruction, operand: &'a Operand, count: usize, k: usize) -> Result<&'a Operand> {
    match operand {
        Operand::Vector(parts) if count > 1 && parts.len() == count => Ok(&parts[k]),
        Operand::Vector(_) => cx.error(i, "a vector of another length is needed"),
        _ if count == 1 => Ok(operand),
        Operand::Sink => Ok(operand),
        _ => cx.error(i, format_args!("a vector of {count} elements is needed")),
    }
}

/// Lanes act one after the other, the lowest first.
fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let access = Access::unpack(op.imm);
    let work = Work::unpack(op.imm);
    let addresses = cx.addresses(op.src[0], access);
    by_region(cx, access, addresses, |cx, region, mut addresses| {
        if !matches!(region, Region::Global | Region::Shared) {
            return cx.fault(Kind::InvalidOperation, "atomic access outside global and shared memory");
        }
        let size = work.width * work.count as u64;
        let gives = (0..work.count).any(|k| Dst(cx.code.list[op.list.0 as usize + k].0) != Dst::SINK);
        let effect = if gives { Effect::Atomic } else { Effect::Reduction };
        let reach = match cx.reach(region, &mut addresses, size, effect, access) {
            Ok(reach) => reach,
            Err(flow) => return flow,
        };
        let host = |lane: usize| match reach {
            Reach::Contiguous(at) => at as u64 + lane as u64 * size,
            Reach::Uniform(at) => at as u64,
            Reach::Scattered => addresses[lane],
        };
        let hosts: Row<u64> = std::array::from_fn(host);
        let work = Work { flush: work.value == Value::F32 && region == Region::Global, ..work };
        if region == Region::Global {
            cx.counters.sums.load_bytes += size * u64::from(cx.mask.count_ones());
            cx.counters.sums.store_bytes += size * u64::from(cx.mask.count_ones());
        }
        let rows = op.list.0 as usize;
        match work.width {
            16 => wide(cx, rows, work, &hosts),
            8 => narrow::<u64>(cx, rows, work, &hosts),
            _ => narrow::<u32>(cx, rows, work, &hosts),
        }
        cx.reached();
        Flow::Next
    })
}

/// A register file of elements up to 64 bits.
trait File: Copy + Default {
    fn read(cx: &Cx<'_>, src: Src) -> Row<Self>;
    fn write(cx: &mut Cx<'_>, dst: Dst, value: Row<Self>);
    fn bits(self) -> u64;
    fn of(bits: u64) -> Self;
}

impl File for u32 {
    fn read(cx: &Cx<'_>, src: Src) -> Row<u32> {
        cx.b32(src)
    }
    fn write(cx: &mut Cx<'_>, dst: Dst, value: Row<u32>) {
        cx.set_b32(dst, value);
    }
    fn bits(self) -> u64 {
        u64::from(self)
    }
    fn of(bits: u64) -> u32 {
        bits as u32
    }
}

impl File for u64 {
    fn read(cx: &Cx<'_>, src: Src) -> Row<u64> {
        cx.b64(src)
    }
    fn write(cx: &mut Cx<'_>, dst: Dst, value: Row<u64>) {
        cx.set_b64(dst, value);
    }
    fn bits(self) -> u64 {
        self
    }
    fn of(bits: u64) -> u64 {
        bits
    }
}

/// Elements of 2, 4 and 8 bytes. The host addresses have been checked.
fn narrow<F: File>(cx: &mut Cx<'_>, rows: usize, work: Work, hosts: &Row<u64>) {
    for k in 0..work.count {
        let source = |n: usize| cx.code.list[rows + n * work.count + k];
        let b = F::read(cx, source(1));
        let c = if work.action == Action::CompareAndSwap { F::read(cx, source(2)) } else { [F::default(); LANES] };
        let mut old = [F::default(); LANES];
        let mut changes = 0;
        let mut left = cx.mask;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let at = hosts[lane] + k as u64 * work.width;
            let (b, c) = (b[lane].bits(), c[lane].bits());
            let (before, after) = exchange(at, work, |old| work.apply(old, b, c));
            old[lane] = F::of(before);
            changes += u64::from(before != after);
            left &= left - 1;
        }
        // A spinning thread must not look as if it made progress: only changes count.
        cx.block.progress += changes;
        cx.block.outward += changes;
        let dst = Dst(source(0).0);
        F::write(cx, dst, old);
    }
}

/// Replaces the value at a checked host address by a function of it, at once; the values before and after.
fn exchange(at: u64, work: Work, f: impl Fn(u64) -> u64) -> (u64, u64) {
    macro_rules! swap {
        ($atomic:ty, $ty:ty) => {{
            // SAFETY: `reach` has checked that these bytes are valid and aligned; other threads of the host that touch
            // them at the same time do so as the simulated program does.
            let cell = unsafe { <$atomic>::from_ptr(at as *mut $ty) };
            let mut old = cell.load(Ordering::SeqCst);
            loop {
                let new = f(u64::from(old)) as $ty;
                match cell.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => break (u64::from(old), u64::from(new)),
                    Err(now) => old = now,
                }
            }
        }};
    }
    match work.width {
        2 => swap!(AtomicU16, u16),
        4 => swap!(AtomicU32, u32),
        _ => swap!(AtomicU64, u64),
    }
}

/// 128 bits: only `exch` and `cas`. The host has no such atomic operation everywhere, so a lock keeps them apart.
fn wide(cx: &mut Cx<'_>, rows: usize, work: Work, hosts: &Row<u64>) {
    static LOCK: Mutex<()> = Mutex::new(());
    let _guard = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let pair = |cx: &Cx<'_>, src: Src| -> [Row<u64>; 2] {
        match src.as_constant() {
            Some(_) => [cx.b64(src), [0; LANES]],
            None => [cx.b64(src), cx.b64(Src::register(src.0 + 1))],
        }
    };
    let b = pair(cx, cx.code.list[rows + 1]);
    let swap = work.action == Action::CompareAndSwap;
    let c = if swap { pair(cx, cx.code.list[rows + 2]) } else { b };
    let mut old = [[0; LANES]; 2];
    for lane in (0..LANES).filter(|lane| cx.mask >> lane & 1 != 0) {
        let at = hosts[lane] as *mut [u64; 2];
        // SAFETY: `reach` has checked that these 16 bytes are valid; the lock keeps other 128-bit operations away.
        let before = unsafe { at.read_unaligned() };
        (old[0][lane], old[1][lane]) = (before[0], before[1]);
        if !swap || before == [b[0][lane], b[1][lane]] {
            let after = [c[0][lane], c[1][lane]];
            // SAFETY: as above.
            unsafe { at.write_unaligned(after) };
            cx.block.progress += u64::from(after != before);
            cx.block.outward += u64::from(after != before);
        }
    }
    let dst = Dst(cx.code.list[rows].0);
    if dst != Dst::SINK {
        cx.set_b64(dst, old[0]);
        cx.set_b64(Dst(dst.0 + 1), old[1]);
    }
}

impl Work {
    /// The new value of an element.
    fn apply(self, old: u64, b: u64, c: u64) -> u64 {
        match self.action {
            Action::And => old & b,
            Action::Or => old | b,
            Action::Xor => old ^ b,
            Action::Exchange => b,
            Action::CompareAndSwap => {
                if old == b {
                    c
                } else {
                    old
                }
            }
            Action::Increment => {
                if old >= b {
                    0
                } else {
                    old + 1
                }
            }
            Action::Decrement => {
                if old == 0 || old > b {
                    b
                } else {
                    old - 1
                }
            }
            Action::Add | Action::Min | Action::Max => self.arithmetic(old, b),
        }
    }

    fn arithmetic(self, old: u64, b: u64) -> u64 {
        match self.value {
            Value::Bits => match self.action {
                Action::Min => old.min(b),
                Action::Max => old.max(b),
                _ => old.wrapping_add(b),
            },
            Value::Signed => {
                let signed = |v: u64| if self.width == 4 { i64::from(v as u32 as i32) } else { v as i64 };
                match self.action {
                    Action::Min => signed(old).min(signed(b)) as u64,
                    Action::Max => signed(old).max(signed(b)) as u64,
                    _ => old.wrapping_add(b),
                }
            }
            Value::F32 => {
                let flush = |v: f32| if self.flush && v.is_subnormal() { 0f32.copysign(v) } else { v };
                let sum = flush(f32::from_bits(old as u32)) + flush(f32::from_bits(b as u32));
                u64::from(if sum.is_nan() { 0x7fff_ffff } else { flush(sum).to_bits() })
            }
            Value::F64 => {
                let sum = f64::from_bits(old) + f64::from_bits(b);
                if sum.is_nan() { 0x7fff_ffff_ffff_ffff } else { sum.to_bits() }
            }
            Value::F16 => self.halves::<F16>(old, b),
            Value::Bf16 => self.halves::<Bf16>(old, b),
        }
    }

    /// One or two halves, each by itself.
    fn halves<H: Half>(self, old: u64, b: u64) -> u64 {
        let one = |shift: u64| {
            let (x, y) = (H::from_bits((old >> shift) as u16).decode(), H::from_bits((b >> shift) as u16).decode());
            // The sum of two halves is exact in f64, so that it is rounded once.
            let result = match self.action {
                Action::Min => f64::from(minimum(x, y)),
                Action::Max => f64::from(-minimum(-x, -y)),
                _ => f64::from(x) + f64::from(y),
            };
            let rounded = super::round::round(result, H::FORMAT, super::round::Rounding::Nearest);
            u64::from(H::encode(rounded as f32).to_bits()) << shift
        };
        if self.width == 2 { one(0) } else { one(0) | one(16) }
    }
}

/// The lesser number, -0 being less than +0; the other if one is NaN.
fn minimum(x: f32, y: f32) -> f32 {
    if x.is_nan() || y < x || x == y && y.is_sign_negative() { y } else { x }
}

#[cfg(test)]
mod tests {
    use crate::isa::exact;
    use crate::isa::formats::{Bf16, F16, Half};
    use crate::isa::probe::{get, integers, pairs, set};
    use crate::isa::round::Rounding;
    use crate::memory::Origin;
    use crate::testing::Snippet;

    /// One lane's atomic operation on a word of memory of `size` bytes: what it gives, and what is there afterwards.
    /// `%d` and `%b`, `%c` are declared as `ty`.
    fn one(instruction: &str, ty: &str, size: usize, old: u64, [b, c]: [u64; 2]) -> (u64, u64) {
        let shared = instruction.contains(".shared");
        let mut s = Snippet::new(&format!(".reg .{ty} %d, %b, %c; .reg .b64 %p; {instruction};")).unwrap();
        set(&mut s, "%b", ty, [b; 32]);
        set(&mut s, "%c", ty, [c; 32]);
        let bytes = &old.to_le_bytes()[..size];
        let mut after = [0; 8];
        let address = s.memory.allocate(8, 8, Origin::Alloc).unwrap();
        if shared {
            s.set_b64("%p", [16; 32]);
            s.shared()[16..16 + size].copy_from_slice(bytes);
        } else {
            s.set_b64("%p", [address; 32]);
            s.memory.write(address, bytes).unwrap();
        }
        s.run_lanes(1 << 5);
        match shared {
            true => after[..size].copy_from_slice(&s.shared()[16..16 + size]),
            false => s.memory.read(address, &mut after[..size]).unwrap(),
        }
        (get(&s, "%d", ty)[5], u64::from_le_bytes(after))
    }

    #[test]
    fn integers_are_combined_by_their_types() {
        type Combine = fn(i128, i128) -> i128;
        let bitwise: [(&str, Combine); 4] =
            [("and", |a, b| a & b), ("or", |a, b| a | b), ("xor", |a, b| a ^ b), ("exch", |_, b| b)];
        let ordered: [(&str, Combine); 3] = [("add", |a, b| a + b), ("min", i128::min), ("max", i128::max)];
        let wraps: [(&str, Combine); 2] =
            [("inc", |a, b| if a >= b { 0 } else { a + 1 }), ("dec", |a, b| if a == 0 || a > b { b } else { a - 1 })];
        for (types, operations) in
            [(&["b32", "b64"][..], &bitwise[..]), (&["u32", "s32", "u64", "s64"], &ordered), (&["u32"], &wraps)]
        {
            for (ty, (name, combine)) in types.iter().flat_map(|ty| operations.iter().map(move |o| (ty, o))) {
                let width: u32 = ty[1..].parse().unwrap();
                let all: Vec<u64> = integers(width).into_iter().step_by(2).collect();
                let (a, b) = pairs(&all, &all);
                let value = |bits: u64| match ty.starts_with('s') {
                    true => ((bits << (64 - width)) as i64 >> (64 - width)) as i128,
                    false => bits as i128,
                };
                for (a, b) in a.into_iter().zip(b) {
                    let want = combine(value(a), value(b)) as u64 & u64::MAX >> (64 - width);
                    let register = format!("b{width}");
                    for space in ["global", "shared"] {
                        let line = format!("atom.{space}.{name}.{ty} %d, [%p], %b");
                        let got = one(&line, &register, width as usize / 8, a, [b, 0]);
                        assert_eq!(got, (a, want), "{line}: {a:#x} {b:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_swap_needs_the_whole_value() {
        for (width, size) in [(16, 2), (32, 4), (64, 8)] {
            let top = 1u64 << (width - 1);
            for (old, compared) in [(7, 7), (7, 6), (top | 7, 7), (7, top | 7), (top, top)] {
                let line = format!("atom.global.cas.b{width} %d, [%p], %b, %c");
                let want = if old == compared { 99 } else { old };
                assert_eq!(one(&line, &format!("b{width}"), size, old, [compared, 99]), (old, want), "{line}");
            }
        }
    }

    #[test]
    fn a_wide_swap_compares_and_stores_both_halves() {
        let run = |line: &str, old: [u64; 2], b: [u64; 2], c: [u64; 2]| {
            let text = format!(
                ".reg .b128 %d, %b, %c; .reg .b64 %p, %d0, %d1, %b0, %b1, %c0, %c1;
                 mov.b128 %b, {{%b0, %b1}}; mov.b128 %c, {{%c0, %c1}}; {line}; mov.b128 {{%d0, %d1}}, %d;"
            );
            let mut s = Snippet::new(&text).unwrap();
            for (name, value) in [("%b0", b[0]), ("%b1", b[1]), ("%c0", c[0]), ("%c1", c[1])] {
                s.set_b64(name, [value; 32]);
            }
            let address = s.memory.allocate(16, 16, Origin::Alloc).unwrap();
            s.memory.write(address, &old.map(u64::to_le_bytes).concat()).unwrap();
            s.set_b64("%p", [address; 32]);
            s.run_lanes(2);
            let mut after = [0; 16];
            s.memory.read(address, &mut after).unwrap();
            let words = [0, 8].map(|at| u64::from_le_bytes(after[at..at + 8].try_into().unwrap()));
            ([s.b64("%d0")[1], s.b64("%d1")[1]], words)
        };
        let (cas, exch) = ("atom.global.cas.b128 %d, [%p], %b, %c", "atom.global.exch.b128 %d, [%p], %b");
        assert_eq!(run(cas, [1, 2], [1, 2], [3, 4]), ([1, 2], [3, 4]));
        assert_eq!(run(cas, [1, 2], [1, 5], [3, 4]), ([1, 2], [1, 2]));
        assert_eq!(run(cas, [1, 2], [5, 2], [3, 4]), ([1, 2], [1, 2]));
        assert_eq!(run(exch, [1, 2], [5, 6], [3, 4]), ([1, 2], [5, 6]));
    }

    #[test]
    fn float_sums_round_once_and_flush_where_the_isa_says() {
        let single = |x: f32| u64::from(x.to_bits());
        let global = |a: f32, b: f32| one("atom.global.add.f32 %d, [%p], %b", "b32", 4, single(a), [single(b), 0]).1;
        let shared = |a: f32, b: f32| one("atom.shared.add.f32 %d, [%p], %b", "b32", 4, single(a), [single(b), 0]).1;
        let least = f32::MIN_POSITIVE;
        // Normal numbers whose sum is not: flushed in global memory, with its sign.
        assert_eq!(global(1.5 * least, -1.25 * least), single(0.0));
        assert_eq!(global(-1.5 * least, 1.25 * least), single(-0.0));
        assert_eq!(shared(1.5 * least, -1.25 * least), single(0.25 * least));
        assert_eq!(global(0.5 * least, least), single(least), "an operand that is not normal counts as zero");
        assert_eq!(shared(0.5 * least, least), single(1.5 * least));
        assert_eq!(global(1.0, 2f32.powi(-24)), single(1.0), "a tie goes to even");
        assert_eq!(global(1.0 + f32::EPSILON, 2f32.powi(-24)), single(1.0 + 2.0 * f32::EPSILON));
        assert_eq!(global(f32::INFINITY, f32::NEG_INFINITY), 0x7fff_ffff);
        let double = |a: f64, b: f64| {
            f64::from_bits(one("atom.global.add.f64 %d, [%p], %b", "b64", 8, a.to_bits(), [b.to_bits(), 0]).1)
        };
        assert_eq!(double(1.0 + f64::EPSILON, 1e-16), 1.0 + f64::EPSILON);
        assert_eq!(double(0.1, 0.2), 0.1 + 0.2);
        assert_eq!(double(f64::MIN_POSITIVE / 2.0, 0.0), f64::MIN_POSITIVE / 2.0);
    }

    /// Halves of every kind: ties, subnormals, limits, zeros of both signs, NaN.
    const HALVES: [u16; 14] = [
        0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x3c00, 0x3c01, 0xbc00, 0x1000, 0x7bff, 0xfbff, 0x7c00, 0x7f80, 0x7fc1,
    ];

    /// The sum of two halves, rounded once, from exact integers.
    fn sum<H: Half>(a: u16, b: u16) -> u16 {
        let [a, b] = [a, b].map(|bits| f64::from(H::from_bits(bits).decode()));
        let sum = exact::fma(a, 1.0, b, H::FORMAT, Rounding::Nearest);
        if sum.is_nan() { 0x7fff } else { H::encode(sum as f32).to_bits() }
    }

    /// The lesser or the greater of two halves by the order of their bits; the number if one is none.
    fn extreme<H: Half>(a: u16, b: u16, max: bool) -> u16 {
        let none = |x: u16| H::from_bits(x).decode().is_nan();
        let key = |x: u16| if x >> 15 != 0 { -i32::from(x & 0x7fff) - 1 } else { i32::from(x) };
        match (none(a), none(b)) {
            (true, true) => 0x7fff,
            (true, false) => b,
            (false, true) => a,
            _ if (key(a) < key(b)) != max => a,
            _ => b,
        }
    }

    fn check_halves<H: Half>(ty: &str) {
        let word = |low: u16, high: u16| u64::from(low) | u64::from(high) << 16;
        for a in HALVES {
            for b in HALVES {
                let line = format!("atom.global.add.noftz.{ty} %d, [%p], %b");
                let want = u64::from(sum::<H>(a, b));
                assert_eq!(one(&line, "b16", 2, a.into(), [b.into(), 0]), (a.into(), want), "{line} {a:#x} {b:#x}");
                let line = format!("atom.shared.add.noftz.{ty}x2 %d, [%p], %b");
                let want = word(sum::<H>(a, b), sum::<H>(b, 0x3c00));
                let got = one(&line, "b32", 4, word(a, b), [word(b, 0x3c00), 0]);
                assert_eq!(got, (word(a, b), want), "{line} {a:#x} {b:#x}");
            }
        }
    }

    #[test]
    fn halves_are_added_one_by_one() {
        check_halves::<F16>("f16");
        check_halves::<Bf16>("bf16");
    }

    /// An atomic operation on a vector of `count` elements of `size` bytes: what it gives and leaves.
    fn vector(operation: &str, register: &str, size: usize, old: &[u64], b: &[u64]) -> [Vec<u64>; 2] {
        let names = |name: &str| (0..old.len()).map(|k| format!("%{name}{k}")).collect::<Vec<_>>().join(", ");
        let (d, bs) = (names("d"), names("b"));
        let text =
            format!(".reg .{register} {d}, {bs}; .reg .b64 %p; atom.global.{operation} {{{d}}}, [%p], {{{bs}}};");
        let mut s = Snippet::new(&text).unwrap();
        b.iter().enumerate().for_each(|(k, b)| set(&mut s, &format!("%b{k}"), register, [*b; 32]));
        let address = s.memory.allocate(16, 16, Origin::Alloc).unwrap();
        let bytes: Vec<u8> = old.iter().flat_map(|x| x.to_le_bytes()[..size].to_vec()).collect();
        s.memory.write(address, &bytes).unwrap();
        s.set_b64("%p", [address; 32]);
        s.run_lanes(1);
        let mut after = vec![0; bytes.len()];
        s.memory.read(address, &mut after).unwrap();
        let element = |c: &[u8]| c.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let given = (0..old.len()).map(|k| get(&s, &format!("%d{k}"), register)[0]).collect();
        [given, after.chunks(size).map(element).collect()]
    }

    #[test]
    fn vectors_are_combined_element_by_element() {
        let single = |x: f32| u64::from(x.to_bits());
        let (old, b) = ([1.0, 2.0, 3.0, 4.0].map(single), [10.0, 20.0, 30.0, 40.0].map(single));
        let [given, after] = vector("add.v4.f32", "b32", 4, &old, &b);
        assert_eq!((given, after), (old.to_vec(), [11.0, 22.0, 33.0, 44.0].map(single).to_vec()));
        for a in HALVES {
            for b in HALVES {
                let [one, two] = [[a, b], [b, a]].map(|x| x.map(u64::from));
                for (operation, max) in [("min", false), ("max", true)] {
                    let line = format!("{operation}.noftz.v2.f16");
                    let want = [extreme::<F16>(a, b, max), extreme::<F16>(b, a, max)].map(u64::from);
                    let [given, after] = vector(&line, "b16", 2, &one, &two);
                    assert_eq!((given, after), (one.to_vec(), want.to_vec()), "{line} {a:#x} {b:#x}");
                    let line = format!("{operation}.noftz.v4.bf16");
                    let want = [extreme::<Bf16>(a, b, max), extreme::<Bf16>(b, a, max)].map(u64::from);
                    let [_, after] = vector(&line, "b16", 2, &[one, one].concat(), &[two, two].concat());
                    assert_eq!(after, [want, want].concat(), "{line} {a:#x} {b:#x}");
                }
            }
        }
    }

    #[test]
    fn each_lane_sees_what_those_before_it_left() {
        let text = ".reg .b32 %d; .reg .b64 %p; atom.global.add.u32 %d, [%p], 3;";
        let mut s = Snippet::new(text).unwrap();
        let address = s.memory.allocate(4, 4, Origin::Alloc).unwrap();
        s.memory.write(address, &5u32.to_le_bytes()).unwrap();
        s.set_b64("%p", [address; 32]);
        s.run();
        let mut seen = s.b32("%d");
        seen.sort_unstable();
        assert_eq!(seen, std::array::from_fn(|k| 5 + 3 * k as u32));
    }
}
