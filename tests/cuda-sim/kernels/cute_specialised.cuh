// A matrix product with specialised warps, written with CuTe and CUTLASS's pipeline (CUTLASS 4.2 headers, BSD-3-Clause).
#pragma once
#include <cuda.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cutlass/pipeline/sm90_pipeline.hpp>
#include <cute/tensor.hpp>

using namespace cute;

constexpr uint64_t kEvictNormal = 0x1000000000000000;

template <class T, class Layout>
__device__ __forceinline__ auto shared_tensor(void* p, Layout layout) {
  return make_tensor(make_smem_ptr(static_cast<T*>(p)), layout);
}

// bf16, K-major, 128x128x64: a producer warp group that only copies, two consumer warp groups that share a tile, a ring of
// three stages, the result written by TMA. c[m][n] = a[m][k] b[n][k]. The blocks of a cluster lie side by side and share
// the rows of a: each loads its part of them for all, and a stage is free when the consumers of all blocks are done with it.
template <int kCluster>
__device__ __forceinline__ void specialised(const CUtensorMap& map_a, const CUtensorMap& map_b, const CUtensorMap& map_c,
                                            int k) {
  using T = bfloat16_t;
  constexpr int kStages = 3;
  using Atom = GMMA::Layout_K_SW128_Atom<T>;
  using Shared = decltype(tile_to_shape(Atom{}, Shape<_128, _64, Int<kStages>>{}));
  using SharedC = decltype(tile_to_shape(Atom{}, Shape<_128, _128>{}, Step<_1, _2>{}));
  using Pipeline = cutlass::PipelineTmaAsync<kStages>;
  struct Storage {
    alignas(1024) T a[cosize_v<Shared>];
    alignas(1024) T b[cosize_v<Shared>];
    alignas(1024) T c[cosize_v<SharedC>];
    typename Pipeline::SharedStorage pipeline;
  };
  extern __shared__ __align__(1024) uint8_t storage[];
  Storage& shared = *reinterpret_cast<Storage*>(storage);

  const int group = cutlass::canonical_warp_group_idx();
  const bool producer = group == 0;
  typename Pipeline::Params params;
  params.transaction_bytes = 2 * 128 * 64 * sizeof(T);
  params.role = producer ? Pipeline::ThreadCategory::Producer : Pipeline::ThreadCategory::Consumer;
  params.is_leader = threadIdx.x == 0;
  params.num_consumers = 256;
  Pipeline pipeline(shared.pipeline, params, Shape<Int<kCluster>, _1, _1>{});
  if constexpr (kCluster > 1) {
    cluster_arrive_relaxed();
    cluster_wait();
  } else {
    __syncthreads();
  }

  const int steps = (k + 63) / 64;
  if (producer) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (cutlass::canonical_warp_idx_sync() == 0 && elect_one_sync()) {
      prefetch_tma_descriptor(&map_a);
      prefetch_tma_descriptor(&map_b);
      auto write = cutlass::make_producer_start_state<Pipeline>();
      for (int step = 0; step < steps; step++, ++write) {
        pipeline.producer_acquire(write);
        auto* full = pipeline.producer_get_barrier(write);
        const int stage = write.index();
        if constexpr (kCluster > 1) {
          const int part = 128 / kCluster, row = block_rank_in_cluster() * part;
          SM90_TMA_LOAD_MULTICAST_2D::copy(&map_a, full, (1 << kCluster) - 1, kEvictNormal,
                                           shared.a + (stage * 128 + row) * 64, step * 64, blockIdx.y * 128 + row);
        } else {
          SM90_TMA_LOAD_2D::copy(&map_a, full, kEvictNormal, shared.a + stage * 128 * 64, step * 64, blockIdx.y * 128);
        }
        SM90_TMA_LOAD_2D::copy(&map_b, full, kEvictNormal, shared.b + stage * 128 * 64, step * 64, blockIdx.x * 128);
      }
      pipeline.producer_tail(write);
    }
    return;
  }

  cutlass::arch::warpgroup_reg_alloc<232>();
  auto sA = shared_tensor<T>(shared.a, Shared{});
  auto sB = shared_tensor<T>(shared.b, Shared{});
  auto mma = make_tiled_mma(SM90_64x128x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::K>{},
                            Layout<Shape<_2, _1, _1>>{});
  auto slice = mma.get_slice(threadIdx.x - 128);
  auto fA = slice.make_fragment_A(slice.partition_A(sA));
  auto fB = slice.make_fragment_B(slice.partition_B(sB));
  auto sums = partition_fragment_C(mma, Shape<_128, _128>{});
  mma.accumulate_ = GMMA::ScaleOut::Zero;
  cutlass::PipelineState<kStages> read;
  for (int step = 0; step < steps; step++, ++read) {
    pipeline.consumer_wait(read);
    warpgroup_fence_operand(sums);
    warpgroup_arrive();
    CUTE_UNROLL
    for (int kk = 0; kk < size<2>(fA); kk++) {
      gemm(mma, fA(_, _, kk, read.index()), fB(_, _, kk, read.index()), sums);
      mma.accumulate_ = GMMA::ScaleOut::One;
    }
    warpgroup_commit_batch();
    warpgroup_wait<0>();
    warpgroup_fence_operand(sums);
    pipeline.consumer_release(read);
  }

  // Registers to shared memory by stmatrix, then out by TMA, a half of the columns at a time.
  auto narrow = make_tensor<T>(sums.layout());
  CUTE_UNROLL
  for (int i = 0; i < size(sums); i++) narrow(i) = static_cast<T>(sums(i));
  auto sC = shared_tensor<T>(shared.c, SharedC{});
  auto store = make_tiled_copy_C(Copy_Atom<SM90_U32x4_STSM_N, T>{}, mma);
  auto store_slice = store.get_slice(threadIdx.x - 128);
  copy(store, store_slice.retile_S(narrow), store_slice.partition_D(sC));
  tma_store_fence();
  cutlass::arch::NamedBarrier::sync(256, 1);
  if (threadIdx.x == 128) {
    CUTE_UNROLL
    for (int half = 0; half < 2; half++)
      SM90_TMA_STORE_2D::copy(&map_c, shared.c + half * 128 * 64, blockIdx.x * 128 + half * 64, blockIdx.y * 128);
    tma_store_arrive();
    tma_store_wait<0>();
  }
}
