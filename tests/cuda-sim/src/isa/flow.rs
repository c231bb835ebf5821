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
