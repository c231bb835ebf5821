//! Runs a grid on the threads of the host.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::cluster;
use super::fault::Fault;
use super::grid::{Grid, Launch};
use super::resident::{Resident, State};
use super::schedule::Rng;
use crate::counters::{Counters, Totals};

/// Operations of a slice when a host thread has one block, and when it has several.
const SLICE: (u64, u64) = (1 << 18, 1 << 12);
/// Operations of a host thread's blocks of which none ends, before it starts another: they may wait for it, and poll it
/// between barriers, which looks like progress.
const PATIENCE: u64 = 1 << 22;
/// Operations by each of the blocks without an effect that others could wait for, before they count as stuck.
const IN_VAIN: u64 = if cfg!(test) { 1 << 20 } else { 1 << 27 };

/// What a launch did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its counters.
    pub counters: Totals,
}

/// Runs a kernel to its end.
///
/// Cooperative launches run on one host thread, so that the order in which their blocks communicate is the seed's alone.
/// So does in the end every launch under the race check whose blocks communicate or in which anything is found, see
/// [`crate::check::race::Global`]: what is reported does not depend on the number of host threads.
pub fn launch(launch: &Launch<'_>) -> Result<Report, Box<Fault>> {
    let mut grid = Grid::new(launch)?;
    let clusters = grid.dim.iter().map(|&n| u64::from(n)).product::<u64>() / grid.cluster_blocks();
    let threads = match grid.schedule.threads {
        _ if grid.cooperative => 1,
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let workers = (threads as u64).min(clusters) as usize;
    if workers > 1
        && let Some(race) = &mut grid.race
    {
        race.share();
    }
    let outcome = run(&grid, clusters, workers);
    match (&outcome, &grid.race) {
        (Err(_), Some(race)) if race.is_shared() => {
            race.undo(&grid.memory);
            let again = run(&Grid::new(launch)?, clusters, 1);
            if again.is_ok() && !race.was_heard() { outcome } else { again }
        }
        _ => outcome,
    }
}

/// Runs a grid on a number of host threads.
fn run(grid: &Grid<'_>, clusters: u64, workers: usize) -> Result<Report, Box<Fault>> {
    let team = Team {
        order: Order::new(grid.schedule.seed, clusters),
        clusters,
        workers: workers as u64,
        next: AtomicU64::new(0),
        epoch: AtomicU64::new(0),
        in_vain: AtomicU64::new(0),
        limit: AtomicU64::new(u64::MAX),
        tentative: grid.race.is_some(),
        over: AtomicBool::new(false),
        fault: Mutex::new(None),
        stuck: Mutex::new(vec![None; workers]),
    };
    let counters = std::thread::scope(|scope| {
        let team = &team;
        let others: Vec<_> = (1..workers).map(|i| scope.spawn(move || Worker::new(team, grid, i).run())).collect();
        let mut all = vec![Worker::new(team, grid, 0).run()];
        for other in others {
            match other.join() {
                Ok(counters) => all.push(counters),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    if let Some((_, fault)) = lock(&team.fault).take() {
        return Err(fault);
    }
    Ok(Report { counters: Totals::of(grid, &counters) })
}

/// What the host threads of a launch share.
struct Team {
    order: Order,
    /// Clusters, which are started whole; most often of one block.
    clusters: u64,
    workers: u64,
    /// The next place in the order whose cluster has not started.
    next: AtomicU64,
    /// Grows whenever a block made progress.
    epoch: AtomicU64,
    /// Operations since a block last started, or did what another could wait for.
    in_vain: AtomicU64,
    /// The first place whose block had a fault: blocks behind it no longer matter. So the fault that is reported does not
    /// depend on the number of host threads.
    limit: AtomicU64,
    fault: Mutex<Option<(u64, Box<Fault>)>>,
    /// Whether no block matters after any fault, and whether there was one: under the race check all is done again, on one
    /// host thread, where the first fault is always the same. Other blocks may wait for that which had it.
    tentative: bool,
    over: AtomicBool,
    /// For each worker that cannot go on, the epoch at which it found that.
    stuck: Mutex<Vec<Option<u64>>>,
}

/// A mutex is only poisoned by a panic, which ends the launch anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Team {
    fn fail(&self, position: u64, fault: Box<Fault>) {
        self.limit.fetch_min(position, Ordering::Relaxed);
        self.over.fetch_or(self.tentative, Ordering::Relaxed);
        let mut first = lock(&self.fault);
        if first.as_ref().is_none_or(|(p, _)| position < *p) {
            *first = Some((position, fault));
        }
    }

    /// Whether a place, or what its block does, cannot matter any more.
    fn is_moot(&self, position: u64) -> bool {
        position > self.limit.load(Ordering::Relaxed) || self.over.load(Ordering::Relaxed)
    }

    /// A place of the order that has not started.
    fn claim(&self) -> Option<u64> {
        let position = self.next.fetch_add(1, Ordering::Relaxed);
        (position < self.clusters && !self.is_moot(position)).then_some(position)
    }
}

/// A permutation of the clusters that needs no memory: seed 0 leaves them as they are.
struct Order {
    factor: u64,
    offset: u64,
    count: u64,
}

impl Order {
    fn new(seed: u64, count: u64) -> Order {
        if seed == 0 {
            return Order { factor: 1, offset: 0, count };
        }
        let mut rng = Rng::new(seed);
        let offset = rng.below(count);
        let factor = loop {
            let factor = 1 + rng.below(count);
            if gcd(factor, count) == 1 {
                break factor;
            }
        };
        Order { factor, offset, count }
    }

    fn cluster(&self, position: u64) -> u64 {
        ((u128::from(position) * u128::from(self.factor) + u128::from(self.offset)) % u128::from(self.count)) as u64
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One host thread and the blocks that it runs.
struct Worker<'a> {
    team: &'a Team,
    grid: &'a Grid<'a>,
    number: usize,
    counters: Counters,
    residents: Vec<Resident>,
    /// Blocks that have ended while others of their cluster have not.
    ended: Vec<Resident>,
    /// Blocks of clusters that have ended, for their memory.
    spare: Vec<Resident>,
    /// The epoch that the resident blocks' search for progress began in.
    hoped: u64,
    /// Operations since a block last started or ended here.
    waited: u64,
}

impl<'a> Worker<'a> {
    fn new(team: &'a Team, grid: &'a Grid<'a>, number: usize) -> Self {
        let counters = Counters::new(grid);
        let (residents, ended, spare) = (Vec::new(), Vec::new(), Vec::new());
        Worker { team, grid, number, counters, residents, ended, spare, hoped: 0, waited: 0 }
    }

    fn run(mut self) -> Counters {
        if self.grid.cooperative {
            let mut position = self.number as u64;
            while position < self.team.clusters {
                self.admit(position);
                position += self.team.workers;
            }
        }
        loop {
            if self.residents.is_empty() && !self.start_one() {
                break;
            }
            let epoch = self.team.epoch.load(Ordering::SeqCst);
            if epoch != self.hoped {
                // What a block did before another one's progress says nothing about what it can do now.
                self.residents.iter_mut().for_each(Resident::hope);
                self.hoped = epoch;
            }
            let state = self.pass();
            if state != State::Stuck {
                self.unstick();
            }
            // Blocks that only spin may wait for one that has not started.
            let quiet = self.team.epoch.load(Ordering::SeqCst) == epoch;
            if (quiet || self.waited >= PATIENCE)
                && !self.residents.is_empty()
                && !self.start_one()
                && (quiet && state == State::Stuck && self.all_stuck(epoch) || self.all_in_vain())
            {
                self.give_up();
            }
        }
        // A worker without blocks waits for nothing: it must not keep the others from finding a deadlock.
        lock(&self.team.stuck)[self.number] = Some(u64::MAX);
        self.counters
    }

    /// Starts a block that has not run, if there is one and the device has room for it.
    fn start_one(&mut self) -> bool {
        if self.grid.cooperative || self.residents.len() as u64 >= self.grid.residency().div_ceil(self.team.workers) {
            return false;
        }
        match self.team.claim() {
            Some(position) => {
                self.admit(position);
                self.waited = 0;
                self.team.in_vain.store(0, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }

    fn admit(&mut self, position: u64) {
        let (cluster, blocks) = (self.team.order.cluster(position), self.grid.cluster_blocks());
        let first = self.residents.len();
        for rank in 0..blocks {
            let index = self.grid.block_of(cluster, rank);
            let resident = match self.spare.pop() {
                Some(mut old) => {
                    old.restart(self.grid, index, position);
                    old
                }
                None => Resident::new(self.grid, index, position),
            };
            self.residents.push(resident);
        }
        if blocks > 1 {
            cluster::join(self.residents[first..].iter_mut().map(|resident| &mut resident.block));
        }
    }

    /// A slice for every resident block. Stuck if all of them are.
    fn pass(&mut self) -> State {
        let budget = if self.residents.len() == 1 { SLICE.0 } else { SLICE.1 };
        let mut all = State::Stuck;
        let mut i = 0;
        while i < self.residents.len() {
            let resident = &mut self.residents[i];
            let (before, outward, clock) = (resident.block.progress, resident.block.outward, resident.block.clock);
            let abandoned = self.team.is_moot(resident.position);
            let state = if abandoned { Ok(State::Done) } else { resident.slice(self.grid, &mut self.counters, budget) };
            if resident.block.progress != before {
                self.team.epoch.fetch_add(1, Ordering::SeqCst);
            }
            self.waited += resident.block.clock - clock;
            if resident.block.outward != outward {
                self.team.in_vain.store(0, Ordering::Relaxed);
            } else {
                self.team.in_vain.fetch_add(resident.block.clock - clock, Ordering::Relaxed);
            }
            match state {
                Ok(State::Stuck) => i += 1,
                Ok(State::Running) => {
                    all = State::Running;
                    i += 1;
                }
                Ok(State::Done) => {
                    all = State::Running;
                    self.waited = 0;
                    let ended = self.residents.swap_remove(i);
                    self.retire(ended);
                }
                Err(fault) => {
                    let position = resident.position;
                    self.team.fail(position, fault);
                    // The rest of the cluster ends with it.
                    let (gone, left) = self.residents.drain(..).partition(|r: &Resident| r.position == position);
                    self.residents = left;
                    Vec::into_iter(gone).for_each(|resident| self.retire(resident));
                    return State::Running;
                }
            }
        }
        all
    }

    /// Keeps what ended until its whole cluster has.
    fn retire(&mut self, resident: Resident) {
        let position = resident.position;
        self.ended.push(resident);
        if !self.residents.iter().any(|r| r.position == position) {
            let (gone, left) = self.ended.drain(..).partition(|r: &Resident| r.position == position);
            self.ended = left;
            self.spare.extend(Vec::into_iter(gone));
        }
    }

    fn unstick(&mut self) {
        if self.team.workers > 1 {
            lock(&self.team.stuck)[self.number] = None;
        }
    }

    /// Whether every worker found, since the last progress anywhere, that it cannot go on.
    fn all_stuck(&mut self, epoch: u64) -> bool {
        let mut stuck = lock(&self.team.stuck);
        stuck[self.number] = Some(epoch);
        let now = self.team.epoch.load(Ordering::SeqCst);
        let all = stuck.iter().all(|at| at.is_some_and(|e| e == now || e == u64::MAX));
        drop(stuck);
        if !all {
            for resident in &mut self.residents {
                resident.hope();
            }
            std::thread::yield_now();
        }
        all
    }

    /// Whether all blocks have only kept themselves busy for so long that nothing else can be expected of them.
    fn all_in_vain(&self) -> bool {
        let blocks = (self.residents.len() as u64).max(1) * self.team.workers;
        self.team.in_vain.load(Ordering::Relaxed) >= IN_VAIN.saturating_mul(blocks)
    }

    /// Reports the deadlock and ends.
    fn give_up(&mut self) {
        for resident in self.residents.drain(..) {
            self.team.fail(resident.position, resident.deadlock(self.grid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Order;

    #[test]
    fn an_order_has_every_block_once() {
        for (seed, count) in [(0, 7), (1, 1), (2, 12), (3, 97), (9, 100)] {
            let order = Order::new(seed, count);
            let mut blocks: Vec<u64> = (0..count).map(|p| order.cluster(p)).collect();
            assert!(seed != 0 || blocks.is_sorted());
            blocks.sort_unstable();
            assert!(blocks.into_iter().eq(0..count));
        }
    }
}
