//! Races: accesses of which one is a write and that nothing orders, by happens-before.
//!
//! Order comes from barriers, mbarriers, waits for groups, and from strong accesses (`volatile`, `relaxed`, `acquire`,
//! `release`, atomics) together with fences: [`super::knowledge`] says who knows what, this file what each instruction does
//! to it and looks at. Strong accesses do not race with each other. What asynchronous operations read or write is in the way
//! until their completion has been waited for. The shared memory of a block is also looked at when other blocks of its
//! cluster access it. What the lanes of one warp do to each other is looked at by [`super::lanes`].

use std::collections::HashMap;

use super::cells::{Cells, Clash, Event, Site, UNIT, Visit, Who};
use super::clock::{AGENT_BITS, Clock, Foreign, key, merge};
pub use super::knowledge::{Engine, State};
use super::knowledge::{MBARRIERS, Meeting};
use super::lanes::{self, How, Part, Touch};
use super::runs::{Runs, lane_of};
pub use super::shadow::Global;
use crate::machine::access::{Access, Effect, Order, Region};
use crate::machine::block::Block;
use crate::machine::cluster;
use crate::machine::fault::{Fault, Kind};
use crate::machine::grid::Grid;
use crate::machine::warp::Warp;
use crate::machine::{Cx, LANES, Repeats, Row};

impl State {
    /// The fault of an operation of the async proxy that reads what a thread wrote with no proxy fence after it.
    fn proxy(&self, block: u64, at: u64, length: u64) -> Result<(), Fault> {
        if at.checked_add(length).is_none_or(|end| end > self.shared.size() as u64) {
            return Ok(());
        }
        let found = self.shared.find_write(at as usize, length as usize, &mut 0, |e| self.unfenced(block, e));
        found.map_or(Ok(()), |(at, write)| self.proxied(block, at, write))
    }

    /// The same of one write.
    fn proxied(&self, block: u64, at: u64, write: Event) -> Result<(), Fault> {
        if !self.unfenced(block, write) {
            return Ok(());
        }
        let message = format!(
            "the async proxy reads shared memory that PTX line {} has written: fence.proxy.async is missing",
            write.line()
        );
        Err(Fault::new(Kind::Race, message).at_address(at, "shared memory"))
    }

    /// The fault of an access to shared memory by a lane and an earlier one by another lane of its warp.
    fn lane_race(&self, write: bool, clash: lanes::Clash) -> Fault {
        let place = format!("shared memory of {} bytes", self.shared.size());
        Fault { allocation: Some(place), ..lane_race(write, clash) }
    }

    /// The fault of an access to shared memory and an earlier one.
    fn shared_race(&self, write: bool, block: u64, clash: Clash) -> Fault {
        shared_race(&self.shared, self.warps, write, block, clash)
    }
}

/// The fault of an access of a lane and an earlier one of another lane of its warp.
fn lane_race(write: bool, clash: lanes::Clash) -> Fault {
    let earlier = match clash.wrote {
        Some(line) => format!("the write by lane {} at PTX line {line}", clash.other),
        None => format!("a read by lane {}", clash.other),
    };
    let word = if write { "write" } else { "read" };
    let message = format!("{word} races with {earlier}, of the same warp: no bar.warp.sync orders them");
    Fault { address: Some(clash.at), ..Fault::new(Kind::Race, message).at_lane(clash.lane) }
}

/// The fault of an access to shared memory, by a block, and an earlier one.
fn shared_race(shared: &Cells, warps: u32, write: bool, block: u64, clash: Clash) -> Fault {
    let place = format!("shared memory of {} bytes", shared.size());
    Fault { allocation: Some(place), ..race(warps, write, block, clash) }
}

