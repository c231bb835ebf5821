// Matrix products written with CuTe's layouts and atoms (CUTLASS 4.2 headers, BSD-3-Clause): what its copies, swizzles
// and tensor-core atoms become is not this project's choice, which is the point of testing the simulator with them.
#include <cute/tensor.hpp>

using namespace cute;

// What differs between the kernels; `Major` is the dimension of a and b that is contiguous.
enum class Major { K, MN };

template <class T_, class Sum_, class Out_, Major kMajor_, class Mma, class Load_, class Atom, int kBlockK, int kMmaK>
struct Config {
  using T = T_;
  using Sum = Sum_;
  using Out = Out_;
  using Load = Copy_Atom<Load_, T>;
  static constexpr Major kMajor = kMajor_;
  static constexpr int kVector = 16 / sizeof(T);
  using BlockM = Int<64>;
  using BlockK = Int<kBlockK>;
  using Stages = Int<3>;
  using Shared = decltype(tile_to_shape(Atom{}, Shape<BlockM, BlockK, Stages>{}));
  // Four warps, two by two; 32 columns so that one ldmatrix.x4 feeds two instructions.
  using TiledMma = decltype(make_tiled_mma(Mma{}, Layout<Shape<_2, _2>>{}, Tile<_32, _32, Int<kMmaK>>{}));
  using CopyAtom = Copy_Atom<SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>, T>;
  static auto tiled_copy() {
    if constexpr (kMajor == Major::K) {
      constexpr int kAcross = kBlockK / kVector;
      return make_tiled_copy(CopyAtom{}, Layout<Shape<Int<128 / kAcross>, Int<kAcross>>, Stride<Int<kAcross>, _1>>{},
                             Layout<Shape<_1, Int<kVector>>>{});
    } else {
      constexpr int kAcross = 64 / kVector;
      return make_tiled_copy(CopyAtom{}, Layout<Shape<Int<kAcross>, Int<128 / kAcross>>>{},
                             Layout<Shape<Int<kVector>, _1>>{});
    }
  }
  using TiledCopy = decltype(tiled_copy());
};

// Rows of 128 bytes, their 16-byte chunks permuted by the row.
template <int kVector>
using RowsOf128 = decltype(composition(Swizzle<3, kVector == 8 ? 3 : kVector == 4 ? 2 : 4, 3>{},
                                       Layout<Shape<_8, Int<8 * kVector>>, Stride<Int<8 * kVector>, _1>>{}));
using ColumnsOf128 = decltype(composition(Swizzle<3, 3, 3>{}, Layout<Shape<_64, _8>, Stride<_1, _64>>{}));

