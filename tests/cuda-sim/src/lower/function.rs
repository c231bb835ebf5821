//! Lowers a function: its parameters, the statements of its body, its labels.

use std::rc::Rc;

use super::context::{Context, Signature, place};
use super::layout::SharedPlaces;
use super::liveness::Assignment;
use super::{Error, Lower, Result, Symbol};
use crate::code::{Code, Src};
use crate::ptx::ast::{Function, Instruction, Line, Space, Statement, Variable};

/// Lowers a function of a module. `shared` says where its own shared variables lie.
pub fn function(f: &Function, body: &[Statement], context: Rc<Context>, shared: SharedPlaces) -> Result<Code> {
    let first = once(f, body, context.clone(), shared.clone(), None)?;
    let assigned = Assignment::new(&first.scopes.trace.borrow(), &first.label_instructions);
    let second = once(f, body, context, shared, Some(Rc::new(assigned)))?;
    let mut code = second.finish();
    code.name.clone_from(&f.name);
    Ok(code)
}

/// Lowers it with a row for every register, or with assigned rows.
fn once(
    f: &Function,
    body: &[Statement],
    context: Rc<Context>,
    mut shared: SharedPlaces,
    assigned: Option<Rc<Assignment>>,
) -> Result<Lower> {
    let mut lower = Lower { in_kernel: f.entry, ..Lower::default() };
    lower.scopes.assigned = assigned;
    lower.scopes.module = context;
    lower.scopes.open();
    for (name, symbol) in &shared.named {
        lower.scopes.insert(name, symbol.clone(), f.line)?;
    }
    lower.scopes.open();
    if f.entry {
        let (params, _) = kernel_params(f)?;
        for (v, param) in f.params.iter().zip(params) {
            lower.scopes.insert(&v.name, Symbol::Address(param.offset as u64, Space::Param), v.line)?;
        }
    } else {
        let signature = Signature::new(&f.params, &f.returns)?;
        let slots = signature.params.iter().chain(&signature.returns);
        for (v, slot) in f.params.iter().chain(&f.returns).zip(slots) {
            if v.name != "_" {
                lower.scopes.insert(&v.name, Symbol::Address(slot.offset as u64, Space::Local), v.line)?;
            }
        }
        lower.code.local_bytes = signature.bytes;
    }
    lower.body(body, &mut shared)?;
    // The end of the body returns.
    let end = Instruction {
        guard: None,
        opcode: "ret".into(),
        modifiers: Vec::new(),
        operands: Vec::new(),
        line: lower.line,
        source: None,
    };
    lower.instruction(&end)?;
    Ok(lower)
}

/// The parameters of a kernel in its parameter space, and the bytes of all.
pub fn kernel_params(f: &Function) -> Result<(Vec<crate::program::Param>, u32)> {
    /// Since PTX ISA 8.1.
    const MOST: u64 = 32764;
    let mut end = 0u64;
    let mut params = Vec::new();
    for v in &f.params {
        let error = |message: &str| Err(Error { line: v.line, message: format!("`{}`: {message}", v.name) });
        if v.space != Space::Param {
            return error("a kernel's parameters are in `.param`");
        }
        let offset = end.next_multiple_of(v.alignment());
        match v.bytes().filter(|n| *n > 0 && offset + n <= MOST) {
            Some(size) => {
                end = offset + size;
                let align = v.alignment() as u32;
                params.push(crate::program::Param { offset: offset as u32, size: size as u32, align });
            }
            None => return error("a parameter of no size, or more than 32764 bytes of parameters"),
        }
    }
    Ok((params, end as u32))
}

impl Lower {
    /// Lowers statements in a scope of their own, without variables of shared memory: for tests.
    pub fn statements(&mut self, statements: &[Statement]) -> Result<()> {
        self.scopes.open();
        self.body(statements, &mut SharedPlaces::default())?;
        self.resolve();
        Ok(())
    }

    /// What has been lowered, with its labels resolved.
    fn finish(mut self) -> Code {
        self.resolve();
        self.code
    }

