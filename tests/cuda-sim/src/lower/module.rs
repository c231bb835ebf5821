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
        for ((f, places), shared) in per_function {
            let Some(body) = &f.body else { continue };
            let code = function::function(f, body, context.clone(), places)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads with variables at multiples of 0x1000.
    fn load(text: &str) -> Result<Program> {
        let mut next = 0x7_0000_0000;
        Program::load(text, &mut |_| {
            next += 0x1000;
            Ok::<_, Error>(next)
        })
    }

    fn module(text: &str) -> String {
        format!(".version 9.0\n.target sm_90a\n.address_size 64\n{text}")
    }

    fn refused(text: &str) -> String {
        load(&module(text)).err().map_or("loaded".into(), |e| e.to_string())
    }

    #[test]
    fn a_kernel_s_parameters_are_laid_out_as_in_c() {
        let program = load(&module(
            ".visible .entry k(.param .u8 a, .param .u64 .ptr .global .align 4 b, .param .align 16 .b8 c[20], .param .u16 d)
             .maxntid 128, 2 .minnctapersm 2 { ret; }",
        ))
        .unwrap();
        let entry = &program.entries["k"];
        let places: Vec<_> = entry.params.iter().map(|p| (p.offset, p.size, p.align)).collect();
        assert_eq!(places, [(0, 1, 1), (8, 8, 8), (16, 20, 16), (36, 2, 2)]);
        assert_eq!((entry.param_bytes, entry.max_threads, entry.required_threads), (38, Some([128, 2, 1]), None));
        assert_eq!(program.target, (90, true));
    }

    #[test]
    fn shared_variables_of_device_functions_come_first_in_the_kernels_that_reach_them() {
        let program = load(&module(
            ".extern .shared .align 128 .b8 dynamic[];
             .shared .align 4 .b8 common[20];
             .shared .b64 unused;
             .func f() { .reg .b32 %r<3>; .shared .b16 inner; mov.u32 %r0, common; mov.u32 %r1, inner; ret; }
             .func g() { call f, (); ret; }
             .entry alone() { .reg .b32 %r; .shared .align 8 .b8 own[12]; mov.u32 %r, own; ret; }
             .entry calls() { .reg .b32 %r<3>; .shared .align 8 .b8 own[12]; call.uni g; mov.u32 %r0, own;
                              mov.u32 %r1, dynamic+4; ret; }",
        ))
        .unwrap();
        let entry = |name: &str| (program.entries[name].static_shared, program.entries[name].shared_align);
        assert_eq!(entry("alone"), (12, 1));
        assert_eq!(entry("calls"), (36, 128));
        let constants = |index: usize| program.functions[index].constants.clone();
        assert_eq!(constants(0), [0, 20]);
        assert_eq!(constants(2), [0]);
        assert_eq!(constants(3), [24, 132]);
    }

    #[test]
    fn initial_bytes_are_in_memory_order_with_addresses_resolved() {
        let program = load(&module(
            ".func f() { ret; }
             .global .align 4 .b8 text[] = {104, 105, 0};
             .global .u16 table[3][2] = {{1}, {-1, 0xffff}, 7, 8};
             .const .f32 floats[4] = {1.0, 0f40000000, -3, -0d3ff0000000000000};
             .global .u64 pointers[4] = {text, generic(text)+2, f};
             .global .align 8 .b8 bytes[3] = {0xFF(text), 0xFF00(text), 0xFF00000000(text)};
             .global .v2 .s32 pair = {1, -2};
             .global .f64 one = 1;",
        ))
        .unwrap();
        let bytes = |name: &str| program.variables.iter().find(|v| v.name == name).unwrap().initial.clone();
        assert_eq!(bytes("text"), b"hi\0");
        assert_eq!(bytes("table"), [1, 0, 0, 0, 255, 255, 255, 255, 7, 0, 8, 0]);
        let floats: Vec<f32> = bytes("floats").chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(floats, [1.0, 2.0, -3.0, -1.0]);
        let text = program.variables.iter().find(|v| v.name == "text").unwrap();
        assert_eq!((text.size, text.align, text.address), (3, 4, 0x7_0000_1000));
        let words: Vec<u64> = bytes("pointers").chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(words, [0x7_0000_1000, 0x7_0000_1002, 4 << 56]);
        assert_eq!(bytes("bytes"), [0, 0x10, 7]);
        assert_eq!(bytes("pair"), [1, 0, 0, 0, 254, 255, 255, 255]);
        assert_eq!(bytes("one"), 1f64.to_le_bytes());
    }

    #[test]
    fn labels_are_seen_before_they_stand_and_only_in_their_braces() {
        let program = load(&module(
            ".entry k() { .reg .b32 %r; bra there; { here: bra here; } there: ret; here: bra.uni here;
               ts: .branchtargets there, here; brx.idx %r, ts; }",
        ))
        .unwrap();
        let code = &program.functions[0];
        let targets: Vec<_> = code.ops.iter().map(|op| op.imm).collect();
        assert_eq!(targets, [2, 1, 0, 3, 0, 0]);
        assert_eq!(code.list.iter().map(|s| s.0).collect::<Vec<_>>(), [2, 3]);
        assert!(refused(".entry k() { { inside: ret; }\nbra inside; }").contains("PTX line 5: label `inside`"));
    }

    #[test]
    fn a_call_names_where_its_variables_lie_in_both_frames() {
        let program = load(&module(
            ".func (.param .b32 r) f(.param .b8 a, .param .align 16 .b8 s[20]) { .local .b64 mine; ret; }
             .entry k() { .local .b32 depot; { .param .b8 x; .param .align 16 .b8 y[20]; .param .b32 z;
               call.uni (z), f, (x, y); } }",
        ))
        .unwrap();
        let (f, k) = (&program.functions[0], &program.functions[1]);
        assert_eq!((f.local_bytes, k.local_bytes), (48, 40));
        let numbers: Vec<_> = k.list.iter().map(|s| s.0).collect();
        assert_eq!(numbers, [4, 0, 1, 16, 16, 20, 36, 36, 4]);
        assert_eq!((k.ops[0].src[0].0, k.ops[0].imm), (2, 0));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            (".entry k() { .reg .b32 %r<4>;\n.reg .b64 %r<2>; }", "PTX line 5: `%r<2>` is declared twice"),
            (".entry k() { .reg .b32 %r<4>;\n.reg .b64 %r2; }", "PTX line 5: `%r2` is declared twice"),
            (".entry k() { a:\na: ret; }", "PTX line 5: `a` is declared twice"),
            (".entry k() { bra nowhere; }", "PTX line 4: label `nowhere` is not defined"),
            (".entry k() { ret 1; }", "PTX line 4: `ret`: 1 operands"),
            (
                ".entry k() { ret.sometimes; }",
                "PTX line 4: `ret.sometimes`: modifier `.sometimes` is not supported here",
            ),
            (".entry k() { frob.b32; }", "PTX line 4: `frob.b32`: unknown instruction"),
            (".entry k() { @%p ret; }", "PTX line 4: `ret`: guard `%p` is not a predicate"),
            (".entry k() { ret; }\n.entry k() { ret; }", "PTX line 5: `k`: is defined twice"),
            (".func f();\n.func f(.param .b32 a) { ret; }", "PTX line 5: `f`: is declared in two ways"),
            (".func f();\n.entry k() { call f; }", "PTX line 5: `call`: `f` is not defined in this module"),
            (".func f(.param .b32 a) { ret; }\n.entry k() { call f; }", "PTX line 5: `call`: 0 arguments, `f` has 1"),
            (
                ".func f(.param .b32 a) { ret; }\n.entry k() { .param .b64 b; call f, (b); }",
                "PTX line 5: `call`: 8 bytes for a parameter of 4",
            ),
            (".global .b32 a;\n.global .b32 a;", "PTX line 5: `a`: is declared twice"),
            (".extern .global .b32 a;", "PTX line 4: `a` is not defined in this module"),
            (".global .b32 a = {b};", "PTX line 4: `{` where an integer is due"),
            (".global .b64 a = b;", "PTX line 4: `a`: `b` is not declared"),
            (".global .b8 a[2] = {1, 2, 3};", "PTX line 4: 3 initial values for 2 elements"),
            (".global .b8 a = 256;", "PTX line 4: 256 does not fit a B8"),
            (".global .b8 a[];", "PTX line 4: `a`: a variable without a size"),
            (".entry k() { .shared .b8 a[]; }", "PTX line 4: `a`: a shared variable without a size"),
            (
                ".entry k(.param .b8 a[40000]) { }",
                "PTX line 4: `a`: a parameter of no size, or more than 32764 bytes of parameters",
            ),
            (".entry k() .fast { }", "PTX line 4: directive `.fast` is not supported on a function"),
            (".entry k() {\n", "PTX line 5: a `{` is not closed"),
            ("ret;", "PTX line 4: `ret` where a declaration is due"),
        ] {
            assert_eq!(refused(text), expected, "{text}");
        }
        for (text, expected) in [
            ("", "PTX line 1: the end of the text where `.version` is due"),
            (".version 9\n.target sm_90", "PTX line 1: `9` is not a version"),
            (".version 9.0 .target sm_x", "PTX line 1: target `sm_x` is not supported"),
            (".version 9.0 .target sm_90 .address_size 32", "PTX line 1: only `.address_size 64` is supported"),
        ] {
            assert_eq!(load(text).err().unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn hostile_texts_are_refused_and_not_obeyed() {
        let deep = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
        for text in [
            format!(".entry k() {{ {} }}", deep("{", "}", 100_000)),
            format!(".entry k() {{ .reg .b32 %r; mov.b32 %r, {}1; }}", "(".repeat(100_000)),
            format!(".entry k() {{ .reg .b32 %r; mov.b32 %r, {}1; }}", "-".repeat(100_000)),
            format!(".entry k() {{ .reg .b32 %r; mov.b32 %r, {}1; }}", "1?".repeat(100_000)),
            format!(".entry k() {{ .reg .b32 %r; mov.b32 %r, {}; }}", deep("{", "}", 100_000)),
            format!(".global .b8 a[2] = {};", deep("{", "}", 100_000)),
            ".entry k() { .reg .b32 %r<4294967295>; }".into(),
            ".entry k() { .reg .b32 %r<99999999999>; }".into(),
            ".entry k() { .reg .b128 %r<200000>; }".into(),
            ".global .b8 a[99999999999999][99999999999999];".into(),
            ".global .b8 a[281474976710655];\n.global .b8 b[2][140737488355327] = {{1}, {2}};".into(),
            ".shared .b8 a[4294967295]; .entry k() { .reg .b32 %r; mov.u32 %r, a; }".into(),
            ".entry k() { .local .b8 a[4294967295]; }".into(),
            ".global .align 3 .b8 a;".into(),
            ".global .align 1073741824 .b8 a;".into(),
            ".entry k() { .reg .b32 %r; mov.b32 %r, 1 << 64; }".into(),
            ".entry k() { .reg .b32 %r; mov.b32 %r, 1 / 0; }".into(),
            ".entry k() { .reg .b32 %r; mov.b32 %r, 99999999999999999999; }".into(),
        ] {
            let message = refused(&text);
            assert!(message.starts_with("PTX line "), "{}: {message}", &text[..text.len().min(80)]);
        }
    }

    /// What compilers emit must be understood to the last modifier.
    #[test]
    fn every_fixture_loads() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");
        let mut refused = Vec::new();
        let mut entries = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "ptx") {
                match load(&std::fs::read_to_string(&path).unwrap()) {
                    Ok(program) => {
                        entries += program.entries.len();
                        for code in &program.functions {
                            println!("{} {:?} of {} operations", code.name, code.registers, code.ops.len());
                        }
                    }
                    Err(e) => refused.push(format!("{}: {e}", path.display())),
                }
            }
        }
        assert!(refused.is_empty(), "{}", refused.join("\n"));
        assert!(entries > 20);
    }

    /// Every prefix and every text with one byte changed loads or is refused; nothing panics.
    #[test]
    fn damaged_texts_do_not_panic() {
        let text = module(
            ".file 1 \"a.cu\"\n.global .align 8 .b8 s[2][2] = {{1, 2}, {0x3}}; .const .u64 p = generic(s)+1;
             .func (.param .b32 r) f(.param .b64 a) { .reg .b32 %r<3>; .loc 1 2 3, function_name $x+4, inlined_at 1 2 3
             mov.b32 %r1, -(1+2)*4; st.param.b32 [r+0], %r1; ret; }
             .visible .entry k(.param .u64 .ptr .align 8 a) .maxntid 32,1,1 { .reg .pred %p<2>; .reg .v4 .f32 %v;
             .pragma \"nounroll\"; { .param .b64 x; .param .b32 y; call (y), f, (x); } @!%p1 bra $L; /* c */ $L:
             mov.f32 %v.x, 0f3f800000; ts: .branchtargets $L; pt: .callprototype (.param .b32 _) _ (.param .b64 _); ret; }
             .section .debug_info { .b8 1 .b32 a+1 }",
        );
        for end in 0..text.len() {
            let _ = load(&text[..end]);
        }
        for at in 0..text.len() {
            for byte in b"{}[](),;:.%$<>=+-0f\"/ \n" {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = *byte;
                let _ = load(std::str::from_utf8(&bytes).unwrap());
            }
        }
    }
}
