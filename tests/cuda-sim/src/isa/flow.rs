//! Control flow (PTX ISA 9.0, sections 9.7.12 and 9.7.19). What runs is in [`crate::machine::control`].

use crate::code::{Class, Op, Run, Src};
use crate::isa::builtins;
use crate::lower::{Callee, Lower, Modifiers, Result, Signature, Slot, Symbol};
use crate::machine::control;
use crate::ptx::ast::{Instruction, Operand, Type};

/// Lowers the control flow.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "bra" => Some(bra(cx, i)),
        "brx" => Some(brx(cx, i)),
        "call" => Some(call(cx, i)),
        "ret" => Some(leave(cx, i, control::ret, true)),
        "exit" => Some(leave(cx, i, control::exit, false)),
        "trap" => Some(leave(cx, i, control::trap, false)),
        "brkpt" => Some(leave(cx, i, control::breakpoint, false)),
        _ => None,
    }
}

/// `.uni` promises that all lanes go the same way; nothing here depends on the promise.
fn bra(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.take("uni");
    m.finish()?;
    cx.arity(i, &[1])?;
    let Operand::Name(label) = &i.operands[0] else { return cx.error(i, "the target is not a label") };
    cx.branch_to(i, label)?;
    let op = cx.op(i, Class::Control, control::branch);
    cx.emit(op);
    Ok(())
}

fn brx(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.expect(&[("idx", ())])?;
    m.take("uni");
    m.finish()?;
    cx.arity(i, &[2])?;
    let labels = match &i.operands[1] {
        Operand::Name(name) => match cx.lookup(name) {
            Some(Symbol::Targets(labels)) => labels,
            _ => return cx.error(i, format_args!("`{name}` is no list of `.branchtargets`")),
        },
        _ => return cx.error(i, "the second operand is no list of `.branchtargets`"),
    };
    let mut op = cx.op(i, Class::Control, control::branch_indexed);
    op.src[0] = cx.src(i, &i.operands[0], Type::U32)?;
    op.list = cx.label_list(i.line, &labels)?;
    cx.emit(op);
    Ok(())
}

fn leave(cx: &mut Lower, i: &Instruction, run: Run, uniform: bool) -> Result<()> {
    let mut m = Modifiers::new(i);
    if uniform {
        m.take("uni");
    }
    m.finish()?;
    cx.arity(i, &[0])?;
    let op = cx.op(i, Class::Control, run);
    cx.emit(op);
    Ok(())
}

/// The parts of `call (returns), target, (arguments), prototype;`.
struct Parts<'a> {
    returns: &'a [Operand],
    target: &'a str,
    arguments: &'a [Operand],
    prototype: Option<&'a str>,
}

fn parts<'a>(cx: &Lower, i: &'a Instruction) -> Result<Parts<'a>> {
    let mut rest = i.operands.as_slice();
    let list = |rest: &mut &'a [Operand]| match rest.split_first() {
        Some((Operand::List(list), tail)) => {
            *rest = tail;
            list.as_slice()
        }
        _ => &[],
    };
    let returns = list(&mut rest);
    let target = match rest.split_first() {
        Some((Operand::Name(name), tail)) => {
            rest = tail;
            name.as_str()
        }
        _ => return cx.error(i, "the target is not a name"),
    };
    let arguments = list(&mut rest);
    let prototype = match rest {
        [] => None,
        [Operand::Name(name)] => Some(name.as_str()),
        _ => return cx.error(i, format_args!("{} operands", i.operands.len())),
    };
    Ok(Parts { returns, target, arguments, prototype })
}

