//! Products of small matrices held in plain arrays.
//!
//! The tensor cores add the exact products in an order and with an alignment of their own; here each element is one
//! chain of fused multiply-adds in the order of k. What depends on the difference is not portable between GPUs either.

/// Rows of a warp's tile.
pub const ROWS: usize = 16;

/// `c[m][n] += sum over k of a[m][k] * b[k][n]`, for row-major `a` (16 rows of `depth`, or 8 if `c` has 8), `b` (`depth`
/// rows of `columns`) and `c` (rows of `columns`). `columns` is a multiple of 8.
#[inline(always)]
pub fn accumulate(a: &[f32], b: &[f32], c: &mut [f32], depth: usize, columns: usize) {
    let mut n = 0;
    while n + 16 <= columns {
        strip::<16>(a, b, c, depth, columns, n);
        n += 16;
    }
    if n < columns {
        strip::<8>(a, b, c, depth, columns, n);
    }
}

/// `W` columns from `n` on, four rows at a time.
#[inline(always)]
fn strip<const W: usize>(a: &[f32], b: &[f32], c: &mut [f32], depth: usize, columns: usize, n: usize) {
    for (a, c) in a.chunks_exact(4 * depth).zip(c.chunks_exact_mut(4 * columns)) {
        let mut sum = [[0f32; W]; 4];
        for (r, sum) in sum.iter_mut().enumerate() {
            sum.copy_from_slice(&c[r * columns + n..][..W]);
        }
        let (a0, rest) = a.split_at(depth);
        let (a1, rest) = rest.split_at(depth);
        let (a2, a3) = rest.split_at(depth);
        for (k, row) in b.chunks_exact(columns).take(depth).enumerate() {
            let row: &[f32; W] = row[n..].first_chunk().expect("the strip lies inside the row");
            for i in 0..W {
                sum[0][i] = a0[k].mul_add(row[i], sum[0][i]);
                sum[1][i] = a1[k].mul_add(row[i], sum[1][i]);
                sum[2][i] = a2[k].mul_add(row[i], sum[2][i]);
                sum[3][i] = a3[k].mul_add(row[i], sum[3][i]);
            }
        }
        for (r, sum) in sum.iter().enumerate() {
            c[r * columns + n..][..W].copy_from_slice(sum);
        }
    }
}

/// As [`accumulate`] for integers, with sums that wrap.
#[inline(always)]
pub fn accumulate_integers(a: &[i32], b: &[i32], c: &mut [i32], depth: usize, columns: usize) {
    for (a, c) in a.chunks_exact(depth).zip(c.chunks_exact_mut(columns)) {
        for (&x, row) in a.iter().zip(b.chunks_exact(columns)) {
            for (sum, &y) in c.iter_mut().zip(row) {
                *sum = sum.wrapping_add(x.wrapping_mul(y));
            }
        }
    }
}
