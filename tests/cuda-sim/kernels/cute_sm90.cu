// Matrix products for Hopper written with CuTe and CUTLASS's pipelines (CUTLASS 4.2 headers, BSD-3-Clause). Sizes are
// multiples of the tile, but for the first kernel, whose tensor maps cut what is outside.
#include "cute_specialised.cuh"

extern "C" __global__ void __launch_bounds__(384, 1)
    cute_specialised(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                     const __grid_constant__ CUtensorMap map_c, int k) {
  specialised<1>(map_a, map_b, map_c, k);
}

// One warp group, one stage: the operands as `Mma` wants them, a through registers if `kRegisters`.
template <bool kRegisters, class T, class Mma, class SharedA, class SharedB, class Load>
__device__ __forceinline__ void gemm_group(float* c, int n, int steps, Load load) {
  struct Storage {
    alignas(1024) T a[cosize_v<SharedA>];
    alignas(1024) T b[cosize_v<SharedB>];
    alignas(8) uint64_t full;
  };
  extern __shared__ __align__(1024) uint8_t storage[];
  Storage& shared = *reinterpret_cast<Storage*>(storage);
  using Barrier = cutlass::arch::ClusterTransactionBarrier;
  if (threadIdx.x == 0) {
    Barrier::init(&shared.full, 1);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();

  auto sA = shared_tensor<T>(shared.a, SharedA{});
  auto sB = shared_tensor<T>(shared.b, SharedB{});
  auto mma = make_tiled_mma(Mma{});
  auto slice = mma.get_slice(threadIdx.x);
  auto fA = slice.make_fragment_A(slice.partition_A(sA));
  auto fB = slice.make_fragment_B(slice.partition_B(sB));
  auto sums = partition_fragment_C(mma, Shape<_64, _64>{});
  clear(sums);
  for (int step = 0; step < steps; step++) {
    if (threadIdx.x == 0) {
      Barrier::arrive_and_expect_tx(&shared.full, sizeof(shared.a) + sizeof(shared.b));
      load(&shared.full, shared.a, shared.b, step);
    }
    Barrier::wait(&shared.full, step & 1);
    warpgroup_fence_operand(sums);
    if constexpr (kRegisters) {
      auto loader = make_tiled_copy_A(Copy_Atom<SM75_U32x4_LDSM_N, T>{}, mma);
      auto loader_slice = loader.get_slice(threadIdx.x);
      copy(loader, loader_slice.partition_S(sA), loader_slice.retile_D(fA));
      warpgroup_fence_operand(fA);
    }
    warpgroup_arrive();
    gemm(mma, fA, fB, sums);
    warpgroup_commit_batch();
    warpgroup_wait<0>();
    warpgroup_fence_operand(sums);
    __syncthreads();
  }

  auto gC = make_tensor(make_gmem_ptr(c + size_t(blockIdx.y) * 64 * n + blockIdx.x * 64), Shape<_64, _64>{},
                        make_stride(n, Int<1>{}));
  copy(sums, slice.partition_C(gC));
}

// f16 with the rows contiguous: c[m][n] = a[k][m] b[k][n]. Boxes of 64 columns and 64 rows.
extern "C" __global__ void __launch_bounds__(128)
    cute_columns(float* c, const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, int n,
                 int k) {
  using Shared = decltype(tile_to_shape(GMMA::Layout_MN_SW128_Atom<half_t>{}, Shape<_64, _64>{}));
  using Mma = SM90_64x64x16_F32F16F16_SS<GMMA::Major::MN, GMMA::Major::MN>;
  gemm_group<false, half_t, Mma, Shared, Shared>(c, n, k / 64, [&](uint64_t* full, half_t* a, half_t* b, int step) {
    SM90_TMA_LOAD_2D::copy(&map_a, full, kEvictNormal, a, blockIdx.y * 64, step * 64);
    SM90_TMA_LOAD_2D::copy(&map_b, full, kEvictNormal, b, blockIdx.x * 64, step * 64);
  });
}

// bf16 with a read into registers by ldmatrix; 64-byte swizzle, boxes of 32 columns and 64 rows.
extern "C" __global__ void __launch_bounds__(128)
    cute_registers(float* c, const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                   int n, int k) {
  using Shared = decltype(tile_to_shape(GMMA::Layout_K_SW64_Atom<bfloat16_t>{}, Shape<_64, _32>{}));
  using Mma = SM90_64x64x16_F32BF16BF16_RS<GMMA::Major::K, GMMA::Major::K>;
  gemm_group<true, bfloat16_t, Mma, Shared, Shared>(c, n, k / 32, [&](uint64_t* full, bfloat16_t* a, bfloat16_t* b, int step) {
    SM90_TMA_LOAD_2D::copy(&map_a, full, kEvictNormal, a, step * 32, blockIdx.y * 64);
    SM90_TMA_LOAD_2D::copy(&map_b, full, kEvictNormal, b, step * 32, blockIdx.x * 64);
  });
}

// e4m3, boxes of 32 columns and 64 rows, 32-byte swizzle.
extern "C" __global__ void __launch_bounds__(128)
    cute_e4m3(float* c, const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, int n,
              int k) {
  using T = float_e4m3_t;
  using Shared = decltype(tile_to_shape(GMMA::Layout_K_SW32_Atom<T>{}, Shape<_64, _32>{}));
  using Mma = SM90_64x64x32_F32E4M3E4M3_SS_TN<>;
  gemm_group<false, T, Mma, Shared, Shared>(c, n, k / 32, [&](uint64_t* full, T* a, T* b, int step) {
    SM90_TMA_LOAD_2D::copy(&map_a, full, kEvictNormal, a, step * 32, blockIdx.y * 64);
    SM90_TMA_LOAD_2D::copy(&map_b, full, kEvictNormal, b, step * 32, blockIdx.x * 64);
  });
}