/// The fault of an access by a block and an earlier one.
fn race(warps: u32, write: bool, block: u64, clash: Clash) -> Fault {
    let word = |write: bool| if write { "write" } else { "read" };
    let (other, agent) = (clash.other.agent >> AGENT_BITS, clash.other.agent & ((1 << AGENT_BITS) - 1));
    let place = if other == block { String::new() } else { format!(" of block {other}") };
    let apart = u64::from(warps) * 4 + MBARRIERS as u64;
    let by = match agent {
        warp if warp < u64::from(warps) => format!("warp {warp}"),
        lanes if lanes >= apart => format!("lanes of warp {}", lanes - apart),
        _ => "an asynchronous operation".to_string(),
    };
    let message = format!(
        "{} races with the {} by {by}{place} at PTX line {}: nothing orders them",
        word(write),
        word(clash.write),
        clash.other.line()
    );
    Fault { address: Some(clash.at), ..Fault::new(Kind::Race, message) }
}

/// Watches an access of a warp to global memory or to its block's shared memory.
pub fn access(cx: &mut Cx<'_>, region: Region, touch: Touch<'_>, effect: Effect, access: Access) -> Result<(), Fault> {
    let Touch { addresses, runs, .. } = touch;
    let line = cx.code.ops[cx.pc as usize].line;
    let strong = access.order != Order::Weak;
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
    let (w, live) = (warp as usize, cx.warp.live());
    // Matrices are read and written by the whole warp.
    let lanes = if touch.part == Part::Own { touch.mask } else { live };
    let agent = state.agent(warp, lanes, live);
    let event = Event::new(key(block, agent), state.clocks[w].own[agent as usize], Site { line, strong });
    let split = (!state.told[w].is_empty() && touch.part == Part::Own).then(|| state.alike(warp, lanes));
    for &lanes in split.as_deref().unwrap_or(&[lanes]) {
        let part = (lanes != touch.mask && touch.part == Part::Own).then(|| Runs::of(lanes, addresses, touch.size));
        let runs = part.as_ref().unwrap_or(runs);
        let with_seen = state.with_seen(block, warp, lanes, strong);
        let who = Who { block, clock: with_seen.as_ref().unwrap_or(&state.clocks[w]) };
        match (region, &grid.race) {
            (Region::Shared, _) => {
                shared_access(&mut state.shared, state.warps, Visit::new(who, event, write), runs, &mut cx.repeats)?;
            }
            (_, Some(shadow)) => {
                let last = &mut cx.warp.allocation;
                let noted = shadow.access(&grid.memory, last, Visit::new(who, event, write), runs.iter());
                noted.map_err(|clash| name(race(state.warps, write, block, clash), grid))?;
            }
            _ => {}
        }
    }
    if strong {
        synchronise(cx, region, (cx.block.rank, cx.mask), addresses, effect, access);
    }
    Ok(())
}

/// Watches an access of lanes of a warp to global memory or its block's shared memory: what the warp's other lanes do there.
pub fn lanes(cx: &mut Cx<'_>, region: Region, touch: Touch<'_>, effect: Effect, access: Access) -> Result<(), Fault> {
    let line = cx.code.ops[cx.pc as usize].line;
    let Some(state) = cx.block.race.as_deref_mut() else { return Ok(()) };
    let how = How { write: effect != Effect::Load, strong: access.order != Order::Weak, line };
    if region == Region::Global {
        let found = state.lanes.global(cx.warp.id, touch, how);
        return found.map_err(|clash| name(lane_race(how.write, clash), cx.grid));
    }
    let Err(clash) = state.lanes.access(cx.warp.id, touch, how) else { return Ok(()) };
    let fault = state.lane_race(how.write, clash);
    // As in `shared_access`: it may store what is there already.
    let again = how.write && clash.wrote.is_some() && !clash.strong && !how.strong;
    if !again || matches!(cx.repeats, Repeats::No) {
        return Err(fault);
    }
    cx.repeats = Repeats::Doubted(Box::new(fault));
    state.lanes.note(cx.warp.id, touch, how);
    Ok(())
}

/// Lanes of a warp have met at a `bar.warp.sync`.
pub fn warp_sync(block: &mut Block, warp: &Warp, lanes: u32) {
    if let Some(state) = block.race.as_deref_mut() {
        state.lanes.sync(warp.id, lanes, warp.live());
        state.meet(warp.id, lanes, warp.live());
    }
}

