//! The bytes that a module-scope variable holds at first.

use super::{Context, Error, Result, Symbol};
use crate::ptx::ast::{Initial, Space, Variable};

/// More than this is a mistake, or a text made to exhaust memory.
const MOST_BYTES: u64 = 1 << 28;

/// The initial bytes; what follows them is zero.
pub fn bytes(v: &Variable, context: &Context) -> Result<Vec<u8>> {
    let error = |message: String| Err(Error { line: v.line, message: format!("`{}`: {message}", v.name) });
    let width = v.ty.bits() as usize / 8;
    let mut out = Vec::new();
    for element in &v.initial {
        let bits = match element {
            Initial::Bits(bits) => *bits,
            Initial::Zeros(count) => {
                let length = count.saturating_mul(width as u64).saturating_add(out.len() as u64);
                if length > MOST_BYTES {
                    return error(format!("more than {MOST_BYTES} bytes of initial values"));
                }
                out.resize(length as usize, 0);
                continue;
            }
            Initial::Address { symbol, offset, byte, .. } => {
                let base = match context.symbols.get(symbol) {
                    Some(Symbol::Address(address, Space::Global | Space::Const)) => *address,
                    Some(Symbol::Function(index)) if context.function_address(*index).is_some() => {
                        context.function_address(*index).unwrap_or(0)
                    }
                    Some(_) => return error(format!("the address of `{symbol}` is not a constant")),
                    None => return error(format!("`{symbol}` is not declared")),
                };
                let address = base.wrapping_add(*offset as u64);
                match byte {
                    Some(byte) => address >> (8 * byte) & 0xff,
                    None if width == 8 => address,
                    None => return error(format!("the address of `{symbol}` needs 64 bits")),
                }
            }
        };
        let source = (bits as u128).to_le_bytes();
        out.extend_from_slice(&source[..width]);
    }
    Ok(out)
}
