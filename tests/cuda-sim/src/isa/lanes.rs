//! Lifts scalar functions to whole-warp operations: one function of one lane's values is all that an instruction needs.

use std::marker::PhantomData;

use crate::code::{Class, Dst, Flow, Op, Run, Src};
use crate::lower::{Lower, Result};
use crate::machine::simd::{Semantics, choose, portable_only};
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Operand, Type};

/// A scalar as lanes hold it: which register file, and which of its bits.
pub trait Value: Copy + Default + 'static {
    /// The operand in every lane.
    fn read(cx: &Cx<'_>, src: Src) -> Row<Self>;
    /// Writes the executing lanes. Values of 16 bits and less are zero-extended.
    fn write(cx: &mut Cx<'_>, dst: Dst, row: Row<Self>);
}

/// Implements [`Value`]: the accessors of the register file, and the functions from and to its words.
macro_rules! value {
    ($($ty:ty: $read:ident as $from:expr, $write:ident as $to:expr;)*) => {$(
        impl Value for $ty {
            #[inline(always)]
            fn read(cx: &Cx<'_>, src: Src) -> Row<Self> {
                map(cx.$read(src), $from)
            }
            #[inline(always)]
            fn write(cx: &mut Cx<'_>, dst: Dst, row: Row<Self>) {
                cx.$write(dst, map(row, $to));
            }
        }
    )*};
}
pub(crate) use value;

value! {
    u8: b32 as |word| word as u8, set_b32 as |value| value as u32;
    u16: b32 as |word| word as u16, set_b32 as |value| value as u32;
    i16: b32 as |word| word as i16, set_b32 as |value| value as u16 as u32;
    u32: b32 as |word| word, set_b32 as |value| value;
    i32: b32 as |word| word as i32, set_b32 as |value| value as u32;
    f32: b32 as f32::from_bits, set_b32 as f32::to_bits;
    u64: b64 as |word| word, set_b64 as |value| value;
    i64: b64 as |word| word as i64, set_b64 as |value| value as u64;
    f64: b64 as f64::from_bits, set_b64 as f64::to_bits;
}

impl Value for bool {
    #[inline(always)]
    fn read(cx: &Cx<'_>, src: Src) -> Row<bool> {
        unpack(cx.pred(src))
    }

    #[inline(always)]
    fn write(cx: &mut Cx<'_>, dst: Dst, row: Row<bool>) {
        cx.set_pred(dst, pack(row));
    }
}

/// A function of every lane.
#[inline(always)]
pub fn map<A: Copy, R: Copy + Default>(row: Row<A>, f: impl Fn(A) -> R) -> Row<R> {
    let mut out = [R::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(row[lane]);
    }
    out
}

/// Lanes to a mask. Written so that it vectorises: a compare, a blend with the lane's bit, a tree of ors.
#[inline(always)]
pub fn pack(row: Row<bool>) -> u32 {
    let mut mask = 0;
    for lane in 0..LANES {
        mask |= if row[lane] { 1 << lane } else { 0 };
    }
    mask
}

/// A mask to lanes.
#[inline(always)]
pub fn unpack(mask: u32) -> Row<bool> {
    let mut row = [false; LANES];
    for lane in 0..LANES {
        row[lane] = mask & 1 << lane != 0;
    }
    row
}

/// The value of a function item or of a closure without captures, which has no bytes.
///
/// # Safety
/// A value of `F` must have existed.
#[inline(always)]
unsafe fn conjure<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "an operation's function must not capture anything") };
    // SAFETY: `F` has no bytes to be wrong, is `Copy` and inhabited, as the caller vouches.
    unsafe { std::mem::zeroed() }
}

