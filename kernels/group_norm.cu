// GroupNorm over NHWC images, with SiLU after it if wanted.
//
// Three kernels. The first sums: a block has a chunk of an image's pixels, finds the mean of each group in it and then the
// squares of the distances to that mean (the squares of far-off values would swallow the variance). The second merges an
// image's chunks as Chan, Golub and LeVeque (1979) do, in f64, into a scale and a shift per channel. The third applies
// them. Chunks and threads, and so the order of every sum, depend on the image's size alone.
#include "floats.cuh"

// N channels are a vector; a thread has one vector of channels in every `slots`-th pixel of the chunk.
template <int N>
struct Chunk {
  const Floats<N> *x;  // the thread's first vector
  uint32_t vectors;    // of a pixel
  uint32_t slots;      // pixels at once
  uint32_t mine;       // pixels of this thread
  uint32_t column;     // channel of its vectors

  // Sums of `of(value, channel)` per group into `sums`, through `scratch` of a float per thread and channel. Who reads
  // another group's sum than threadIdx.x + i blockDim.x, or writes the scratch again, needs a barrier first.
  template <typename Of>
  __device__ __forceinline__ void sum(uint32_t groups, float *scratch, float *sums, Of of) const {
    const uint32_t channels = vectors * N;
    Floats<N> total = {};
#pragma unroll 4
    for (uint32_t i = 0; i < mine; ++i) {
      const Floats<N> values = x[(size_t)i * slots * vectors];
#pragma unroll
      for (int j = 0; j < N; ++j) total.v[j] += of(values.v[j], column + j);
    }
    if (threadIdx.x < slots * vectors) {
#pragma unroll
      for (int j = 0; j < N; ++j) scratch[threadIdx.x * N + j] = total.v[j];
    }
    __syncthreads();
    for (uint32_t channel = threadIdx.x; channel < channels; channel += blockDim.x) {
      float column_total = 0.0f;
#pragma unroll 4
      for (uint32_t slot = 0; slot < slots; ++slot) column_total += scratch[slot * channels + channel];
      scratch[channel] = column_total;  // slot 0 of this channel, which nobody else reads
    }
    __syncthreads();
    const uint32_t size = channels / groups;
    for (uint32_t group = threadIdx.x; group < groups; group += blockDim.x) {
      float group_total = 0.0f;
#pragma unroll 4
      for (uint32_t i = 0; i < size; ++i) group_total += scratch[group * size + i];
      sums[group] = group_total;
    }
  }
};

// Mean and sum of squared distances to it, of a chunk or of all.
struct Moments {
  float mean, squares;
};

// A grid of (chunks, images); `chunk` pixels each. Threads are at least the vectors of a pixel; shared memory holds N
// floats per thread and two per group. `partial` is [images, groups, chunks].
template <int N>
__device__ __forceinline__ void statistics_of_chunk(const float *x, uint32_t pixels, uint32_t channels, uint32_t groups,
                                                    uint32_t chunk, Moments *partial) {
  extern __shared__ float storage[];
  const uint32_t image = blockIdx.y, chunks = gridDim.x, size = channels / groups;
  const uint32_t begin = blockIdx.x * chunk, count = min(chunk, pixels - begin);
  Chunk<N> part;
  part.vectors = channels / N;
  part.slots = min(blockDim.x / part.vectors, chunk);
  const uint32_t slot = threadIdx.x / part.vectors, vector = threadIdx.x % part.vectors;
  part.column = vector * N;
  part.mine = slot < part.slots && slot < count ? (count - slot + part.slots - 1) / part.slots : 0;
  const size_t first = ((size_t)image * pixels + begin + slot) * part.vectors + vector;
  part.x = reinterpret_cast<const Floats<N> *>(x) + first;

  float *scratch = storage, *means = storage + blockDim.x * N, *squares = means + groups;
  part.sum(groups, scratch, means, [](float value, uint32_t) { return value; });
  for (uint32_t group = threadIdx.x; group < groups; group += blockDim.x) means[group] /= (float)(count * size);
  __syncthreads();
  part.sum(groups, scratch, squares, [&](float value, uint32_t channel) {
    const float distance = value - means[channel / size];
    return distance * distance;
  });
  Moments *mine = partial + (size_t)image * groups * chunks;
  for (uint32_t group = threadIdx.x; group < groups; group += blockDim.x)
    mine[group * chunks + blockIdx.x] = {means[group], squares[group]};
}

