//! mbarrier objects and their instructions (PTX ISA 9.0, section 9.7.13.15).

use crate::check::race;
use crate::code::{Class, Flow, Op};
use crate::isa::pointer::{self, Into};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::async_queue;
use crate::machine::block::Block;
use crate::machine::fault::{Fault, Kind};
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Type};

/// Bytes and alignment of an mbarrier object.
pub const BYTES: u64 = 8;
/// The largest pending count, expected count and transaction count.
const MAX_COUNT: u64 = (1 << 20) - 1;

/// The contents of an mbarrier object (PTX ISA 9.0, section 9.7.13.15.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mbarrier {
    /// Arrivals that each phase expects.
    expected: u64,
    /// Arrivals that the current phase still expects.
    pending: u64,
    /// Bytes that asynchronous operations have yet to complete in the current phase, less those completed early.
    transactions: i64,
    /// The number of the current, incomplete phase.
    phase: u64,
}

impl Mbarrier {
    fn new(count: u64) -> Mbarrier {
        Mbarrier { expected: count, pending: count, transactions: 0, phase: 0 }
    }

    /// What the object's eight bytes hold. The hardware's format is not documented; the tag makes zeros invalid.
    fn bits(&self) -> u64 {
        self.expected
            | self.pending << 20
            | (self.transactions as u64 & 0x1f_ffff) << 40
            | (self.phase & 1) << 61
            | 1 << 63
    }

    /// The state that an arrival returns: the phase and its pending count before the arrival.
    fn token(&self) -> u64 {
        self.phase << 32 | self.pending
    }

    /// The arrive-on operation. Gives the state before it.
    fn arrive(&mut self, count: u64) -> std::result::Result<u64, String> {
        let token = self.token();
        if count == 0 || count > self.pending {
            return Err(format!("{count} arrivals at an mbarrier whose phase expects {} more", self.pending));
        }
        self.pending -= count;
        self.turn();
        Ok(token)
    }

    fn expect(&mut self, bytes: i64) -> std::result::Result<(), String> {
        self.transactions += bytes;
        if self.transactions.unsigned_abs() > MAX_COUNT {
            return Err(format!("the transaction count of an mbarrier goes to {}", self.transactions));
        }
        Ok(())
    }

    /// Completes the phase if nothing is pending.
    fn turn(&mut self) {
        if self.pending == 0 && self.transactions == 0 {
            self.phase += 1;
            self.pending = self.expected;
        }
    }
}

/// The mbarrier objects of a block, by address.
#[derive(Default)]
pub struct Table(Vec<(u64, Mbarrier)>);

/// The valid mbarrier at `address`. Its bytes must be as the last operation on it left them.
fn find(block: &mut Block, address: u64) -> std::result::Result<&mut Mbarrier, Fault> {
    let (block, address) = block.at(address)?;
    let at = |fault: Fault| fault.at_address(address, "shared memory");
    if !address.is_multiple_of(BYTES) {
        return Err(at(Fault::new(Kind::Misaligned, "an mbarrier object must be aligned to 8 bytes")));
    }
    let Some(bytes) = block.shared.get(address, BYTES) else {
        return Err(block.shared.outside(address, BYTES));
    };
    let Some((_, barrier)) = block.queue.mbarriers.0.iter_mut().find(|(a, _)| *a == address) else {
        return Err(at(Fault::new(Kind::InvalidOperation, "there is no initialised mbarrier object here")));
    };
    if bytes != barrier.bits().to_le_bytes() {
        return Err(at(Fault::new(Kind::InvalidOperation, "the mbarrier object here was overwritten")));
    }
    Ok(barrier)
}

/// Changes an mbarrier and stores it back.
fn update<T>(
    block: &mut Block,
    address: u64,
    change: impl FnOnce(&mut Mbarrier) -> std::result::Result<T, String>,
) -> std::result::Result<T, Fault> {
    let (block, address) = block.at(address)?;
    let barrier = find(block, address)?;
    let result = change(barrier)
        .map_err(|message| Fault::new(Kind::InvalidOperation, message).at_address(address, "shared memory"))?;
    let bits = barrier.bits();
    if let Some(bytes) = block.shared.get_mut(address, BYTES) {
        bytes.copy_from_slice(&bits.to_le_bytes());
    }
    block.progress += 1;
    Ok(result)
}

