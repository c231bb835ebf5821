//! A warp: 32 lanes, their registers, and the groups into which divergence has split them.

use super::async_queue::WarpState;
use super::grid::Grid;
use super::{LANES, Row};
use crate::code::{Code, Guard};

/// Where a function's registers begin in the three files, and its local memory in each lane's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// First row of the 32-bit file, the 64-bit file and the predicates.
    pub registers: (usize, usize, usize),
    /// First byte of local memory.
    pub local: u32,
}

impl Window {
    /// The window of a function that `caller` calls. The callee's local memory begins where the caller's ends, so that
    /// the caller reaches the parameters, with which the callee's memory begins.
    pub fn callee(self, caller: &Code) -> Window {
        let (a, b, c) = self.registers;
        let (x, y, z) = caller.registers;
        Window {
            registers: (a + x as usize, b + y as usize, c + z as usize),
            local: self.local + caller.local_bytes.next_multiple_of(16),
        }
    }
}

/// A caller that waits for its callee to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The caller.
    pub function: u32,
    /// Its `call`; it goes on with the operation after it.
    pub pc: u32,
    /// Its window.
    pub window: Window,
}

/// Why a group does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// It runs.
    #[default]
    No,
    /// It lets other groups of its warp run first.
    Yielded,
    /// It has arrived at a barrier of its block and waits for the end of this generation.
    Barrier(u8, u32),
    /// This generation of the barrier has completed: the barrier instruction runs once more, to end.
    Released(u32),
    /// It is at `bar.warp.sync` and waits for these lanes to come to one, perhaps elsewhere in the program.
    Team(u32),
    /// It is at a collective instruction and waits for these lanes to come there.
    Converge(u32),
}

/// Lanes that run together.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Index of the next operation in the function that the group is in.
    pub pc: u32,
    /// Its lanes.
    pub mask: u32,
    /// The function that it is in.
    pub function: u32,
    /// Its callers, outermost first.
    pub frames: Vec<Frame>,
    /// The function's registers.
    pub window: Window,
    /// Why it does not run.
    pub wait: Wait,
}

/// The state of a warp.
#[derive(Default)]
pub struct Warp {
    /// 32-bit registers of all windows on the call stack.
    pub b32: Vec<Row<u32>>,
    /// 64-bit registers.
    pub b64: Vec<Row<u64>>,
    /// Predicates, a bit per lane.
    pub preds: Vec<u32>,
    /// Where the current group's registers begin in the three.
    pub window: (usize, usize, usize),
    /// Where the current group's local memory begins.
    pub local_base: u32,
    /// The groups of lanes that have not exited.
    pub groups: Vec<Group>,
    /// The group that runs.
    pub current: usize,
    /// Its number in the block.
    pub id: u32,
    /// `%tid` of its lanes.
    pub tid: [Row<u32>; 3],
    /// The lanes that have a thread.
    pub threads: u32,
    /// Local memory.
    pub local: Local,
    /// The allocation that the last access to global memory found.
    pub allocation: usize,
    /// Operations since its groups last changed while there were several.
    pub hogged: u32,
    /// The generation of the cluster's barrier at which it has arrived.
    pub cluster_generation: u32,
    /// Its asynchronous operations.
    pub pending: WarpState,
}

impl Warp {
    /// Those of some lanes that a guard lets through.
    #[inline(always)]
    pub fn guarded(&self, guard: Guard, lanes: u32) -> u32 {
        if guard == Guard::ALWAYS {
            return lanes;
        }
        let predicate = self.preds[self.window.2 + guard.predicate as usize];
        lanes & if guard.negated { !predicate } else { predicate }
    }

