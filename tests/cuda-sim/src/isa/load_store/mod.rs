//! Loads and stores (PTX ISA 9.0, section 9.7.9: `ld`, `ld.global.nc`, `ldu`, `st`, and hints).

mod lanes;

pub(super) use lanes::by_region;
use lanes::{Loads, Narrow, Stores, Widen, memory_op};

use crate::code::{Class, Dst, Flow, Op, Run, Src};
use crate::lower::{Lower, Modifiers, Result, Symbol};
use crate::machine::access::{Access, Order, Region};
use crate::machine::simd::choose;
use crate::machine::{Cx, LANES};
use crate::ptx::ast::{Instruction, Operand, Space, Type};

/// Lowers loads, stores and what only hints at them; `st.async` belongs to the asynchronous operations.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "ld" | "ldu" => Some(load(cx, i)),
        "st" if i.modifiers.first().is_none_or(|m| m != "async") => Some(store(cx, i)),
        "prefetch" | "prefetchu" if i.modifiers.iter().all(|m| m != "tensormap") => Some(prefetch(cx, i)),
        "createpolicy" => Some(policy(cx, i)),
        _ => None,
    }
}

/// Types that memory holds.
const TYPES: &[Type] = &[
    Type::B8,
    Type::B16,
    Type::B32,
    Type::B64,
    Type::B128,
    Type::U8,
    Type::U16,
    Type::U32,
    Type::U64,
    Type::S8,
    Type::S16,
    Type::S32,
    Type::S64,
    Type::F32,
    Type::F64,
];

/// State spaces by their modifier.
const SPACES: &[(&str, Space)] = &[
    ("global", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("shared::cluster", Space::Shared),
    ("local", Space::Local),
    ("const", Space::Const),
    ("param", Space::Param),
    ("param::entry", Space::Param),
    ("param::func", Space::Param),
];

/// Memory orders by their modifier.
pub(super) const ORDERS: &[(&str, Order)] = &[
    ("weak", Order::Weak),
    ("volatile", Order::Relaxed),
    ("relaxed", Order::Relaxed),
    ("acquire", Order::Acquire),
    ("release", Order::Release),
    ("acq_rel", Order::AcqRel),
];

/// Scopes by their modifier, and whether they are the block.
pub(super) const SCOPES: &[(&str, bool)] = &[("cta", true), ("cluster", false), ("gpu", false), ("sys", false)];

/// What steers the caches and changes no result.
const HINTS: &[(&str, ())] = &[
    ("ca", ()),
    ("cg", ()),
    ("cs", ()),
    ("lu", ()),
    ("cv", ()),
    ("wb", ()),
    ("wt", ()),
    ("nc", ()),
    ("L1::evict_normal", ()),
    ("L1::evict_unchanged", ()),
    ("L1::evict_first", ()),
    ("L1::evict_last", ()),
    ("L1::no_allocate", ()),
    ("L2::evict_normal", ()),
    ("L2::evict_first", ()),
    ("L2::evict_last", ()),
    ("L2::64B", ()),
    ("L2::128B", ()),
    ("L2::256B", ()),
];

/// The modifiers of a load or store. Compilers write them in several orders.
struct Form {
    space: Space,
    order: Order,
    block_scope: bool,
    vector: usize,
    ty: Type,
    policy: bool,
}

fn form(i: &Instruction) -> Result<Form> {
    let mut m = Modifiers::new(i);
    let (mut space, mut order, mut scope, mut policy) = (None, None, None, false);
    loop {
        if space.is_none()
            && let Some(found) = m.one_of(SPACES)
        {
            space = Some(found);
        } else if order.is_none()
            && let Some(found) = m.one_of(ORDERS)
        {
            order = Some(found);
        } else if scope.is_none()
            && let Some(found) = m.one_of(SCOPES)
        {
            scope = Some(found);
        } else if !policy && m.take("L2::cache_hint") {
            policy = true;
        } else if m.one_of(HINTS).is_none() {
            break;
        }
    }
    let vector = m.one_of(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
    let ty = m.ty(TYPES)?;
    if vector > 1 && ty == Type::B128 || vector as u32 * ty.bits() > 256 {
        return m.refuse();
    }
    m.finish()?;
    Ok(Form {
        space: space.unwrap_or(Space::Generic),
        order: order.unwrap_or(Order::Weak),
        block_scope: scope.unwrap_or(false),
        vector,
        ty,
        policy,
    })
}

/// The address operand: its source and how it is used. `space` is what the instruction names.
pub(super) fn address(cx: &mut Lower, i: &Instruction, operand: &Operand, space: Space) -> Result<(Src, Access)> {
    let Operand::Address { base, offset, coordinates } = operand else {
        return cx.error(i, format_args!("operand {operand:?} is not an address"));
    };
    let Ok(offset) = i32::try_from(*offset) else {
        return cx.error(i, format_args!("offset {offset} has more than 32 bits"));
    };
    if !coordinates.is_empty() {
        return cx.error(i, "an address without coordinates is needed");
    }
    let mut access = Access { offset, ..Access::new(region(cx, space)) };
    if let Operand::Name(name) = &**base {
        match cx.lookup(name) {
            Some(Symbol::Register(_, ty)) if ty.bits() == 32 => {
                access.wide = false;
                return Ok((cx.src(i, base, Type::U32)?, access));
            }
            Some(Symbol::Address(at, Space::Local)) if matches!(space, Space::Local | Space::Param) => {
                access.region = Region::Local;
                access.frame = true;
                return Ok((cx.constant(at), access));
            }
            Some(Symbol::Address(at, Space::Param)) if space == Space::Param => {
                access.region = Region::Param;
                return Ok((cx.constant(at), access));
            }
            Some(Symbol::Address(_, Space::Global)) if !matches!(space, Space::Global | Space::Generic) => {
                return cx.error(i, format_args!("`{name}` is in global memory"));
            }
            Some(Symbol::Address(_, Space::Shared)) if space != Space::Shared => {
                return cx.error(i, format_args!("`{name}` is in shared memory"));
            }
            _ => {}
        }
    }
    Ok((cx.src(i, base, Type::U64)?, access))
}

fn region(cx: &Lower, space: Space) -> Region {
    match space {
        Space::Global | Space::Const => Region::Global,
        Space::Shared => Region::Shared,
        Space::Param if cx.in_kernel => Region::Param,
        Space::Local | Space::Param => Region::Local,
        Space::Generic | Space::Reg => Region::Generic,
    }
}

/// The elements of a scalar or vector operand.
fn elements<'a>(cx: &Lower, i: &Instruction, operand: &'a Operand, count: usize) -> Result<Vec<&'a Operand>> {
    match operand {
        // One element may also stand in braces: Triton writes so.
        Operand::Vector(parts) if parts.len() == count => Ok(parts.iter().collect()),
        Operand::Vector(parts) => cx.error(i, format_args!("a vector of {} elements", parts.len())),
        _ if count == 1 => Ok(vec![operand]),
        _ => cx.error(i, format_args!("operand {operand:?} is not a vector of {count}")),
    }
}

