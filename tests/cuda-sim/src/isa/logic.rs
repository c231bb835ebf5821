//! Logic and shifts (PTX ISA 9.0, section 9.7.8): and, or, xor, not, cnot, lop3, shf, shl, shr, and prmt (section 9.7.9).

use super::lanes::{Form, binary, predicate, rare_ternary, rare_unary, ternary, ternary_with, unary};
use crate::code::{Class, Flow, Op, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::simd::{Semantics, portable_only};
use crate::machine::{Cx, LANES};
use crate::ptx::ast::Type::{self, *};
use crate::ptx::ast::{Instruction, Operand};

/// Lowers the logic and shift instructions.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    Some(match i.opcode.as_str() {
        "and" | "or" | "xor" => binary_logic(cx, i),
        "not" | "cnot" => unary_logic(cx, i),
        "lop3" => lop3(cx, i),
        "shl" | "shr" => shift(cx, i),
        "shf" => funnel(cx, i),
        "prmt" => permute(cx, i),
        _ => return None,
    })
}

fn form(cx: &mut Lower, i: &Instruction, run: Run, dst: Type, src: &[Type]) -> Result<()> {
    Form { class: Class::Integer, run, dst, src, imm: 0 }.emit(cx, i)
}

/// `and`, `or` and `xor`. On predicates, both sources are read as masks.
fn binary_logic(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let ty = m.ty(&[Pred, B16, B32, B64])?;
    m.finish()?;
    let run = match (i.opcode.as_str(), ty) {
        ("and", Pred) => portable_only::<PredicateLogic<0>>(),
        ("or", Pred) => portable_only::<PredicateLogic<1>>(),
        (_, Pred) => portable_only::<PredicateLogic<2>>(),
        ("and", B64) => binary(|a: u64, b: u64| a & b),
        ("or", B64) => binary(|a: u64, b: u64| a | b),
        (_, B64) => binary(|a: u64, b: u64| a ^ b),
        ("and", _) => binary(|a: u32, b: u32| a & b),
        ("or", _) => binary(|a: u32, b: u32| a | b),
        (_, _) => binary(|a: u32, b: u32| a ^ b),
    };
    form(cx, i, run, ty, &[ty, ty])
}

/// And, or and xor of predicates: one word holds all lanes.
struct PredicateLogic<const OPERATOR: u8>;

impl<const OPERATOR: u8> Semantics for PredicateLogic<OPERATOR> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let (a, b) = (cx.pred(op.src[0]), cx.pred(op.src[1]));
        cx.set_pred(
            op.dst[0],
            match OPERATOR {
                0 => a & b,
                1 => a | b,
                _ => a ^ b,
            },
        );
        Flow::Next
    }
}

struct PredicateNot;

impl Semantics for PredicateNot {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let a = cx.pred(op.src[0]);
        cx.set_pred(op.dst[0], !a);
        Flow::Next
    }
}

fn unary_logic(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let not = i.opcode == "not";
    let ty = m.ty(if not { &[Pred, B16, B32, B64] } else { &[B16, B32, B64] })?;
    m.finish()?;
    let run = match (not, ty) {
        (true, Pred) => portable_only::<PredicateNot>(),
        (true, B16) => unary(|a: u16| !a),
        (true, B32) => unary(|a: u32| !a),
        (true, _) => unary(|a: u64| !a),
        (false, B16) => rare_unary(|a: u16, _| (a == 0) as u16),
        (false, B32) => rare_unary(|a: u32, _| (a == 0) as u32),
        (false, _) => rare_unary(|a: u64, _| (a == 0) as u64),
    };
    form(cx, i, run, ty, &[ty])
}

