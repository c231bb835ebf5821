//! The SIMD video instructions (PTX ISA 9.0, section 9.7.17): vadd, vsub, vavrg, vabsdiff, vmin, vmax and vset on two
//! half-words or four bytes, with the default selection of elements. These are what compilers still emit; selectors and
//! masks, and the scalar video instructions, are refused.

use super::lanes::{Form, rare_ternary};
use crate::code::Class;
use crate::lower::{Lower, Modifiers, Result};
use crate::ptx::ast::Instruction;
use crate::ptx::ast::Type::{B32, S32, U32};

/// Lowers the SIMD video instructions.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    let (name, width) = match i.opcode.strip_suffix('2') {
        Some(name) => (name, 16),
        None => (i.opcode.strip_suffix('4')?, 8),
    };
    let operation = match name {
        "vadd" => ADD,
        "vsub" => SUB,
        "vavrg" => AVERAGE,
        "vabsdiff" => DIFFERENCE,
        "vmin" => MIN,
        "vmax" => MAX,
        "vset" => SET,
        _ => return None,
    };
    Some(simd(cx, i, operation, width))
}

const ADD: u64 = 0;
const SUB: u64 = 1;
const AVERAGE: u64 = 2;
const DIFFERENCE: u64 = 3;
const MIN: u64 = 4;
const MAX: u64 = 5;
const SET: u64 = 6;

// The immediate: bits 0 to 2 the operation, then flags; bits 8 to 10 the outcomes of `vset`, from bit 16 on the width.
const DST_SIGNED: u64 = 1 << 3;
const A_SIGNED: u64 = 1 << 4;
const B_SIGNED: u64 = 1 << 5;
const SAT: u64 = 1 << 6;
const ACCUMULATE: u64 = 1 << 7;

/// `vop{2,4}.dtype.atype.btype{.sat | .add} d, a, b, c` and `vset{2,4}.atype.btype.cmp{.add} d, a, b, c`
fn simd(cx: &mut Lower, i: &Instruction, operation: u64, width: u64) -> Result<()> {
    let mut m = Modifiers::new(i);
    let mut imm = operation | width << 16;
    let flags: &[u64] = if operation == SET { &[A_SIGNED, B_SIGNED] } else { &[DST_SIGNED, A_SIGNED, B_SIGNED] };
    for flag in flags {
        imm |= if m.ty(&[U32, S32])? == S32 { *flag } else { 0 };
    }
    if operation == SET {
        // Less, equal, greater.
        let outcomes = [("eq", 2), ("ne", 5), ("lt", 1), ("le", 3), ("gt", 4), ("ge", 6)];
        imm |= m.expect(&outcomes)? << 8;
    } else if m.take("sat") {
        imm |= SAT;
    }
    if imm & SAT == 0 && m.take("add") {
        imm |= ACCUMULATE;
    }
    m.finish()?;
    Form { class: Class::Integer, run: rare_ternary(elements), dst: B32, src: &[B32, B32, B32], imm }.emit(cx, i)
}

/// Every element; the results side by side, or added to `c`.
fn elements(a: u32, b: u32, c: u32, imm: u64) -> u32 {
    let width = (imm >> 16) as u32 & 31;
    let (mut packed, mut sum) = (0u32, c);
    for at in (0..32).step_by(width as usize) {
        let x = element(a, at, width, imm & A_SIGNED != 0);
        let y = element(b, at, width, imm & B_SIGNED != 0);
        let result = one(x, y, width, imm);
        packed |= (result as u32 & ((1 << width) - 1)) << at;
        sum = sum.wrapping_add(result as u32);
    }
    if imm & ACCUMULATE != 0 { sum } else { packed }
}

fn element(word: u32, at: u32, width: u32, signed: bool) -> i32 {
    let top = word >> at << (32 - width);
    if signed { top as i32 >> (32 - width) } else { (top >> (32 - width)) as i32 }
}

fn one(x: i32, y: i32, width: u32, imm: u64) -> i32 {
    let result = match imm & 7 {
        ADD => x + y,
        SUB => x - y,
        AVERAGE => (x + y + (x + y >= 0) as i32) >> 1,
        DIFFERENCE => (x - y).abs(),
        MIN => x.min(y),
        MAX => x.max(y),
        _ => (imm >> 8 >> (x.cmp(&y) as i8 + 1) & 1) as i32,
    };
    match (imm & SAT != 0, imm & DST_SIGNED != 0) {
        (false, _) => result,
        (true, true) => result.clamp(-1 << (width - 1), (1 << (width - 1)) - 1),
        (true, false) => result.clamp(0, (1 << width) - 1),
    }
}

#[cfg(test)]
mod tests {
    use crate::isa::probe::{eval, refused};

    fn run(instruction: &str, a: u32, b: u32, c: u32) -> u32 {
        eval(instruction, "b32", &[("b32", &[a as u64]), ("b32", &[b as u64]), ("b32", &[c as u64])])[0] as u32
    }

    #[test]
    fn bytes_and_half_words_stay_apart() {
        assert_eq!(run("vadd4.u32.u32.u32", 0xff01_7f80, 0x0102_0180, 0), 0x0003_8000);
        assert_eq!(run("vadd4.u32.u32.u32.sat", 0xff01_7f80, 0x0102_0180, 0), 0xff03_80ff);
        assert_eq!(run("vadd4.s32.s32.s32.sat", 0xff01_7f80, 0x0102_0180, 0), 0x0003_7f80);
        assert_eq!(run("vsub2.u32.u32.u32.sat", 0x0001_0005, 0x0002_0003, 0), 0x0000_0002);
        assert_eq!(run("vabsdiff2.u32.s32.s32", 0xffff_0005, 0x0001_fffb, 0), 0x0002_000a);
        assert_eq!(run("vmin4.s32.s32.s32", 0xff01_7f80, 0x0102_0181, 0), 0xff01_0180);
        assert_eq!(run("vmax4.u32.u32.u32", 0xff01_7f80, 0x0102_0181, 0), 0xff02_7f81);
        assert_eq!(run("vavrg4.u32.u32.u32", 0x0001_00ff, 0x0102_00fe, 0), 0x0102_00ff);
        assert_eq!(run("vavrg4.s32.s32.s32", 0xff00_0000, 0xfe00_0000, 0), 0xfe00_0000);
    }

    #[test]
    fn sums_and_comparisons() {
        assert_eq!(run("vabsdiff4.u32.u32.u32.add", 0x0102_03ff, 0x0201_0300, 1000), 1257);
        assert_eq!(run("vset4.u32.u32.ge", 0x0102_03ff, 0x0201_0300, 0), 0x0001_0101);
        assert_eq!(run("vset2.s32.s32.lt.add", 0xffff_0000, 0x0000_0000, 7), 8);
        assert!(refused(".reg .b32 %a; vadd4.u32.u32.u32.sat.add %a, %a, %a, %a;").contains("`.add`"));
    }
}
