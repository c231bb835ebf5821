//! What ptxas made of the kernels, for every architecture: no spills, no stack, few registers, and the instructions that
//! were meant. It needs no GPU.

#![cfg(weft_cuda)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a kernel needs on an architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Needs {
    registers: u32,
    shared: u32,
    stack: u32,
    spills: u32,
}

/// By kernel and architecture.
type Report = BTreeMap<(String, String), Needs>;

/// The fatbins that the build script made.
fn fatbins() -> Vec<PathBuf> {
    env!("WEFT_FATBINS").split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

/// Reads what `ptxas -v` said.
fn parse(log: &str) -> Report {
    let mut report = Report::new();
    let mut current: Option<(String, String)> = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            let (name, architecture) = (quoted.next(), quoted.nth(1));
            current = name.zip(architecture).map(|(name, architecture)| (name.into(), architecture.into()));
            report.extend(current.clone().map(|key| (key, Needs::default())));
        }
        let Some(needs) = current.as_ref().and_then(|key| report.get_mut(key)) else { continue };
        let number = |after: &str| -> u32 {
            let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            let phrase: Vec<&str> = after.split(' ').collect();
            let at = words.windows(phrase.len()).position(|window| window == phrase);
            at.and_then(|at| words[at.checked_sub(1)?].parse().ok()).unwrap_or(0)
        };
        if line.contains("bytes stack frame") {
            needs.stack = number("bytes stack frame");
            needs.spills = number("bytes spill stores") + number("bytes spill loads");
        }
        if line.contains(": Used ") {
            needs.registers = number("registers");
            needs.shared = number("bytes smem");
            needs.stack += number("bytes lmem");
        }
    }
    report
}

#[test]
fn no_kernel_spills_or_keeps_anything_on_a_stack() {
    let mut architectures = BTreeMap::<String, usize>::new();
    for fatbin in fatbins() {
        let log = std::fs::read_to_string(fatbin.with_extension("log")).unwrap();
        for ((kernel, architecture), needs) in parse(&log) {
            println!("{architecture:8} {kernel:40} {:3} registers, {:6} bytes shared", needs.registers, needs.shared);
            assert_eq!((needs.stack, needs.spills), (0, 0), "{kernel} on {architecture}: {needs:?}");
            assert!((1..=255).contains(&needs.registers), "{kernel} on {architecture}: {needs:?}");
            assert!(needs.shared <= 48 << 10, "{kernel} on {architecture}: {needs:?}");
            *architectures.entry(architecture).or_default() += 1;
        }
    }
    // Every kernel was compiled for every architecture, unless the build was narrowed to PTX.
    let counts: Vec<usize> = architectures.values().copied().collect();
    assert!(counts.windows(2).all(|pair| pair[0] == pair[1]), "{architectures:?}");
    let wanted = weft::backend::cuda::ARCHITECTURES.split(", ").filter(|name| name.starts_with("sm_")).count();
    assert_eq!(counts.len(), wanted, "{architectures:?}");
}

#[test]
fn the_report_of_ptxas_is_understood() {
    let log = "ptxas info    : 0 bytes gmem\n\
               ptxas info    : Compiling entry function 'f' for 'sm_80'\n\
               ptxas info    : Function properties for f\n    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
               ptxas info    : Used 32 registers, used 1 barriers, 128 bytes smem, 412 bytes cmem[0]\n\
               ptxas info    : Compiling entry function 'g' for 'sm_90a'\n\
               ptxas info    : Function properties for g\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
               ptxas info    : Used 255 registers, used 0 barriers, 24 bytes lmem\n";
    let report = parse(log);
    let needs = |name: &str, architecture: &str| report[&(name.to_string(), architecture.to_string())].clone();
    assert_eq!(needs("f", "sm_80"), Needs { registers: 32, shared: 128, stack: 8, spills: 16 });
    assert_eq!(needs("g", "sm_90a"), Needs { registers: 255, shared: 0, stack: 24, spills: 0 });
    assert_eq!(report.len(), 2);
}

/// The instructions that kernels are written for: the beginning of their names, the architecture, what must be among
/// their machine code.
const MEANT: &[(&str, &str, &[&str])] =
    &[("rms_norm", "sm_80", &["LDG.E.128"]), ("rms_norm", "sm_90a", &["LDG.E.128"])];

/// The machine code of a fatbin's kernels: instructions by kernel and architecture.
fn disassemble(tools: &Path, fatbin: &Path) -> BTreeMap<(String, String), Vec<String>> {
    let path = std::env::join_paths(
        [tools.to_path_buf()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    let mut command = Command::new(tools.join("cuobjdump"));
    let output = command.arg("-sass").arg(fatbin).env("PATH", path.unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut architecture, mut kernel) = (String::new(), String::new());
    let mut code = BTreeMap::<_, Vec<String>>::new();
    for line in String::from_utf8_lossy(&output.stdout).lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("arch = ") {
            architecture = name.into();
        } else if let Some(name) = line.strip_prefix("Function : ") {
            kernel = name.into();
        } else if let Some((_, rest)) = line.strip_prefix("/*").and_then(|line| line.split_once("*/")) {
            // `/*0090*/ @!P3 LDG.E.128 R2, [R2.64] ; /* 0x... */`
            let words = rest.split_whitespace().skip_while(|word| word.starts_with('@'));
            if let Some(name) =
                words.into_iter().next().filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()))
            {
                code.entry((kernel.clone(), architecture.clone())).or_default().push(name.trim_end_matches(';').into());
            }
        }
    }
    code
}

#[test]
fn kernels_are_made_of_the_instructions_that_were_meant() {
    let Some(tools) = std::env::var_os("WEFT_DISASSEMBLER").map(PathBuf::from) else {
        assert!(std::env::var_os("CI").is_none(), "cargo xtask test sets WEFT_DISASSEMBLER");
        eprintln!("left out: WEFT_DISASSEMBLER names no folder of cuobjdump and nvdisasm");
        return;
    };
    let built: Vec<&str> = weft::backend::cuda::ARCHITECTURES.split(", ").collect();
    let code: BTreeMap<_, _> = fatbins().iter().flat_map(|fatbin| disassemble(&tools, fatbin)).collect();
    for ((kernel, architecture), instructions) in &code {
        let of_memory = |name: &&String| name.starts_with("LDL") || name.starts_with("STL");
        assert_eq!(instructions.iter().find(of_memory), None, "{kernel} on {architecture} uses local memory");
    }
    for (name, architecture, meant) in MEANT.iter().filter(|(_, architecture, _)| built.contains(architecture)) {
        let kernels = code.iter().filter(|((kernel, arch), _)| kernel.starts_with(name) && arch == architecture);
        let kernels: Vec<_> = kernels.collect();
        assert!(!kernels.is_empty(), "there is no kernel {name} for {architecture}");
        for ((kernel, _), instructions) in kernels {
            for wanted in *meant {
                let found = instructions.iter().any(|instruction| instruction.starts_with(wanted));
                assert!(found, "{kernel} on {architecture} has no {wanted}");
            }
        }
    }
}