/// Lanes of a warp have exchanged registers: what one of them has heard of other warps, they know. No manual says so, but
/// that is how cooperative groups hand on what one lane has acquired (the barrier of a tile of several warps).
#[inline(always)]
pub fn exchange(cx: &mut Cx<'_>) {
    if let Some(state) = cx.block.race.as_deref_mut() {
        let told = &mut state.told[cx.warp.id as usize];
        told.iter_mut().filter(|(who, _)| who & cx.mask != 0).for_each(|(who, _)| *who |= cx.mask);
    }
}

/// Lanes have waited for something that may have told them all that their warp had done.
pub fn learned(cx: &mut Cx<'_>, lanes: u32) {
    if let Some(state) = cx.block.race.as_deref_mut()
        && lanes != 0
    {
        state.lanes.learn(cx.warp.id, lanes, cx.warp.live());
    }
}

/// Watches an access of lanes to the shared memory of a block of the cluster, at offsets there.
pub fn peer_access(
    cx: &mut Cx<'_>,
    rank: u32,
    lanes: u32,
    runs: &Runs,
    offsets: &Row<u64>,
    effect: Effect,
    access: Access,
) -> Result<(), Fault> {
    let line = cx.code.ops[cx.pc as usize].line;
    let strong = access.order != Order::Weak;
    let (block, warp) = (cx.block.index, cx.warp.id);
    let Some(state) = cx.block.race.as_deref_mut() else { return Ok(()) };
    let (w, live) = (warp as usize, cx.warp.live());
    let agent = state.agent(warp, cx.mask, live);
    let clock = state.with_seen(block, warp, lanes, strong).unwrap_or_else(|| state.clocks[w].clone());
    let event = Event::new(key(block, agent), state.clocks[w].own[agent as usize], Site { line, strong });
    let visit = Visit::new(Who { block, clock: &clock }, event, effect != Effect::Load);
    let Some(peer) = cx.block.peer(rank) else { return Ok(()) };
    let index = peer.index;
    let Some(state) = peer.race.as_deref_mut() else { return Ok(()) };
    state.tidy(index);
    shared_access(&mut state.shared, state.warps, visit, runs, &mut cx.repeats)?;
    if strong {
        synchronise(cx, Region::Shared, (rank, lanes), offsets, effect, access);
    }
    Ok(())
}

/// Notes an access of a warp to shared memory.
fn shared_access(
    shared: &mut Cells,
    warps: u32,
    visit: Visit<'_>,
    runs: &Runs,
    repeats: &mut Repeats,
) -> Result<(), Fault> {
    let (who, event, write) = (visit.who, visit.event, visit.write);
    let Err(clash) = note(shared, visit, runs.iter()) else { return Ok(()) };
    let other_write = clash.write;
    let fault = shared_race(shared, warps, write, who.block, clash);
    if event.strong() || !other_write || matches!(repeats, Repeats::No) {
        return Err(fault);
    }
    // If it stores what is there already, only those matter who read in between.
    let read = runs.iter().find_map(|(at, size)| shared.read_unknown(who, event, at as usize, size as usize));
    if let Some(read) = read {
        return Err(shared_race(shared, warps, write, who.block, read));
    }
    *repeats = Repeats::Doubted(Box::new(fault));
    runs.iter().for_each(|(at, size)| shared.add_write(event, at as usize, size as usize));
    Ok(())
}

