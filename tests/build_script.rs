//! The build script, with an nvcc that does nothing but say what it was asked: what is compiled again, and what becomes
//! of a kernel that does not compile.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

/// A crate with two kernels and a header, and the build script of this one.
struct Project {
    home: PathBuf,
    script: PathBuf,
}

impl Project {
    fn new(name: &str) -> Project {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("build-script-{name}"));
        let _ = fs::remove_dir_all(&home);
        let folders = ["kernels", "include", "target/debug/build/weft-0/out"];
        folders.iter().for_each(|folder| fs::create_dir_all(home.join(folder)).unwrap());
        let project = Project { script: home.join("script"), home };
        for (file, text) in [
            ("kernels/first.cu", "first"),
            ("kernels/second.cu", "second"),
            ("kernels/shared.cuh", "shared"),
            ("include/kernel_abi.h", "structs"),
            ("nvcc", NVCC),
        ] {
            project.write(file, text);
        }
        fs::set_permissions(project.home.join("nvcc"), fs::Permissions::from_mode(0o755)).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let mut rustc = Command::new("rustc");
        rustc.args(["--edition", "2024", "--crate-name", "script", "-o"]).arg(&project.script).arg(source);
        assert!(rustc.status().unwrap().success());
        project
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.home.join(file), text).unwrap();
    }

    /// Runs the script; what it printed, and the sources that were compiled.
    fn build(&self, environment: &[(&str, &str)]) -> (Output, Vec<String>) {
        let calls = self.home.join("calls");
        let _ = fs::remove_file(&calls);
        let mut script = Command::new(&self.script);
        script.current_dir(&self.home).env("OUT_DIR", self.home.join("target/debug/build/weft-0/out"));
        script.env("CALLS", &calls).env("NUM_JOBS", "2").env("WEFT_NVCC", self.home.join("nvcc"));
        script.env_remove("WEFT_CUDA_ARCHS").envs(environment.iter().copied());
        let output = script.output().unwrap();
        let mut compiled: Vec<String> =
            fs::read_to_string(&calls).unwrap_or_default().lines().map(String::from).collect();
        compiled.sort();
        (output, compiled)
    }

    fn cached(&self) -> usize {
        fs::read_dir(self.home.join("target/weft-kernels")).map_or(0, |entries| entries.count())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn only_what_changed_is_compiled() {
    let project = Project::new("changes");
    let (output, compiled) = project.build(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(compiled, ["kernels/first.cu", "kernels/second.cu"]);
    assert!(text(&output.stdout).contains("cargo:rustc-cfg=weft_cuda"));
    let list = fs::read_to_string(project.home.join("target/debug/build/weft-0/out/kernels.rs")).unwrap();
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
    let project = Project::new("broken");
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
    let project = Project::new("none");
    let nothing = [("WEFT_NVCC", ""), ("CUDA_HOME", ""), ("CUDA_PATH", ""), ("PATH", "")];
    let (output, compiled) = project.build(&nothing);
    assert!(output.status.success() && compiled.is_empty());
    let said = text(&output.stdout);
    assert_eq!(said.matches("cargo:warning=").count(), 1, "{said}");
    assert!(said.contains("cargo:warning=no nvcc found") && said.contains("cargo xtask toolkit"), "{said}");
    assert!(!said.contains("rustc-cfg=weft_cuda"), "{said}");
}

#[test]
fn what_is_no_nvcc_or_no_architecture_is_refused() {
    let project = Project::new("wrong");
    let (output, _) = project.build(&[("WEFT_NVCC", "/nowhere/nvcc")]);
    assert!(!output.status.success() && text(&output.stderr).contains("WEFT_NVCC: /nowhere/nvcc does not run"));
    let (output, _) = project.build(&[("WEFT_CUDA_ARCHS", "ampere")]);
    assert!(!output.status.success() && text(&output.stderr).contains("ampere is neither sm_.. nor compute_.."));
}
