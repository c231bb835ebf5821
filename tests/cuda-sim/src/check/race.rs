//! Races: accesses of which one is a write and that nothing orders, by happens-before.
//!
//! A warp is one agent: what its own lanes do to each other is not looked at. Asynchronous operations are agents of their
//! own, so that what they read or write is in the way until their completion has been waited for. Order comes from
//! barriers, mbarriers, waits for groups, and from strong accesses (`volatile`, `relaxed`, `acquire`, `release`, atomics)
//! together with fences. Strong accesses do not race with each other.

use std::collections::HashMap;

use super::clock::{Clock, Foreign, merge};
pub use super::shadow::Global;
use super::shadow::{Shared, Site, Who};
use crate::code::Flow;
use crate::machine::access::{Access, Effect, Order, Region};
use crate::machine::block::Block;
use crate::machine::fault::{Fault, Kind};
use crate::machine::grid::Grid;
use crate::machine::{Cx, LANES, Row};

/// An engine that works for a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `cp.async`: its groups are committed and waited for by the warp.
    Copy = 1,
    /// `wgmma.mma_async`
    Matrix = 2,
    /// Bulk copies from shared memory, in bulk groups.
    Bulk = 3,
}

/// Mbarriers whose asynchronous writes are told apart.
const MBARRIERS: usize = 64;

/// What the check remembers of a block.
pub struct State {
    warps: u32,
    shared: Shared,
    clocks: Vec<Clock>,
    /// What each warp knew at its last fence: what a relaxed write of it publishes.
    fenced: Vec<Clock>,
    /// What relaxed reads have seen since: the next fence acquires it.
    seen: Vec<Foreign>,
    /// What was known at the proxy fences of any warp: writes that the async proxy sees.
    proxied: Clock,
    barriers: Vec<[Meeting; 2]>,
    /// Arrivals at each mbarrier, and the slot of its asynchronous writes.
    mbarriers: HashMap<u64, (Clock, usize)>,
    /// What was published at addresses of shared memory.
    places: HashMap<u64, Foreign>,
    /// Groups of each engine of each warp: the engine's clock at every commit.
    commits: HashMap<u32, Vec<u32>>,
    /// How many operations each agent that is no warp has begun.
    begun: Vec<u32>,
}

/// What the arrivals of one generation of a barrier know.
#[derive(Clone, Default)]
struct Meeting {
    generation: Option<u32>,
    clock: Clock,
    fenced: Clock,
    seen: Foreign,
}

impl State {
    /// Nothing has happened.
    pub fn new(warps: u32, shared_bytes: u32, barriers: usize) -> State {
        let agents = warps as usize * 4 + MBARRIERS;
        let mut clocks = vec![Clock::new(agents); warps as usize];
        for (warp, clock) in clocks.iter_mut().enumerate() {
            clock.own[warp] = 1;
        }
        State {
            warps,
            shared: Shared::new(shared_bytes, warps),
            clocks,
            fenced: vec![Clock::new(agents); warps as usize],
            seen: vec![Foreign::default(); warps as usize],
            proxied: Clock::new(agents),
            barriers: vec![Default::default(); barriers],
            mbarriers: HashMap::new(),
            places: HashMap::new(),
            commits: HashMap::new(),
            begun: vec![0; agents],
        }
    }

    /// The fault of an operation of the async proxy that reads what a thread wrote with no proxy fence after it.
    fn proxy(&self, block: u64, address: u64, size: u64) -> Result<(), Fault> {
        // The agents are the warps, then their copy engines, which write through the generic proxy too.
        let who = Who { block, agent: 0, clock: &self.proxied };
        match self.shared.unfenced(&who, 2 * self.warps, address, size) {
            None => Ok(()),
            Some((at, line)) => {
                let message = format!(
                    "the async proxy reads shared memory that PTX line {line} has written: fence.proxy.async is missing"
                );
                Err(Fault::new(Kind::Race, message).at_address(at, "shared memory"))
            }
        }
    }

    fn engine(&self, warp: u32, engine: Engine) -> u32 {
        engine as u32 * self.warps + warp
    }

    fn mbarrier(&mut self, address: u64) -> &mut (Clock, usize) {
        let (next, agents) = (self.mbarriers.len() % MBARRIERS, self.begun.len());
        let first = self.warps as usize * 4;
        self.mbarriers.entry(address).or_insert_with(|| (Clock::new(agents), first + next))
    }

    /// What a warp does from now on is not covered by what it has published.
    fn tick(&mut self, warp: u32) {
        self.clocks[warp as usize].own[warp as usize] += 1;
    }
}

