//! Finds an nvcc that is installed. It needs nothing but the standard library, so that a build script can include this
//! file with `#[path]`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder, below the target directory, that `cargo xtask toolkit` installs into.
pub const HOME: &str = "cuda-13.0";

/// The folder of what shows the machine code of kernels.
#[allow(dead_code, reason = "a build script includes this file for nvcc alone")]
pub const DISASSEMBLER: &str = "cuda-disassembler-13.5";

/// Where nvcc is in that folder.
pub const NVCC: &str = "nvidia/cu13/bin/nvcc";

/// A working nvcc: `WEFT_NVCC`; or else the first of `CUDA_HOME`, `CUDA_PATH`, `PATH`, the usual prefix and what
/// `cargo xtask toolkit` installed below the target directory. None if there is none; an error if `WEFT_NVCC` names
/// something else.
pub fn find(target: &Path) -> Result<Option<PathBuf>, String> {
    if let Some(path) = env::var_os("WEFT_NVCC").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        return if works(&path) { Ok(Some(path)) } else { Err(format!("WEFT_NVCC: {} does not run", path.display())) };
    }
    Ok(candidates(target).into_iter().find(|path| works(path)))
}

/// A file that changes when `cargo xtask toolkit` has installed nvcc: what a build script that found none waits for. It is
/// made if it is not there.
pub fn awaited(target: &Path) -> Result<PathBuf, String> {
    let path = target.join("cuda-awaited");
    let made = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    made.map(|_| path.clone()).map_err(|e| format!("{}: {e}", path.display()))
}

/// Where nvcc may be.
fn candidates(target: &Path) -> Vec<PathBuf> {
    let home = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|p| PathBuf::from(p).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = home.chain(env::split_paths(&path)).chain([PathBuf::from("/usr/local/cuda/bin")]);
    let named = folders.filter(|folder| !folder.as_os_str().is_empty()).map(|folder| folder.join("nvcc"));
    named.chain([target.join(HOME).join(NVCC)]).collect()
}

/// Whether the file is an nvcc that can say its version.
pub fn works(nvcc: &Path) -> bool {
    nvcc.is_file() && Command::new(nvcc).arg("--version").output().is_ok_and(|out| out.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_nvcc_is_not_taken() {
        assert!(!works(Path::new("/nowhere/nvcc")));
        assert!(!works(Path::new(env!("CARGO_MANIFEST_DIR"))));
        assert!(!works(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")));
    }
}
