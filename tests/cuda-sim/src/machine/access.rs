//! How operations reach memory: addresses, state spaces, bounds and alignment.

use super::cluster;
use super::fault::{Fault, Kind};
use super::grid::Grid;
use super::{Cx, FULL, LANES, Row};
use crate::check;
use crate::check::lanes::Part;
use crate::code::{Flow, Src};
use crate::memory::{LOCAL_WINDOW, Missing, PARAM_WINDOW, SHARED_WINDOW};

/// A state space as the machine tells them apart; constant memory is global.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Region {
    /// Global and constant memory.
    Global,
    /// Shared memory of the block.
    Shared,
    /// Local memory.
    Local,
    /// The kernel's parameters.
    Param,
    /// The address says which.
    Generic,
}

/// What an operation does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It loads.
    Load,
    /// It stores.
    Store,
    /// It loads and stores at once.
    Atomic,
    /// The same, and nobody is told what it loaded.
    Reduction,
}

/// Memory ordering (PTX ISA, memory consistency model). Volatile counts as relaxed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// No synchronisation: a race if nothing else orders it.
    Weak,
    /// Strong, without ordering others.
    Relaxed,
    /// Later operations come after it.
    Acquire,
    /// Earlier operations come before it.
    Release,
    /// Both.
    AcqRel,
}

/// How an operation addresses memory, packed into [`crate::code::Op::imm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Added to the address.
    pub offset: i32,
    /// The state space.
    pub region: Region,
    /// The ordering.
    pub order: Order,
    /// The scope is the block: nothing outside synchronises with it.
    pub block_scope: bool,
    /// The address is in a 64-bit register.
    pub wide: bool,
    /// The address counts from the function's own local memory.
    pub frame: bool,
    /// The value is sign-extended (8 and 16 bits), and then cut to 16 bits.
    pub signed: bool,
    /// See `signed`.
    pub half: bool,
}

impl Access {
    /// A weak access to a region.
    pub fn new(region: Region) -> Access {
        Access {
            offset: 0,
            region,
            order: Order::Weak,
            block_scope: false,
            wide: true,
            frame: false,
            signed: false,
            half: false,
        }
    }

    /// For [`crate::code::Op::imm`].
    pub fn pack(self) -> u64 {
        let flag = |set: bool, bit: u32| u64::from(set) << bit;
        u64::from(self.offset as u32)
            | (self.region as u64) << 32
            | (self.order as u64) << 36
            | flag(self.block_scope, 40)
            | flag(self.wide, 41)
            | flag(self.frame, 42)
            | flag(self.signed, 43)
            | flag(self.half, 44)
    }

    /// From [`crate::code::Op::imm`].
    #[inline(always)]
    pub fn unpack(imm: u64) -> Access {
        let flag = |bit: u32| imm >> bit & 1 != 0;
        Access {
            offset: imm as u32 as i32,
            region: match imm >> 32 & 15 {
                0 => Region::Global,
                1 => Region::Shared,
                2 => Region::Local,
                3 => Region::Param,
                _ => Region::Generic,
            },
            order: match imm >> 36 & 15 {
                0 => Order::Weak,
                1 => Order::Relaxed,
                2 => Order::Acquire,
                3 => Order::Release,
                _ => Order::AcqRel,
            },
            block_scope: flag(40),
            wide: flag(41),
            frame: flag(42),
            signed: flag(43),
            half: flag(44),
        }
    }
}

/// Where the lanes of an access lie on the host.
pub enum Reach {
    /// One after the other, all lanes, from here on.
    Contiguous(*mut u8),
    /// All in one place.
    Uniform(*mut u8),
    /// The addresses have been replaced by host addresses, those of lanes that do not execute by one that is valid.
    Scattered,
}

/// Bytes of one region on the host.
struct Range {
    /// What to add to an address for the host address.
    delta: u64,
    low: u64,
    size: u64,
}

impl Range {
    #[inline(always)]
    fn holds(&self, from: u64, to: u64, size: u64) -> bool {
        from >= self.low && from <= to && to - self.low < self.size && self.size - (to - self.low) >= size
    }
}

