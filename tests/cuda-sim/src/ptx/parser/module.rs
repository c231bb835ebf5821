//! Modules: the header and what stands at the top.

use super::super::Result;
use super::super::ast::*;
use super::super::lexer::*;
use super::Parser;
use super::variable::Linkage;

impl Parser<'_> {
    /// `.version`, `.target` and `.address_size`, which come first.
    pub(super) fn header(&mut self, module: &mut Module) -> Result<()> {
        if !self.take_dotted("version") {
            return self.unexpected(self.peek(), "`.version`");
        }
        module.version = match self.peek() {
            Token::Number(text) => match text.split_once('.').map(|(a, b)| (a.parse(), b.parse())) {
                Some((Ok(major), Ok(minor))) => (major, minor),
                _ => return self.error(format!("`{text}` is not a version")),
            },
            found => return self.unexpected(found, "a version"),
        };
        self.advance();
        if !self.take_dotted("target") {
            return self.unexpected(self.peek(), "`.target`");
        }
        loop {
            module.target.push(self.word("a target")?.to_string());
            if !self.take(",") {
                break;
            }
        }
        if self.take_dotted("address_size") && self.integer()? != 64 {
            return self.error("only `.address_size 64` is supported");
        }
        Ok(())
    }

    /// One declaration at module scope.
    pub(super) fn top(&mut self, module: &mut Module) -> Result<()> {
        let linkage = self.linkage();
        match self.peek() {
            Token::Dotted("entry" | "func") => module.functions.push(self.function()?),
            Token::Dotted("global" | "const" | "shared") => self.variables(linkage, &mut module.variables)?,
            Token::Dotted(name) if linkage == Linkage::default() => match name {
                "file" => {
                    self.file()?;
                    module.files.append(&mut self.files);
                }
                "section" => self.section()?,
                "loc" => self.location()?,
                "pragma" => self.pragma()?,
                _ => return self.error(format!("directive `.{name}` is not supported at module scope")),
            },
            found => return self.unexpected(found, "a declaration"),
        }
        Ok(())
    }

    pub(super) fn linkage(&mut self) -> Linkage {
        let mut linkage = Linkage::default();
        loop {
            match self.peek() {
                Token::Dotted("extern") => linkage.external = true,
                Token::Dotted("visible") => linkage.visible = true,
                Token::Dotted("weak" | "common") => linkage.weak = true,
                _ => return linkage,
            }
            self.advance();
        }
    }

    /// `.file 1 "name" [, timestamp, size]`
    pub(super) fn file(&mut self) -> Result<()> {
        self.advance();
        let number = self.u32("a file's number")?;
        let Token::Text(name) = self.peek() else {
            return self.unexpected(self.peek(), "a file's name");
        };
        self.advance();
        while self.take(",") {
            self.integer()?;
        }
        self.files.push((number, name.to_string()));
        Ok(())
    }

    /// Debug sections say nothing that running needs.
    pub(super) fn section(&mut self) -> Result<()> {
        while !matches!(self.peek(), Token::Mark("{") | Token::End) {
            self.advance();
        }
        self.expect("{")?;
        let mut open = 1;
        while open > 0 {
            match self.peek() {
                Token::Mark("{") => open += 1,
                Token::Mark("}") => open -= 1,
                Token::End => return self.error("a section is not closed"),
                _ => {}
            }
            self.advance();
        }
        Ok(())
    }

    /// `.pragma "text" {, "text"};`
    pub(super) fn pragma(&mut self) -> Result<()> {
        self.advance();
        loop {
            match self.peek() {
                Token::Text(_) => self.advance(),
                found => return self.unexpected(found, "a pragma's text"),
            }
            if !self.take(",") {
                return self.expect(";");
            }
        }
    }

    /// `.loc file line column [, function_name label [+ n]] [, inlined_at file line column]`
    pub(super) fn location(&mut self) -> Result<()> {
        self.advance();
        let file = self.u32("a file's number")?;
        let line = self.u32("a line")?;
        self.u32("a column")?;
        while self.take(",") {
            match self.word("`function_name` or `inlined_at`")? {
                "function_name" => {
                    self.word("a label")?;
                    if self.take("+") {
                        self.integer()?;
                    }
                }
                "inlined_at" => {
                    for what in ["a file's number", "a line", "a column"] {
                        self.u32(what)?;
                    }
                }
                other => return self.error(format!("`{other}` is not an attribute of `.loc`")),
            }
        }
        self.source = Some((file, line));
        Ok(())
    }
}