/// Declares the operation that applies `F` to sources in every lane, and its constructors.
macro_rules! lift {
    ($name:ident, $plain:ident, $with:ident, $rare:ident, $count:literal, $($arg:ident: $ty:ident = $index:literal),*) => {
        /// Only the constructors make this type's `Run`, and they take a value of `F`.
        struct $name<F, $($ty,)* R>(PhantomData<(F, $($ty,)* R)>);

        impl<F: Fn($($ty,)* u64) -> R + Copy, $($ty: Value,)* R: Value> Semantics for $name<F, $($ty,)* R> {
            #[inline(always)]
            fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
                // SAFETY: the constructor had a value of `F`.
                let f = unsafe { conjure::<F>() };
                $(let $arg = $ty::read(cx, op.src[$index]);)*
                let mut out = [R::default(); LANES];
                for lane in 0..LANES {
                    out[lane] = f($($arg[lane],)* op.imm);
                }
                R::write(cx, op.dst[0], out);
                Flow::Next
            }
        }

        #[doc = concat!("Applies `f` to ", $count, " in every lane.")]
        pub fn $plain<$($ty: Value,)* R: Value>(f: impl Fn($($ty),*) -> R + Copy + 'static) -> Run {
            $with(move |$($arg,)* _| f($($arg),*))
        }

        #[doc = concat!("Applies `f` to ", $count, " in every lane, and to the operation's immediate.")]
        pub fn $with<F, $($ty: Value,)* R: Value>(_: F) -> Run
        where
            F: Fn($($ty,)* u64) -> R + Copy + 'static,
        {
            choose::<$name<F, $($ty,)* R>>()
        }

        #[doc = concat!("The same of ", $count, " where speed is no matter: it is built once, for every machine.")]
        pub fn $rare<F, $($ty: Value,)* R: Value>(_: F) -> Run
        where
            F: Fn($($ty,)* u64) -> R + Copy + 'static,
        {
            portable_only::<$name<F, $($ty,)* R>>()
        }
    };
}

lift!(Unary, unary, unary_with, rare_unary, "one source", a: A = 0);
lift!(Binary, binary, binary_with, rare_binary, "two sources", a: A = 0, b: B = 1);
lift!(Ternary, ternary, ternary_with, rare_ternary, "three sources", a: A = 0, b: B = 1, c: C = 2);
lift!(Quaternary, quaternary, quaternary_with, rare_quaternary, "four sources", a: A = 0, b: B = 1, c: C = 2, d: D = 3);

/// What a lowered instruction with one destination and plain sources consists of.
pub struct Form<'a> {
    /// What it counts as.
    pub class: Class,
    /// Its semantics.
    pub run: Run,
    /// The destination's type.
    pub dst: Type,
    /// The sources' types.
    pub src: &'a [Type],
    /// The immediate.
    pub imm: u64,
}

impl Form<'_> {
    /// Appends the operation that `i` names, its operands being the form's.
    pub fn emit(self, cx: &mut Lower, i: &Instruction) -> Result<()> {
        cx.arity(i, &[1 + self.src.len()])?;
        let mut op = cx.op(i, self.class, self.run);
        op.imm = self.imm;
        op.dst[0] = cx.dst(i, &i.operands[0], self.dst)?;
        for (at, &ty) in self.src.iter().enumerate() {
            op.src[at] = cx.src(i, &i.operands[1 + at], ty)?;
        }
        cx.emit(op);
        Ok(())
    }
}

/// A predicate operand that `!` may negate: the register, and whether it is negated.
pub fn predicate(cx: &mut Lower, i: &Instruction, operand: &Operand) -> Result<(Src, bool)> {
    match operand {
        Operand::Not(name) => Ok((cx.src(i, &Operand::Name(name.clone()), Type::Pred)?, true)),
        other => Ok((cx.src(i, other, Type::Pred)?, false)),
    }
}

/// Whether some modifier is one of `names`. Several opcodes (`add`, `min`, `neg`, ...) belong to a family by their type.
pub fn has(i: &Instruction, names: &[&str]) -> bool {
    i.modifiers.iter().any(|m| names.contains(&m.as_str()))
}
