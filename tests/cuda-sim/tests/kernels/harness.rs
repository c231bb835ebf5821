//! Runs a kernel of a fixture as an engine would, under a choice of checks and schedules.

use std::fmt;

use cuda_sim::device::Checks;
use cuda_sim::machine::fault::{Fault, Kind};
use cuda_sim::machine::grid::Launch;
use cuda_sim::machine::launch;
use cuda_sim::machine::schedule::{AsyncTiming, Schedule};
use cuda_sim::memory::{GlobalMemory, Origin};
use cuda_sim::program::Program;

use crate::numbers::Pod;

/// What a scenario found wrong.
#[derive(Debug)]
pub enum Finding {
    /// The simulator reported a fault.
    Fault(Box<Fault>),
    /// A result differs from the reference.
    Wrong(String),
    /// A result differs from the one under the first schedule.
    Unstable(String),
}

impl Finding {
    /// The fault's kind, if it is one.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Finding::Fault(fault) => Some(fault.kind),
            _ => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Fault(fault) => write!(f, "{fault}"),
            Finding::Wrong(what) => write!(f, "wrong result: {what}"),
            Finding::Unstable(what) => write!(f, "depends on the schedule: {what}"),
        }
    }
}

impl From<Box<Fault>> for Finding {
    fn from(fault: Box<Fault>) -> Finding {
        Finding::Fault(fault)
    }
}

/// The outcome of a scenario.
pub type Outcome = Result<(), Finding>;

/// Fails a scenario unless the results are as they should be.
pub fn expect(right: bool, message: impl FnOnce() -> String) -> Outcome {
    if right { Ok(()) } else { Err(Finding::Wrong(message())) }
}

/// A use of a fixture's kernel: uploads, launches, downloads, compares.
pub type Scenario = fn(&mut Session) -> Outcome;

/// A kernel argument.
pub enum Arg {
    Word(u32),
    Long(u64),
    Bytes(Vec<u8>),
}

macro_rules! arg {
    ($($from:ty => $make:expr),* $(,)?) => {
        $(impl From<$from> for Arg {
            fn from(value: $from) -> Arg {
                $make(value)
            }
        })*
    };
}

arg! {
    i32 => |v: i32| Arg::Word(v as u32),
    u32 => Arg::Word,
    f32 => |v: f32| Arg::Word(v.to_bits()),
    u64 => Arg::Long,
    Vec<u8> => Arg::Bytes,
    [u8; 128] => |v: [u8; 128]| Arg::Bytes(v.to_vec()),
}

/// The arguments of a launch.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { [$($crate::harness::Arg::from($value)),*] };
}

/// The shape of a launch.
#[derive(Clone, Copy, Default)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub cooperative: bool,
    /// Blocks of a cluster, where the kernel does not say; zeros for none.
    pub cluster: [u32; 3],
}

/// Blocks and threads in one dimension.
pub fn line(blocks: usize, threads: u32) -> Shape {
    Shape { grid: [blocks as u32, 1, 1], block: [threads, 1, 1], ..Shape::default() }
}

/// Blocks in two dimensions, threads in one.
pub fn plane(x: usize, y: usize, threads: u32) -> Shape {
    Shape { grid: [x as u32, y as u32, 1], ..line(1, threads) }
}

impl Shape {
    /// The same with dynamic shared memory.
    pub fn shared(self, bytes: usize) -> Shape {
        Shape { dynamic_shared: bytes as u32, ..self }
    }
}

/// One run of a scenario: a device with a module loaded.
pub struct Session {
    memory: GlobalMemory,
    program: Program,
    checks: Checks,
    schedule: Schedule,
    /// What was downloaded, to compare schedules bitwise.
    downloaded: Vec<u8>,
}

impl Session {
    /// Loads a PTX text into an empty device.
    pub fn new(text: &str, checks: Checks, schedule: Schedule) -> Session {
        let memory = GlobalMemory::new(1 << 30, checks.init);
        let program =
            Program::load(text, &mut |v| memory.allocate(v.size, v.align.into(), Origin::Variable(v.name.clone())))
                .unwrap_or_else(|error| panic!("{error}"));
        for variable in &program.variables {
            let mut bytes = variable.initial.clone();
            bytes.resize(variable.size as usize, 0);
            memory.write(variable.address, &bytes).expect("the variable was allocated");
        }
        Session { memory, program, checks, schedule, downloaded: Vec::new() }
    }

    /// Copies values to a new allocation.
    pub fn upload<T: Pod>(&mut self, values: &[T]) -> u64 {
        let address = self.alloc::<T>(values.len());
        self.memory.write(address, &T::bytes(values)).expect("it was allocated");
        address
    }