fn policy_operand(cx: &mut Lower, i: &Instruction, form: &Form, count: usize) -> Result<()> {
    cx.arity(i, &[count + usize::from(form.policy)])?;
    if form.policy {
        cx.src(i, &i.operands[count], Type::B64)?;
    }
    Ok(())
}

fn load(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let form = form(i)?;
    policy_operand(cx, i, &form, 2)?;
    if matches!(form.order, Order::Release | Order::AcqRel) {
        return cx.error(i, "a load cannot release");
    }
    let (base, mut access) = address(cx, i, &i.operands[1], form.space)?;
    access.order = form.order;
    access.block_scope = form.block_scope;
    access.signed = matches!(form.ty, Type::S8 | Type::S16);
    let mut rows = Vec::new();
    let mut widened = Vec::new();
    for operand in elements(cx, i, &i.operands[0], form.vector)? {
        let declared = declared(cx, operand);
        if declared == Some(Type::Pred) {
            return cx.error(i, "a predicate cannot be loaded");
        }
        access.half |= access.signed && declared.is_some_and(|ty| ty.bits() == 16);
        match declared {
            Some(ty) if ty.bits() == 64 && form.ty.bits() < 64 => {
                let row = cx.scopes.temporary(Type::B32);
                let signed = matches!(form.ty, Type::S8 | Type::S16 | Type::S32);
                widened.push((Dst(row), cx.dst(i, operand, ty)?, signed));
                rows.push(Dst(row));
            }
            _ => rows.push(cx.dst(i, operand, form.ty)?),
        }
    }
    let parts = parts(&mut rows, form.ty);
    let run = memory_op::<Loads>(form.ty, parts);
    let class = class(access.region, Class::GlobalLoad, Class::SharedLoad);
    emit(cx, i, Access { ..access }, base, rows.iter().map(|d| Src(d.0)).collect(), run, class);
    for (from, to, signed) in widened {
        let mut op = cx.op(i, Class::Move, choose::<Widen>());
        op.dst[0] = to;
        op.src[0] = Src::register(from.0);
        op.imm = u64::from(signed);
        cx.emit(op);
    }
    Ok(())
}