    /// Begins a kernel: all lanes with a thread at operation 0 of `function`.
    pub fn start(&mut self, id: u32, block_dim: [u32; 3], function: u32, code: &Code) {
        let threads = block_dim.iter().product::<u32>();
        self.id = id;
        self.threads = 0;
        for lane in 0..LANES as u32 {
            let thread = id * LANES as u32 + lane;
            let coordinates =
                [thread % block_dim[0], thread / block_dim[0] % block_dim[1], thread / block_dim[0] / block_dim[1]];
            for (row, value) in self.tid.iter_mut().zip(coordinates) {
                row[lane as usize] = value;
            }
            self.threads |= u32::from(thread < threads) << lane;
        }
        self.groups.clear();
        self.groups.push(Group { mask: self.threads, function, ..Group::default() });
        self.current = 0;
        self.enter(Window::default(), code);
        self.local.clear();
        self.cluster_generation = u32::MAX;
        self.hogged = 0;
        self.pending = WarpState::default();
    }

    /// Makes room for a function's registers and runs in its window.
    pub fn enter(&mut self, window: Window, code: &Code) {
        let (a, b, c) = window.registers;
        let (x, y, z) = code.registers;
        let grow = |have: usize, need: usize| if have < need { need } else { have };
        self.b32.resize(grow(self.b32.len(), a + x as usize), [0; LANES]);
        self.b64.resize(grow(self.b64.len(), b + y as usize), [0; LANES]);
        self.preds.resize(grow(self.preds.len(), c + z as usize), 0);
        self.window = window.registers;
        self.local_base = window.local;
    }

    /// Ends the waiting of groups that let others run first.
    pub fn wake(&mut self) {
        for group in &mut self.groups {
            if matches!(group.wait, Wait::Yielded | Wait::Converge(_)) {
                group.wait = Wait::No;
            }
        }
    }

    /// What its first group waits for, in words.
    pub(super) fn describe_wait(&self, grid: &Grid<'_>) -> String {
        let Some(group) = self.groups.first() else { return format!("warp {} has exited", self.id) };
        let line = self.place(grid).0;
        match group.wait {
            Wait::Barrier(id, _) => format!("warp {} waits at barrier {id} (PTX line {line})", self.id),
            Wait::Converge(_) | Wait::Team(_) => {
                format!("warp {} waits for its other lanes (PTX line {line})", self.id)
            }
            _ => format!("warp {} waits in vain (PTX line {line})", self.id),
        }
    }

    /// PTX line and source line of its first group.
    pub(super) fn place(&self, grid: &Grid<'_>) -> (u32, Option<(String, u32)>) {
        let Some(group) = self.groups.first() else { return (0, None) };
        let code = &grid.program.functions[group.function as usize];
        let line = code.ops.get(group.pc as usize).map_or(0, |op| op.line);
        let source = code.sources.get(group.pc as usize).filter(|s| s.1 != 0);
        (line, source.map(|&(file, line)| (grid.program.file(file).unwrap_or("?").to_string(), line)))
    }

    /// The lanes that have not exited.
    pub fn live(&self) -> u32 {
        self.groups.iter().fold(0, |mask, group| mask | group.mask)
    }
}

/// Local memory of a warp: a row per 4-byte word, so that lanes at the same address touch one row. It grows with use.
#[derive(Default)]
pub struct Local {
    rows: Vec<Row<u32>>,
}

impl Local {
    /// Bytes that a thread may have (CUDA Programming Guide, technical specifications).
    pub const LIMIT: u32 = 512 << 10;

    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// Makes room for `bytes` in every lane.
    #[inline(always)]
    pub fn reserve_to(&mut self, bytes: u32) {
        let words = bytes.div_ceil(4) as usize;
        if self.rows.len() < words {
            self.rows.resize(words.next_power_of_two(), [u32::MAX; LANES]);
        }
    }

    /// The rows, for accesses whose bounds the caller has checked.
    #[inline(always)]
    pub fn rows(&mut self) -> &mut [Row<u32>] {
        &mut self.rows
    }

    /// A byte of a lane.
    #[inline(always)]
    pub fn byte(&self, address: u32, lane: u32) -> u8 {
        (self.rows[address as usize / 4][lane as usize] >> (address % 4 * 8)) as u8
    }

    /// Writes a byte of a lane.
    #[inline(always)]
    pub fn set_byte(&mut self, address: u32, lane: u32, value: u8) {
        let word = &mut self.rows[address as usize / 4][lane as usize];
        let shift = address % 4 * 8;
        *word = *word & !(0xff << shift) | u32::from(value) << shift;
    }
}
