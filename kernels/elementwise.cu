// Ops without a reduction.
#include "floats.cuh"
#include "operand.cuh"

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

template <int N>
__device__ __forceinline__ void add_product_vectors(float *x, const float *y, const float *z, WeftRows rows,
                                                    uint32_t cols) {
  const size_t count = (size_t)weft_rows(rows) * cols / N;
  const Floats<N> *left = reinterpret_cast<const Floats<N> *>(y);
  const Floats<N> *right = reinterpret_cast<const Floats<N> *>(z);
  Floats<N> *to = reinterpret_cast<Floats<N> *>(x);
  for (size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (size_t)gridDim.x * blockDim.x) {
    Floats<N> sum = to[at];
    const Floats<N> a = left[at], b = right[at];
    // Not fused: the processor rounds the product too.
#pragma unroll
    for (int j = 0; j < N; ++j) sum.v[j] = __fadd_rn(sum.v[j], __fmul_rn(a.v[j], b.v[j]));
    to[at] = sum;
  }
}

// x += y * z; columns are a multiple of 4.
extern "C" __global__ void add_product(float *x, const float *y, const float *z, WeftRows rows, uint32_t cols) {
  add_product_vectors<4>(x, y, z, rows, cols);
}

// The same for any number of columns.
extern "C" __global__ void add_product_ragged(float *x, const float *y, const float *z, WeftRows rows, uint32_t cols) {
  add_product_vectors<1>(x, y, z, rows, cols);
}

template <int N>
__device__ __forceinline__ void silu_vectors(const float *x, const WeftOut &out, WeftRows rows, uint32_t cols) {
  const size_t count = (size_t)weft_rows(rows) * cols / N;
  const Floats<N> *from = reinterpret_cast<const Floats<N> *>(x);
  for (size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (size_t)gridDim.x * blockDim.x) {
    Floats<N> values = from[at];
#pragma unroll
    for (int j = 0; j < N; ++j) values.v[j] = values.v[j] / (1.0f + expf(-values.v[j]));
    store<N>(out, uint32_t(at / (cols / N)), cols, uint32_t(at % (cols / N)) * N, values.v);
  }
}

// out = silu(x); columns are a multiple of 4. Within 4 ulp: expf is within 1, the sum and the quotient are rounded.
extern "C" __global__ void silu(const float *x, WeftOut out, WeftRows rows, uint32_t cols) {
  silu_vectors<4>(x, out, rows, cols);
}

// The same for any number of columns.
extern "C" __global__ void silu_ragged(const float *x, WeftOut out, WeftRows rows, uint32_t cols) {
  silu_vectors<1>(x, out, rows, cols);
}

template <int N>
__device__ __forceinline__ void add_row_vectors(const float *x, const float *row, uint32_t activate, const WeftOut &out,
                                                WeftRows rows, uint32_t cols) {
  const size_t count = (size_t)weft_rows(rows) * cols / N;
  const Floats<N> *from = reinterpret_cast<const Floats<N> *>(x);
  const Floats<N> *added = reinterpret_cast<const Floats<N> *>(row);
  for (size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (size_t)gridDim.x * blockDim.x) {
    const uint32_t of = uint32_t(at / (cols / N)), vector = uint32_t(at % (cols / N));
    Floats<N> sum = from[at];
    const Floats<N> term = added[vector];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      sum.v[j] += term.v[j];
      if (activate) sum.v[j] = sum.v[j] / (1.0f + expf(-sum.v[j]));
    }
    store<N>(out, of, cols, vector * N, sum.v);
  }
}

// out = x + row, and silu of that if asked; columns are a multiple of 4.
extern "C" __global__ void add_row(const float *x, const float *row, uint32_t activate, WeftOut out, WeftRows rows,
                                   uint32_t cols) {
  add_row_vectors<4>(x, row, activate, out, rows, cols);
}

// The same for any number of columns.
extern "C" __global__ void add_row_ragged(const float *x, const float *row, uint32_t activate, WeftOut out,
                                          WeftRows rows, uint32_t cols) {
  add_row_vectors<1>(x, row, activate, out, rows, cols);
}