/// Arrives `count` times; the arrival of a `cp.async` that has landed, for one.
pub fn arrive_on(block: &mut Block, address: u64, count: u64) -> std::result::Result<u64, Fault> {
    update(block, address, |b| b.arrive(count))
}

/// Expects one more arrival in the current phase.
pub fn increment_pending(block: &mut Block, address: u64) -> std::result::Result<(), Fault> {
    update(block, address, |b| {
        b.pending += 1;
        if b.pending > MAX_COUNT { Err("the pending count of an mbarrier overflows".into()) } else { Ok(()) }
    })
}

/// The complete-tx operation.
pub fn complete_tx(block: &mut Block, address: u64, bytes: u64) -> std::result::Result<(), Fault> {
    update(block, address, |b| {
        b.expect(-(bytes as i64))?;
        b.turn();
        Ok(())
    })
}

/// The number of the current phase.
pub fn phase(block: &mut Block, address: u64) -> std::result::Result<u64, Fault> {
    find(block, address).map(|b| b.phase)
}

/// Lowers the mbarrier instructions.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    (i.opcode == "mbarrier").then(|| lower_mbarrier(cx, i))
}

/// Where the modifiers of `mbarrier` put semantics, scope and space.
fn qualifiers(m: &mut Modifiers<'_>, semantics: &[(&str, ())], cluster: bool) -> Result<Into> {
    if m.one_of(semantics).is_some() {
        m.expect(&[("cta", ()), ("cluster", ())])?;
    }
    let into = space(m, cluster);
    m.expect(&[("b64", ())])?;
    Ok(into)
}

/// Only some operations reach the mbarriers of other blocks of the cluster.
fn space(m: &mut Modifiers<'_>, cluster: bool) -> Into {
    let shared = m.take("shared") || m.take("shared::cta") || cluster && m.take("shared::cluster");
    if shared { Into::Shared } else { Into::GenericShared }
}

const RELEASE: &[(&str, ())] = &[("release", ()), ("relaxed", ())];
const ACQUIRE: &[(&str, ())] = &[("acquire", ()), ("relaxed", ())];

fn lower_mbarrier(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let name = m.expect(&[
        ("init", "init"),
        ("inval", "inval"),
        ("arrive", "arrive"),
        ("arrive_drop", "arrive_drop"),
        ("test_wait", "wait"),
        ("try_wait", "try_wait"),
        ("expect_tx", "expect_tx"),
        ("complete_tx", "complete_tx"),
        ("pending_count", "pending_count"),
    ])?;
    match name {
        "init" | "inval" => {
            let into = space(&mut m, false);
            m.expect(&[("b64", ())])?;
            m.finish()?;
            cx.arity(i, &[if name == "init" { 2 } else { 1 }])?;
            let (list, imm) = pointer::lower(cx, i, &[(&i.operands[0], into)])?;
            let mut op = cx.op(i, Class::Barrier, if name == "init" { init } else { invalidate });
            if name == "init" {
                op.src[0] = cx.src(i, &i.operands[1], Type::B32)?;
            }
            (op.list, op.imm) = (cx.list(list), imm);
            cx.emit(op);
            Ok(())
        }
        "arrive" | "arrive_drop" => lower_arrive(cx, i, m, name == "arrive_drop"),
        "wait" | "try_wait" => lower_wait(cx, i, m, name == "try_wait"),
        "expect_tx" | "complete_tx" => {
            if m.take("relaxed") {
                m.expect(&[("cta", ()), ("cluster", ())])?;
            }
            let into = space(&mut m, true);
            m.expect(&[("b64", ())])?;
            m.finish()?;
            cx.arity(i, &[2])?;
            let (list, imm) = pointer::lower(cx, i, &[(&i.operands[0], into)])?;
            let mut op = cx.op(i, Class::Barrier, if name == "expect_tx" { expect } else { complete });
            op.src[0] = cx.src(i, &i.operands[1], Type::B32)?;
            (op.list, op.imm) = (cx.list(list), imm);
            cx.emit(op);
            Ok(())
        }
        _ => {
            m.expect(&[("b64", ())])?;
            m.finish()?;
            cx.arity(i, &[2])?;
            let mut op = cx.op(i, Class::Barrier, pending_count);
            op.dst[0] = cx.dst(i, &i.operands[0], Type::B32)?;
            op.src[0] = cx.src(i, &i.operands[1], Type::B64)?;
            cx.emit(op);
            Ok(())
        }
    }
}

