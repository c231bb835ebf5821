//! Fragments by the formulas of PTX ISA 9.0, section 9.7.14.5, against plain matrix products of small integers.

use half::{bf16, f16};

use super::number::{E4M3, E5M2, Float};
use crate::isa::team::Team;
use crate::machine::fault::Kind;
use crate::machine::schedule::AsyncTiming;
use crate::machine::{LANES, Row};
use crate::testing::Snippet;

/// How a small integer is written in an element type.
pub(in crate::isa) fn encode(ty: &str, value: i32) -> u32 {
    let search = |decode: fn(u32) -> f32| (0..256).find(|&bits| decode(bits) == value as f32).expect("it is exact");
    match ty {
        "f16" => f16::from_f32(value as f32).to_bits() as u32,
        "bf16" => bf16::from_f32(value as f32).to_bits() as u32,
        "tf32" => (value as f32).to_bits(),
        "e4m3" => search(E4M3::decode),
        "e5m2" => search(E5M2::decode),
        _ => value as u8 as u32,
    }
}

fn bits(ty: &str) -> usize {
    match ty {
        "f16" | "bf16" => 16,
        "tf32" => 32,
        _ => 8,
    }
}

/// Row and column of element `i` of matrix A in lane `lane`, as the ISA words it for each shape.
fn place_a(m: usize, k: usize, bits: usize, lane: usize, i: usize) -> (usize, usize) {
    let (g, t) = (lane >> 2, lane % 4);
    match (m, k, bits) {
        (16, 4, 32) => (if i == 0 { g } else { g + 8 }, t),
        (16, 8, 32) => (if i == 0 || i == 2 { g } else { g + 8 }, if i < 2 { t } else { t + 4 }),
        (16, 8, 16) => (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1)),
        (16, 16, 16) => {
            (if i < 2 || (4..6).contains(&i) { g } else { g + 8 }, t * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
        }
        (8, 16, 8) => (g, t * 4 + i),
        (16, 16, 8) => (if i < 4 { g } else { g + 8 }, t * 4 + (i & 3)),
        (16, 32, 8) => {
            (if i < 4 || (8..12).contains(&i) { g } else { g + 8 }, t * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
        }
        other => panic!("{other:?}"),
    }
}

/// As `place_a`: row (k) and column (n) of matrix B.
fn place_b(k: usize, bits: usize, lane: usize, i: usize) -> (usize, usize) {
    let (g, t) = (lane >> 2, lane % 4);
    match (k, bits) {
        (4, 32) => (t, g),
        (8, 32) => (if i == 0 { t } else { t + 4 }, g),
        (8, 16) => (t * 2 + i, g),
        (16, 16) => (t * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, g),
        (16, 8) => (t * 4 + i, g),
        (32, 8) => (t * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, g),
        other => panic!("{other:?}"),
    }
}

fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, lane % 4 * 2 + (i & 1))
}

/// A small integer that depends on its place without pattern.
fn noise(seed: usize, limit: i32) -> i32 {
    let mut x = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 31;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x >> 40) as i32 % (2 * limit + 1) - limit
}

/// The registers that hold elements of `bits` bits.
fn pack(count: usize, bits: usize, element: impl Fn(usize, usize) -> u32) -> Vec<Row<u32>> {
    let per = 32 / bits;
    (0..count)
        .map(|r| std::array::from_fn(|lane| (0..per).fold(0, |w, e| w | element(lane, r * per + e) << (e * bits))))
        .collect()
}

struct Form {
    m: usize,
    k: usize,
    a: &'static str,
    b: &'static str,
    sum: &'static str,
    extra: &'static str,
}

