//! Who knows what of a block's accesses: the clocks of its warps and engines, what some of a warp's lanes have learned, and
//! what they publish.
//!
//! A warp is one agent, and a second one for what some of its lanes do without the others. What some lanes learn, the others
//! know from the next barrier of the warp on, or the next exchange of registers; what some lanes publish covers what all of
//! them have done up to the last one. Asynchronous operations are agents of their own.

use std::borrow::Cow;
use std::collections::HashMap;

use super::cells::{Cells, Event};
use super::clock::{Clock, Foreign, key};
use super::lanes::Lanes;

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

/// Sets of lanes of a warp whose knowledge is told apart.
const FEW: usize = 8;

/// Mbarriers whose asynchronous writes are told apart.
pub(super) const MBARRIERS: usize = 64;

/// What the check remembers of a block.
pub struct State {
    pub(super) warps: u32,
    pub(super) shared: Cells,
    /// The lanes of each warp among themselves.
    pub(super) lanes: Lanes,
    pub(super) clocks: Vec<Clock>,
    /// What some lanes of each warp have learned that the others do not know.
    pub(super) told: Vec<Vec<(u32, Clock)>>,
    /// What each warp's lanes have done up to their last barrier: what some of them publish covers no more of the others.
    pub(super) sealed: Vec<u32>,
    /// Lanes of each warp that have since accessed memory without the others.
    pub(super) apart: Vec<u32>,
    /// What each warp knew at its last fence: what a relaxed write of it publishes.
    pub(super) fenced: Vec<Clock>,
    /// What relaxed reads have seen since: the next fence acquires it.
    pub(super) seen: Vec<Foreign>,
    /// What was known at the proxy fences of any warp: writes that the async proxy sees.
    pub(super) proxied: Clock,
    pub(super) barriers: Vec<[Meeting; 2]>,
    /// Arrivals at each mbarrier, and the slot of its asynchronous writes.
    pub(super) mbarriers: HashMap<u64, (Clock, usize)>,
    /// What was published at addresses of shared memory.
    pub(super) places: HashMap<u64, Foreign>,
    /// Groups of each engine of each warp: the engine's clock at every commit.
    pub(super) commits: HashMap<u32, Vec<u32>>,
    /// How many operations each agent that is no warp has begun.
    pub(super) begun: Vec<u32>,
    /// Whether other blocks may have learned what it knows.
    pub(super) published: bool,
    /// Whether other blocks reach its shared memory.
    pub(super) clustered: bool,
}

/// What the arrivals of one generation of a barrier know.
#[derive(Clone, Default)]
pub(super) struct Meeting {
    pub(super) generation: Option<u32>,
    pub(super) clock: Clock,
    pub(super) fenced: Clock,
    pub(super) seen: Foreign,
}

impl State {
    /// Nothing has happened.
    pub fn new(warps: u32, shared_bytes: u32, barriers: usize, clustered: bool) -> State {
        let agents = warps as usize * 5 + MBARRIERS;
        let mut clocks = vec![Clock::new(agents); warps as usize];
        for (warp, clock) in clocks.iter_mut().enumerate() {
            clock.own[warp] = 1;
            clock.own[warps as usize * 4 + MBARRIERS + warp] = 1;
        }
        let state = State {
            warps,
            shared: Cells::new(shared_bytes as usize),
            lanes: Lanes::default(),
            clocks,
            told: vec![Vec::new(); warps as usize],
            sealed: vec![0; warps as usize],
            apart: vec![0; warps as usize],
            fenced: vec![Clock::new(agents); warps as usize],
            seen: vec![Foreign::default(); warps as usize],
            proxied: Clock::new(agents),
            barriers: vec![Default::default(); barriers],
            mbarriers: HashMap::new(),
            places: HashMap::new(),
            commits: HashMap::new(),
            begun: vec![0; agents],
            published: false,
            clustered,
        };
        state.with_lanes(Lanes::default())
    }

    /// Uses what another block needs no more.
    pub fn with_lanes(self, mut lanes: Lanes) -> State {
        lanes.restart(self.warps, self.shared.size() as u32);
        State { lanes, ..self }
    }

    /// What another block may use.
    pub fn into_lanes(self) -> Lanes {
        self.lanes
    }

    /// Forgets reads of shared memory that everybody knows: none can race with them. What other blocks of a cluster know
    /// is not looked up.
    #[inline(always)]
    pub(super) fn tidy(&mut self, block: u64) {
        if self.shared.crowded() {
            let State { shared, clocks, clustered, .. } = self;
            let known = |e: Event| clocks.iter().all(|clock| clock.knows(block, e.agent, e.clock));
            shared.tidy(|e| !*clustered && known(e), |_| false);
        }
    }

    /// What a warp knows at an access, if that is more than its clock says: a strong access finds what strong reads before
    /// it have seen, even without a fence between.
    pub(super) fn with_seen(&self, block: u64, warp: u32, lanes: u32, strong: bool) -> Option<Clock> {
        let (seen, told) = (&self.seen[warp as usize], &self.told[warp as usize]);
        let sees = strong && !seen.is_empty();
        (sees || !told.is_empty()).then(|| {
            let mut clock = self.clocks[warp as usize].clone();
            told.iter().filter(|(who, _)| lanes & !who == 0).for_each(|(_, known)| clock.join(known));
            if sees {
                clock.learn(block, seen);
            }
            clock
        })
    }

