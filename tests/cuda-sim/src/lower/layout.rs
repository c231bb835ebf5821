//! Where the shared variables of a module lie.
//!
//! A kernel's own variables begin at 0. What device functions use must lie at the same place in every kernel that
//! calls them, so these variables come first in all of those kernels.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{Error, Result, Symbol};
use crate::ptx::ast::{Function, Module, Operand, Space, Statement, Variable};

/// The most that any device has, with room: the launch compares with the device.
const MOST_SHARED: u64 = 1 << 20;

/// The shared variables that a function sees.
#[derive(Clone, Default)]
pub struct SharedPlaces {
    /// Those of the module.
    pub named: Vec<(String, Symbol)>,
    /// Its own, in the order of their declarations.
    own: VecDeque<Symbol>,
}

impl SharedPlaces {
    /// The place of the next declaration.
    pub fn next(&mut self) -> Option<Symbol> {
        self.own.pop_front()
    }
}

/// What a kernel needs of shared memory.
#[derive(Clone, Copy, Default)]
pub struct EntryShared {
    /// Bytes of its static variables.
    pub bytes: u32,
    /// Alignment that its dynamic shared memory asks for.
    pub align: u32,
}

/// The shared memory of a module, by the functions of [`Module::functions`].
pub struct Layout {
    /// What each function sees.
    pub places: Vec<SharedPlaces>,
    /// What each kernel needs; zero for device functions.
    pub entries: Vec<EntryShared>,
}

/// One function's use of the module.
#[derive(Default)]
struct Use<'a> {
    /// Module-scope shared variables and functions that it names.
    names: HashSet<&'a str>,
    /// Whether it calls through a register.
    indirect: bool,
    /// Its own shared variables.
    own: Vec<&'a Variable>,
}

/// Lays out a module.
pub fn lay_out(module: &Module) -> Result<Layout> {
    let mut shared: HashMap<&str, &Variable> = HashMap::new();
    for v in module.variables.iter().filter(|v| v.space == Space::Shared) {
        if shared.insert(&v.name, v).is_some() {
            return Err(Error { line: v.line, message: format!("`{}` is declared twice", v.name) });
        }
    }
    let functions: HashMap<&str, usize> = (module.functions.iter().enumerate())
        .filter(|(_, f)| f.body.is_some())
        .map(|(index, f)| (f.name.as_str(), index))
        .collect();
    let mut uses: Vec<Use> = Vec::new();
    for f in &module.functions {
        let mut found = Use::default();
        let interesting = |name: &str| shared.contains_key(name) || functions.contains_key(name);
        visit(f.body.as_deref().unwrap_or(&[]), &interesting, &mut found);
        uses.push(found);
    }
    let common = Common::new(module, &shared, &uses)?;
    let mut layout = Layout { places: Vec::new(), entries: Vec::new() };
    for (index, f) in module.functions.iter().enumerate() {
        let reached = if f.entry { reach(index, &functions, &uses) } else { vec![index] };
        let (places, entry) = common.function(f, &uses, index, &reached, &shared)?;
        layout.places.push(places);
        layout.entries.push(entry);
    }
    Ok(layout)
}

/// The part that several functions share.
struct Common<'a> {
    /// Offsets of module-scope variables.
    named: HashMap<&'a str, u64>,
    /// Offsets of device functions' own variables, by function.
    own: Vec<Vec<u64>>,
    bytes: u64,
}