/// Runs one form and compares every element of D.
fn check(form: &Form) {
    let Form { m, k, a, b, sum, extra } = *form;
    let (na, nb) = (m * k * bits(a) / 32 / LANES, 8 * k * bits(b) / 32 / LANES);
    let nc = m * 8 * if sum == "f16" { 16 } else { 32 } / 32 / LANES;
    let names = |prefix: char, count: usize| {
        let list: Vec<String> = (0..count).map(|i| format!("%{prefix}{i}")).collect();
        list.join(", ")
    };
    let text = format!(
        ".reg .b32 %a<{na}>, %b<{nb}>, %c<{nc}>, %d<{nc}>; mma.sync.aligned.m{m}n8k{k}.row.col{extra}.{sum}.{a}.{b}.{sum} \
         {{{}}}, {{{}}}, {{{}}}, {{{}}};",
        names('d', nc),
        names('a', na),
        names('b', nb),
        names('c', nc),
    );
    let mut s = Snippet::new(&text).unwrap_or_else(|e| panic!("{e}"));
    let unsigned = |ty: &str, v: i32| if ty == "u8" { v.abs() * 50 } else { v };
    let value_a = |row: usize, col: usize| unsigned(a, noise(row * 64 + col, 3));
    let value_b = |row: usize, col: usize| unsigned(b, noise(5000 + row * 64 + col, 3));
    let value_c = |row: usize, col: usize| noise(9000 + row * 64 + col, 40);
    for (i, row) in pack(na, bits(a), |lane, i| {
        let (r, c) = place_a(m, k, bits(a), lane, i);
        encode(a, value_a(r, c))
    })
    .into_iter()
    .enumerate()
    {
        s.set_b32(&format!("%a{i}"), row);
    }
    for (i, row) in pack(nb, bits(b), |lane, i| {
        let (r, c) = place_b(k, bits(b), lane, i);
        encode(b, value_b(r, c))
    })
    .into_iter()
    .enumerate()
    {
        s.set_b32(&format!("%b{i}"), row);
    }
    let width = if sum == "f16" { 16 } else { 32 };
    let encode_sum = |value: i32| match sum {
        "f32" => (value as f32).to_bits(),
        "f16" => encode("f16", value),
        _ => value as u32,
    };
    let c = pack(nc, width, |lane, i| {
        let (r, c) = place_c(lane, i);
        encode_sum(value_c(r, c))
    });
    for (i, row) in c.into_iter().enumerate() {
        s.set_b32(&format!("%c{i}"), row);
    }
    s.run();
    let expect = pack(nc, width, |lane, i| {
        let (r, c) = place_c(lane, i);
        encode_sum(value_c(r, c) + (0..k).map(|x| value_a(r, x) * value_b(x, c)).sum::<i32>())
    });
    for (i, row) in expect.into_iter().enumerate() {
        assert_eq!(s.b32(&format!("%d{i}")), row, "{text}: register {i}");
    }
}

#[test]
fn every_form_is_a_matrix_product() {
    let form = |m, k, a, b, sum| check(&Form { m, k, a, b, sum, extra: "" });
    for k in [8, 16] {
        form(16, k, "f16", "f16", "f16");
        form(16, k, "f16", "f16", "f32");
        form(16, k, "bf16", "bf16", "f32");
    }
    form(16, 4, "tf32", "tf32", "f32");
    form(16, 8, "tf32", "tf32", "f32");
    for (a, b) in [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"), ("e5m2", "e5m2")] {
        for sum in ["f16", "f32"] {
            form(16, 32, a, b, sum);
            form(16, 16, a, b, sum);
        }
        check(&Form { m: 16, k: 32, a, b, sum: "f32", extra: ".kind::f8f6f4" });
    }
    for (a, b) in [("s8", "s8"), ("s8", "u8"), ("u8", "s8"), ("u8", "u8")] {
        for (m, k) in [(8, 16), (16, 16), (16, 32)] {
            form(m, k, a, b, "s32");
            check(&Form { m, k, a, b, sum: "s32", extra: ".satfinite" });
        }
    }
}

const BF16: &str = ".reg .b32 %a<4>, %b<2>, %c<4>, %d<4>; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 \
                    {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%b0, %b1}, {%c0, %c1, %c2, %c3};";

#[test]
fn special_values_pass_through() {
    let mut s = Snippet::new(BF16).unwrap();
    // Row 0 of A is (inf, 0, ...), row 1 (max, max, ...), row 2 has a signalling NaN; column 0 of B is (1, 0, ...).
    let mut a0 = [0u32; LANES];
    a0[0] = 0x7f80;
    a0[4] = 0x7f7f_7f7f;
    a0[8] = 0x7f81;
    s.set_b32("%a0", a0);
    let mut b0 = [0u32; LANES];
    b0[0] = 0x3f80;
    b0[4] = 0x7f7f_7f7f;
    s.set_b32("%b0", b0);
    s.run();
    let d0 = s.b32("%d0").map(f32::from_bits);
    assert_eq!(d0[0], f32::INFINITY, "inf * 1 + 0");
    assert_eq!(s.b32("%d1")[0], 0x7f80_0000, "inf * max");
    assert_eq!(d0[4], bf16::MAX.to_f32(), "max * 1");
    assert_eq!(s.b32("%d1")[4], 0x7f80_0000, "max * max twice overflows");
    assert_eq!(s.b32("%d0")[8], 0x7fff_ffff, "NaN becomes the canonical one");
    // inf * 0 in the columns of B that are zero.
    assert_eq!(s.b32("%d0")[1], 0x7fff_ffff);
}

#[test]
fn products_are_exact_before_they_are_added() {
    // (1 + 2^-7)^2 needs 15 bits; with bf16 sums the last would be lost.
    let mut s = Snippet::new(BF16).unwrap();
    let mut one = [0u32; LANES];
    one[0] = 0x3f81;
    s.set_b32("%a0", one);
    s.set_b32("%b0", one);
    s.run();
    let x = 1.0 + 2f32.powi(-7);
    assert_eq!(f32::from_bits(s.b32("%d0")[0]), x * x);
}

