// RMSNorm per head, the rotary embedding, and the keys and values on their way into the cache, in one pass over the
// queries, keys and values of the step's rows.
//
// A warp takes a head of a row. The arithmetic is that of the CPU backend, operation by operation (nothing is fused, sums
// run in its order, the table is made on the host in f64), so that keys have the same bits there and here.
#include <cuda_fp8.h>

#include "common.cuh"

namespace {

constexpr int kWarps = 4;
constexpr uint32_t kAll = 0xffffffffu;
// Dimensions that the CPU sums side by side.
constexpr int kLanes = 16;

struct Params {
  float *qkv;
  WeftStep step;
  uint4 *cache;  // of the layer: [page][kv_head][keys, values][16][padded head_dim]
  const float *query_norm;
  const float *key_norm;
  const float *table;  // [coordinates][cosines, sines][pairs that turn with a coordinate]
  uint32_t coordinates;
  float key_scale, value_scale;  // of what the cache holds as fp8
  float eps;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t two_axes;
  uint32_t interleaved;
};

// Two dimensions that turn together, and the coordinate that turns them (0 or 1).
struct Pair {
  uint32_t a, b, axis, angle;
};

template <int kDim>
__device__ __forceinline__ Pair pair_of(uint32_t index, bool two_axes, bool interleaved) {
  const uint32_t turning = two_axes ? kDim / 2 : kDim;
  Pair pair;
  pair.axis = index / (turning / 2);
  pair.angle = index % (turning / 2);
  const uint32_t first = pair.axis * turning;
  pair.a = first + (interleaved ? 2 * pair.angle : pair.angle);
  pair.b = first + (interleaved ? 2 * pair.angle + 1 : pair.angle + turning / 2);
  return pair;
}

// 1 / sqrt(mean(x^2) + eps): lane i sums the dimensions i, i + 16, ..., then halves are added to halves.
template <int kDim>
__device__ __forceinline__ float inverse_rms(const float *x, float eps) {
  const uint32_t lane = threadIdx.x % kLanes;
  float sum = 0.0f;
#pragma unroll
  for (int first = 0; first < kDim; first += kLanes) {
    const float value = first + lane < kDim ? x[first + lane] : 0.0f;
    sum = __fadd_rn(sum, __fmul_rn(value, value));
  }
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    sum = __fadd_rn(sum, __shfl_down_sync(kAll, sum, distance, kLanes));
  }
  sum = __shfl_sync(kAll, sum, 0);
  // What lanes have read, others write in place: an exchange of registers orders no memory.
  __syncwarp();
  return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum, float(kDim)), eps)));
}

// Where a row's keys and values of a head go, and the coordinates by which it turns.
struct Place {
  uint32_t page, offset;
  uint32_t coordinate[2];

  __device__ __forceinline__ Place(const Params &p, uint32_t row) {
    const WeftRow of = p.step.rows[row];
    const WeftSequence sequence = p.step.sequences[of.sequence];
    const bool open = of.kind == WEFT_SLOT_OPEN, prefix = of.kind == WEFT_SLOT_PREFIX || open;
    const uint32_t first = prefix ? sequence.prefix_pages
                           : of.kind == WEFT_SLOT_GRID ? sequence.grid_pages
                                                       : sequence.scratch_pages;
    page = p.step.pages[first + of.slot / WEFT_PAGE];
    offset = of.slot % WEFT_PAGE;
    if (!p.two_axes) {
      coordinate[0] = coordinate[1] = prefix ? of.slot : sequence.prefix_len + of.at;
    } else if (prefix && !(open && of.at != WEFT_NONE)) {
      coordinate[0] = coordinate[1] = 0;
    } else {
      coordinate[0] = of.at / sequence.width + 1;
      coordinate[1] = of.at % sequence.width + 1;
    }
  }
};

template <int kBytes>
struct Stored;
template <>
struct Stored<1> {
  using One = uint8_t;
  using Two = uint16_t;
};
template <>
struct Stored<2> {
  using One = uint16_t;
  using Two = uint32_t;
};

// Two numbers, rounded to what the cache holds: bf16, or fp8 (e4m3) with numbers beyond its range at its ends.
template <int kBytes>
__device__ __forceinline__ uint32_t pack(float low, float high, float scale) {
  if constexpr (kBytes == 2) {
    return pack_bf16(low, high);
  } else {
    const float2 scaled = make_float2(__fmul_rn(low, scale), __fmul_rn(high, scale));
    return __nv_cvt_float2_to_fp8x2(scaled, __NV_SATFINITE, __NV_E4M3);
  }
}

