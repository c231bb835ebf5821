//! What `cargo xtask test --gpu` does, with the simulator in the place of a GPU's driver: the tests find it through the
//! loader alone, as a library of the driver's name, and may ask nothing of it that a driver has not.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{device, simulator};

/// A folder in which the simulator is called as drivers are.
fn driver() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(simulator::library(), folder.join("libcuda.so.1")).unwrap();
    folder
}

/// Runs some of these tests again as the option does; what they printed.
fn tests_on(folder: &Path, capability: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "gemm::bf16_ragged", "hopper::wgmma", "fp8::converts"]);
    command.env("WEFT_GPU", "1").env("LD_LIBRARY_PATH", folder).env("CUDA_SIM_CC", capability);
    let out = command.output().unwrap();
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(out.status.success(), "{text}");
    text
}

#[test]
fn the_tests_run_on_a_driver_that_the_loader_finds() {
    if device::is_gpu() {
        return;
    }
    let folder = driver();
    let new = tests_on(&folder, "9.0");
    assert!(new.contains("3 passed") && !new.contains("skipped"), "{new}");
    let old = tests_on(&folder, "8.0");
    for skipped in [
        "hopper: skipped: its PTX is for sm_90a, the device is sm_80",
        "fp8: skipped: its PTX is for sm_89, the device is sm_80",
    ] {
        assert!(old.contains(skipped), "{old}");
    }
    assert!(old.contains("3 passed"), "{old}");
    std::fs::remove_dir_all(&folder).unwrap();
}