/// Bits of [`Op::imm`] above the pointer's.
const EXPECT: u64 = 1 << 8;
const NO_COMPLETE: u64 = 1 << 9;
const DROP: u64 = 1 << 10;
const PARITY: u64 = 1 << 11;

fn lower_arrive(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>, drop: bool) -> Result<()> {
    let variant = m.one_of(&[("expect_tx", EXPECT), ("noComplete", NO_COMPLETE)]).unwrap_or(0);
    let into = qualifiers(&mut m, RELEASE, true)?;
    m.finish()?;
    cx.arity(i, if variant == 0 { &[2, 3] } else { &[3] })?;
    let (list, imm) = pointer::lower(cx, i, &[(&i.operands[1], into)])?;
    let mut op = cx.op(i, Class::Barrier, arrive);
    op.dst[0] = cx.dst(i, &i.operands[0], Type::B64)?;
    op.src[0] = match i.operands.get(2) {
        Some(operand) => cx.src(i, operand, Type::B32)?,
        None => cx.constant(1),
    };
    (op.list, op.imm) = (cx.list(list), imm | variant | if drop { DROP } else { 0 });
    cx.emit(op);
    Ok(())
}

fn lower_wait(cx: &mut Lower, i: &Instruction, mut m: Modifiers<'_>, hint: bool) -> Result<()> {
    let parity = m.take("parity");
    let into = qualifiers(&mut m, ACQUIRE, false)?;
    m.finish()?;
    cx.arity(i, if hint { &[3, 4] } else { &[3] })?;
    let (list, imm) = pointer::lower(cx, i, &[(&i.operands[1], into)])?;
    let mut op = cx.op(i, Class::Barrier, wait);
    op.dst[0] = cx.dst(i, &i.operands[0], Type::Pred)?;
    op.src[0] = cx.src(i, &i.operands[2], if parity { Type::B32 } else { Type::B64 })?;
    if let Some(operand) = i.operands.get(3) {
        cx.src(i, operand, Type::B32)?;
    }
    (op.list, op.imm) = (cx.list(list), imm | if parity { PARITY } else { 0 });
    cx.emit(op);
    Ok(())
}

