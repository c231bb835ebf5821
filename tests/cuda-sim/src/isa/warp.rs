//! Communication between the lanes of a warp (PTX ISA 9.0, sections 9.7.9.6 and 9.7.13: `shfl.sync`, `vote.sync`,
//! `match.sync`, `redux.sync`, `activemask`, `elect.sync`).

use super::lanes::predicate;
use crate::check::race;
use crate::code::{Class, Dst, Flow, Op, Run};
use crate::lower::{Lower, Modifiers, Result};
use crate::machine::fault::{Fault, Kind};
use crate::machine::simd::{Semantics, choose};
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Operand, Type};

/// Lowers the warp instructions.
pub fn lower(cx: &mut Lower, i: &Instruction) -> Option<Result<()>> {
    match i.opcode.as_str() {
        "shfl" => Some(shuffle(cx, i)),
        "vote" => Some(vote(cx, i)),
        "match" => Some(matching(cx, i)),
        "redux" => Some(redux(cx, i)),
        "activemask" => Some(active_mask(cx, i)),
        "elect" => Some(elect(cx, i)),
        _ => None,
    }
}

/// `d` or `d|p`.
fn destinations(cx: &mut Lower, i: &Instruction, ty: Type) -> Result<[Dst; 2]> {
    match &i.operands[0] {
        Operand::Pair(d, p) => Ok([cx.dst(i, d, ty)?, cx.dst(i, p, Type::Pred)?]),
        d => Ok([cx.dst(i, d, ty)?, Dst::SINK]),
    }
}

/// Waits for the lanes of the member masks in `masks`; what to return if they are not here.
fn members(cx: &mut Cx<'_>, masks: &Row<u32>) -> Option<Flow> {
    let mut all = 0;
    for lane in 0..LANES {
        if cx.mask >> lane & 1 != 0 {
            if masks[lane] >> lane & 1 == 0 {
                let message = format!("the member mask {:#010x} lacks the executing lane", masks[lane]);
                return Some(cx.fail(Fault::new(Kind::InvalidOperation, message).at_lane(lane as u32)));
            }
            all |= masks[lane];
        }
    }
    cx.lanes(all)
}

/// Calls `f` with each set of executing lanes that name the same member mask.
fn each_team(cx: &mut Cx<'_>, masks: &Row<u32>, mut f: impl FnMut(&mut Cx<'_>, u32)) {
    let mut left = cx.mask;
    while left != 0 {
        let mask = masks[left.trailing_zeros() as usize];
        let same = (0..LANES).fold(0, |set, lane| set | u32::from(masks[lane] == mask) << lane);
        f(cx, same & left);
        left &= !same;
    }
}

/// The mode and `.sync`, in either order: the ISA writes `vote.sync.ballot` and `match.any.sync`, CUB
/// `vote.ballot.sync`, and ptxas takes both.
fn mode<T: Copy>(m: &mut Modifiers, modes: &[(&str, T)]) -> Result<T> {
    let sync_first = m.take("sync");
    let mode = m.expect(modes)?;
    if !sync_first {
        m.expect(&[("sync", ())])?;
    }
    Ok(mode)
}

const SHUFFLES: &[(&str, u64)] = &[("up", 0), ("down", 1), ("bfly", 2), ("idx", 3)];

fn shuffle(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let mode = mode(&mut m, SHUFFLES)?;
    m.ty(&[Type::B32])?;
    m.finish()?;
    cx.arity(i, &[5])?;
    let run = match mode {
        0 => choose::<Shuffle<0>>(),
        1 => choose::<Shuffle<1>>(),
        2 => choose::<Shuffle<2>>(),
        _ => choose::<Shuffle<3>>(),
    };
    let mut op = cx.op(i, Class::Warp, run);
    op.dst = destinations(cx, i, Type::B32)?;
    for (src, operand) in op.src.iter_mut().zip(&i.operands[1..]) {
        *src = cx.src(i, operand, Type::B32)?;
    }
    cx.emit(op);
    Ok(())
}

/// What a lane gets from one that does not take part: PTX leaves it open, so it is made to be noticed.
const NOTHING: u32 = u32::MAX;

struct Shuffle<const MODE: u8>;

