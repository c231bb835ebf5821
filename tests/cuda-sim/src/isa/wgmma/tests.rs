//! Products of a warpgroup against plain ones, with operands laid out by CuTe's words (PTX ISA 9.0, section 9.7.15.5.1.2).

use crate::isa::matrix::tests::encode;
use crate::isa::team::Team;
use crate::machine::fault::{Fault, Kind};
use crate::machine::schedule::AsyncTiming::{self, Early, Late, Random};
use crate::machine::{LANES, Row};

/// A matrix in shared memory: where it begins, its offsets, its mode and which way it lies.
#[derive(Clone, Copy)]
struct Layout {
    start: u64,
    leading: u64,
    stride: u64,
    mode: u64,
    transposed: bool,
}

impl Layout {
    fn descriptor(&self) -> u64 {
        self.start >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32 | self.mode << 62
    }

    /// The byte at which element (mn, k) lies: the canonical layout, then the swizzle.
    fn at(&self, bytes: u64, mn: u64, k: u64) -> u64 {
        let t = 16 / bytes;
        let b = [0u32, 3, 2, 1][self.mode as usize];
        let w = 1u64 << b;
        let index = match (self.transposed, b) {
            (false, 0) => mn % 8 * 16 + mn / 8 * self.stride + k % t * bytes + k / t * self.leading,
            (false, _) => mn % 8 * 16 * w + mn / 8 * self.stride + k * bytes,
            (true, 0) => mn % t * bytes + mn / t * self.stride + k % 8 * 16 + k / 8 * self.leading,
            (true, _) => {
                mn % t * bytes + mn / t % w * 16 + mn / t / w * self.leading + k % 8 * 16 * w + k / 8 * self.stride
            }
        };
        let address = self.start + index;
        address ^ ((address >> 7) % w) << 4
    }
}

fn size(ty: &str) -> u64 {
    match ty {
        "f16" | "bf16" => 2,
        "tf32" => 4,
        _ => 1,
    }
}

fn noise(seed: u64, limit: i32) -> i32 {
    let mut x = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 31;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x >> 40) as i32 % (2 * limit + 1) - limit
}

struct Case {
    n: u64,
    a: &'static str,
    b: &'static str,
    sum: &'static str,
    /// None: A is in registers.
    layout_a: Option<Layout>,
    layout_b: Layout,
    negate: (i32, i32),
    keep: bool,
}

impl Case {
    fn k(&self) -> u64 {
        32 / size(self.a)
    }

    fn sums(&self) -> u64 {
        if self.sum == "f16" { self.n / 4 } else { self.n / 2 }
    }

    fn value_a(&self, m: u64, k: u64) -> i32 {
        let v = noise(m * 64 + k, 3);
        if self.a == "u8" { v.abs() * 60 } else { v }
    }

    fn value_b(&self, k: u64, n: u64) -> i32 {
        let v = noise(77_777 + k * 512 + n, 3);
        if self.b == "u8" { v.abs() * 60 } else { v }
    }

    fn text(&self, tail: &str) -> String {
        let sums: Vec<String> = (0..self.sums()).map(|i| format!("%d{i}")).collect();
        let a = if self.layout_a.is_some() { "%da" } else { "{%a0, %a1, %a2, %a3}" };
        let scale = if self.sum == "s32" { String::new() } else { format!(", {}, {}", self.negate.0, self.negate.1) };
        let mut transposes = String::new();
        if size(self.a) == 2 {
            if let Some(layout) = self.layout_a {
                transposes += &format!(", {}", layout.transposed as u8);
            }
            transposes += &format!(", {}", self.layout_b.transposed as u8);
        }
        format!(
            ".reg .b32 %d<{}>, %a<4>; .reg .b64 %da, %db; .reg .pred %p; wgmma.fence.sync.aligned; \
             wgmma.mma_async.sync.aligned.m64n{}k{}.{}.{}.{} {{{}}}, {a}, %db, %p{scale}{transposes}; {tail}",
            self.sums(),
            self.n,
            self.k(),
            self.sum,
            self.a,
            self.b,
            sums.join(", "),
        )
    }