/// Watches an access of a warp.
pub fn access(
    cx: &mut Cx<'_>,
    region: Region,
    addresses: &Row<u64>,
    size: u64,
    effect: Effect,
    access: Access,
) -> Option<Flow> {
    let line = cx.code.ops[cx.pc as usize].line;
    let strong = effect == Effect::Atomic || access.order != Order::Weak;
    let site = Site { line, strong };
    let block = cx.block.index;
    let warp = cx.warp.id;
    let mask = cx.mask;
    let state = cx.block.race.as_deref_mut()?;
    // A strong access finds what strong reads before it have seen, even without a fence between.
    let sees = strong && !state.seen[warp as usize].is_empty();
    let with_seen = sees.then(|| {
        let mut clock = state.clocks[warp as usize].clone();
        clock.learn(block, &state.seen[warp as usize]);
        clock
    });
    let clock = with_seen.as_ref().unwrap_or(&state.clocks[warp as usize]);
    let who = Who { block, agent: warp, clock };
    let write = effect != Effect::Load;
    let lanes = (0..LANES).filter(|lane| mask >> lane & 1 != 0);
    match region {
        Region::Shared => {
            for lane in lanes {
                if let Err(fault) = state.shared.access(&who, addresses[lane], size, write, site) {
                    return Some(cx.fail(fault.at_lane(lane as u32)));
                }
            }
        }
        Region::Global => {
            let shadow = cx.grid.race.as_ref()?;
            let mut page = shadow.cursor();
            for lane in lanes {
                if let Err(mut fault) = page.access(&who, addresses[lane], size, write, site) {
                    drop(page);
                    name(&mut fault, cx.grid);
                    return Some(cx.fail(fault.at_lane(lane as u32)));
                }
            }
        }
        _ => return None,
    }
    if strong {
        synchronise(cx, region, addresses, effect, access);
    }
    None
}

/// Says which allocation a fault's address is in.
fn name(fault: &mut Fault, grid: &Grid<'_>) {
    if let Some(address) = fault.address
        && let Ok(index) = grid.memory.locate(address, 1)
    {
        fault.allocation = Some(grid.memory.get(index).describe());
    }
}

/// The order that a strong access makes.
fn synchronise(cx: &mut Cx<'_>, region: Region, addresses: &Row<u64>, effect: Effect, access: Access) {
    let (block, warp, mask) = (cx.block.index, cx.warp.id, cx.mask);
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    let w = warp as usize;
    let reads = effect != Effect::Store;
    let writes = effect != Effect::Load;
    let releases = matches!(access.order, Order::Release | Order::AcqRel);
    let published = match (writes, releases) {
        (false, _) => Foreign::default(),
        (true, true) => state.clocks[w].publish(block),
        (true, false) => state.fenced[w].publish(block),
    };
    let mut last = None;
    for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
        let address = addresses[lane];
        if last == Some(address) {
            continue;
        }
        last = Some(address);
        let found = {
            let exchange = |places: &mut HashMap<u64, Foreign>| {
                let found = if reads { places.get(&address).cloned() } else { None };
                if !published.is_empty() {
                    let place = places.entry(address).or_default();
                    *place = merge(place, &published);
                }
                found
            };
            match (region, cx.grid.race.as_ref()) {
                (Region::Shared, _) => exchange(&mut state.places),
                (_, Some(shadow)) => shadow.places(address, exchange),
                _ => None,
            }
        };
        if let Some(found) = found {
            if matches!(access.order, Order::Acquire | Order::AcqRel) {
                state.clocks[w].learn(block, &found);
            } else {
                state.seen[w] = merge(&state.seen[w], &found);
            }
        }
    }
    if releases {
        state.tick(warp);
    }
}

/// A warp has executed a fence. One of block scope orders nothing for other blocks.
pub fn fence(cx: &mut Cx<'_>, block_scope: bool) {
    let (block, warp) = (cx.block.index, cx.warp.id);
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    let w = warp as usize;
    let seen = std::mem::take(&mut state.seen[w]);
    state.clocks[w].learn(block, &seen);
    if !block_scope {
        state.fenced[w] = state.clocks[w].clone();
        state.tick(warp);
    }
}

/// A warp arrives at a barrier of its block, at a generation of it.
pub fn barrier_arrive(cx: &mut Cx<'_>, barrier: u32, generation: u32) {
    let warp = cx.warp.id;
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    let meeting = &mut state.barriers[barrier as usize][generation as usize % 2];
    if meeting.generation != Some(generation) {
        *meeting = Meeting { generation: Some(generation), ..Meeting::default() };
    }
    meeting.clock.join(&state.clocks[warp as usize]);
    meeting.fenced.join(&state.fenced[warp as usize]);
    meeting.seen = merge(&meeting.seen, &state.seen[warp as usize]);
    state.tick(warp);
}