impl Cx<'_> {
    /// The addresses of an access, before windows are looked at.
    #[inline(always)]
    pub fn addresses(&self, base: Src, access: Access) -> Row<u64> {
        let mut out = [0; LANES];
        if access.wide || base.as_constant().is_some() {
            out = self.b64(base);
            let mut offset = i64::from(access.offset) as u64;
            if access.frame {
                offset = offset.wrapping_add(u64::from(self.warp.local_base));
            }
            for lane in &mut out {
                *lane = lane.wrapping_add(offset);
            }
        } else {
            let base = self.b32(base);
            for lane in 0..LANES {
                out[lane] = u64::from(base[lane].wrapping_add(access.offset as u32));
            }
        }
        out
    }

    #[inline(always)]
    fn range(&mut self, region: Region) -> Range {
        let (host, low, size) = match region {
            Region::Global if self.grid.memory.is_empty() => (0, 0, 0),
            Region::Global => {
                let found = self.grid.memory.get(self.warp.allocation);
                (found.host() as u64, found.base, if found.is_live() { found.size } else { 0 })
            }
            Region::Shared => (self.block.shared.as_ptr() as u64, 0, u64::from(self.block.shared.size())),
            _ => (self.grid.params.as_ptr() as u64, 0, self.grid.params.len() as u64),
        };
        Range { delta: host.wrapping_sub(low), low, size }
    }

    /// Translates the addresses of the executing lanes, `size` bytes each, and checks them. Not for local memory.
    #[inline(always)]
    pub fn reach(
        &mut self,
        region: Region,
        addresses: &mut Row<u64>,
        size: u64,
        effect: Effect,
        access: Access,
    ) -> Result<Reach, Flow> {
        let first = addresses[self.mask.trailing_zeros() as usize];
        if self.mask != FULL {
            for lane in 0..LANES {
                addresses[lane] = if self.mask >> lane & 1 != 0 { addresses[lane] } else { first };
            }
        }
        let (mut steps, mut differs, mut odd) = (0, 0, 0);
        let (mut low, mut high) = (u64::MAX, 0);
        for lane in 0..LANES {
            let address = addresses[lane];
            steps |= address ^ first.wrapping_add(lane as u64 * size);
            differs |= address ^ first;
            odd |= address & (size - 1);
            low = low.min(address);
            high = high.max(address);
        }
        let mut range = self.range(region);
        if !range.holds(low, high, size) || odd != 0 {
            if odd == 0
                && region == Region::Global
                && let Ok(index) = self.grid.memory.locate(low, size)
            {
                self.warp.allocation = index;
                range = self.range(region);
            }
            if odd != 0 || !range.holds(low, high, size) {
                let seen = *addresses;
                self.scatter(region, addresses, size, effect)?;
                self.observe(region, &seen, size, effect, access)?;
                return Ok(Reach::Scattered);
            }
        }
        self.observe(region, addresses, size, effect, access)?;
        if steps == 0 {
            return Ok(Reach::Contiguous(first.wrapping_add(range.delta) as *mut u8));
        }
        if differs == 0 {
            return Ok(Reach::Uniform(first.wrapping_add(range.delta) as *mut u8));
        }
        for address in addresses {
            *address = address.wrapping_add(range.delta);
        }
        Ok(Reach::Scattered)
    }

    /// Shows an access that will be made to the checks and counters.
    #[inline(always)]
    fn observe(
        &mut self,
        region: Region,
        addresses: &Row<u64>,
        size: u64,
        effect: Effect,
        access: Access,
    ) -> Result<(), Flow> {
        if self.grid.watched
            && let Some(flow) = check::observe(self, region, addresses, size, effect, access, Part::Own)
        {
            return Err(flow);
        }
        Ok(())
    }

    /// Ends an access that [`Cx::reach`] has begun, after it was made.
    #[inline(always)]
    pub fn reached(&mut self) {
        if self.turn.is_some() {
            self.turn = None;
        }
    }

    /// [`Cx::reach`] lane by lane, for accesses to several allocations and for those that fail.
    #[cold]
    fn scatter(&mut self, region: Region, addresses: &mut Row<u64>, size: u64, effect: Effect) -> Result<(), Flow> {
        let mut valid = 0;
        for lane in 0..LANES {
            if self.mask >> lane & 1 != 0 {
                match self.locate(region, addresses[lane], size, size) {
                    Ok(host) => {
                        addresses[lane] = host as u64;
                        valid = host as u64;
                    }
                    Err(mut fault) => {
                        let what = match effect {
                            Effect::Load => "load",
                            Effect::Store => "store",
                            Effect::Atomic | Effect::Reduction => "atomic access",
                        };
                        fault.message = format!("{what} of {}", fault.message);
                        return Err(self.fail(fault.at_lane(lane as u32)));
                    }
                }
            }
        }
        for lane in 0..LANES {
            if self.mask >> lane & 1 == 0 {
                addresses[lane] = valid;
            }
        }
        Ok(())
    }

    /// The host address of `size` bytes at an address, aligned to `align`, in a region other than local memory.
    pub fn locate(&mut self, region: Region, address: u64, size: u64, align: u64) -> Result<*mut u8, Fault> {
        let (region, address) = match region {
            Region::Generic => window(address),
            _ => (region, address),
        };
        let name = match region {
            Region::Global => return self.grid.global(&mut self.warp.allocation, address, size, align),
            Region::Shared => "shared",
            Region::Param => "parameter",
            Region::Local | Region::Generic => "local",
        };
        if region == Region::Shared && cluster::split(address).0.is_some() {
            return self.locate_peer(address, size, align);
        }
        let range = if region == Region::Local { Range { delta: 0, low: 0, size: 0 } } else { self.range(region) };
        let place = format!("{name} memory of {} bytes", range.size);
        if !address.is_multiple_of(align) {
            return Err(Fault::new(Kind::Misaligned, format!("{size} bytes")).at_address(address, place));
        }
        if !range.holds(address, address, size) {
            return Err(Fault::new(Kind::OutOfBounds, format!("{size} bytes")).at_address(address, place));
        }
        Ok(address.wrapping_add(range.delta) as *mut u8)
    }

    /// [`Cx::locate`] in the shared memory of the cluster.
    fn locate_peer(&mut self, address: u64, size: u64, align: u64) -> Result<*mut u8, Fault> {
        let (block, offset) = self.block.at(address)?;
        if !offset.is_multiple_of(align) {
            return Err(Fault::new(Kind::Misaligned, format!("{size} bytes")).at_address(offset, "shared memory"));
        }
        match block.shared.get_mut(offset, size) {
            Some(bytes) => Ok(bytes.as_mut_ptr()),
            None => Err(block.shared.outside(offset, size)),
        }
    }

    /// A byte at a generic address of a lane.
    pub fn load_byte(&mut self, lane: u32, address: u64) -> Result<u8, Fault> {
        if let (Region::Local, offset) = window(address) {
            if offset >= u64::from(super::warp::Local::LIMIT) {
                return Err(Fault::new(Kind::OutOfBounds, "1 byte").at_address(offset, "local memory"));
            }
            self.warp.local.reserve_to(offset as u32 + 1);
            return Ok(self.warp.local.byte(offset as u32, lane));
        }
        let host = self.locate(Region::Generic, address, 1, 1)?;
        // SAFETY: `locate` gives the address of one valid byte.
        Ok(unsafe { host.read() })
    }
}

