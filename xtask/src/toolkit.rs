//! Tools that are not Rust: those that are there, or else pinned packages that contain them, installed below the target
//! directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::nvcc;

/// Packages that belong together.
struct Set {
    /// What messages call it.
    what: &'static str,
    /// The folder below the target directory.
    home: &'static str,
    /// Pinned: their own dependencies are not followed.
    packages: &'static [&'static str],
    /// Files that show that it is whole.
    files: &'static [&'static str],
    /// What to do where it cannot be installed.
    hint: &'static str,
}

/// All five, pinned: the dependencies of `nvidia-cuda-nvcc` are not, and a newer NVVM writes PTX that its ptxas refuses.
/// 13.0, because a driver takes no PTX that is newer than itself.
const NVCC: Set = Set {
    what: "nvcc 13.0 (104 MB)",
    home: nvcc::HOME,
    packages: &[
        "nvidia-cuda-nvcc==13.0.88",
        "nvidia-nvvm==13.0.88",
        "nvidia-cuda-crt==13.0.88",
        "nvidia-cuda-runtime==13.0.96",
        "nvidia-cuda-cccl==13.0.85",
    ],
    files: &[nvcc::NVCC],
    hint: "install CUDA 13.0 and set WEFT_NVCC to its nvcc, or make PyPI reachable",
};

/// Show what ptxas made of the kernels. 13.0 had no packages of them; newer ones read older code.
const DISASSEMBLER: Set = Set {
    what: "cuobjdump and nvdisasm 13.5 (5 MB)",
    home: nvcc::DISASSEMBLER,
    packages: &["nvidia-cuda-cuobjdump==13.5.37", "nvidia-cuda-nvdisasm==13.5.37"],
    files: &["nvidia/cu13/bin/cuobjdump", "nvidia/cu13/bin/nvdisasm"],
    hint: "make PyPI reachable",
};

/// Reads headers of C.
const CLANG: Set = Set {
    what: "libclang 18 (24 MB)",
    home: "libclang-18",
    packages: &["libclang==18.1.1"],
    files: &["clang/native/libclang.so"],
    hint: "set LIBCLANG_PATH to the folder of a libclang, or make PyPI reachable",
};

/// A path to a working nvcc.
pub fn nvcc() -> Result<PathBuf, String> {
    let target = target_dir();
    if let Some(found) = nvcc::find(&target)? {
        return Ok(found);
    }
    let nvcc = install(&target, &NVCC)?.join(nvcc::NVCC);
    if !nvcc::works(&nvcc) {
        return Err(format!("the packages are installed, but {} does not run", nvcc.display()));
    }
    // A build script that found none looks again.
    let awaited = nvcc::awaited(&target)?;
    fs::write(&awaited, nvcc.display().to_string()).map_err(|e| format!("{}: {e}", awaited.display()))?;
    Ok(nvcc)
}

/// The folder of cuobjdump and nvdisasm.
pub fn disassembler() -> Result<PathBuf, String> {
    Ok(install(&target_dir(), &DISASSEMBLER)?.join("nvidia/cu13/bin"))
}

/// The folder of libclang, which `LIBCLANG_PATH` may name.
pub fn clang() -> Result<PathBuf, String> {
    match env::var_os("LIBCLANG_PATH").filter(|path| !path.is_empty()) {
        Some(path) => Ok(path.into()),
        None => Ok(install(&target_dir(), &CLANG)?.join("clang/native")),
    }
}

/// Installs the packages below the target directory, once.
fn install(target: &Path, set: &Set) -> Result<PathBuf, String> {
    let home = target.join(set.home);
    let whole = || set.files.iter().all(|file| home.join(file).is_file());
    if whole() {
        return Ok(home);
    }
    fs::create_dir_all(target).map_err(|e| format!("{}: {e}", target.display()))?;
    eprintln!("xtask: installing {} into {}", set.what, home.display());
    // In a folder of this process, moved when it is whole: two runs at once do no harm, and a failed one leaves nothing.
    let staging = target.join(format!("{}.{}", set.home, std::process::id()));
    let outcome = fill(&staging, set).and_then(|packages| {
        // Another run may have been faster; what it made is as good.
        match fs::rename(&packages, &home) {
            Err(e) if !whole() => Err(format!("{}: {e}", home.display())),
            _ => Ok(()),
        }
    });
    let _ = fs::remove_dir_all(&staging);
    outcome?;
    if whole() { Ok(home) } else { Err(format!("{}: the packages lack {:?}", home.display(), set.files)) }
}

/// Downloads the packages into a folder of `staging`.
fn fill(staging: &Path, set: &Set) -> Result<PathBuf, String> {
    let Set { what, hint, .. } = set;
    let venv = staging.join("venv");
    let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).status();
    match made {
        Ok(status) if status.success() => {}
        Ok(_) => return Err(format!("{what}: `python3 -m venv` failed; {hint}")),
        Err(e) => return Err(format!("{what}: python3 cannot be run to install it ({e}); {hint}")),
    }
    let packages = staging.join("packages");
    let pip = Command::new(venv.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"])
        .arg(&packages)
        .args(set.packages)
        .status();
    match pip {
        Ok(status) if status.success() => Ok(packages),
        Ok(status) => Err(format!("{what}: pip could not install it ({status}); {hint}")),
        Err(e) => Err(format!("{what}: pip cannot be run to install it ({e}); {hint}")),
    }
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace");
    workspace.join(env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned() {
        for set in [NVCC, DISASSEMBLER, CLANG] {
            assert!(set.packages.iter().all(|package| package.contains("==")), "{}", set.what);
        }
        assert!(NVCC.packages.iter().all(|package| package.contains("==13.0.")));
    }
}