/// A warp arrives at the barrier of its cluster: what it knows, the other blocks will know.
pub fn cluster_arrive(cx: &mut Cx<'_>, barrier: u32, generation: u32) {
    let (block, warp) = (cx.block.index, cx.warp.id as usize);
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    let published = state.clocks[warp].publish(block);
    cx.block.others(|peer| {
        let index = peer.index;
        let Some(state) = peer.race.as_deref_mut() else { return };
        let agents = state.begun.len();
        let meeting = &mut state.barriers[barrier as usize][generation as usize % 2];
        if meeting.generation != Some(generation) {
            *meeting = Meeting { generation: Some(generation), clock: Clock::new(agents), ..Meeting::default() };
        }
        meeting.clock.learn(index, &published);
    });
}

/// A warp goes on behind a generation of a barrier that has completed.
pub fn barrier_leave(cx: &mut Cx<'_>, barrier: u32, generation: u32) {
    let warp = cx.warp.id as usize;
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    let meeting = &state.barriers[barrier as usize][generation as usize % 2];
    if meeting.generation == Some(generation) {
        state.clocks[warp].join(&meeting.clock);
        // What others had fenced before the barrier may be published by this warp, and what they had seen may be acquired
        // by its fence: fences are cumulative.
        state.fenced[warp].join(&meeting.fenced);
        state.seen[warp] = merge(&state.seen[warp], &meeting.seen);
    }
}

/// A warp has executed `fence.proxy.async`.
pub fn proxy_fence(block: &mut Block, warp: u32) {
    let Some(state) = block.race.as_deref_mut() else { return };
    let State { proxied, clocks, .. } = state;
    proxied.join(&clocks[warp as usize]);
    state.tick(warp);
}

/// An mbarrier is made anew at an address.
pub fn mbarrier_init(block: &mut Block, address: u64) {
    if let Some(state) = block.race.as_deref_mut() {
        state.mbarrier(address).0.clear();
    }
}

/// A warp arrives at an mbarrier.
pub fn mbarrier_arrive(block: &mut Block, warp: u32, address: u64) {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return };
    let clock = state.clocks[warp as usize].clone();
    state.tick(warp);
    let Ok((owner, address)) = block.at(address) else { return };
    let (whose, Some(state)) = (owner.index, owner.race.as_deref_mut()) else { return };
    if whose == index {
        state.mbarrier(address).0.join(&clock);
    } else {
        state.mbarrier(address).0.learn(whose, &clock.publish(index));
    }
}

/// The copies that a warp has issued so far will arrive at an mbarrier when they are done (`cp.async.mbarrier.arrive`).
pub fn mbarrier_arrive_copies(block: &mut Block, warp: u32, address: u64) {
    let Some(state) = block.race.as_deref_mut() else { return };
    let agent = state.engine(warp, Engine::Copy) as usize;
    let begun = state.begun[agent];
    let mut clock = state.clocks[warp as usize].clone();
    clock.own[agent] = clock.own[agent].max(begun);
    state.mbarrier(address).0.join(&clock);
    state.tick(warp);
}

/// A warp has found a phase of an mbarrier completed.
pub fn mbarrier_wait(block: &mut Block, warp: u32, address: u64) {
    let Some(state) = block.race.as_deref_mut() else { return };
    let clock = state.mbarrier(address).0.clone();
    state.clocks[warp as usize].join(&clock);
}

/// A range of shared memory that an operation of a warp reads or writes at once (`ldmatrix`, `stmatrix`).
pub fn shared_range(
    block: &mut Block,
    warp: u32,
    address: u64,
    size: u64,
    write: bool,
    line: u32,
) -> Result<(), Fault> {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return Ok(()) };
    let who = Who { block: index, agent: warp, clock: &state.clocks[warp as usize] };
    state.shared.access(&who, address, size, write, Site { line, strong: false })
}

/// A range of shared memory that an engine will read or write from now on, until the warp has waited for it.
pub fn issue(
    block: &mut Block,
    warp: u32,
    engine: Engine,
    address: u64,
    size: u64,
    write: bool,
    line: u32,
) -> Result<(), Fault> {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return Ok(()) };
    let agent = state.engine(warp, engine);
    state.begun[agent as usize] += 1;
    let at = state.begun[agent as usize];
    let mut clock = state.clocks[warp as usize].clone();
    // Writes of one engine to one place are in order only if they were waited for; its reads never conflict.
    clock.own[agent as usize] = if write { clock.own[agent as usize] } else { at };
    let who = Who { block: index, agent, clock: &clock };
    state.shared.access_at(&who, at, address, size, write, Site { line, strong: false })?;
    if engine == Engine::Bulk { state.proxy(index, address, size) } else { Ok(()) }
}

