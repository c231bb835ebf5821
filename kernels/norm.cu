// RMSNorm over rows: out[m] = x[m] / sqrt(mean(x[m]^2) + eps) * weight.
//
// One block per row; its threads, and so the order of the sum, depend on the columns alone.
#include "floats.cuh"

// What a thread keeps of its row between the sum and the scaling; a wider row is read again.
constexpr int KEPT = 4;

// The part of the stacked weights that serves a row: rows groups[g] .. groups[g + 1] use part g.
__device__ __forceinline__ uint32_t part_of(const uint32_t *groups, uint32_t parts, uint32_t row) {
  uint32_t part = 0;
  while (part + 1 < parts && row >= groups[part + 1]) ++part;
  return part;
}

template <int N>
__device__ __forceinline__ void rms_norm_rows(const float *__restrict__ x, const float *__restrict__ weight,
                                              float *__restrict__ out, WeftRows rows, uint32_t cols, float eps,
                                              const uint32_t *groups, uint32_t parts) {
  __shared__ float scratch[32];
  const uint32_t row = blockIdx.x;
  if (row >= weft_rows(rows)) return;
  const uint32_t vectors = cols / N;
  const Floats<N> *from = reinterpret_cast<const Floats<N> *>(x + (size_t)row * cols);
  Floats<N> kept[KEPT];
  float sum = 0.0f;
  const auto add = [&](const Floats<N> &values) {
#pragma unroll
    for (int j = 0; j < N; ++j) sum = fmaf(values.v[j], values.v[j], sum);
  };
#pragma unroll
  for (int i = 0; i < KEPT; ++i) {
    const uint32_t at = threadIdx.x + i * blockDim.x;
    if (at < vectors) add(kept[i] = from[at]);
  }
  for (uint32_t at = threadIdx.x + KEPT * blockDim.x; at < vectors; at += blockDim.x) add(from[at]);
  const float scale = 1.0f / sqrtf(block_sum(sum, scratch) / (float)cols + eps);

  const uint32_t part = groups ? part_of(groups, parts, row) : 0;
  const Floats<N> *scales = reinterpret_cast<const Floats<N> *>(weight + (size_t)part * cols);
  Floats<N> *to = reinterpret_cast<Floats<N> *>(out + (size_t)row * cols);
  const auto store = [&](uint32_t at, Floats<N> values) {
    const Floats<N> w = scales[at];
#pragma unroll
    for (int j = 0; j < N; ++j) values.v[j] = values.v[j] * scale * w.v[j];
    to[at] = values;
  };
#pragma unroll
  for (int i = 0; i < KEPT; ++i) {
    const uint32_t at = threadIdx.x + i * blockDim.x;
    if (at < vectors) store(at, kept[i]);
  }
  for (uint32_t at = threadIdx.x + KEPT * blockDim.x; at < vectors; at += blockDim.x) store(at, from[at]);
}

// `groups`: where the step's groups of rows begin, null for one weight. Columns are a multiple of 4.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm(const float *x, const float *weight, float *out, WeftRows rows, uint32_t cols, float eps,
             const uint32_t *groups, uint32_t parts) {
  rms_norm_rows<4>(x, weight, out, rows, cols, eps, groups, parts);
}

// Any number of columns.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_ragged(const float *x, const float *weight, float *out, WeftRows rows, uint32_t cols, float eps,
                    const uint32_t *groups, uint32_t parts) {
  rms_norm_rows<1>(x, weight, out, rows, cols, eps, groups, parts);
}
