//! What the tests of kernels share: the device, noise, comparisons.
#![allow(dead_code, reason = "each module of tests uses some of it")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};

use half::bf16;
use weft::backend::Backend;
use weft::backend::cpu::CpuBackend;
use weft::backend::cuda::CudaBackend;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Sets a variable of the simulator that can be set while it runs.
pub fn simulate(variable: &str, value: &str) {
    // SAFETY: the name is a string of C; the handle is that of all loaded libraries.
    let set = unsafe { dlsym(std::ptr::null_mut(), c"cuda_sim_set".as_ptr()) };
    assert!(!set.is_null(), "the simulator is loaded");
    // SAFETY: this is the function's type (tests/cuda-sim/README.md).
    let set: unsafe extern "C" fn(*const c_char, *const c_char) -> c_int = unsafe { std::mem::transmute(set) };
    let [name, text] = [variable, value].map(|text| CString::new(text).unwrap());
    // SAFETY: both are strings of C.
    assert_eq!(unsafe { set(name.as_ptr(), text.as_ptr()) }, 0, "{variable}={value}");
}

/// Whether a GPU is tested, not the simulator.
pub fn on_gpu() -> bool {
    std::env::var_os("WEFT_GPU").is_some_and(|value| value == "1")
}

/// Where cargo has put the simulator: beside the tests, or above.
fn simulator() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let mut folders = test.ancestors().skip(1).take(2).map(|folder| folder.join("libcuda_sim.so"));
    folders.find(|path| path.exists()).expect("libcuda_sim.so is built with the tests")
}

/// Loads the simulator, once, unless a GPU is tested, with these variables unless the environment has them. Its SONAME is
/// the driver's, so that whoever asks for the driver gets it from then on.
pub fn load_driver(defaults: &[(&str, &str)]) {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        if on_gpu() {
            return;
        }
        for (name, value) in defaults {
            if std::env::var_os(name).is_none() {
                // SAFETY: nothing else reads the environment while this runs; the driver is not loaded yet.
                unsafe { std::env::set_var(name, value) };
            }
        }
        let path = CString::new(simulator().to_str().unwrap()).unwrap();
        // SAFETY: the path is a string of C, the library this workspace's. The flags are RTLD_NOW | RTLD_GLOBAL.
        let handle = unsafe { dlopen(path.as_ptr(), 0x102) };
        assert!(!handle.is_null(), "{path:?} cannot be loaded");
    });
}

/// Every check, and eight schedules for each launch.
pub const STRICT: [(&str, &str); 2] = [("CUDA_SIM_CHECK", "all"), ("CUDA_SIM_SWEEP", "8")];

/// The backend of this process, for one test at a time.
pub fn backend() -> MutexGuard<'static, CudaBackend> {
    static BACKEND: OnceLock<Mutex<CudaBackend>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        load_driver(&STRICT);
        Mutex::new(CudaBackend::new(0).unwrap_or_else(|error| panic!("{error}")))
    });
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The oracle.
pub fn cpu() -> CpuBackend {
    CpuBackend::new()
}

/// A stream of numbers from -1 to 1 that tests can repeat.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }

    pub fn weights(&mut self, n: usize) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f32(self.next())).collect()
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (((self.next() + 1.0) / 2.0 * n as f32) as usize).min(n - 1)
    }
}

/// A tensor with these rows and room for no more.
pub fn tensor<B: Backend>(backend: &B, data: &[f32], cols: usize) -> B::Tensor {
    let mut tensor = backend.tensor(data.len() / cols, cols).unwrap();
    backend.upload(data, &mut tensor);
    tensor
}

/// An operand of products with these rows and room for a few more.
pub fn operand<B: Backend>(backend: &B, data: &[f32], cols: usize) -> B::Tensor {
    let mut operand = backend.operand(data.len() / cols + 3, cols).unwrap();
    backend.upload(data, &mut operand);
    operand
}

/// What products see of values.
pub fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
}

/// The values of a tensor.
pub fn read<B: Backend>(backend: &B, x: &B::Tensor) -> Vec<f32> {
    backend.read(x).unwrap_or_else(|error| panic!("{error}")).into_owned()
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Asserts that each value is within its bound of what is wanted.
#[track_caller]
pub fn assert_near(got: &[f32], want: &[f32], bound: impl Fn(usize) -> f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let (error, bound) = ((f64::from(got) - f64::from(want)).abs(), bound(i));
        assert!(error <= f64::from(bound), "{what}: value {i} is {got}, not {want}: off by {error:e}, bound {bound:e}");
    }
}

/// Asserts that two results are the same bit by bit.
#[track_caller]
pub fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let differs = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = differs {
        panic!("{what}: value {i} of {} is {:?}, not {:?}", got.len(), got[i], want[i]);
    }
}

/// Asserts that `op` gives row `i` of its output the same bits whatever the rows around it. `op` maps `[m, cols]` to
/// `[m, out_cols]`; it is run on `batches` of sizes as well as on all rows of `x`.
#[track_caller]
pub fn assert_row_invariant(x: &[f32], cols: usize, batches: &[usize], what: &str, op: impl Fn(&[f32]) -> Vec<f32>) {
    let rows = x.len() / cols;
    let whole = op(x);
    let out_cols = whole.len() / rows;
    for &m in batches {
        // In an order that is not theirs.
        let chosen: Vec<usize> = (0..m).map(|i| (i * 37 + m * 11) % rows).collect();
        let batch: Vec<f32> = chosen.iter().flat_map(|&i| x[i * cols..][..cols].to_vec()).collect();
        let got = op(&batch);
        for (got, &i) in got.chunks(out_cols).zip(&chosen) {
            assert_same(
                got,
                &whole[i * out_cols..][..out_cols],
                &format!("{what}: row {i} of {rows} in a batch of {m}"),
            );
        }
    }
}

/// What a test printed to stdout and stderr in a process of its own, with these variables and no others of the simulator.
/// It must have passed.
pub fn child(test: &str, environment: &[(&str, &str)]) -> (String, Vec<String>) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CUDA_SIM_")) {
        command.env_remove(name);
    }
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} with {environment:?} failed:\n{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "there is no test {test}:\n{stdout}");
    let findings = stderr.lines().filter(|line| line.starts_with("cuda-sim: ")).map(String::from).collect();
    (stdout.into_owned(), findings)
}
