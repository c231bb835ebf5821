//! The device that is modelled and how it is watched, as the environment says.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `CUDA_SIM_CC` | compute capability, `8.0`, `8.6`, `8.9`, `9.0`, `10.0` or `12.0` | `9.0` |
//! | `CUDA_SIM_SMS` | streaming multiprocessors | as a part of the capability |
//! | `CUDA_SIM_MEMORY` | bytes of global memory, with `K`, `M` or `G` | `16G` |
//! | `CUDA_SIM_L2` | bytes of the level 2 cache, for the counters, with `K`, `M` or `G` | as the capability's part |
//! | `CUDA_SIM_CHECK` | `all`, `none`, or a list of `mem`, `init`, `race`, `sync`, `leak` | `mem,sync,leak` |
//! | `CUDA_SIM_SEED` | the order of warps, blocks, streams and async copies | `0`: the plain order |
//! | `CUDA_SIM_COPIES` | when asynchronous copies land: `late`, `early` or `random` | as the seed says; `late` for 0 |
//! | `CUDA_SIM_SWEEP` | schedules under which every launch is run and compared | `1` |
//! | `CUDA_SIM_THREADS` | host threads that run blocks | as the machine has |
//! | `CUDA_SIM_COUNTERS` | a file for the counters, JSON | none |
//! | `CUDA_SIM_FAIL` | failures to inject, see [`Failure`] | none |
//! | `CUDA_SIM_DRIVER` | the version of an older driver, such as `12.4` | 13.0 |

use std::path::PathBuf;

/// What is modelled of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Bytes of global memory.
    pub memory: u64,
    /// Shared memory that a block may use without asking, static and dynamic together.
    pub shared_per_block: u32,
    /// Shared memory that a block may use after `cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES)`.
    pub shared_per_block_optin: u32,
    /// Shared memory of a multiprocessor.
    pub shared_per_sm: u32,
    /// Resident threads of a multiprocessor.
    pub threads_per_sm: u32,
    /// Resident blocks of a multiprocessor.
    pub blocks_per_sm: u32,
    /// Level 2 cache, bytes.
    pub l2: u32,
}

/// Threads of a block at most, on every capability.
pub const THREADS_PER_BLOCK: u32 = 1024;
/// Block dimensions at most.
pub const BLOCK_DIM: [u32; 3] = [1024, 1024, 64];
/// Grid dimensions at most.
pub const GRID_DIM: [u32; 3] = [0x7fff_ffff, 65535, 65535];
/// Shared memory that the system keeps of every block, from compute capability 8.0.
pub const RESERVED_SHARED: u32 = 1024;
/// 32-bit registers of a multiprocessor, and of a block at most.
pub const REGISTERS: u32 = 65536;

/// Compute capability, SMs, and shared memory (KiB per SM), threads, blocks per SM, L2 (MiB): CUDA Programming Guide,
/// technical specifications per compute capability; SMs and L2 of a part that has it: RTX 2080 Ti, A100, GA102, RTX 4090, H100, B200,
/// RTX 5090.
type Model = ((u32, u32), u32, u32, u32, u32, u32);

const MODELS: &[Model] = &[
    ((7, 5), 68, 64, 1024, 16, 6),
    ((8, 0), 108, 164, 2048, 32, 40),
    ((8, 6), 84, 100, 1536, 16, 6),
    ((8, 9), 128, 100, 1536, 24, 72),
    ((9, 0), 132, 228, 2048, 32, 50),
    ((10, 0), 148, 228, 2048, 32, 126),
    ((12, 0), 170, 100, 1536, 24, 96),
];

impl Device {
    /// The model of a compute capability, if there is one.
    pub fn of(capability: (u32, u32)) -> Option<Device> {
        MODELS.iter().find(|model| model.0 == capability).map(Device::model)
    }

    fn model(&(capability, sms, shared, threads_per_sm, blocks_per_sm, l2): &Model) -> Device {
        Device {
            capability,
            sms,
            memory: 16 << 30,
            shared_per_block: 48 << 10,
            shared_per_block_optin: (shared << 10) - if capability < (8, 0) { 0 } else { RESERVED_SHARED },
            shared_per_sm: shared << 10,
            threads_per_sm,
            blocks_per_sm,
            l2: l2 << 20,
        }
    }
}