/// Notes an access to ranges of shared memory. Those that are not inside are left to other checks.
fn note(shared: &mut Cells, mut visit: Visit<'_>, ranges: impl Iterator<Item = (u64, u64)>) -> Result<(), Clash> {
    let size = shared.size() as u64;
    for (at, length) in ranges.filter(|(at, length)| at.checked_add(*length).is_some_and(|end| end <= size)) {
        shared.access(&mut visit, at as usize, length as usize)?;
    }
    shared.close(&mut visit)
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

/// The order that a strong access of lanes makes; one to shared memory is to that of a block of the cluster.
fn synchronise(
    cx: &mut Cx<'_>,
    region: Region,
    (rank, lanes): (u32, u32),
    addresses: &Row<u64>,
    effect: Effect,
    access: Access,
) {
    let (block, warp) = (cx.block.index, cx.warp.id);
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    let (w, live) = (warp as usize, cx.warp.live());
    let reads = effect != Effect::Store;
    let writes = effect != Effect::Load;
    let releases = matches!(access.order, Order::Release | Order::AcqRel);
    let published = match (writes, releases) {
        (false, _) => Foreign::default(),
        (true, true) => state.said(warp, cx.mask, live, None).publish(block),
        (true, false) => state.said(warp, cx.mask, live, Some(&state.fenced[w])).publish(block),
    };
    let (mut last, mut told) = (None, false);
    for lane in (0..LANES).filter(|lane| lanes >> lane & 1 != 0) {
        let address = addresses[lane];
        if last == Some(address) {
            continue;
        }
        last = Some(address);
        let acquiring = (0..LANES).fold(0, |all, lane| all | u32::from(addresses[lane] == address) << lane) & lanes;
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
                (Region::Shared, _) => {
                    let peer = cx.block.peer(rank).and_then(|peer| peer.race.as_deref_mut());
                    peer.and_then(|state| exchange(&mut state.places))
                }
                (_, Some(shadow)) => shadow.places(address, exchange),
                _ => None,
            }
        };
        let Some(state) = cx.block.race.as_deref_mut() else { return };
        if let Some(found) = found {
            if matches!(access.order, Order::Acquire | Order::AcqRel) {
                state.tell_published(block, warp, (acquiring, live), &found);
            } else {
                state.seen[w] = merge(&state.seen[w], &found);
            }
        }
    }
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    state.published |= told && (region == Region::Global || state.clustered);
    if releases {
        state.tick(warp);
    }
    if reads {
        let acquires = matches!(access.order, Order::Acquire | Order::AcqRel);
        state.lanes.hear(warp, lanes, live, acquires);
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
    let (lanes, live) = (cx.mask, cx.warp.live());
    state.lanes.fence(warp, lanes, live);
    let seen = state.seen[w].clone();
    state.tell_published(block, warp, (lanes, live), &seen);
    if live & !lanes == 0 {
        state.seen[w] = Foreign::default();
    }
    if !block_scope {
        state.fenced[w] = state.said(warp, live, live, None);
        state.tick(warp);
    }
}

/// A warp arrives at a barrier of its block, at a generation of it. A relaxed arrival tells only what was fenced.
pub fn barrier_arrive(cx: &mut Cx<'_>, barrier: u32, generation: u32, relaxed: bool) {
    let warp = cx.warp.id;
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    state.tell_all(warp);
    let meeting = &mut state.barriers[barrier as usize][generation as usize % 2];
    if meeting.generation != Some(generation) {
        *meeting = Meeting { generation: Some(generation), ..Meeting::default() };
    }
    meeting.clock.join(if relaxed { &state.fenced[warp as usize] } else { &state.clocks[warp as usize] });
    meeting.fenced.join(&state.fenced[warp as usize]);
    meeting.seen = merge(&meeting.seen, &state.seen[warp as usize]);
    state.seal(warp);
}

/// A warp arrives at the barrier of its cluster: what it knows, the other blocks will know.
pub fn cluster_arrive(cx: &mut Cx<'_>, barrier: u32, generation: u32, relaxed: bool) {
    let (block, warp) = (cx.block.index, cx.warp.id as usize);
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    state.tell_all(warp as u32);
    let published = if relaxed { &state.fenced[warp] } else { &state.clocks[warp] }.publish(block);
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
    learned(cx, cx.mask);
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

/// Lanes of a warp, of which `live` have not exited, arrive at an mbarrier, perhaps each at another one.
pub fn mbarrier_arrive(block: &mut Block, warp: u32, (lanes, live): (u32, u32), address: u64) {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return };
    let clock = state.said(warp, lanes, live, None);
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
    state.lanes.told_elsewhere(warp);
}

/// Lanes of a warp, of which `live` have not exited, have found a phase of an mbarrier completed.
pub fn mbarrier_wait(block: &mut Block, warp: u32, (lanes, live): (u32, u32), address: u64) {
    let Some(state) = block.race.as_deref_mut() else { return };
    let clock = state.mbarrier(address).0.clone();
    state.tell(warp, lanes, live, &clock);
}