fn store(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let form = form(i)?;
    policy_operand(cx, i, &form, 2)?;
    if matches!(form.order, Order::Acquire | Order::AcqRel) || form.space == Space::Const {
        return cx.error(i, "a store cannot acquire, nor write constant memory");
    }
    let (base, mut access) = address(cx, i, &i.operands[0], form.space)?;
    if access.region == Region::Param {
        return cx.error(i, "a kernel's parameters cannot be written");
    }
    access.order = form.order;
    access.block_scope = form.block_scope;
    let mut rows = Vec::new();
    for operand in elements(cx, i, &i.operands[1], form.vector)? {
        match declared(cx, operand) {
            Some(ty) if ty.bits() == 64 && form.ty.bits() < 64 => {
                let mut op = cx.op(i, Class::Move, choose::<Narrow>());
                let row = cx.scopes.temporary(Type::B32);
                op.dst[0] = Dst(row);
                op.src[0] = cx.src(i, operand, Type::B64)?;
                cx.emit(op);
                rows.push(Dst(row));
            }
            _ => rows.push(Dst(cx.src(i, operand, form.ty)?.0)),
        }
    }
    let parts = parts(&mut rows, form.ty);
    let run = memory_op::<Stores>(form.ty, parts);
    let class = class(access.region, Class::GlobalStore, Class::SharedStore);
    emit(cx, i, access, base, rows.iter().map(|d| Src(d.0)).collect(), run, class);
    Ok(())
}

/// The declared type of a register operand.
fn declared(cx: &Lower, operand: &Operand) -> Option<Type> {
    match operand {
        Operand::Name(name) => match cx.lookup(name) {
            Some(Symbol::Register(_, ty)) => Some(ty),
            _ => None,
        },
        Operand::Component(name, _) => match cx.lookup(name) {
            Some(Symbol::Vector(_, ty, _)) => Some(ty),
            _ => None,
        },
        _ => None,
    }
}

/// A 128-bit register is two 64-bit rows; how many parts the access then has.
fn parts(rows: &mut Vec<Dst>, ty: Type) -> usize {
    if ty == Type::B128 {
        let low = rows[0];
        rows.push(if low == Dst::SINK { low } else { Dst(low.0 + 1) });
    }
    rows.len()
}

fn class(region: Region, global: Class, shared: Class) -> Class {
    match region {
        Region::Shared => shared,
        Region::Local => Class::LocalMemory,
        Region::Param => Class::Move,
        Region::Global | Region::Generic => global,
    }
}

fn emit(cx: &mut Lower, i: &Instruction, access: Access, base: Src, rows: Vec<Src>, run: Run, class: Class) {
    let mut op = cx.op(i, class, run);
    op.src[0] = base;
    op.imm = access.pack();
    op.list = cx.list(rows);
    cx.emit(op);
}

/// `prefetch`: nothing that can be seen, but the operands must make sense.
fn prefetch(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let space = m.one_of(&[("global", Space::Global), ("local", Space::Local)]).unwrap_or(Space::Generic);
    m.expect(&[("L1", ()), ("L2", ()), ("L2::evict_last", ()), ("L2::evict_normal", ())])?;
    m.finish()?;
    cx.arity(i, &[1])?;
    address(cx, i, &i.operands[0], space).map(|_| ())
}

/// `createpolicy`: policies are hints; the register gets a value that means nothing.
fn policy(cx: &mut Lower, i: &Instruction) -> Result<()> {
    const PRIORITIES: &[(&str, ())] =
        &[("L2::evict_last", ()), ("L2::evict_normal", ()), ("L2::evict_first", ()), ("L2::evict_unchanged", ())];
    let mut m = Modifiers::new(i);
    let fractional = m.expect(&[("fractional", true), ("range", false)])?;
    if !fractional {
        m.take("global");
    }
    m.expect(PRIORITIES)?;
    let _ = m.one_of(PRIORITIES);
    m.ty(&[Type::B64])?;
    m.finish()?;
    cx.arity(i, if fractional { &[1, 2] } else { &[4] })?;
    let mut op = cx.op(i, Class::Move, no_policy);
    op.dst[0] = cx.dst(i, &i.operands[0], Type::B64)?;
    cx.emit(op);
    Ok(())
}

fn no_policy(cx: &mut Cx<'_>, op: &Op) -> Flow {
    cx.set_b64(op.dst[0], [0; LANES]);
    Flow::Next
}
