// Products of one warp through CUDA's wmma, every type and shape: c = a b, and once with what c held.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda::wmma;

template <int M, int N, int K, class T, class Sum, class LayoutA, class LayoutB>
__device__ void product(const T* a, const T* b, Sum* c) {
  fragment<matrix_a, M, N, K, T, LayoutA> left;
  fragment<matrix_b, M, N, K, T, LayoutB> right;
  fragment<accumulator, M, N, K, Sum> sum;
  fill_fragment(sum, static_cast<Sum>(0));
  load_matrix_sync(left, a, std::is_same<LayoutA, row_major>::value ? K : M);
  load_matrix_sync(right, b, std::is_same<LayoutB, row_major>::value ? N : K);
  mma_sync(sum, left, right, sum);
  store_matrix_sync(c, sum, N, mem_row_major);
}

extern "C" __global__ void wmma_f16(const half* a, const half* b, float* c) {
  product<16, 16, 16, half, float, row_major, col_major>(a, b, c);
  product<32, 8, 16, half, float, col_major, row_major>(a, b, c + 256);
  product<8, 32, 16, half, float, row_major, row_major>(a, b, c + 512);
}

extern "C" __global__ void wmma_f16_sums(const half* a, const half* b, half* c) {
  product<16, 16, 16, half, half, row_major, row_major>(a, b, c);
}

extern "C" __global__ void wmma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  product<16, 16, 16, __nv_bfloat16, float, row_major, col_major>(a, b, c);
  product<32, 8, 16, __nv_bfloat16, float, row_major, col_major>(a, b, c + 256);
}

extern "C" __global__ void wmma_s8(const signed char* a, const signed char* b, int* c) {
  product<16, 16, 16, signed char, int, row_major, col_major>(a, b, c);
  product<8, 32, 16, signed char, int, col_major, row_major>(a, b, c + 256);
}

extern "C" __global__ void wmma_f64(const double* a, const double* b, double* c) {
  product<8, 8, 4, double, double, row_major, col_major>(a, b, c);
}

// From shared memory, in steps over k, onto what c holds by columns; a fragment is scaled element by element.
extern "C" __global__ void wmma_steps(const half* a, const half* b, float* c, int steps) {
  __shared__ half tile_a[256], tile_b[256];
  fragment<accumulator, 16, 16, 16, float> sum;
  load_matrix_sync(sum, c, 16, mem_col_major);
  for (int step = 0; step < steps; step++) {
    for (int i = threadIdx.x; i < 256; i += 32) {
      tile_a[i] = a[step * 256 + i];
      tile_b[i] = b[step * 256 + i];
    }
    __syncwarp();
    fragment<matrix_a, 16, 16, 16, half, row_major> left;
    fragment<matrix_b, 16, 16, 16, half, row_major> right;
    load_matrix_sync(left, tile_a, 16);
    load_matrix_sync(right, tile_b, 16);
    for (int i = 0; i < left.num_elements; i++) left.x[i] = __hmul(left.x[i], __float2half(2.0f));
    mma_sync(sum, left, right, sum);
    __syncwarp();
  }
  store_matrix_sync(c, sum, 16, mem_col_major);
}