/// `lop3.b32 d, a, b, c, immLut` and `lop3.BoolOp.b32 d|p, a, b, c, immLut, q`.
fn lop3(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let operator = m.one_of(&[("or", true), ("and", false)]);
    m.ty(&[B32])?;
    m.finish()?;
    cx.arity(i, &[if operator.is_some() { 6 } else { 5 }])?;
    let Operand::Int(lut @ 0..=255) = i.operands[4] else {
        return cx.error(i, "immLut is not a constant from 0 to 255");
    };
    let run = if operator.is_some() { portable_only::<Lop3Predicate>() } else { ternary_with(lop3_bits) };
    let mut op = cx.op(i, Class::Integer, run);
    op.imm = lut as u64;
    for at in 0..3 {
        op.src[at] = cx.src(i, &i.operands[1 + at], B32)?;
    }
    if let Some(or) = operator {
        let Operand::Pair(d, p) = &i.operands[0] else {
            return cx.error(i, "the destination is not a pair `d|p`");
        };
        op.dst = [cx.dst(i, d, B32)?, cx.dst(i, p, Pred)?];
        let (q, negated) = predicate(cx, i, &i.operands[5])?;
        op.src[3] = q;
        op.imm |= (or as u64) << 8 | (negated as u64) << 9;
    } else {
        op.dst[0] = cx.dst(i, &i.operands[0], B32)?;
    }
    cx.emit(op);
    Ok(())
}

/// The function of three bits that the look-up table `lut` gives, bit by bit: a tree of selections by `c`, `b`, `a`.
#[inline(always)]
fn lop3_bits(a: u32, b: u32, c: u32, lut: u64) -> u32 {
    let leaf = |bit: u32| 0u32.wrapping_sub((lut >> bit) as u32 & 1);
    let select = |s: u32, one: u32, zero: u32| zero ^ s & (zero ^ one);
    let by_c = |pair: u32| select(c, leaf(pair + 1), leaf(pair));
    select(a, select(b, by_c(6), by_c(4)), select(b, by_c(2), by_c(0)))
}

/// `lop3` with the predicate `(d != 0) BoolOp q`.
struct Lop3Predicate;

impl Semantics for Lop3Predicate {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let (a, b, c) = (cx.b32(op.src[0]), cx.b32(op.src[1]), cx.b32(op.src[2]));
        let q = cx.pred(op.src[3]) ^ if op.imm & 0x200 != 0 { !0 } else { 0 };
        let (mut d, mut nonzero) = ([0; LANES], 0);
        for lane in 0..LANES {
            d[lane] = lop3_bits(a[lane], b[lane], c[lane], op.imm & 0xff);
            nonzero |= if d[lane] != 0 { 1 << lane } else { 0 };
        }
        cx.set_b32(op.dst[0], d);
        cx.set_pred(op.dst[1], if op.imm & 0x100 != 0 { nonzero | q } else { nonzero & q });
        Flow::Next
    }
}

/// `shl` and `shr`: amounts beyond the width shift everything out.
fn shift(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let left = i.opcode == "shl";
    let all = [B16, B32, B64, U16, U32, U64, S16, S32, S64];
    let ty = m.ty(if left { &all[..3] } else { &all })?;
    m.finish()?;
    let run = match (left, ty) {
        (true, B16) => binary(|a: u32, n: u32| (a << n.min(16)) as u16),
        (true, B32) => binary(|a: u32, n: u32| if n > 31 { 0 } else { a << n }),
        (true, _) => binary(|a: u64, n: u32| if n > 63 { 0 } else { a << n }),
        (false, S16) => binary(|a: i16, n: u32| a >> n.min(15)),
        (false, S32) => binary(|a: i32, n: u32| a >> n.min(31)),
        (false, S64) => binary(|a: i64, n: u32| a >> n.min(63)),
        (false, B16 | U16) => binary(|a: u16, n: u32| (a as u32 >> n.min(16)) as u16),
        (false, B32 | U32) => binary(|a: u32, n: u32| if n > 31 { 0 } else { a >> n }),
        (false, _) => binary(|a: u64, n: u32| if n > 63 { 0 } else { a >> n }),
    };
    form(cx, i, run, ty, &[ty, U32])
}