impl Default for Device {
    fn default() -> Device {
        Device::model(&MODELS[4])
    }
}

/// What is looked for while kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Bounds, alignment, use after free.
    pub mem: bool,
    /// Reads of memory that nothing has written.
    pub init: bool,
    /// Shared and global races inside a launch.
    pub race: bool,
    /// Divergent or mismatched barriers, deadlock.
    pub sync: bool,
    /// Memory that is still allocated when its context ends.
    pub leak: bool,
}

impl Checks {
    /// Everything.
    pub const ALL: Checks = Checks { mem: true, init: true, race: true, sync: true, leak: true };
    /// Nothing. An access outside of every allocation is an error all the same.
    pub const NONE: Checks = Checks { mem: false, init: false, race: false, sync: false, leak: false };

    fn parse(text: &str) -> Option<Checks> {
        match text {
            "all" | "1" => return Some(Checks::ALL),
            "none" | "0" => return Some(Checks::NONE),
            _ => {}
        }
        let mut checks = Checks::NONE;
        for name in list(text) {
            match name {
                "mem" => checks.mem = true,
                "init" => checks.init = true,
                "race" => checks.race = true,
                "sync" => checks.sync = true,
                "leak" => checks.leak = true,
                _ => return None,
            }
        }
        Some(checks)
    }
}

impl Default for Checks {
    fn default() -> Checks {
        Checks { mem: true, sync: true, leak: true, ..Checks::NONE }
    }
}

/// Where an injected failure strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// An allocation of device memory (out of memory).
    Alloc,
    /// An allocation of pinned host memory (out of memory).
    Pinned,
    /// A module that is loaded (out of memory).
    Module,
    /// A copy or a fill, when it is issued (invalid value).
    Copy,
    /// A launch, when it is issued (out of resources): the context lives on.
    Launch,
    /// A kernel that faults when it runs (illegal address): the context is dead from then on.
    Sticky,
    /// A kernel during which memory fails (uncorrectable ECC error): the context is dead from then on.
    Ecc,
    /// A kernel during which the device is lost: no call works until the process ends.
    Lost,
}

/// A failure to inject: `CUDA_SIM_FAIL=alloc=3,launch=2` fails the third allocation and the second launch, `alloc=3+`
/// the third and all that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What fails.
    pub site: Site,
    /// Which one, counted from 1 in the process.
    pub number: u64,
    /// Whether all that follow fail too.
    pub onwards: bool,
}

impl Failure {
    fn parse(text: &str) -> Option<Failure> {
        let (name, number) = text.split_once('=')?;
        let site = match name {
            "alloc" => Site::Alloc,
            "pinned" => Site::Pinned,
            "module" => Site::Module,
            "copy" => Site::Copy,
            "launch" => Site::Launch,
            "sticky" => Site::Sticky,
            "ecc" => Site::Ecc,
            "lost" => Site::Lost,
            _ => return None,
        };
        let (number, onwards) = match number.strip_suffix('+') {
            Some(number) => (number, true),
            None => (number, false),
        };
        let number = number.parse().ok().filter(|&n| n > 0)?;
        Some(Failure { site, number, onwards })
    }
}

/// How early asynchronous copies land.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AsyncTiming {
    /// When something waits for them.
    #[default]
    Late,
    /// At once.
    Early,
    /// At any time between.
    Random,
}

/// How launches are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    /// What is looked for.
    pub checks: Checks,
    /// The schedule; 0 is the plain one.
    pub seed: u64,
    /// When asynchronous copies land, if that is not left to the seed.
    pub copies: Option<AsyncTiming>,
    /// Schedules per launch.
    pub sweep: u32,
    /// Host threads.
    pub threads: usize,
}

impl Default for Runs {
    fn default() -> Runs {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Runs { checks: Checks::default(), seed: 0, copies: None, sweep: 1, threads }
    }
}

