// Matrix-vector products that read the weights once: one warp per row, 16-byte loads, a butterfly at the end.
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Two bf16 values of a word: widening is a shift, so no conversion instruction is needed.
__device__ __forceinline__ float low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ float dot8(uint4 w, uint4 x, float sum) {
  sum = fmaf(low(w.x), low(x.x), sum);
  sum = fmaf(high(w.x), high(x.x), sum);
  sum = fmaf(low(w.y), low(x.y), sum);
  sum = fmaf(high(w.y), high(x.y), sum);
  sum = fmaf(low(w.z), low(x.z), sum);
  sum = fmaf(high(w.z), high(x.z), sum);
  sum = fmaf(low(w.w), low(x.w), sum);
  return fmaf(high(w.w), high(x.w), sum);
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int delta = 16; delta > 0; delta >>= 1) value += __shfl_xor_sync(0xffffffffu, value, delta);
  return value;
}

// y[rows] = w[rows][cols] x[cols]; cols is a multiple of 8.
extern "C" __global__ void gemv_bf16(float* __restrict__ y, const __nv_bfloat16* __restrict__ w,
                                     const __nv_bfloat16* __restrict__ x, int rows, int cols) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  const uint4* wr = reinterpret_cast<const uint4*>(w + size_t(row) * cols);
  const uint4* xr = reinterpret_cast<const uint4*>(x);
  float sum = 0.0f;
  for (int i = lane; i < cols / 8; i += 32) sum = dot8(__ldg(wr + i), __ldg(xr + i), sum);
  sum = warp_sum(sum);
  if (lane == 0) y[row] = sum;
}

// The same in f32 with x kept in shared memory by the block.
extern "C" __global__ void gemv_f32_shared(float* __restrict__ y, const float* __restrict__ w,
                                           const float* __restrict__ x, int rows, int cols) {
  extern __shared__ float4 xs[];
  for (int i = threadIdx.x; i < cols / 4; i += blockDim.x) xs[i] = reinterpret_cast<const float4*>(x)[i];
  __syncthreads();
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  const float4* wr = reinterpret_cast<const float4*>(w + size_t(row) * cols);
  float sum = 0.0f;
#pragma unroll 2
  for (int i = lane; i < cols / 4; i += 32) {
    const float4 a = __ldcs(wr + i);
    const float4 b = xs[i];
    sum = fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
  }
  sum = warp_sum(sum);
  if (lane == 0) y[row] = sum;
}

// Signed 8-bit weights with a scale per row against 8-bit activations: dp4a.
extern "C" __global__ void gemv_s8(float* __restrict__ y, const int8_t* __restrict__ w, const float* __restrict__ scale,
                                   const int8_t* __restrict__ x, float x_scale, int rows, int cols) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  const int4* wr = reinterpret_cast<const int4*>(w + size_t(row) * cols);
  const int4* xr = reinterpret_cast<const int4*>(x);
  int sum = 0;
  for (int i = lane; i < cols / 16; i += 32) {
    const int4 a = __ldg(wr + i), b = __ldg(xr + i);
    sum = __dp4a(a.x, b.x, __dp4a(a.y, b.y, __dp4a(a.z, b.z, __dp4a(a.w, b.w, sum))));
  }
  sum = __reduce_add_sync(0xffffffffu, sum);
  if (lane == 0) y[row] = float(sum) * scale[row] * x_scale;
}

// Unsigned 4-bit weights with zero point 8 and a bf16 scale per group of 64 columns. Two nibbles at a time become
// bf16 pairs by placing them in the mantissa of 128 (0x4300), whose unit in the last place is one.
extern "C" __global__ void gemv_u4(float* __restrict__ y, const uint32_t* __restrict__ w,
                                   const __nv_bfloat16* __restrict__ scale, const __nv_bfloat162* __restrict__ x,
                                   int rows, int cols) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  const __nv_bfloat162 offset = __floats2bfloat162_rn(136.0f, 136.0f);
  float sum = 0.0f;
  for (int i = lane; i < cols / 8; i += 32) {
    const uint32_t word = __ldg(w + size_t(row) * (cols / 8) + i);
    const __nv_bfloat162 s = __bfloat162bfloat162(scale[size_t(row) * (cols / 64) + i / 8]);
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
      // Nibbles `pair` and `pair + 4` are the weights of columns 2 pair and 2 pair + 1.
      uint32_t bits;
      asm("lop3.b32 %0, %1, 0x000f000f, 0x43004300, 0xea;" : "=r"(bits) : "r"(word >> (4 * pair)));
      __nv_bfloat162 value = __hmul2(__hsub2(reinterpret_cast<__nv_bfloat162&>(bits), offset), s);
      const float2 a = __bfloat1622float2(value), b = __bfloat1622float2(x[i * 4 + pair]);
      sum = fmaf(a.x, b.x, fmaf(a.y, b.y, sum));
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) y[row] = sum;
}

// f16 weights and activations, products of pairs added in f16x2 over 8 columns, then in f32.
extern "C" __global__ void gemv_f16(__half* __restrict__ y, const __half2* __restrict__ w,
                                    const __half2* __restrict__ x, int rows, int cols) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  float sum = 0.0f;
  for (int i = lane; i < cols / 8; i += 32) {
    __half2 part = __float2half2_rn(0.0f);
#pragma unroll
    for (int j = 0; j < 4; j++) part = __hfma2(w[size_t(row) * (cols / 2) + i * 4 + j], x[i * 4 + j], part);
    sum += __low2float(part) + __high2float(part);
  }
  sum = warp_sum(sum);
  if (lane == 0) y[row] = __float2half_rn(sum);
}
