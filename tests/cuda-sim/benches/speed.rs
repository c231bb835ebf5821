//! How fast the simulator runs kernels: `cargo bench -p cuda-sim --bench speed`, and after `--` words that what is measured
//! must have in its name, such as `wgmma` or `all checks`.
//!
//! Prints, for each kernel, the best of several launches: lane operations per second, tensor-core operations per second,
//! and what the checks cost: the time of all processors together, of the average launch, against that without checks, which
//! says it on a machine that others use too.

use std::time::{Duration, Instant};

use cuda_sim::device::Checks;
use cuda_sim::isa::tensor_map::{Request, TensorMap};
use cuda_sim::machine::grid::Launch;
use cuda_sim::machine::launch;
use cuda_sim::machine::schedule::Schedule;
use cuda_sim::memory::{GlobalMemory, Origin};
use cuda_sim::program::Program;

/// A launch that is measured. Sizes and addresses are known when it is made.
struct Case {
    what: String,
    fixture: &'static str,
    kernel: &'static str,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    params: Vec<u8>,
}

/// Parameters one after another, each at a multiple of its size.
fn params(values: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values {
        out.resize(out.len().next_multiple_of(value.len().min(128)), 0);
        out.extend_from_slice(value);
    }
    out
}

/// Memory of small bf16 numbers: 1.0 with some low bits.
fn filled(memory: &GlobalMemory, bytes: usize) -> u64 {
    let address = memory.allocate(bytes as u64, 256, Origin::Alloc).expect("enough memory");
    let values: Vec<u8> = (0..bytes / 2).flat_map(|i| (0x3f80 + (i * 7 % 61) as u16).to_le_bytes()).collect();
    memory.write(address, &values).expect("it was allocated");
    address
}

fn gemv(memory: &GlobalMemory, rows: u32, cols: u32) -> Case {
    let (y, w) = (filled(memory, rows as usize * 4), filled(memory, (rows * cols * 2) as usize));
    let x = filled(memory, cols as usize * 2);
    let (y, w, x) = (y.to_le_bytes(), w.to_le_bytes(), x.to_le_bytes());
    Case {
        what: format!("matrix-vector {rows}x{cols}, bf16"),
        fixture: "gemv",
        kernel: "gemv_bf16",
        grid: [rows / 8, 1, 1],
        block: 256,
        shared: 0,
        params: params(&[&y, &w, &x, &rows.to_le_bytes(), &cols.to_le_bytes()]),
    }
}

/// Addresses of c, a and b of a product of square matrices.
fn square(memory: &GlobalMemory, n: u32) -> [u64; 3] {
    std::array::from_fn(|_| filled(memory, (n * n * 2) as usize))
}

fn gemm(memory: &GlobalMemory, n: u32) -> Case {
    let [c, a, b] = square(memory, n).map(u64::to_le_bytes);
    let size = n.to_le_bytes();
    Case {
        what: format!("mma.sync {n}x{n}x{n}, bf16"),
        fixture: "gemm",
        kernel: "gemm_bf16",
        grid: [n / 64, n / 64, 1],
        block: 128,
        shared: 0,
        params: params(&[&c, &a, &b, &size, &size, &size]),
    }
}

fn wgmma(memory: &GlobalMemory, n: u32) -> Case {
    let [c, a, b] = square(memory, n);
    let map = |address| {
        let request = Request {
            data_type: 9,
            address,
            dims: &[n.into(), n.into()],
            strides: &[u64::from(n) * 2],
            tile: &[64, 64],
            element_strides: &[1, 1],
            interleave: 0,
            swizzle: 3,
            promotion: 0,
            fill: 0,
        };
        TensorMap::tiled(&request).expect("a map that the driver takes").encode()
    };
    let size = n.to_le_bytes();
    Case {
        what: format!("wgmma {n}x{n}x{n}, bf16, specialised warps"),
        fixture: "hopper",
        kernel: "wgmma_specialised",
        grid: [8, 1, 1],
        block: 384,
        shared: 4 * 3 * 8192,
        params: params(&[&c.to_le_bytes(), &map(a), &map(b), &size, &size, &size]),
    }
}

fn measure(memory: &GlobalMemory, case: &Case, words: &[String]) {
    let path = format!("{}/fixtures/{}.ptx", env!("CARGO_MANIFEST_DIR"), case.fixture);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let program = Program::load(&text, &mut |v| memory.allocate(v.size, v.align.into(), Origin::Alloc))
        .unwrap_or_else(|e| panic!("{path}: {e}"));
    let entry = &program.entries[case.kernel];
    let checks = [
        ("no checks", Checks::NONE),
        ("default checks", Checks::default()),
        ("all but races", Checks { race: false, ..Checks::ALL }),
        ("all checks", Checks::ALL),
    ];
    let mut without = None;
    for (name, checks) in checks {
        if !words.iter().all(|word| case.what.contains(word) || name.contains(word)) {
            continue;
        }
        if without.is_none() {
            println!("{}", case.what);
        }
        let run = || {
            let start = Instant::now();
            let report = launch(&Launch {
                grid: case.grid,
                block: [case.block, 1, 1],
                dynamic_shared: case.shared,
                params: &case.params,
                multiprocessors: 132,
                checks,
                schedule: Schedule::default(),
                ..Launch::of(&program, case.kernel, entry, memory)
            });
            let report = report.unwrap_or_else(|fault| panic!("{fault}"));
            (start.elapsed(), report)
        };
        let (mut best, report) = run();
        let (begin, busy, mut count) = (Instant::now(), processor_time(), 0);
        while begin.elapsed() < Duration::from_secs(2) {
            best = best.min(run().0);
            count += 1;
        }
        let busy = (processor_time() - busy).as_secs_f64() * 1e3 / f64::from(count.max(1));
        let seconds = best.as_secs_f64();
        let ratio = busy / *without.get_or_insert(busy);
        let lanes = report.counters.all_lane_operations() as f64 / seconds / 1e9;
        let flops = report.counters.sums.matrix_flops as f64 / seconds / 1e9;
        println!(
            "  {name:15} {:8.2} ms  {busy:8.2} ms of processors ({ratio:.2}x)  {lanes:6.2} G lane-ops/s  {flops:6.1} GFLOP/s on tensor \
             cores",
            seconds * 1e3
        );
    }
}

/// Processor time that this process has used, where the system tells (Linux: proc(5), in hundredths of a second).
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name, in parentheses, may have blanks.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}

fn main() {
    let memory = GlobalMemory::new(1 << 30, true);
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for case in [gemv(&memory, 4096, 4096), gemm(&memory, 512), wgmma(&memory, 512)] {
        measure(&memory, &case, &words);
    }
}
