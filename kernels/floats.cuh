// Vectors of floats, and sums whose order the width of a row alone fixes.
#pragma once
#include "common.cuh"

// N floats, loaded and stored at once.
template <int N>
struct alignas(4 * N) Floats {
  float v[N];
};

// The sum over a warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

// The sum over a block of whole warps, the same bits in every thread. `scratch` holds 32 floats, free again on return.
__device__ __forceinline__ float block_sum(float value, float *scratch) {
  value = warp_sum(value);
  if (blockDim.x <= 32) return value;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0.0f);
  __syncthreads();
  return value;
}

__device__ __forceinline__ float block_max(float value, float *scratch) {
  value = warp_max(value);
  if (blockDim.x <= 32) return value;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = warp_max(threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : -INFINITY);
  __syncthreads();
  return value;
}