impl<'a> Common<'a> {
    fn new(module: &'a Module, shared: &HashMap<&'a str, &'a Variable>, uses: &[Use<'a>]) -> Result<Common<'a>> {
        let mut common = Common { named: HashMap::new(), own: Vec::new(), bytes: 0 };
        for v in module.variables.iter().filter(|v| v.space == Space::Shared && !dynamic(v)) {
            let users = (module.functions.iter().zip(uses)).filter(|(_, u)| u.names.contains(v.name.as_str()));
            let (mut count, mut device) = (0, false);
            for (f, _) in users {
                count += 1;
                device |= !f.entry;
            }
            if (count > 1 || device) && shared.contains_key(v.name.as_str()) {
                common.named.insert(&v.name, place(v, &mut common.bytes)?);
            }
        }
        for (f, used) in module.functions.iter().zip(uses) {
            let mut own = Vec::new();
            for v in used.own.iter().filter(|v| !f.entry && !dynamic(v)) {
                own.push(place(v, &mut common.bytes)?);
            }
            common.own.push(own);
        }
        Ok(common)
    }

    /// What a function sees, and what it needs if it is a kernel that reaches the functions of `reached`.
    fn function(
        &self,
        f: &Function,
        uses: &[Use<'a>],
        index: usize,
        reached: &[usize],
        shared: &HashMap<&'a str, &'a Variable>,
    ) -> Result<(SharedPlaces, EntryShared)> {
        let used = &uses[index];
        let needs_common = (reached.iter())
            .any(|&r| !self.own[r].is_empty() || uses[r].names.iter().any(|n| self.named.contains_key(n)));
        let mut end = if needs_common { self.bytes } else { 0 };
        let mut places = SharedPlaces::default();
        let mut names: Vec<&str> = used.names.iter().copied().filter(|n| shared.contains_key(n)).collect();
        // In the order of the text, so that a kernel's addresses do not change from run to run.
        names.sort_by_key(|n| (shared[n].line, *n));
        let mut pending = Vec::new();
        for name in names {
            let v = shared[name];
            if dynamic(v) {
                pending.push((Some(name), places.own.len()));
                continue;
            }
            let offset = match self.named.get(name) {
                Some(&offset) => offset,
                None => place(v, &mut end)?,
            };
            places.named.push((name.to_string(), Symbol::Address(offset, Space::Shared)));
        }
        let mut common_own = self.own[index].iter();
        for &v in &used.own {
            let offset = if dynamic(v) {
                pending.push((None, places.own.len()));
                0
            } else if f.entry {
                place(v, &mut end)?
            } else {
                common_own.next().copied().unwrap_or(0)
            };
            places.own.push_back(Symbol::Address(offset, Space::Shared));
        }
        let extern_variables = reached.iter().flat_map(|&r| {
            let named = uses[r].names.iter().filter_map(|n| shared.get(n).copied());
            named.chain(uses[r].own.iter().copied()).filter(|v| dynamic(v))
        });
        let align = extern_variables.map(|v| v.alignment()).max().unwrap_or(1) as u32;
        let entry = if f.entry { EntryShared { bytes: end as u32, align } } else { EntryShared::default() };
        let start = entry.bytes.next_multiple_of(align.clamp(16, 1024)) as u64;
        for (name, slot) in pending {
            let symbol = if f.entry { Symbol::Address(start, Space::Shared) } else { Symbol::DynamicShared };
            match name {
                Some(name) => places.named.push((name.to_string(), symbol)),
                None => places.own[slot] = symbol,
            }
        }
        Ok((places, entry))
    }
}

/// `.extern .shared` without an extent: the dynamic shared memory.
fn dynamic(v: &Variable) -> bool {
    v.external && v.dims.first() == Some(&0)
}

fn place(v: &Variable, end: &mut u64) -> Result<u64> {
    let error = |message: &str| Err(Error { line: v.line, message: format!("`{}`: {message}", v.name) });
    if v.external {
        return error("extern shared memory has no extent: `name[]`");
    }
    if v.dims.contains(&0) {
        return error("a shared variable without a size");
    }
    if v.alignment() > 1024 {
        return error("shared memory is aligned to 1024 bytes at most");
    }
    let offset = end.next_multiple_of(v.alignment());
    match v.bytes().map(|n| offset + n).filter(|n| *n <= MOST_SHARED) {
        Some(next) => {
            *end = next;
            Ok(offset)
        }
        None => error("more than 1 MiB of shared memory"),
    }
}

/// The functions that a kernel may run, itself included.
fn reach(kernel: usize, functions: &HashMap<&str, usize>, uses: &[Use]) -> Vec<usize> {
    let mut seen = vec![false; uses.len()];
    let mut open = vec![kernel];
    let mut out = Vec::new();
    while let Some(index) = open.pop() {
        if std::mem::replace(&mut seen[index], true) {
            continue;
        }
        out.push(index);
        open.extend(uses[index].names.iter().filter_map(|n| functions.get(n).copied()));
        if uses[index].indirect {
            open.extend(functions.values().copied());
        }
    }
    out
}

/// Collects what a body names.
fn visit<'a>(body: &'a [Statement], interesting: &dyn Fn(&str) -> bool, out: &mut Use<'a>) {
    for statement in body {
        match statement {
            Statement::Scope(inner) => visit(inner, interesting, out),
            Statement::Declare(v) if v.space == Space::Shared => out.own.push(v),
            Statement::Instruction(i) => {
                if i.opcode == "call" {
                    let target = i.operands.iter().find(|o| !matches!(o, Operand::List(_)));
                    out.indirect |= matches!(target, Some(Operand::Name(n)) if !interesting(n));
                }
                for operand in &i.operands {
                    names(operand, interesting, out);
                }
            }
            _ => {}
        }
    }
}

fn names<'a>(operand: &'a Operand, interesting: &dyn Fn(&str) -> bool, out: &mut Use<'a>) {
    match operand {
        Operand::Name(name) if interesting(name) => {
            out.names.insert(name);
        }
        Operand::Vector(inner) | Operand::List(inner) => inner.iter().for_each(|o| names(o, interesting, out)),
        Operand::Address { base, coordinates, .. } => {
            names(base, interesting, out);
            coordinates.iter().for_each(|o| names(o, interesting, out));
        }
        Operand::Offset(base, _) => names(base, interesting, out),
        Operand::Pair(a, b) => {
            names(a, interesting, out);
            names(b, interesting, out);
        }
        _ => {}
    }
}
