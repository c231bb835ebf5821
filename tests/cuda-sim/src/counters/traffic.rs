//! What a launch moves to and from global memory, by allocation.

use std::sync::OnceLock;

use serde_json::{Value, json};

use super::SECTOR;
use super::footprint::{Distinct, Footprint};
use super::l2::{L2, Moved};
use crate::machine::access::Effect;
use crate::memory::{Allocation, View};

/// What the warps of one host thread asked of an allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Bytes that lanes asked to load.
    pub load_bytes: u64,
    /// Bytes that lanes asked to store.
    pub store_bytes: u64,
    /// Sectors that the loads of whole warps touched.
    pub load_sectors: u64,
    /// Sectors that the stores of whole warps touched.
    pub store_sectors: u64,
}

impl Asked {
    /// Adds an access.
    pub fn add(&mut self, effect: Effect, bytes: u64, sectors: u64) {
        if effect != Effect::Store {
            self.load_bytes += bytes;
            self.load_sectors += sectors;
        }
        if effect != Effect::Load {
            self.store_bytes += bytes;
            self.store_sectors += sectors;
        }
    }

    fn sum(parts: impl Iterator<Item = Asked>) -> Asked {
        parts.fold(Asked::default(), |a, b| Asked {
            load_bytes: a.load_bytes + b.load_bytes,
            store_bytes: a.store_bytes + b.store_bytes,
            load_sectors: a.load_sectors + b.load_sectors,
            store_sectors: a.store_sectors + b.store_sectors,
        })
    }
}

/// What all host threads of a launch note together.
pub struct Traffic {
    footprints: Vec<OnceLock<Footprint>>,
    /// None where all that is allocated fits: what is in the cache once stays there.
    l2: Option<L2>,
    l2_bytes: u64,
}

impl Traffic {
    /// Nothing moved yet, with a level 2 cache of `l2_bytes`.
    pub fn new(memory: &View, l2_bytes: u64) -> Traffic {
        let size = |index| Some(memory.get(index)).filter(|a| a.is_live()).map_or(0, |a| a.size);
        let fits = (0..memory.len()).map(size).sum::<u64>() <= l2_bytes;
        let footprints = (0..memory.len()).map(|_| OnceLock::new()).collect();
        Traffic { footprints, l2: (!fits).then(|| L2::new(l2_bytes)), l2_bytes }
    }

    /// An access to a range inside an allocation.
    pub fn touch(&self, index: usize, allocation: &Allocation, offset: u64, length: u64, effect: Effect) {
        let footprint = self.footprints[index].get_or_init(Footprint::default);
        if effect != Effect::Store {
            footprint.read(allocation.size, offset, length);
        }
        if effect != Effect::Load {
            footprint.write(allocation.size, offset, length);
        }
        if let Some(l2) = &self.l2 {
            l2.access(allocation.base + offset, length, effect != Effect::Store, effect != Effect::Load);
        }
    }

    /// A range inside an allocation whose bytes mean nothing any more: they are not owed to memory.
    pub fn discard(&self, index: usize, allocation: &Allocation, offset: u64, length: u64) {
        if let Some(footprint) = self.footprints[index].get() {
            footprint.discard(offset, length);
        }
        if let Some(l2) = &self.l2 {
            l2.discard(allocation.base + offset, length);
        }
    }

    /// Adds up what was noted.
    pub fn total<'p>(&self, memory: &View, parts: impl Iterator<Item = &'p [Asked]> + Clone) -> Total {
        let mut total = Total::default();
        for (index, footprint) in self.footprints.iter().enumerate() {
            let Some(footprint) = footprint.get() else { continue };
            let allocation = memory.get(index);
            total.allocations.push(AllocationTraffic {
                address: allocation.base,
                size: allocation.size,
                name: allocation.label(),
                asked: Asked::sum(parts.clone().map(|part| part[index])),
                distinct: footprint.distinct(),
            });
        }
        let all = |count: fn(&Distinct) -> u64| total.allocations.iter().map(|a| count(&a.distinct)).sum();
        total.distinct_sectors = all(|d| d.sectors);
        total.simulated = total.distinct_sectors * SECTOR > self.l2_bytes;
        total.dram = match &self.l2 {
            Some(l2) if total.simulated => l2.moved(),
            _ => Moved { read: all(|d| d.filled_sectors), written: all(|d| d.dirty_sectors) },
        };
        total
    }
}

/// The traffic of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// What was touched, by address.
    pub allocations: Vec<AllocationTraffic>,
    /// Distinct sectors of all of them.
    pub distinct_sectors: u64,
    /// Sectors that went from and to memory, by the model of the level 2 cache.
    pub dram: Moved,
    /// Whether the distinct sectors did not fit the cache, so that its replacement matters.
    pub simulated: bool,
}

impl Total {
    /// What all warps asked for.
    pub fn asked(&self) -> Asked {
        Asked::sum(self.allocations.iter().map(|allocation| allocation.asked))
    }
}

/// The traffic of a launch with one allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationTraffic {
    /// Where it begins.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
    /// Its name: the program's, or a module's variable's.
    pub name: Option<String>,
    /// What warps asked for.
    pub asked: Asked,
    /// What was touched.
    pub distinct: Distinct,
}

impl AllocationTraffic {
    /// The JSON object of an allocation.
    pub fn json(&self) -> Value {
        let (asked, distinct) = (&self.asked, &self.distinct);
        json!({
            "address": format!("{:#x}", self.address),
            "size": self.size,
            "name": self.name,
            "load_bytes": asked.load_bytes,
            "store_bytes": asked.store_bytes,
            "load_sectors": asked.load_sectors,
            "store_sectors": asked.store_sectors,
            "distinct_read_bytes": distinct.read_bytes,
            "distinct_written_bytes": distinct.written_bytes,
            "distinct_read_sectors": distinct.read_sectors,
            "distinct_written_sectors": distinct.written_sectors,
        })
    }
}