fn call(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.take("uni");
    m.finish()?;
    let call = parts(cx, i)?;
    match cx.lookup(call.target) {
        Some(Symbol::Function(index)) => {
            let context = cx.scopes.module.clone();
            let info = &context.functions[index as usize];
            let (returns, arguments) = slots(cx, i, &call, &info.signature)?;
            match info.callee {
                Callee::Code(function) => {
                    let mut op = frame(cx, i, control::call, &info.signature, &arguments, &returns);
                    op.imm = function as u64;
                    cx.emit(op);
                    Ok(())
                }
                Callee::Builtin(builtin) => builtins::call(cx, i, builtin, &arguments, &returns),
                Callee::Kernel => cx.error(i, format_args!("`{}` is a kernel", call.target)),
                Callee::Undefined => cx.error(i, format_args!("`{}` is not defined in this module", call.target)),
            }
        }
        Some(Symbol::Register(..)) => indirect(cx, i, &call),
        _ => cx.error(i, format_args!("`{}` is not a function", call.target)),
    }
}

fn indirect(cx: &mut Lower, i: &Instruction, call: &Parts<'_>) -> Result<()> {
    let Some(name) = call.prototype else { return cx.error(i, "an indirect call needs a prototype") };
    let Some(Symbol::Prototype(signature)) = cx.lookup(name) else {
        return cx.error(i, format_args!("`{name}` is no `.callprototype`"));
    };
    let (returns, arguments) = slots(cx, i, call, &signature)?;
    let mut op = frame(cx, i, control::call_indirect, &signature, &arguments, &returns);
    op.src[1] = cx.src(i, &Operand::Name(call.target.to_string()), Type::U64)?;
    cx.emit(op);
    Ok(())
}

/// Where the variables that a call passes lie in the caller's frame.
fn slots(cx: &Lower, i: &Instruction, call: &Parts<'_>, signature: &Signature) -> Result<(Vec<Slot>, Vec<Slot>)> {
    let find = |given: &[Operand], formal: &[Slot], what: &str| -> Result<Vec<Slot>> {
        if given.len() != formal.len() {
            let message = format_args!("{} {what}, `{}` has {}", given.len(), call.target, formal.len()).to_string();
            return cx.error(i, message);
        }
        let mut out = Vec::new();
        for (operand, formal) in given.iter().zip(formal) {
            let slot = match operand {
                Operand::Name(name) => cx.scopes.slot(name),
                _ => None,
            };
            match slot {
                Some(slot) if slot.bytes == formal.bytes => out.push(slot),
                Some(slot) => {
                    return cx.error(i, format_args!("{} bytes for a parameter of {}", slot.bytes, formal.bytes));
                }
                None => return cx.error(i, format_args!("{operand:?} is not a `.param` variable of this function")),
            }
        }
        Ok(out)
    };
    Ok((find(call.returns, &signature.returns, "results")?, find(call.arguments, &signature.params, "arguments")?))
}

/// The operation with its list of (caller's offset, callee's offset, bytes): arguments, then results.
fn frame(cx: &mut Lower, i: &Instruction, run: Run, callee: &Signature, arguments: &[Slot], returns: &[Slot]) -> Op {
    let pairs = arguments.iter().zip(&callee.params).chain(returns.iter().zip(&callee.returns));
    let numbers: Vec<Src> =
        pairs.flat_map(|(ours, theirs)| [ours.offset, theirs.offset, theirs.bytes].map(Src)).collect();
    let mut op = cx.op(i, Class::Control, run);
    op.src[0] = Src(arguments.len() as u32);
    op.list = cx.list(numbers);
    op
}

#[cfg(test)]
mod tests {
    use crate::machine::fault::{Fault, Kind};
    use crate::machine::grid::Launch;
    use crate::machine::launch;
    use crate::memory::{GlobalMemory, Origin};
    use crate::program::Program;

