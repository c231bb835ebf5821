// Eight-bit floats on sm_89: conversions of the header, and the tensor cores.
#include <cstdint>
#include <cuda_fp8.h>

// Pairs of floats to e4m3 and e5m2 and back to halves.
extern "C" __global__ void fp8_round_trip(uint16_t* e4m3, uint16_t* e5m2, __half2* back, const float2* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  e4m3[i] = __nv_cvt_float2_to_fp8x2(x[i], __NV_SATFINITE, __NV_E4M3);
  e5m2[i] = __nv_cvt_float2_to_fp8x2(x[i], __NV_SATFINITE, __NV_E5M2);
  const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(e4m3[i], __NV_E4M3);
  back[i] = raw;
}

// d[16][8] = a[16][32] b[8][32], one warp.
extern "C" __global__ void __launch_bounds__(32)
    fp8_mma(float* d, const uint32_t* a, const uint32_t* b, float* d_mixed) {
  const int row = threadIdx.x / 4, col = threadIdx.x % 4;
  uint32_t ra[4] = {a[row * 8 + col], a[(row + 8) * 8 + col], a[row * 8 + col + 4], a[(row + 8) * 8 + col + 4]};
  uint32_t rb[2] = {b[row * 8 + col], b[row * 8 + col + 4]};
  float s[4] = {}, t[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
      : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(t[0]), "+f"(t[1]), "+f"(t[2]), "+f"(t[3])
      : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  for (int e = 0; e < 4; e++) {
    d[(row + e / 2 * 8) * 8 + col * 2 + e % 2] = s[e];
    d_mixed[(row + e / 2 * 8) * 8 + col * 2 + e % 2] = t[e];
  }
}
