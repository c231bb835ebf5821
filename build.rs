//! Compiles kernels/*.cu with nvcc, when there is one: a fatbin for each, with code for every architecture. It needs no
//! GPU and no driver. Without nvcc the crate has no CUDA backend.

#[path = "xtask/src/nvcc.rs"]
mod nvcc;

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;

/// Machine code for the architectures that exist, PTX for those to come and for the simulator; `WEFT_CUDA_ARCHS` says
/// otherwise.
const ARCHITECTURES: &str = "sm_80,sm_86,sm_89,sm_90a,sm_100a,sm_120,compute_80,compute_90a";
/// PTX is not compressed: the simulator reads it. ptxas says what each kernel needs: the tests read that.
const FLAGS: [&str; 6] = ["-O3", "-std=c++17", "-lineinfo", "--no-compress", "-fatbin", "-Xptxas=-v"];

fn main() -> ExitCode {
    println!("cargo:rustc-check-cfg=cfg(weft_cuda)");
    for path in ["build.rs", "xtask/src/nvcc.rs", "kernels", "include"] {
        println!("cargo:rerun-if-changed={path}");
    }
    for variable in ["WEFT_NVCC", "WEFT_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    match build(&out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build(out: &Path) -> Result<(), String> {
    // target/<profile>/build/<package>/out
    let target = out.ancestors().nth(4).expect("OUT_DIR is in the target directory");
    let installed = out.ancestors().skip(1).find(|folder| folder.join(nvcc::HOME).join(nvcc::NVCC).is_file());
    let Some(nvcc) = nvcc::find(installed.unwrap_or(target))? else {
        println!("cargo:rerun-if-changed={}", nvcc::awaited(target)?.display());
        println!(
            "cargo:warning=no nvcc found: this weft has no CUDA backend. `cargo xtask toolkit` installs one; WEFT_NVCC \
             names another"
        );
        return Ok(());
    };
    let wanted = env::var("WEFT_CUDA_ARCHS").ok().filter(|list| !list.trim().is_empty());
    let architectures = wanted.as_deref().unwrap_or(ARCHITECTURES);
    let compiler = Compiler::new(nvcc, architectures, target.join("weft-kernels"))?;
    let sources = files("kernels", "cu").map_err(|e| format!("kernels: {e}"))?;
    let fatbins = compiler.all(&sources)?;
    fs::write(out.join("kernels.rs"), list(architectures, &sources, &fatbins)).map_err(|e| e.to_string())?;
    println!("cargo:rustc-cfg=weft_cuda");
    // For the tests of the machine code.
    let paths: Vec<_> = fatbins.iter().map(|path| path.to_string_lossy()).collect();
    println!("cargo:rustc-env=WEFT_FATBINS={}", paths.join(","));
    Ok(())
}

struct Compiler {
    nvcc: PathBuf,
    /// `-gencode` options.
    architectures: Vec<String>,
    /// Where fatbins are kept, named by what they were made from: a change of cargo's profile compiles nothing.
    cache: PathBuf,
    /// Hash of everything but the source.
    common: DefaultHasher,
}

impl Compiler {
    fn new(nvcc: PathBuf, architectures: &str, cache: PathBuf) -> Result<Compiler, String> {
        let version = Command::new(&nvcc).arg("--version").output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
        let architectures = gencode(architectures)?;
        let mut common = DefaultHasher::new();
        (version.stdout, FLAGS, &architectures).hash(&mut common);
        let headers = files("kernels", "cuh").and_then(|shared| Ok([shared, files("include", "h")?].concat()));
        for header in headers.map_err(|e| e.to_string())? {
            (&header, fs::read(&header).map_err(|e| format!("{}: {e}", header.display()))?).hash(&mut common);
        }
        fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
        Ok(Compiler { nvcc, architectures, cache, common })
    }

    /// Compiles what is not in the cache, in parallel.
    fn all(&self, sources: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        let next = Mutex::new(sources.iter().enumerate());
        let outcomes = Mutex::new(vec![None; sources.len()]);
        std::thread::scope(|scope| {
            for _ in 0..sources.len().min(jobs) {
                scope.spawn(|| {
                    loop {
                        let Some((index, source)) = next.lock().expect("no job panics").next() else { return };
                        let outcome = self.fatbin(source);
                        outcomes.lock().expect("no job panics")[index] = Some(outcome);
                    }
                });
            }
        });
        let outcomes = outcomes.into_inner().expect("no job panics");
        outcomes.into_iter().map(|outcome| outcome.expect("every source had a job")).collect()
    }

    fn fatbin(&self, source: &Path) -> Result<PathBuf, String> {
        let stem = source.file_stem().expect("a .cu file has a name").to_string_lossy().into_owned();
        let mut hasher = self.common.clone();
        (source, fs::read(source).map_err(|e| format!("{}: {e}", source.display()))?).hash(&mut hasher);
        let fatbin = self.cache.join(format!("{stem}-{:016x}.fatbin", hasher.finish()));
        if fatbin.is_file() {
            return Ok(fatbin);
        }
        // Moved when it is whole: a build that is stopped, or another at the same time, leaves no half of it.
        let partial = self.cache.join(format!("{stem}-{:016x}.{}", hasher.finish(), std::process::id()));
        let mut nvcc = Command::new(&self.nvcc);
        nvcc.args(FLAGS).args(&self.architectures).arg(source).arg("-o").arg(&partial);
        let output = nvcc.output().map_err(|e| format!("{}: {e}", self.nvcc.display()))?;
        let messages = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let _ = fs::remove_file(&partial);
            return Err(format!("nvcc failed on {}:\n{messages}", source.display()));
        }
        for line in messages.lines().filter(|line| line.contains("warning")) {
            println!("cargo:warning={line}");
        }
        let log = fatbin.with_extension("log");
        fs::write(&log, messages.as_bytes()).map_err(|e| format!("{}: {e}", log.display()))?;
        fs::rename(&partial, &fatbin).map_err(|e| format!("{}: {e}", fatbin.display()))?;
        Ok(fatbin)
    }
}