impl Runs {
    /// Takes one of the variables `CUDA_SIM_CHECK`, `_SEED`, `_COPIES`, `_SWEEP` and `_THREADS` with its value.
    pub fn set(&mut self, variable: &str, value: &str) -> Result<(), ConfigError> {
        if !["CHECK", "SEED", "COPIES", "SWEEP", "THREADS"].iter().any(|v| variable == format!("CUDA_SIM_{v}")) {
            let (variable, value) = (variable.to_string(), value.to_string());
            return Err(ConfigError { variable, value, expected: "a variable that says how launches are run" });
        }
        self.read(&Reader { variable: &|name| (name == variable).then(|| value.to_string()) })
    }

    fn read(&mut self, get: &Reader<'_>) -> Result<(), ConfigError> {
        let expected = "all, none, or a list of mem, init, race, sync, leak";
        self.checks = get.value("CUDA_SIM_CHECK", expected, Checks::parse)?.unwrap_or(self.checks);
        self.seed = get.value("CUDA_SIM_SEED", "a number", |text| text.parse().ok())?.unwrap_or(self.seed);
        let timing = |text: &str| match text {
            "late" => Some(AsyncTiming::Late),
            "early" => Some(AsyncTiming::Early),
            "random" => Some(AsyncTiming::Random),
            _ => None,
        };
        self.copies = get.value("CUDA_SIM_COPIES", "late, early or random", timing)?.or(self.copies);
        let sweep = get.value("CUDA_SIM_SWEEP", "a number from 1 to 1000", |text| number(text, 1..=1000))?;
        self.sweep = sweep.map_or(self.sweep, |n| n as u32);
        let threads = get.value("CUDA_SIM_THREADS", "a number from 1 to 1024", |text| number(text, 1..=1024))?;
        self.threads = threads.map_or(self.threads, |n| n as usize);
        Ok(())
    }
}

/// Everything that the environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The device.
    pub device: Device,
    /// How launches are run, unless a context says otherwise.
    pub runs: Runs,
    /// Where the counters go.
    pub counters: Option<PathBuf>,
    /// Failures to inject.
    pub failures: Vec<Failure>,
    /// The version of CUDA that the driver is for, if it is to be an older one: it says so and takes no newer PTX.
    pub driver: Option<(u32, u32)>,
}

/// What `CUDA_SIM_FAIL` says.
pub fn failures(text: &str) -> Result<Vec<Failure>, ConfigError> {
    let get = Reader { variable: &|_| Some(text.to_string()).filter(|text| !text.is_empty()) };
    get.failures()
}

/// A variable of the environment that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value}: {expected}")]
pub struct ConfigError {
    variable: String,
    value: String,
    expected: &'static str,
}

impl Config {
    /// What the process's environment says.
    pub fn from_env() -> Result<Config, ConfigError> {
        Config::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// What an environment says. An unknown value is an error, so that a misspelt check is not one silently off.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let get = Reader { variable: &variable };
        let mut device = get
            .value("CUDA_SIM_CC", "one of 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 12.0", |text| {
                let (major, minor) = text.split_once('.')?;
                Device::of((major.parse().ok()?, minor.parse().ok()?))
            })?
            .unwrap_or_default();
        if let Some(sms) = get.value("CUDA_SIM_SMS", "a number from 1 to 1024", |text| number(text, 1..=1024))? {
            device.sms = sms as u32;
        }
        if let Some(memory) = get.value("CUDA_SIM_MEMORY", "bytes, or a number with K, M or G", bytes)? {
            device.memory = memory;
        }
        let l2 = |text: &str| bytes(text).and_then(|bytes| u32::try_from(bytes).ok());
        if let Some(l2) = get.value("CUDA_SIM_L2", "bytes below 4G, or a number with K, M or G", l2)? {
            device.l2 = l2;
        }
        let mut runs = Runs::default();
        runs.read(&get)?;
        Ok(Config {
            device,
            runs,
            counters: variable("CUDA_SIM_COUNTERS").map(PathBuf::from),
            failures: get.failures()?,
            driver: get.value("CUDA_SIM_DRIVER", "a version of CUDA from 11.0 to 13.0", |text| {
                let (major, minor) = text.split_once('.')?;
                let version = (major.parse().ok()?, minor.parse().ok()?);
                ((11, 0)..=(13, 0)).contains(&version).then_some(version)
            })?,
        })
    }
}

