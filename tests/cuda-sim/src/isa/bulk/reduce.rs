//! The reductions of `cp.reduce.async.bulk`.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use half::{bf16, f16};

use crate::isa::tensor_map::DataType;
use crate::lower::{Modifiers, Result};
use crate::machine::fault::{Fault, Kind};

/// The operation of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// `.and`
    And,
    /// `.or`
    Or,
    /// `.xor`
    Xor,
    /// `.add`
    Add,
    /// `.inc`
    Inc,
    /// `.dec`
    Dec,
    /// `.min`
    Min,
    /// `.max`
    Max,
}

const OPERATIONS: [Operation; 8] = {
    use Operation::*;
    [And, Or, Xor, Add, Inc, Dec, Min, Max]
};

/// A reduction: its operation and the type of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reduction {
    operation: Operation,
    ty: DataType,
}

/// Reads the operation.
pub fn operation(m: &mut Modifiers<'_>) -> Result<Operation> {
    use Operation::*;
    m.expect(&[
        ("and", And),
        ("or", Or),
        ("xor", Xor),
        ("add", Add),
        ("inc", Inc),
        ("dec", Dec),
        ("min", Min),
        ("max", Max),
    ])
}

/// The reduction of a tensor, whose map says the type; `bits` is the operation's number plus 1, or 0.
pub fn for_tensor(bits: u64, ty: DataType) -> std::result::Result<Option<Reduction>, Fault> {
    let Some(&operation) = (bits as usize & 0xff).checked_sub(1).and_then(|n| OPERATIONS.get(n)) else {
        return Ok(None);
    };
    if !allowed(operation, ty) {
        let message = format!("a reduction {operation:?} of elements of type {ty:?}");
        return Err(Fault::new(Kind::InvalidOperation, message));
    }
    Ok(Some(Reduction { operation, ty }))
}

/// Table 33 of PTX ISA 9.0.
fn allowed(operation: Operation, ty: DataType) -> bool {
    use DataType::*;
    use Operation::*;
    match operation {
        And | Or | Xor => matches!(ty, U32 | S32 | U64 | S64),
        Add => matches!(ty, U32 | S32 | U64 | F16 | BF16 | F32 | F64),
        Inc | Dec => ty == U32,
        Min | Max => matches!(ty, U32 | S32 | U64 | S64 | F16 | BF16),
    }
}

impl Reduction {
    /// Reads operation and type.
    pub fn parse(m: &mut Modifiers<'_>) -> Result<Reduction> {
        use DataType::*;
        let operation = operation(m)?;
        let no_flush = m.take("noftz");
        let bitwise = matches!(operation, Operation::And | Operation::Or | Operation::Xor);
        let ty = if bitwise {
            m.expect(&[("b32", U32), ("b64", U64)])?
        } else if no_flush || operation != Operation::Add && matches!(m.peek(), Some("f16" | "bf16")) {
            m.expect(&[("f16", F16), ("bf16", BF16)])?
        } else {
            m.expect(&[("u32", U32), ("s32", S32), ("u64", U64), ("s64", S64), ("f32", F32), ("f64", F64)])?
        };
        if !allowed(operation, ty) || no_flush && operation != Operation::Add {
            m.refuse()
        } else {
            Ok(Reduction { operation, ty })
        }
    }

    /// Packs it for [`crate::code::Op::imm`]; none is 0.
    pub fn to_bits(reduction: Option<Reduction>) -> u64 {
        reduction.map_or(0, |r| (r.operation as u64 + 1) | ((r.ty as u64) << 8))
    }

    /// The reverse of [`Reduction::to_bits`].
    pub fn from_bits(bits: u64) -> Option<Reduction> {
        use DataType::*;
        let operation = *OPERATIONS.get((bits as usize & 0xff).checked_sub(1)?)?;
        let types = [U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16];
        Some(Reduction { operation, ty: *types.get(bits as usize >> 8 & 0xff)? })
    }

