// Hopper by hand: tensor maps, mbarriers, wgmma, bulk copies, stmatrix.
#include <cstdint>
#include <cuda.h>
#include <cuda_bf16.h>

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count));
}

__device__ __forceinline__ void barrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void tensor_load(void* to, const CUtensorMap* map, int x, int y, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(x), "r"(y), "r"(shared_address(barrier))
      : "memory");
}

// A K-major operand in rows of 128 bytes with the 128-byte swizzle: groups of eight rows are 1024 bytes apart.
__device__ __forceinline__ uint64_t descriptor(const void* p) {
  const uint64_t address = shared_address(p);
  return (address & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// d[64][64] += a[64][16] b[64][16]
__device__ __forceinline__ void wgmma(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b));
}

// Columns 2 (l % 4) + 8 j of rows l / 4 and l / 4 + 8 of the warp's sixteen.
__device__ __forceinline__ void store_tile(__nv_bfloat16* c, const float (&d)[32], int m, int n, int row0, int col0) {
  const int row = row0 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const int col = col0 + j * 8 + threadIdx.x % 4 * 2;
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (row + e / 2 * 8 < m && col + e % 2 < n)
        c[size_t(row + e / 2 * 8) * n + col + e % 2] = __float2bfloat16(d[j * 4 + e]);
  }
}

constexpr int kTile = 64, kTileBytes = kTile * kTile * 2;

// c[m][n] = a[m][k] b[n][k] with one warp group and one buffer; boxes of 64 columns and 64 rows, 128-byte swizzle.
extern "C" __global__ void __launch_bounds__(128)
    wgmma_simple(__nv_bfloat16* c, const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                 int m, int n, int k) {
  __shared__ __align__(1024) __nv_bfloat16 a[kTile * kTile];
  __shared__ __align__(1024) __nv_bfloat16 b[kTile * kTile];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    barrier_init(&full, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  float sums[32] = {};
  const int steps = (k + kTile - 1) / kTile;
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    if (threadIdx.x == 0) {
      barrier_expect(&full, 2 * kTileBytes);
      tensor_load(a, &map_a, step * kTile, blockIdx.y * kTile, &full);
      tensor_load(b, &map_b, step * kTile, blockIdx.x * kTile, &full);
    }
    barrier_wait(&full, step & 1);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < kTile / 16; kk++) wgmma(sums, descriptor(a + kk * 16), descriptor(b + kk * 16));
    wgmma_commit();
    wgmma_wait<0>();
    __syncthreads();
  }
  store_tile(c, sums, m, n, blockIdx.y * kTile, blockIdx.x * kTile);
}

// The same, persistent: one warp group copies into a ring of four stages, two multiply 64 rows each.
extern "C" __global__ void __launch_bounds__(384)
    wgmma_specialised(__nv_bfloat16* c, const __grid_constant__ CUtensorMap map_a,
                      const __grid_constant__ CUtensorMap map_b, int m, int n, int k) {
  constexpr int kStages = 4;
  struct Stage {
    __nv_bfloat16 a[2][kTile * kTile];
    __nv_bfloat16 b[kTile * kTile];
  };
  extern __shared__ __align__(1024) uint8_t storage[];
  Stage* stages = reinterpret_cast<Stage*>(storage);
  __shared__ uint64_t full[kStages], empty[kStages];
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  const int group = threadIdx.x / 128;
  const int steps = (k + kTile - 1) / kTile;
  const int columns = (n + kTile - 1) / kTile, tiles = (m + 2 * kTile - 1) / (2 * kTile) * columns;
  int stage = 0, parity = 0;
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int row = tile / columns * 2 * kTile, col = tile % columns * kTile;
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
          // The first round finds the stages free: the phase before the first has the other parity.
          barrier_wait(&empty[stage], parity ^ 1);
          barrier_expect(&full[stage], 3 * kTileBytes);
          tensor_load(stages[stage].a[0], &map_a, step * kTile, row, &full[stage]);
          tensor_load(stages[stage].a[1], &map_a, step * kTile, row + kTile, &full[stage]);
          tensor_load(stages[stage].b, &map_b, step * kTile, col, &full[stage]);
          if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[32] = {};
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      barrier_wait(&full[stage], parity);
      wgmma_fence();
#pragma unroll
      for (int kk = 0; kk < kTile / 16; kk++)
        wgmma(sums, descriptor(stages[stage].a[group - 1] + kk * 16), descriptor(stages[stage].b + kk * 16));
      wgmma_commit();
      wgmma_wait<0>();
      // Each warp has waited for its own part only.
      if (threadIdx.x % 32 == 0) barrier_arrive(&empty[stage]);
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    store_tile(c, sums, m, n, tile / columns * 2 * kTile + (group - 1) * kTile, tile % columns * kTile);
  }
}

// y = x reversed within chunks of 1024 floats, by bulk copies both ways; n is a multiple of 4.
extern "C" __global__ void bulk_reverse(float* y, const float* x, int n) {
  __shared__ __align__(128) float in[1024];
  __shared__ __align__(128) float out[1024];
  __shared__ uint64_t full;
  const int first = blockIdx.x * 1024, count = min(1024, n - first);
  if (threadIdx.x == 0) {
    barrier_init(&full, 1);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    barrier_expect(&full, count * 4);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(in)),
                 "l"(x + first), "r"(count * 4), "r"(shared_address(&full))
                 : "memory");
  }
  __syncthreads();
  barrier_wait(&full, 0);
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = in[count - 1 - i];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(y + first),
                 "r"(shared_address(out)), "r"(count * 4)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
}

// sums[1024] += the blocks' chunks, by the copy engine: the order of the additions is not fixed.
extern "C" __global__ void bulk_add(float* sums, const float* x) {
  __shared__ __align__(128) float mine[1024];
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) mine[i] = x[blockIdx.x * 1024 + i];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(sums),
                 "r"(shared_address(mine)), "r"(4096)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;");
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
}

// A tile of 8x8 16-bit values through stmatrix with a transpose and back, four matrices per warp.
extern "C" __global__ void __launch_bounds__(32) stmatrix_transpose(uint16_t* y, const uint16_t* x) {
  __shared__ __align__(16) uint16_t tile[4][64];
  uint32_t r[4];
  for (int i = 0; i < 4; i++) r[i] = reinterpret_cast<const uint32_t*>(x + i * 64)[threadIdx.x];
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(&tile[threadIdx.x / 8][threadIdx.x % 8 * 8])),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
  __syncwarp();
  for (int i = threadIdx.x; i < 256; i += 32) y[i] = tile[i / 64][i % 64];
}

// Columns of a three-dimensional tensor summed over the box {32, 4, 2} at the block's place; what lies outside is zero.
extern "C" __global__ void tensor_box(float* sums, const __grid_constant__ CUtensorMap map, int x, int y, int z) {
  __shared__ __align__(128) float box[2][4][32];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    barrier_init(&full, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    barrier_expect(&full, sizeof(box));
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(shared_address(box)),
        "l"(&map), "r"(x + int(blockIdx.x) * 32), "r"(y), "r"(z), "r"(shared_address(&full))
        : "memory");
  }
  __syncthreads();
  barrier_wait(&full, 0);
  if (threadIdx.x < 32) {
    float sum = 0.0f;
    for (int i = 0; i < 8; i++) sum += box[i / 4][i % 4][threadIdx.x];
    sums[blockIdx.x * 32 + threadIdx.x] = sum;
  }
}