/// `shf`: a window of 32 bits on `b:a`.
fn funnel(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let left = m.expect(&[("l", true), ("r", false)])?;
    let clamp = m.expect(&[("clamp", true), ("wrap", false)])?;
    m.ty(&[B32])?;
    m.finish()?;
    let run = match (left, clamp) {
        (true, true) => ternary(|a: u32, b: u32, c: u32| funnel_left(a, b, c.min(32))),
        (true, false) => ternary(|a: u32, b: u32, c: u32| funnel_left(a, b, c & 31)),
        (false, true) => ternary(|a: u32, b: u32, c: u32| (wide(a, b) >> c.min(32)) as u32),
        (false, false) => ternary(|a: u32, b: u32, c: u32| (wide(a, b) >> (c & 31)) as u32),
    };
    form(cx, i, run, B32, &[B32, B32, U32])
}

#[inline(always)]
fn wide(a: u32, b: u32) -> u64 {
    (b as u64) << 32 | a as u64
}

#[inline(always)]
fn funnel_left(a: u32, b: u32, n: u32) -> u32 {
    (wide(a, b) << n >> 32) as u32
}

/// `prmt`: four bytes picked from the eight of `b:a`.
fn permute(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.ty(&[B32])?;
    let mode = m.one_of(&[
        ("f4e", [0x3210, 0x4321, 0x5432, 0x6543]),
        ("b4e", [0x5670, 0x6701, 0x7012, 0x0123]),
        ("rc8", [0x0000, 0x1111, 0x2222, 0x3333]),
        ("ecl", [0x3210, 0x3211, 0x3222, 0x3333]),
        ("ecr", [0x0000, 0x1110, 0x2210, 0x3210]),
        ("rc16", [0x1010, 0x3232, 0x1010, 0x3232]),
    ]);
    m.finish()?;
    let Some(selectors) = mode else {
        return form(cx, i, ternary(permute_generic), B32, &[B32, B32, B32]);
    };
    // The four selectors of the mode, 16 bits each, in the immediate.
    let imm = (0..4).map(|at| (selectors[at] as u64) << (16 * at)).sum();
    let run =
        rare_ternary(|a: u32, b: u32, c: u32, imm| permute_generic(a, b, (imm >> (16 * (c & 3))) as u32 & 0x7777));
    Form { class: Class::Integer, run, dst: B32, src: &[B32, B32, B32], imm }.emit(cx, i)
}

