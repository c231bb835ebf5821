// Ops without a reduction.
#include "floats.cuh"

template <int N>
__device__ __forceinline__ void add_vectors(float *x, const float *y, WeftRows rows, uint32_t cols) {
  const size_t count = (size_t)weft_rows(rows) * cols / N;
  const Floats<N> *from = reinterpret_cast<const Floats<N> *>(y);
  Floats<N> *to = reinterpret_cast<Floats<N> *>(x);
  for (size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (size_t)gridDim.x * blockDim.x) {
    Floats<N> sum = to[at];
    const Floats<N> term = from[at];
#pragma unroll
    for (int j = 0; j < N; ++j) sum.v[j] += term.v[j];
    to[at] = sum;
  }
}

// x += y; columns are a multiple of 4.
extern "C" __global__ void add(float *x, const float *y, WeftRows rows, uint32_t cols) {
  add_vectors<4>(x, y, rows, cols);
}

// The same for any number of columns.
extern "C" __global__ void add_ragged(float *x, const float *y, WeftRows rows, uint32_t cols) {
  add_vectors<1>(x, y, rows, cols);
}
