// What the lanes of a warp do with each other through memory, which __syncwarp has to order.
#include <cstdint>

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

constexpr int kWarps = 4;

// The sum of 32 numbers of each warp by a tree: every lane reads its partner's sum, then all write their own.
extern "C" __global__ void __launch_bounds__(kWarps * 32) warp_sums(float* out, const float* in) {
  __shared__ float sums[kWarps][32];
  const int lane = threadIdx.x % 32;
  float* mine = sums[threadIdx.x / 32];
  mine[lane] = in[blockIdx.x * blockDim.x + threadIdx.x];
#pragma unroll 1
  for (int step = 16; step > 0; step >>= 1) {
    __syncwarp();
    const float sum = mine[lane] + mine[lane ^ step];
    __syncwarp();
    mine[lane] = sum;
  }
  __syncwarp();
  if (lane == 0) out[blockIdx.x * kWarps + threadIdx.x / 32] = mine[lane ^ 31];
}

// Transposes tiles of 32 by 32, a warp each, through memory of its own.
extern "C" __global__ void __launch_bounds__(kWarps * 32) warp_transpose(uint16_t* out, const uint16_t* in, int tiles) {
  __shared__ uint16_t all[kWarps][32][34];
  const int lane = threadIdx.x % 32;
  auto& tile = all[threadIdx.x / 32];
#pragma unroll 1
  for (int t = threadIdx.x / 32; t < tiles; t += kWarps) {
    for (int row = 0; row < 32; row++) tile[row][lane] = in[t * 1024 + row * 32 + lane];
    __syncwarp();
    for (int row = 0; row < 32; row++) out[t * 1024 + row * 32 + lane] = tile[lane][row];
    __syncwarp();
  }
}

// Reverses the lanes of rows of 16 bytes a lane, which a ring of two stages brings.
extern "C" __global__ void __launch_bounds__(32) warp_ring(int4* out, const int4* in, int rows) {
  __shared__ int4 ring[2][32];
  const int lane = threadIdx.x;
  auto load = [&](int row) {
    if (row < rows)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&ring[row % 2][lane])),
                   "l"(in + row * 32 + lane)
                   : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  load(0);
#pragma unroll 1
  for (int row = 0; row < rows; row++) {
    load(row + 1);
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    // The wait was for the lane's own copies alone.
    __syncwarp();
    out[row * 32 + lane] = ring[row % 2][31 - lane];
    __syncwarp();
  }
}

// Each half of a warp works for itself, then both together.
extern "C" __global__ void __launch_bounds__(32) half_warps(int* out, const int* in) {
  __shared__ int data[32];
  const int lane = threadIdx.x;
  int value = in[lane];
  if (lane < 16) {
    data[lane] = value * 3;
    __syncwarp(0x0000ffff);
    value = data[lane ^ 5] + 1;
    __syncwarp(0x0000ffff);
  } else {
    data[lane] = value * 5;
    __syncwarp(0xffff0000);
    value = data[lane ^ 9] - 1;
    __syncwarp(0xffff0000);
  }
  data[lane] = value;
  __syncwarp();
  out[lane] = data[31 - lane];
}

// Counts by atomics, which are read when all lanes have counted.
extern "C" __global__ void __launch_bounds__(32) warp_counts(unsigned* counts, const unsigned char* data, int n) {
  __shared__ unsigned bins[32];
  const int lane = threadIdx.x;
  bins[lane] = 0;
  __syncwarp();
  for (int i = lane; i < n; i += 32) atomicAdd(&bins[data[i] % 32], 1u);
  __syncwarp();
  counts[lane] = bins[lane ^ 1];
}

// Rows of 8x8 matrices that each lane writes, read as fragments, whose words go to other lanes.
extern "C" __global__ void __launch_bounds__(32) warp_matrix(uint32_t* out, const uint4* in) {
  __shared__ uint4 rows[32];
  const int lane = threadIdx.x;
  rows[lane] = in[lane];
  __syncwarp();
  uint32_t r[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(&rows[lane]))
               : "memory");
  for (int i = 0; i < 4; i++) out[i * 32 + lane] = r[i];
}

// Rows that all lanes write and one lane copies out.
extern "C" __global__ void __launch_bounds__(32) warp_stores(float* out, const float* in, int rows) {
  __shared__ __align__(16) float buffer[32];
  const int lane = threadIdx.x;
#pragma unroll 1
  for (int row = 0; row < rows; row++) {
    buffer[lane ^ 3] = in[row * 32 + lane] * 2;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (lane == 0) {
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 128;" ::"l"(out + row * 32),
                   "r"(shared_address(buffer))
                   : "memory");
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    }
    __syncwarp();
  }
}

// One warp fills two stages by bulk copies, the other reads them; of both, one lane speaks for all.
extern "C" __global__ void __launch_bounds__(64) one_lane_waits(int* out, const int* in, int rows) {
  __shared__ __align__(16) int stages[2][32];
  __shared__ uint64_t full[2], empty[2];
  const int lane = threadIdx.x % 32;
  auto wait = [](uint64_t* barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[i])));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&empty[i])));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    if (lane != 0) return;
#pragma unroll 1
    for (int row = 0; row < rows; row++) {
      const int stage = row % 2;
      wait(&empty[stage], row / 2 % 2 ^ 1);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 128;" ::"r"(shared_address(&full[stage]))
                   : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 128, [%2];" ::"r"(
              shared_address(stages[stage])),
          "l"(in + row * 32), "r"(shared_address(&full[stage]))
          : "memory");
    }
    return;
  }
#pragma unroll 1
  for (int row = 0; row < rows; row++) {
    const int stage = row % 2;
    if (lane == 0) wait(&full[stage], row / 2 % 2);
    __syncwarp();
    out[row * 32 + lane] = stages[stage][31 - lane];
    __syncwarp();
    if (lane == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&empty[stage])) : "memory");
  }
}

// Reverses rows by way of a buffer in global memory, of which each half of the warp has its own part.
extern "C" __global__ void __launch_bounds__(32) warp_exchange(int* out, const int* in, int* buffer, int rows) {
  const int lane = threadIdx.x;
  const unsigned half = lane < 16 ? 0x0000ffff : 0xffff0000;
#pragma unroll 1
  for (int row = 0; row < rows; row++) {
    buffer[lane] = in[row * 32 + lane];
    __syncwarp(half);
    out[row * 32 + lane] = buffer[lane ^ 15];
    __syncwarp(half);
  }
}

// Lists the odd numbers in global memory, in places that atomics give, and gives every lane their sum.
extern "C" __global__ void __launch_bounds__(32) warp_list(int* out, const int* in, int* list, int* count) {
  const int lane = threadIdx.x;
  if (in[lane] % 2 != 0) list[atomicAdd(count, 1)] = in[lane];
  __syncwarp();
  int sum = 0;
  for (int i = *count - 1; i >= 0; i--) sum += list[i];
  out[lane] = sum;
}
