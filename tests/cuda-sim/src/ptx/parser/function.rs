//! Functions and the statements of their bodies.

use super::super::Result;
use super::super::ast::*;
use super::super::lexer::*;
use super::Parser;
use super::variable::Linkage;

impl Parser<'_> {
    /// `.entry name (params) directives { ... }` or `.func (returns) name (params) directives { ... }`.
    pub(super) fn function(&mut self) -> Result<Function> {
        let entry = self.peek() == Token::Dotted("entry");
        let line = self.line();
        self.source = None;
        self.advance();
        let returns = if !entry && self.peek() == Token::Mark("(") { self.params()? } else { Vec::new() };
        let name = self.word("a function's name")?.to_string();
        let params = if self.peek() == Token::Mark("(") { self.params()? } else { Vec::new() };
        let mut directives = Vec::new();
        while let Token::Dotted(directive) = self.peek() {
            match directive {
                "pragma" => self.pragma()?,
                "loc" => self.location()?,
                _ => {
                    directives.push((directive.to_string(), self.directive_numbers(directive)?));
                }
            }
        }
        if self.take(";") {
            return Ok(Function { name, entry, params, returns, directives, body: None, line });
        }
        self.expect("{")?;
        let body = self.block()?;
        Ok(Function { name, entry, params, returns, directives, body: Some(body), line })
    }

    pub(super) fn directive_numbers(&mut self, name: &str) -> Result<Vec<u32>> {
        let known = matches!(
            name,
            "maxntid"
                | "maxnreg"
                | "minnctapersm"
                | "maxnctapersm"
                | "reqntid"
                | "reqnctapercluster"
                | "maxclusterrank"
                | "explicitcluster"
                | "blocksareclusters"
                | "noreturn"
                | "abi_preserve"
                | "abi_preserve_control"
        );
        if !known {
            return self.error(format!("directive `.{name}` is not supported on a function"));
        }
        self.advance();
        let mut numbers = Vec::new();
        while matches!(self.peek(), Token::Number(_)) {
            numbers.push(self.u32("a bound")?);
            if numbers.len() > 3 {
                return self.error(format!("`.{name}` with more than three numbers"));
            }
            if !self.take(",") {
                break;
            }
        }
        Ok(numbers)
    }

    /// `(.param .b64 a, .param .align 8 .b8 b[16])`
    pub(super) fn params(&mut self) -> Result<Vec<Variable>> {
        let mut out = Vec::new();
        self.expect("(")?;
        if self.take(")") {
            return Ok(out);
        }
        loop {
            if !matches!(self.peek(), Token::Dotted("param" | "reg")) {
                return self.unexpected(self.peek(), "a parameter");
            }
            let shape = self.shape(Linkage::default())?;
            out.push(self.declarator(&shape)?);
            if self.take(")") {
                return Ok(out);
            }
            self.expect(",")?;
        }
    }

    /// Statements up to the closing brace.
    pub(super) fn block(&mut self) -> Result<Vec<Statement>> {
        let mut out = Vec::new();
        while !self.take("}") {
            if self.peek() == Token::End {
                return self.error("a `{` is not closed");
            }
            self.statement(&mut out)?;
        }
        Ok(out)
    }

    pub(super) fn statement(&mut self, out: &mut Vec<Statement>) -> Result<()> {
        match self.peek() {
            Token::Mark("{") => {
                self.advance();
                self.deeper()?;
                out.push(Statement::Scope(self.block()?));
                self.shallower();
            }
            Token::Mark(";") => self.advance(),
            Token::Dotted("loc") => self.location()?,
            Token::Dotted("file") => self.file()?,
            Token::Dotted("pragma") => self.pragma()?,
            Token::Dotted("section") => self.section()?,
            Token::Dotted(
                "reg" | "local" | "shared" | "param" | "global" | "const" | "extern" | "visible" | "weak",
            ) => {
                let mut variables = Vec::new();
                let linkage = self.linkage();
                self.variables(linkage, &mut variables)?;
                out.extend(variables.into_iter().map(Statement::Declare));
            }
            Token::Dotted(name) => return self.error(format!("directive `.{name}` is not supported in a function")),
            Token::Word(name) if self.peek_at(1) == Token::Mark(":") => {
                let line = self.line();
                self.advance();
                self.advance();
                out.push(self.labelled(name, line)?);
            }
            Token::Word(_) | Token::Mark("@") => out.push(Statement::Instruction(self.instruction()?)),
            found => return self.unexpected(found, "a statement"),
        }
        Ok(())
    }

    /// What a name and a colon begin.
    pub(super) fn labelled(&mut self, name: &str, line: Line) -> Result<Statement> {
        let name = name.to_string();
        if self.take_dotted("branchtargets") || self.take_dotted("calltargets") {
            let mut labels = Vec::new();
            loop {
                labels.push(self.word("a label")?.to_string());
                if !self.take(",") {
                    break;
                }
            }
            self.expect(";")?;
            return Ok(Statement::BranchTargets { name, labels, line });
        }
        if self.take_dotted("callprototype") {
            let returns = if self.peek() == Token::Mark("(") { self.params()? } else { Vec::new() };
            self.word("`_`")?;
            let params = if self.peek() == Token::Mark("(") { self.params()? } else { Vec::new() };
            while let Token::Dotted(directive) = self.peek() {
                self.directive_numbers(directive)?;
            }
            self.expect(";")?;
            return Ok(Statement::CallPrototype { name, returns, params, line });
        }
        Ok(Statement::Label(name, line))
    }
}