/// nvcc's options for a list of `sm_..` (machine code) and `compute_..` (PTX).
fn gencode(list: &str) -> Result<Vec<String>, String> {
    let mut versions: Vec<(&str, Vec<&str>)> = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let version = name.strip_prefix("sm_").or_else(|| name.strip_prefix("compute_"));
        let Some(version) = version.filter(|v| v.starts_with(|c: char| c.is_ascii_digit())) else {
            return Err(format!(
                "WEFT_CUDA_ARCHS: {name} is neither sm_.. nor compute_..; the default is {ARCHITECTURES}"
            ));
        };
        match versions.iter_mut().find(|(v, _)| *v == version) {
            Some((_, codes)) => codes.push(name),
            None => versions.push((version, vec![name])),
        }
    }
    let option = |(version, codes): &(&str, Vec<&str>)| {
        ["-gencode".into(), format!("arch=compute_{version},code=[{}]", codes.join(","))]
    };
    Ok(versions.iter().flat_map(option).collect())
}

/// The files of a folder with a suffix, sorted.
fn files(folder: &str, suffix: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
    };
    let mut files: Vec<_> = entries.into_iter().filter(|path| path.extension().is_some_and(|e| e == suffix)).collect();
    files.sort();
    Ok(files)
}

/// The Rust side: a `Fatbin` for each source.
fn list(architectures: &str, sources: &[PathBuf], fatbins: &[PathBuf]) -> String {
    let mut text = format!(
        "/// The architectures that the kernels were compiled for.\n\
         pub const ARCHITECTURES: &str = {:?};\n",
        architectures.replace(',', ", ")
    );
    let mut names = Vec::new();
    for (source, fatbin) in sources.iter().zip(fatbins) {
        let name = source.file_stem().expect("a .cu file has a name").to_string_lossy();
        let constant = name.to_uppercase();
        let _ = write!(
            text,
            "/// {}\n\
             pub static {constant}: Fatbin = Fatbin {{ name: {name:?}, image: &Aligned(*include_bytes!({:?})) }};\n",
            source.display(),
            fatbin.display().to_string()
        );
        names.push(format!("&{constant}"));
    }
    let _ = writeln!(text, "/// All of them.\npub static ALL: &[&Fatbin] = &[{}];", names.join(", "));
    text
}
