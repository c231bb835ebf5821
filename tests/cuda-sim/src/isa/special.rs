//! Special registers (PTX ISA 9.0, chapter 10).

use std::time::Instant;

use crate::code::{Class, Dst, Flow, Op, Run};
use crate::device::RESERVED_SHARED;
use crate::lower::{Lower, Result};
use crate::machine::{Cx, LANES, Row};
use crate::ptx::ast::{Instruction, Type};

/// Reads a special register into a fresh register: its row and type. None if the name is not one.
pub fn read(cx: &mut Lower, i: &Instruction, name: &str) -> Result<Option<(u32, Type)>> {
    let Some(name) = name.strip_prefix('%') else { return Ok(None) };
    let Some((ty, run, imm)) = find(name) else { return Ok(None) };
    cx.code.reserved_shared |= name.starts_with("reserved_smem");
    let row = cx.scopes.temporary(ty);
    let op = cx.op(i, Class::Move, run);
    cx.emit(Op { dst: [Dst(row), Dst::SINK], imm, ..op });
    Ok(Some((row, ty)))
}

/// The type of a special register, what reads it, and what tells it from its likes.
fn find(name: &str) -> Option<(Type, Run, u64)> {
    if let Some((base, axis)) = name.split_once('.') {
        let axis = ["x", "y", "z", "w"].iter().position(|a| *a == axis)?;
        let run: Run = match base {
            "tid" => tid,
            "ntid" => vector::<Ntid>,
            "ctaid" => vector::<Ctaid>,
            "nctaid" => vector::<Nctaid>,
            "clusterid" => vector::<Clusterid>,
            "nclusterid" => vector::<Nclusterid>,
            "cluster_ctaid" => vector::<ClusterCtaid>,
            "cluster_nctaid" => vector::<ClusterNctaid>,
            _ => return None,
        };
        return Some((Type::U32, run, axis as u64));
    }
    if let Some(number) = name.strip_prefix("envreg") {
        let number = number.parse().ok().filter(|n| *n < 32 && (*n == 0 || !number.starts_with('0')))?;
        return Some((Type::B32, envreg, number));
    }
    let run: Run = match name {
        "laneid" => |cx, op| put(cx, op, std::array::from_fn(|lane| lane as u32)),
        "lanemask_eq" => |cx, op| put(cx, op, std::array::from_fn(|lane| 1 << lane)),
        "lanemask_lt" => |cx, op| put(cx, op, std::array::from_fn(|lane| (1 << lane) - 1)),
        "lanemask_le" => |cx, op| put(cx, op, std::array::from_fn(|lane| u32::MAX >> (31 - lane))),
        "lanemask_gt" => |cx, op| put(cx, op, std::array::from_fn(|lane| !(u32::MAX >> (31 - lane)))),
        "lanemask_ge" => |cx, op| put(cx, op, std::array::from_fn(|lane| u32::MAX << lane)),
        "warpid" => |cx, op| all(cx, op, cx.warp.id),
        "nwarpid" => |cx, op| all(cx, op, cx.grid.block_dim.iter().product::<u32>().div_ceil(LANES as u32)),
        "smid" => |cx, op| all(cx, op, (cx.block.index % cx.grid.multiprocessors.max(1) as u64) as u32),
        "nsmid" => |cx, op| all(cx, op, cx.grid.multiprocessors),
        "cluster_ctarank" => |cx, op| all(cx, op, cluster_rank(cx)),
        "cluster_nctarank" => |cx, op| all(cx, op, cx.grid.cluster.iter().product()),
        "dynamic_smem_size" => |cx, op| all(cx, op, cx.grid.dynamic_shared),
        "total_smem_size" => |cx, op| all(cx, op, cx.grid.shared_bytes),
        "reserved_smem_offset_begin" | "reserved_smem_offset_0" => |cx, op| all(cx, op, cx.grid.reserved_shared(0)),
        "reserved_smem_offset_1" => |cx, op| all(cx, op, cx.grid.reserved_shared(RESERVED_SHARED / 2)),
        "reserved_smem_offset_end" => |cx, op| all(cx, op, cx.grid.reserved_shared(RESERVED_SHARED)),
        "reserved_smem_offset_cap" => |cx, op| all(cx, op, RESERVED_SHARED),
        "clock" => |cx, op| all(cx, op, clock(cx) as u32),
        "clock_hi" => |cx, op| all(cx, op, (clock(cx) >> 32) as u32),
        "globaltimer_lo" => |cx, op| all(cx, op, nanoseconds() as u32),
        "globaltimer_hi" => |cx, op| all(cx, op, (nanoseconds() >> 32) as u32),
        "clock64" => return Some((Type::U64, |cx, op| all64(cx, op, clock(cx)), 0)),
        "globaltimer" => return Some((Type::U64, |cx, op| all64(cx, op, nanoseconds()), 0)),
        "is_explicit_cluster" => return Some((Type::Pred, is_explicit_cluster, 0)),
        _ => return None,
    };
    Some((Type::U32, run, 0))
}

