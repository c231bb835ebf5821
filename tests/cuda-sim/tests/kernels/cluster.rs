//! Clusters of blocks: distributed shared memory, remote arrivals, copies between blocks, multicast.

use half::bf16;

use super::hopper::{BF16, matrix_map};
use crate::args;
use crate::harness::{Outcome, Session, Shape, line, plane, run};
use crate::numbers::{bf16s, close, matmul, noise, same, wide};

pub fn exchange(s: &mut Session) -> Outcome {
    let x = noise(1, 6 * 64, |n| n.below(1000) as i32);
    let (dx, out, counts) = (s.upload(&x), s.alloc::<i32>(x.len()), s.alloc::<i32>(3));
    s.launch("exchange", line(6, 64), &args![dx, out, counts])?;
    let want: Vec<i32> = (0..x.len()).map(|i| x[i ^ 64] + 2000 + 100_000 * (1 - (i / 64 % 2) as i32)).collect();
    same("out", &s.download::<i32>(out, x.len()), &want)?;
    same("counts", &s.download::<i32>(counts, 3), &[128; 3])
}

pub fn histogram(s: &mut Session) -> Outcome {
    let x = noise(2, 3000, |n| n.below(64) as i32);
    let (dx, bins) = (s.upload(&x), s.zeros::<i32>(64));
    let shape = Shape { cluster: [4, 1, 1], ..line(8, 64).shared(64) };
    s.launch("spread_histogram", shape, &args![bins, 16i32, dx, x.len() as i32])?;
    let want: Vec<i32> = (0..64).map(|bin| x.iter().filter(|&&v| v == bin).count() as i32).collect();
    same("bins", &s.download::<i32>(bins, 64), &want)
}

pub fn sum(s: &mut Session) -> Outcome {
    let x = noise(3, 8 * 128, |n| n.below(1000) as i32);
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(2));
    s.launch("cluster_sum", line(8, 128), &args![dx, out])?;
    let want: Vec<i32> = x.chunks(512).map(|part| part.iter().sum()).collect();
    same("out", &s.download::<i32>(out, 2), &want)
}

pub fn inboxes(s: &mut Session) -> Outcome {
    let out = s.alloc::<i32>(8 * 12);
    s.launch("inboxes", plane(4, 2, 32), &args![out])?;
    let mut want = Vec::new();
    for block in 0..8 {
        // The rank in a cluster of two by two blocks, of a block of a grid of four by two.
        let rank = block % 2 + block / 4 * 2;
        want.extend((0..4).map(|sender| 10 * sender + rank));
        want.extend((0..4).map(|sender| 7 * sender + rank));
        want.extend((0..4).map(|sender| 100 * sender + sender));
    }
    same("out", &s.download::<i32>(out, want.len()), &want)
}

pub fn multicast(s: &mut Session) -> Outcome {
    let [m, n, k] = [200, 392, 328];
    let (a, b) = (bf16s(1, m * k), bf16s(2, n * k));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.zeros::<bf16>(m * n));
    let map = |address, rows, tile| matrix_map(address, (BF16, 2), rows, k, [64, tile], 3);
    let map_c = matrix_map(c, (BF16, 2), m, n, [64, 128], 3);
    let shape = plane(n.div_ceil(128), m.div_ceil(128), 384).shared(3 * 2 * 16384 + 32768 + 1024);
    s.launch("cute_multicast", shape, &args![map(da, m, 64), map(db, n, 128), map_c, k as i32])?;
    close("c", &s.download::<bf16>(c, m * n), &matmul(&wide(&a), &wide(&b), m, n, k), 1e-3, 1.0 / 256.0)
}

#[test]
fn distributed_shared_memory() {
    run("cluster", exchange);
    run("cluster", histogram);
    run("cluster", sum);
}

#[test]
fn values_that_blocks_send_each_other() {
    run("cluster", inboxes);
}

#[test]
fn wgmma_of_tiles_that_a_cluster_shares() {
    run("cute_cluster", multicast);
}
