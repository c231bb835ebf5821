//! What loads and stores do in the lanes of a warp.

use std::marker::PhantomData;

use crate::check;
use crate::code::{Dst, Flow, Op, Run, Src};
use crate::machine::access::{Access, Effect, Reach, Region, window};
use crate::machine::fault::{Fault, Kind};
use crate::machine::simd::{Semantics, choose};
use crate::machine::warp::Local;
use crate::machine::{Cx, LANES, Repeats, Row};
use crate::ptx::ast::Type;

/// Chooses the function for a type and a number of parts.
pub(super) fn memory_op<K: MemoryOp>(ty: Type, parts: usize) -> Run {
    match (ty.bits(), parts) {
        (8, 1) => K::run::<u8, 1>(),
        (8, 2) => K::run::<u8, 2>(),
        (8, 4) => K::run::<u8, 4>(),
        (8, _) => K::run::<u8, 8>(),
        (16, 1) => K::run::<u16, 1>(),
        (16, 2) => K::run::<u16, 2>(),
        (16, 4) => K::run::<u16, 4>(),
        (16, _) => K::run::<u16, 8>(),
        (32, 1) => K::run::<u32, 1>(),
        (32, 2) => K::run::<u32, 2>(),
        (32, 4) => K::run::<u32, 4>(),
        (32, _) => K::run::<u32, 8>(),
        (_, 1) => K::run::<u64, 1>(),
        (_, 2) => K::run::<u64, 2>(),
        (_, _) => K::run::<u64, 4>(),
    }
}

pub(super) trait MemoryOp {
    fn run<T: Element, const N: usize>() -> Run;
}

pub(super) struct Loads;
pub(super) struct Stores;

impl MemoryOp for Loads {
    fn run<T: Element, const N: usize>() -> Run {
        choose::<Load<T, N>>()
    }
}

impl MemoryOp for Stores {
    fn run<T: Element, const N: usize>() -> Run {
        choose::<Store<T, N>>()
    }
}

/// What a lane moves at once.
pub(super) trait Element: Copy + Default {
    const SIZE: usize;
    fn from_register(cx: &Cx<'_>, src: Src) -> Row<Self>;
    fn into_register(cx: &mut Cx<'_>, dst: Dst, value: &Row<Self>, access: Access);
    fn to_bits(self) -> u64;
    fn from_bits(bits: u64) -> Self;
}

macro_rules! narrow_element {
    ($ty:ty, $signed:ty) => {
        impl Element for $ty {
            const SIZE: usize = size_of::<$ty>();

            #[inline(always)]
            fn from_register(cx: &Cx<'_>, src: Src) -> Row<Self> {
                cx.b32(src).map(|v| v as $ty)
            }

            #[inline(always)]
            fn into_register(cx: &mut Cx<'_>, dst: Dst, value: &Row<Self>, access: Access) {
                let mut out = [0; LANES];
                let cut = if access.half { 0xffff } else { u32::MAX };
                for lane in 0..LANES {
                    let signed = value[lane] as $signed as i32 as u32 & cut;
                    out[lane] = if access.signed { signed } else { u32::from(value[lane]) };
                }
                cx.set_b32(dst, out);
            }

            #[inline(always)]
            fn to_bits(self) -> u64 {
                u64::from(self)
            }

            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                bits as $ty
            }
        }
    };
}

narrow_element!(u8, i8);
narrow_element!(u16, i16);

impl Element for u32 {
    const SIZE: usize = 4;

    #[inline(always)]
    fn from_register(cx: &Cx<'_>, src: Src) -> Row<Self> {
        cx.b32(src)
    }

    #[inline(always)]
    fn into_register(cx: &mut Cx<'_>, dst: Dst, value: &Row<Self>, _access: Access) {
        cx.set_b32(dst, *value);
    }

    #[inline(always)]
    fn to_bits(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        bits as u32
    }
}

impl Element for u64 {
    const SIZE: usize = 8;

    #[inline(always)]
    fn from_register(cx: &Cx<'_>, src: Src) -> Row<Self> {
        cx.b64(src)
    }

    #[inline(always)]
    fn into_register(cx: &mut Cx<'_>, dst: Dst, value: &Row<Self>, _access: Access) {
        cx.set_b64(dst, *value);
    }