/// The region and the address in it that a generic address stands for.
#[inline(always)]
pub fn window(address: u64) -> (Region, u64) {
    match address >> 56 {
        1 => (Region::Shared, address - SHARED_WINDOW),
        2 => (Region::Local, address - LOCAL_WINDOW),
        3 => (Region::Param, address - PARAM_WINDOW),
        _ => (Region::Global, address),
    }
}

impl Grid<'_> {
    /// The host address of `size` bytes of global memory; `hint` is the allocation that was found last.
    pub fn global(&self, hint: &mut usize, address: u64, size: u64, align: u64) -> Result<*mut u8, Fault> {
        let bytes = || format!("{size} bytes");
        let index = match self.memory.locate(address, size) {
            Ok(index) => index,
            Err(missing) => {
                let kind = if matches!(missing, Missing::Freed(_)) { Kind::UseAfterFree } else { Kind::OutOfBounds };
                return Err(Fault::new(kind, bytes()).at_address(address, missing.to_string()));
            }
        };
        let found = self.memory.get(index);
        if !address.is_multiple_of(align) {
            return Err(Fault::new(Kind::Misaligned, bytes()).at_address(address, found.describe()));
        }
        *hint = index;
        // SAFETY: `locate` says that the allocation is live and holds the range.
        Ok(unsafe { found.host().add((address - found.base) as usize) })
    }
}