/// A range of shared memory, address and bytes, that an operation of lanes reads or writes at once.
pub fn shared_range(
    cx: &mut Cx<'_>,
    lanes: u32,
    (address, size): (u64, u64),
    write: bool,
    line: u32,
) -> Result<(), Fault> {
    let (index, warp, live) = (cx.block.index, cx.warp.id, cx.warp.live());
    let Some(state) = cx.block.race.as_deref_mut() else { return Ok(()) };
    state.tidy(index);
    let agent = state.agent(warp, lanes, live);
    let clock = state.known_to(warp, lanes).into_owned();
    let who = Who { block: index, clock: &clock };
    let event = Event::new(key(index, agent), clock.own[agent as usize], Site { line, strong: false });
    let noted = note(&mut state.shared, Visit::new(who, event, write), std::iter::once((address, size)));
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
    let runs = Runs::of(lanes, to, size);
    let touch = Touch { mask: lanes, addresses: to, size, runs: &runs, part: Part::Own };
    let issued = state.lanes.copy(warp, state.begun[agent as usize], touch, line);
    issued.map_err(|clash| state.lane_race(true, clash))?;
    let clock = state.with_seen(index, warp, lanes, false);
    let who = Who { block: index, clock: clock.as_ref().unwrap_or(&state.clocks[warp as usize]) };
    let noted = note(&mut state.shared, Visit::new(who, event, true), runs.iter());
    noted.map_err(|clash| {
        let lane = lane_of(lanes, to, size, clash.at);
        Fault { lane, ..state.shared_race(true, index, clash) }
    })
}

/// A range of shared memory that a bulk copy will read from now on, until the warp has waited for it.
pub fn store_issue(
    block: &mut Block,
    (warp, lane): (u32, u32),
    address: u64,
    size: u64,
    line: u32,
) -> Result<(), Fault> {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return Ok(()) };
    state.tidy(index);
    let agent = state.engine(warp, Engine::Bulk);
    state.begun[agent as usize] += 1;
    let event = Event::new(key(index, agent), state.begun[agent as usize], Site { line, strong: false });
    let clock = state.known_to(warp, 1 << lane).into_owned();
    let who = Who { block: index, clock: &clock };
    let issued = state.lanes.store(warp, state.begun[agent as usize], lane, (address, size), line);
    issued.map_err(|clash| state.lane_race(false, clash))?;
    let noted = note(&mut state.shared, Visit::new(who, event, false), std::iter::once((address, size)));
    noted.map_err(|clash| state.shared_race(false, index, clash))?;
    state.proxy(index, address, size)
}

/// A group of an engine's operations is committed.
pub fn commit(block: &mut Block, warp: u32, engine: Engine) {
    let Some(state) = block.race.as_deref_mut() else { return };
    let agent = state.engine(warp, engine);
    let begun = state.begun[agent as usize];
    state.commits.entry(agent).or_default().push(begun);
}

/// Lanes have waited until at most `keep` of an engine's groups are left; of none, for all operations if `all`.
pub fn wait_groups(cx: &mut Cx<'_>, engine: Engine, keep: usize, all: bool) {
    let (warp, lanes) = (cx.warp.id, cx.mask);
    let Some(state) = cx.block.race.as_deref_mut() else { return };
    let agent = state.engine(warp, engine);
    let commits = state.commits.entry(agent).or_default();
    let done = if all { Some(state.begun[agent as usize]) } else { commits.iter().rev().nth(keep).copied() };
    if let Some(done) = done {
        let own = &mut state.clocks[warp as usize].own[agent as usize];
        *own = (*own).max(done);
        state.lanes.waited(warp, lanes, engine == Engine::Bulk, done);
    }
    let surplus = commits.len().saturating_sub(keep.max(8));
    commits.drain(..surplus);
}

/// The last writes of what an operation reads, and an address of each.
pub type Sources = Vec<(u64, Event)>;

