//! Which kernels add floats atomically or read a clock: their results depend on the schedule by nature, and a sweep does
//! not compare them.

use std::collections::{HashMap, HashSet};

use crate::ptx::ast::{Function, Instruction, Operand, Statement};

/// The kernels of a PTX text that add floats atomically or read a clock, themselves or in a function that they may call. None of a text
/// that cannot be read: its loading says why.
pub fn kernels(text: &str) -> HashSet<String> {
    let Ok(module) = crate::ptx::parse(text) else { return HashSet::new() };
    let bodies: HashMap<&str, Body> = module.functions.iter().map(|f| (f.name.as_str(), Body::of(f))).collect();
    let entries = module.functions.iter().filter(|f| f.entry).map(|f| f.name.as_str());
    entries.filter(|name| reaches(name, &bodies)).map(String::from).collect()
}

#[derive(Default)]
struct Body {
    adds: bool,
    /// The names that its calls mention: of functions, and of registers.
    calls: HashSet<String>,
    /// Whether a call goes where a register says.
    indirect: bool,
}

impl Body {
    fn of(function: &Function) -> Body {
        let mut body = Body::default();
        body.read(function.body.as_deref().unwrap_or_default());
        body
    }

    fn read(&mut self, statements: &[Statement]) {
        for statement in statements {
            match statement {
                Statement::Scope(inner) => self.read(inner),
                Statement::Instruction(i) if i.opcode == "call" => {
                    let names = i.operands.iter().filter_map(|operand| match operand {
                        Operand::Name(name) => Some(name.clone()),
                        _ => None,
                    });
                    self.calls.extend(names);
                    self.indirect |= self.calls.iter().any(|name| name.starts_with('%'));
                }
                Statement::Instruction(i) => self.adds |= varies(i),
                _ => {}
            }
        }
    }
}

/// Whether an instruction's result depends on the schedule however a kernel is ordered.
fn varies(i: &Instruction) -> bool {
    let clock = |operand: &Operand| matches!(operand, Operand::Name(n) if n.starts_with("%clock") || n.starts_with("%globaltimer"));
    adds_floats(i) || i.operands.iter().any(clock)
}

fn adds_floats(i: &Instruction) -> bool {
    let has = |names: &[&str]| i.modifiers.iter().any(|m| names.contains(&m.as_str()));
    let is_atomic = match i.opcode.as_str() {
        "atom" | "red" | "multimem" => true,
        "cp" => has(&["reduce"]),
        _ => false,
    };
    is_atomic && has(&["add"]) && has(&["f16", "f16x2", "bf16", "bf16x2", "f32", "f64"])
}

fn reaches(kernel: &str, bodies: &HashMap<&str, Body>) -> bool {
    let (mut open, mut seen) = (vec![kernel], HashSet::new());
    while let Some(name) = open.pop() {
        let Some(body) = bodies.get(name).filter(|_| seen.insert(name)) else { continue };
        if body.adds || body.indirect && bodies.values().any(|b| b.adds) {
            return true;
        }
        open.extend(body.calls.iter().map(String::as_str));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::kernels;

    #[test]
    fn kernels_are_found_through_their_calls() {
        let text = "
            .version 8.0
            .target sm_80
            .address_size 64
            .func add(.param .b64 p) {
                .reg .b64 %rd<3>; .reg .f32 %f<3>;
                ld.param.u64 %rd1, [p];
                { red.global.add.f32 [%rd1], 0f3F800000; }
                ret;
            }
            .visible .entry own(.param .u64 p) { .reg .b64 %rd<3>; .reg .f32 %f<3>;
                ld.param.u64 %rd1, [p]; atom.global.add.f32 %f1, [%rd1], 0f3F800000; ret; }
            .visible .entry calls(.param .u64 p) {
                { .param .b64 q; call.uni add, (q); }
                ret; }
            .visible .entry integers(.param .u64 p) { .reg .b64 %rd<3>;
                ld.param.u64 %rd1, [p]; red.global.add.u32 [%rd1], 1; ret; }
        ";
        let mut found: Vec<_> = kernels(text).into_iter().collect();
        found.sort();
        assert_eq!(found, ["calls", "own"]);
    }
}