impl<const MODE: u8> Semantics for Shuffle<MODE> {
    #[inline(always)]
    fn run(cx: &mut Cx<'_>, op: &Op) -> Flow {
        let masks = cx.b32(op.src[3]);
        let whole = cx.mask == u32::MAX && masks == [u32::MAX; LANES];
        if !whole && let Some(flow) = members(cx, &masks) {
            return flow;
        }
        race::exchange(cx);
        let (a, b, c) = (cx.b32(op.src[0]), cx.b32(op.src[1]), cx.b32(op.src[2]));
        let (mut from, mut inside): (Row<u32>, Row<u32>) = ([0; LANES], [0; LANES]);
        for lane in 0..LANES as u32 {
            let l = lane as usize;
            let (bval, clamp, segment) = (b[l] & 31, c[l] & 31, c[l] >> 8 & 31);
            let least = lane & segment;
            let most = least | clamp & !segment;
            let (j, ok) = match MODE {
                0 => (lane.wrapping_sub(bval), lane as i32 - bval as i32 >= most as i32),
                1 => (lane + bval, lane + bval <= most),
                2 => (lane ^ bval, lane ^ bval <= most),
                _ => (least | bval & !segment, least | bval & !segment <= most),
            };
            from[l] = if ok { j & 31 } else { lane };
            inside[l] = u32::from(ok);
        }
        let mut out = [0; LANES];
        let mut valid = 0;
        for lane in 0..LANES {
            out[lane] = a[from[lane] as usize & 31];
            valid |= inside[lane] << lane;
        }
        if cx.mask != u32::MAX {
            for lane in 0..LANES {
                out[lane] = if cx.mask >> from[lane] & 1 != 0 { out[lane] } else { NOTHING };
            }
        }
        cx.set_b32(op.dst[0], out);
        cx.set_pred(op.dst[1], valid);
        Flow::Next
    }
}

fn vote(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    const VOTES: &[(&str, (Run, bool))] = &[
        ("all", (vote_all, false)),
        ("any", (vote_any, false)),
        ("uni", (vote_uni, false)),
        ("ballot", (ballot, true)),
    ];
    let (run, ballot) = mode(&mut m, VOTES)?;
    let ty = m.ty(&[if ballot { Type::B32 } else { Type::Pred }])?;
    m.finish()?;
    cx.arity(i, &[3])?;
    let mut op = cx.op(i, Class::Warp, run);
    op.dst[0] = cx.dst(i, &i.operands[0], ty)?;
    let (src, negated) = predicate(cx, i, &i.operands[1])?;
    op.src[0] = src;
    op.imm = u64::from(negated);
    op.src[1] = cx.src(i, &i.operands[2], Type::B32)?;
    cx.emit(op);
    Ok(())
}

/// Evaluates `f` of the voters and of those who vote yes for each team, and gives every lane of a team its result.
#[inline(always)]
fn vote_with(cx: &mut Cx<'_>, op: &Op, f: impl Fn(u32, u32) -> u32) -> std::result::Result<Row<u32>, Flow> {
    let masks = cx.b32(op.src[1]);
    if let Some(flow) = members(cx, &masks) {
        return Err(flow);
    }
    race::exchange(cx);
    let yes = cx.pred(op.src[0]) ^ 0u32.wrapping_sub(op.imm as u32);
    let mut out = [0; LANES];
    each_team(cx, &masks, |_, team| {
        let value = f(team, yes & team);
        for (lane, out) in out.iter_mut().enumerate() {
            *out = if team >> lane & 1 != 0 { value } else { *out };
        }
    });
    Ok(out)
}

fn vote_predicate(cx: &mut Cx<'_>, op: &Op, f: impl Fn(u32, u32) -> bool) -> Flow {
    match vote_with(cx, op, |team, yes| u32::from(f(team, yes))) {
        Ok(out) => {
            let bits = (0..LANES).fold(0, |bits, lane| bits | out[lane] << lane);
            cx.set_pred(op.dst[0], bits);
            Flow::Next
        }
        Err(flow) => flow,
    }
}

fn vote_all(cx: &mut Cx<'_>, op: &Op) -> Flow {
    vote_predicate(cx, op, |team, yes| yes == team)
}

fn vote_any(cx: &mut Cx<'_>, op: &Op) -> Flow {
    vote_predicate(cx, op, |_, yes| yes != 0)
}

fn vote_uni(cx: &mut Cx<'_>, op: &Op) -> Flow {
    vote_predicate(cx, op, |team, yes| yes == 0 || yes == team)
}

