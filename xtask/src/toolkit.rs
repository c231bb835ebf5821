//! nvcc: the one that is there, or else the pinned packages that contain it, installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::nvcc;

/// All five, pinned: the dependencies of `nvidia-cuda-nvcc` are not, and a newer NVVM writes PTX that its ptxas refuses.
/// 13.0, because a driver takes no PTX that is newer than itself.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// A path to a working nvcc.
pub fn nvcc() -> Result<PathBuf, String> {
    let target = target_dir();
    match nvcc::find(&target)? {
        Some(found) => Ok(found),
        None => install(&target),
    }
}

/// Installs the packages below the target directory, once.
fn install(target: &Path) -> Result<PathBuf, String> {
    let home = target.join(nvcc::HOME);
    let nvcc = home.join(nvcc::NVCC);
    fs::create_dir_all(target).map_err(|e| format!("{}: {e}", target.display()))?;
    eprintln!("xtask: installing nvcc 13.0 (104 MB) into {}", home.display());
    // In a folder of this process, moved when it is whole: two runs at once do no harm, and a failed one leaves nothing.
    let staging = target.join(format!("{}.{}", nvcc::HOME, std::process::id()));
    let outcome = fill(&staging).and_then(|packages| {
        // Another run may have been faster; what it made is as good.
        match fs::rename(&packages, &home) {
            Err(e) if !nvcc::works(&nvcc) => Err(format!("{}: {e}", home.display())),
            _ => Ok(()),
        }
    });
    let _ = fs::remove_dir_all(&staging);
    outcome?;
    if nvcc::works(&nvcc) {
        Ok(nvcc)
    } else {
        Err(format!("the packages are installed, but {} does not run", nvcc.display()))
    }
}

/// Downloads the packages into a folder of `staging`.
fn fill(staging: &Path) -> Result<PathBuf, String> {
    let hint = "install CUDA 13.0 and set WEFT_NVCC to its nvcc, or make PyPI reachable";
    let venv = staging.join("venv");
    let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).status();
    match made {
        Ok(status) if status.success() => {}
        Ok(_) => return Err(format!("no nvcc found, and `python3 -m venv` failed; {hint}")),
        Err(e) => return Err(format!("no nvcc found, and python3 cannot be run to install it ({e}); {hint}")),
    }
    let packages = staging.join("packages");
    let pip = Command::new(venv.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"])
        .arg(&packages)
        .args(PACKAGES)
        .status();
    match pip {
        Ok(status) if status.success() => Ok(packages),
        Ok(status) => Err(format!("no nvcc found, and pip could not install it ({status}); {hint}")),
        Err(e) => Err(format!("no nvcc found, and pip cannot be run to install it ({e}); {hint}")),
    }
}

/// Cargo's target directory.
fn target_dir() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace");
    workspace.join(env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned() {
        assert!(PACKAGES.iter().all(|p| p.split_once("==").is_some_and(|(_, version)| version.starts_with("13.0."))));
    }
}
