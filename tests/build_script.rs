//! The build script, with an nvcc that does nothing but say what it was asked: what is compiled again, and what becomes
//! of a kernel that does not compile.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Refuses sources with the word "broken" as nvcc would, and "compiles" others; a line of `calls` for each.
const NVCC: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo "nvcc of a test"; exit 0; fi
while [ $# -gt 0 ]; do
    case "$1" in -o) out=$2; shift ;; *.cu) source=$1 ;; esac
    shift
done
echo "$source" >> "$CALLS"
if grep -q broken "$source"; then
    echo "$source(1): error: expected a \";\"" >&2
    echo half > "$out"
    exit 2
fi
echo fatbin > "$out"
"#;

/// No nvcc where the environment says, so that only an installed one is left.
const NOWHERE: [(&str, &str); 4] = [("WEFT_NVCC", ""), ("CUDA_HOME", ""), ("CUDA_PATH", ""), ("PATH", "")];

/// A crate with two kernels and a header, and the build script of this one. It lies outside of the real target directory:
/// the script would find the nvcc that is installed there.
struct Project {
    home: TempDir,
    script: PathBuf,
}

impl Project {
    fn new() -> Project {
        let home = tempfile::tempdir().unwrap();
        let project = Project { script: home.path().join("script"), home };
        fs::create_dir_all(project.path("target/debug/build/weft-0/out")).unwrap();
        for (file, text) in [
            ("kernels/first.cu", "first"),
            ("kernels/second.cu", "second"),
            ("kernels/shared.cuh", "shared"),
            ("include/kernel_abi.h", "structs"),
        ] {
            project.write(file, text);
        }
        project.install("nvcc");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let mut rustc = Command::new("rustc");
        rustc.args(["--edition", "2024", "--crate-name", "script", "-o"]).arg(&project.script).arg(source);
        assert!(rustc.status().unwrap().success());
        project
    }

    fn path(&self, file: &str) -> PathBuf {
        self.home.path().join(file)
    }

    fn write(&self, file: &str, text: &str) {
        fs::create_dir_all(self.path(file).parent().unwrap()).unwrap();
        fs::write(self.path(file), text).unwrap();
    }

    fn install(&self, nvcc: &str) {
        self.write(nvcc, NVCC);
        fs::set_permissions(self.path(nvcc), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs the script; what it printed, and the sources that were compiled.
    fn build(&self, environment: &[(&str, &str)]) -> (Output, Vec<String>) {
        let calls = self.path("calls");
        let _ = fs::remove_file(&calls);
        let mut script = Command::new(&self.script);
        script.current_dir(&self.home).env("OUT_DIR", self.path("target/debug/build/weft-0/out"));
        script.env("CALLS", &calls).env("NUM_JOBS", "2").env("WEFT_NVCC", self.path("nvcc"));
        script.env_remove("WEFT_CUDA_ARCHS").envs(environment.iter().copied());
        let output = script.output().unwrap();
        let mut compiled: Vec<String> =
            fs::read_to_string(&calls).unwrap_or_default().lines().map(String::from).collect();
        compiled.sort();
        (output, compiled)
    }

    fn cached(&self) -> usize {
        fs::read_dir(self.path("target/weft-kernels")).map_or(0, |entries| entries.count())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn only_what_changed_is_compiled() {
    let project = Project::new();
    let (output, compiled) = project.build(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(compiled, ["kernels/first.cu", "kernels/second.cu"]);
    assert!(text(&output.stdout).contains("cargo:rustc-cfg=weft_cuda"));
    let list = fs::read_to_string(project.path("target/debug/build/weft-0/out/kernels.rs")).unwrap();
    assert!(list.contains("pub static FIRST: Fatbin") && list.contains("&[&FIRST, &SECOND]"), "{list}");

    assert_eq!(project.build(&[]).1, [""; 0]);
    project.write("kernels/second.cu", "another");
    assert_eq!(project.build(&[]).1, ["kernels/second.cu"]);
    // Anything may include a header, and architectures are of all kernels.
    project.write("kernels/shared.cuh", "another");
    assert_eq!(project.build(&[]).1.len(), 2);
    assert_eq!(project.build(&[("WEFT_CUDA_ARCHS", "sm_89")]).1.len(), 2);
}

#[test]
fn a_kernel_that_does_not_compile_fails_the_build_with_the_message_of_nvcc() {
    let project = Project::new();
    project.write("kernels/second.cu", "broken");
    let (output, _) = project.build(&[]);
    assert!(!output.status.success());
    let message = text(&output.stderr);
    assert!(message.contains("nvcc failed on kernels/second.cu"), "{message}");
    assert!(message.contains("kernels/second.cu(1): error: expected a \";\""), "{message}");
    assert!(!text(&output.stdout).contains("weft_cuda\n"), "{}", text(&output.stdout));
    // The other one, with what ptxas said of it; nothing of the broken one.
    assert_eq!(project.cached(), 2);
    // Mended, it is compiled, and it alone.
    project.write("kernels/second.cu", "mended");
    let (output, compiled) = project.build(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(compiled, ["kernels/second.cu"]);
}

#[test]
fn without_nvcc_there_is_a_warning_and_no_backend() {
    if Path::new("/usr/local/cuda/bin/nvcc").exists() {
        return;
    }
    let project = Project::new();
    let (output, compiled) = project.build(&NOWHERE);
    let said = text(&output.stdout);
    assert!(output.status.success() && compiled.is_empty(), "{said}");
    assert_eq!(said.matches("cargo:warning=").count(), 1, "{said}");
    assert!(said.contains("cargo:warning=no nvcc found") && said.contains("cargo xtask toolkit"), "{said}");
    assert!(!said.contains("rustc-cfg=weft_cuda"), "{said}");
}

#[test]
fn the_nvcc_that_is_installed_below_a_target_directory_is_found() {
    // A target directory inside of another's, too: tests build such.
    for installed in ["target/debug", "target"] {
        let project = Project::new();
        project.install(&format!("{installed}/cuda-13.0/nvidia/cu13/bin/nvcc"));
        let (output, compiled) = project.build(&NOWHERE);
        let said = text(&output.stdout);
        assert!(output.status.success() && said.contains("rustc-cfg=weft_cuda"), "{said}");
        assert_eq!(compiled.len(), 2, "{said}");
    }
}

#[test]
fn what_is_no_nvcc_or_no_architecture_is_refused() {
    let project = Project::new();
    let (output, _) = project.build(&[("WEFT_NVCC", "/nowhere/nvcc")]);
    assert!(!output.status.success() && text(&output.stderr).contains("WEFT_NVCC: /nowhere/nvcc does not run"));
    let (output, _) = project.build(&[("WEFT_CUDA_ARCHS", "ampere")]);
    assert!(!output.status.success() && text(&output.stderr).contains("ampere is neither sm_.. nor compute_.."));
}
