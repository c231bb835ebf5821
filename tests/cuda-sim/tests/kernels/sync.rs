use crate::args;
use crate::harness::{Outcome, Session, Shape, line, run};
use crate::numbers::{noise, same};

pub fn named_barriers(s: &mut Session) -> Outcome {
    let rounds = 5;
    let x = noise(1, rounds * 64, |n| n.bits() as i32 >> 8);
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(rounds * 64));
    s.launch("named_barriers", line(1, 128), &args![out, dx, rounds as i32])?;
    let want: Vec<i32> = (0..rounds * 64).map(|i| x[i / 64 * 64 + 63 - i % 64] * 2).collect();
    same("out", &s.download::<i32>(out, want.len()), &want)
}

pub fn grid_stencil(s: &mut Session) -> Outcome {
    let (n, rounds) = (500, 4);
    let mut x = noise(1, n, |n| n.below(1000) as i32);
    let (a, b) = (s.upload(&x), s.alloc::<i32>(n));
    let shape = Shape { cooperative: true, ..line(6, 64) };
    s.launch("grid_stencil", shape, &args![a, b, n as i32, rounds])?;
    for _ in 0..rounds {
        x = (0..n).map(|i| x[(i + n - 1) % n].wrapping_add(x[i]).wrapping_add(x[(i + 1) % n])).collect();
    }
    same("a", &s.download::<i32>(a, n), &x)
}

pub fn chained_scan(s: &mut Session) -> Outcome {
    let blocks = 9;
    let x = noise(1, blocks * 32, |n| n.below(100) as i32);
    let (dx, out, sums) = (s.upload(&x), s.alloc::<i32>(blocks * 32), s.alloc::<i32>(blocks));
    let (flags, next) = (s.zeros::<i32>(blocks), s.zeros::<i32>(1));
    s.launch("chained_scan", line(blocks, 32), &args![out, dx, sums, flags, next])?;
    let want = x.iter().scan(0, |sum, v| {
        *sum += v;
        Some(*sum)
    });
    same("out", &s.download::<i32>(out, blocks * 32), &want.collect::<Vec<i32>>())
}

pub fn spin_lock(s: &mut Session) -> Outcome {
    let (lock, value) = (s.zeros::<i32>(1), s.zeros::<i32>(1));
    s.launch("spin_lock", line(3, 64), &args![lock, value, 7])?;
    same("value", &s.download::<i32>(value, 1), &[3 * 2 * 7])
}

pub fn barrier_copy(s: &mut Session) -> Outcome {
    let (blocks, rounds) = (2, 4);
    let count = blocks * rounds * 64 * 4;
    let x = noise(1, count, |n| n.bits() as i32);
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(count));
    s.launch("barrier_copy", line(blocks, 64), &args![out, dx, rounds as i32])?;
    let from = |i: usize| i / 256 * 256 + (63 - i % 256 / 4) * 4 + i % 4;
    same("out", &s.download::<i32>(out, count), &(0..count).map(|i| x[from(i)]).collect::<Vec<i32>>())
}

pub fn barrier_votes(s: &mut Session) -> Outcome {
    let (blocks, threads) = (4, 96);
    let mut x = noise(1, blocks * threads, |n| n.below(100) as i32);
    x[threads..2 * threads].fill(99);
    x[2 * threads..3 * threads].fill(0);
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(blocks * 3));
    s.launch("barrier_votes", line(blocks, threads as u32), &args![out, dx, 50])?;
    let votes = |block: &[i32]| {
        let count = block.iter().filter(|&&v| v > 50).count();
        [count as i32, i32::from(count == threads), i32::from(count > 0)]
    };
    same("out", &s.download::<i32>(out, blocks * 3), &x.chunks(threads).flat_map(votes).collect::<Vec<i32>>())
}

#[test]
fn inside_a_block() {
    run("sync", named_barriers);
    run("sync", barrier_copy);
    run("sync", barrier_votes);
}

#[test]
fn between_blocks() {
    run("sync", grid_stencil);
    run("sync", chained_scan);
    run("sync", spin_lock);
}