struct Reader<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn failures(&self) -> Result<Vec<Failure>, ConfigError> {
        let expected = "a list of alloc|pinned|module|copy|launch|sticky|ecc|lost=<k>[+]";
        let failures = self.value("CUDA_SIM_FAIL", expected, |text| list(text).map(Failure::parse).collect())?;
        Ok(failures.unwrap_or_default())
    }

    fn value<T>(
        &self,
        variable: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match (self.variable)(variable) {
            None => Ok(None),
            Some(value) => match parse(value.trim()) {
                Some(parsed) => Ok(Some(parsed)),
                None => Err(ConfigError { variable: variable.into(), value, expected }),
            },
        }
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty())
}

fn number(text: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    text.parse().ok().filter(|n| range.contains(n))
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let count: u64 = digits.trim().parse().ok()?;
    count.checked_mul(1 << shift).filter(|&n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(|name| values.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn nothing_set_is_a_hopper_with_the_cheap_checks() {
        let config = read(&[]).unwrap();
        assert_eq!(config.device, Device::of((9, 0)).unwrap());
        assert_eq!(config.device.shared_per_block_optin, 232_448);
        assert_eq!(config.runs.checks, Checks { mem: true, init: false, race: false, sync: true, leak: true });
        assert_eq!((config.runs.seed, config.runs.sweep, config.runs.copies), (0, 1, None));
        assert!(config.runs.threads >= 1);
    }

    #[test]
    fn everything_can_be_chosen() {
        let config = read(&[
            ("CUDA_SIM_CC", "8.0"),
            ("CUDA_SIM_SMS", "4"),
            ("CUDA_SIM_MEMORY", "3m"),
            ("CUDA_SIM_L2", "4M"),
            ("CUDA_SIM_CHECK", "race, init"),
            ("CUDA_SIM_SEED", "7"),
            ("CUDA_SIM_COPIES", "early"),
            ("CUDA_SIM_SWEEP", "5"),
            ("CUDA_SIM_THREADS", "2"),
            ("CUDA_SIM_COUNTERS", "counters.json"),
            ("CUDA_SIM_FAIL", "alloc=3, launch=2+"),
        ])
        .unwrap();
        assert_eq!(config.device.capability, (8, 0));
        assert_eq!(config.device.shared_per_block_optin, 166_912);
        assert_eq!((config.device.sms, config.device.memory), (4, 3 << 20));
        assert_eq!(config.device.l2, 4 << 20);
        let checks = Checks { race: true, init: true, ..Checks::NONE };
        let runs = Runs { checks, seed: 7, copies: Some(AsyncTiming::Early), sweep: 5, threads: 2 };
        assert_eq!(config.runs, runs);
        assert_eq!(config.counters, Some(PathBuf::from("counters.json")));
        let failures = [
            Failure { site: Site::Alloc, number: 3, onwards: false },
            Failure { site: Site::Launch, number: 2, onwards: true },
        ];
        assert_eq!(config.failures, failures);
    }

    #[test]
    fn runs_can_be_changed_one_variable_at_a_time() {
        let mut runs = Runs { checks: Checks::ALL, seed: 3, ..Runs::default() };
        runs.set("CUDA_SIM_COPIES", "random").unwrap();
        runs.set("CUDA_SIM_SWEEP", "2").unwrap();
        let copies = Some(AsyncTiming::Random);
        assert_eq!(runs, Runs { checks: Checks::ALL, seed: 3, copies, sweep: 2, ..Runs::default() });
        assert!(runs.set("CUDA_SIM_SMS", "4").is_err() && runs.set("CUDA_SIM_CHECK", "some").is_err());
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        for (name, value) in [
            ("CUDA_SIM_CC", "7.0"),
            ("CUDA_SIM_DRIVER", "13.1"),
            ("CUDA_SIM_SMS", "0"),
            ("CUDA_SIM_MEMORY", "17179869184G"),
            ("CUDA_SIM_L2", "4G"),
            ("CUDA_SIM_CHECK", "memory"),
            ("CUDA_SIM_SEED", "-1"),
            ("CUDA_SIM_COPIES", "soon"),
            ("CUDA_SIM_SWEEP", "0"),
            ("CUDA_SIM_FAIL", "alloc=0"),
            ("CUDA_SIM_FAIL", "allok=1"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}={value}: ")), "{error}");
        }
    }
}
