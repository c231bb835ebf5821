//! Faults: what ends a launch, and what the checks find.

use std::fmt;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An access outside every allocation, or past the end of shared, local or parameter memory.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// An access to memory that was freed.
    UseAfterFree,
    /// A read of bytes that nothing has written.
    UninitialisedRead,
    /// Two accesses, one of them a write, that nothing orders.
    Race,
    /// Nothing can make progress.
    Deadlock,
    /// A barrier, or another collective instruction, that the threads of a warp or block do not reach together.
    DivergentBarrier,
    /// `trap`
    Trap,
    /// `brkpt`
    Breakpoint,
    /// `__assertfail`
    Assert,
    /// Calls too deep for the local memory.
    StackOverflow,
    /// Operands that the PTX ISA gives no meaning: a bad barrier count, descriptor, tensor map or state of an mbarrier.
    InvalidOperation,
    /// Behaviour that PTX allows and this simulator does not model.
    Unsupported,
    /// A launch whose shape or resources the device does not have.
    InvalidLaunch,
    /// An asynchronous operation that the kernel left unfinished or read too early.
    Async,
}

impl Kind {
    /// A few words for the report.
    pub fn describe(self) -> &'static str {
        match self {
            Kind::OutOfBounds => "out of bounds",
            Kind::Misaligned => "misaligned address",
            Kind::UseAfterFree => "use after free",
            Kind::UninitialisedRead => "uninitialised read",
            Kind::Race => "race",
            Kind::Deadlock => "deadlock",
            Kind::DivergentBarrier => "divergent barrier",
            Kind::Trap => "trap",
            Kind::Breakpoint => "breakpoint",
            Kind::Assert => "assertion failed",
            Kind::StackOverflow => "stack overflow",
            Kind::InvalidOperation => "invalid operation",
            Kind::Unsupported => "unsupported",
            Kind::InvalidLaunch => "invalid launch",
            Kind::Async => "unfinished asynchronous operation",
        }
    }
}

/// A fault and where it happened. It displays as one line that begins `cuda-sim: `.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What went wrong.
    pub kind: Kind,
    /// The kernel that was launched.
    pub kernel: String,
    /// The function that ran, if it is not the kernel itself.
    pub function: Option<String>,
    /// PTX line, 0 if unknown.
    pub line: u32,
    /// Source file and line, when the PTX has them.
    pub source: Option<(String, u32)>,
    /// The block.
    pub block: Option<[u32; 3]>,
    /// The warp in its block.
    pub warp: Option<u32>,
    /// The lane in its warp.
    pub lane: Option<u32>,
    /// The address, in its state space.
    pub address: Option<u64>,
    /// The allocation or state space that the address is in or near.
    pub allocation: Option<String>,
    /// What happened, without the place.
    pub message: String,
}

impl Fault {
    /// A fault of unknown place.
    pub fn new(kind: Kind, message: impl Into<String>) -> Fault {
        Fault {
            kind,
            kernel: String::new(),
            function: None,
            line: 0,
            source: None,
            block: None,
            warp: None,
            lane: None,
            address: None,
            allocation: None,
            message: message.into(),
        }
    }

    /// The same at a lane.
    pub fn at_lane(mut self, lane: u32) -> Fault {
        self.lane = Some(lane);
        self
    }

    /// The same with an address and what is there.
    pub fn at_address(mut self, address: u64, allocation: impl Into<String>) -> Fault {
        self.address = Some(address);
        self.allocation = Some(allocation.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda-sim: {}: {}", self.kind.describe(), self.message.replace('\n', " "))?;
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        if let Some(allocation) = &self.allocation {
            write!(f, " ({allocation})")?;
        }
        if !self.kernel.is_empty() {
            write!(f, ", kernel {}", self.kernel)?;
        }
        if let Some(function) = &self.function {
            write!(f, ", function {function}")?;
        }
        if self.line != 0 {
            write!(f, ", PTX line {}", self.line)?;
        }
        if let Some((file, line)) = &self.source {
            write!(f, ", source {file}:{line}")?;
        }
        if let Some([x, y, z]) = self.block {
            write!(f, ", block ({x},{y},{z})")?;
        }
        if let Some(warp) = self.warp {
            write!(f, ", warp {warp}")?;
        }
        if let Some(lane) = self.lane {
            write!(f, ", lane {lane}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
