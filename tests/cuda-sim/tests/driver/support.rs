//! Loading the simulator, kernels, and processes of their own.

use std::ffi::c_void;
use std::process::Command;
use std::sync::Arc;

use cudarc::driver::sys::{CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, LaunchConfig};
use cudarc::nvrtc::Ptx;

use crate::simulator;

pub const THREAD_LOCAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// Loads the simulator.
pub fn load() {
    simulator::load_after(|| ());
}

/// The device's primary context.
pub fn context() -> Arc<CudaContext> {
    load();
    CudaContext::new(0).unwrap()
}

/// A context of the test's own, where nothing that other tests do is seen.
pub fn own_context() -> Arc<CudaContext> {
    load();
    CudaContext::new_non_primary(0, 0).unwrap()
}

/// A context of the test's own and a stream, without cudarc's own events around every use of memory: those are outside
/// of captures.
pub fn plain_stream() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = own_context();
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    (context, stream)
}

/// The kernels of these tests.
pub const KERNELS: &str = include_str!("kernels.ptx");

pub fn module(context: &Arc<CudaContext>) -> Arc<CudaModule> {
    context.load_module(Ptx::from_src(KERNELS)).unwrap()
}

pub fn kernel(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    module(context).load_function(name).unwrap()
}

pub fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// A kernel's parameters as the C API takes them.
pub struct Params {
    /// What the pointers point to; a box does not move.
    _values: Box<[u64]>,
    pointers: Vec<*mut c_void>,
}

impl Params {
    pub fn new(values: &[u64]) -> Params {
        let mut values: Box<[u64]> = values.into();
        let pointers = values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        Params { _values: values, pointers }
    }

    pub fn pointers(&mut self) -> *mut *mut c_void {
        self.pointers.as_mut_ptr()
    }
}

#[track_caller]
pub fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

/// What a test of `children` printed to stderr in a process of its own, with an environment. It must have passed.
pub fn child(test: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("children::{test}"), "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CUDA_SIM_")) {
        command.env_remove(name);
    }
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{test} failed:\n{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "there is no test {test}:\n{stdout}");
    stderr.lines().filter(|line| line.starts_with("cuda-sim: ")).map(String::from).collect()
}
