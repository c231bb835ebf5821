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
    let mut wrong = Vec::new();
    for fatbin in fatbins() {
        let log = std::fs::read_to_string(fatbin.with_extension("log")).unwrap();
        for ((kernel, architecture), needs) in parse(&log) {
            let Needs { registers, shared, stack, spills } = needs;
            println!("{architecture:8} {kernel:40} {registers:3} registers, {shared:6} bytes shared");
            if stack + spills > 0 || !(1..=255).contains(&registers) || shared > 48 << 10 {
                wrong.push(format!("{kernel} on {architecture}: {needs:?}"));
            }
            *architectures.entry(architecture).or_default() += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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

/// The instructions that kernels are written for: names of kernels (a star stands for any end), and the beginnings of what
/// must be among their machine code on every architecture.
const MEANT: &[(&str, &[&str])] = &[
    // Weights through asynchronous copies past the first cache, products on tensor cores.
    ("weft_linear_8", &["HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128", "LDS.128", "LDSM"]),
    ("weft_linear_16", &["HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128", "LDSM"]),
    ("weft_linear_32", &["HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128", "LDSM"]),
    ("weft_linear_two_*", &["HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128"]),
    ("weft_linear_two_144", &["LDSM"]),
    ("weft_linear_two_256", &["LDSM"]),
    ("weft_linear_fp8_*", &["HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128"]),
    ("weft_linear_int4_*", &["HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128"]),
    ("attention_*", &["HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128", "LDSM.16.M88.4", "LDSM.16.MT88.4"]),
    ("image_attention", &["HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDG.E.128"]),
    ("conv3x3*", &["HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDG.E.128"]),
    // What moves rows moves sixteen bytes at a time.
    ("add", &["LDG.E.128", "STG.E.128"]),
    ("add_row", &["LDG.E.128", "STG.E.128"]),
    ("children", &["LDG.E.128", "STG.E.128"]),
    ("copy_page", &["LDG.E.128", "STG.E.128"]),
    ("copy_rows", &["LDG.E.128", "STG.E.128"]),
    ("draw", &["LDG.E.128"]),
    ("embed", &["LDG.E.128", "STG.E.128"]),
    ("gather_latents", &["LDG.E.128", "STG.E.128"]),
    ("gather_rows", &["LDG.E.128", "STG.E.128"]),
    ("gather_sources", &["LDG.E.128", "STG.E.128"]),
    ("group_norm_apply", &["LDG.E.128", "STG.E.128"]),
    ("group_norm_statistics", &["LDG.E.128"]),
    ("keep_states", &["LDG.E.128", "STG.E.128"]),
    ("put", &["STG.E.128"]),
    ("layer_norm", &["LDG.E.128", "STG.E.128"]),
    ("modulated_norm", &["LDG.E.128", "STG.E.128"]),
    ("rms_norm", &["LDG.E.128", "STG.E.128"]),
    ("select_rows", &["LDG.E.128", "STG.E.128"]),
    ("siblings", &["LDG.E.128", "STG.E.128"]),
    ("upsample", &["LDG.E.128", "STG.E.128"]),
];

/// The same for what Hopper alone has.
const MEANT_ON_HOPPER: &[(&str, &[&str])] = &[("weft_linear_hopper_*", &["HGMMA", "UBLKCP", "SYNCS", "USETMAXREG"])];

/// Whether a name of [`MEANT`] stands for a kernel.
fn names(pattern: &str, kernel: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == kernel, |start| kernel.starts_with(start))
}

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
    let code: BTreeMap<_, _> = fatbins().iter().flat_map(|fatbin| disassemble(&tools, fatbin)).collect();
    let mut wrong = Vec::new();
    for ((kernel, architecture), instructions) in &code {
        let has = |start: &str| instructions.iter().any(|name| name.starts_with(start));
        if has("LDL") || has("STL") {
            wrong.push(format!("{kernel} on {architecture} uses local memory"));
        }
        let hopper = if architecture == "sm_90a" { MEANT_ON_HOPPER } else { &[] };
        let meant =
            MEANT.iter().chain(hopper).filter(|(pattern, _)| names(pattern, kernel)).flat_map(|(_, meant)| *meant);
        let lacking = meant.filter(|wanted| !has(wanted));
        wrong.extend(lacking.map(|wanted| format!("{kernel} on {architecture} has no {wanted}")));
    }
    for (pattern, _) in MEANT {
        if !code.keys().any(|(kernel, _)| names(pattern, kernel)) {
            wrong.push(format!("there is no kernel {pattern}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
