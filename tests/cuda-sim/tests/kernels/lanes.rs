use crate::args;
use crate::harness::{Outcome, Session, Shape, line, run};
use crate::numbers::{noise, same};

/// What one lane of `lanes` writes, by the meaning of each intrinsic.
fn row(values: &[i32], lane: usize) -> [i32; 16] {
    let v = values[lane];
    let among = |pick: &dyn Fn(usize) -> bool| (0..32).filter(|&l| pick(l)).fold(0u32, |m, l| m | 1 << l) as i32;
    let some: Vec<usize> = (0..32).filter(|l| l % 3 == 1).collect();
    let mut out = [
        values[(lane * 7 + 3) % 32],
        values[lane / 8 * 8 + lane % 8],
        if lane % 16 >= 3 { values[lane - 3] } else { v },
        if lane % 8 + 5 < 8 { values[lane + 5] } else { v },
        values[lane ^ 9],
        among(&|l| values[l] & 1 != 0),
        i32::from(values.iter().all(|&x| x >= 0)) | i32::from(values.iter().any(|&x| x > 90)) << 1,
        among(&|l| values[l] % 4 == v % 4),
        0,
        0,
        values.iter().sum(),
        values.iter().map(|x| x - 50).min().expect("32 lanes"),
        values.iter().fold(0, |a, b| a ^ b),
        -1,
        -1,
        -1,
    ];
    if values.iter().all(|x| x / 1000 == v / 1000) {
        (out[8], out[9]) = (-1, 1);
    }
    if lane % 3 == 1 {
        out[13] = among(&|l| l % 3 == 1);
        out[14] = some.iter().map(|&l| values[l]).max().expect("some lanes");
        out[15] = values[4];
    }
    out
}

pub fn lanes(s: &mut Session) -> Outcome {
    let mut x = noise(1, 128, |n| n.below(100) as i32);
    x[40] = 2000;
    let (dx, out) = (s.upload(&x), s.alloc::<i32>(128 * 16));
    s.launch("lanes", line(1, 128), &args![out, dx])?;
    let want: Vec<i32> = x.chunks(32).flat_map(|warp| (0..32).flat_map(|lane| row(warp, lane))).collect();
    same("out", &s.download::<i32>(out, want.len()), &want)
}

pub fn wide_lanes(s: &mut Session) -> Outcome {
    let x = noise(1, 64, |n| i64::from(n.bits()) << 31);
    let (dx, out) = (s.upload(&x), s.alloc::<i64>(64));
    s.launch("wide_lanes", line(1, 64), &args![out, dx])?;
    let want: Vec<i64> = (0..64).map(|i| x[i / 32 * 32..=i].iter().fold(0i64, |a, &b| a.wrapping_add(b))).collect();
    same("out", &s.download::<i64>(out, 64), &want)
}

pub fn bitonic_sort(s: &mut Session) -> Outcome {
    let x = noise(1, 2048, |n| n.bits() >> 3);
    let dx = s.upload(&x);
    s.launch("bitonic_sort", line(2, 512), &args![dx])?;
    let mut want = x;
    want.chunks_mut(1024).for_each(<[u32]>::sort_unstable);
    same("keys", &s.download::<u32>(dx, 2048), &want)
}

pub fn transpose(s: &mut Session) -> Outcome {
    let (rows, cols) = (45, 70);
    let x: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
    let (dx, y) = (s.upload(&x), s.alloc::<f32>(rows * cols));
    let shape = Shape { grid: [3, 2, 1], block: [32, 8, 1], ..Shape::default() };
    s.launch("transpose", shape, &args![y, dx, rows as i32, cols as i32])?;
    let want: Vec<f32> = (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect();
    same("y", &s.download::<f32>(y, rows * cols), &want)
}

#[test]
fn talk_to_each_other() {
    run("lanes", lanes);
    run("lanes", wide_lanes);
}

#[test]
fn share_memory() {
    run("lanes", bitonic_sort);
    run("lanes", transpose);
}
