//! Tokens to syntax tree: modules, functions, statements and operands.

mod function;
mod instruction;
mod module;
#[cfg(test)]
mod tests;
mod variable;

use super::ast::*;
use super::lexer::{Token, tokens};
use super::{Error, Result};

/// Braces, parentheses and operators may nest this deep: the parser recurses, and a hostile text must not
/// exhaust the stack.
const DEPTH: u32 = 64;

/// Reads a translation unit.
pub fn parse(text: &str) -> Result<Module> {
    let mut parser = Parser::new(text)?;
    let mut module = Module::default();
    parser.header(&mut module)?;
    while parser.peek() != Token::End {
        parser.top(&mut module)?;
    }
    Ok(module)
}

/// Reads what may stand between the braces of a function.
pub fn parse_body(text: &str) -> Result<Vec<Statement>> {
    let mut parser = Parser::new(text)?;
    let mut out = Vec::new();
    while parser.peek() != Token::End {
        parser.statement(&mut out)?;
    }
    Ok(out)
}

/// A cursor over tokens.
pub(super) struct Parser<'a> {
    tokens: Vec<(Token<'a>, Line)>,
    at: usize,
    depth: u32,
    /// From `.file`.
    files: Vec<(u32, String)>,
    /// From the last `.loc`.
    source: Option<(u32, u32)>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self> {
        Ok(Parser { tokens: tokens(text)?, at: 0, depth: 0, files: Vec::new(), source: None })
    }

    pub(super) fn peek(&self) -> Token<'a> {
        self.tokens[self.at].0
    }

    fn peek_at(&self, ahead: usize) -> Token<'a> {
        self.tokens.get(self.at + ahead).map_or(Token::End, |t| t.0)
    }

    fn line(&self) -> Line {
        self.tokens[self.at].1
    }

    /// Goes past the current token; the end stays.
    pub(super) fn advance(&mut self) {
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
    }

    pub(super) fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error { line: self.line(), message: message.into() })
    }

    pub(super) fn unexpected<T>(&self, found: Token<'_>, wanted: &str) -> Result<T> {
        let found = match found {
            Token::Word(t) | Token::Number(t) => format!("`{t}`"),
            Token::Dotted(t) => format!("`.{t}`"),
            Token::Text(t) => format!("\"{t}\""),
            Token::Mark(t) => format!("`{t}`"),
            Token::End => "the end of the text".into(),
        };
        self.error(format!("{found} where {wanted} is due"))
    }

    pub(super) fn take(&mut self, mark: &str) -> bool {
        let found = matches!(self.peek(), Token::Mark(m) if m == mark);
        if found {
            self.advance();
        }
        found
    }

    pub(super) fn expect(&mut self, mark: &str) -> Result<()> {
        if self.take(mark) { Ok(()) } else { self.unexpected(self.peek(), &format!("`{mark}`")) }
    }

    fn take_dotted(&mut self, name: &str) -> bool {
        let found = self.peek() == Token::Dotted(name);
        if found {
            self.advance();
        }
        found
    }

    fn word(&mut self, wanted: &str) -> Result<&'a str> {
        match self.peek() {
            Token::Word(word) => {
                self.advance();
                Ok(word)
            }
            found => self.unexpected(found, wanted),
        }
    }

    /// A constant expression that must fit 32 bits.
    fn u32(&mut self, wanted: &str) -> Result<u32> {
        let value = self.integer()?;
        match u32::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => self.error(format!("{value} is not {wanted}")),
        }
    }

    pub(super) fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > DEPTH { self.error(format!("nested more than {DEPTH} deep")) } else { Ok(()) }
    }

    pub(super) fn shallower(&mut self) {
        self.depth -= 1;
    }
}
