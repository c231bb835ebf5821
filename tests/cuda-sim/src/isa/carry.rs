//! Extended-precision integer arithmetic (PTX ISA 9.0, section 9.7.2): add.cc, addc, sub.cc, subc, mad.cc, madc.
//!
//! The condition code register `CC.CF` is a predicate of the function's window, so every lane has its own. It is the
//! carry of an adder also after a subtraction: set unless something was borrowed. Compilers' own code (the division of
//! 128-bit integers) subtracts and then takes the flag with `addc`.

use std::marker::PhantomData;

use super::integer::Product;
use super::lanes::{Value, has, unpack};
use crate::code::{Class, Dst, Flow, Op, Run, Src};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::simd::{Semantics, portable_only};
use crate::machine::{Cx, LANES};
use crate::ptx::ast::Instruction;
use crate::ptx::ast::Type::{self, *};

/// Lowers the instructions that read or write the carry.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "addc" | "subc" | "madc" => Some(carry(cx, i)),
        "add" | "sub" | "mad" if has(i, &["cc"]) => Some(carry(cx, i)),
        _ => None,
    }
}

fn carry(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let (name, reads) = match i.opcode.strip_suffix('c') {
        Some(name) => (name, true),
        None => (i.opcode.as_str(), false),
    };
    let high = name == "mad" && m.expect(&[("lo", false), ("hi", true)])?;
    let writes = m.take("cc");
    let ty = m.ty(&[U32, S32, U64, S64])?;
    m.finish()?;
    let run = match (name, high) {
        ("add", _) => by_width::<Add>(ty),
        ("sub", _) => by_width::<Sub>(ty),
        (_, false) => by_width::<MadLow>(ty),
        (_, true) => by_width::<MadHigh>(ty),
    };
    let sources = if name == "mad" { 3 } else { 2 };
    cx.arity(i, &[1 + sources])?;
    let mut op = cx.op(i, Class::Integer, run);
    op.dst[0] = cx.dst(i, &i.operands[0], ty)?;
    for at in 0..sources {
        op.src[at] = cx.src(i, &i.operands[1 + at], ty)?;
    }
    if sources == 2 {
        op.src[2] = op.src[1];
    }
    let flag = cx.carry();
    // Nothing is borrowed at first.
    op.src[3] = if reads { Src::register(flag) } else { cx.constant(u64::from(name == "sub")) };
    op.dst[1] = if writes { Dst(flag) } else { Dst::SINK };
    cx.emit(op);
    Ok(())
}

/// An operation on words with a carry in and out.
trait Step: 'static {
    fn step<T: Word>(a: T, b: T, c: T, carry: bool) -> (T, bool);
}

struct Add;
struct Sub;
struct MadLow;
struct MadHigh;

impl Step for Add {
    #[inline(always)]
    fn step<T: Word>(a: T, b: T, _: T, carry: bool) -> (T, bool) {
        a.add(b, carry)
    }
}

impl Step for Sub {
    #[inline(always)]
    fn step<T: Word>(a: T, b: T, _: T, carry: bool) -> (T, bool) {
        let (rest, borrow) = a.sub(b, !carry);
        (rest, !borrow)
    }
}

impl Step for MadLow {
    #[inline(always)]
    fn step<T: Word>(a: T, b: T, c: T, carry: bool) -> (T, bool) {
        a.low(b).add(c, carry)
    }
}

impl Step for MadHigh {
    #[inline(always)]
    fn step<T: Word>(a: T, b: T, c: T, carry: bool) -> (T, bool) {
        a.high(b).add(c, carry)
    }
}

/// An integer type; the carries are those of its bits taken as unsigned.
trait Word: Product {
    fn add(self, other: Self, carry: bool) -> (Self, bool);
    fn sub(self, other: Self, borrow: bool) -> (Self, bool);
    fn low(self, other: Self) -> Self;
}

macro_rules! word {
    ($($ty:ty as $unsigned:ty),*) => {$(
        impl Word for $ty {
            #[inline(always)]
            fn add(self, other: Self, carry: bool) -> (Self, bool) {
                let (sum, first) = (self as $unsigned).overflowing_add(other as $unsigned);
                let (sum, second) = sum.overflowing_add(carry as $unsigned);
                (sum as $ty, first | second)
            }
            #[inline(always)]
            fn sub(self, other: Self, borrow: bool) -> (Self, bool) {
                let (rest, first) = (self as $unsigned).overflowing_sub(other as $unsigned);
                let (rest, second) = rest.overflowing_sub(borrow as $unsigned);
                (rest as $ty, first | second)
            }
            #[inline(always)]
            fn low(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
        }
    )*};
}
word!(u32 as u32, i32 as u32, u64 as u64, i64 as u64);

fn by_width<S: Step>(ty: Type) -> Run {
    match ty {
        U32 => portable_only::<WithCarry<S, u32>>(),
        S32 => portable_only::<WithCarry<S, i32>>(),
        U64 => portable_only::<WithCarry<S, u64>>(),
        _ => portable_only::<WithCarry<S, i64>>(),
    }
}

struct WithCarry<S, T>(PhantomData<(S, T)>);

impl<S: Step, T: Word> Semantics for WithCarry<S, T> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let (a, b, c) = (T::read(cx, op.src[0]), T::read(cx, op.src[1]), T::read(cx, op.src[2]));
        let carry = unpack(cx.pred(op.src[3]));
        let (mut out, mut carries) = ([T::default(); LANES], [false; LANES]);
        for lane in 0..LANES {
            (out[lane], carries[lane]) = S::step(a[lane], b[lane], c[lane], carry[lane]);
        }
        T::write(cx, op.dst[0], out);
        bool::write(cx, op.dst[1], carries);
        Flow::Next
    }
}

