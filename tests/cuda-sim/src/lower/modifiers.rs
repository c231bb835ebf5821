//! Reads the modifiers of an instruction in their order and refuses what is left.

use super::{Error, Result};
use crate::ptx::ast::{Instruction, Type};

/// A cursor over the modifiers of one instruction.
pub struct Modifiers<'a> {
    instruction: &'a Instruction,
    at: usize,
}

impl<'a> Modifiers<'a> {
    /// At the first modifier.
    pub fn new(instruction: &'a Instruction) -> Self {
        Modifiers { instruction, at: 0 }
    }

    /// The next modifier, not consumed.
    pub fn peek(&self) -> Option<&'a str> {
        self.instruction.modifiers.get(self.at).map(String::as_str)
    }

    /// Consumes the next modifier if it is `name`.
    pub fn take(&mut self, name: &str) -> bool {
        let found = self.peek() == Some(name);
        self.at += found as usize;
        found
    }

    /// Consumes the next modifier if it is one of the table's and gives what it stands for.
    pub fn one_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let next = self.peek()?;
        let found = table.iter().find(|(name, _)| *name == next)?;
        self.at += 1;
        Some(found.1)
    }

    /// Consumes the next modifier, which must be one of the table's.
    pub fn expect<T: Copy>(&mut self, table: &[(&str, T)]) -> Result<T> {
        match self.one_of(table) {
            Some(value) => Ok(value),
            None => self.refuse(),
        }
    }

    /// Consumes the next modifier, which must be a type among `allowed`.
    pub fn ty(&mut self, allowed: &[Type]) -> Result<Type> {
        match self.peek().and_then(Type::parse) {
            Some(ty) if allowed.contains(&ty) => {
                self.at += 1;
                Ok(ty)
            }
            _ => self.refuse(),
        }
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<()> {
        if self.at == self.instruction.modifiers.len() { Ok(()) } else { self.refuse() }
    }

    /// The error that names the next modifier.
    pub fn refuse<T>(&self) -> Result<T> {
        let i = self.instruction;
        let name = std::iter::once(i.opcode.as_str()).chain(i.modifiers.iter().map(String::as_str));
        let name = name.collect::<Vec<_>>().join(".");
        let message = match self.peek() {
            Some(next) => format!("`{name}`: modifier `.{next}` is not supported here"),
            None => format!("`{name}`: a modifier is missing"),
        };
        Err(Error { line: i.line, message })
    }
}