    /// A team whose memory and registers hold the operands.
    fn team(&self, timing: AsyncTiming, tail: &str) -> Team {
        let mut team = Team::new(&self.text(tail), 4, timing);
        for k in 0..self.k() {
            if let Some(layout) = self.layout_a {
                for m in 0..64 {
                    put(&mut team, layout.at(size(self.a), m, k), self.a, self.value_a(m, k));
                }
                team.set_b64("%da", layout.descriptor());
            }
            for n in 0..self.n {
                put(&mut team, self.layout_b.at(size(self.b), n, k), self.b, self.value_b(k, n));
            }
        }
        team.set_b64("%db", self.layout_b.descriptor());
        team.set_pred("%p", if self.keep { u32::MAX } else { 0 });
        for warp in 0..4 {
            for r in 0..self.sums() {
                let value = self.row(warp, r, |m, n| noise(m * 1000 + n, 40));
                let at = team.warps[0].b32.len() - self.sums() as usize - 4 + r as usize;
                assert_eq!(team.warps[warp as usize].b32[at], team.b32(warp as usize, &format!("%d{r}")));
                team.warps[warp as usize].b32[at] = value;
            }
            for r in 0..4u64 {
                let per = 4 / size(self.a);
                // Register r of A: rows by r % 2, columns by r / 2.
                let value: Row<u32> = std::array::from_fn(|lane| {
                    (0..per).fold(0, |word, e| {
                        let m = 16 * warp + r % 2 * 8 + lane as u64 / 4;
                        let k = r / 2 * 4 * per + lane as u64 % 4 * per + e;
                        word | encode(self.a, self.value_a(m, k)) << (e * size(self.a) * 8)
                    })
                });
                let at = team.warps[0].b32.len() - 4 + r as usize;
                team.warps[warp as usize].b32[at] = value;
            }
        }
        team
    }

    /// Register `r` of the accumulator of a warp, by Figure 149 and its like.
    fn row(&self, warp: u64, r: u64, value: impl Fn(u64, u64) -> i32) -> Row<u32> {
        std::array::from_fn(|lane| {
            let (g, t) = (lane as u64 / 4, lane as u64 % 4);
            let place = |i: u64| (16 * warp + g + i / 2 % 2 * 8, i / 4 * 8 + 2 * t + i % 2);
            match self.sum {
                "f16" => (0..2).fold(0, |word, e| {
                    let (m, n) = place(2 * r + e);
                    word | encode("f16", value(m, n)) << (16 * e)
                }),
                "f32" => {
                    let (m, n) = place(r);
                    (value(m, n) as f32).to_bits()
                }
                _ => {
                    let (m, n) = place(r);
                    value(m, n) as u32
                }
            }
        })
    }

    fn result(&self, m: u64, n: u64) -> i32 {
        let product: i32 = (0..self.k()).map(|k| self.value_a(m, k) * self.value_b(k, n)).sum();
        self.negate.0 * self.negate.1 * product + if self.keep { noise(m * 1000 + n, 40) } else { 0 }
    }

    fn expect(&self, team: &Team, what: &str) {
        for warp in 0..4 {
            for r in 0..self.sums() {
                let expect = self.row(warp, r, |m, n| self.result(m, n));
                assert_eq!(team.b32(warp as usize, &format!("%d{r}")), expect, "{what}: warp {warp}, register {r}");
            }
        }
    }

    fn check(&self) {
        for timing in [Late, Early, Random] {
            let mut team = self.team(timing, "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;");
            team.run().unwrap_or_else(|fault| panic!("{fault}"));
            self.expect(&team, &self.text(""));
        }
    }
}

fn put(team: &mut Team, at: u64, ty: &str, value: i32) {
    let (at, size) = (at as usize, size(ty) as usize);
    team.shared()[at..at + size].copy_from_slice(&encode(ty, value).to_le_bytes()[..size]);
}

const K_128: Layout = Layout { start: 0x400, leading: 16, stride: 1024, mode: 1, transposed: false };
const B_128: Layout = Layout { start: 0x4000 + 32, leading: 16, stride: 1024, mode: 1, transposed: false };

fn case(n: u64, a: &'static str, b: &'static str, sum: &'static str) -> Case {
    Case { n, a, b, sum, layout_a: Some(K_128), layout_b: B_128, negate: (1, 1), keep: true }
}