/// A group of an engine's operations is committed.
pub fn commit(block: &mut Block, warp: u32, engine: Engine) {
    let Some(state) = block.race.as_deref_mut() else { return };
    let agent = state.engine(warp, engine);
    let begun = state.begun[agent as usize];
    state.commits.entry(agent).or_default().push(begun);
}

/// A warp has waited until at most `keep` of an engine's groups are left; of none, for all operations if `all`.
pub fn wait_groups(block: &mut Block, warp: u32, engine: Engine, keep: usize, all: bool) {
    let Some(state) = block.race.as_deref_mut() else { return };
    let agent = state.engine(warp, engine);
    let commits = state.commits.entry(agent).or_default();
    let done = if all { Some(state.begun[agent as usize]) } else { commits.iter().rev().nth(keep).copied() };
    if let Some(done) = done {
        let own = &mut state.clocks[warp as usize].own[agent as usize];
        *own = (*own).max(done);
    }
    let surplus = commits.len().saturating_sub(keep.max(8));
    commits.drain(..surplus);
}

/// The engine of a warpgroup's `wgmma.mma_async` reads operands from now on: 16 bytes at each address. `number` counts
/// the operations of the warpgroup; each of its warps tells them.
pub fn matrix_issue(block: &mut Block, warp: u32, number: u64, addresses: &[u64], line: u32) -> Result<(), Fault> {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return Ok(()) };
    let agent = state.engine(warp & !3, Engine::Matrix);
    let at = number as u32 + 1;
    let mut clock = state.clocks[warp as usize].clone();
    clock.own[agent as usize] = at;
    let who = Who { block: index, agent, clock: &clock };
    let site = Site { line, strong: false };
    for &address in addresses {
        state.shared.access_at(&who, at, address, 16, false, site)?;
        state.proxy(index, address, 16)?;
    }
    Ok(())
}

/// A warp has waited for the first `end` operations of its warpgroup.
pub fn matrix_wait(block: &mut Block, warp: u32, end: u64) {
    let Some(state) = block.race.as_deref_mut() else { return };
    let agent = state.engine(warp & !3, Engine::Matrix) as usize;
    let own = &mut state.clocks[warp as usize].own[agent];
    *own = (*own).max(end as u32);
}

/// A bulk copy that a warp issues writes shared memory and completes on an mbarrier; the number for [`bulk_landed`].
pub fn bulk_issue(
    block: &mut Block,
    warp: u32,
    mbarrier: u64,
    address: u64,
    size: u64,
    line: u32,
) -> Result<u32, Fault> {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return Ok(0) };
    let agent = state.mbarrier(mbarrier).1;
    state.begun[agent] += 1;
    let at = state.begun[agent];
    let who = Who { block: index, agent: agent as u32, clock: &state.clocks[warp as usize] };
    state.shared.access_at(&who, at, address, size, true, Site { line, strong: false })?;
    Ok(at)
}

/// A bulk copy has landed and has told its mbarrier.
pub fn bulk_landed(block: &mut Block, mbarrier: u64, number: u32) {
    let Some(state) = block.race.as_deref_mut() else { return };
    let (clock, agent) = state.mbarrier(mbarrier);
    let own = &mut clock.own[*agent];
    *own = (*own).max(number);
}

/// A range of global memory that an operation of a warp, or an engine for it, reads or writes.
pub fn global_range(
    block: &mut Block,
    grid: &Grid<'_>,
    warp: u32,
    address: u64,
    size: u64,
    write: bool,
    line: u32,
) -> Result<(), Fault> {
    let index = block.index;
    let (Some(state), Some(shadow)) = (block.race.as_deref_mut(), grid.race.as_ref()) else { return Ok(()) };
    let who = Who { block: index, agent: warp, clock: &state.clocks[warp as usize] };
    shadow.cursor().access(&who, address, size, write, Site { line, strong: false }).map_err(|mut fault| {
        name(&mut fault, grid);
        fault
    })
}

/// The fault of two accesses.
pub(super) fn race(write: bool, other_write: bool, who: &Who<'_>, other: u64, line: u32, address: u64) -> Fault {
    let word = |write: bool| if write { "write" } else { "read" };
    let block = other >> super::clock::AGENT_BITS;
    let agent = other & ((1 << super::clock::AGENT_BITS) - 1);
    let place = if block == who.block { String::new() } else { format!(" of block {block}") };
    let warps = who.clock.own.len().saturating_sub(MBARRIERS) / 4;
    let by = if (agent as usize) < warps { format!("warp {agent}") } else { "an asynchronous operation".to_string() };
    let message = format!(
        "{} races with the {} by {by}{place} at PTX line {line}: nothing orders them",
        word(write),
        word(other_write)
    );
    Fault { address: Some(address), ..Fault::new(Kind::Race, message) }
}
