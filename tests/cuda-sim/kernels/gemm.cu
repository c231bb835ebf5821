// c[m][n] = a[m][k] b[n][k] on the tensor cores of sm_80: a 64x64x32 tile per block of four warps, cp.async with two
// buffers, an xor swizzle, ldmatrix. Any m and n; k is a multiple of 8 (16-byte rows).
#include <cstdint>
#include <cuda_bf16.h>

constexpr int kTileM = 64, kTileN = 64, kTileK = 32, kThreads = 128;
constexpr int kChunks = kTileK / 8;  // 16-byte chunks in a row of a tile

// Rows of 64 bytes: two rows share the 128 bytes of all banks, so the chunk is permuted by half the row.
__device__ __forceinline__ int swizzle(int row, int chunk) { return row * kChunks + (chunk ^ (row / 2 % kChunks)); }

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Rows outside the matrix and columns past its end read as zero: a source size of 0 writes zeros only.
__device__ __forceinline__ void load_tile(uint4* tile, const __nv_bfloat16* matrix, int row0, int k0, int rows, int k) {
#pragma unroll
  for (int j = 0; j < kTileM * kChunks / kThreads; j++) {
    const int i = j * kThreads + threadIdx.x;
    const int row = i / kChunks, chunk = i % kChunks;
    const bool inside = row0 + row < rows && k0 + chunk * 8 < k;
    const __nv_bfloat16* from = inside ? matrix + size_t(row0 + row) * k + k0 + chunk * 8 : matrix;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(tile + swizzle(row, chunk))),
                 "l"(from), "r"(inside ? 16 : 0));
  }
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

extern "C" __global__ void __launch_bounds__(kThreads)
    gemm_bf16(__nv_bfloat16* __restrict__ c, const __nv_bfloat16* __restrict__ a, const __nv_bfloat16* __restrict__ b,
              int m, int n, int k) {
  __shared__ uint4 as[2][kTileM * kChunks];
  __shared__ uint4 bs[2][kTileN * kChunks];
  const int m0 = blockIdx.y * kTileM, n0 = blockIdx.x * kTileN;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;
  float sums[2][4][4] = {};

  const int steps = (k + kTileK - 1) / kTileK;
  load_tile(as[0], a, m0, 0, m, k);
  load_tile(bs[0], b, n0, 0, n, k);
  asm volatile("cp.async.commit_group;");
  for (int step = 0; step < steps; step++) {
    const int now = step & 1;
    if (step + 1 < steps) {
      load_tile(as[now ^ 1], a, m0, (step + 1) * kTileK, m, k);
      load_tile(bs[now ^ 1], b, n0, (step + 1) * kTileK, n, k);
      asm volatile("cp.async.commit_group;");
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < kChunks; kk += 2) {
      uint32_t af[2][4], bf[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++)
        ldmatrix_x4(af[i], as[now] + swizzle(warp_m + i * 16 + lane % 16, kk + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; j++)
        ldmatrix_x4(bf[j], bs[now] + swizzle(warp_n + j * 16 + lane % 8 + lane / 16 * 8, kk + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) mma(sums[i][j], af[i], bf[j / 2][j % 2 * 2], bf[j / 2][j % 2 * 2 + 1]);
    }
    __syncthreads();
  }

  // Lane l holds columns 2 (l % 4) and the next of rows l / 4 and l / 4 + 8.
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int row = m0 + warp_m + i * 16 + lane / 4 + e / 2 * 8;
        const int col = n0 + warp_n + j * 8 + lane % 4 * 2 + e % 2;
        if (row < m && col < n) c[size_t(row) * n + col] = __float2bfloat16(sums[i][j][e]);
      }
}