    fn body(&mut self, statements: &[Statement], shared: &mut SharedPlaces) -> Result<()> {
        self.announce(statements)?;
        for statement in statements {
            match statement {
                Statement::Declare(v) => self.declare(v, shared)?,
                Statement::Instruction(i) => self.instruction(i)?,
                Statement::Scope(inner) => {
                    self.scopes.open();
                    self.body(inner, shared)?;
                    self.scopes.close();
                }
                Statement::Label(name, _) => {
                    if let Some(Symbol::Label(label)) = self.lookup(name) {
                        self.labels[label as usize] = self.code.ops.len() as u32;
                        // The instruction that follows.
                        self.label_instructions[label as usize] = self.scopes.trace.get_mut().instruction + 1;
                    }
                }
                Statement::BranchTargets { .. } | Statement::CallPrototype { .. } => {}
            }
        }
        Ok(())
    }

    /// Labels are known in their whole scope, also before they stand.
    fn announce(&mut self, statements: &[Statement]) -> Result<()> {
        for statement in statements {
            match statement {
                Statement::Label(name, line) => {
                    let label = Symbol::Label(self.labels.len() as u32);
                    self.labels.push(u32::MAX);
                    self.label_instructions.push(u32::MAX);
                    self.scopes.insert(name, label, *line)?;
                }
                Statement::BranchTargets { name, labels, line } => {
                    self.scopes.insert(name, Symbol::Targets(labels.clone().into()), *line)?;
                }
                Statement::CallPrototype { name, returns, params, line } => {
                    let signature = Rc::new(Signature::new(params, returns)?);
                    self.scopes.insert(name, Symbol::Prototype(signature), *line)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn declare(&mut self, v: &Variable, shared: &mut SharedPlaces) -> Result<()> {
        let error = |message: &str| Err(Error { line: v.line, message: format!("`{}`: {message}", v.name) });
        match v.space {
            Space::Reg => self.scopes.registers(v),
            Space::Local | Space::Param => {
                let slot = place(v, &mut self.code.local_bytes)?;
                self.scopes.insert(&v.name, Symbol::Address(slot.offset as u64, Space::Local), v.line)?;
                if v.space == Space::Param {
                    self.scopes.sized(&v.name, slot);
                }
                Ok(())
            }
            Space::Shared => match shared.next() {
                Some(symbol) => self.scopes.insert(&v.name, symbol, v.line),
                None => error("shared memory has no place here"),
            },
            Space::Global | Space::Const | Space::Generic => error("only a module declares variables of this space"),
        }
    }

    /// The operation emitted next branches to a label: puts the label's place into its `imm` when it is known.
    pub fn branch_to(&mut self, i: &Instruction, name: &str) -> Result<()> {
        let label = self.label(i.line, name)?;
        self.branches.push((self.code.ops.len(), label));
        Ok(())
    }

    /// Labels as a range of [`Code::list`], each the plain number of an operation.
    pub fn label_list(&mut self, line: Line, names: &[String]) -> Result<(u32, u32)> {
        for name in names {
            let label = self.label(line, name)?;
            self.targets.push((self.code.list.len(), label));
            self.code.list.push(Src::default());
        }
        let end = self.code.list.len() as u32;
        Ok((end - names.len() as u32, end))
    }

    fn label(&mut self, line: Line, name: &str) -> Result<u32> {
        match self.lookup(name) {
            Some(Symbol::Label(label)) => {
                self.scopes.trace.get_mut().branch(label);
                Ok(label)
            }
            _ => Err(Error { line, message: format!("label `{name}` is not defined") }),
        }
    }

    /// Puts the places of labels where they are branched to. Every label that was announced has been passed.
    fn resolve(&mut self) {
        for &(op, label) in &self.branches {
            self.code.ops[op].imm = self.labels[label as usize] as u64;
        }
        for &(entry, label) in &self.targets {
            self.code.list[entry] = Src::register(self.labels[label as usize]);
        }
        self.code.registers = self.scopes.window();
    }

    /// The bytes of a parameter variable that this function declared.
    pub fn slot(&self, name: &str) -> Option<super::Slot> {
        self.scopes.slot(name)
    }
}
