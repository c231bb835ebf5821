//! Counters of a launch.

mod footprint;
mod l2;
pub mod traffic;

use serde_json::{Map, Value, json};

use crate::code::Class;
use crate::machine::grid::Grid;
use traffic::{Asked, Total};

/// Every class, with the name it has in the JSON.
const CLASSES: [(Class, &str); 17] = [
    (Class::Integer, "integer"),
    (Class::Float32, "float32"),
    (Class::Float64, "float64"),
    (Class::Half, "half"),
    (Class::Convert, "convert"),
    (Class::Move, "move"),
    (Class::Control, "control"),
    (Class::GlobalLoad, "global_load"),
    (Class::GlobalStore, "global_store"),
    (Class::SharedLoad, "shared_load"),
    (Class::SharedStore, "shared_store"),
    (Class::LocalMemory, "local_memory"),
    (Class::Atomic, "atomic"),
    (Class::Warp, "warp"),
    (Class::Barrier, "barrier"),
    (Class::Async, "async"),
    (Class::Matrix, "matrix"),
];

/// Bytes of a sector, the unit in which global memory is moved.
pub const SECTOR: u64 = 32;

/// Sums over a host thread's part of a launch, or over all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Operations of tensor cores, a multiply-add being two.
    pub matrix_flops: u64,
    /// Arrivals of warps at barriers.
    pub barriers: u64,
    /// Bytes that the lanes asked to load from global memory.
    pub load_bytes: u64,
    /// Bytes that the lanes asked to store to global memory.
    pub store_bytes: u64,
    /// Passes that shared memory needed for the accesses of warps: one for each 128 bytes without conflicts.
    pub shared_passes: u64,
    /// Passes beyond what the same bytes would have needed without bank conflicts.
    pub bank_conflicts: u64,
}

/// What one host thread counts for a launch; summed at its end.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// What is added up as it is.
    pub sums: Sums,
    /// Lanes that a guard left out, by class.
    pub(crate) masked: [u64; CLASSES.len()],
    /// Where each function's operations begin in the two lists below.
    first: Vec<u32>,
    /// For every operation, how many times more it was run than the operation before it: by warps, and in lanes.
    starts: Vec<(i64, i64)>,
    /// What was asked of every allocation; empty if that is not wanted.
    pub(crate) asked: Vec<Asked>,
}

impl Sums {
    fn add(&mut self, part: &Sums) {
        self.matrix_flops += part.matrix_flops;
        self.barriers += part.barriers;
        self.load_bytes += part.load_bytes;
        self.store_bytes += part.store_bytes;
        self.shared_passes += part.shared_passes;
        self.bank_conflicts += part.bank_conflicts;
    }
}

impl Counters {
    /// Zero.
    pub fn new(grid: &Grid<'_>) -> Counters {
        let mut first = Vec::with_capacity(grid.program.functions.len());
        let mut length = 0;
        for code in &grid.program.functions {
            first.push(length as u32);
            length += code.ops.len() + 1;
        }
        let asked = if grid.traffic.is_some() { vec![Asked::default(); grid.memory.len()] } else { Vec::new() };
        Counters { first, starts: vec![(0, 0); length], asked, ..Counters::default() }
    }

    /// `count` operations from `start` on were run by a group of lanes.
    #[inline(always)]
    pub fn ran(&mut self, function: u32, start: u32, count: u32, mask: u32) {
        let at = (self.first[function as usize] + start) as usize;
        let lanes = i64::from(mask.count_ones());
        let (from, to) = (at, at + count as usize);
        self.starts[from].0 += 1;
        self.starts[from].1 += lanes;
        self.starts[to].0 -= 1;
        self.starts[to].1 -= lanes;
    }
}

/// The counters of a whole launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Instructions of warps by class.
    pub instructions: [u64; CLASSES.len()],
    /// The same times the lanes that executed them.
    pub lane_operations: [u64; CLASSES.len()],
    /// What was added up as it is.
    pub sums: Sums,
    /// What was moved to and from global memory, if that was wanted.
    pub traffic: Option<Total>,
}

impl Totals {
    /// Adds up what the host threads counted.
    pub fn of(grid: &Grid<'_>, parts: &[Counters]) -> Totals {
        let mut totals = Totals::default();
        for part in parts {
            totals.sums.add(&part.sums);
            totals.operations(grid, part);
        }
        let asked = parts.iter().map(|part| part.asked.as_slice());
        totals.traffic = grid.traffic.as_ref().map(|traffic| traffic.total(&grid.memory, asked));
        totals
    }

    /// Instructions by class, from where the stretches of one host thread began and ended.
    fn operations(&mut self, grid: &Grid<'_>, part: &Counters) {
        for (code, first) in grid.program.functions.iter().zip(&part.first) {
            let (mut warps, mut lanes) = (0, 0);
            for (op, start) in code.ops.iter().zip(&part.starts[*first as usize..]) {
                warps += start.0;
                lanes += start.1;
                self.instructions[op.class as usize] += warps as u64;
                self.lane_operations[op.class as usize] += lanes as u64;
            }
        }
        for (sum, masked) in self.lane_operations.iter_mut().zip(part.masked) {
            *sum -= masked;
        }
    }

    /// Lane-operations of all classes.
    pub fn all_lane_operations(&self) -> u64 {
        self.lane_operations.iter().sum()
    }

    /// The JSON object that stands in the file of `CUDA_SIM_COUNTERS`.
    pub fn json(&self) -> Value {
        let by_class = |values: &[u64; CLASSES.len()]| {
            let named = CLASSES.iter().map(|&(class, name)| (name.to_string(), json!(values[class as usize])));
            Value::Object(named.collect::<Map<_, _>>())
        };
        let mut counters = json!({
            "instructions": by_class(&self.instructions),
            "lane_operations": by_class(&self.lane_operations),
            "matrix_flops": self.sums.matrix_flops,
            "barriers": self.sums.barriers,
            "global_load_bytes": self.sums.load_bytes,
            "global_store_bytes": self.sums.store_bytes,
        });
        if let Some(traffic) = &self.traffic {
            let asked = traffic.asked();
            let more = json!({
                "shared_passes": self.sums.shared_passes,
                "bank_conflicts": self.sums.bank_conflicts,
                "global_load_sectors": asked.load_sectors,
                "global_store_sectors": asked.store_sectors,
                "distinct_bytes": traffic.distinct_sectors * SECTOR,
                "dram_read_sectors": traffic.dram.read,
                "dram_write_sectors": traffic.dram.written,
            });
            if let (Value::Object(counters), Value::Object(more)) = (&mut counters, more) {
                counters.extend(more);
            }
        }
        counters
    }
}
