// Threads that wait for one another: named barriers, the whole grid, locks, flags between blocks.
#include <cooperative_groups.h>
#include <cstdint>
#include <cuda/barrier>

namespace cg = cooperative_groups;

// Two warps fill a buffer of 64 for two others, `rounds` times, over the named barriers 1 (full) and 2 (empty).
extern "C" __global__ void __launch_bounds__(128) named_barriers(int* out, const int* in, int rounds) {
  __shared__ int buffer[64];
  const int t = threadIdx.x % 64;
  if (threadIdx.x < 64) {
#pragma unroll 1
    for (int i = 0; i < rounds; i++) {
      if (i > 0) asm volatile("bar.sync 2, 128;" ::: "memory");
      buffer[t] = in[i * 64 + t];
      asm volatile("bar.arrive 1, 128;" ::: "memory");
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < rounds; i++) {
      asm volatile("bar.sync 1, 128;" ::: "memory");
      out[i * 64 + t] = buffer[63 - t] * 2;
      if (i + 1 < rounds) asm volatile("bar.arrive 2, 128;" ::: "memory");
    }
  }
}

// x[i] = x[i - 1] + x[i] + x[i + 1] `rounds` times over a ring, with a barrier of the whole grid after each.
extern "C" __global__ void grid_stencil(int* a, int* b, int n, int rounds) {
  cg::grid_group grid = cg::this_grid();
  for (int round = 0; round < rounds; round++) {
    const int* from = round % 2 ? b : a;
    int* to = round % 2 ? a : b;
    for (int i = grid.thread_rank(); i < n; i += grid.size())
      to[i] = from[(i + n - 1) % n] + from[i] + from[(i + 1) % n];
    grid.sync();
  }
}

// A chain over the blocks: each waits for its left neighbour's running sum, as a decoupled scan does. Blocks take
// their numbers from `next`, so that the one before has always started.
extern "C" __global__ void chained_scan(int* out, const int* in, volatile int* sums, int* flags, int* next) {
  __shared__ int number, before;
  if (threadIdx.x == 0) number = atomicAdd(next, 1);
  __syncthreads();
  int value = in[number * 32 + threadIdx.x];
  for (int delta = 1; delta < 32; delta *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, value, delta);
    if (threadIdx.x >= delta) value += other;
  }
  if (threadIdx.x == 31) {
    int sum = 0;
    if (number > 0) {
      while (atomicAdd(&flags[number - 1], 0) == 0) __nanosleep(20);
      __threadfence();
      sum = sums[number - 1];
    }
    before = sum;
    sums[number] = sum + value;
    __threadfence();
    atomicExch(&flags[number], 1);
  }
  __syncthreads();
  out[number * 32 + threadIdx.x] = before + value;
}

// A spin lock around a plain read and write, taken by one lane of each warp.
extern "C" __global__ void spin_lock(int* lock, int* value, int rounds) {
  for (int i = 0; i < rounds; i++) {
    if (threadIdx.x % 32 == 0) {
      while (atomicCAS(lock, 0, 1) != 0) {
      }
      __threadfence();
      *reinterpret_cast<volatile int*>(value) = *reinterpret_cast<volatile int*>(value) + 1;
      __threadfence();
      atomicExch(lock, 0);
    }
    __syncwarp();
  }
}

// Copies through shared memory with cuda::barrier and memcpy_async (mbarrier and cp.async).
extern "C" __global__ void __launch_bounds__(64) barrier_copy(int4* out, const int4* in, int rounds) {
  using Barrier = cuda::barrier<cuda::thread_scope_block>;
#pragma nv_diag_suppress static_var_with_dynamic_init
  __shared__ Barrier barrier;
  __shared__ int4 buffer[64];
  if (threadIdx.x == 0) init(&barrier, blockDim.x);
  __syncthreads();
  for (int i = 0; i < rounds; i++) {
    const size_t place = (size_t(blockIdx.x) * rounds + i) * 64;
    cuda::memcpy_async(&buffer[threadIdx.x], in + place + threadIdx.x, cuda::aligned_size_t<16>(16), barrier);
    barrier.arrive_and_wait();
    out[place + threadIdx.x] = buffer[63 - threadIdx.x];
    barrier.arrive_and_wait();
  }
}

// Votes that a barrier carries: the number of threads above the limit, whether all, whether any.
extern "C" __global__ void barrier_votes(int* out, const int* in, int limit) {
  const int above = in[blockIdx.x * blockDim.x + threadIdx.x] > limit;
  const int count = __syncthreads_count(above);
  const int all = __syncthreads_and(above);
  const int any = __syncthreads_or(above);
  if (threadIdx.x == 0) {
    out[blockIdx.x * 3] = count;
    out[blockIdx.x * 3 + 1] = all != 0;
    out[blockIdx.x * 3 + 2] = any != 0;
  }
}
