//! Names in scope, and the registers they stand for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::liveness::{Assignment, Rows, Touch, Trace};
use super::{Context, File, Signature, Slot};
use crate::ptx::ast::{Space, Type, Variable};
use crate::ptx::{Error, Result};

/// Rows of one register file that a function may declare: a row is up to 256 bytes in every warp.
const MOST_ROWS: u32 = 1 << 18;

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Symbol {
    /// A register: its row in its file and its declared type. A 128-bit register has two rows.
    Register(u32, Type),
    /// A vector of registers: the row of its first component, their type, how many.
    Vector(u32, Type, u32),
    /// A variable at a known address of its space (shared, local, param: an offset; global: its device address).
    Address(u64, Space),
    /// `.extern .shared` memory seen from a device function: where it begins depends on the kernel.
    DynamicShared,
    /// A function by its index in [`Context::functions`].
    Function(u32),
    /// A label by its number in the function.
    Label(u32),
    /// `.branchtargets`
    Targets(Rc<[String]>),
    /// `.callprototype`
    Prototype(Rc<Signature>),
}

/// `%r<17>`: registers that differ by a number.
#[derive(Clone, Copy)]
struct Family {
    first: u32,
    count: u32,
    ty: Type,
}

/// What one pair of braces declares.
#[derive(Default)]
struct Scope {
    names: HashMap<String, Symbol>,
    families: HashMap<String, Family>,
    /// Local and parameter variables of the function.
    slots: HashMap<String, Slot>,
}

/// Nested scopes, innermost last.
#[derive(Default)]
pub struct Scopes {
    /// Names of the module, outside all.
    pub module: Rc<Context>,
    open: Vec<Scope>,
    vectors: bool,
    /// Rows given away, a row for each register.
    rows: Rows,
    /// What instructions do with registers, for the assignment of rows.
    pub trace: RefCell<Trace>,
    /// The rows of the second lowering of a function; none in the first.
    pub assigned: Option<Rc<Assignment>>,
}

impl Scopes {
    /// Opens a scope.
    pub fn open(&mut self) {
        self.open.push(Scope::default());
    }

    /// Closes the innermost scope. Its rows are not reused: a value may be in flight in them.
    pub fn close(&mut self) {
        self.open.pop();
    }

    /// What a name stands for. What reads or writes a register must say so: see [`Scopes::touch`].
    pub fn lookup(&self, name: &str) -> Option<Symbol> {
        let inner = self.open.iter().rev().find_map(|scope| scope.find(name));
        let found = inner.or_else(|| self.module.symbols.get(name).cloned())?;
        Some(match found {
            Symbol::Register(row, ty) => Symbol::Register(self.place(row, ty), ty),
            Symbol::Vector(row, ty, count) => Symbol::Vector(self.place(row, ty), ty, count),
            other => other,
        })
    }

    /// The row that a register has in this lowering.
    fn place(&self, row: u32, ty: Type) -> u32 {
        self.assigned.as_ref().map_or(row, |a| a.row(File::of(ty), row))
    }

    /// The current instruction reads or writes the register of a row that [`Scopes::lookup`] gave.
    pub fn touch(&self, row: u32, ty: Type, touch: Touch) {
        if self.assigned.is_none() {
            self.trace.borrow_mut().touch(File::of(ty), row, touch);
        }
    }

    /// Gives a register, whose row [`Scopes::lookup`] gave, that row for itself in the whole function.
    pub fn pin(&self, row: u32, ty: Type) {
        if self.assigned.is_none() {
            self.trace.borrow_mut().pin(File::of(ty), row);
        }
    }

    /// Rows of the window.
    pub fn window(&self) -> Rows {
        self.assigned.as_ref().map_or(self.rows, |a| a.counts())
    }

    /// Whether any vector register was declared.
    pub fn has_vectors(&self) -> bool {
        self.vectors
    }

    /// Notes where a local or parameter variable of the innermost scope lies.
    pub fn sized(&mut self, name: &str, slot: Slot) {
        self.innermost().slots.insert(name.to_string(), slot);
    }

