// 3x3 convolution with padding 1 over NHWC images: an implicit matrix product on tensor cores.
//
// out[pixel][c] = bias[c] + sum_k w[c][k] patch[pixel][k] with k = (ky, kx, channel). The weight is the 16-row operand of
// mma.m16n8k16, packed as the linear layers' is (tiles of 16 outputs, in each the units of 16 columns, in a unit 16 bytes
// per lane): a warp reads its operands from global memory as they lie, and warps that need the same ones meet in the first
// cache. Patches are gathered from f32, rounded to bf16 and laid into shared memory while the stage before is multiplied.
// A sum runs over k upwards in one accumulator.
#include "common.cuh"

constexpr uint32_t STAGE = 32;  // columns of k per stage
constexpr uint32_t THREADS = 128;

struct ConvArgs {
  const float *x;        // [images, height, width, cin]
  const uint4 *weight;   // packed [cout, 9 * cin]
  const float *bias;     // [cout]
  float *out;            // [images, out_height, out_width, cout]
  uint32_t pixels;       // of all outputs
  uint32_t height, width, out_height, out_width, stride, cin, cout;
  uint32_t per_channel;  // 2^32 / cin rounded up: k / cin is the high half of the product, for k cin < 2^32
};

// Four values of a patch: columns k .. k + 4.
struct Pixel {
  uint32_t image;    // first pixel of the image
  int32_t row, col;  // of the patch's first pixel, which may lie outside of the image

  Pixel() = default;

  __device__ __forceinline__ Pixel(const ConvArgs &args, uint32_t pixel) {
    const uint32_t per_image = args.out_height * args.out_width, within = pixel % per_image;
    image = pixel / per_image * args.height * args.width;
    row = (int32_t)(within / args.out_width * args.stride) - 1;
    col = (int32_t)(within % args.out_width * args.stride) - 1;
    if (pixel >= args.pixels) row = -4;  // outside with every tap
  }

  // Where column k is, null outside of the image and past the last column.
  __device__ __forceinline__ const float *at(const ConvArgs &args, uint32_t k) const {
    const uint32_t tap = args.cin == 1 ? k : __umulhi(k, args.per_channel), channel = k - tap * args.cin;
    const int32_t y = row + (int32_t)(tap / 3), x = col + (int32_t)(tap % 3);
    const bool inside = tap < 9 && (uint32_t)y < args.height && (uint32_t)x < args.width;
    return inside ? args.x + (size_t)(image + y * args.width + x) * args.cin + channel : nullptr;
  }

  // N is 4 when the channels are a multiple of 4, so that the four columns are one pixel's.
  template <int N>
  __device__ __forceinline__ float4 load(const ConvArgs &args, uint32_t k) const {
    if (N == 4) {
      const float *from = at(args, k);
      return from ? *reinterpret_cast<const float4 *>(from) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    const float *a = at(args, k), *b = at(args, k + 1), *c = at(args, k + 2), *d = at(args, k + 3);
    return make_float4(a ? *a : 0.0f, b ? *b : 0.0f, c ? *c : 0.0f, d ? *d : 0.0f);
  }
};

// Warps are ROWS x COLUMNS over a tile of outputs x pixels; a warp has TILES x 16 outputs and 32 pixels.
template <int ROWS, int COLUMNS, int TILES, int N>
struct Conv {
  static constexpr uint32_t PIXELS = COLUMNS * 32;
  static constexpr uint32_t OUTPUTS = ROWS * TILES * 16;
  static constexpr int SHARES = PIXELS / (THREADS / 2);  // pixels that a thread fills half of
  static_assert(ROWS * COLUMNS * 32 == THREADS, "");

  // A pixel's 64 bytes of a stage are four chunks of 16, permuted by the pixel: neither the writes of 8 bytes nor ldmatrix
  // meet a bank twice.
  __device__ static __forceinline__ uint32_t place(uint32_t pixel, uint32_t chunk) {
    return pixel * STAGE * 2 + ((chunk ^ (pixel / 2 % 4)) << 4);
  }

  __device__ static __forceinline__ void gather(const ConvArgs &args, const Pixel (&pixels)[SHARES], uint32_t k,
                                                float4 (&values)[SHARES][4]) {
#pragma unroll
    for (int s = 0; s < SHARES; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i) values[s][i] = pixels[s].template load<N>(args, k + 8 * i + threadIdx.x % 2 * 4);
  }