/// Byte `i` of the result is the byte that nibble `i` of the selector names; bit 3 of the nibble asks for its sign.
#[inline(always)]
fn permute_generic(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = wide(a, b);
    let mut d = 0;
    for at in 0..4 {
        let nibble = selector >> (4 * at) & 0xf;
        let byte = (bytes >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
        d |= (byte as u32) << (8 * at);
    }
    d
}

#[cfg(test)]
mod tests {
    use crate::isa::probe::{eval, integers, pairs, refused};
    use crate::testing::Snippet;

    #[test]
    fn bitwise_operations_of_every_width() {
        for width in [16u32, 32, 64] {
            let mask = u64::MAX >> (64 - width);
            let (a, b) = pairs(&integers(width), &integers(width));
            let register = format!("b{width}");
            let args = [(register.as_str(), &a[..]), (register.as_str(), &b[..])];
            let got = |name: &str, arity| eval(&format!("{name}.b{width}"), &register, &args[..arity]);
            let (and, or, xor) = (got("and", 2), got("or", 2), got("xor", 2));
            let (not, cnot) = (got("not", 1), got("cnot", 1));
            for at in 0..a.len() {
                assert_eq!((and[at], or[at], xor[at]), (a[at] & b[at], a[at] | b[at], a[at] ^ b[at]));
                assert_eq!((not[at], cnot[at]), (!a[at] & mask, (a[at] == 0) as u64));
            }
        }
    }

    #[test]
    fn predicates_are_masks() {
        let text = ".reg .pred %a, %b, %and, %or, %xor, %not;
            and.pred %and, %a, %b; or.pred %or, %a, %b; xor.pred %xor, %a, %b; not.pred %not, %a;";
        let mut s = Snippet::new(text).unwrap();
        s.set_pred("%a", 0b1100);
        s.set_pred("%b", 0b1010);
        s.set_pred("%not", 1 << 31);
        s.run_lanes(0xff);
        assert_eq!((s.pred("%and"), s.pred("%or"), s.pred("%xor")), (0b1000, 0b1110, 0b0110));
        assert_eq!(s.pred("%not"), 1 << 31 | 0b1111_0011);
    }

    #[test]
    fn every_table_of_three_bits() {
        let [a, b, c]: [u64; 3] = [0xf0f0_1234, 0xcccc_5678, 0xaaaa_9abc];
        for lut in 0..256u64 {
            let text = format!(".reg .b32 %d, %a, %b, %c; lop3.b32 %d, %a, %b, %c, {lut};");
            let mut s = Snippet::new(&text).unwrap();
            for (name, value) in [("%a", a), ("%b", b), ("%c", c)] {
                s.set_b32(name, [value as u32; 32]);
            }
            s.run();
            let index = |k: u64| (a >> k & 1) << 2 | (b >> k & 1) << 1 | c >> k & 1;
            let want: u64 = (0..32).map(|k| (lut >> index(k) & 1) << k).sum();
            assert_eq!(s.b32("%d")[0] as u64, want, "{lut:#x}");
        }
    }

    #[test]
    fn lop3_with_a_predicate() {
        let mut s = Snippet::new(
            ".reg .b32 %a, %d; .reg .pred %q, %p<4>;
            lop3.or.b32 %d|%p0, %a, 0, 0, 0xf0, %q; lop3.and.b32 _|%p1, %a, 0, 0, 0xf0, %q;
            lop3.or.b32 _|%p2, %a, 0, 0, 0xf0, !%q; lop3.and.b32 _|%p3, %a, 0, 0, 0xf0, !%q;",
        )
        .unwrap();
        s.set_b32("%a", std::array::from_fn(|lane| lane as u32 & 1));
        s.set_pred("%q", 0b1100);
        s.run_lanes(0b1111);
        let got: Vec<u32> = (0..4).map(|at| s.pred(&format!("%p{at}"))).collect();
        assert_eq!(got, [0b1110, 0b1000, 0b1011, 0b0010]);
        assert_eq!(s.b32("%d")[..4], [0, 1, 0, 1]);
    }

    #[test]
    fn shifts_beyond_the_width_leave_nothing_or_the_sign() {
        let amounts = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 0xffff_ffff];
        for width in [16u32, 32, 64] {
            let mask = u64::MAX >> (64 - width);
            let (a, n) = pairs(&integers(width), &amounts);
            let register = format!("b{width}");
            let args = [(register.as_str(), &a[..]), ("b32", &n[..])];
            let run = |name: &str| eval(&format!("{name}{width}"), &register, &args);
            let (left, right, plain, signed) = (run("shl.b"), run("shr.u"), run("shr.b"), run("shr.s"));
            for at in 0..a.len() {
                let n = n[at].min(64) as u32;
                let shifted = |x: i128| (if n > 127 { 0 } else { x >> n }) as u64 & mask;
                let sign = if a[at] >> (width - 1) != 0 { -1i128 << width } else { 0 };
                assert_eq!(left[at], ((a[at] as u128) << n) as u64 & mask, "shl.b{width} {:#x} {n}", a[at]);
                assert_eq!(right[at], shifted(a[at] as i128), "shr.u{width} {:#x} {n}", a[at]);
                assert_eq!(plain[at], right[at]);
                assert_eq!(signed[at], shifted(a[at] as i128 | sign), "shr.s{width} {:#x} {n}", a[at]);
            }
        }
    }

    #[test]
    fn funnel_shifts_clamp_or_wrap() {
        let amounts: Vec<u64> = vec![0, 1, 8, 31, 32, 33, 40, 0xffff_ffff];
        let (ab, c) = pairs(&(0..64).collect::<Vec<_>>(), &amounts);
        let words = integers(32);
        let (a, b): (Vec<u64>, Vec<u64>) = ab.iter().map(|k| (words[*k as usize / 8], words[*k as usize % 8])).unzip();
        let args = [("b32", &a[..]), ("b32", &b[..]), ("b32", &c[..])];
        for (mode, clamps) in [("clamp", true), ("wrap", false)] {
            let left = eval(&format!("shf.l.{mode}.b32"), "b32", &args);
            let right = eval(&format!("shf.r.{mode}.b32"), "b32", &args);
            for at in 0..a.len() {
                let n = if clamps { c[at].min(32) } else { c[at] & 31 };
                let both = (b[at] as u128) << 32 | a[at] as u128;
                assert_eq!(left[at], (both << n >> 32) as u64 & 0xffff_ffff, "shf.l.{mode} {n}");
                assert_eq!(right[at], (both >> n) as u64 & 0xffff_ffff, "shf.r.{mode} {n}");
            }
        }
    }

    #[test]
    fn permutations_pick_bytes_and_signs() {
        let run = |instruction: &str, c: u64| {
            eval(instruction, "b32", &[("b32", &[0x8332_2110]), ("b32", &[0x7766_d544]), ("b32", &[c])])[0]
        };
        assert_eq!(run("prmt.b32", 0x3210), 0x8332_2110);
        assert_eq!(run("prmt.b32", 0x7654), 0x7766_d544);
        assert_eq!(run("prmt.b32", 0x0167), 0x1021_6677);
        // Signs: of byte 3 (negative), of byte 5 (negative), of byte 0.
        assert_eq!(run("prmt.b32", 0xffff_bd83), 0xffff_0083);
        let modes: [(&str, [u64; 4]); 6] = [
            ("f4e", [0x8332_2110, 0x4483_3221, 0xd544_8332, 0x66d5_4483]),
            ("b4e", [0xd566_7710, 0x6677_1021, 0x7710_2132, 0x1021_3283]),
            ("rc8", [0x1010_1010, 0x2121_2121, 0x3232_3232, 0x8383_8383]),
            ("ecl", [0x8332_2110, 0x8332_2121, 0x8332_3232, 0x8383_8383]),
            ("ecr", [0x1010_1010, 0x2121_2110, 0x3232_2110, 0x8332_2110]),
            ("rc16", [0x2110_2110, 0x8332_8332, 0x2110_2110, 0x8332_8332]),
        ];
        for (mode, results) in modes {
            for (c, want) in results.iter().enumerate() {
                assert_eq!(run(&format!("prmt.b32.{mode}"), c as u64 | 0x54), *want, "{mode} {c}");
            }
        }
    }

    #[test]
    fn what_the_isa_does_not_have_is_refused() {
        let line = |instruction: &str| refused(&format!(".reg .b32 %a; .reg .pred %p; {instruction};"));
        assert!(line("and.u32 %a, %a, %a").contains("`.u32`"));
        assert!(line("cnot.pred %p, %p").contains("`.pred`"));
        assert!(line("shl.s32 %a, %a, %a").contains("`.s32`"));
        assert!(line("lop3.b32 %a, %a, %a, %a, 256").contains("immLut"));
        assert!(line("lop3.xor.b32 %a|%p, %a, %a, %a, 1, %p").contains("`.xor`"));
        assert!(line("shf.l.b32 %a, %a, %a, %a").contains("`.b32`"));
    }
}
