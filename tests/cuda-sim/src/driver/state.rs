//! The driver's objects, behind one lock.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::mem::ManuallyDrop;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use super::capture::Capture;
use super::errors::{CuResult, Error, Result};
use super::event::Event;
use super::findings;
use super::function::Function;
use super::graph::{Graph, NodeInfo};
use super::graph_exec::Exec;
use super::handles::{Handle, Kind, Table};
use super::host_memory::HostRange;
use super::memory::DeviceRange;
use super::module::Module;
use super::pool::Pool;
use super::queue::{Queue, Ticket};
use super::stream::Stream;
use super::tally::Tally;
use crate::device::{Config, Runs, Site};
use crate::memory::GlobalMemory;

/// A context: what is current in a thread, and what owns the other objects.
pub struct Context {
    /// `cuCtxCreate`'s flags.
    pub flags: u32,
    /// The result that every call has given since a kernel faulted.
    pub sticky: Option<CuResult>,
    /// The legacy default stream.
    pub legacy: Handle,
    /// The default streams of threads.
    pub per_thread: HashMap<ThreadId, Handle>,
    /// The last work of blocking streams that were destroyed: the legacy stream still waits for it.
    pub orphans: Vec<Ticket>,
    /// `cuCtxSetLimit`.
    pub limits: BTreeMap<u32, usize>,
    /// `cuCtxSetCacheConfig`.
    pub cache_config: u32,
    /// How its launches are run.
    pub runs: Runs,
    /// What was found in it since it was asked, if somebody does; else findings are printed.
    pub findings: Option<Vec<String>>,
}

/// The primary context of the device.
#[derive(Default)]
pub struct Primary {
    /// The context while it is retained.
    pub context: Option<Handle>,
    /// How often it is retained.
    pub retained: u32,
    /// Its flags.
    pub flags: u32,
}

