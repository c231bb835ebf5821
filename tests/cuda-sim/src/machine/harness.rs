//! Launches kernels that tests give as PTX.

use super::fault::Fault;
use super::grid::Launch;
use super::schedule::{AsyncTiming, Schedule};
use super::{Report, launch};
use crate::check::Checks;
use crate::memory::{GlobalMemory, Origin};
use crate::program::Program;

pub const NONE: Checks = Checks { mem: true, init: false, race: false, sync: true, leak: false };

/// A module with one kernel `k`, and how to launch it.
pub struct Kernel {
    pub program: Program,
    pub memory: GlobalMemory,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub params: Vec<u8>,
    pub checks: Checks,
    pub cooperative: bool,
    pub cluster: [u32; 3],
    pub count: Option<u64>,
}

impl Kernel {
    pub fn new(params: &str, body: &str) -> Kernel {
        Kernel::module(&format!(".visible .entry k({params}) {{ {body} }}"))
    }

    pub fn module(text: &str) -> Kernel {
        let text = format!(".version 9.0\n.target sm_90a\n.address_size 64\n{text}");
        let memory = GlobalMemory::new(1 << 28, true);
        let program = Program::load(&text, &mut |v| memory.allocate(v.size, v.align as u64, Origin::Alloc));
        let program = program.unwrap_or_else(|e| panic!("{e}"));
        for v in &program.variables {
            memory.write(v.address, &v.initial).unwrap();
        }
        let (grid, block) = ([1; 3], [32, 1, 1]);
        let (params, cooperative, cluster) = (Vec::new(), false, [1; 3]);
        Kernel { program, memory, grid, block, params, checks: NONE, cooperative, cluster, count: None }
    }

    pub fn shape(mut self, grid: u32, block: u32) -> Kernel {
        (self.grid, self.block) = ([grid, 1, 1], [block, 1, 1]);
        self
    }

    /// A buffer of `words` as the next parameter; its address.
    pub fn buffer(&mut self, words: &[u32]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let address = self.memory.allocate(bytes.len() as u64, 1, Origin::Alloc).unwrap();
        self.memory.write(address, &bytes).unwrap();
        self.params.extend(address.to_le_bytes());
        address
    }

    pub fn read(&self, address: u64, words: usize) -> Vec<u32> {
        let mut bytes = vec![0; words * 4];
        self.memory.read(address, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    pub fn run_as(&self, seed: u64, threads: usize) -> Result<Report, Box<Fault>> {
        let entry = &self.program.entries["k"];
        launch(&Launch {
            grid: self.grid,
            block: self.block,
            params: &self.params,
            checks: self.checks,
            cooperative: self.cooperative,
            cluster: self.cluster,
            count: self.count,
            multiprocessors: 4,
            schedule: Schedule { seed, async_timing: AsyncTiming::Late, threads },
            ..Launch::of(&self.program, "k", entry, &self.memory)
        })
    }

    pub fn run(&self) -> Report {
        self.run_as(0, 1).unwrap_or_else(|fault| panic!("{fault}"))
    }

    pub fn fault(&self) -> Fault {
        match self.run_as(0, 1) {
            Ok(_) => panic!("no fault"),
            Err(fault) => *fault,
        }
    }
}

/// Loads the parameter `p` into `%rd0` and the thread's index into `%r0`, its address in `p` into `%rd1`.
pub const HEAD: &str = "
    .reg .b32 %r<32>; .reg .b64 %rd<16>; .reg .pred %p<8>; .reg .f32 %f<8>; .reg .b16 %h<8>;
    ld.param.u64 %rd0, [p];
    mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.s32 %r0, %r1, %r2, %r0;
    mul.wide.u32 %rd1, %r0, 4; add.s64 %rd1, %rd0, %rd1;
";

pub fn kernel(body: &str) -> Kernel {
    Kernel::new(".param .u64 p", &format!("{HEAD} {body} ret;"))
}