    #[inline(always)]
    fn to_bits(self) -> u64 {
        self
    }

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        bits
    }
}

/// Runs `body` for the lanes of each region that a generic address reaches.
#[inline(always)]
pub(in crate::isa) fn by_region(
    cx: &mut Cx<'_>,
    access: Access,
    addresses: Row<u64>,
    mut body: impl FnMut(&mut Cx<'_>, Region, Row<u64>) -> Flow,
) -> Flow {
    if access.region != Region::Generic {
        return body(cx, access.region, addresses);
    }
    let mask = cx.mask;
    let mut left = mask;
    while left != 0 {
        let (region, _) = window(addresses[left.trailing_zeros() as usize]);
        let mut inside = addresses;
        let mut here = 0;
        for lane in 0..LANES {
            let (other, at) = window(addresses[lane]);
            inside[lane] = at;
            here |= u32::from(other == region) << lane;
        }
        cx.mask = left & here;
        let flow = body(cx, region, inside);
        if flow != Flow::Next {
            return flow;
        }
        left &= !here;
    }
    cx.mask = mask;
    Flow::Next
}

pub(super) struct Load<T, const N: usize>(PhantomData<T>);

impl<T: Element, const N: usize> Semantics for Load<T, N> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let access = Access::unpack(op.imm);
        let addresses = cx.addresses(op.src[0], access);
        by_region(cx, access, addresses, |cx, region, mut addresses| {
            let mut rows = [[T::default(); LANES]; N];
            if region == Region::Local {
                if let Err(flow) = local::<T, N>(cx, &addresses, |row, lane, k, word: &mut T| {
                    let _ = (row, lane);
                    rows[k][lane] = *word;
                }) {
                    return flow;
                }
            } else {
                let size = (T::SIZE * N) as u64;
                match cx.reach(region, &mut addresses, size, Effect::Load, access) {
                    Err(flow) => return flow,
                    // SAFETY: `reach` has checked the bytes of all lanes.
                    Ok(Reach::Contiguous(at)) => unsafe {
                        let at = at.cast::<T>();
                        for lane in 0..LANES {
                            for (k, row) in rows.iter_mut().enumerate() {
                                row[lane] = at.add(lane * N + k).read_unaligned();
                            }
                        }
                    },
                    // SAFETY: as above.
                    Ok(Reach::Uniform(at)) => unsafe {
                        for (k, row) in rows.iter_mut().enumerate() {
                            *row = [at.cast::<T>().add(k).read_unaligned(); LANES];
                        }
                    },
                    // SAFETY: as above; lanes that do not execute have a valid address too.
                    Ok(Reach::Scattered) => unsafe {
                        for lane in 0..LANES {
                            for (k, row) in rows.iter_mut().enumerate() {
                                row[lane] = (addresses[lane] as *const T).add(k).read_unaligned();
                            }
                        }
                    },
                }
                cx.reached();
                if region == Region::Global {
                    cx.counters.sums.load_bytes += size * u64::from(cx.mask.count_ones());
                }
            }
            for (k, row) in rows.iter().enumerate() {
                let dst = Dst(cx.code.list[op.list.0 as usize + k].0);
                T::into_register(cx, dst, row, access);
            }
            Flow::Next
        })
    }
}

pub(super) struct Store<T, const N: usize>(PhantomData<T>);