#[test]
fn every_type_is_a_matrix_product() {
    for n in [8, 24, 64, 256] {
        case(n, "bf16", "bf16", "f32").check();
        case(n, "f16", "f16", "f16").check();
        case(n, "e4m3", "e5m2", "f32").check();
    }
    for (a, b, sum) in
        [("f16", "f16", "f32"), ("tf32", "tf32", "f32"), ("e5m2", "e4m3", "f16"), ("e5m2", "e5m2", "f32")]
    {
        case(40, a, b, sum).check();
    }
    for (a, b) in [("s8", "s8"), ("s8", "u8"), ("u8", "s8"), ("u8", "u8")] {
        case(48, a, b, "s32").check();
    }
}

#[test]
fn every_layout_is_read() {
    let base = || case(128, "bf16", "bf16", "f32");
    for mode in 0..4u64 {
        let span = [16, 128, 64, 32][mode as usize];
        // K-major: atoms of 8 rows, one after the other along m or n.
        let k_major = |start| Layout { start, leading: 0x2100, stride: 8 * span, mode, transposed: false };
        // MN-major: atoms of 8 k; the offsets are chosen so that nothing overlaps.
        let atom = 8 * span;
        let mn_major = |start, rows: u64| {
            let atoms = rows * 2 / span;
            let (leading, stride) = if mode == 0 { (atoms * atom, atom) } else { (atom, atoms * atom) };
            Layout { start, leading, stride, mode, transposed: true }
        };
        Case { layout_a: Some(k_major(0)), layout_b: k_major(0x8000), ..base() }.check();
        Case { layout_a: Some(mn_major(0, 64)), layout_b: mn_major(0x8000, 128), ..base() }.check();
        Case { layout_a: Some(k_major(0)), layout_b: mn_major(0x8000, 128), ..base() }.check();
        Case { layout_a: None, layout_b: mn_major(0x8000, 128), ..base() }.check();
    }
}

#[test]
fn registers_signs_and_the_scale_of_d() {
    for (a, b, sum) in
        [("bf16", "bf16", "f32"), ("f16", "f16", "f16"), ("tf32", "tf32", "f32"), ("e4m3", "e4m3", "f32")]
    {
        Case { layout_a: None, ..case(16, a, b, sum) }.check();
        Case { layout_a: None, negate: (-1, 1), ..case(16, a, b, sum) }.check();
        Case { negate: (1, -1), ..case(16, a, b, sum) }.check();
        Case { negate: (-1, -1), keep: false, ..case(16, a, b, sum) }.check();
    }
    Case { layout_a: None, ..case(32, "s8", "u8", "s32") }.check();
    Case { keep: false, ..case(32, "u8", "s8", "s32") }.check();
}

const COMMIT: &str = "wgmma.commit_group.sync.aligned;";

#[test]
fn late_products_appear_in_the_wait() {
    let case = case(16, "bf16", "bf16", "f32");
    let mut team = case.team(Late, &format!("{COMMIT} wgmma.wait_group.sync.aligned 0;"));
    let before = team.b32(2, "%d3");
    team.run_to(3).unwrap();
    assert_eq!(team.b32(2, "%d3"), before);
    team.run().unwrap();
    case.expect(&team, "after the wait");
}

#[test]
fn early_products_appear_when_all_warps_have_issued() {
    let case = case(16, "bf16", "bf16", "f32");
    let mut team = case.team(Early, COMMIT);
    team.run_warps(&[0, 1, 3], 2).unwrap();
    let before = team.b32(2, "%d3");
    assert_eq!(team.b32(2, "%d3"), before);
    team.run_to(2).unwrap();
    assert_ne!(team.b32(2, "%d3"), before, "the last warp to come");
    team.run_to(3).unwrap();
    case.expect(&team, "the others at their next step");
}

#[test]
fn shared_memory_is_read_once_for_all_warps() {
    // Warp 0 passes its wait and overwrites B; the other warps land afterwards and must not see it.
    let case = case(16, "bf16", "bf16", "f32");
    let mut team = case.team(Late, &format!("{COMMIT} wgmma.wait_group.sync.aligned 0;"));
    team.run_to(3).unwrap();
    team.run_warps(&[0], 4).unwrap();
    team.shared().fill(0xff);
    team.run().unwrap();
    case.expect(&team, "after the overwriting");
}

