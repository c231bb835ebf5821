//! Races: accesses of which one is a write and that nothing orders, by happens-before.
//!
//! A warp is one agent: what its own lanes do to each other in several instructions is not looked at. Asynchronous operations are agents of their
//! own, so that what they read or write is in the way until their completion has been waited for. Order comes from
//! barriers, mbarriers, waits for groups, and from strong accesses (`volatile`, `relaxed`, `acquire`, `release`, atomics)
//! together with fences. Strong accesses do not race with each other.

use std::collections::HashMap;

use super::cells::{Cells, Clash, Event, Memo, Site, Who};
use super::clock::{AGENT_BITS, Clock, Foreign, key, merge};
use super::runs::{Runs, lane_of};
pub use super::shadow::Global;
use crate::machine::access::{Access, Effect, Order, Region};
use crate::machine::block::Block;
use crate::machine::cluster;
use crate::machine::fault::{Fault, Kind};
use crate::machine::grid::Grid;
use crate::machine::{Cx, LANES, Repeats, Row};

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
    shared: Cells,
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
    /// Whether other blocks may have learned what it knows.
    published: bool,
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
            shared: Cells::new(shared_bytes as usize),
            clocks,
            fenced: vec![Clock::new(agents); warps as usize],
            seen: vec![Foreign::default(); warps as usize],
            proxied: Clock::new(agents),
            barriers: vec![Default::default(); barriers],
            mbarriers: HashMap::new(),
            places: HashMap::new(),
            commits: HashMap::new(),
            begun: vec![0; agents],
            published: false,
        }
    }

    /// Forgets reads of shared memory that every warp knows: none can race with them.
    #[inline(always)]
    fn tidy(&mut self, block: u64) {
        if self.shared.crowded() {
            let State { shared, clocks, .. } = self;
            shared.tidy(|e| clocks.iter().all(|clock| clock.knows(block, e.agent, e.clock)), |_| false);
        }
    }

    /// The fault of an operation of the async proxy that reads what a thread wrote with no proxy fence after it.
    fn proxy(&self, block: u64, ranges: impl Iterator<Item = (u64, u64)>) -> Result<(), Fault> {
        // The agents are the warps, then their copy engines, which write through the generic proxy too.
        let generic = key(block, 0)..key(block, 2 * self.warps);
        let unfenced = |e: Event| generic.contains(&e.agent) && !self.proxied.knows(block, e.agent, e.clock);
        let size = self.shared.size() as u64;
        let mut passed = 0;
        for (at, length) in ranges.filter(|(at, length)| at.checked_add(*length).is_some_and(|end| end <= size)) {
            if let Some((at, write)) = self.shared.find_write(at as usize, length as usize, &mut passed, unfenced) {
                let message = format!(
                    "the async proxy reads shared memory that PTX line {} has written: fence.proxy.async is missing",
                    write.line()
                );
                return Err(Fault::new(Kind::Race, message).at_address(at, "shared memory"));
            }
        }
        Ok(())
    }

    fn engine(&self, warp: u32, engine: Engine) -> u32 {
        engine as u32 * self.warps + warp
    }

    fn mbarrier(&mut self, address: u64) -> &mut (Clock, usize) {
        let (next, agents) = (self.mbarriers.len() % MBARRIERS, self.begun.len());
        let first = self.warps as usize * 4;
        self.mbarriers.entry(address).or_insert_with(|| (Clock::new(agents), first + next))
    }

    /// The fault of an access to shared memory and an earlier one.
    fn shared_race(&self, write: bool, block: u64, clash: Clash) -> Fault {
        let place = format!("shared memory of {} bytes", self.shared.size());
        Fault { allocation: Some(place), ..self.race(write, block, clash) }
    }

    /// The fault of an access by this block and an earlier one.
    fn race(&self, write: bool, block: u64, clash: Clash) -> Fault {
        let word = |write: bool| if write { "write" } else { "read" };
        let (other, agent) = (clash.other.agent >> AGENT_BITS, clash.other.agent & ((1 << AGENT_BITS) - 1));
        let place = if other == block { String::new() } else { format!(" of block {other}") };
        let warp = agent < u64::from(self.warps);
        let by = if warp { format!("warp {agent}") } else { "an asynchronous operation".to_string() };
        let message = format!(
            "{} races with the {} by {by}{place} at PTX line {}: nothing orders them",
            word(write),
            word(clash.write),
            clash.other.line()
        );
        Fault { address: Some(clash.at), ..Fault::new(Kind::Race, message) }
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
    runs: &Runs,
    addresses: &Row<u64>,
    effect: Effect,
    access: Access,
) -> Result<(), Fault> {
    let line = cx.code.ops[cx.pc as usize].line;
    let strong = matches!(effect, Effect::Atomic | Effect::Reduction) || access.order != Order::Weak;
    let (grid, block, warp) = (cx.grid, cx.block.index, cx.warp.id);
    let write = effect != Effect::Load;
    if strong
        && region == Region::Global
        && let Some(shadow) = &grid.race
    {
        cx.turn = shadow.turn();
        let hears = matches!(effect, Effect::Load | Effect::Atomic) && shadow.is_shared();
        let last = &mut cx.warp.allocation;
        if hears && runs.iter().any(|(at, size)| shadow.has_foreign(&grid.memory, last, block, at, size)) {
            shadow.would_be_heard();
            return Err(Fault::new(Kind::Unsupported, "blocks that communicate on several host threads"));
        }
    }
    let Some(state) = cx.block.race.as_deref_mut() else { return Ok(()) };
    state.tidy(block);
    let w = warp as usize;
    // A strong access finds what strong reads before it have seen, even without a fence between.
    let sees = strong && !state.seen[w].is_empty();
    let with_seen = sees.then(|| {
        let mut clock = state.clocks[w].clone();
        clock.learn(block, &state.seen[w]);
        clock
    });
    let event = Event::new(key(block, warp), state.clocks[w].own[w], Site { line, strong });
    let who = Who { block, clock: with_seen.as_ref().unwrap_or(&state.clocks[w]) };
    match (region, &grid.race) {
        (Region::Shared, _) => {
            if let Err(clash) = note(&mut state.shared, who, event, runs.iter(), write) {
                let fault = |clash| state.shared_race(write, block, clash);
                if strong || !clash.write || !matches!(cx.repeats, Repeats::Asked) {
                    return Err(fault(clash));
                }
                // If it stores what is there already, only those matter who read in between.
                let read = runs
                    .iter()
                    .find_map(|(at, size)| state.shared.read_unknown(who, event, at as usize, size as usize));
                if let Some(read) = read {
                    return Err(fault(read));
                }
                cx.repeats = Repeats::Doubted(Box::new(fault(clash)));
                runs.iter().for_each(|(at, size)| state.shared.add_write(event, at as usize, size as usize));
            }
        }
        (_, Some(shadow)) => {
            let last = &mut cx.warp.allocation;
            let noted = shadow.access(&grid.memory, last, who, event, runs.iter(), write);
            noted.map_err(|clash| name(state.race(write, block, clash), grid))?;
        }
        _ => {}
    }
    if strong {
        synchronise(cx, region, addresses, effect, access);
    }
    Ok(())
}