    /// Combines device memory with `data`, each element atomically.
    ///
    /// # Safety
    /// `target` is valid for as many bytes as `data` has and aligned to the elements.
    pub unsafe fn apply(self, target: *mut u8, data: &[u8]) {
        let size = self.ty.bytes() as usize;
        for (n, element) in data.chunks_exact(size).enumerate() {
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(element);
            let value = u64::from_le_bytes(bytes);
            // SAFETY: the element is inside the range and aligned, as the caller promises.
            unsafe {
                let at = target.add(n * size);
                let change = |old: u64| Some(self.combine(old, value));
                match size {
                    2 => {
                        let atomic = AtomicU16::from_ptr(at.cast());
                        _ = atomic.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
                            change(old as u64).map(|new| new as u16)
                        });
                    }
                    4 => {
                        let atomic = AtomicU32::from_ptr(at.cast());
                        _ = atomic.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
                            change(old as u64).map(|new| new as u32)
                        });
                    }
                    _ => _ = AtomicU64::from_ptr(at.cast()).fetch_update(Ordering::Relaxed, Ordering::Relaxed, change),
                }
            }
        }
    }

    /// The new value of an element.
    fn combine(self, old: u64, value: u64) -> u64 {
        use DataType::*;
        use Operation::*;
        let (a, b) = (old, value);
        match (self.operation, self.ty) {
            (And, _) => a & b,
            (Or, _) => a | b,
            (Xor, _) => a ^ b,
            (Inc, _) => {
                if a as u32 >= b as u32 {
                    0
                } else {
                    a + 1
                }
            }
            (Dec, _) => {
                if a as u32 == 0 || a as u32 > b as u32 {
                    b
                } else {
                    a - 1
                }
            }
            (Add, F16) => (f16::from_bits(a as u16) + f16::from_bits(b as u16)).to_bits() as u64,
            (Add, BF16) => (bf16::from_bits(a as u16) + bf16::from_bits(b as u16)).to_bits() as u64,
            (Add, F32) => (f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits() as u64,
            (Add, F64) => (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
            (Add, _) => a.wrapping_add(b),
            (_, F16) => {
                let (x, y) = (f16::from_bits(a as u16).to_f32(), f16::from_bits(b as u16).to_f32());
                f16::from_f32(self.pick(x, y)).to_bits() as u64
            }
            (_, BF16) => {
                let (x, y) = (bf16::from_bits(a as u16).to_f32(), bf16::from_bits(b as u16).to_f32());
                bf16::from_f32(self.pick(x, y)).to_bits() as u64
            }
            (Min, S32) => (a as i32).min(b as i32) as u32 as u64,
            (Max, S32) => (a as i32).max(b as i32) as u32 as u64,
            (Min, S64) => (a as i64).min(b as i64) as u64,
            (Max, S64) => (a as i64).max(b as i64) as u64,
            (Min, _) => a.min(b),
            (Max, _) => a.max(b),
        }
    }

    /// Minimum or maximum of floats; a NaN gives way to a number, and -0 is below +0.
    fn pick(self, a: f32, b: f32) -> f32 {
        let first = a.total_cmp(&b).is_lt() == (self.operation == Operation::Min);
        match (a.is_nan(), b.is_nan()) {
            (true, _) => b,
            (_, true) => a,
            _ => {
                if first {
                    a
                } else {
                    b
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combine(operation: Operation, ty: DataType, a: u64, b: u64) -> u64 {
        Reduction { operation, ty }.combine(a, b)
    }

    #[test]
    fn elements_combine() {
        use DataType::*;
        use Operation::*;
        assert_eq!(combine(Inc, U32, 5, 5), 0);
        assert_eq!(combine(Inc, U32, 4, 5), 5);
        assert_eq!(combine(Dec, U32, 0, 7), 7);
        assert_eq!(combine(Dec, U32, 9, 7), 7);
        assert_eq!(combine(Dec, U32, 7, 7), 6);
        assert_eq!(combine(Min, S32, 0xffff_ffff, 1), 0xffff_ffff);
        assert_eq!(combine(Min, U32, 0xffff_ffff, 1), 1);
        assert_eq!(combine(Max, S64, u64::MAX, 0), 0);
        assert_eq!(combine(Add, U32, 0xffff_ffff, 1) as u32, 0);
        assert_eq!(combine(Add, F32, 1.5f32.to_bits() as u64, 2f32.to_bits() as u64), 3.5f32.to_bits() as u64);
        assert_eq!(combine(Min, F16, 0x8000, 0), 0x8000, "-0 is below +0");
        assert_eq!(combine(Max, F16, 0x8000, 0), 0);
        assert_eq!(combine(Max, BF16, 0x7fc0, 0x3f80), 0x3f80, "NaN gives way");
    }

    #[test]
    fn reductions_pack() {
        let r = Some(Reduction { operation: Operation::Max, ty: DataType::BF16 });
        assert_eq!(Reduction::from_bits(Reduction::to_bits(r)), r);
        assert_eq!(Reduction::from_bits(Reduction::to_bits(None)), None);
    }
}