impl<T: Element, const N: usize> Semantics for Store<T, N> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let access = Access::unpack(op.imm);
        let addresses = cx.addresses(op.src[0], access);
        let rows: [Row<T>; N] = std::array::from_fn(|k| T::from_register(cx, cx.code.list[op.list.0 as usize + k]));
        by_region(cx, access, addresses, |cx, region, mut addresses| {
            if region == Region::Local {
                let stored = local::<T, N>(cx, &addresses, |_, lane, k, word: &mut T| *word = rows[k][lane]);
                return stored.map_or_else(|flow| flow, |()| Flow::Next);
            }
            if region == Region::Param {
                return cx.fault(Kind::InvalidOperation, "store to the kernel's parameters");
            }
            cx.block.progress += 1;
            cx.block.outward += u64::from(region != Region::Shared);
            let size = (T::SIZE * N) as u64;
            let full = cx.mask == u32::MAX;
            let seen = addresses;
            cx.repeats = if region == Region::Shared { Repeats::Asked } else { Repeats::No };
            let reach = match cx.reach(region, &mut addresses, size, Effect::Store, access) {
                Err(flow) => return flow,
                Ok(reach) => reach,
            };
            if cx.grid.checks.race {
                let bits = |lane: usize, k: usize| rows[k][lane].to_bits();
                let single = full && matches!(reach, Reach::Contiguous(_));
                if let Some(flow) = check::stored(cx, &seen, single, (T::SIZE, N), &bits) {
                    return flow;
                }
            }
            match reach {
                // SAFETY: `reach` has checked the bytes of all lanes.
                Reach::Contiguous(at) if full => unsafe {
                    let at = at.cast::<T>();
                    for lane in 0..LANES {
                        for (k, row) in rows.iter().enumerate() {
                            at.add(lane * N + k).write_unaligned(row[lane]);
                        }
                    }
                },
                Reach::Contiguous(at) | Reach::Uniform(at) => {
                    let last = 31 - cx.mask.leading_zeros() as usize;
                    // One lane's value stays (PTX leaves open which): that of the last.
                    for (k, row) in rows.iter().enumerate() {
                        // SAFETY: as above.
                        unsafe { at.cast::<T>().add(k).write_unaligned(row[last]) };
                    }
                }
                Reach::Scattered => {
                    let mut left = cx.mask;
                    while left != 0 {
                        let lane = left.trailing_zeros() as usize;
                        for (k, row) in rows.iter().enumerate() {
                            // SAFETY: as above.
                            unsafe { (addresses[lane] as *mut T).add(k).write_unaligned(row[lane]) };
                        }
                        left &= left - 1;
                    }
                }
            }
            cx.reached();
            if region == Region::Global {
                cx.counters.sums.store_bytes += size * u64::from(cx.mask.count_ones());
            }
            Flow::Next
        })
    }
}

/// Calls `each` with every part of the executing lanes in local memory: the row of its word, its lane, its number.
#[inline(always)]
pub(super) fn local<T: Element, const N: usize>(
    cx: &mut Cx<'_>,
    addresses: &Row<u64>,
    mut each: impl FnMut(usize, usize, usize, &mut T),
) -> std::result::Result<(), Flow> {
    let size = (T::SIZE * N) as u64;
    for lane in 0..LANES {
        if cx.mask >> lane & 1 == 0 {
            continue;
        }
        let address = addresses[lane];
        if !address.is_multiple_of(size) || address + size > u64::from(Local::LIMIT) {
            let aligned = address.is_multiple_of(size);
            let kind = if aligned { Kind::OutOfBounds } else { Kind::Misaligned };
            let fault = Fault::new(kind, format!("access of {size} bytes")).at_address(address, "local memory");
            return Err(cx.fail(fault.at_lane(lane as u32)));
        }
        cx.warp.local.reserve_to((address + size) as u32);
        let rows = cx.warp.local.rows();
        for k in 0..N {
            let at = address as usize + k * T::SIZE;
            let (row, shift) = (at / 4, at % 4 * 8);
            if T::SIZE == 8 {
                let mut value = T::from_bits(u64::from(rows[row][lane]) | u64::from(rows[row + 1][lane]) << 32);
                each(row, lane, k, &mut value);
                rows[row][lane] = value.to_bits() as u32;
                rows[row + 1][lane] = (value.to_bits() >> 32) as u32;
            } else {
                let bits = u32::MAX >> (32 - T::SIZE * 8) << shift;
                let mut value = T::from_bits(u64::from((rows[row][lane] & bits) >> shift));
                each(row, lane, k, &mut value);
                rows[row][lane] = rows[row][lane] & !bits | (value.to_bits() as u32) << shift;
            }
        }
    }
    Ok(())
}

/// A 32-bit value in a 64-bit register; sign-extended if [`Op::imm`] is set.
pub(super) struct Widen;

impl Semantics for Widen {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let value = cx.b32(op.src[0]);
        let out = if op.imm != 0 { value.map(|v| v as i32 as u64) } else { value.map(u64::from) };
        cx.set_b64(op.dst[0], out);
        Flow::Next
    }
}

/// The low half of a 64-bit register.
pub(super) struct Narrow;

impl Semantics for Narrow {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let value = cx.b64(op.src[0]);
        cx.set_b32(op.dst[0], value.map(|v| v as u32));
        Flow::Next
    }
}