fn ballot(cx: &mut Cx<'_>, op: &Op) -> Flow {
    match vote_with(cx, op, |_, yes| yes) {
        Ok(out) => {
            cx.set_b32(op.dst[0], out);
            Flow::Next
        }
        Err(flow) => flow,
    }
}

fn matching(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    let all = mode(&mut m, &[("any", false), ("all", true)])?;
    let ty = m.ty(&[Type::B32, Type::B64])?;
    m.finish()?;
    cx.arity(i, &[3])?;
    if !all && matches!(i.operands[0], Operand::Pair(..)) {
        return cx.error(i, "no predicate can be given");
    }
    let mut op = cx.op(i, Class::Warp, match_lanes);
    op.dst = destinations(cx, i, Type::B32)?;
    op.src[0] = cx.src(i, &i.operands[1], ty)?;
    op.src[1] = cx.src(i, &i.operands[2], Type::B32)?;
    op.imm = u64::from(all) | u64::from(ty == Type::B64) << 1;
    cx.emit(op);
    Ok(())
}

fn match_lanes(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let masks = cx.b32(op.src[1]);
    if let Some(flow) = members(cx, &masks) {
        return flow;
    }
    race::exchange(cx);
    let values = if op.imm & 2 != 0 { cx.b64(op.src[0]) } else { cx.b32(op.src[0]).map(u64::from) };
    let mut out = [0; LANES];
    let mut agree = 0;
    each_team(cx, &masks, |_, team| {
        for lane in (0..LANES).filter(|lane| team >> lane & 1 != 0) {
            let equal = (0..LANES).fold(0, |set, other| set | u32::from(values[other] == values[lane]) << other);
            out[lane] = equal & team;
        }
        if out[team.trailing_zeros() as usize] == team {
            agree |= team;
        }
    });
    if op.imm & 1 != 0 {
        for (lane, out) in out.iter_mut().enumerate() {
            *out = if agree >> lane & 1 != 0 { *out } else { 0 };
        }
        cx.set_pred(op.dst[1], agree);
    }
    cx.set_b32(op.dst[0], out);
    Flow::Next
}

fn redux(cx: &mut Lower, i: &Instruction) -> Result<()> {
    use Type::*;
    let mut m = Modifiers::new(i);
    let action = mode(&mut m, &[("add", 0), ("min", 1), ("max", 2), ("and", 3), ("or", 4), ("xor", 5)])?;
    let absolute = m.take("abs");
    let nan = m.take("NaN");
    let float = matches!(m.peek(), Some("f32")) && (action == 1 || action == 2);
    let ty = match action {
        0 => m.ty(&[U32, S32])?,
        1 | 2 if absolute || nan => m.ty(&[F32])?,
        1 | 2 => m.ty(&[U32, S32, F32])?,
        _ => m.ty(&[B32])?,
    };
    m.finish()?;
    cx.arity(i, &[3])?;
    if (absolute || nan) && !float {
        return cx.error(i, "`.abs` and `.NaN` need `.f32`");
    }
    let mut op = cx.op(i, Class::Warp, reduce);
    op.dst[0] = cx.dst(i, &i.operands[0], ty)?;
    op.src[0] = cx.src(i, &i.operands[1], ty)?;
    op.src[1] = cx.src(i, &i.operands[2], B32)?;
    op.imm =
        action | u64::from(ty == S32) << 3 | u64::from(float) << 4 | u64::from(absolute) << 5 | u64::from(nan) << 6;
    cx.emit(op);
    Ok(())
}

fn reduce(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let masks = cx.b32(op.src[1]);
    if let Some(flow) = members(cx, &masks) {
        return flow;
    }
    race::exchange(cx);
    let values = cx.b32(op.src[0]);
    let imm = op.imm;
    let mut out = [0; LANES];
    each_team(cx, &masks, |_, team| {
        let inputs = (0..LANES).filter(|lane| team >> lane & 1 != 0).map(|lane| values[lane]);
        let result = if imm & 16 != 0 { reduce_floats(inputs, imm) } else { reduce_integers(inputs, imm) };
        for (lane, out) in out.iter_mut().enumerate() {
            *out = if team >> lane & 1 != 0 { result } else { *out };
        }
    });
    cx.set_b32(op.dst[0], out);
    Flow::Next
}

