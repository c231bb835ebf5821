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