#[test]
fn a_wait_needs_the_other_warps() {
    let case = case(8, "bf16", "bf16", "f32");
    let mut team = case.team(Late, &format!("{COMMIT} wgmma.wait_group.sync.aligned 0;"));
    let stuck = team.run_warps(&[0, 1, 2], usize::MAX);
    assert!(matches!(stuck, Err(Fault { kind: Kind::Deadlock, .. })), "{stuck:?}");
    team.run().unwrap();
    case.expect(&team, "with the fourth");
}

#[test]
fn groups_complete_in_order() {
    let case = case(8, "bf16", "bf16", "f32");
    let again = case.text("").split_once("wgmma.fence.sync.aligned;").unwrap().1.to_string();
    let mut team = case.team(Late, &format!("{COMMIT} {again} {COMMIT} wgmma.wait_group.sync.aligned 1;"));
    team.run().unwrap();
    case.expect(&team, "the first of two groups");
}

#[test]
fn misuse_is_a_fault() {
    let kind = |result: Result<(), Fault>| result.err().map(|fault| fault.kind);
    // The warps disagree about the descriptor.
    let case = case(8, "bf16", "bf16", "f32");
    let mut team = case.team(Late, COMMIT);
    let at = team.warps[3].b64.iter().position(|row| row[0] == case.layout_b.descriptor()).unwrap();
    team.warps[3].b64[at] = [case.layout_b.descriptor() + 2; LANES];
    assert_eq!(kind(team.run()), Some(Kind::DivergentBarrier));
    // The lanes of a warp do.
    let mut team = case.team(Late, COMMIT);
    team.warps[0].b64[at][7] += 2;
    assert_eq!(kind(team.run()), Some(Kind::InvalidOperation));
    // There is no fence.
    let text = case.text("").replace("wgmma.fence.sync.aligned;", "");
    assert_eq!(kind(Team::new(&text, 4, Late).run()), Some(Kind::Async));
    // The warpgroup is not whole.
    assert_eq!(kind(Team::new(&case.text(""), 3, Late).run()), Some(Kind::InvalidOperation));
    // The matrix lies outside shared memory.
    let far = Layout { start: 0x3_fc00, ..B_128 };
    let mut team = case.team(Early, "");
    team.set_b64("%db", far.descriptor());
    assert_eq!(kind(team.run()), Some(Kind::OutOfBounds));
}

#[test]
fn operands_are_held_until_the_wait() {
    // One lane of one warp stores.
    let tail = |store: &str| {
        format!(".reg .pred %q; {COMMIT} {store} wgmma.wait_group.sync.aligned 0; @%q st.shared.b32 [16384], 0;")
    };
    let run = |case: &Case, store: &str| {
        let mut team = case.team(Late, &tail(store));
        team.check_races();
        *team.warps[2].preds.last_mut().unwrap() = 1;
        team.run().err().map(|fault| fault.kind)
    };
    let whole = case(16, "bf16", "bf16", "f32");
    assert_eq!(run(&whole, ""), None);
    assert_eq!(run(&whole, "@%q st.shared.b32 [1024 + 64], 0;"), None, "beside the 32 bytes of each row");
    assert_eq!(run(&whole, "@%q st.shared.b32 [1024], 0;"), Some(Kind::Race), "A");
    assert_eq!(run(&whole, "@%q st.shared.b32 [16384 + 32], 0;"), Some(Kind::Race), "B");
    assert_eq!(run(&Case { layout_a: None, ..whole }, "@%q st.shared.b32 [1024], 0;"), None, "A in registers");
}

#[test]
fn other_forms_are_refused() {
    let text = |from: &str, to: &str| case(8, "bf16", "bf16", "f32").text("").replace(from, to);
    let refused = |text: String| crate::testing::Snippet::new(&text).is_err();
    assert!(!refused(text("", "")));
    assert!(refused(text("m64n8k16", "m64n12k16")));
    assert!(refused(text("m64n8k16", "m64n8k8")));
    assert!(refused(text("m64n8k16", "m64n264k16")));
    assert!(refused(text("f32.bf16.bf16", "f16.bf16.bf16")));
    assert!(refused(text("f32.bf16.bf16", "f32.bf16.f16")));
    assert!(refused(text("%p, 1, 1", "%p, 2, 1")));
    assert!(refused(text("0, 0;", "0, 2;")));
    assert!(refused(text("0, 0;", "0;")));
}
