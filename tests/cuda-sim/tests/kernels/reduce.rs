use half::f16;

use crate::args;
use crate::harness::{Outcome, Session, expect, line, run};
use crate::numbers::{Noise, close, f32s, noise, same, wide};

pub fn rmsnorm(s: &mut Session) -> Outcome {
    let (rows, cols) = (3, 200);
    let (x, weight) = (f32s(1, rows * cols), f32s(2, cols));
    let (dx, dw, y) = (s.upload(&x), s.upload(&weight), s.alloc::<f32>(rows * cols));
    s.launch("rmsnorm", line(rows, 96), &args![y, dx, dw, cols as i32, 1e-5f32])?;
    let x = wide(&x);
    let scale = |r: usize| (x[r * cols..][..cols].iter().map(|v| v * v).sum::<f64>() / cols as f64 + 1e-5).sqrt();
    let want: Vec<f64> = (0..rows * cols).map(|i| x[i] / scale(i / cols) * f64::from(weight[i % cols])).collect();
    close("y", &s.download::<f32>(y, rows * cols), &want, 1e-6, 1e-5)
}

pub fn softmax(s: &mut Session) -> Outcome {
    let (rows, cols) = (2, 300);
    let x = noise(1, rows * cols, |n| n.unit() * 10.0);
    let dx = s.upload(&x);
    s.launch("softmax", line(rows, 128), &args![dx, cols as i32])?;
    let mut want = Vec::new();
    for row in wide(&x).chunks(cols) {
        let total: f64 = row.iter().map(|v| v.exp()).sum();
        want.extend(row.iter().map(|v| v.exp() / total));
    }
    close("x", &s.download::<f32>(dx, rows * cols), &want, 1e-9, 2e-5)
}

pub fn argmax(s: &mut Session) -> Outcome {
    let mut x = noise(1, 1000, |n| n.unit() * 4.0);
    for at in [777, 333, 901] {
        x[at] = 4.5;
    }
    let (dx, best) = (s.upload(&x), s.zeros::<u64>(1));
    s.launch("argmax", line(3, 128), &args![best, dx, 1000])?;
    same("index", &[!(s.download::<u64>(best, 1)[0] as u32)], &[333])?;

    // All negative: the order of the bits is the other way.
    let x: Vec<f32> = x.iter().map(|v| -v.abs() - 0.125).collect();
    let want = (0..1000).max_by(|&a, &b| x[a].total_cmp(&x[b]).then(b.cmp(&a))).expect("not empty") as u32;
    let (dx, best) = (s.upload(&x), s.zeros::<u64>(1));
    s.launch("argmax", line(2, 64), &args![best, dx, 1000])?;
    same("index", &[!(s.download::<u64>(best, 1)[0] as u32)], &[want])
}

pub fn sum_last_block(s: &mut Session) -> Outcome {
    let (n, blocks) = (5000, 7);
    let x = f32s(1, n);
    let (dx, out, parts, ticket) = (s.upload(&x), s.alloc::<f32>(1), s.alloc::<f32>(blocks), s.zeros::<u32>(1));
    for _ in 0..2 {
        s.launch("sum_last_block", line(blocks, 128), &args![out, parts, ticket, dx, n as i32])?;
        close("sum", &s.download::<f32>(out, 1), &[wide(&x).iter().sum()], 1e-3, 1e-6)?;
        same("ticket", &s.download::<u32>(ticket, 1), &[0])?;
    }
    Ok(())
}

pub fn histogram(s: &mut Session) -> Outcome {
    let n = 3000;
    let data = noise(1, n, |n| (n.below(16) * n.below(16)) as u8);
    let (dd, counts) = (s.upload(&data), s.zeros::<u32>(256));
    s.launch("histogram", line(4, 96), &args![counts, dd, n as i32])?;
    let mut want = [0; 256];
    data.iter().for_each(|&d| want[usize::from(d)] += 1);
    same("counts", &s.download::<u32>(counts, 256), &want)
}

pub fn scan(s: &mut Session) -> Outcome {
    for (n, threads) in [(1000, 1024), (70, 96), (1, 32)] {
        let x = noise(1, n, |n| n.bits() as i32 >> 16);
        let (dx, out) = (s.upload(&x), s.alloc::<i32>(n));
        s.launch("scan", line(1, threads), &args![out, dx, n as i32])?;
        let sums = x.iter().scan(0, |sum, v| {
            *sum += v;
            Some(*sum)
        });
        same("sums", &s.download::<i32>(out, n), &sums.collect::<Vec<i32>>())?;
    }
    Ok(())
}

pub fn compact(s: &mut Session) -> Outcome {
    let n = 500;
    let x = noise(1, n, |n| n.below(100) as i32);
    let mut want: Vec<i32> = x.iter().copied().filter(|&v| v > 60).collect();
    want.sort_unstable();
    let (dx, out, count) = (s.upload(&x), s.alloc::<i32>(want.len()), s.zeros::<u32>(1));
    s.launch("compact", line(4, 128), &args![out, count, dx, n as i32, 60])?;
    same("count", &s.download::<u32>(count, 1), &[want.len() as u32])?;
    let mut got = s.download_unordered::<i32>(out, want.len());
    got.sort_unstable();
    same("kept", &got, &want)
}

pub fn scatter_add(s: &mut Session) -> Outcome {
    // Small whole numbers: their sums are exact in every order.
    let (n, cells) = (400, 10);
    let mut noise = Noise::new(1);
    let index: Vec<i32> = (0..n).map(|_| noise.below(cells as u32) as i32).collect();
    let values: Vec<f32> = (0..n).map(|_| noise.below(9) as f32 - 4.0).collect();
    let (di, dv) = (s.upload(&index), s.upload(&values));
    let (sums, pairs) = (s.zeros::<f32>(cells), s.zeros::<f16>(2 * cells));
    s.launch("scatter_add", line(4, 128), &args![sums, pairs, di, dv, n])?;
    let mut want = vec![[0.0; 2]; cells];
    for (i, v) in index.iter().zip(&values) {
        want[*i as usize][0] += f64::from(*v);
        want[*i as usize][1] += 1.0;
    }
    close("pairs", &s.download::<f16>(pairs, 2 * cells), want.as_flattened(), 0.0, 0.0)?;
    close("sums", &s.download::<f32>(sums, cells), &want.iter().map(|w| w[0]).collect::<Vec<f64>>(), 0.0, 0.0)?;
    expect(want.iter().all(|w| w[1] > 8.0), || "the cells are hit too seldom to test anything".into())
}

#[test]
fn over_a_block() {
    run("reduce", rmsnorm);
    run("reduce", softmax);
    run("reduce", scan);
}

#[test]
fn over_the_grid() {
    run("reduce", argmax);
    run("reduce", sum_last_block);
}

#[test]
fn by_atomics() {
    run("reduce", histogram);
    run("reduce", compact);
    run("reduce", scatter_add);
}