#[test]
fn integer_sums_saturate_or_wrap() {
    for (extra, expect) in [("", i32::MIN + 16 * 9 - 1), (".satfinite", i32::MAX)] {
        let text = format!(
            ".reg .b32 %a, %b, %c<2>, %d<2>; mma.sync.aligned.m8n8k16.row.col{extra}.s32.s8.s8.s32 {{%d0, %d1}}, {{%a}}, \
             {{%b}}, {{%c0, %c1}};"
        );
        let mut s = Snippet::new(&text).unwrap();
        s.set_b32("%a", [0x0303_0303; LANES]);
        s.set_b32("%b", [0x0303_0303; LANES]);
        s.set_b32("%c0", [i32::MAX as u32; LANES]);
        s.run();
        assert_eq!(s.b32("%d0"), [expect as u32; LANES], "{text}");
        assert_eq!(s.b32("%d1"), [16 * 9; LANES]);
    }
}

#[test]
fn f16_sums_round_once() {
    // 2048 + 1 + 1 is 2050 when it is rounded once, 2048 when it is rounded after each term.
    let text = ".reg .b32 %a<4>, %b<2>, %c<2>, %d<2>; mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%d0, %d1}, \
                {%a0, %a1, %a2, %a3}, {%b0, %b1}, {%c0, %c1};";
    let mut s = Snippet::new(text).unwrap();
    s.set_b32("%a0", std::array::from_fn(|lane| if lane == 0 { 0x3c00_3c00 } else { 0 }));
    s.set_b32("%b0", std::array::from_fn(|lane| if lane == 0 { 0x3c00_3c00 } else { 0 }));
    s.set_b32("%c0", std::array::from_fn(|lane| if lane == 0 { 0x6800 } else { 0 }));
    s.run();
    assert_eq!(f16::from_bits(s.b32("%d0")[0] as u16).to_f32(), 2050.0);
}

#[test]
fn other_forms_are_refused() {
    let refused = |text: &str| {
        let text = format!(".reg .b32 %a<8>, %b<8>, %c<8>, %d<8>; .reg .b64 %p; {text}");
        Snippet::new(&text).err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{text} is accepted"))
    };
    let operands = "{%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%b0, %b1}, {%c0, %c1, %c2, %c3};";
    for form in [
        "m16n8k16.row.col.f32.bf16.f16.f32",
        "m16n8k16.row.row.f32.bf16.bf16.f32",
        "m16n8k16.col.col.f32.bf16.bf16.f32",
        "m16n8k16.row.col.f16.bf16.bf16.f16",
        "m16n8k16.row.col.f32.f16.f16.f16",
        "m16n8k16.row.col.satfinite.f32.f16.f16.f32",
        "m16n8k16.row.col.f32.tf32.tf32.f32",
        "m16n8k32.row.col.s32.s4.s4.s32",
        "m16n8k16.row.col.kind::f8f6f4.f32.e4m3.e4m3.f32",
    ] {
        assert!(refused(&format!("mma.sync.aligned.{form} {operands}")).contains("mma.sync.aligned.m16"), "{form}");
    }
    let short = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%d0, %d1}, {%a0, %a1, %a2, %a3}, {%b0, %b1}, \
                 {%c0, %c1, %c2, %c3};";
    assert!(refused(short).contains("a vector of 2 registers, not 4"));
    assert!(refused("ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%a0, %a1, %a2}, [%b0];").contains("x3"));
    assert!(refused("ldmatrix.sync.aligned.m8n8.x1.b16 {%a0}, [%b0];").contains("64 bits"));
}

/// A matrix element whose value says where it belongs: matrix, row, column.
fn mark(matrix: usize, row: usize, column: usize) -> u16 {
    (matrix << 8 | row << 4 | column) as u16 | 0x8000
}

