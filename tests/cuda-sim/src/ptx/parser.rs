//! Tokens to syntax tree: modules, functions, statements and operands.

use super::ast::*;
use super::lexer::{Literal, Token, literal, tokens};
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

/// Modules.
impl Parser<'_> {
    /// `.version`, `.target` and `.address_size`, which come first.
    fn header(&mut self, module: &mut Module) -> Result<()> {
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
    fn top(&mut self, module: &mut Module) -> Result<()> {
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

    fn linkage(&mut self) -> Linkage {
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
    fn file(&mut self) -> Result<()> {
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
    fn section(&mut self) -> Result<()> {
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
    fn pragma(&mut self) -> Result<()> {
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
    fn location(&mut self) -> Result<()> {
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

/// `.extern`, `.visible`, `.weak`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Linkage {
    external: bool,
    visible: bool,
    weak: bool,
}

/// Variables.
impl Parser<'_> {
    /// `.space [.align n] [.vN] .type name[dims] [= initial] {, name ...};`
    fn variables(&mut self, linkage: Linkage, out: &mut Vec<Variable>) -> Result<()> {
        let shape = self.shape(linkage)?;
        loop {
            out.push(self.declarator(&shape)?);
            if !self.take(",") {
                return self.expect(";");
            }
        }
    }

    /// What stands before the names of a declaration.
    fn shape(&mut self, linkage: Linkage) -> Result<Variable> {
        let line = self.line();
        let Token::Dotted(space) = self.peek() else {
            return self.unexpected(self.peek(), "a state space");
        };
        let space = match space {
            "reg" => Space::Reg,
            "global" => Space::Global,
            "shared" => Space::Shared,
            "local" => Space::Local,
            "param" => Space::Param,
            "const" => Space::Const,
            _ => return self.error(format!("`.{space}` is not a state space of variables")),
        };
        self.advance();
        let Linkage { external, visible, weak } = linkage;
        let mut shape = Variable {
            name: String::new(),
            space,
            ty: Type::Pred,
            vector: 1,
            dims: Vec::new(),
            family: None,
            align: None,
            external,
            visible,
            weak,
            initial: Vec::new(),
            line,
        };
        let mut ty = None;
        while let Token::Dotted(name) = self.peek() {
            self.advance();
            match name {
                "align" => shape.align = Some(self.alignment()?),
                "v2" => shape.vector = 2,
                "v4" => shape.vector = 4,
                "ptr" if space == Space::Param => self.pointer()?,
                _ => match (Type::parse(name), ty) {
                    (Some(found), None) => ty = Some(found),
                    _ => return self.error(format!("`.{name}` is not supported in a declaration")),
                },
            }
        }
        match ty {
            Some(Type::Pred) if space != Space::Reg => self.error("only a register can be a predicate"),
            Some(found) => {
                shape.ty = found;
                Ok(shape)
            }
            None => self.unexpected(self.peek(), "a type"),
        }
    }

    fn alignment(&mut self) -> Result<u32> {
        let value = self.u32("an alignment")?;
        if value.is_power_of_two() && value <= 1 << 16 {
            return Ok(value);
        }
        self.error(format!("{value} is not an alignment"))
    }

    /// `.ptr [.space] [.align n]` of a kernel's parameter: a promise to the compiler, not to us.
    fn pointer(&mut self) -> Result<()> {
        if let Token::Dotted("global" | "shared" | "local" | "const") = self.peek() {
            self.advance();
        }
        if self.take_dotted("align") {
            self.alignment()?;
        }
        Ok(())
    }

    fn declarator(&mut self, shape: &Variable) -> Result<Variable> {
        let mut variable = Variable { line: self.line(), ..shape.clone() };
        variable.name = self.word("a name")?.to_string();
        if shape.space == Space::Reg && self.take("<") {
            variable.family = Some(self.binary_count()?);
            self.expect(">")?;
        }
        while self.take("[") {
            let count = if self.peek() == Token::Mark("]") { 0 } else { self.integer()? };
            let Ok(count) = u64::try_from(count) else { return self.error(format!("{count} is not an extent")) };
            variable.dims.push(count);
            self.expect("]")?;
        }
        if !variable.dims.is_empty() && shape.space == Space::Reg {
            return self.error("registers cannot be arrays");
        }
        if variable.dims.iter().skip(1).any(|d| *d == 0) {
            return self.error(format!("`{}`: only the first extent may be left out", variable.name));
        }
        if self.take("=") {
            if !matches!(shape.space, Space::Global | Space::Const) {
                return self.error("only global and constant variables can have initial values");
            }
            self.initialiser(&mut variable)?;
        }
        if variable.bytes().is_none() {
            return self.error(format!("`{}` is too large", variable.name));
        }
        Ok(variable)
    }

    /// The `17` of `%r<17>`: an expression in which `>` closes.
    fn binary_count(&mut self) -> Result<u32> {
        let value = self.binary(8)?;
        u32::try_from(value).or_else(|_| self.error(format!("{value} is not a number of registers")))
    }

    fn initialiser(&mut self, variable: &mut Variable) -> Result<()> {
        let mut initial = Vec::new();
        if variable.dims.is_empty() && variable.vector == 1 {
            initial.push(self.element(variable.ty)?);
            variable.initial = initial;
            return Ok(());
        }
        let mut extents = variable.dims.clone();
        if variable.vector > 1 {
            extents.push(variable.vector as u64);
        }
        let count = self.braces(variable.ty, &extents, &mut initial)?;
        if variable.dims.first() == Some(&0) {
            variable.dims[0] = count;
        }
        variable.initial = initial;
        Ok(())
    }

    /// `{a, b, ...}` for an array of `extents`, padded except outermost; gives the number of outer elements.
    fn braces(&mut self, ty: Type, extents: &[u64], out: &mut Vec<Initial>) -> Result<u64> {
        self.deeper()?;
        self.expect("{")?;
        let inner: Option<u64> = extents[1..].iter().try_fold(1u64, |a, b| a.checked_mul(*b));
        let Some(inner) = inner else { return self.error("the array is too large") };
        let mut scalars = 0u64;
        while !self.take("}") {
            if matches!(self.peek(), Token::Mark("{")) {
                if extents.len() < 2 {
                    return self.error("more braces than extents");
                }
                if !scalars.is_multiple_of(inner) {
                    return self.error("braces inside a row that was begun without");
                }
                let row = &extents[1..];
                let per = inner / row[0];
                let filled = self.braces(ty, row, out)? * per;
                if filled < inner {
                    out.push(Initial::Zeros(inner - filled));
                }
                scalars += inner;
            } else {
                out.push(self.element(ty)?);
                scalars += 1;
            }
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        let count = scalars.div_ceil(inner);
        if !scalars.is_multiple_of(inner) {
            out.push(Initial::Zeros(count * inner - scalars));
        }
        if extents[0] != 0 && count > extents[0] {
            return self.error(format!("{count} initial values for {} elements", extents[0]));
        }
        self.shallower();
        Ok(count)
    }

    /// One value of an initialiser: a number, or an address such as `generic(symbol)+4` or `0xFF00(symbol)`.
    fn element(&mut self, ty: Type) -> Result<Initial> {
        if let Token::Word(name) = self.peek()
            && name != "WARP_SZ"
        {
            return self.address_value(None);
        }
        let float = matches!(ty, Type::F16 | Type::BF16 | Type::F32 | Type::F64);
        let negative = matches!(self.peek(), Token::Mark("-"))
            && matches!(self.peek_at(1), Token::Number(t) if !matches!(literal(t), Some(Literal::Int(_))));
        if negative {
            self.advance();
        }
        if let Token::Number(text) = self.peek() {
            let bits = match (literal(text), ty) {
                (Some(Literal::F32(bits)), Type::F32 | Type::B32) => Some(bits as u64 ^ (negative as u64) << 31),
                (Some(Literal::F64(bits)), Type::F64 | Type::B64) => Some(bits ^ (negative as u64) << 63),
                (Some(Literal::F64(bits)), Type::F32) => {
                    let value = f64::from_bits(bits) as f32;
                    Some(if negative { -value } else { value }.to_bits() as u64)
                }
                (Some(Literal::Int(_)), _) => None,
                _ => return self.error(format!("`{text}` is not a {ty:?}")),
            };
            if let Some(bits) = bits {
                self.advance();
                return Ok(Initial::Bits(bits));
            }
            if let (Some(Literal::Int(mask)), Token::Mark("(")) = (literal(text), self.peek_at(1)) {
                return self.masked_address(mask);
            }
        }
        if float {
            // An integer in a float's place is a value of the integer, not its bits.
            let value = self.integer()? as f64;
            return match ty {
                Type::F32 => Ok(Initial::Bits((value as f32).to_bits() as u64)),
                Type::F64 => Ok(Initial::Bits(value.to_bits())),
                _ => self.error(format!("an initial value of type {ty:?} is not supported")),
            };
        }
        let value = self.integer()?;
        let bits = ty.bits();
        if bits < 64 && !(-(1i128 << (bits - 1))..1i128 << bits).contains(&value) {
            return self.error(format!("{value} does not fit a {ty:?}"));
        }
        let mask = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        Ok(Initial::Bits(value as u64 & mask))
    }

    /// `0xFF00(symbol)`: a byte of an address.
    fn masked_address(&mut self, mask: u64) -> Result<Initial> {
        let shift = mask.trailing_zeros();
        if mask == 0 || !shift.is_multiple_of(8) || mask >> shift != 0xff {
            return self.error(format!("{mask:#x} does not select one byte of an address"));
        }
        self.advance();
        self.expect("(")?;
        let value = self.address_value(Some((shift / 8) as u8))?;
        self.expect(")")?;
        Ok(value)
    }

    fn address_value(&mut self, byte: Option<u8>) -> Result<Initial> {
        let mut symbol = self.word("a symbol")?;
        let generic = symbol == "generic" && self.take("(");
        if generic {
            symbol = self.word("a symbol")?;
            self.expect(")")?;
        }
        let offset = if matches!(self.peek(), Token::Mark("+" | "-")) { self.integer()? } else { 0 };
        match i64::try_from(offset) {
            Ok(offset) => Ok(Initial::Address { symbol: symbol.to_string(), offset, generic, byte }),
            Err(_) => self.error(format!("{offset} is not an offset")),
        }
    }
}

/// Functions.
impl Parser<'_> {
    /// `.entry name (params) directives { ... }` or `.func (returns) name (params) directives { ... }`.
    fn function(&mut self) -> Result<Function> {
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

    fn directive_numbers(&mut self, name: &str) -> Result<Vec<u32>> {
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
    fn params(&mut self) -> Result<Vec<Variable>> {
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
    fn block(&mut self) -> Result<Vec<Statement>> {
        let mut out = Vec::new();
        while !self.take("}") {
            if self.peek() == Token::End {
                return self.error("a `{` is not closed");
            }
            self.statement(&mut out)?;
        }
        Ok(out)
    }

    fn statement(&mut self, out: &mut Vec<Statement>) -> Result<()> {
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
    fn labelled(&mut self, name: &str, line: Line) -> Result<Statement> {
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

/// Instructions.
impl Parser<'_> {
    fn instruction(&mut self) -> Result<Instruction> {
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
    fn operand(&mut self, call: bool) -> Result<Operand> {
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
    fn operands(&mut self, open: &str, close: &str) -> Result<Vec<Operand>> {
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

    fn float(&mut self) -> Result<Operand> {
        let Token::Number(text) = self.peek() else { return self.unexpected(self.peek(), "a number") };
        self.advance();
        match literal(text) {
            Some(Literal::F32(bits)) => Ok(Operand::F32(bits)),
            Some(Literal::F64(bits)) => Ok(Operand::F64(bits)),
            _ => self.error(format!("`{text}` is not a number")),
        }
    }

    /// A name with what may follow it: a component, a second name after `|`, an offset.
    fn named(&mut self) -> Result<Operand> {
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
    fn single(&mut self) -> Result<Operand> {
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
    fn offset(&mut self) -> Result<i64> {
        let value = self.integer()?;
        // An offset written as unsigned wraps like the address it is added to.
        Ok(value as u64 as i64)
    }

    /// `[base+offset]`, `[map, {coordinates}]`
    fn address(&mut self) -> Result<Operand> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(text: &str) -> Instruction {
        match parse_body(text).unwrap().pop() {
            Some(Statement::Instruction(i)) => i,
            other => panic!("{other:?}"),
        }
    }

    fn operands(text: &str) -> String {
        format!("{:?}", instruction(&format!("op {text};")).operands)
    }

    #[test]
    fn operands_are_what_they_look_like() {
        for (text, expected) in [
            ("%r1, _", r#"[Name("%r1"), Sink]"#),
            ("%tid.x, %v.y, %v.a", r#"[Name("%tid.x"), Component("%v", 1), Component("%v", 3)]"#),
            ("%r1.b2, %r1.h1", r#"[Selector("%r1", 2..3), Selector("%r1", 2..4)]"#),
            (
                "%p1|%p2, _|%p1, %r1|%p0",
                r#"[Pair(Name("%p1"), Name("%p2")), Pair(Sink, Name("%p1")), Pair(Name("%r1"), Name("%p0"))]"#,
            ),
            ("!%p1", r#"[Not("%p1")]"#),
            (
                "-1, 0x7fffffff+1, ~0, 3 > 2, (.s64)0xffffffffffffffff",
                "[Int(-1), Int(2147483648), Int(-1), Int(1), Int(-1)]",
            ),
            ("18446744073709551615U, -9223372036854775808", "[Int(18446744073709551615), Int(-9223372036854775808)]"),
            ("0f3f800000, -0f3f800000, 1.5", "[F32(1065353216), F32(3212836864), F64(4609434218613702656)]"),
            ("{%r1, _, 2}", r#"[Vector([Name("%r1"), Sink, Int(2)])]"#),
            ("sym+4, sym-4", r#"[Offset(Name("sym"), 4), Offset(Name("sym"), -4)]"#),
            ("[%rd1]", r#"[Address { base: Name("%rd1"), offset: 0, coordinates: [] }]"#),
            ("[%rd1+-16]", r#"[Address { base: Name("%rd1"), offset: -16, coordinates: [] }]"#),
            ("[%rd1+4*8-2]", r#"[Address { base: Name("%rd1"), offset: 30, coordinates: [] }]"#),
            ("[sym+0xffffffffffffffff]", r#"[Address { base: Name("sym"), offset: -1, coordinates: [] }]"#),
            ("[4096]", "[Address { base: Int(4096), offset: 0, coordinates: [] }]"),
            ("[%rd1, {%r1, 2}]", r#"[Address { base: Name("%rd1"), offset: 0, coordinates: [Name("%r1"), Int(2)] }]"#),
            ("WARP_SZ", "[Int(32)]"),
            ("1 ? 2 : 3, 0 ? 2 : 0 ? 4 : 5", "[Int(2), Int(5)]"),
        ] {
            assert_eq!(operands(text), expected, "{text}");
        }
    }

    #[test]
    fn a_guard_an_opcode_and_its_modifiers_are_told_apart() {
        let i = instruction("@!%p1 ld.global.L1::no_allocate.L2::128B.v4.b32 {%r1,%r2,%r3,%r4}, [%rd1];");
        let guard = i.guard.unwrap();
        assert_eq!((guard.name.as_str(), guard.negated), ("%p1", true));
        assert_eq!(i.opcode, "ld");
        assert_eq!(i.modifiers, ["global", "L1::no_allocate", "L2::128B", "v4", "b32"]);
        let i = instruction("call.uni (%r1, %r2), f, (1, %r3), proto;");
        assert_eq!(i.operands.len(), 4);
        assert!(matches!(&i.operands[0], Operand::List(l) if l.len() == 2));
    }

    #[test]
    fn source_lines_are_carried_to_the_instructions_that_follow() {
        let body =
            parse_body("ret; .loc 2 17 5 ret; .loc 1 3 4, function_name $L__info_string0, inlined_at 2 9 1 ret;");
        let sources: Vec<_> = (body.unwrap().iter())
            .map(|s| match s {
                Statement::Instruction(i) => i.source,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sources, [None, Some((2, 17)), Some((1, 3))]);
    }

    #[test]
    fn malformed_operands_are_refused() {
        for text in
            ["", ",", "%r1 %r2", "[%r1", "[]", "{%r1", "%r1.q", "%r1.xy", "%r1.5", "%r1|", "0f3f8", "(1", "1 +", "*%r1"]
        {
            let text = format!("op {text};");
            assert!(text == "op ;" || parse_body(&text).is_err(), "{text}");
        }
    }
}
