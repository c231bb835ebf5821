//! Conversion between the numeric types (PTX ISA 9.0, section 9.7.9): the scalar forms of cvt. The packed and narrow
//! ones are in [`super::convert_packed`].

use super::convert_packed;
use super::exact;
use super::float::{flush, saturate};
use super::formats::{self, Bf16, Half};
use super::half::relu;
use super::lanes::{Value, rare_unary, unary, unary_with};
use super::round::{Rounding, to_f32, unsigned_odd};
use crate::code::{Class, Run};
use crate::lower::{Lower, Modifiers, Result, Symbol};
use crate::ptx::ast::Type::{self, *};
use crate::ptx::ast::{Instruction, Operand};

/// Lowers `cvt`.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    if i.opcode != "cvt" {
        return None;
    }
    let mut m = Modifiers::new(i);
    if m.take("pack") {
        return Some(convert_packed::pack(cx, i, m));
    }
    Some(options(&mut m).and_then(|options| match m.peek().and_then(Type::parse) {
        Some(F16x2 | BF16x2) | None => convert_packed::narrow(cx, i, m, options),
        Some(_) => scalar(cx, i, m, options),
    }))
}

/// How the result is rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    /// No modifier.
    None,
    /// `.rn`, `.rz`, `.rm`, `.rp`
    Float(Rounding),
    /// `.rni`, `.rzi`, `.rmi`, `.rpi`
    Integer(Rounding),
    /// `.rna`
    NearestAway,
}

/// The modifiers before the types.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub mode: Mode,
    /// Of [`FTZ`], [`SAT`], [`RELU`], [`SATFINITE`].
    pub flags: u64,
}

// The immediate: bits 0 and 1 the rounding mode, then flags; from bit 32 on the mask of the destination register.
pub(super) const FTZ: u64 = 1 << 2;
pub(super) const SAT: u64 = 1 << 3;
pub(super) const RELU: u64 = 1 << 4;
pub(super) const SATFINITE: u64 = 1 << 5;
const TO_INTEGER: u64 = 1 << 6;

fn options(m: &mut Modifiers) -> Result<Options> {
    let mode = m.one_of(&[
        ("rn", Mode::Float(Rounding::Nearest)),
        ("rz", Mode::Float(Rounding::Zero)),
        ("rm", Mode::Float(Rounding::Down)),
        ("rp", Mode::Float(Rounding::Up)),
        ("rni", Mode::Integer(Rounding::Nearest)),
        ("rzi", Mode::Integer(Rounding::Zero)),
        ("rmi", Mode::Integer(Rounding::Down)),
        ("rpi", Mode::Integer(Rounding::Up)),
        ("rna", Mode::NearestAway),
    ]);
    let mut flags = 0;
    // The ISA writes `.relu.satfinite` for some types and `.satfinite.relu` for others; compilers write either.
    while let Some(flag) = m.one_of(&[("ftz", FTZ), ("sat", SAT), ("relu", RELU), ("satfinite", SATFINITE)]) {
        if flags & flag != 0 {
            return m.refuse();
        }
        flags |= flag;
    }
    Ok(Options { mode: mode.unwrap_or(Mode::None), flags })
}

fn is_float(ty: Type) -> bool {
    matches!(ty, F16 | BF16 | F32 | F64)
}

fn is_signed(ty: Type) -> bool {
    matches!(ty, S8 | S16 | S32 | S64)
}

