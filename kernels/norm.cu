// Norms over rows: RMSNorm, out[m] = x[m] / sqrt(mean(x[m]^2) + eps) * weight, and LayerNorm, out[m] = (x[m] - mean(x[m]))
// / sqrt(mean((x[m] - mean(x[m]))^2) + eps) * weight + bias.
//
// One block per row; its threads, and so the order of the sums, depend on the columns alone.
#include "floats.cuh"
#include "operand.cuh"

namespace {

// What a thread keeps of its row between the sums and the scaling; a wider row is read again.
constexpr int KEPT = 4;

// The part of the stacked weights that serves a row: rows groups[g] .. groups[g + 1] use part g.
__device__ __forceinline__ uint32_t part_of(const uint32_t *groups, uint32_t parts, uint32_t row) {
  uint32_t part = 0;
  while (part + 1 < parts && row >= groups[part + 1]) ++part;
  return part;
}

// The row of a block, N columns at a time.
template <int N>
struct Row {
  const Floats<N> *from;
  uint32_t vectors;
  Floats<N> kept[KEPT];

  __device__ __forceinline__ Row(const float *x, uint32_t cols)
      : from(reinterpret_cast<const Floats<N> *>(x + size_t(blockIdx.x) * cols)), vectors(cols / N) {
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
      const uint32_t at = threadIdx.x + i * blockDim.x;
      if (at < vectors) kept[i] = from[at];
    }
  }

  // Calls `use` with the columns of this thread and where they are.
  template <class Use>
  __device__ __forceinline__ void each(Use use) const {
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
      const uint32_t at = threadIdx.x + i * blockDim.x;
      if (at < vectors) use(at, kept[i]);
    }
    for (uint32_t at = threadIdx.x + KEPT * blockDim.x; at < vectors; at += blockDim.x) use(at, from[at]);
  }

  // The sum of `of` each column, the same in all threads.
  template <class Of>
  __device__ __forceinline__ float sum(float *scratch, Of of) const {
    float sum = 0.0f;
    each([&](uint32_t, const Floats<N> &values) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum = of(sum, values.v[j]);
    });
    return block_sum(sum, scratch);
  }
};

template <int N>
__device__ __forceinline__ void rms_norm_row(const float *__restrict__ x, const float *__restrict__ weight,
                                             WeftOut out, WeftRows rows, uint32_t cols, float eps,
                                             const uint32_t *groups, uint32_t parts) {
  __shared__ float scratch[32];
  if (blockIdx.x >= weft_rows(rows)) return;
  const Row<N> row(x, cols);
  const float squares = row.sum(scratch, [](float sum, float value) { return fmaf(value, value, sum); });
  const float scale = 1.0f / sqrtf(squares / (float)cols + eps);

  const uint32_t part = groups ? part_of(groups, parts, blockIdx.x) : 0;
  const Floats<N> *scales = reinterpret_cast<const Floats<N> *>(weight + (size_t)part * cols);
  row.each([&](uint32_t at, Floats<N> values) {
    const Floats<N> w = scales[at];
#pragma unroll
    for (int j = 0; j < N; ++j) values.v[j] = values.v[j] * scale * w.v[j];
    store(out, blockIdx.x, cols, at * N, values.v);
  });
}

// With `kModulated` the rows have a shift and a scale of their own besides.
template <int N, bool kModulated>
__device__ __forceinline__ void layer_norm_row(const float *__restrict__ x, const float *__restrict__ weight,
                                               const float *__restrict__ bias, WeftOut out, WeftRows rows,
                                               uint32_t cols, float eps, const float *__restrict__ shift = nullptr,
                                               const float *__restrict__ modulation = nullptr) {
  __shared__ float scratch[32];
  if (blockIdx.x >= weft_rows(rows)) return;
  const Row<N> row(x, cols);
  const float mean = row.sum(scratch, [](float sum, float value) { return sum + value; }) / (float)cols;
  // Of the differences: the mean of the squares less the square of the mean would cancel where the mean is large.
  const float squares = row.sum(scratch, [=](float sum, float value) { return fmaf(value - mean, value - mean, sum); });
  const float scale = 1.0f / sqrtf(squares / (float)cols + eps);
  row.each([&](uint32_t at, Floats<N> values) {
    const Floats<N> w = reinterpret_cast<const Floats<N> *>(weight)[at];
    const Floats<N> b = reinterpret_cast<const Floats<N> *>(bias)[at];
#pragma unroll
    for (int j = 0; j < N; ++j) values.v[j] = fmaf((values.v[j] - mean) * scale, w.v[j], b.v[j]);
    if constexpr (kModulated) {
      const Floats<N> by = reinterpret_cast<const Floats<N> *>(shift + size_t(blockIdx.x) * cols)[at];
      const Floats<N> times = reinterpret_cast<const Floats<N> *>(modulation + size_t(blockIdx.x) * cols)[at];
      // Not fused: the processor rounds the product too.
#pragma unroll
      for (int j = 0; j < N; ++j)
        values.v[j] = __fadd_rn(__fadd_rn(by.v[j], values.v[j]), __fmul_rn(values.v[j], times.v[j]));
    }
    store(out, blockIdx.x, cols, at * N, values.v);
  });
}

}  // namespace

// SUFFIX: columns are a multiple of 4, or (_ragged) any number. `groups`: where the step's groups of rows begin, null for
// one weight.
#define WEFT_NORM(SUFFIX, N)                                                                                          \
  extern "C" __global__ void __launch_bounds__(1024)                                                                  \
      rms_norm##SUFFIX(const float *x, const float *weight, WeftOut out, WeftRows rows, uint32_t cols, float eps,     \
                       const uint32_t *groups, uint32_t parts) {                                                      \
    rms_norm_row<N>(x, weight, out, rows, cols, eps, groups, parts);                                                  \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(1024)                                                                  \
      layer_norm##SUFFIX(const float *x, const float *weight, const float *bias, WeftOut out, WeftRows rows,          \
                         uint32_t cols, float eps) {                                                                  \
    layer_norm_row<N, false>(x, weight, bias, out, rows, cols, eps);                                                  \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(1024)                                                                  \
      modulated_norm##SUFFIX(const float *x, const float *weight, const float *bias, const float *shift,              \
                             const float *scale, WeftOut out, WeftRows rows, uint32_t cols, float eps) {              \
    layer_norm_row<N, true>(x, weight, bias, out, rows, cols, eps, shift, scale);                                     \
  }

WEFT_NORM(, 4)
WEFT_NORM(_ragged, 1)