/// Notes accesses to ranges of shared memory. Those that are not inside are left to other checks.
fn note(
    shared: &mut Cells,
    who: Who<'_>,
    event: Event,
    ranges: impl Iterator<Item = (u64, u64)>,
    write: bool,
) -> Result<(), Clash> {
    let size = shared.size() as u64;
    let mut memo = Memo::NEW;
    for (at, length) in ranges.filter(|(at, length)| at.checked_add(*length).is_some_and(|end| end <= size)) {
        shared.access(who, event, at as usize, length as usize, write, &mut memo)?;
    }
    Ok(())
}

/// Says which allocation a fault's address is in.
fn name(mut fault: Fault, grid: &Grid<'_>) -> Fault {
    if let Some(address) = fault.address
        && let Ok(index) = grid.memory.locate(address, 1)
    {
        fault.allocation = Some(grid.memory.get(index).describe());
    }
    fault
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
    let (mut last, mut told) = (None, false);
    for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
        let address = addresses[lane];
        if last == Some(address) {
            continue;
        }
        last = Some(address);
        let found = {
            let mut exchange = |places: &mut HashMap<u64, Foreign>| {
                let found = if reads { places.get(&address).cloned() } else { None };
                if !published.is_empty() {
                    told = true;
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
    state.published |= told && region == Region::Global;
    if releases {
        state.tick(warp);
    }
}

/// A block has ended: unless it has published something, no other block will ever know what it did.
pub fn finish(block: &Block, grid: &Grid<'_>) {
    if let (Some(state), Some(shadow)) = (&block.race, &grid.race)
        && !state.published
    {
        shadow.settle(block.index);
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
    state.published = true;
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
    state.published |= cluster::split(address).0.is_some();
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

/// A range of shared memory that an operation of a warp reads or writes at once.
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
    state.tidy(index);
    let clock = &state.clocks[warp as usize];
    let who = Who { block: index, clock };
    let event = Event::new(key(index, warp), clock.own[warp as usize], Site { line, strong: false });
    let noted = note(&mut state.shared, who, event, std::iter::once((address, size)), write);
    noted.map_err(|clash| state.shared_race(write, index, clash))
}

/// Ranges of shared memory that `cp.async` will write from now on, until the warp has waited for it. The copies of an
/// engine are not in order: only those that were waited for are known.
pub fn copy_issue(block: &mut Block, warp: u32, lanes: u32, to: &Row<u64>, size: u64, line: u32) -> Result<(), Fault> {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return Ok(()) };
    state.tidy(index);
    let agent = state.engine(warp, Engine::Copy);
    state.begun[agent as usize] += 1;
    let event = Event::new(key(index, agent), state.begun[agent as usize], Site { line, strong: false });
    let who = Who { block: index, clock: &state.clocks[warp as usize] };
    let noted = note(&mut state.shared, who, event, Runs::of(lanes, to, size).iter(), true);
    noted.map_err(|clash| {
        let lane = lane_of(lanes, to, size, clash.at);
        Fault { lane, ..state.shared_race(true, index, clash) }
    })
}

/// A range of shared memory that a bulk copy will read from now on, until the warp has waited for it.
pub fn store_issue(block: &mut Block, warp: u32, address: u64, size: u64, line: u32) -> Result<(), Fault> {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return Ok(()) };
    state.tidy(index);
    let agent = state.engine(warp, Engine::Bulk);
    state.begun[agent as usize] += 1;
    let event = Event::new(key(index, agent), state.begun[agent as usize], Site { line, strong: false });
    let who = Who { block: index, clock: &state.clocks[warp as usize] };
    let range = std::iter::once((address, size));
    let noted = note(&mut state.shared, who, event, range.clone(), false);
    noted.map_err(|clash| state.shared_race(false, index, clash))?;
    state.proxy(index, range)
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
    state.tidy(index);
    let agent = state.engine(warp & !3, Engine::Matrix);
    let event = Event::new(key(index, agent), number as u32 + 1, Site { line, strong: false });
    let who = Who { block: index, clock: &state.clocks[warp as usize] };
    let ranges = addresses.iter().map(|&address| (address, 16));
    let noted = note(&mut state.shared, who, event, ranges.clone(), false);
    noted.map_err(|clash| state.shared_race(false, index, clash))?;
    state.proxy(index, ranges)
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
    state.tidy(index);
    let event = Event::new(key(index, agent as u32), at, Site { line, strong: false });
    let who = Who { block: index, clock: &state.clocks[warp as usize] };
    let noted = note(&mut state.shared, who, event, std::iter::once((address, size)), true);
    noted.map_err(|clash| state.shared_race(true, index, clash))?;
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
    let clock = &state.clocks[warp as usize];
    let who = Who { block: index, clock };
    let event = Event::new(key(index, warp), clock.own[warp as usize], Site { line, strong: false });
    let range = std::iter::once((address, size));
    let noted = shadow.access(&grid.memory, &mut 0, who, event, range, write);
    noted.map_err(|clash| name(state.race(write, index, clash), grid))
}