/// `cvt{.rnd}{.ftz}{.sat}.dtype.atype d, a`, and `cvt.rnd{.relu}{.satfinite}` from `.f32` to a half type.
fn scalar(cx: &mut Lower, i: &Instruction, mut m: Modifiers, options: Options) -> Result<()> {
    let types = [U8, S8, U16, S16, U32, S32, U64, S64, F16, BF16, F32, F64];
    let dst = m.ty(&types)?;
    let src = m.ty(&types)?;
    m.finish()?;
    check(cx, i, options, dst, src)?;
    let run = match (is_float(dst), is_float(src)) {
        (false, false) => integer_to_integer(dst, src, options),
        (true, false) => integer_to_float(dst, src, options),
        (false, true) => float_to_integer(dst, src, options),
        (true, true) => float_to_float(dst, src, options),
    };
    cx.arity(i, &[2])?;
    let mut op = cx.op(i, Class::Convert, run);
    op.imm = match options.mode {
        Mode::Float(mode) => mode.code(),
        Mode::Integer(mode) => mode.code() | TO_INTEGER,
        _ => 0,
    };
    op.imm |= options.flags | (register_mask(cx, &i.operands[0]) as u64) << 32;
    op.dst[0] = cx.dst(i, &i.operands[0], dst)?;
    op.src[0] = cx.src(i, &i.operands[1], src)?;
    if !is_float(src) && !is_float(dst) {
        op.imm |= integer_shifts(dst, src);
    }
    cx.emit(op);
    Ok(())
}

/// The rules of the ISA on which modifiers go with which types.
fn check(cx: &Lower, i: &Instruction, options: Options, dst: Type, src: Type) -> Result<()> {
    let Options { mode, flags } = options;
    let narrowing = match (dst, src) {
        (F16, BF16) | (BF16, F16) => true,
        _ => dst.bits() < src.bits(),
    };
    let legal = match (is_float(dst), is_float(src)) {
        (false, false) => mode == Mode::None,
        (true, false) => matches!(mode, Mode::Float(_)),
        (false, true) => matches!(mode, Mode::Integer(_)),
        (true, true) if dst == src => matches!(mode, Mode::None | Mode::Integer(_)),
        // Without a mode f16 goes to the nearest bf16: Triton writes it so.
        (true, true) if (dst, src) == (BF16, F16) && mode == Mode::None => true,
        (true, true) if narrowing => matches!(mode, Mode::Float(_)),
        (true, true) => mode == Mode::None,
    };
    if !legal {
        return cx.error(i, "the rounding modifier does not go with these types, or is missing");
    }
    if flags & FTZ != 0 && dst != F32 && src != F32 {
        return cx.error(i, "`.ftz` needs a type `.f32`");
    }
    let to_half = src == F32 && matches!(dst, F16 | BF16);
    let directed = matches!(mode, Mode::Float(Rounding::Down | Rounding::Up));
    if flags & (RELU | SATFINITE) != 0 && (!to_half || directed || flags & (FTZ | SAT) != 0) {
        return cx.error(i, "`.relu` and `.satfinite` need `.rn` or `.rz`, a half destination and an `.f32` source");
    }
    Ok(())
}

/// The bits of the 32-bit file that a destination register has: an integer result narrower than the register is
/// extended to the register's width, and registers narrower than 32 bits are kept zero-extended.
fn register_mask(cx: &Lower, operand: &Operand) -> u32 {
    match operand {
        Operand::Name(name) => match cx.lookup(name) {
            Some(Symbol::Register(_, declared)) if declared.bits() < 32 => (1 << declared.bits()) - 1,
            _ => !0,
        },
        _ => !0,
    }
}

/// For conversions between integers, bits 8 to 15: what a word is shifted left and right by to extend it as the source
/// has it (5 bits, after which a bit for signed); bits 16 to 23: the same of the destination.
fn integer_shifts(dst: Type, src: Type) -> u64 {
    let field = |ty: Type| (32 - ty.bits().min(32)) as u64 | (is_signed(ty) as u64) << 5;
    field(src) << 8 | field(dst) << 16
}

/// A word cut to the width, and extended as the signedness, that a field of [`integer_shifts`] has.
#[inline(always)]
fn extend(word: u32, field: u64) -> u32 {
    let shift = field as u32 & 31;
    let top = word << shift;
    if field & 32 != 0 { (top as i32 >> shift) as u32 } else { top >> shift }
}

#[inline(always)]
fn from_source(word: u32, imm: u64) -> u32 {
    extend(word, imm >> 8)
}