    /// Runs kernel `k(u64 out)` of a module with one warp; gives what lane `n` stored at `out[n]`.
    fn outputs(text: &str) -> Result<Vec<u32>, Box<Fault>> {
        let memory = GlobalMemory::new(1 << 30, false);
        let text = format!(".version 9.0\n.target sm_90\n.address_size 64\n{text}");
        let program = Program::load(&text, &mut |v| memory.allocate(v.size, v.align as u64, Origin::Alloc))
            .unwrap_or_else(|e| panic!("{e}"));
        for v in &program.variables {
            memory.write(v.address, &v.initial).unwrap();
        }
        let out = memory.allocate(128, 4, Origin::Alloc).unwrap();
        let params = out.to_le_bytes();
        launch(&Launch { params: &params, ..Launch::of(&program, "k", &program.entries["k"], &memory) })?;
        let mut bytes = [0; 128];
        memory.read(out, &mut bytes).unwrap();
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// A kernel whose body computes `%r1` from the lane `%r0`.
    fn kernel(declarations: &str, body: &str) -> String {
        format!(
            "{declarations}
             .visible .entry k(.param .u64 out) {{
               .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<9>;
               mov.u32 %r0, %laneid;
               {body}
               ld.param.u64 %rd7, [out]; mul.wide.u32 %rd8, %r0, 4; add.u64 %rd7, %rd7, %rd8;
               st.global.u32 [%rd7], %r1;
               ret;
             }}"
        )
    }

    fn run(declarations: &str, body: &str) -> Vec<u32> {
        outputs(&kernel(declarations, body)).unwrap_or_else(|fault| panic!("{fault}"))
    }

    fn lanes(f: impl Fn(u32) -> u32) -> Vec<u32> {
        (0..32).map(f).collect()
    }

    #[test]
    fn lanes_branch_apart_and_meet_again() {
        let out = run(
            "",
            "setp.lt.u32 %p0, %r0, 5; mov.u32 %r1, 100;
             @%p0 bra less; add.u32 %r1, %r1, 1; bra join; less: add.u32 %r1, %r1, 2; join: add.u32 %r1, %r1, %r0;",
        );
        assert_eq!(out, lanes(|n| if n < 5 { 102 + n } else { 101 + n }));
    }

    #[test]
    fn loops_run_as_often_as_each_lane_needs() {
        let out = run(
            "",
            "mov.u32 %r1, 0; mov.u32 %r2, 0;
             again: setp.ge.u32 %p0, %r2, %r0; @%p0 bra done; add.u32 %r1, %r1, %r2; add.u32 %r2, %r2, 1; bra.uni again;
             done:",
        );
        assert_eq!(out, lanes(|n| (0..n).sum()));
    }

    #[test]
    fn an_indexed_branch_takes_each_lane_to_its_own_target() {
        let out = run(
            "",
            "rem.u32 %r2, %r0, 3; ts: .branchtargets a, b, c; brx.idx %r2, ts;
             a: mov.u32 %r1, 10; bra end; b: mov.u32 %r1, 20; bra end; c: mov.u32 %r1, 30; end:",
        );
        assert_eq!(out, lanes(|n| 10 * (n % 3 + 1)));
        let bad = outputs(&kernel("", "ts: .branchtargets a; brx.idx %r0, ts; a: mov.u32 %r1, 0;")).unwrap_err();
        assert_eq!((bad.kind, bad.lane), (Kind::InvalidOperation, Some(1)));
    }

    const FIBONACCI: &str = ".func (.param .b32 r) fib(.param .b32 n) {
        .reg .b32 %r<9>; .reg .pred %p;
        ld.param.u32 %r1, [n];
        setp.lt.u32 %p, %r1, 2;
        @%p bra small;
        sub.u32 %r2, %r1, 1;
        { .param .b32 a; .param .b32 b; st.param.b32 [a+0], %r2; call.uni (b), fib, (a); ld.param.b32 %r3, [b+0]; }
        sub.u32 %r4, %r1, 2;
        { .param .b32 a; .param .b32 b; st.param.b32 [a+0], %r4; call.uni (b), fib, (a); ld.param.b32 %r5, [b+0]; }
        add.u32 %r1, %r3, %r5;
        small: st.param.b32 [r+0], %r1;
        ret; }";

