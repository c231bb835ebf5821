//! CUB's sort, histogram and scan.

use crate::args;
use crate::harness::{Outcome, Session, line, run};
use crate::numbers::{noise, same};

/// Numbers of a block's tile.
const TILE: usize = 192;

#[test]
fn sorted_pairs() {
    run("cub", |s| {
        let keys = noise(1, 2 * TILE, |n| (n.below(41) as f32 - 20.0) * 0.25);
        let values: Vec<u32> = (0..2 * TILE as u32).collect();
        let (dk, dv) = (s.upload(&keys), s.upload(&values));
        s.launch("sort_tiles", line(2, 64), &args![dk, dv])?;
        let mut order: Vec<usize> = (0..2 * TILE).collect();
        order.chunks_mut(TILE).for_each(|tile| tile.sort_by(|&a, &b| keys[a].total_cmp(&keys[b])));
        same("keys", &s.download::<f32>(dk, 2 * TILE), &order.iter().map(|&at| keys[at]).collect::<Vec<_>>())?;
        same("values", &s.download::<u32>(dv, 2 * TILE), &order.iter().map(|&at| values[at]).collect::<Vec<_>>())
    });
}

#[test]
fn counted_bytes() {
    run("cub", |s| {
        let bytes = noise(2, 3 * TILE, |n| (n.below(16) * n.below(16)) as u8);
        let (db, counts) = (s.upload(&bytes), s.alloc::<u32>(3 * 256));
        s.launch("count_bytes", line(3, 64), &args![db, counts])?;
        let mut want = vec![0; 3 * 256];
        bytes.iter().enumerate().for_each(|(at, &byte)| want[at / TILE * 256 + usize::from(byte)] += 1);
        same("counts", &s.download::<u32>(counts, 3 * 256), &want)
    });
}

/// Blocks wait for what the blocks before them have published, in whatever order they start.
fn scan(s: &mut Session, n: usize) -> Outcome {
    let x = noise(3, n, |noise| noise.below(2001) as i32 - 1000);
    let tiles = n.div_ceil(TILE);
    let (dx, out, state) = (s.upload(&x), s.alloc::<i32>(n), s.alloc::<u64>(tiles + 32));
    s.launch("scan_begin", line((tiles + 32).div_ceil(64), 64), &args![state, tiles as i32])?;
    s.launch("scan_tiles", line(tiles, 64), &args![dx, out, n as i32, state, tiles as i32])?;
    let sums = x.iter().scan(0, |sum, x| {
        *sum += x;
        Some(*sum)
    });
    same("sums", &s.download::<i32>(out, n), &sums.collect::<Vec<i32>>())
}

#[test]
fn sums_that_look_back() {
    run("cub", |s| scan(s, 17));
    run("cub", |s| scan(s, 40 * TILE - 5));
}

pub fn warp_sorts(s: &mut Session) -> Outcome {
    let keys = noise(4, 2 * TILE, |n| n.below(500) as i32 - 250);
    let dk = s.upload(&keys);
    s.launch("sort_warps", line(2, 64), &args![dk])?;
    let mut want = keys;
    want.chunks_mut(96).for_each(|keys| keys.sort_unstable());
    same("keys", &s.download::<i32>(dk, want.len()), &want)
}

pub fn long_scan(s: &mut Session) -> Outcome {
    scan(s, 3 * TILE - 5)
}

#[test]
fn keys_of_each_warp() {
    run("cub", warp_sorts);
}