/// Runs `each` for the executing lanes, with the lane's address, until one fails.
fn for_lanes(
    cx: &mut Cx<'_>,
    op: &Op,
    mut each: impl FnMut(&mut Cx<'_>, usize, u64) -> std::result::Result<(), Fault>,
) -> Flow {
    let addresses = match pointer::read(cx, op, 0) {
        Ok(addresses) => addresses,
        Err(fault) => return cx.fail(fault),
    };
    for (lane, &address) in addresses.iter().enumerate() {
        if cx.mask >> lane & 1 != 0
            && let Err(fault) = each(cx, lane, address)
        {
            return cx.fail(fault.at_lane(lane as u32));
        }
    }
    Flow::Next
}

/// The lanes that name an address.
fn same(addresses: &Row<u64>, address: u64) -> u32 {
    (0..LANES).fold(0, |lanes, lane| lanes | u32::from(addresses[lane] == address) << lane)
}

fn init(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let counts = cx.b32(op.src[0]);
    for_lanes(cx, op, |cx, lane, address| {
        let count = counts[lane] as u64;
        let invalid =
            |message: &str| Err(Fault::new(Kind::InvalidOperation, message).at_address(address, "shared memory"));
        if count == 0 || count > MAX_COUNT {
            return invalid("the count of an mbarrier must be 1 to 2^20 - 1");
        }
        if !address.is_multiple_of(BYTES) {
            let fault = Fault::new(Kind::Misaligned, "an mbarrier object must be aligned to 8 bytes");
            return Err(fault.at_address(address, "shared memory"));
        }
        let block = &mut *cx.block;
        if block.queue.mbarriers.0.iter().any(|(a, _)| *a == address) {
            return invalid("there is a valid mbarrier object here already");
        }
        let barrier = Mbarrier::new(count);
        let Some(bytes) = block.shared.get_mut(address, BYTES) else {
            return Err(block.shared.outside(address, BYTES));
        };
        bytes.copy_from_slice(&barrier.bits().to_le_bytes());
        block.shared.mark_init(address, BYTES);
        block.queue.mbarriers.0.push((address, barrier));
        race::mbarrier_init(block, address);
        block.progress += 1;
        Ok(())
    })
}

fn invalidate(cx: &mut Cx<'_>, op: &Op) -> Flow {
    for_lanes(cx, op, |cx, _, address| {
        find(cx.block, address)?;
        cx.block.queue.mbarriers.0.retain(|(a, _)| *a != address);
        Ok(())
    })
}

fn arrive(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let operand = cx.b32(op.src[0]);
    let mut tokens: Row<u64> = [0; LANES];
    let mut last = None;
    let flow = for_lanes(cx, op, |cx, lane, address| {
        let value = operand[lane] as u64;
        if last.replace(address) != Some(address) {
            race::mbarrier_arrive(cx.block, cx.warp.id, (cx.mask, cx.warp.live()), address);
        }
        tokens[lane] = update(cx.block, address, |b| {
            let count = if op.imm & EXPECT != 0 { 1 } else { value };
            if op.imm & EXPECT != 0 {
                b.expect(value as i64)?;
            }
            if op.imm & NO_COMPLETE != 0 && count >= b.pending {
                return Err("an arrival with .noComplete would complete the phase".into());
            }
            if op.imm & DROP != 0 {
                b.expected = b.expected.checked_sub(count).ok_or("more arrivals are dropped than expected")?;
            }
            b.arrive(count)
        })?;
        Ok(())
    });
    cx.set_b64(op.dst[0], tokens);
    flow
}

fn expect(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let bytes = cx.b32(op.src[0]);
    for_lanes(cx, op, |cx, lane, address| update(cx.block, address, |b| b.expect(bytes[lane] as i64)))
}

fn complete(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let bytes = cx.b32(op.src[0]);
    for_lanes(cx, op, |cx, lane, address| complete_tx(cx.block, address, bytes[lane] as u64))
}

/// `test_wait` and `try_wait`. The latter may suspend the thread; here it too answers at once and lets others run.
fn wait(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let states: Row<u64> = if op.imm & PARITY != 0 { cx.b32(op.src[0]).map(u64::from) } else { cx.b64(op.src[0]) };
    let (mut done, mut told) = (0u32, 0u32);
    let mut last = None;
    let addresses = pointer::read(cx, op, 0).unwrap_or([0; LANES]);
    let flow = for_lanes(cx, op, |cx, lane, address| {
        let key = (address, states[lane]);
        let complete = match last {
            Some((known, complete)) if known == key => complete,
            _ => {
                let over = |phase: u64| {
                    if op.imm & PARITY != 0 { phase & 1 != states[lane] & 1 } else { phase != states[lane] >> 32 }
                };
                let mut complete = over(phase(cx.block, address)?);
                if !complete {
                    // What completes here may land as late as this.
                    async_queue::poll(cx.block, cx.grid, address)?;
                    complete = over(phase(cx.block, address)?);
                }
                complete
            }
        };
        if complete && told & 1 << lane == 0 {
            let alike = (0..LANES).filter(|&l| states[l] == states[lane]).fold(0, |all, l| all | 1 << l);
            let lanes = same(&addresses, address) & alike & cx.mask;
            race::mbarrier_wait(cx.block, cx.warp.id, (lanes, cx.warp.live()), address);
            told |= lanes;
        }
        last = Some((key, complete));
        done |= (complete as u32) << lane;
        Ok(())
    });
    if flow != Flow::Next {
        return flow;
    }
    race::learned(cx, done & cx.mask);
    cx.set_pred(op.dst[0], done);
    if done & cx.mask == cx.mask { Flow::Next } else { Flow::Yield }
}

fn pending_count(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let tokens = cx.b64(op.src[0]);
    cx.set_b32(op.dst[0], tokens.map(|token| token as u32));
    Flow::Next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_needs_arrivals_and_bytes() {
        let mut b = Mbarrier::new(2);
        assert_eq!(b.token(), 2);
        b.expect(48).unwrap();
        assert_eq!(b.arrive(1), Ok(2));
        assert_eq!(b.arrive(1), Ok(1));
        assert_eq!((b.phase, b.pending), (0, 0), "the bytes are missing");
        assert!(b.arrive(1).is_err(), "nobody is expected");
        b.expect(-32).unwrap();
        b.turn();
        assert_eq!(b.phase, 0);
        b.expect(-16).unwrap();
        b.turn();
        assert_eq!((b.phase, b.pending, b.transactions), (1, 2, 0));
        // Bytes may complete before they are expected.
        b.expect(-16).unwrap();
        b.turn();
        assert_eq!(b.arrive(2), Ok(1 << 32 | 2));
        assert_eq!(b.phase, 1);
        b.expect(16).unwrap();
        b.turn();
        assert_eq!(b.phase, 2);
    }

    #[test]
    fn counts_are_bounded() {
        let mut b = Mbarrier::new(1);
        assert!(b.expect(1 << 20).is_err());
        assert!(Mbarrier::new(1).expect(-(1 << 20)).is_err());
        assert!(Mbarrier::new(1).arrive(0).is_err());
        assert!(Mbarrier::new(1).arrive(2).is_err());
    }

    /// One thread runs a text on an mbarrier of a count; whether `%done` holds behind it.
    fn alone(count: u32, text: &str) -> std::result::Result<bool, Fault> {
        let one: String = text.split_inclusive(';').map(|line| format!("@%one {}", line.trim())).collect();
        let text = format!(
            ".reg .b32 %at, %c; .reg .b64 %st; .reg .pred %one, %done; @%one mbarrier.init.shared.b64 [%at], {count}; {one}"
        );
        let mut team = crate::isa::team::Team::new(&text, 1, crate::machine::schedule::AsyncTiming::Late);
        team.set_b32("%at", [64; LANES]);
        team.set_pred("%one", 1);
        team.run()?;
        Ok(team.pred(0, "%done") & 1 != 0)
    }

    #[test]
    fn who_may_not_complete_a_phase_does_not() {
        let arrive = "mbarrier.arrive.noComplete.shared.b64 %st, [%at], 2;";
        assert_eq!(alone(3, &format!("{arrive} mbarrier.test_wait.parity.shared.b64 %done, [%at], 0;")), Ok(false));
        assert_eq!(alone(2, arrive).unwrap_err().kind, Kind::InvalidOperation);
    }

    #[test]
    fn who_drops_out_is_no_longer_expected() {
        let all = "mbarrier.arrive_drop.shared.b64 %st, [%at]; mbarrier.arrive.shared.b64 %st, [%at], 2;";
        let again = "mbarrier.arrive.shared.b64 %st, [%at], 2;";
        let phase = |parity: u32| format!("mbarrier.test_wait.parity.shared.b64 %done, [%at], {parity};");
        assert_eq!(alone(3, &format!("{all} {}", phase(0))), Ok(true));
        assert_eq!(alone(3, &format!("{all} {again} {}", phase(1))), Ok(true));
        assert_eq!(alone(3, &format!("{again} {again}")).unwrap_err().kind, Kind::InvalidOperation);
    }

    #[test]
    fn every_field_shows_in_the_bytes() {
        let b = Mbarrier::new(5);
        let others = [
            Mbarrier { expected: 6, ..b },
            Mbarrier { pending: 4, ..b },
            Mbarrier { transactions: -1, ..b },
            Mbarrier { phase: 1, ..b },
        ];
        assert!(others.iter().all(|other| other.bits() != b.bits()) && b.bits() != 0);
    }
}