    /// Lanes of a warp in sets of those that know the same.
    pub(super) fn alike(&self, warp: u32, mut lanes: u32) -> Vec<u32> {
        let mut sets = Vec::new();
        while lanes != 0 {
            let first = 1 << lanes.trailing_zeros();
            let told = self.told[warp as usize].iter();
            let same = told.fold(lanes, |same, (who, _)| same & if who & first != 0 { *who } else { !*who });
            sets.push(same);
            lanes &= !same;
        }
        sets
    }

    /// What all of some lanes of a warp know.
    pub(super) fn known_to(&self, warp: u32, lanes: u32) -> Cow<'_, Clock> {
        match self.with_seen(0, warp, lanes, false) {
            None => Cow::Borrowed(&self.clocks[warp as usize]),
            Some(clock) => Cow::Owned(clock),
        }
    }

    /// Lanes of a warp, of which `live` have not exited, have learned something.
    pub(super) fn tell(&mut self, warp: u32, lanes: u32, live: u32, clock: &Clock) {
        let w = warp as usize;
        if live & !lanes == 0 {
            return self.clocks[w].join(clock);
        }
        match self.told[w].iter_mut().find(|(who, _)| *who == lanes) {
            Some((_, known)) => known.join(clock),
            None => self.told[w].push((lanes, clock.clone())),
        }
        if self.told[w].len() > FEW {
            self.tell_all(warp);
        }
    }

    /// The same of what was published.
    pub(super) fn tell_published(&mut self, block: u64, warp: u32, (lanes, live): (u32, u32), published: &Foreign) {
        if published.is_empty() {
            return;
        }
        if live & !lanes == 0 {
            return self.clocks[warp as usize].learn(block, published);
        }
        let mut clock = Clock::new(self.begun.len());
        clock.learn(block, published);
        self.tell(warp, lanes, live, &clock);
    }

    /// What some lanes of a warp know, all will know.
    pub(super) fn tell_all(&mut self, warp: u32) {
        let w = warp as usize;
        for (_, known) in std::mem::take(&mut self.told[w]) {
            self.clocks[w].join(&known);
        }
    }

    /// Lanes of a warp have met: they know what one of them knows.
    pub(super) fn meet(&mut self, warp: u32, lanes: u32, live: u32) {
        let w = warp as usize;
        if live & !lanes == 0 {
            self.tell_all(warp);
        }
        self.told[w].iter_mut().filter(|(who, _)| who & lanes != 0).for_each(|(who, _)| *who |= lanes);
        self.seal(warp);
    }

    /// What the lanes of a warp have done so far, any of them may publish.
    pub(super) fn seal(&mut self, warp: u32) {
        let w = warp as usize;
        self.sealed[w] = self.clocks[w].own[w];
        self.apart[w] = 0;
        self.tick(warp);
    }

    /// What lanes of a warp publish by a release of what was known at some time, or now. It does not cover what all lanes
    /// have done since their last barrier unless all of them publish it, nor what others have done apart.
    pub(super) fn said(&self, warp: u32, lanes: u32, live: u32, known: Option<&Clock>) -> Clock {
        let w = warp as usize;
        let mut clock = known.unwrap_or(&self.clocks[w]).clone();
        if known.is_none() {
            self.told[w].iter().filter(|(who, _)| who & lanes != 0).for_each(|(_, known)| clock.join(known));
        }
        if live & !lanes != 0 {
            clock.own[w] = clock.own[w].min(self.sealed[w]);
            if self.apart[w] & lanes == 0 {
                let own = &mut clock.own[self.alone(warp) as usize];
                *own = (*own).min(self.sealed[w]);
            }
        }
        clock
    }

    /// The agent of what some lanes of a warp do without the others.
    pub(super) fn alone(&self, warp: u32) -> u32 {
        self.warps * 4 + MBARRIERS as u32 + warp
    }

    /// The agent of an access of lanes of a warp.
    #[inline(always)]
    pub(super) fn agent(&mut self, warp: u32, lanes: u32, live: u32) -> u32 {
        if live & !lanes == 0 {
            return warp;
        }
        self.apart[warp as usize] |= lanes;
        self.alone(warp)
    }

    /// Whether a write went through the generic proxy and no proxy fence came after it.
    pub(super) fn unfenced(&self, block: u64, write: Event) -> bool {
        // The agents are the warps, then their copy engines, which write through the generic proxy too.
        let generic = key(block, 0)..key(block, 2 * self.warps);
        let apart = key(block, self.alone(0))..key(block, self.alone(self.warps));
        (generic.contains(&write.agent) || apart.contains(&write.agent))
            && !self.proxied.knows(block, write.agent, write.clock)
    }

    pub(super) fn engine(&self, warp: u32, engine: Engine) -> u32 {
        engine as u32 * self.warps + warp
    }

    pub(super) fn mbarrier(&mut self, address: u64) -> &mut (Clock, usize) {
        let (next, agents) = (self.mbarriers.len() % MBARRIERS, self.begun.len());
        let first = self.warps as usize * 4;
        self.mbarriers.entry(address).or_insert_with(|| (Clock::new(agents), first + next))
    }

    /// What a warp does from now on is not covered by what it has published.
    pub(super) fn tick(&mut self, warp: u32) {
        let apart = self.alone(warp);
        for agent in [warp, apart] {
            self.clocks[warp as usize].own[agent as usize] += 1;
        }
    }
}
