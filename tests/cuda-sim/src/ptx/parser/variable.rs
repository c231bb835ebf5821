//! Variables and their initial values.

use super::super::Result;
use super::super::ast::*;
use super::super::lexer::*;
use super::Parser;

/// `.extern`, `.visible`, `.weak`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Linkage {
    pub(super) external: bool,
    pub(super) visible: bool,
    pub(super) weak: bool,
}

impl Parser<'_> {
    /// `.space [.align n] [.vN] .type name[dims] [= initial] {, name ...};`
    pub(super) fn variables(&mut self, linkage: Linkage, out: &mut Vec<Variable>) -> Result<()> {
        let shape = self.shape(linkage)?;
        loop {
            out.push(self.declarator(&shape)?);
            if !self.take(",") {
                return self.expect(";");
            }
        }
    }

    /// What stands before the names of a declaration.
    pub(super) fn shape(&mut self, linkage: Linkage) -> Result<Variable> {
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
                "attribute" if space == Space::Global => self.attributes()?,
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

    /// `.attribute(.managed)`: the host's own access to managed memory is not the simulator's, the device's is as to any.
    fn attributes(&mut self) -> Result<()> {
        self.expect("(")?;
        if !self.take_dotted("managed") {
            return self.unexpected(self.peek(), "`.managed`");
        }
        self.expect(")")
    }

    pub(super) fn alignment(&mut self) -> Result<u32> {
        let value = self.u32("an alignment")?;
        if value.is_power_of_two() && value <= 1 << 16 {
            return Ok(value);
        }
        self.error(format!("{value} is not an alignment"))
    }

    /// `.ptr [.space] [.align n]` of a kernel's parameter: a promise to the compiler, not to us.
    pub(super) fn pointer(&mut self) -> Result<()> {
        if let Token::Dotted("global" | "shared" | "local" | "const") = self.peek() {
            self.advance();
        }
        if self.take_dotted("align") {
            self.alignment()?;
        }
        Ok(())
    }

    pub(super) fn declarator(&mut self, shape: &Variable) -> Result<Variable> {
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
    pub(super) fn binary_count(&mut self) -> Result<u32> {
        let value = self.binary(8)?;
        u32::try_from(value).or_else(|_| self.error(format!("{value} is not a number of registers")))
    }

    pub(super) fn initialiser(&mut self, variable: &mut Variable) -> Result<()> {
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
    pub(super) fn braces(&mut self, ty: Type, extents: &[u64], out: &mut Vec<Initial>) -> Result<u64> {
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
    pub(super) fn element(&mut self, ty: Type) -> Result<Initial> {
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
    pub(super) fn masked_address(&mut self, mask: u64) -> Result<Initial> {
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

    pub(super) fn address_value(&mut self, byte: Option<u8>) -> Result<Initial> {
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