/// A result of at most 32 bits as its register holds it.
#[inline(always)]
fn to_destination(word: u32, imm: u64) -> u32 {
    extend(word, imm >> 16) & (imm >> 32) as u32
}

fn integer_to_integer(dst: Type, src: Type, options: Options) -> Run {
    if options.flags & SAT != 0 {
        return saturating(dst, src);
    }
    match (dst.bits(), src.bits(), is_signed(src)) {
        (64, 64, _) => unary(|a: u64| a),
        (64, 32, true) => unary(|a: i32| a as i64),
        (64, 32, false) => unary(|a: u32| a as u64),
        (64, _, true) => unary_with(|a: u32, imm| from_source(a, imm) as i32 as i64),
        (64, _, false) => unary_with(|a: u32, imm| from_source(a, imm) as u64),
        (_, 64, _) => unary_with(|a: u64, imm| to_destination(a as u32, imm)),
        (..) => unary_with(|a: u32, imm| to_destination(from_source(a, imm), imm)),
    }
}

/// `.sat`: the nearest value that the destination type has.
fn saturating(dst: Type, src: Type) -> Run {
    #[inline(always)]
    fn clamp(value: i128, imm: u64) -> u32 {
        let bits = 32 - (imm >> 16 & 31) as u32;
        let (least, most) = if imm >> 16 & 32 != 0 {
            (-1i128 << (bits - 1), (1i128 << (bits - 1)) - 1)
        } else {
            (0, (1i128 << bits) - 1)
        };
        to_destination(value.clamp(least, most) as u32, imm)
    }
    match (src, dst) {
        (S64, U64) => rare_unary(|a: i64, _| a.max(0)),
        (U64, S64) => rare_unary(|a: u64, _| a.min(i64::MAX as u64)),
        (U64 | S64, U64 | S64) => rare_unary(|a: u64, _| a),
        (S8 | S16 | S32, U64) => rare_unary(|a: u32, imm| (from_source(a, imm) as i32).max(0) as u64),
        (S8 | S16 | S32, S64) => rare_unary(|a: u32, imm| from_source(a, imm) as i32 as i64),
        (_, U64 | S64) => rare_unary(|a: u32, imm| from_source(a, imm) as u64),
        (S64, _) => rare_unary(|a: i64, imm| clamp(a as i128, imm)),
        (U64, _) => rare_unary(|a: u64, imm| clamp(a as i128, imm)),
        (S8 | S16 | S32, _) => rare_unary(|a: u32, imm| clamp(from_source(a, imm) as i32 as i128, imm)),
        (_, _) => rare_unary(|a: u32, imm| clamp(from_source(a, imm) as i128, imm)),
    }
}

fn integer_to_float(dst: Type, src: Type, options: Options) -> Run {
    let nearest = options.mode == Mode::Float(Rounding::Nearest) && options.flags & SAT == 0;
    match (dst, src) {
        (F32, S32) if nearest => unary(|a: i32| a as f32),
        (F32, U32) if nearest => unary(|a: u32| a as f32),
        (F32, S64) if nearest => unary(|a: i64| a as f32),
        (F32, U64) if nearest => unary(|a: u64| a as f32),
        (F64, S32) if nearest => unary(|a: i32| a as f64),
        (F64, U32) if nearest => unary(|a: u32| a as f64),
        (F64, _) => integer_to::<f64>(src),
        (F32, _) => integer_to::<f32>(src),
        (F16, _) => integer_to::<formats::F16>(src),
        (_, _) => integer_to::<Bf16>(src),
    }
}