    /// A new allocation that nothing has written.
    pub fn alloc<T: Pod>(&mut self, count: usize) -> u64 {
        self.memory.allocate((count * T::SIZE) as u64, 256, Origin::Alloc).expect("the device is large enough")
    }

    /// A new allocation of zeros.
    pub fn zeros<T: Pod>(&mut self, count: usize) -> u64 {
        let address = self.alloc::<T>(count);
        self.memory.write(address, &vec![0; count * T::SIZE]).expect("it was allocated");
        address
    }

    /// Frees an allocation.
    pub fn free(&mut self, address: u64) {
        self.memory.free(address).expect("it was allocated");
    }

    /// Runs a kernel to its end.
    pub fn launch(&mut self, name: &str, shape: Shape, args: &[Arg]) -> Outcome {
        let entry =
            self.program.entries.get(name).unwrap_or_else(|| panic!("no kernel `{name}` in the fixture")).clone();
        let mut params = vec![0; entry.param_bytes as usize];
        assert_eq!(args.len(), entry.params.len(), "arguments of {name}");
        for (arg, param) in args.iter().zip(&entry.params) {
            let bytes = match arg {
                Arg::Word(v) => v.to_le_bytes().to_vec(),
                Arg::Long(v) => v.to_le_bytes().to_vec(),
                Arg::Bytes(v) => v.clone(),
            };
            assert_eq!(bytes.len(), param.size as usize, "size of the argument at {} of {name}", param.offset);
            params[param.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        let workspace = if shape.cooperative { self.zeros::<u32>(16) } else { 0 };
        const HEAP: usize = 1 << 16;
        let heap = if self.program.uses_heap() { (self.alloc::<u8>(HEAP), HEAP as u64) } else { (0, 0) };
        launch(&Launch {
            grid: shape.grid,
            block: shape.block,
            dynamic_shared: shape.dynamic_shared,
            cooperative: shape.cooperative,
            params: &params,
            multiprocessors: 4,
            checks: self.checks,
            schedule: self.schedule,
            workspace,
            heap,
            cluster: entry.cluster.unwrap_or(shape.cluster).map(|n| n.max(1)),
            ..Launch::of(&self.program, name, &entry, &self.memory)
        })?;
        Ok(())
    }

    /// Copies results back; they must be the same under every schedule.
    pub fn download<T: Pod>(&mut self, address: u64, count: usize) -> Vec<T> {
        let bytes = self.read(address, count * T::SIZE);
        self.downloaded.extend_from_slice(&bytes);
        T::values(&bytes)
    }

    /// Copies back results whose order or last bits are left to the schedule.
    pub fn download_unordered<T: Pod>(&mut self, address: u64, count: usize) -> Vec<T> {
        T::values(&self.read(address, count * T::SIZE))
    }

    fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read(address, &mut bytes).expect("it was allocated");
        bytes
    }
}

/// The PTX text of a fixture.
pub fn fixture(name: &str) -> String {
    let path = format!("{}/fixtures/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The default sweep: the plain order with copies late and early, then shuffled orders.
pub fn schedules() -> Vec<Schedule> {
    use AsyncTiming::{Early, Late, Random};
    let of = |(seed, async_timing)| Schedule { seed, async_timing, threads: 2 };
    [(0, Late), (0, Early), (1, Late), (2, Early), (3, Random), (4, Random)].map(of).to_vec()
}

/// Everything that the scenario finds under the default sweep.
pub fn sweep(text: &str, scenario: Scenario, checks: Checks) -> Vec<Finding> {
    let mut first: Option<Vec<u8>> = None;
    let mut findings = Vec::new();
    for schedule in schedules() {
        let mut session = Session::new(text, checks, schedule);
        match (scenario(&mut session), &first) {
            (Err(finding), _) => findings.push(finding),
            (Ok(()), None) => first = Some(session.downloaded),
            (Ok(()), Some(first)) if *first != session.downloaded => {
                let at = first.iter().zip(&session.downloaded).position(|(a, b)| a != b);
                findings.push(Finding::Unstable(format!("{schedule:?}, byte {at:?} of the results")));
            }
            _ => {}
        }
    }
    findings
}

/// The scenario finds nothing wrong, under any schedule, with all checks.
pub fn run(name: &str, scenario: Scenario) {
    let findings = sweep(&fixture(name), scenario, Checks::ALL);
    assert!(findings.is_empty(), "{name}: {}", findings.iter().map(|f| format!("\n  {f}")).collect::<String>());
}
