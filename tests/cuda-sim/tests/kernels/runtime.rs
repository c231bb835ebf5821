//! What the compiler and the runtime put into kernels.

use crate::args;
use crate::harness::{line, run};
use crate::numbers::{noise, same};

#[test]
fn division_of_128_bits() {
    run("runtime", |s| {
        let mut x = noise(1, 128, |n| u64::from(n.bits()) << 32 | u64::from(n.bits()));
        // Divisors of every length, and quotients that need each correction.
        for i in 0..32 {
            let shift = 4 * i as u32;
            let divisor = (u128::from(x[4 * i + 2]) << 64 | u128::from(x[4 * i + 3])) >> shift.min(127) | 1;
            (x[4 * i + 2], x[4 * i + 3]) = ((divisor >> 64) as u64, divisor as u64);
        }
        let (dx, out) = (s.upload(&x), s.alloc::<u64>(128));
        s.launch("divide_wide", line(1, 32), &args![dx, out])?;
        let join = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let mut want = Vec::new();
        for x in x.chunks(4) {
            let (a, b) = (join(x[0], x[1]), join(x[2], x[3]));
            want.extend([((a / b) >> 64) as u64, (a / b) as u64, ((a % b) >> 64) as u64, (a % b) as u64]);
        }
        same("quotients and rests", &s.download::<u64>(out, 128), &want)
    });
}

#[test]
fn virtual_functions_on_the_heap() {
    run("runtime", |s| {
        let out = s.alloc::<i32>(32);
        s.launch("shapes", line(1, 32), &args![out])?;
        let area = |i: i32| if i % 2 != 0 { i * i } else { i * (i - 1) / 2 };
        same("areas", &s.download::<i32>(out, 32), &(0..32).map(|i| 3 * area(i)).collect::<Vec<_>>())
    });
}

#[test]
fn reserved_shared_memory() {
    run("runtime", |s| {
        let x = noise(1, 256, |n| n.below(100) as i32);
        let (dx, out) = (s.upload(&x), s.alloc::<i32>(256));
        s.launch("tile_sums", line(1, 256), &args![dx, out])?;
        let want: Vec<i32> = x.chunks(128).flat_map(|part| [part.iter().sum(); 128]).collect();
        same("sums", &s.download::<i32>(out, 256), &want)
    });
}