template <class C>
__device__ __forceinline__ void gemm_block(typename C::Out* c, const typename C::T* a, const typename C::T* b, int m,
                                           int n, int k) {
  using T = typename C::T;
  extern __shared__ __align__(1024) uint8_t storage[];
  T* shared = reinterpret_cast<T*>(storage);
  auto sA = make_tensor(make_smem_ptr(shared), typename C::Shared{});
  auto sB = make_tensor(make_smem_ptr(shared + cosize_v<typename C::Shared>), typename C::Shared{});

  auto stride = [&](int rows) {
    if constexpr (C::kMajor == Major::K) return make_stride(k, Int<1>{});
    else return make_stride(Int<1>{}, rows);
  };
  const auto tile = Shape<typename C::BlockM, typename C::BlockK>{};
  auto gA = local_tile(make_tensor(make_gmem_ptr(a), make_shape(m, k), stride(m)), tile, make_coord(blockIdx.y, _));
  auto gB = local_tile(make_tensor(make_gmem_ptr(b), make_shape(n, k), stride(n)), tile, make_coord(blockIdx.x, _));
  auto iA = local_tile(make_identity_tensor(make_shape(m, k)), tile, make_coord(blockIdx.y, _));
  auto iB = local_tile(make_identity_tensor(make_shape(n, k)), tile, make_coord(blockIdx.x, _));

  typename C::TiledCopy tiled_copy;
  auto copier = tiled_copy.get_slice(threadIdx.x);
  auto fromA = copier.partition_S(gA), fromB = copier.partition_S(gB);
  auto whereA = copier.partition_S(iA), whereB = copier.partition_S(iB);
  auto toA = copier.partition_D(sA), toB = copier.partition_D(sB);
  auto load = [&](int step, int stage) {
    CUTE_UNROLL
    for (int i = 0; i < size<1>(toA); i++)
      CUTE_UNROLL
      for (int j = 0; j < size<2>(toA); j++) {
        const bool inA = elem_less(whereA(0, i, j, step), make_coord(m, k));
        copy(tiled_copy.with(inA), fromA(_, i, j, step), toA(_, i, j, stage));
        const bool inB = elem_less(whereB(0, i, j, step), make_coord(n, k));
        copy(tiled_copy.with(inB), fromB(_, i, j, step), toB(_, i, j, stage));
      }
  };

  typename C::TiledMma mma;
  auto slice = mma.get_slice(threadIdx.x);
  auto rA = slice.partition_fragment_A(sA(_, _, 0));
  auto rB = slice.partition_fragment_B(sB(_, _, 0));
  auto sums = partition_fragment_C(mma, Shape<typename C::BlockM, typename C::BlockM>{});
  clear(sums);
  auto loadA = make_tiled_copy_A(typename C::Load{}, mma);
  auto loadB = make_tiled_copy_B(typename C::Load{}, mma);
  auto sliceA = loadA.get_slice(threadIdx.x);
  auto sliceB = loadB.get_slice(threadIdx.x);
  auto xsA = sliceA.partition_S(sA);
  auto xsB = sliceB.partition_S(sB);
  auto xrA = sliceA.retile_D(rA);
  auto xrB = sliceB.retile_D(rB);

  constexpr int kStages = typename C::Stages{};
  const int steps = size<3>(fromA);
  CUTE_UNROLL
  for (int s = 0; s < kStages - 1; s++) {
    if (s < steps) load(s, s);
    cp_async_fence();
  }
  CUTE_NO_UNROLL
  for (int step = 0; step < steps; step++) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) load(step + kStages - 1, (step + kStages - 1) % kStages);
    cp_async_fence();
    CUTE_UNROLL
    for (int kk = 0; kk < size<2>(rA); kk++) {
      copy(loadA, xsA(_, _, kk, step % kStages), xrA(_, _, kk));
      copy(loadB, xsB(_, _, kk, step % kStages), xrB(_, _, kk));
      gemm(mma, rA(_, _, kk), rB(_, _, kk), sums);
    }
  }

  const auto out = Shape<typename C::BlockM, typename C::BlockM>{};
  auto gC = local_tile(make_tensor(make_gmem_ptr(c), make_shape(m, n), make_stride(n, Int<1>{})), out,
                       make_coord(blockIdx.y, blockIdx.x));
  auto iC = local_tile(make_identity_tensor(make_shape(m, n)), out, make_coord(blockIdx.y, blockIdx.x));
  auto toC = slice.partition_C(gC);
  auto whereC = slice.partition_C(iC);
  CUTE_UNROLL
  for (int i = 0; i < size(sums); i++)
    if (elem_less(whereC(i), make_coord(m, n))) toC(i) = static_cast<typename C::Out>(sums(i));
}

using Bf16 = Config<bfloat16_t, float, bfloat16_t, Major::K, SM80_16x8x16_F32BF16BF16F32_TN, SM75_U32x4_LDSM_N,
                    RowsOf128<8>, 64, 16>;
using F16 = Config<half_t, half_t, half_t, Major::MN, SM80_16x8x16_F16F16F16F16_TN, SM75_U16x8_LDSM_T, ColumnsOf128, 32,
                   16>;
using Tf32 = Config<tfloat32_t, float, float, Major::K, SM80_16x8x8_F32TF32TF32F32_TN, SM75_U32x4_LDSM_N, RowsOf128<4>,
                    32, 8>;
using S8 = Config<int8_t, int32_t, int32_t, Major::K, SM80_16x8x32_S32S8S8S32_TN, SM75_U32x4_LDSM_N, RowsOf128<16>, 128,
                  32>;

// c[m][n] = a[m][k] b[n][k]; k is a multiple of 8.
extern "C" __global__ void __launch_bounds__(128)
    cute_bf16(bfloat16_t* c, const bfloat16_t* a, const bfloat16_t* b, int m, int n, int k) {
  gemm_block<Bf16>(c, a, b, m, n, k);
}

// c[m][n] = a[k][m] b[k][n], summed in f16; m and n are multiples of 8.
extern "C" __global__ void __launch_bounds__(128)
    cute_f16_columns(half_t* c, const half_t* a, const half_t* b, int m, int n, int k) {
  gemm_block<F16>(c, a, b, m, n, k);
}

// As cute_bf16, on values that are exact in tf32; k is a multiple of 4.
extern "C" __global__ void __launch_bounds__(128)
    cute_tf32(float* c, const tfloat32_t* a, const tfloat32_t* b, int m, int n, int k) {
  gemm_block<Tf32>(c, a, b, m, n, k);
}

// As cute_bf16, k a multiple of 16.
extern "C" __global__ void __launch_bounds__(128)
    cute_s8(int32_t* c, const int8_t* a, const int8_t* b, int m, int n, int k) {
  gemm_block<S8>(c, a, b, m, n, k);
}