fn reduce_integers(inputs: impl Iterator<Item = u32>, imm: u64) -> u32 {
    let signed = imm & 8 != 0;
    // Flipping the sign bit makes the order of signed numbers that of unsigned ones.
    let flip = if signed { 1 << 31 } else { 0 };
    let combined = match imm & 7 {
        0 => inputs.reduce(u32::wrapping_add),
        1 => inputs.map(|v| v ^ flip).min().map(|v| v ^ flip),
        2 => inputs.map(|v| v ^ flip).max().map(|v| v ^ flip),
        3 => inputs.reduce(|a, b| a & b),
        4 => inputs.reduce(|a, b| a | b),
        _ => inputs.reduce(|a, b| a ^ b),
    };
    combined.unwrap_or(0)
}

fn reduce_floats(inputs: impl Iterator<Item = u32>, imm: u64) -> u32 {
    let (max, absolute, nan) = (imm & 7 == 2, imm & 32 != 0, imm & 64 != 0);
    let mut best: Option<f32> = None;
    for bits in inputs {
        let value = f32::from_bits(if absolute { bits & 0x7fff_ffff } else { bits });
        if value.is_nan() {
            if nan {
                return 0x7fff_ffff;
            }
            continue;
        }
        best = Some(match best {
            None => value,
            // `total_cmp` puts -0 below +0, as the instruction does.
            Some(b) if (value.total_cmp(&b) == std::cmp::Ordering::Greater) == max => value,
            Some(b) => b,
        });
    }
    best.map_or(0x7fff_ffff, f32::to_bits)
}

fn active_mask(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.ty(&[Type::B32])?;
    m.finish()?;
    cx.arity(i, &[1])?;
    let mut op = cx.op(i, Class::Warp, active);
    op.dst[0] = cx.dst(i, &i.operands[0], Type::B32)?;
    cx.emit(op);
    Ok(())
}

fn active(cx: &mut Cx<'_>, op: &Op) -> Flow {
    cx.set_b32(op.dst[0], [cx.mask; LANES]);
    Flow::Next
}

fn elect(cx: &mut Lower, i: &Instruction) -> Result<()> {
    let mut m = Modifiers::new(i);
    m.expect(&[("sync", ())])?;
    m.finish()?;
    cx.arity(i, &[2])?;
    if !matches!(i.operands[0], Operand::Pair(..)) {
        return cx.error(i, "a register and a predicate are needed");
    }
    let mut op = cx.op(i, Class::Warp, elect_lane);
    op.dst = destinations(cx, i, Type::B32)?;
    op.src[0] = cx.src(i, &i.operands[1], Type::B32)?;
    cx.emit(op);
    Ok(())
}

fn elect_lane(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let masks = cx.b32(op.src[0]);
    if let Some(flow) = members(cx, &masks) {
        return flow;
    }
    let mut leaders = [0; LANES];
    let mut elected = 0;
    each_team(cx, &masks, |_, team| {
        let leader = team.trailing_zeros();
        elected |= 1 << leader;
        for (lane, out) in leaders.iter_mut().enumerate() {
            *out = if team >> lane & 1 != 0 { leader } else { *out };
        }
    });
    cx.set_b32(op.dst[0], leaders);
    cx.set_pred(op.dst[1], elected);
    Flow::Next
}

#[cfg(test)]
mod tests {
    use crate::isa::probe::refused;
    use crate::machine::LANES;
    use crate::testing::Snippet;

    /// `redux` of a number for each lane, `rest` for those from `values.len()` on.
    fn redux(operation: &str, values: &[f32], rest: f32) -> u32 {
        let text = format!(".reg .f32 %a, %d; redux.sync.{operation}.f32 %d, %a, 0xffffffff;");
        let mut s = Snippet::new(&text).unwrap();
        s.set_b32("%a", std::array::from_fn(|lane| values.get(lane).unwrap_or(&rest).to_bits()));
        s.run();
        let out = s.b32("%d");
        assert_eq!(out, [out[0]; LANES]);
        out[0]
    }

