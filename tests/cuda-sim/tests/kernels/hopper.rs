use cudarc::driver::sys::{self, CUresult};
use half::bf16;

use crate::args;
use crate::harness::{Outcome, Session, expect, line, plane, run};
use crate::numbers::{bf16s, close, f32s, matmul, noise, same, wide};

pub use sys::CUtensorMapDataType_enum::{
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 as BF16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16 as F16,
    CU_TENSOR_MAP_DATA_TYPE_FLOAT32 as F32, CU_TENSOR_MAP_DATA_TYPE_UINT8 as U8,
};

/// An element's type and its bytes.
type Element = (sys::CUtensorMapDataType, u64);

/// The tensor map of a matrix with contiguous rows: `swizzle` 0 none, 1 to 3 for 32, 64 and 128 bytes.
pub fn matrix_map(address: u64, ty: Element, rows: usize, cols: usize, tile: [u32; 2], swizzle: usize) -> [u8; 128] {
    encode(address, ty.0, &[cols as u64, rows as u64], &[cols as u64 * ty.1], &tile, swizzle)
}

fn encode(
    address: u64,
    data_type: sys::CUtensorMapDataType,
    dims: &[u64],
    strides: &[u64],
    tile: &[u32],
    swizzle: usize,
) -> [u8; 128] {
    use sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as ZEROS;
    use sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE as PLAIN;
    use sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_NONE as NO_PROMOTION;
    use sys::CUtensorMapSwizzle_enum::*;
    let swizzles =
        [CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B];
    let ones = vec![1; dims.len()];
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let made = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            data_type,
            dims.len() as u32,
            address as *mut _,
            dims.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            ones.as_ptr(),
            PLAIN,
            swizzles[swizzle],
            NO_PROMOTION,
            ZEROS,
        )
    };
    assert_eq!(made, CUresult::CUDA_SUCCESS, "a map that the driver takes");
    let mut bytes = [0; 128];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(map.opaque) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A product by one of the wgmma kernels: both have the same arguments.
fn product(s: &mut Session, kernel: &str, shape: crate::harness::Shape, [m, n, k]: [usize; 3]) -> Outcome {
    let (a, b) = (bf16s(1, m * k), bf16s(2, n * k));
    let (da, db, c) = (s.upload(&a), s.upload(&b), s.alloc::<bf16>(m * n));
    let map = |address, rows| matrix_map(address, (BF16, 2), rows, k, [64, 64], 3);
    s.launch(kernel, shape, &args![c, map(da, m), map(db, n), m as i32, n as i32, k as i32])?;
    close("c", &s.download::<bf16>(c, m * n), &matmul(&wide(&a), &wide(&b), m, n, k), 1e-3, 1.0 / 256.0)
}

pub fn simple(s: &mut Session) -> Outcome {
    product(s, "wgmma_simple", plane(2, 2, 128), [100, 72, 136])
}

pub fn specialised(s: &mut Session) -> Outcome {
    product(s, "wgmma_specialised", line(2, 384).shared(4 * 3 * 8192), [200, 136, 328])
}

pub fn bulk_reverse(s: &mut Session) -> Outcome {
    let n = 2500;
    let x = f32s(1, n);
    let (dx, y) = (s.upload(&x), s.alloc::<f32>(n));
    s.launch("bulk_reverse", line(3, 128), &args![y, dx, n as i32])?;
    let want: Vec<f32> = x.chunks(1024).flat_map(|c| c.iter().rev().copied()).collect();
    same("y", &s.download::<f32>(y, n), &want)
}

pub fn bulk_add(s: &mut Session) -> Outcome {
    let blocks = 3;
    let x = noise(1, blocks * 1024, |n| n.below(100) as f32);
    let start = noise(2, 1024, |n| n.below(100) as f32);
    let (dx, sums) = (s.upload(&x), s.upload(&start));
    s.launch("bulk_add", line(blocks, 256), &args![sums, dx])?;
    let want: Vec<f32> = (0..1024).map(|i| start[i] + (0..blocks).map(|b| x[b * 1024 + i]).sum::<f32>()).collect();
    same("sums", &s.download::<f32>(sums, 1024), &want)
}

pub fn stmatrix(s: &mut Session) -> Outcome {
    let x = noise(1, 256, |n| n.bits() as u16);
    let (dx, y) = (s.upload(&x), s.alloc::<u16>(256));
    s.launch("stmatrix_transpose", line(1, 32), &args![y, dx])?;
    // A lane's register holds two neighbours of a row; stored transposed, they are neighbours of a column.
    let want: Vec<u16> = (0..256).map(|i| x[i / 64 * 64 + i % 8 * 8 + i / 8 % 8]).collect();
    same("y", &s.download::<u16>(y, 256), &want)
}

pub fn tensor_box(s: &mut Session) -> Outcome {
    let [nx, ny, nz] = [50_usize, 6, 3];
    // Rows of 56 floats, of which the tensor has 50.
    let x = noise(1, nz * ny * 56, |n| n.below(100) as f32);
    let dx = s.upload(&x);
    let map = encode(dx, F32, &[nx as u64, ny as u64, nz as u64], &[224, 224 * ny as u64], &[32, 4, 2], 0);
    for start in [[0, 0, 0], [-7, 4, 2], [30, -2, -1]] {
        let sums = s.alloc::<f32>(64);
        s.launch("tensor_box", line(2, 64), &args![sums, map, start[0], start[1], start[2]])?;
        let at = |c: usize| {
            let column = start[0] + c as i32;
            let inside = |place: i32, extent: usize| (0..extent as i32).contains(&place);
            let places = (0..8).map(|i| (start[1] + i % 4, start[2] + i / 4));
            let inner = places.filter(|&(y, z)| inside(column, nx) && inside(y, ny) && inside(z, nz));
            inner.map(|(y, z)| x[(z as usize * ny + y as usize) * 56 + column as usize]).sum::<f32>()
        };
        let want: Vec<f32> = (0..64).map(at).collect();
        expect(want.iter().any(|&v| v != 0.0), || "the box misses the tensor".into())?;
        same("sums", &s.download::<f32>(sums, 64), &want)?;
    }
    Ok(())
}

#[test]
fn wgmma() {
    run("hopper", simple);
}

#[test]
fn wgmma_with_specialised_warps() {
    run("hopper", specialised);
}

#[test]
fn bulk_copies() {
    run("hopper", bulk_reverse);
    run("hopper", bulk_add);
}

#[test]
fn boxes_that_leave_the_tensor() {
    run("hopper", tensor_box);
}

#[test]
fn matrices_stored_transposed() {
    run("hopper", stmatrix);
}
