//! `--device`: where a command runs.

use super::Failure;
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use std::fmt;
use std::str::FromStr;

/// A device as the command line names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU when there is one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match (name, name.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err("must be auto, cpu, cuda or cuda:N".into()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// A command that runs on any backend.
pub trait OnBackend {
    /// Runs it.
    fn run<B: Backend>(&self, backend: B) -> Result<(), Failure>;
}

/// Runs a command on a device.
pub fn on(device: Device, command: &impl OnBackend) -> Result<(), Failure> {
    match device {
        Device::Cpu => command.run(CpuBackend::new()),
        Device::Cuda(number) => on_gpu(number, command),
        Device::Auto => on_any(command),
    }
}

#[cfg(weft_cuda)]
fn on_gpu(number: usize, command: &impl OnBackend) -> Result<(), Failure> {
    command.run(crate::backend::cuda::CudaBackend::new(number)?)
}

#[cfg(weft_cuda)]
fn on_any(command: &impl OnBackend) -> Result<(), Failure> {
    use crate::backend::cuda::{CudaBackend, is_driver_present};
    match CudaBackend::new(0) {
        Ok(backend) => {
            eprintln!("weft: running on {}", backend.name());
            command.run(backend)
        }
        Err(error) => {
            if is_driver_present() {
                eprintln!("weft: warning: running on the processor, since the GPU cannot be used: {error}");
            }
            command.run(CpuBackend::new())
        }
    }
}

#[cfg(not(weft_cuda))]
fn on_gpu(number: usize, _: &impl OnBackend) -> Result<(), Failure> {
    let how = "run `cargo xtask toolkit`, then build again; or set WEFT_NVCC to the nvcc of CUDA 13.0";
    Err(format!("--device cuda:{number}: this weft was built without nvcc and has no CUDA backend; {how}").into())
}

#[cfg(not(weft_cuda))]
fn on_any(command: &impl OnBackend) -> Result<(), Failure> {
    command.run(CpuBackend::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed_and_printed() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