#[test]
fn ldmatrix_gathers_rows_from_anywhere() {
    for (count, order) in [(1, false), (2, true), (4, false)] {
        for trans in ["", ".trans"] {
            let names = ["%d0", "%d1", "%d2", "%d3"][..count].join(", ");
            let shape = if order { format!("x{count}{trans}.m8n8") } else { format!("m8n8.x{count}{trans}") };
            let text =
                format!(".reg .b32 %d<4>, %p; ldmatrix.sync.aligned.{shape}.shared::cta.b16 {{{names}}}, [%p + 32];");
            let mut s = Snippet::new(&text).unwrap_or_else(|e| panic!("{e}"));
            // Rows in reverse order, 48 bytes apart.
            let address = |matrix: usize, row: usize| 1024 + (31 - (8 * matrix + row)) * 48;
            for matrix in 0..count {
                for row in 0..8 {
                    for column in 0..8 {
                        let at = address(matrix, row) + 2 * column;
                        s.shared()[at..at + 2].copy_from_slice(&mark(matrix, row, column).to_le_bytes());
                    }
                }
            }
            // The lanes that give no address hold rubbish.
            let rubbish = |lane: usize| if lane < 8 * count { address(lane / 8, lane % 8) as u32 - 32 } else { 3 };
            s.set_b32("%p", std::array::from_fn(rubbish));
            s.run();
            for matrix in 0..count {
                let row = s.b32(&format!("%d{matrix}"));
                for lane in 0..LANES {
                    for half in 0..2 {
                        let (r, c) = (lane / 4, lane % 4 * 2 + half);
                        let expect = if trans.is_empty() { mark(matrix, r, c) } else { mark(matrix, c, r) };
                        assert_eq!((row[lane] >> (16 * half)) as u16, expect, "{text}: lane {lane}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_row_of_ldmatrix_is_checked() {
    // Lanes of %w write the rows that they name.
    let run = |count: usize, address: &dyn Fn(usize) -> u32, written: u32| {
        let names = ["%d0", "%d1", "%d2", "%d3"][..count].join(", ");
        let text = format!(
            ".reg .b32 %d<4>, %p, %v; .reg .pred %w; @%w st.shared.v4.u32 [%p], {{%v, %v, %v, %v}};
             ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {{{names}}}, [%p];"
        );
        let mut team = Team::new(&text, 1, AsyncTiming::Late);
        team.checks.init = true;
        team.set_b32("%p", std::array::from_fn(address));
        team.set_pred("%w", written);
        team.run().err().map(|fault| (fault.kind, fault.lane))
    };
    let rows = |lane: usize| 1024 + 16 * lane as u32;
    assert_eq!(run(4, &rows, u32::MAX), None);
    assert_eq!(run(2, &rows, 0xffff), None);
    for lane in [0, 9, 23, 31] {
        let missing = run(4, &rows, !(1 << lane)).map(|(kind, _)| kind);
        assert_eq!(missing, Some(Kind::UninitialisedRead), "lane {lane}");
        let at = |shift: u32| move |l: usize| rows(l) + if l == lane { shift } else { 0 };
        assert_eq!(run(4, &at(8), 0), Some((Kind::Misaligned, Some(lane as u32))));
        let beyond = run(4, &at(1 << 20), 0).map(|(kind, _)| kind);
        assert_eq!(beyond, Some(Kind::OutOfBounds), "lane {lane}");
    }
}

#[test]
fn stmatrix_is_the_reverse_of_ldmatrix() {
    for trans in ["", ".trans"] {
        let text = format!(
            ".reg .b32 %s<4>, %d<4>; .reg .b64 %p; stmatrix.sync.aligned.m8n8.x4{trans}.b16 [%p], {{%s0, %s1, %s2, %s3}}; \
             ldmatrix.sync.aligned.m8n8.x4{trans}.b16 {{%d0, %d1, %d2, %d3}}, [%p];"
        );
        let mut s = Snippet::new(&text).unwrap_or_else(|e| panic!("{e}"));
        let address = |lane: usize| 64 + 16 * (lane * 5 % 32);
        s.set_b64("%p", std::array::from_fn(|lane| crate::memory::SHARED_WINDOW + address(lane) as u64));
        for i in 0..4 {
            s.set_b32(&format!("%s{i}"), std::array::from_fn(|lane| noise(lane + 40 * i, 1 << 20) as u32));
        }
        s.run();
        for i in 0..4 {
            assert_eq!(s.b32(&format!("%d{i}")), s.b32(&format!("%s{i}")));
        }
        // Element (0, 1) of matrix 1 is the upper half of lane 0; transposed, it is element (1, 0).
        let value = (s.b32("%s1")[0] >> 16) as u16;
        let at = if trans.is_empty() { address(8) + 2 } else { address(9) };
        assert_eq!(s.shared()[at..at + 2], value.to_le_bytes());
    }
}

#[test]
fn movmatrix_transposes() {
    let mut s = Snippet::new(".reg .b32 %a, %d; movmatrix.sync.aligned.m8n8.trans.b16 %d, %a;").unwrap();
    let element = |r: usize, c: usize| (r * 8 + c) as u32;
    s.set_b32("%a", std::array::from_fn(|l| element(l / 4, l % 4 * 2) | element(l / 4, l % 4 * 2 + 1) << 16));
    s.run();
    let expect = std::array::from_fn(|l| element(l % 4 * 2, l / 4) | element(l % 4 * 2 + 1, l / 4) << 16);
    assert_eq!(s.b32("%d"), expect);
}