/// The integer to a float as the immediate has it. The shifts of narrow integers are constants of the source type.
fn integer_to<D: Float>(src: Type) -> Run {
    match src {
        U64 => rare_unary(|a: u64, imm| D::of_integer(a, false, imm)),
        S64 => rare_unary(|a: i64, imm| D::of_integer(a.unsigned_abs(), a < 0, imm)),
        U8 => rare_unary(|a: u8, imm| D::of_integer(a as u64, false, imm)),
        U16 => rare_unary(|a: u16, imm| D::of_integer(a as u64, false, imm)),
        U32 => rare_unary(|a: u32, imm| D::of_integer(a as u64, false, imm)),
        S8 => rare_unary(|a: u8, imm| D::of_integer((a as i8).unsigned_abs() as u64, (a as i8) < 0, imm)),
        S16 => rare_unary(|a: i16, imm| D::of_integer(a.unsigned_abs() as u64, a < 0, imm)),
        _ => rare_unary(|a: i32, imm| D::of_integer(a.unsigned_abs() as u64, a < 0, imm)),
    }
}

/// A floating-point type as a source and as a destination.
trait Float: Value {
    /// Whether a NaN becomes the least integer instead of zero, whatever the integer's width.
    const DOUBLE: bool = false;
    /// The same number.
    fn to_f64(self) -> f64;
    /// The number that the immediate rounds to, with its flags.
    fn of_f64(x: f64, imm: u64) -> Self;
    /// `.ftz`
    #[inline(always)]
    fn flushed(self) -> Self {
        self
    }
    /// From sign and magnitude.
    #[inline(always)]
    fn of_integer(magnitude: u64, negative: bool, imm: u64) -> Self {
        let x = unsigned_odd(magnitude);
        Self::of_f64(if negative { -x } else { x }, imm)
    }
}

impl Float for f32 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }

    #[inline(always)]
    fn of_f64(x: f64, imm: u64) -> f32 {
        super::float::output(to_f32(x, Rounding::from_code(imm)), imm & (FTZ | SAT))
    }

    #[inline(always)]
    fn flushed(self) -> f32 {
        flush(self)
    }
}

impl Float for f64 {
    const DOUBLE: bool = true;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn of_f64(x: f64, imm: u64) -> f64 {
        if imm & SAT == 0 {
            x
        } else if x > 0.0 {
            x.min(1.0)
        } else {
            0.0
        }
    }

    /// Both halves are exact, so that their sum is rounded once.
    fn of_integer(magnitude: u64, negative: bool, imm: u64) -> f64 {
        let (high, low) = ((magnitude >> 32) as f64 * 4294967296.0, magnitude as u32 as f64);
        let (high, low) = if negative { (-high, -low) } else { (high, low) };
        let sum = exact::add(high, low, exact::DOUBLE, Rounding::from_code(imm));
        Self::of_f64(sum, imm)
    }
}

macro_rules! halves {
    ($($type:ty),*) => {
        $(impl Float for $type {
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.decode() as f64
            }

            #[inline(always)]
            fn of_f64(x: f64, imm: u64) -> Self {
                half(x, imm)
            }
        })*
    };
}

halves!(formats::F16, Bf16);

/// A half number by the immediate's rounding and flags.
#[inline(always)]
pub(super) fn half<H: Half>(x: f64, imm: u64) -> H {
    let x = if imm & SATFINITE != 0 { finite(x, H::FORMAT.max) } else { x };
    let rounded = H::rounded(x, Rounding::from_code(imm));
    if imm & SAT != 0 {
        H::encode(saturate(rounded.decode()))
    } else if imm & RELU != 0 {
        relu(rounded)
    } else {
        rounded
    }
}

/// `.satfinite`: the greatest finite number for what lies beyond; NaN stays.
#[inline(always)]
pub(super) fn finite(x: f64, max: f64) -> f64 {
    if x > max {
        max
    } else if x < -max {
        -max
    } else {
        x
    }
}