__device__ __forceinline__ double warp_sum_f64(double value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// A grid of (groups, images), a warp each. `affine` is [images, channels]: scale and shift.
extern "C" __global__ void __launch_bounds__(32)
    group_norm_merge(const Moments *partial, const float *weight, const float *bias, uint32_t pixels,
                     uint32_t channels, uint32_t chunk, uint32_t chunks, float eps, float2 *affine) {
  const uint32_t group = blockIdx.x, image = blockIdx.y, size = channels / gridDim.x;
  const Moments *of = partial + ((size_t)image * gridDim.x + group) * chunks;
  const auto count = [&](uint32_t i) { return (double)min(chunk, pixels - i * chunk) * size; };
  const double all = (double)pixels * size;
  double mean = 0.0, squares = 0.0;
  for (uint32_t i = threadIdx.x; i < chunks; i += 32) mean += count(i) * of[i].mean;
  mean = warp_sum_f64(mean) / all;
  for (uint32_t i = threadIdx.x; i < chunks; i += 32) {
    const double distance = of[i].mean - mean;
    squares += of[i].squares + count(i) * distance * distance;
  }
  const double inverse = 1.0 / sqrt(warp_sum_f64(squares) / all + eps);
  for (uint32_t i = threadIdx.x; i < size; i += 32) {
    const uint32_t channel = group * size + i;
    const double scale = weight[channel] * inverse;
    affine[(size_t)image * channels + channel] = make_float2((float)scale, (float)(bias[channel] - mean * scale));
  }
}

template <int N>
__device__ __forceinline__ void apply(const float *x, const float2 *affine, uint32_t vectors, uint32_t pixels,
                                      uint32_t channels, uint32_t activate, float *out) {
  const uint32_t columns = channels / N;
  const Floats<N> *from = reinterpret_cast<const Floats<N> *>(x);
  Floats<N> *to = reinterpret_cast<Floats<N> *>(out);
  for (uint32_t at = blockIdx.x * blockDim.x + threadIdx.x; at < vectors; at += gridDim.x * blockDim.x) {
    const float2 *of = affine + at / columns / pixels * channels + at % columns * N;
    Floats<N> values = from[at];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float2 a = of[j];
      const float y = fmaf(values.v[j], a.x, a.y);
      values.v[j] = activate ? y / (1.0f + expf(-y)) : y;
    }
    to[at] = values;
  }
}

#define WEFT_GROUP_NORM(SUFFIX, N)                                                                                    \
  extern "C" __global__ void __launch_bounds__(1024)                                                                  \
      group_norm_statistics##SUFFIX(const float *x, uint32_t pixels, uint32_t channels, uint32_t groups,              \
                                    uint32_t chunk, Moments *partial) {                                               \
    statistics_of_chunk<N>(x, pixels, channels, groups, chunk, partial);                                              \
  }                                                                                                                   \
  extern "C" __global__ void group_norm_apply##SUFFIX(const float *x, const float2 *affine, uint32_t vectors,         \
                                                      uint32_t pixels, uint32_t channels, uint32_t activate,          \
                                                      float *out) {                                                   \
    apply<N>(x, affine, vectors, pixels, channels, activate, out);                                                    \
  }

// Channels are a multiple of 4, or anything.
WEFT_GROUP_NORM(, 4)
WEFT_GROUP_NORM(_ragged, 1)