#[cfg(test)]
mod tests {
    use crate::isa::probe::{Bits, integers, refused, set};
    use crate::testing::Snippet;

    /// Runs straight-line code on registers `%a0..`, given by their values in every lane; `%d0..` are the results.
    fn run(ty: &str, code: &str, inputs: &[[u64; 32]], outputs: usize) -> Vec<[u64; 32]> {
        let text = format!(".reg .{ty} %a<{}>, %d<{outputs}>; {code}", inputs.len());
        let mut s = Snippet::new(&text).unwrap();
        for (at, row) in inputs.iter().enumerate() {
            set(&mut s, &format!("%a{at}"), ty, *row);
        }
        s.run();
        (0..outputs).map(|at| crate::isa::probe::get(&s, &format!("%d{at}"), ty)).collect()
    }

    /// 32 lanes of corner cases.
    fn rows<const N: usize>(width: u32) -> [[u64; 32]; N] {
        let corners = integers(width);
        let mut random = Bits(11);
        std::array::from_fn(|_| std::array::from_fn(|_| corners[random.next() as usize % corners.len()]))
    }

    #[test]
    fn sums_and_differences_of_128_bits() {
        for ty in ["u32", "s32"] {
            let code = format!(
                "add.cc.{ty} %d0, %a0, %a4; addc.cc.{ty} %d1, %a1, %a5; addc.cc.{ty} %d2, %a2, %a6; addc.{ty} %d3, %a3, %a7;
                 sub.cc.{ty} %d4, %a0, %a4; subc.cc.{ty} %d5, %a1, %a5; subc.cc.{ty} %d6, %a2, %a6; subc.{ty} %d7, %a3, %a7;"
            );
            let a = rows::<8>(32);
            let d = run("b32", &code, &a, 8);
            for lane in 0..32 {
                let join = |rows: &[[u64; 32]]| (0..4).map(|k| (rows[k][lane] as u128) << (32 * k)).sum::<u128>();
                let (x, y) = (join(&a[..4]), join(&a[4..]));
                assert_eq!(join(&d[..4]), x.wrapping_add(y), "{ty} {x:#x} + {y:#x}");
                assert_eq!(join(&d[4..]), x.wrapping_sub(y), "{ty} {x:#x} - {y:#x}");
            }
        }
        let a = rows::<4>(64);
        let code =
            "add.cc.u64 %d0, %a0, %a2; addc.u64 %d1, %a1, %a3; sub.cc.s64 %d2, %a0, %a2; subc.s64 %d3, %a1, %a3;";
        let d = run("b64", code, &a, 4);
        for lane in 0..32 {
            let join = |low: &[u64; 32], high: &[u64; 32]| (high[lane] as u128) << 64 | low[lane] as u128;
            let (x, y) = (join(&a[0], &a[1]), join(&a[2], &a[3]));
            assert_eq!(join(&d[0], &d[1]), x.wrapping_add(y));
            assert_eq!(join(&d[2], &d[3]), x.wrapping_sub(y));
        }
    }

    #[test]
    fn the_flag_of_a_difference_is_a_carry() {
        // Set unless something was borrowed, as `addc` after it shows; and `subc` after a sum borrows when it is not.
        let code = "sub.cc.u32 %d0, %a0, %a1; addc.u32 %d1, 0, 0; add.cc.u32 %d0, %a0, %a1; subc.u32 %d2, 7, 0;";
        let a = rows::<2>(32);
        let d = run("b32", code, &a, 3);
        for lane in 0..32 {
            let (x, y) = (a[0][lane], a[1][lane]);
            assert_eq!(d[1][lane], u64::from(x >= y), "{x:#x} - {y:#x}");
            assert_eq!(d[2][lane], 6 + ((x + y) >> 32), "{x:#x} + {y:#x}");
        }
    }

    #[test]
    fn a_product_of_64_bits_from_words() {
        // The extended-precision product that section 9.7.2 gives as an example.
        let code = "mul.lo.u32 %d0, %a0, %a2; mul.hi.u32 %d1, %a0, %a2;
            mad.lo.cc.u32 %d1, %a1, %a2, %d1; madc.hi.u32 %d2, %a1, %a2, 0;
            mad.lo.cc.u32 %d1, %a0, %a3, %d1; madc.hi.cc.u32 %d2, %a0, %a3, %d2; addc.u32 %d3, 0, 0;
            mad.lo.cc.u32 %d2, %a1, %a3, %d2; madc.hi.u32 %d3, %a1, %a3, %d3;";
        let a = rows::<4>(32);
        let d = run("b32", code, &a, 4);
        for lane in 0..32 {
            let (x, y) = (a[1][lane] << 32 | a[0][lane], a[3][lane] << 32 | a[2][lane]);
            let got: u128 = (0..4).map(|k| (d[k][lane] as u128) << (32 * k)).sum();
            assert_eq!(got, x as u128 * y as u128, "{x:#x} * {y:#x}");
        }
    }

    #[test]
    fn only_the_executing_lanes_carry() {
        let text = ".reg .b32 %a, %d; add.cc.u32 %d, %a, 1;";
        let mut s = Snippet::new(&format!("{text} addc.u32 %d, 0, 0;")).unwrap();
        s.set_b32("%a", [u32::MAX; 32]);
        s.set_b32("%d", [9; 32]);
        s.run_lanes(0b101);
        assert_eq!(s.b32("%d")[..4], [1, 9, 1, 9]);
        assert!(refused(".reg .b16 %a; add.cc.u16 %a, %a, %a;").contains("`.u16`"));
    }
}