// A head of queries is turned in place; a head of keys or values goes to the cache.
template <int kDim, int kBytes>
__device__ __forceinline__ void turn(const Params &p, uint32_t row, uint32_t head) {
  // A number of the cache, and two side by side.
  using One = typename Stored<kBytes>::One;
  using Two = typename Stored<kBytes>::Two;
  constexpr int kPadded = (kDim * kBytes + 15) / 16 * 16 / kBytes;
  const uint32_t lane = threadIdx.x % 32;
  const bool query = head < p.heads, value = head >= p.heads + p.kv_heads;
  const Place place(p, row);
  float *x = p.qkv + (size_t(row) * (p.heads + 2 * p.kv_heads) + head) * kDim;
  const uint32_t kv_head = (head - p.heads) % p.kv_heads;
  One *line = nullptr;
  if (!query) {
    const size_t side = (size_t(place.page) * p.kv_heads + kv_head) * 2 + (value ? 1 : 0);
    line = reinterpret_cast<One *>(p.cache) + (side * WEFT_PAGE + place.offset) * kPadded;
  }
  const float *norm = query ? p.query_norm : p.key_norm;
  const float scale = norm && !value ? inverse_rms<kDim>(x, p.eps) : 1.0f;

  const uint32_t turning = p.two_axes ? kDim / 2 : kDim;
  for (uint32_t i = lane; i < kDim / 2; i += 32) {
    // Neighbours where nothing turns, so that two values are stored at once.
    const Pair pair = value ? Pair{2 * i, 2 * i + 1, 0, 0} : pair_of<kDim>(i, p.two_axes, p.interleaved);
    float a = x[pair.a], b = x[pair.b];
    if (!value) {
      if (norm) {
        a = __fmul_rn(__fmul_rn(a, scale), norm[pair.a]);
        b = __fmul_rn(__fmul_rn(b, scale), norm[pair.b]);
      }
      const uint32_t coordinate = pair.axis == 0 ? place.coordinate[0] : place.coordinate[1];
      const float *angles = p.table + size_t(min(coordinate, p.coordinates - 1)) * turning;
      const float cos = angles[pair.angle], sin = angles[turning / 2 + pair.angle];
      const float turned = __fsub_rn(__fmul_rn(a, cos), __fmul_rn(b, sin));
      b = __fadd_rn(__fmul_rn(b, cos), __fmul_rn(a, sin));
      a = turned;
    }
    if (query) {
      x[pair.a] = a;
      x[pair.b] = b;
      continue;
    }
    const uint32_t packed = pack<kBytes>(a, b, value ? p.value_scale : p.key_scale);
    if (value || p.interleaved) {
      reinterpret_cast<Two *>(line)[pair.a / 2] = Two(packed);
    } else {
      line[pair.a] = One(packed);
      line[pair.b] = One(packed >> (8 * kBytes));
    }
  }
  if (kPadded > kDim && !query && lane < (kPadded - kDim) / 2) {
    reinterpret_cast<Two *>(line)[kDim / 2 + lane] = 0;
  }
}

template <int kDim, int kBytes>
__device__ __forceinline__ void turn_all(const Params &p) {
  const uint32_t heads = p.heads + 2 * p.kv_heads;
  const uint32_t items = p.step.counts->rows * heads;
  for (uint32_t item = blockIdx.x * kWarps + threadIdx.x / 32; item < items; item += gridDim.x * kWarps) {
    turn<kDim, kBytes>(p, item / heads, item % heads);
  }
}

}  // namespace

// One block a multiprocessor is asked for: without a number ptxas holds itself to 32 registers on sm_100a, and spills.
#define WEFT_ROTATE(kName, kDim, kBytes)                                                                              \
  extern "C" __global__ void __launch_bounds__(32 * kWarps, 1)                                                        \
      kName(float *qkv, WeftStep step, uint4 *cache, const float *query_norm, const float *key_norm,                  \
            const float *table, uint32_t coordinates, float key_scale, float value_scale, float eps, uint32_t heads,  \
            uint32_t kv_heads, uint32_t two_axes, uint32_t interleaved) {                                             \
    turn_all<kDim, kBytes>({qkv, step, cache, query_norm, key_norm, table, coordinates, key_scale, value_scale, eps,  \
                            heads, kv_heads, two_axes, interleaved});                                                 \
  }

WEFT_ROTATE(rotate_and_store_64, 64, 2)
WEFT_ROTATE(rotate_and_store_80, 80, 2)
WEFT_ROTATE(rotate_and_store_96, 96, 2)
WEFT_ROTATE(rotate_and_store_100, 100, 2)
WEFT_ROTATE(rotate_and_store_128, 128, 2)
WEFT_ROTATE(rotate_and_store_fp8_64, 64, 1)
WEFT_ROTATE(rotate_and_store_fp8_80, 80, 1)
WEFT_ROTATE(rotate_and_store_fp8_96, 96, 1)
WEFT_ROTATE(rotate_and_store_fp8_100, 100, 1)
WEFT_ROTATE(rotate_and_store_fp8_128, 128, 1)
