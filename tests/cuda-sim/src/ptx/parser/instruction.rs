//! Instructions and their operands.

use super::super::Result;
use super::super::ast::*;
use super::super::lexer::*;
use super::Parser;

impl Parser<'_> {
    pub(super) fn instruction(&mut self) -> Result<Instruction> {
        let line = self.line();
        let guard = if self.take("@") {
            let negated = self.take("!");
            Some(Guard { name: self.word("a predicate")?.to_string(), negated })
        } else {
            None
        };
        let opcode = self.word("an instruction")?.to_string();
        let mut modifiers = Vec::new();
        while let Token::Dotted(modifier) = self.peek() {
            modifiers.push(modifier.to_string());
            self.advance();
        }
        let mut operands = Vec::new();
        if !self.take(";") {
            loop {
                operands.push(self.operand(opcode == "call")?);
                if self.take(";") {
                    break;
                }
                self.expect(",")?;
            }
        }
        Ok(Instruction { guard, opcode, modifiers, operands, line, source: self.source })
    }

    /// An operand; in a call, parentheses enclose a list and not an expression.
    pub(super) fn operand(&mut self, call: bool) -> Result<Operand> {
        match self.peek() {
            Token::Mark("{") => Ok(Operand::Vector(self.operands("{", "}")?)),
            Token::Mark("(") if call => Ok(Operand::List(self.operands("(", ")")?)),
            Token::Mark("[") => self.address(),
            Token::Mark("!") if matches!(self.peek_at(1), Token::Word(_)) => {
                self.advance();
                Ok(Operand::Not(self.word("a predicate")?.to_string()))
            }
            Token::Mark("-") if float_at(self.peek_at(1)) => {
                self.advance();
                Ok(match self.float()? {
                    Operand::F32(bits) => Operand::F32(bits ^ 1 << 31),
                    Operand::F64(bits) => Operand::F64(bits ^ 1 << 63),
                    other => other,
                })
            }
            token if float_at(token) => self.float(),
            Token::Word(name) if name != "WARP_SZ" => self.named(),
            _ => Ok(Operand::Int(self.integer()?)),
        }
    }

    /// Operands between two marks.
    pub(super) fn operands(&mut self, open: &str, close: &str) -> Result<Vec<Operand>> {
        self.deeper()?;
        self.expect(open)?;
        let mut out = Vec::new();
        if !self.take(close) {
            loop {
                out.push(self.operand(false)?);
                if self.take(close) {
                    break;
                }
                self.expect(",")?;
            }
        }
        self.shallower();
        Ok(out)
    }

    pub(super) fn float(&mut self) -> Result<Operand> {
        let Token::Number(text) = self.peek() else { return self.unexpected(self.peek(), "a number") };
        self.advance();
        match literal(text) {
            Some(Literal::F32(bits)) => Ok(Operand::F32(bits)),
            Some(Literal::F64(bits)) => Ok(Operand::F64(bits)),
            _ => self.error(format!("`{text}` is not a number")),
        }
    }

    /// A name with what may follow it: a component, a second name after `|`, an offset.
    pub(super) fn named(&mut self) -> Result<Operand> {
        let first = self.single()?;
        if self.take("|") {
            let second =
                if self.take("!") { Operand::Not(self.word("a predicate")?.to_string()) } else { self.single()? };
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        if matches!(self.peek(), Token::Mark("+" | "-")) {
            let offset = self.offset()?;
            return Ok(Operand::Offset(Box::new(first), offset));
        }
        Ok(first)
    }

    /// A name or `_`, with its component.
    pub(super) fn single(&mut self) -> Result<Operand> {
        let name = self.word("a name")?;
        if name == "_" {
            return Ok(Operand::Sink);
        }
        let Token::Dotted(part) = self.peek() else { return Ok(Operand::Name(name.to_string())) };
        self.advance();
        let coordinate = "xyzw".find(part).filter(|_| part.len() == 1);
        if let (Some(_), Some(special)) = (coordinate, name.strip_prefix('%'))
            && VECTORS.contains(&special)
        {
            return Ok(Operand::Name(format!("{name}.{part}")));
        }
        let color = "rgba".find(part).filter(|_| part.len() == 1);
        if let Some(index) = coordinate.or(color) {
            return Ok(Operand::Component(name.to_string(), index as u8));
        }
        let range = match part {
            "b0" => 0..1,
            "b1" => 1..2,
            "b2" => 2..3,
            "b3" => 3..4,
            "h0" => 0..2,
            "h1" => 2..4,
            _ => return self.error(format!("`{name}.{part}`: `.{part}` is not a component")),
        };
        Ok(Operand::Selector(name.to_string(), range))
    }

    /// `+4`, `-4`, `+-4`, `+4*8`
    pub(super) fn offset(&mut self) -> Result<i64> {
        let value = self.integer()?;
        // An offset written as unsigned wraps like the address it is added to.
        Ok(value as u64 as i64)
    }

    /// `[base+offset]`, `[map, {coordinates}]`
    pub(super) fn address(&mut self) -> Result<Operand> {
        self.expect("[")?;
        let mut offset = 0;
        let base = match self.peek() {
            Token::Word(name) if name != "WARP_SZ" => {
                let base = self.single()?;
                if matches!(self.peek(), Token::Mark("+" | "-")) {
                    offset = self.offset()?;
                }
                base
            }
            _ => Operand::Int(self.integer()?),
        };
        let coordinates = if self.take(",") { self.operands("{", "}")? } else { Vec::new() };
        self.expect("]")?;
        Ok(Operand::Address { base: Box::new(base), offset, coordinates })
    }
}

/// Special registers that have components.
const VECTORS: &[&str] =
    &["tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid"];

fn float_at(token: Token<'_>) -> bool {
    matches!(token, Token::Number(text) if matches!(literal(text), Some(Literal::F32(_) | Literal::F64(_))))
}
