//! Constant expressions (PTX ISA 9.0, section 4.6).

use super::Result;
use super::lexer::{Literal, Token, literal};
use super::parser::Parser;

/// Binary operators with their precedence; higher binds tighter.
const BINARY: &[(&str, u8)] = &[
    ("||", 1),
    ("&&", 2),
    ("|", 3),
    ("^", 4),
    ("&", 5),
    ("==", 6),
    ("!=", 6),
    ("<", 7),
    ("<=", 7),
    (">", 7),
    (">=", 7),
    ("<<", 8),
    (">>", 8),
    ("+", 9),
    ("-", 9),
    ("*", 10),
    ("/", 10),
    ("%", 10),
];

impl Parser<'_> {
    /// A constant integer expression, from -2^63 to 2^64 - 1.
    pub(super) fn integer(&mut self) -> Result<i128> {
        let value = self.ternary()?;
        if (i64::MIN as i128..=u64::MAX as i128).contains(&value) {
            return Ok(value);
        }
        self.error(format!("the constant {value} has more than 64 bits"))
    }

    fn ternary(&mut self) -> Result<i128> {
        let condition = self.binary(1)?;
        if !self.take("?") {
            return Ok(condition);
        }
        self.deeper()?;
        let yes = self.ternary()?;
        self.expect(":")?;
        let no = self.ternary()?;
        self.shallower();
        Ok(if condition != 0 { yes } else { no })
    }

    pub(super) fn binary(&mut self, least: u8) -> Result<i128> {
        let mut left = self.unary()?;
        loop {
            let Token::Mark(mark) = self.peek() else { return Ok(left) };
            let Some(&(operator, precedence)) = BINARY.iter().find(|(name, p)| *name == mark && *p >= least) else {
                return Ok(left);
            };
            self.advance();
            self.deeper()?;
            let right = self.binary(precedence + 1)?;
            self.shallower();
            left = match apply(operator, left, right) {
                Some(value) => value,
                None => return self.error(format!("the constant expression `{left} {operator} {right}` has no value")),
            };
        }
    }

    fn unary(&mut self) -> Result<i128> {
        let value = match self.peek() {
            Token::Mark(mark @ ("-" | "+" | "~" | "!")) => {
                self.advance();
                self.deeper()?;
                let value = self.unary()?;
                self.shallower();
                match mark {
                    "-" => value.checked_neg(),
                    "~" => Some(!value),
                    "!" => Some((value == 0) as i128),
                    _ => Some(value),
                }
            }
            Token::Mark("(") => {
                self.advance();
                self.deeper()?;
                let cast = match self.peek() {
                    Token::Dotted(name @ ("s64" | "u64")) => Some(name),
                    _ => None,
                };
                let value = if let Some(name) = cast {
                    self.advance();
                    self.expect(")")?;
                    let value = self.unary()? as u64;
                    if name == "s64" { value as i64 as i128 } else { value as i128 }
                } else {
                    let value = self.ternary()?;
                    self.expect(")")?;
                    value
                };
                self.shallower();
                Some(value)
            }
            Token::Number(text) => match literal(text) {
                Some(Literal::Int(value)) => {
                    self.advance();
                    Some(value as i128)
                }
                _ => return self.error(format!("`{text}` is not an integer")),
            },
            Token::Word("WARP_SZ") => {
                self.advance();
                Some(32)
            }
            found => return self.unexpected(found, "an integer"),
        };
        match value {
            Some(value) => Ok(value),
            None => self.error("a constant expression overflows"),
        }
    }
}

fn apply(operator: &str, a: i128, b: i128) -> Option<i128> {
    let shift = u32::try_from(b).ok().filter(|s| *s < 64);
    match operator {
        "||" => Some((a != 0 || b != 0) as i128),
        "&&" => Some((a != 0 && b != 0) as i128),
        "|" => Some(a | b),
        "^" => Some(a ^ b),
        "&" => Some(a & b),
        "==" => Some((a == b) as i128),
        "!=" => Some((a != b) as i128),
        "<" => Some((a < b) as i128),
        "<=" => Some((a <= b) as i128),
        ">" => Some((a > b) as i128),
        ">=" => Some((a >= b) as i128),
        "<<" => Some(if a < 0 { ((a as i64) << shift?) as i128 } else { ((a as u64) << shift?) as i128 }),
        ">>" => Some(a >> shift?),
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" => a.checked_div(b),
        "%" => a.checked_rem(b),
        _ => None,
    }
}
