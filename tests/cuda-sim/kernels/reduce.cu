// Reductions over warps, blocks and the grid: what decoding needs of them (norms, softmax, argmax, split-K, counts).
#include <cfloat>
#include <cstdint>
#include <cuda_fp16.h>

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int delta = 16; delta > 0; delta >>= 1) value += __shfl_xor_sync(0xffffffffu, value, delta);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int delta = 16; delta > 0; delta >>= 1) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, delta));
  return value;
}

// The sum over the block, in every thread. `scratch` has a place for each warp; a second use needs the barrier first.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  value = warp_sum(value);
  __syncthreads();
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  float total = 0.0f;
  for (int w = 0; w < blockDim.x / 32; w++) total += scratch[w];
  return total;
}

__device__ __forceinline__ float block_max(float value, float* scratch) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  value = warp_max(value);
  __syncthreads();
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  float total = -INFINITY;
  for (int w = 0; w < blockDim.x / 32; w++) total = fmaxf(total, scratch[w]);
  return total;
}

// y = x / rms(x) * weight, a row per block.
extern "C" __global__ void rmsnorm(float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ weight,
                                   int cols, float eps) {
  __shared__ float scratch[32];
  const float* row = x + size_t(blockIdx.x) * cols;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < cols; i += blockDim.x) squares = fmaf(row[i], row[i], squares);
  const float scale = rsqrtf(block_sum(squares, scratch) / cols + eps);
  for (int i = threadIdx.x; i < cols; i += blockDim.x) y[size_t(blockIdx.x) * cols + i] = row[i] * scale * weight[i];
}

// Softmax of each row in place, a row per block.
extern "C" __global__ void softmax(float* x, int cols) {
  __shared__ float scratch[32];
  float* row = x + size_t(blockIdx.x) * cols;
  float top = -INFINITY;
  for (int i = threadIdx.x; i < cols; i += blockDim.x) top = fmaxf(top, row[i]);
  top = block_max(top, scratch);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < cols; i += blockDim.x) {
    const float e = expf(row[i] - top);
    row[i] = e;
    sum += e;
  }
  sum = block_sum(sum, scratch);
  for (int i = threadIdx.x; i < cols; i += blockDim.x) row[i] /= sum;
}

// Index of the largest value over the grid; the smaller index wins a tie. `best` starts at zero.
extern "C" __global__ void argmax(unsigned long long* best, const float* __restrict__ x, int n) {
  unsigned long long mine = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    const uint32_t bits = __float_as_uint(x[i]);
    // Order the floats as unsigned integers: flip all bits of the negative ones, the sign of the others.
    const uint32_t key = bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
    const unsigned long long packed = (static_cast<unsigned long long>(key) << 32) | uint32_t(~i);
    mine = max(mine, packed);
  }
#pragma unroll
  for (int delta = 16; delta > 0; delta >>= 1) {
    const unsigned long long other = __shfl_down_sync(0xffffffffu, mine, delta);
    mine = max(mine, other);
  }
  if (threadIdx.x % 32 == 0) atomicMax(best, mine);
}

// Sum over the grid in a fixed order: each block writes its part, the last to finish adds them. `ticket` starts and
// ends at zero.
extern "C" __global__ void sum_last_block(float* out, float* parts, unsigned int* ticket, const float* __restrict__ x,
                                          int n) {
  __shared__ float scratch[32];
  __shared__ bool last;
  float sum = 0.0f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = sum;
    __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  float total = 0.0f;
  for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) total += __ldcg(parts + i);
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) *out = total;
}

// Counts of bytes: private counts in shared memory, added to the grid's at the end.
extern "C" __global__ void histogram(unsigned int* counts, const uint8_t* __restrict__ data, int n) {
  __shared__ unsigned int mine[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) mine[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&mine[data[i]], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x)
    if (mine[i]) atomicAdd(&counts[i], mine[i]);
}

// Inclusive prefix sums of up to 1024 integers by one block.
extern "C" __global__ void scan(int* __restrict__ out, const int* __restrict__ in, int n) {
  __shared__ int totals[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int value = threadIdx.x < n ? in[threadIdx.x] : 0;
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, value, delta);
    if (lane >= delta) value += other;
  }
  if (lane == 31) totals[warp] = value;
  __syncthreads();
  if (warp == 0) {
    int total = lane < blockDim.x / 32 ? totals[lane] : 0;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, total, delta);
      if (lane >= delta) total += other;
    }
    totals[lane] = total;
  }
  __syncthreads();
  if (warp > 0) value += totals[warp - 1];
  if (threadIdx.x < n) out[threadIdx.x] = value;
}

// Keeps the values above `limit` in any order: one atomic per warp that has some. `count` starts at zero.
extern "C" __global__ void compact(int* out, unsigned int* count, const int* __restrict__ in, int n, int limit) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int value = i < n ? in[i] : INT32_MIN;
  if (value > limit) {
    const uint32_t active = __activemask();
    const uint32_t below = active & ((1u << (threadIdx.x % 32)) - 1);
    const int leader = __ffs(active) - 1;
    unsigned int base = 0;
    if (threadIdx.x % 32 == leader) base = atomicAdd(count, __popc(active));
    base = __shfl_sync(active, base, leader);
    out[base + __popc(below)] = value;
  }
}

// c[cells] += values by the cells of `index` with float atomics: the order of the additions is not fixed.
extern "C" __global__ void scatter_add(float* cells, __half2* pairs, const int* __restrict__ index,
                                       const float* __restrict__ values, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(cells + index[i], values[i]);
  atomicAdd(pairs + index[i], __floats2half2_rn(values[i], 1.0f));
}