fn float_to_integer(dst: Type, src: Type, options: Options) -> Run {
    let flushes = options.flags & FTZ != 0;
    match (dst, src, options.mode) {
        (S32, F32, Mode::Integer(Rounding::Zero)) if !flushes => unary(|a: f32| a as i32),
        (U32, F32, Mode::Integer(Rounding::Zero)) if !flushes => unary(|a: f32| a as u32),
        (S32, F32, Mode::Integer(Rounding::Nearest)) if !flushes => unary(|a: f32| a.round_ties_even() as i32),
        (_, F16, _) => to_integer::<formats::F16>(dst),
        (_, BF16, _) => to_integer::<Bf16>(dst),
        (_, F32, _) => to_integer::<f32>(dst),
        (..) => to_integer::<f64>(dst),
    }
}

/// Rounded to an integer as the immediate has it; still a float.
#[inline(always)]
fn integral(x: f64, imm: u64) -> f64 {
    match Rounding::from_code(imm) {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

/// The float to an integer: rounded, then clamped to the type's range, with or without `.sat`. NaN gives zero, or the
/// bit pattern of the least signed integer where a 64-bit type is converted.
fn to_integer<A: Float>(dst: Type) -> Run {
    #[inline(always)]
    fn source<A: Float>(a: A, imm: u64) -> f64 {
        integral(if imm & FTZ != 0 { a.flushed() } else { a }.to_f64(), imm)
    }
    macro_rules! narrow {
        ($ty:ty, $wide:ty) => {
            rare_unary(|a: A, imm| {
                let x = source(a, imm);
                let nan: $ty = if A::DOUBLE { 1 << (<$ty>::BITS - 1) } else { 0 };
                let value = if x.is_nan() { nan } else { x as $ty };
                value as $wide as u32 & (imm >> 32) as u32
            })
        };
    }
    match dst {
        U8 => narrow!(u8, u32),
        S8 => narrow!(i8, i32),
        U16 => narrow!(u16, u32),
        S16 => narrow!(i16, i32),
        U32 => narrow!(u32, u32),
        S32 => narrow!(i32, i32),
        U64 => rare_unary(|a: A, imm| {
            let x = source(a, imm);
            if x.is_nan() { 1 << 63 } else { x as u64 }
        }),
        _ => rare_unary(|a: A, imm| {
            let x = source(a, imm);
            if x.is_nan() { i64::MIN } else { x as i64 }
        }),
    }
}

fn float_to_float(dst: Type, src: Type, options: Options) -> Run {
    let bare = options.flags == 0;
    let nearest = matches!(options.mode, Mode::None | Mode::Float(Rounding::Nearest));
    match (dst, src) {
        (F32, F16) if bare => unary(|a: formats::F16| super::float::canonical(a.decode())),
        (F32, BF16) if bare => unary(|a: Bf16| super::float::canonical(a.decode())),
        (F16, F32) if bare && nearest => unary(<formats::F16 as Half>::encode),
        (BF16, F32) if bare && nearest => unary(<Bf16 as Half>::encode),
        (F32, F64) if bare && nearest => unary(|a: f64| super::float::canonical(a as f32)),
        (F64, F32) if bare => unary(|a: f32| a as f64),
        (F32, F32) if options.flags == SAT && options.mode == Mode::None => unary(saturate),
        (F16, _) => float_to::<formats::F16>(src),
        (BF16, _) => float_to::<Bf16>(src),
        (F32, _) => float_to::<f32>(src),
        (..) => float_to::<f64>(src),
    }
}

fn float_to<D: Float>(src: Type) -> Run {
    #[inline(always)]
    fn convert<A: Float, D: Float>(a: A, imm: u64) -> D {
        let x = if imm & FTZ != 0 { a.flushed() } else { a }.to_f64();
        // An integer of the source's type is one of the destination's, which is the same: nothing is rounded again.
        if imm & TO_INTEGER != 0 { D::of_f64(integral(x, imm), imm & !3) } else { D::of_f64(x, imm) }
    }
    match src {
        F16 => rare_unary(convert::<formats::F16, D>),
        BF16 => rare_unary(convert::<Bf16, D>),
        F32 => rare_unary(convert::<f32, D>),
        _ => rare_unary(convert::<f64, D>),
    }
}

#[cfg(test)]
mod tests;