    #[test]
    fn float_reductions_order_zeros_and_skip_or_keep_nan() {
        let nan = f32::from_bits(0xffc1_2345);
        let canonical = 0x7fff_ffff;
        assert_eq!(redux("min", &[3.0, -2.0, 5.0], 4.0), (-2f32).to_bits());
        assert_eq!(redux("max", &[3.0, -7.0, 5.0], 4.0), 5f32.to_bits());
        assert_eq!(redux("min", &[0.0, -0.0, 0.0], 0.0), (-0f32).to_bits());
        assert_eq!(redux("max", &[-0.0, 0.0, -0.0], -0.0), 0f32.to_bits());
        assert_eq!(redux("max.abs", &[3.0, -7.0, 5.0], 4.0), 7f32.to_bits());
        assert_eq!(redux("min.abs", &[3.0, -7.0, -0.0], 4.0), 0f32.to_bits());
        // Without `.NaN` a NaN counts only if there is nothing else, with it always, and either way it is the canonical one.
        assert_eq!(redux("min", &[nan, 2.0, nan], 3.0), 2f32.to_bits());
        assert_eq!(redux("max", &[1.0, 2.0, nan], 1.0), 2f32.to_bits());
        assert_eq!(redux("max", &[], nan), canonical);
        assert_eq!(redux("min.NaN", &[1.0, 2.0, nan], f32::INFINITY), canonical);
        assert_eq!(redux("max.abs.NaN", &[1.0, nan, f32::NEG_INFINITY], 1.0), canonical);
        assert_eq!(redux("max.NaN", &[1.0, f32::INFINITY], 1.0), f32::INFINITY.to_bits());
        assert_eq!(redux("max.abs.NaN", &[1.0, f32::NEG_INFINITY], 1.0), f32::INFINITY.to_bits());
    }

    #[test]
    fn teams_that_run_together_are_apart() {
        let text = ".reg .b32 %a, %r, %b, %m; .reg .pred %p; vote.sync.ballot.b32 %b, %p, %m;
            redux.sync.add.u32 %r, %a, %m; match.any.sync.b32 %a, %a, %m;";
        let mut s = Snippet::new(text).unwrap();
        s.set_b32("%m", std::array::from_fn(|lane| if lane < 12 { 0xfff } else { !0xfff }));
        s.set_b32("%a", [3; LANES]);
        s.set_pred("%p", 0x0000_1801);
        s.run();
        let by_team = |low: u32, high: u32| std::array::from_fn(|lane| if lane < 12 { low } else { high });
        assert_eq!(s.b32("%b"), by_team(0x801, 0x1000));
        assert_eq!(s.b32("%r"), by_team(36, 60));
        assert_eq!(s.b32("%a"), by_team(0xfff, !0xfff));
    }

    #[test]
    fn a_shuffle_from_a_lane_that_takes_no_part_is_noticed() {
        let text = ".reg .b32 %a, %d; shfl.sync.bfly.b32 %d, %a, 12, 0x1f, 0xff;";
        let mut s = Snippet::new(text).unwrap();
        s.set_b32("%a", std::array::from_fn(|lane| lane as u32));
        s.run_lanes(0xff);
        assert_eq!(s.b32("%d")[..8], [u32::MAX; 8]);
    }

    #[test]
    fn the_mode_may_stand_before_or_behind_sync() {
        for [one, other] in [
            ["vote.sync.ballot.b32 %a, %p, -1;", "vote.ballot.sync.b32 %a, %p, -1;"],
            ["vote.sync.any.pred %p, %p, -1;", "vote.any.sync.pred %p, %p, -1;"],
            ["match.any.sync.b32 %a, %a, -1;", "match.sync.any.b32 %a, %a, -1;"],
            ["shfl.sync.up.b32 %a, %a, 1, 0, -1;", "shfl.up.sync.b32 %a, %a, 1, 0, -1;"],
            ["redux.sync.add.u32 %a, %a, -1;", "redux.add.sync.u32 %a, %a, -1;"],
        ] {
            let run = |line: &str| {
                let mut s = Snippet::new(&format!(".reg .b32 %a; .reg .pred %p; {line}")).unwrap();
                s.set_b32("%a", std::array::from_fn(|lane| lane as u32 / 3));
                s.set_pred("%p", 0x1248_8421);
                s.run();
                (s.b32("%a"), s.pred("%p"))
            };
            assert_eq!(run(one), run(other), "{other}");
        }
        for line in ["vote.ballot.b32 %a, %p, -1;", "vote.sync.ballot.sync.b32 %a, %p, -1;"] {
            assert!(!refused(&format!(".reg .b32 %a; .reg .pred %p; {line}")).is_empty());
        }
    }
}