    #[test]
    fn recursion_keeps_each_lane_s_registers_and_results() {
        let out = run(
            FIBONACCI,
            "and.b32 %r2, %r0, 7; setp.eq.u32 %p0, %r2, 3; mov.u32 %r1, 7777;
             { .param .b32 a; .param .b32 b; st.param.b32 [a], %r2; @!%p0 call (b), fib, (a); @!%p0 ld.param.b32 %r1, [b]; }",
        );
        let fib = [0, 1, 1, 7777, 3, 5, 8, 13];
        assert_eq!(out, lanes(|n| fib[n as usize % 8]));
    }

    #[test]
    fn structures_and_narrow_values_cross_a_call() {
        let out = run(
            ".func (.param .align 8 .b8 r[12]) f(.param .b8 tag, .param .align 8 .b8 s[12]) {
               .reg .b32 %r<4>; .reg .b16 %h; .reg .b64 %d; .local .align 8 .b8 scratch[64];
               ld.param.u8 %h, [tag]; cvt.u32.u16 %r0, %h; ld.param.u32 %r1, [s+8]; ld.param.u64 %d, [s];
               st.local.u32 [scratch+60], %r1;
               add.u64 %d, %d, 1; add.u32 %r1, %r1, %r0;
               st.param.b64 [r], %d; st.param.b32 [r+8], %r1; ret; }",
            ".local .align 4 .b8 mine[4]; st.local.u32 [mine], %r0;
             cvt.u64.u32 %rd0, %r0; .reg .b16 %h; mov.u16 %h, 200;
             { .param .b8 x; .param .align 8 .b8 y[12]; .param .align 8 .b8 z[12];
               st.param.b8 [x], %h; st.param.b64 [y], %rd0; st.param.b32 [y+8], %r0;
               call (z), f, (x, y);
               ld.param.b64 %rd1, [z]; ld.param.b32 %r2, [z+8]; }
             cvt.u32.u64 %r3, %rd1; mul.lo.u32 %r3, %r3, 1000; add.u32 %r1, %r2, %r3;
             ld.local.u32 %r4, [mine]; sub.u32 %r4, %r4, %r0; add.u32 %r1, %r1, %r4;",
        );
        assert_eq!(out, lanes(|n| (n + 1) * 1000 + n + 200));
    }

    const TWO: &str =
        ".func (.param .b32 r) one(.param .b32 a) { .reg .b32 %r; ld.param.u32 %r, [a]; add.u32 %r, %r, 1;
          st.param.b32 [r], %r; ret; }
        .func (.param .b32 r) two(.param .b32 a) { .reg .b32 %r; ld.param.u32 %r, [a]; mul.lo.u32 %r, %r, 2;
          st.param.b32 [r], %r; ret; }
        .global .u64 table[2] = {one, two};";

    const INDIRECT: &str = "
        { .param .b32 x; .param .b32 y; st.param.b32 [x], %r0;
          pt: .callprototype (.param .b32 _) _ (.param .b32 _);
          call (y), %rd1, (x), pt; ld.param.b32 %r1, [y]; }";

    #[test]
    fn lanes_call_different_functions_through_a_table() {
        let body = format!(
            "and.b32 %r2, %r0, 1; mul.wide.u32 %rd0, %r2, 8; mov.u64 %rd1, table; add.u64 %rd1, %rd1, %rd0;
             ld.global.u64 %rd1, [%rd1]; {INDIRECT}"
        );
        assert_eq!(run(TWO, &body), lanes(|n| if n % 2 == 0 { n + 1 } else { n * 2 }));
        let direct = format!("mov.u64 %rd1, two; {INDIRECT}");
        assert_eq!(run(TWO, &direct), lanes(|n| n * 2));
    }

    #[test]
    fn a_call_of_no_function_faults() {
        for pointer in ["0", "table", "0x400000000000008", "0x400000001000000"] {
            let fault = outputs(&kernel(TWO, &format!("mov.u64 %rd1, {pointer}; {INDIRECT}"))).unwrap_err();
            assert_eq!(fault.kind, Kind::InvalidOperation, "{pointer}");
        }
    }

    #[test]
    fn endless_recursion_overflows_the_stack() {
        let fault =
            outputs(&kernel(".func f() { .local .b32 x; call f; ret; }", "call f; mov.u32 %r1, 0;")).unwrap_err();
        assert_eq!((fault.kind, fault.function.as_deref()), (Kind::StackOverflow, Some("f")));
    }

    #[test]
    fn dynamic_shared_memory_is_where_the_kernel_says_in_every_function() {
        let out = run(
            ".extern .shared .align 16 .b8 dynamic[]; .shared .align 4 .b8 fixed[20];
             .func (.param .b32 r) f() { .reg .b32 %r<2>; mov.u32 %r0, dynamic+4; mov.u32 %r1, fixed;
               add.u32 %r0, %r0, %r1; st.param.b32 [r], %r0; ret; }",
            ".shared .b32 own; { .param .b32 y; call (y), f; ld.param.b32 %r1, [y]; }
             mov.u32 %r2, dynamic; mul.lo.u32 %r2, %r2, 1000; add.u32 %r1, %r1, %r2;
             mov.u32 %r2, own; mul.lo.u32 %r2, %r2, 1000000; add.u32 %r1, %r1, %r2;",
        );
        assert_eq!(out, lanes(|_| 20_000_000 + 32_000 + 36));
    }

    #[test]
    fn a_failed_assertion_says_where() {
        let fault = outputs(&kernel(
            ".global .b8 m[] = {120, 62, 48, 0}; .global .b8 file[] = {97, 46, 99, 117, 0}; .global .b8 fn[] = {102, 0};
             .extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);",
            "setp.eq.u32 %p0, %r0, 9; @!%p0 bra fine;
             { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;
               mov.u64 %rd0, m; st.param.b64 [a], %rd0; mov.u64 %rd0, file; st.param.b64 [b], %rd0;
               st.param.b32 [c], 17; mov.u64 %rd0, fn; st.param.b64 [d], %rd0; st.param.b64 [e], 1;
               call.uni __assertfail, (a, b, c, d, e); }
             fine: mov.u32 %r1, 0;",
        ))
        .unwrap_err();
        assert_eq!((fault.kind, fault.lane), (Kind::Assert, Some(9)));
        assert_eq!(fault.message, "a.cu:17: f: thread [9, 0, 0]: assertion `x>0` failed");
    }

    #[test]
    fn special_registers_tell_the_lane_its_place() {
        for (register, expected) in [
            ("%tid.x", lanes(|n| n)),
            ("%ntid.x", lanes(|_| 32)),
            ("%ntid.w", lanes(|_| 0)),
            ("%nctaid.z", lanes(|_| 1)),
            ("%lanemask_eq", lanes(|n| 1 << n)),
            ("%lanemask_lt", lanes(|n| (1u64 << n) as u32 - 1)),
            ("%lanemask_le", lanes(|n| ((2u64 << n) - 1) as u32)),
            ("%lanemask_gt", lanes(|n| !((2u64 << n) - 1) as u32)),
            ("%lanemask_ge", lanes(|n| !((1u64 << n) - 1) as u32)),
            ("%nwarpid", lanes(|_| 1)),
            ("%cluster_nctarank", lanes(|_| 1)),
            ("%envreg2", lanes(|_| 0)),
        ] {
            assert_eq!(run("", &format!("mov.u32 %r1, {register};")), expected, "{register}");
            assert_eq!(run("", &format!("add.u32 %r1, {register}, 0;")), expected, "{register}");
        }
        let text = kernel("", "mov.u32 %r1, %envreg32;");
        assert!(Program::load(&text, &mut |_| Ok::<_, String>(0)).is_err());
    }

    #[test]
    fn the_clock_runs() {
        let out = run(
            "",
            "mov.u64 %rd0, %clock64; mov.u32 %r2, %clock; add.u32 %r3, %r2, 1; mov.u32 %r3, %clock; sub.u32 %r1, %r3, %r2;",
        );
        assert!(out.iter().all(|ticks| *ticks > 0 && *ticks < 100), "{out:?}");
    }
}
