//! Runs a kernel of a fixture as an engine would: through the driver API, on the simulator under a choice of checks and
//! schedules, or once on a GPU.

use std::ffi::CString;
use std::fmt;

use cuda_sim::machine::fault::Kind;
use cudarc::driver::result;

use crate::device::{self, Context, Module};
use crate::numbers::Pod;

/// What a scenario found wrong.
#[derive(Debug)]
pub enum Finding {
    /// A launch failed: what the simulator has to say of it, or the driver's error.
    Fault(String),
    /// A result differs from the reference.
    Wrong(String),
    /// A result differs from the one under the first schedule.
    Unstable(String),
}

impl Finding {
    /// Whether it is a fault of a kind.
    pub fn is(&self, kind: Kind) -> bool {
        matches!(self, Finding::Fault(text) if text.starts_with(&format!("cuda-sim: {}: ", kind.describe())))
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

/// The outcome of a scenario.
pub type Outcome = Result<(), Finding>;

/// Fails a scenario unless the results are as they should be.
pub fn expect(right: bool, message: impl FnOnce() -> String) -> Outcome {
    if right { Ok(()) } else { Err(Finding::Wrong(message())) }
}

/// A use of a fixture's kernel: uploads, launches, downloads, compares.
pub type Scenario = fn(&mut Session) -> Outcome;

/// The bytes of a kernel argument.
pub struct Arg(Vec<u8>);

macro_rules! arg {
    ($($number:ty),*) => {
        $(impl From<$number> for Arg {
            fn from(value: $number) -> Arg {
                Arg(value.to_le_bytes().to_vec())
            }
        })*
    };
}

arg!(i32, u32, f32, u64);

impl From<Vec<u8>> for Arg {
    fn from(bytes: Vec<u8>) -> Arg {
        Arg(bytes)
    }
}

impl From<[u8; 128]> for Arg {
    fn from(bytes: [u8; 128]) -> Arg {
        Arg(bytes.to_vec())
    }
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

/// How the simulator runs the launches of a scenario: variables of the context.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    seed: &'static str,
    copies: &'static str,
}

/// Every check but that for leaks: a scenario leaves its memory to the end of its context.
pub const ALL: &str = "mem,init,race,sync";

/// One run of a scenario: a context with a module loaded.
pub struct Session {
    context: Context,
    module: Module,
    /// What was downloaded, to compare schedules bitwise.
    downloaded: Vec<u8>,
}

impl Session {
    /// Loads a PTX text into an empty context. On a GPU there are no checks and schedules to choose.
    pub fn new(text: &str, checks: &str, schedule: Schedule) -> Session {
        let context = Context::new();
        if !device::is_gpu() {
            context.set("CUDA_SIM_CHECK", checks);
            context.set("CUDA_SIM_SEED", schedule.seed);
            context.set("CUDA_SIM_COPIES", schedule.copies);
            context.findings();
        }
        Session { context, module: Module::new(text), downloaded: Vec::new() }
    }

    /// Copies values to a new allocation.
    pub fn upload<T: Pod>(&mut self, values: &[T]) -> u64 {
        let address = self.alloc::<T>(values.len());
        unsafe { result::memcpy_htod_sync(address, &T::bytes(values)) }.expect("it was allocated");
        address
    }

    /// A new allocation that nothing has written.
    pub fn alloc<T: Pod>(&mut self, count: usize) -> u64 {
        unsafe { result::malloc_sync(count * T::SIZE) }.expect("the device is large enough")
    }

    /// A new allocation of zeros.
    pub fn zeros<T: Pod>(&mut self, count: usize) -> u64 {
        let address = self.alloc::<T>(count);
        unsafe { result::memset_d8_sync(address, 0, count * T::SIZE) }.expect("it was allocated");
        address
    }

    /// Frees an allocation.
    pub fn free(&mut self, address: u64) {
        unsafe { result::free_sync(address) }.expect("it was allocated");
    }

    /// Runs a kernel to its end.
    pub fn launch(&mut self, name: &str, shape: Shape, args: &[Arg]) -> Outcome {
        let kernel = self.module.kernel(&CString::new(name).expect("a name"));
        let mut arguments: Vec<Vec<u8>> = args.iter().map(|arg| arg.0.clone()).collect();
        let outcome = kernel.launch(shape, &mut arguments).and_then(|()| self.context.synchronize());
        outcome.map_err(|error| {
            let findings = if device::is_gpu() { String::new() } else { self.context.findings() };
            Finding::Fault(if findings.is_empty() { format!("{name}: {error:?}") } else { findings })
        })
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
        unsafe { result::memcpy_dtoh_sync(&mut bytes, address) }.expect("it was allocated");
        bytes
    }
}

/// The PTX text of a fixture.
pub fn fixture(name: &str) -> String {
    let path = format!("{}/fixtures/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The default sweep: the plain order with copies late and early, then shuffled orders. A GPU has its own.
fn schedules() -> Vec<Schedule> {
    let of = |(seed, copies)| Schedule { seed, copies };
    let all = [("0", "late"), ("0", "early"), ("1", "late"), ("2", "early"), ("3", "random"), ("4", "random")];
    all[..if device::is_gpu() { 1 } else { all.len() }].iter().copied().map(of).collect()
}

/// Everything that the scenario finds under the default sweep.
pub fn sweep(text: &str, scenario: Scenario, checks: &str) -> Vec<Finding> {
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

/// The scenario finds nothing wrong, under any schedule, with all checks. What the device cannot run is left out.
pub fn run(name: &str, scenario: Scenario) {
    let text = fixture(name);
    if let Some(reason) = device::unfit(&text) {
        eprintln!("{name}: skipped: {reason}");
        return;
    }
    let findings = sweep(&text, scenario, ALL);
    assert!(findings.is_empty(), "{name}: {}", findings.iter().map(|f| format!("\n  {f}")).collect::<String>());
}
