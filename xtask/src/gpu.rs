//! The tests of kernels on the machine's GPU.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the driver's library is called.
const DRIVER: &str = "libcuda.so.1";

/// The tests that take another driver than the simulator, as arguments of cargo.
pub const TESTS: [&[&str]; 2] =
    [&["test", "--package", "cuda-sim", "--test", "kernels"], &["test", "--package", "weft", "--test", "cuda*"]];

/// Fails if the loader would find no driver, or would take the simulator for it: cargo lets tests look where it builds
/// first, where the simulator's README has put a link of the driver's name.
pub fn find_driver(target: &Path) -> Result<(), String> {
    let links = ["debug", "debug/deps"].map(|folder| target.join(folder).join(DRIVER));
    if let Some(link) = links.iter().find(|link| link.exists()) {
        return Err(format!("{} would be taken for the driver: remove it", link.display()));
    }
    if folders().iter().any(|folder| folder.join(DRIVER).exists()) || in_cache() {
        return Ok(());
    }
    Err(format!("there is no driver ({DRIVER}): --gpu needs an NVIDIA GPU and its driver"))
}

/// Where the loader looks beside its cache, or where a driver may be that is not in it.
fn folders() -> Vec<PathBuf> {
    let named = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib"];
    env::split_paths(&named).chain(usual.map(PathBuf::from)).collect()
}

/// Whether the loader's cache has it.
fn in_cache() -> bool {
    ["ldconfig", "/sbin/ldconfig"].into_iter().any(|ldconfig| {
        let listed = Command::new(ldconfig).arg("-p").output();
        listed.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(DRIVER))
    })
}