/// Operations that the block has run. Those since the group began to run in a line are not counted in it yet.
fn clock(cx: &Cx<'_>) -> u64 {
    let began = cx.warp.groups.get(cx.warp.current).map_or(cx.pc, |group| group.pc);
    cx.block.clock + cx.pc.saturating_sub(began) as u64
}

fn put(cx: &mut Cx<'_>, op: &Op, value: Row<u32>) -> Flow {
    cx.set_b32(op.dst[0], value);
    Flow::Next
}

fn all(cx: &mut Cx<'_>, op: &Op, value: u32) -> Flow {
    put(cx, op, [value; LANES])
}

fn all64(cx: &mut Cx<'_>, op: &Op, value: u64) -> Flow {
    cx.set_b64(op.dst[0], [value; LANES]);
    Flow::Next
}

/// Real time: the only thing here that differs from run to run, as a kernel that reads it must expect.
fn nanoseconds() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

fn tid(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let value = cx.warp.tid.get(op.imm as usize).copied().unwrap_or([0; LANES]);
    put(cx, op, value)
}

/// A vector register that is the same in all lanes.
trait Vector {
    fn axis(cx: &Cx<'_>, axis: usize) -> u32;
}

/// `.w` is always 0.
fn vector<V: Vector>(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let axis = op.imm as usize;
    let value = if axis < 3 { V::axis(cx, axis) } else { 0 };
    all(cx, op, value)
}

struct Ntid;
impl Vector for Ntid {
    fn axis(cx: &Cx<'_>, axis: usize) -> u32 {
        cx.grid.block_dim[axis]
    }
}

struct Ctaid;
impl Vector for Ctaid {
    fn axis(cx: &Cx<'_>, axis: usize) -> u32 {
        cx.block.ctaid[axis]
    }
}

struct Nctaid;
impl Vector for Nctaid {
    fn axis(cx: &Cx<'_>, axis: usize) -> u32 {
        cx.grid.dim[axis]
    }
}

struct Clusterid;
impl Vector for Clusterid {
    fn axis(cx: &Cx<'_>, axis: usize) -> u32 {
        cx.block.ctaid[axis] / cx.grid.cluster[axis]
    }
}

struct Nclusterid;
impl Vector for Nclusterid {
    fn axis(cx: &Cx<'_>, axis: usize) -> u32 {
        cx.grid.dim[axis] / cx.grid.cluster[axis]
    }
}

struct ClusterCtaid;
impl Vector for ClusterCtaid {
    fn axis(cx: &Cx<'_>, axis: usize) -> u32 {
        cx.block.ctaid[axis] % cx.grid.cluster[axis]
    }
}

struct ClusterNctaid;
impl Vector for ClusterNctaid {
    fn axis(cx: &Cx<'_>, axis: usize) -> u32 {
        cx.grid.cluster[axis]
    }
}

/// `%cluster_ctarank`
pub fn cluster_rank(cx: &Cx<'_>) -> u32 {
    let [x, y, z] = [0, 1, 2].map(|axis| ClusterCtaid::axis(cx, axis));
    x + cx.grid.cluster[0] * (y + cx.grid.cluster[1] * z)
}

fn is_explicit_cluster(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let explicit = cx.grid.entry.cluster.is_some() || cx.grid.cluster != [1; 3];
    cx.set_pred(op.dst[0], 0u32.wrapping_sub(explicit as u32));
    Flow::Next
}

/// Cooperative launches hand the address of the grid's workspace to CUDA's `grid.sync()` in these; others are 0.
fn envreg(cx: &mut Cx<'_>, op: &Op) -> Flow {
    let value = match op.imm {
        1 => (cx.grid.workspace >> 32) as u32,
        2 => cx.grid.workspace as u32,
        _ => 0,
    };
    all(cx, op, value)
}
