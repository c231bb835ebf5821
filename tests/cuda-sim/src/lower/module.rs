//! Lowers a module: its variables get addresses, its functions become code.

use std::collections::HashMap;
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;

use super::context::{Builtin, Callee, Context, FunctionInfo, Signature};
use super::layout::{EntryShared, lay_out};
use super::{Error, Result, Symbol, function, initial};
use crate::program::{Entry, GlobalVariable, Program};
use crate::ptx::ast::{Function, Module, Space, Variable};

impl Program {
    /// Reads and lowers a PTX text. `place` gives each variable at module scope its device address; their initial
    /// bytes are in [`Program::variables`], for the caller to write.
    pub fn load<E: Display>(text: &str, place: &mut dyn FnMut(&GlobalVariable) -> Placed<E>) -> Result<Program> {
        let module = crate::ptx::parse(text)?;
        let target = target(&module)?;
        let mut context = Context::default();
        functions(&module, &mut context)?;
        let variables = variables(&module, &mut context, place)?;
        let layout = lay_out(&module)?;
        let context = Rc::new(context);
        let mut program = Program { variables, target, ..Program::default() };
        let per_function = module.functions.iter().zip(layout.places).zip(layout.entries);
        for ((f, mut places), shared) in per_function {
            let Some(body) = &f.body else { continue };
            let code = function::function(f, body, context.clone(), &mut places)?;
            if f.entry {
                let entry = entry(f, program.functions.len(), shared, code.local_bytes)?;
                program.entries.insert(f.name.clone(), entry);
            }
            program.functions.push(Arc::new(code));
        }
        program.files = module.files;
        Ok(program)
    }
}

/// What `place` gives.
pub type Placed<E> = std::result::Result<u64, E>;

/// `sm_90a` is compute capability 90 with architecture-specific features.
fn target(module: &Module) -> Result<(u32, bool)> {
    let error = |name: &str| Err(Error { line: 1, message: format!("target `{name}` is not supported") });
    let Some((first, rest)) = module.target.split_first() else { return error("") };
    if let Some(other) = rest.iter().find(|t| !matches!(t.as_str(), "debug" | "texmode_unified")) {
        return error(other);
    }
    let digits = first.strip_prefix("sm_").unwrap_or("");
    let plain = digits.trim_end_matches(['a', 'f']);
    match plain.parse() {
        Ok(capability) if digits.len() <= plain.len() + 1 => Ok((capability, digits.len() > plain.len())),
        _ => error(first),
    }
}

/// Enters every function under its name. Declarations and definitions of one name must agree.
fn functions(module: &Module, context: &mut Context) -> Result<()> {
    let mut bodies = 0;
    let mut known: HashMap<&str, (u32, bool)> = HashMap::new();
    for f in &module.functions {
        let error = |message: &str| Err(Error { line: f.line, message: format!("`{}`: {message}", f.name) });
        let signature = if f.entry { Signature::default() } else { Signature::new(&f.params, &f.returns)? };
        let callee = match (&f.body, f.entry) {
            (Some(_), true) => Callee::Kernel,
            (Some(_), false) => Callee::Code(bodies),
            (None, _) => Builtin::named(&f.name).map_or(Callee::Undefined, Callee::Builtin),
        };
        bodies += f.body.is_some() as u32;
        match known.get(f.name.as_str()) {
            None => {
                let index = context.functions.len() as u32;
                known.insert(&f.name, (index, f.body.is_some()));
                context.symbols.insert(f.name.clone(), Symbol::Function(index));
                context.functions.push(FunctionInfo { name: f.name.clone(), signature, callee });
            }
            Some((_, true)) if f.body.is_some() => return error("is defined twice"),
            Some(&(index, _)) => {
                let info = &mut context.functions[index as usize];
                if info.signature != signature {
                    return error("is declared in two ways");
                }
                if f.body.is_some() {
                    info.callee = callee;
                    known.insert(&f.name, (index, true));
                }
            }
        }
    }
    Ok(())
}

/// Places the variables of global and constant memory and computes what they hold.
fn variables<E: Display>(
    module: &Module,
    context: &mut Context,
    place: &mut dyn FnMut(&GlobalVariable) -> Placed<E>,
) -> Result<Vec<GlobalVariable>> {
    let mut placed: Vec<(&Variable, GlobalVariable)> = Vec::new();
    let in_memory = || module.variables.iter().filter(|v| v.space != Space::Shared);
    for v in in_memory().filter(|v| !v.external) {
        let error = |message: String| Err(Error { line: v.line, message: format!("`{}`: {message}", v.name) });
        if context.symbols.contains_key(&v.name) {
            return error("is declared twice".into());
        }
        let size = match v.bytes() {
            Some(size) if size > 0 => size,
            _ => return error("a variable without a size".into()),
        };
        let constant = v.space == Space::Const;
        let (name, align) = (v.name.clone(), v.alignment() as u32);
        let mut variable = GlobalVariable { name, size, align, constant, address: 0, initial: Vec::new() };
        variable.address = match place(&variable) {
            Ok(address) => address,
            Err(e) => return error(e.to_string()),
        };
        context.symbols.insert(v.name.clone(), Symbol::Address(variable.address, v.space));
        placed.push((v, variable));
    }
    for v in in_memory().filter(|v| v.external) {
        if !matches!(context.symbols.get(&v.name), Some(Symbol::Address(_, space)) if *space == v.space) {
            let message = format!("`{}` is not defined in this module", v.name);
            return Err(Error { line: v.line, message });
        }
    }
    for (v, variable) in &mut placed {
        variable.initial = initial::bytes(v, context)?;
    }
    Ok(placed.into_iter().map(|(_, variable)| variable).collect())
}

fn entry(f: &Function, function: usize, shared: EntryShared, local_bytes: u32) -> Result<Entry> {
    let (params, param_bytes) = function::kernel_params(f)?;
    Ok(Entry {
        function,
        params,
        param_bytes,
        static_shared: shared.bytes,
        shared_align: shared.align,
        local_bytes,
        max_threads: extents(f, "maxntid")?,
        required_threads: extents(f, "reqntid")?,
        cluster: extents(f, "reqnctapercluster")?,
    })
}

/// `.maxntid x, y, z`; what is left out is 1.
fn extents(f: &Function, directive: &str) -> Result<Option<[u32; 3]>> {
    let Some((_, numbers)) = f.directives.iter().find(|(name, _)| name == directive) else { return Ok(None) };
    if numbers.is_empty() || numbers.contains(&0) {
        return Err(Error { line: f.line, message: format!("`.{directive}` of `{}` is not positive", f.name) });
    }
    let mut out = [1; 3];
    for (to, from) in out.iter_mut().zip(numbers) {
        *to = *from;
    }
    Ok(Some(out))
}