  __device__ static __forceinline__ void stage(uint32_t to, const float4 (&values)[SHARES][4]) {
#pragma unroll
    for (int s = 0; s < SHARES; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 v = values[s][i];
        const uint32_t at = to + place(threadIdx.x / 2 + s * (THREADS / 2), i) + threadIdx.x % 2 * 8;
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(pack_bf16(v.x, v.y)), "r"(pack_bf16(v.z, v.w))
                     : "memory");
      }
  }

  __device__ static __forceinline__ void weights(const ConvArgs &args, uint32_t tile, uint32_t unit, uint32_t units,
                                                 uint4 (&to)[TILES][2]) {
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const bool inside = (tile + i) * 16 < args.cout && unit + u < units;
        to[i][u] = inside ? __ldg(args.weight + ((size_t)(tile + i) * units + unit + u) * 32 + threadIdx.x % 32)
                          : make_uint4(0, 0, 0, 0);
      }
  }

  __device__ static __forceinline__ void run(const ConvArgs &args) {
    __shared__ __align__(128) uint8_t storage[2][PIXELS * STAGE * 2];
    const uint32_t buffers = shared_address(storage);
    constexpr uint32_t BYTES = PIXELS * STAGE * 2;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t first = blockIdx.x * PIXELS, column = warp / ROWS * 32;
    const uint32_t tile = (blockIdx.y * ROWS + warp % ROWS) * TILES;
    const uint32_t depth = 9 * args.cin, units = (depth + 15) / 16, stages = (depth + STAGE - 1) / STAGE;

    Pixel pixels[SHARES];
#pragma unroll
    for (int i = 0; i < SHARES; ++i) pixels[i] = Pixel(args, first + threadIdx.x / 2 + i * (THREADS / 2));
    float4 values[SHARES][4];
    uint4 now[TILES][2], next[TILES][2];
    float sums[TILES][4][4] = {};
    gather(args, pixels, 0, values);
    weights(args, tile, 0, units, now);
    stage(buffers, values);
    __syncthreads();
#pragma unroll 1
    for (uint32_t s = 0; s < stages; ++s) {
      const bool more = s + 1 < stages;
      if (more) {
        gather(args, pixels, (s + 1) * STAGE, values);
        weights(args, tile, (s + 1) * 2, units, next);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Four matrices of 8 pixels x 8 columns: the two halves of two steps of 16.
        uint32_t b[4];
        load_matrices(b, buffers + s % 2 * BYTES + place(column + j * 8 + lane % 8, lane / 8));
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
          mma_bf16(sums[i][j], now[i][0], b[0], b[1]);
          mma_bf16(sums[i][j], now[i][1], b[2], b[3]);
        }
      }
      if (more) {
        stage(buffers + (s + 1) % 2 * BYTES, values);
#pragma unroll
        for (int i = 0; i < TILES; ++i) now[i][0] = next[i][0], now[i][1] = next[i][1];
      }
      __syncthreads();
    }

    const auto store = [&](uint32_t pixel, uint32_t output, float sum) {
      if (pixel < args.pixels && output < args.cout)
        args.out[(size_t)pixel * args.cout + output] = sum + args.bias[output];
    };
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t pixel = first + column + j * 8 + lane % 4 * 2, output = (tile + i) * 16 + lane / 4;
        store(pixel, output, sums[i][j][0]);
        store(pixel + 1, output, sums[i][j][1]);
        store(pixel, output + 8, sums[i][j][2]);
        store(pixel + 1, output + 8, sums[i][j][3]);
      }
  }
};

#define WEFT_CONV(NAME, ROWS, COLUMNS, TILES, N)                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
      NAME(const float *x, const uint4 *weight, const float *bias, float *out, uint32_t pixels, uint32_t height,      \
           uint32_t width, uint32_t stride, uint32_t cin, uint32_t cout, uint32_t per_channel) {                      \
    const uint32_t out_height = (height + stride - 1) / stride, out_width = (width + stride - 1) / stride;            \
    Conv<ROWS, COLUMNS, TILES, N>::run({x, weight, bias, out, pixels, height, width, out_height, out_width, stride,   \
                                        cin, cout, per_channel});                                                     \
  }

// Tiles of 64 outputs x 64 pixels; of 16 x 128 for few outputs. Names with _ragged take any number of channels, the
// others a multiple of 4.
WEFT_CONV(conv3x3, 2, 2, 2, 4)
WEFT_CONV(conv3x3_ragged, 2, 2, 2, 1)
WEFT_CONV(conv3x3_narrow, 1, 4, 1, 4)
WEFT_CONV(conv3x3_narrow_ragged, 1, 4, 1, 1)
