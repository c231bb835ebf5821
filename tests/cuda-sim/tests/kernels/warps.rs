//! Lanes of a warp that work together through shared or global memory, with `__syncwarp` between.

use crate::args;
use crate::harness::{Outcome, Session, line, run};
use crate::numbers::{noise, same};

pub fn sums(s: &mut Session) -> Outcome {
    // Small whole numbers: their sums are exact in every order.
    let x = noise(1, 2 * 128, |n| n.below(100) as f32);
    let (dx, out) = (s.upload(&x), s.alloc::<f32>(8));
    s.launch("warp_sums", line(2, 128), &args![out, dx])?;
    same("sums", &s.download::<f32>(out, 8), &x.chunks(32).map(|x| x.iter().sum()).collect::<Vec<f32>>())
}

pub fn transpose(s: &mut Session) -> Outcome {
    let tiles = 9;
    let x = noise(1, tiles * 1024, |n| n.bits() as u16);
    let (dx, out) = (s.upload(&x), s.alloc::<u16>(x.len()));
    s.launch("warp_transpose", line(1, 128), &args![out, dx, tiles as i32])?;
    let want: Vec<u16> = (0..x.len()).map(|i| x[i / 1024 * 1024 + i % 32 * 32 + i / 32 % 32]).collect();
    same("tiles", &s.download::<u16>(out, x.len()), &want)
}

pub fn ring(s: &mut Session) -> Outcome {
    let rows = 7;
    let x = noise(1, rows * 128, |n| n.bits());
    let (dx, out) = (s.upload(&x), s.alloc::<u32>(x.len()));
    s.launch("warp_ring", line(1, 32), &args![out, dx, rows as i32])?;
    let want: Vec<u32> = (0..x.len()).map(|i| x[i / 128 * 128 + (31 - i / 4 % 32) * 4 + i % 4]).collect();
    same("rows", &s.download::<u32>(out, x.len()), &want)
}

pub fn halves(s: &mut Session) -> Outcome {
    let x = noise(1, 32, |n| n.below(1000) as i32);
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(32));
    s.launch("half_warps", line(1, 32), &args![out, dx])?;
    let value = |lane: usize| if lane < 16 { x[lane ^ 5] * 3 + 1 } else { x[lane ^ 9] * 5 - 1 };
    same("values", &s.download::<i32>(out, 32), &(0..32).map(|lane| value(31 - lane)).collect::<Vec<_>>())
}

pub fn counts(s: &mut Session) -> Outcome {
    let data = noise(1, 500, |n| n.bits() as u8);
    let (dd, out) = (s.upload(&data), s.alloc::<u32>(32));
    s.launch("warp_counts", line(1, 32), &args![out, dd, 500])?;
    let want = |lane: u8| data.iter().filter(|&&d| d % 32 == lane ^ 1).count() as u32;
    same("counts", &s.download::<u32>(out, 32), &(0..32).map(want).collect::<Vec<_>>())
}

pub fn matrix(s: &mut Session) -> Outcome {
    let x = noise(1, 256, |n| n.bits() as u16);
    let (dx, out) = (s.upload(&x), s.alloc::<u16>(256));
    s.launch("warp_matrix", line(1, 32), &args![out, dx])?;
    // Lane 4 c + r / 2 has the elements r and r + 1 of column c.
    let want: Vec<u16> = (0..256).map(|i| x[i / 64 * 64 + i % 8 * 8 + i / 8 % 8]).collect();
    same("fragments", &s.download::<u16>(out, 256), &want)
}

pub fn stores(s: &mut Session) -> Outcome {
    let rows = 3;
    let x = noise(1, rows * 32, |n| n.unit());
    let (dx, out) = (s.upload(&x), s.alloc::<f32>(x.len()));
    s.launch("warp_stores", line(1, 32), &args![out, dx, rows as i32])?;
    same("rows", &s.download::<f32>(out, x.len()), &(0..x.len()).map(|i| x[i ^ 3] * 2.0).collect::<Vec<_>>())
}

pub fn one_lane(s: &mut Session) -> Outcome {
    let rows = 7;
    let x = noise(1, rows * 32, |n| n.bits() as i32);
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(x.len()));
    s.launch("one_lane_waits", line(1, 64), &args![out, dx, rows as i32])?;
    same("rows", &s.download::<i32>(out, x.len()), &(0..x.len()).map(|i| x[i ^ 31]).collect::<Vec<_>>())
}

pub fn exchange(s: &mut Session) -> Outcome {
    let rows = 5;
    let x = noise(1, rows * 32, |n| n.bits() as i32);
    let (dx, out, buffer) = (s.upload(&x), s.alloc::<i32>(x.len()), s.alloc::<i32>(32));
    s.launch("warp_exchange", line(1, 32), &args![out, dx, buffer, rows as i32])?;
    same("rows", &s.download::<i32>(out, x.len()), &(0..x.len()).map(|i| x[i ^ 15]).collect::<Vec<_>>())
}

pub fn list(s: &mut Session) -> Outcome {
    let x = noise(1, 32, |n| n.below(1000) as i32);
    let (dx, out, list, count) = (s.upload(&x), s.alloc::<i32>(32), s.alloc::<i32>(32), s.upload(&[0]));
    s.launch("warp_list", line(1, 32), &args![out, dx, list, count])?;
    same("sums", &s.download::<i32>(out, 32), &[x.iter().filter(|&&x| x % 2 != 0).sum::<i32>(); 32])
}

#[test]
fn lanes_in_global_memory() {
    run("warps", exchange);
    run("warps", list);
}

#[test]
fn sums_and_counts() {
    run("warps", sums);
    run("warps", counts);
}

#[test]
fn transposed_tiles_and_fragments() {
    run("warps", transpose);
    run("warps", matrix);
}

#[test]
fn rings_of_copies() {
    run("warps", ring);
    run("warps", stores);
    run("warps", one_lane);
}

#[test]
fn halves_apart() {
    run("warps", halves);
}
