// Full attention with one head over the pixels of an image: out[p] = softmax(q[p] K^T / sqrt(channels)) V.
//
// A block has 16 pixels and walks over the keys in tiles of 32, with a running maximum and sum per row (Milakov and
// Gimelshein, 2018). q, k, v and the weights exp(score - maximum) are rounded to bf16 where the tensor cores take them;
// scores, sums and the maximum are f32. The order of all sums depends on the image alone.
#include "common.cuh"

constexpr uint32_t QUERIES = 16, KEYS = 32, THREADS = 128, WARPS = 4;
constexpr uint32_t MOST = 512;             // channels
constexpr uint32_t TILES = MOST / 8 / WARPS;  // of 8 channels, of a warp

struct Tiles {
  uint32_t channels, pitch;  // of a row in shared memory, in bytes: an odd number of 16-byte chunks meets no bank twice

  // Rows `first` .. of x, rounded; rows from `count` on and columns from `channels` on are zero.
  template <uint32_t ROWS>
  __device__ __forceinline__ void stage(uint32_t to, const float *x, uint32_t first, uint32_t count) const {
    const uint32_t vectors = (pitch - 16) / 8;
    for (uint32_t i = threadIdx.x; i < ROWS * vectors; i += THREADS) {
      const uint32_t row = i / vectors, column = i % vectors * 4;
      float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (first + row < count && column < channels)
        v = *reinterpret_cast<const float4 *>(x + (size_t)(first + row) * channels + column);
      asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to + row * pitch + column * 2), "r"(pack_bf16(v.x, v.y)),
                   "r"(pack_bf16(v.z, v.w))
                   : "memory");
    }
  }
};

// A grid of (blocks of 16 pixels, images). Channels are a multiple of 4 and at most 512; shared memory holds
// 16 + 32 + 32 rows of `channels` rounded up to 16, and 8 more, bf16.
extern "C" __global__ void __launch_bounds__(THREADS)
    image_attention(const float *q, const float *k, const float *v, uint32_t pixels, uint32_t channels, float scale,
                    float *out) {
  extern __shared__ __align__(128) uint8_t storage[];
  __shared__ float scores[QUERIES][KEYS + 1];
  __shared__ __align__(16) uint32_t weights[QUERIES][KEYS / 2 + 4];  // bf16 pairs
  __shared__ float correction[QUERIES], total[QUERIES];
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const size_t image = (size_t)blockIdx.y * pixels * channels;
  const uint32_t steps = (channels + 15) / 16;
  const Tiles tiles = {channels, steps * 32 + 16};
  const uint32_t queries = shared_address(storage), keys = queries + QUERIES * tiles.pitch;
  const uint32_t values = keys + KEYS * tiles.pitch, packed = shared_address(weights);

  tiles.stage<QUERIES>(queries, q + image, blockIdx.x * QUERIES, pixels);
  float sums[TILES][4] = {};
  // The softmax of row threadIdx.x / 8, which eight threads share: all hold the same.
  float largest = -INFINITY, sum = 0.0f;
  const uint32_t row = threadIdx.x / 8, part = threadIdx.x % 8;

#pragma unroll 1
  for (uint32_t first = 0; first < pixels; first += KEYS) {
    __syncthreads();  // all have left the tile before
    tiles.stage<KEYS>(keys, k + image, first, pixels);
    tiles.stage<KEYS>(values, v + image, first, pixels);
    __syncthreads();

    // Scores: a warp has 8 keys.
    float score[4] = {};
    for (uint32_t step = 0; step < steps; ++step) {
      uint32_t a[4], b[2];
      load_matrices(a, queries + lane % 16 * tiles.pitch + step * 32 + lane / 16 * 16);
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                   : "=r"(b[0]), "=r"(b[1])
                   : "r"(keys + (warp * 8 + lane % 8) * tiles.pitch + step * 32 + lane / 8 % 2 * 16)
                   : "memory");
      mma_bf16(score, make_uint4(a[0], a[1], a[2], a[3]), b[0], b[1]);
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t key = warp * 8 + t * 2 + i % 2;
      scores[g + i / 2 * 8][key] = first + key < pixels ? score[i] * scale : -INFINITY;
    }
    __syncthreads();

    float mine[4], top = largest;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) top = fmaxf(top, mine[i] = scores[row][part * 4 + i]);
#pragma unroll
    for (int distance = 4; distance > 0; distance /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, distance));
    float added = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) added += mine[i] = expf(mine[i] - top);
#pragma unroll
    for (int distance = 4; distance > 0; distance /= 2) added += __shfl_xor_sync(0xffffffffu, added, distance);
    const float factor = expf(largest - top);
    sum = sum * factor + added;
    largest = top;
    weights[row][part * 2] = pack_bf16(mine[0], mine[1]);
    weights[row][part * 2 + 1] = pack_bf16(mine[2], mine[3]);
    if (part == 0) correction[row] = factor, total[row] = sum;
    __syncthreads();

    // out = out * correction + weights * values: a warp has every fourth tile of 8 channels.
    const float low = correction[g], high = correction[g + 8];
    uint32_t a[2][4];
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half)
      load_matrices(a[half], packed + lane % 16 * sizeof(weights[0]) + half * 32 + lane / 16 * 16);
#pragma unroll
    for (uint32_t i = 0; i < TILES; ++i) {
      const uint32_t column = (i * WARPS + warp) * 8;
      if (column < channels) {
        uint32_t b[4];
        load_matrices_transposed(b, values + lane * tiles.pitch + column * 2);
        sums[i][0] *= low, sums[i][1] *= low, sums[i][2] *= high, sums[i][3] *= high;
        mma_bf16(sums[i], make_uint4(a[0][0], a[0][1], a[0][2], a[0][3]), b[0], b[1]);
        mma_bf16(sums[i], make_uint4(a[1][0], a[1][1], a[1][2], a[1][3]), b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (uint32_t i = 0; i < TILES; ++i)
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t column = (i * WARPS + warp) * 8 + t * 2 + j % 2, within = g + j / 2 * 8;
      const uint32_t pixel = blockIdx.x * QUERIES + within;
      if (pixel < pixels && column < channels)
        out[image + (size_t)pixel * channels + column] = sums[i][j] / total[within];
    }
}