    /// Where a local or parameter variable lies.
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.open.iter().rev().find_map(|scope| scope.slots.get(name).copied())
    }

    /// Declares a name in the innermost scope.
    pub fn insert(&mut self, name: &str, symbol: Symbol, line: u32) -> Result<()> {
        let scope = self.innermost();
        if scope.find(name).is_some() {
            return Err(Error { line, message: format!("`{name}` is declared twice") });
        }
        scope.names.insert(name.to_string(), symbol);
        Ok(())
    }

    /// Declares registers: one, a vector, or a family.
    pub fn registers(&mut self, v: &Variable) -> Result<()> {
        if let Some(count) = v.family {
            if v.vector != 1 {
                return Err(Error { line: v.line, message: format!("`{}`: a family of vectors", v.name) });
            }
            let family = Family { first: self.rows(v.ty, count, v)?, count, ty: v.ty };
            if v.ty == Type::B128 {
                (0..count).for_each(|n| self.pin(family.first + 2 * n, v.ty));
            }
            let scope = self.innermost();
            let taken =
                scope.families.contains_key(&v.name) || scope.names.keys().any(|n| family.row(&v.name, n).is_some());
            if taken {
                return Err(Error { line: v.line, message: format!("`{}<{count}>` is declared twice", v.name) });
            }
            scope.families.insert(v.name.clone(), family);
            return Ok(());
        }
        self.vectors |= v.vector != 1;
        let first = self.rows(v.ty, v.vector, v)?;
        if v.vector != 1 || v.ty == Type::B128 {
            let each = if v.ty == Type::B128 { 2 } else { 1 };
            (0..v.vector).for_each(|n| self.pin(first + each * n, v.ty));
        }
        let symbol = if v.vector == 1 { Symbol::Register(first, v.ty) } else { Symbol::Vector(first, v.ty, v.vector) };
        self.insert(&v.name, symbol, v.line)
    }

    /// Gives away `count` rows of the file of `ty`.
    fn rows(&mut self, ty: Type, count: u32, v: &Variable) -> Result<u32> {
        let (file, each) = match File::of(ty) {
            File::B32 => (&mut self.rows.0, 1),
            File::B64 => (&mut self.rows.1, 1),
            File::B128 => (&mut self.rows.1, 2),
            File::Pred => (&mut self.rows.2, 1),
        };
        let first = *file;
        match count.checked_mul(each).and_then(|n| n.checked_add(first)).filter(|n| *n <= MOST_ROWS) {
            Some(next) => {
                *file = next;
                Ok(first)
            }
            None => {
                let message = format!("`{}`: more than {MOST_ROWS} registers of a kind", v.name);
                Err(Error { line: v.line, message })
            }
        }
    }

    /// A register without a name, for the current instruction only.
    pub fn temporary(&mut self, ty: Type) -> u32 {
        let (file, each) = match File::of(ty) {
            File::B32 => (&mut self.rows.0, 1),
            File::B64 => (&mut self.rows.1, 1),
            File::B128 => (&mut self.rows.1, 2),
            File::Pred => (&mut self.rows.2, 1),
        };
        let row = *file;
        *file += each;
        match File::of(ty) {
            File::B128 => self.pin(row, ty),
            _ if self.assigned.is_none() => self.trace.get_mut().temporary(File::of(ty), row),
            _ => {}
        }
        self.place(row, ty)
    }

    fn innermost(&mut self) -> &mut Scope {
        if self.open.is_empty() {
            self.open();
        }
        self.open.last_mut().expect("a scope is open")
    }
}

impl Scope {
    fn find(&self, name: &str) -> Option<Symbol> {
        if let Some(symbol) = self.names.get(name) {
            return Some(symbol.clone());
        }
        // Families may be named so that one is the start of another: every split is tried.
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        (name.len() - digits..name.len()).find_map(|split| {
            let prefix = name.get(..split)?;
            let family = self.families.get(prefix)?;
            Some(Symbol::Register(family.row(prefix, name)?, family.ty))
        })
    }
}

impl Family {
    /// The row of `name`, if it is `prefix` and a number below the count, written without leading zeros.
    fn row(self, prefix: &str, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(prefix)?;
        let plain = digits.len() <= 9 && digits.bytes().all(|b| b.is_ascii_digit());
        let number: u32 = digits.parse().ok().filter(|_| plain && (digits == "0" || !digits.starts_with('0')))?;
        let each = if File::of(self.ty) == File::B128 { 2 } else { 1 };
        (number < self.count).then(|| self.first + number * each)
    }
}