/// Everything.
pub struct Driver {
    /// What the environment says; read again by `cuInit` while there is no context.
    pub config: Config,
    /// The device's memory.
    pub memory: Arc<GlobalMemory>,
    /// Contexts.
    pub contexts: Table<Context>,
    /// The primary one.
    pub primary: Primary,
    /// Modules.
    pub modules: Table<Module>,
    /// Kernels of modules.
    pub functions: Table<Function>,
    /// Streams.
    pub streams: Table<Stream>,
    /// Events.
    pub events: Table<Event>,
    /// Graphs.
    pub graphs: Table<Graph>,
    /// Which graph a node is in.
    pub nodes: Table<NodeInfo>,
    /// Executable graphs.
    pub execs: Table<Exec>,
    /// Memory pools.
    pub pools: Table<Pool>,
    /// The device's default pool and its current one.
    pub default_pool: Handle,
    /// The pool that `cuMemAllocAsync` takes from.
    pub current_pool: Handle,
    /// Captures under way.
    pub captures: BTreeMap<u64, Capture>,
    /// The next capture's number.
    pub next_capture: u64,
    /// Page-locked and managed host memory by address.
    pub host: BTreeMap<usize, HostRange>,
    /// Allocations of device memory by address.
    pub device: BTreeMap<u64, DeviceRange>,
    /// Work that has not run.
    pub queue: Queue,
    /// Kernels that run without the lock.
    pub kernels: usize,
    /// How often each site was passed, for injections.
    pub passed: BTreeMap<Site, u64>,
    /// Whether the device is lost.
    pub lost: bool,
    /// What was counted in the process, if there is a file for it.
    pub tally: Option<Tally>,
    /// What was counted since `cuda_sim_counters` was called, once it was.
    pub recent: Option<Tally>,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

/// Signalled whenever a piece of work is done that ran without the lock.
pub static WORK_DONE: Condvar = Condvar::new();

/// The lock on the driver.
pub struct Locked(MutexGuard<'static, Option<Driver>>);

impl std::ops::Deref for Locked {
    type Target = Driver;
    fn deref(&self) -> &Driver {
        // `lock` and `initialise` only give out guards of a driver that is there.
        self.0.as_ref().unwrap_or_else(|| unreachable!("the driver was checked when it was locked"))
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Driver {
        self.0.as_mut().unwrap_or_else(|| unreachable!("the driver was checked when it was locked"))
    }
}

impl Locked {
    /// Runs `f` without the lock, for callbacks into the program.
    pub fn unlocked<T>(self, f: impl FnOnce() -> T) -> (Locked, T) {
        drop(self);
        let result = f();
        (relock(), result)
    }

    /// Waits until no kernel runs.
    pub fn quiet(mut self) -> Locked {
        while self.kernels > 0 {
            self = self.wait();
        }
        self
    }

    /// Waits until another thread has done a piece of work.
    pub fn wait(self) -> Locked {
        Locked(WORK_DONE.wait(self.0).unwrap_or_else(PoisonError::into_inner))
    }
}

fn relock() -> Locked {
    // A panic inside a call is reported by its guard; the tables are whole between statements that can panic.
    Locked(DRIVER.lock().unwrap_or_else(PoisonError::into_inner))
}

/// `cuInit`: reads the environment, as long as no context lives by an earlier reading.
pub fn initialise() -> Result<()> {
    let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    if driver.as_ref().is_some_and(|d| d.contexts.len() > 0 || d.lost) {
        return Ok(());
    }
    let config = Config::from_env()?;
    match driver.as_mut() {
        None => *driver = Some(Driver::new(config)),
        Some(d) if d.config != config => d.reconfigure(config),
        Some(_) => {}
    }
    Ok(())
}

/// Locks the driver, which must be initialised; not from a callback of a stream, which may make no calls.
pub fn lock() -> Result<Locked> {
    if IN_CALLBACK.get() {
        return Err(Error::NotPermitted("a host function of a stream makes no CUDA calls"));
    }
    let driver = relock();
    if driver.0.is_none() {
        return Err(Error::NotInitialised);
    }
    Ok(driver)
}

/// Locks the driver and gives the current context, which must be alive and free of sticky errors.
pub fn current() -> Result<(Locked, Handle)> {
    let driver = lock()?;
    let handle = CURRENT.with_borrow(|stack| stack.last().copied()).unwrap_or_default();
    driver.usable(handle)?;
    Ok((driver, handle))
}

/// Locks the driver as it is: for the end of the process.
pub fn lock_at_exit() -> Option<Locked> {
    let driver = Locked(DRIVER.try_lock().ok()?);
    driver.0.is_some().then_some(driver)
}

thread_local! {
    /// The thread's stack of contexts. It is never dropped: programs free their memory in the destructors of their
    /// globals, which run after those of the thread.
    pub static CURRENT: RefCell<ManuallyDrop<Vec<Handle>>> = const { RefCell::new(ManuallyDrop::new(Vec::new())) };
    /// Whether the thread runs a host function of a stream.
    pub static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

impl Driver {
    fn new(config: Config) -> Driver {
        let mut pools = Table::new(Kind::Pool);
        let default_pool = pools.insert(Pool::default());
        Driver {
            memory: Arc::new(GlobalMemory::new(config.device.memory, config.runs.checks.init)),
            contexts: Table::new(Kind::Context),
            primary: Primary::default(),
            modules: Table::new(Kind::Module),
            functions: Table::new(Kind::Function),
            streams: Table::new(Kind::Stream),
            events: Table::new(Kind::Event),
            graphs: Table::new(Kind::Graph),
            nodes: Table::new(Kind::Node),
            execs: Table::new(Kind::Exec),
            pools,
            default_pool,
            current_pool: default_pool,
            captures: BTreeMap::new(),
            next_capture: 1,
            host: BTreeMap::new(),
            device: BTreeMap::new(),
            queue: Queue::default(),
            kernels: 0,
            passed: BTreeMap::new(),
            lost: false,
            tally: None,
            recent: None,
            config,
        }
    }

    /// Takes a new configuration while no context lives. Counters go on, so that one file tells of the whole process.
    fn reconfigure(&mut self, config: Config) {
        self.memory = Arc::new(GlobalMemory::new(config.device.memory, config.runs.checks.init));
        if self.config.failures != config.failures {
            self.passed.clear();
        }
        self.config = config;
    }

    /// How launches of a context are run.
    pub fn runs(&self, context: Handle) -> &Runs {
        self.contexts.get(context).map_or(&self.config.runs, |context| &context.runs)
    }

    /// Tells what was found in a context: those who ask it, or else standard error.
    pub fn found(&mut self, context: Handle, finding: String) {
        match self.contexts.get_mut(context) {
            Ok(Context { findings: Some(findings), .. }) => findings.push(finding),
            _ => findings::report(&finding),
        }
    }

    /// Whether calls work in a context.
    pub fn usable(&self, context: Handle) -> Result<()> {
        if context.is_null() {
            return Err(Error::NoContext);
        }
        if self.lost {
            return Err(Error::Lost);
        }
        match self.contexts.get(context) {
            Err(_) => Err(Error::ContextDestroyed),
            Ok(Context { sticky: Some(result), .. }) => Err(Error::Sticky(*result)),
            Ok(_) => Ok(()),
        }
    }

    /// Passes a site where `CUDA_SIM_FAIL` may strike; whether it does.
    pub fn strikes(&mut self, site: Site) -> bool {
        let count = self.passed.entry(site).or_insert(0);
        *count += 1;
        let failures = self.config.failures.iter().filter(|f| f.site == site);
        let mut struck = failures.filter(|f| f.number == *count || f.onwards && *count >= f.number);
        struck.next().is_some()
    }

    /// Fails where `CUDA_SIM_FAIL` says so.
    pub fn pass(&mut self, site: Site) -> Result<()> {
        if self.strikes(site) { Err(Error::Injected(site)) } else { Ok(()) }
    }
}