/// The engine of a warpgroup's `wgmma.mma_async` reads operands from now on: 16 bytes at each address. `number` counts
/// the operations of the warpgroup, of which `warp` is the first to issue this one.
pub fn matrix_reads(block: &mut Block, warp: u32, number: u64, addresses: &[u64], line: u32) -> Result<Sources, Fault> {
    let index = block.index;
    let mut sources = Sources::new();
    let Some(state) = block.race.as_deref_mut() else { return Ok(sources) };
    state.tidy(index);
    let agent = state.engine(warp & !3, Engine::Matrix);
    let event = Event::new(key(index, agent), number as u32 + 1, Site { line, strong: false });
    let who = Who { block: index, clock: &state.clocks[warp as usize] };
    let noted =
        note(&mut state.shared, Visit::new(who, event, false), addresses.iter().map(|&address| (address, UNIT as u64)));
    noted.map_err(|clash| state.shared_race(false, index, clash))?;
    let size = state.shared.size() as u64;
    let mut passed = 0;
    for &at in addresses.iter().filter(|at| at.checked_add(UNIT as u64).is_some_and(|end| end <= size)) {
        state.shared.find_write(at as usize, UNIT, &mut passed, |event| {
            if sources.iter().all(|(_, other)| *other != event) {
                sources.push((at, event));
            }
            false
        });
    }
    Ok(sources)
}

/// A warp issues a `wgmma.mma_async`: it and the async proxy must know what the operation reads.
pub fn matrix_issue(block: &mut Block, warp: u32, sources: &Sources) -> Result<(), Fault> {
    let index = block.index;
    let Some(state) = block.race.as_deref_mut() else { return Ok(()) };
    for &(at, other) in sources {
        let who = Who { block: index, clock: &state.clocks[warp as usize] };
        if !who.knows(other) {
            return Err(state.shared_race(false, index, Clash { at, other, write: true }));
        }
        state.proxied(index, at, other)?;
        let own = [warp, state.alone(warp), state.engine(warp, Engine::Copy)].map(|agent| key(index, agent));
        if let Some(lane) = own.contains(&other.agent).then(|| state.lanes.written_by(warp, at)).flatten() {
            let clash = lanes::Clash { at, lane, other: lane, wrote: Some(other.line()), strong: false };
            return Err(Fault { lane: None, ..state.lane_race(false, clash) });
        }
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

/// A bulk copy that a lane issues writes shared memory, address and bytes, of a block of the cluster and completes on an
/// mbarrier there; the number for [`bulk_landed`].
pub fn bulk_issue(
    block: &mut Block,
    owner: u32,
    (warp, lane): (u32, u32),
    mbarrier: u64,
    to: (u64, u64),
    line: u32,
) -> Result<u32, Fault> {
    let index = block.index;
    let Some(state) = block.race.as_deref() else { return Ok(0) };
    let clock = state.known_to(warp, 1 << lane).into_owned();
    let Some(owner) = block.peer(owner) else { return Ok(0) };
    let of = owner.index;
    let Some(state) = owner.race.as_deref_mut() else { return Ok(0) };
    let agent = state.mbarrier(mbarrier).1;
    state.begun[agent] += 1;
    let at = state.begun[agent];
    state.tidy(of);
    let event = Event::new(key(of, agent as u32), at, Site { line, strong: false });
    let visit = Visit::new(Who { block: index, clock: &clock }, event, true);
    let noted = note(&mut state.shared, visit, std::iter::once(to));
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

/// Ranges of global memory that an operation of a warp, or an engine for it, reads or writes.
pub fn global_ranges(
    cx: &mut Cx<'_>,
    ranges: impl Iterator<Item = (u64, u64)>,
    write: bool,
    site: Site,
) -> Result<(), Fault> {
    let (index, grid, warp, live) = (cx.block.index, cx.grid, cx.warp.id, cx.warp.live());
    let (Some(state), Some(shadow)) = (cx.block.race.as_deref_mut(), grid.race.as_ref()) else { return Ok(()) };
    let agent = state.agent(warp, cx.mask, live);
    let clock = state.known_to(warp, cx.mask).into_owned();
    let who = Who { block: index, clock: &clock };
    let event = Event::new(key(index, agent), clock.own[agent as usize], site);
    let noted = shadow.access(&grid.memory, &mut 0, Visit::new(who, event, write), ranges);
    noted.map_err(|clash| name(race(state.warps, write, index, clash), grid))
}
