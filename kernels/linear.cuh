// Skinny matrix product on tensor cores: out[m][n] (+)= sum_k bf16(x[m][k]) w[n][k], for few rows m and a weight that
// is read once.
//
// The weight is the 16-row operand of mma.m16n8k16 and the tokens are its eight columns, so one token wastes seven
// columns of arithmetic that nobody waits for, and no memory traffic. The weight is packed when it is loaded (see
// `pack` in src/backend/cuda/ops/linear/weight.rs): tiles of 16 outputs, in each the units of 512 bytes along k, in a
// unit 16 bytes per lane, which are that lane's mma operand: copies are linear, the operand is one 128-bit load
// without bank conflicts, whatever the format.
//
// A block owns kNW * kNT tiles of 16 outputs, up to kMW * kMT * 8 tokens and one part of k. It streams stages of kKS
// columns of both through a ring of kStages in shared memory.
//
// Row invariance. The parts of k are a function of the weight's shape alone. In a part a sum runs over k in steps of
// 16, upwards, in one accumulator; the parts are added upwards. So neither the number of rows nor the tile a row falls
// into nor the variant of this kernel shows in a bit of the result, nor does the number of multiprocessors.
#pragma once
#include "operand.cuh"

// What is done with the sums.
enum LinearEpilogue { LINEAR_STORE = 0, LINEAR_ADD = 1, LINEAR_SWIGLU = 2 };

struct LinearArgs {
  WeftOut out;             // [rows][n]
  const uint4 *x;          // [rows][k], an operand
  uint32_t room;           // of it
  WeftRows rows;
  const uint32_t *groups;  // null, or group g has rows groups[g] .. groups[g + 1] and weight rows g n .. (g + 1) n
  const uint4 *a, *b;      // packed weights; b is the second of SwiGLU
  const void *scale_a, *scale_b;  // fp8: float per output; int4: see Int4
  const float *bias;       // null, or a float per weight row
  uint32_t n, k;           // outputs of a group, inputs
  uint32_t row_blocks;     // blocks along the rows
  uint32_t tiles;          // 16-row tiles of a weight
  uint32_t part;           // columns of a part of k, a multiple of 128
  uint32_t parts;
  uint32_t epilogue;       // LinearEpilogue
  float4 *partial;         // sums of the parts, if there are several
  uint32_t *arrived;       // blocks that left theirs; zero before and after a launch
};

template <int kNT, int kMT>
__device__ __forceinline__ void clear_sums(float (&sums)[kNT][kMT][4]) {
#pragma unroll
  for (int i = 0; i < kNT; i++)
#pragma unroll
    for (int j = 0; j < kMT; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[i][j][e] = 0.0f;
}

// ---- Formats of the weight ----

// A unit holds 512 / 32 = 16 bytes per lane: the operands of kSteps steps of 16 columns.
struct Bf16 {
  static constexpr int kSteps = 1;
  struct Scale {};
  __device__ static __forceinline__ Scale scale(const LinearArgs &, const void *, uint32_t, uint32_t, int) {
    return {};
  }
  template <int kStep>
  __device__ static __forceinline__ uint4 operand(uint4 unit, Scale) {
    return unit;
  }
  __device__ static __forceinline__ float finish(const void *, uint32_t, float sum) { return sum; }
};

__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// e4m3 without NaN, a factor per output that multiplies the sum. Byte 0 and 2 of a word are a pair, and 1 and 3.
struct Fp8 {
  static constexpr int kSteps = 2;
  struct Scale {};
  __device__ static __forceinline__ Scale scale(const LinearArgs &, const void *, uint32_t, uint32_t, int) {
    return {};
  }
  // Exponent and mantissa at their places in a bf16 make the value times 2^(7 - 127), subnormals too: the product with
  // 2^120 is exact.
  __device__ static __forceinline__ uint32_t widen(uint32_t magnitude, uint32_t sign) {
    return fma_bf16x2((magnitude & 0x07f007f0u) | (sign & 0x80008000u), 0x7b807b80u, 0x80008000u);
  }
  template <int kStep>
  __device__ static __forceinline__ uint4 operand(uint4 unit, Scale) {
    const uint32_t low = kStep == 0 ? unit.x : unit.z, high = kStep == 0 ? unit.y : unit.w;
    return {widen(low << 4, low << 8), widen(low >> 4, low), widen(high << 4, high << 8), widen(high >> 4, high)};
  }
  __device__ static __forceinline__ float finish(const void *scales, uint32_t row, float sum) {
    return sum * static_cast<const float *>(scales)[row];
  }
};

// Integers 0..15 in groups of 128 columns: w = bf16((q - zero) scale). Nibble i and i + 4 of a word are pair i of the
// operand of one step. Scales are [tile][group][8] of {row g, row g + 8}, a row being the scale in the low half and
// -(128 + zero) in the high one, both bf16.
struct Int4 {
  static constexpr int kSteps = 4;
  struct Scale {
    uint32_t low, high;
  };
  __device__ static __forceinline__ Scale scale(const LinearArgs &args, const void *scales, uint32_t tile, uint32_t k,
                                                int lane) {
    const uint32_t groups = (args.k + 127) / 128;
    if (tile >= args.tiles || k >= args.k) return {0, 0};
    const uint2 v = __ldg(static_cast<const uint2 *>(scales) + (size_t(tile) * groups + k / 128) * 8 + lane / 4);
    return {v.x, v.y};
  }
  // 128 + q is exact in bf16, and so is its difference to 128 + zero; the product is rounded once.
  __device__ static __forceinline__ uint32_t widen(uint32_t word, uint32_t scale) {
    const uint32_t zero = __byte_perm(scale, 0, 0x3232), factor = __byte_perm(scale, 0, 0x1010);
    const uint32_t integer = fma_bf16x2((word & 0x000f000fu) | 0x43004300u, 0x3f803f80u, zero);
    return fma_bf16x2(integer, factor, 0x80008000u);
  }
  template <int kStep>
  __device__ static __forceinline__ uint4 operand(uint4 unit, Scale s) {
    const uint32_t word = kStep == 0 ? unit.x : kStep == 1 ? unit.y : kStep == 2 ? unit.z : unit.w;
    return {widen(word, s.low), widen(word >> 4, s.high), widen(word >> 8, s.low), widen(word >> 12, s.high)};
  }
  __device__ static __forceinline__ float finish(const void *, uint32_t, float sum) { return sum; }
};

// ---- Where the tokens come from ----

// The rows of an operand (operand.cuh), whose panels a stage holds as they are.
template <int kRows, int kKS>
struct Tokens {
  static constexpr int kBytes = kRows * kKS * 2;

  // Where a thread copies from and to: one chunk of a row, and of the rows kThreads / 4 apart.
  struct Source {
    const uint4 *x;
    uint32_t row, left, to;  // its row, panels to the end of x, its place in a panel of a stage
  };

  // The groups of a launch begin at any row: the permutation is undone and done again.
  template <int kThreads>
  __device__ static __forceinline__ Source source(const LinearArgs &args, uint32_t first, uint32_t k) {
    static_assert(kThreads / 4 % 8 == 0, "the permutation of all rows of a thread is one");
    const uint32_t row = threadIdx.x / 4, chunk = threadIdx.x % 4, source = first + row;
    const uint4 *panel = args.x + size_t(k / 32) * args.room * 4;
    return {panel + source * 4 + (chunk ^ (source / 2 % 4)), row, (args.k + 31) / 32 - k / 32,
            row * 64 + ((chunk ^ (row / 2 % 4)) << 4)};
  }

  // Copies a stage and goes on to the next.
  template <int kThreads>
  __device__ static __forceinline__ void copy(const LinearArgs &args, Source &from, uint32_t to, uint32_t rows) {
    constexpr int kStride = kThreads / 4;
#pragma unroll
    for (int panel = 0; panel < kKS / 32; panel++) {
      const bool within = panel < from.left;
#pragma unroll
      for (int j = 0; j < (kRows + kStride - 1) / kStride; j++) {
        if ((j + 1) * kStride > kRows && from.row + j * kStride >= kRows) break;
        const bool inside = within && from.row + j * kStride < rows;
        copy_async_16(to + from.to + panel * kRows * 64 + j * kStride * 64,
                      inside ? from.x + j * kStride * 4 : args.x, inside);
      }
      from.x += size_t(args.room) * 4;
    }
    from.left -= min(from.left, uint32_t(kKS / 32));
  }

  __device__ static __forceinline__ void operand(uint32_t (&b)[4], uint32_t stage, uint32_t row, uint32_t k,
                                                 uint32_t lane) {
    const uint32_t r = row + lane % 8;
    load_matrices(b, stage + k / 32 * kRows * 64 + r * 64 + ((lane / 8 ^ (lane % 8 / 2)) << 4));
  }
};

// ---- The end of a block ----

// What becomes of the sums that kThreads threads of a block hold: kNT tiles of 16 outputs by kMT tiles of eight tokens
// for each warp, as mma leaves them.
template <class Format, int kThreads, int kNT, int kMT>
struct Sums {
  // The threads that hold sums wait for each other: not all of the block where other warps copy.
  __device__ static __forceinline__ void together() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

  // Leaves the sums of a part; the block that finds all parts there adds them up, in their order. Whether this is it.
  __device__ static __forceinline__ bool add_parts(const LinearArgs &args, float (&sums)[kNT][kMT][4], uint32_t slot,
                                                   uint32_t part, uint32_t thread, uint32_t mw, uint32_t rows) {
    constexpr uint32_t kPart = kNT * kMT * kThreads;
    float4 *mine = args.partial + size_t(slot) * args.parts * kPart + thread;
#pragma unroll
    for (int j = 0; j < kMT; j++)
      if ((mw * kMT + j) * 8 < rows) {
#pragma unroll
        for (int i = 0; i < kNT; i++) {
          const float(&s)[4] = sums[i][j];
          __stcg(mine + size_t(part) * kPart + (j * kNT + i) * kThreads, make_float4(s[0], s[1], s[2], s[3]));
        }
      }
    // The ring is free once all are here: a word of it tells them whether they are the last.
    extern __shared__ __align__(1024) uint8_t storage[];
    volatile uint32_t *last = reinterpret_cast<uint32_t *>(storage);
    __threadfence();
    together();
    if (thread == 0) {
      *last = atomicInc(args.arrived + slot, args.parts - 1) == args.parts - 1;  // which makes it zero again
    }
    together();
    if (!*last) return false;
    __threadfence();
#pragma unroll 1
    for (uint32_t p = 0; p < args.parts; p++) {
#pragma unroll
      for (int j = 0; j < kMT; j++)
        if ((mw * kMT + j) * 8 < rows) {
#pragma unroll
          for (int i = 0; i < kNT; i++) {
            const float4 v = __ldcg(mine + size_t(p) * kPart + (j * kNT + i) * kThreads);
            float(&s)[4] = sums[i][j];
            s[0] = p == 0 ? v.x : s[0] + v.x;
            s[1] = p == 0 ? v.y : s[1] + v.y;
            s[2] = p == 0 ? v.z : s[2] + v.z;
            s[3] = p == 0 ? v.w : s[3] + v.w;
          }
        }
    }
    // Nobody reads them again: they need not go from the cache to memory. The sums of a warp's tile are four lines.
    __syncwarp();
#pragma unroll 1
    for (uint32_t i = thread % 32; i < args.parts * kNT * kMT * 4; i += 32) {
      const uint32_t p = i / (kNT * kMT * 4), tile = i / 4 % (kNT * kMT), line = i % 4;
      const float4 *sums_of_warp = mine - thread % 32 + size_t(p) * kPart + tile * kThreads;
      if ((mw * kMT + tile / kNT) * 8 < rows) discard_line(sums_of_warp + line * 8);
    }
    return true;
  }

  // `column_a` and `column_b` are the outputs of the warp's tiles; a group's first tile may begin before its outputs.
  __device__ static __forceinline__ void finish(const LinearArgs &args, const float (&sums)[kNT][kMT][4],
                                                uint32_t column_a, uint32_t column_b, uint32_t begin, uint32_t rows,
                                                uint32_t first_row, uint32_t mw, uint32_t lane) {
    const bool swiglu = args.epilogue == LINEAR_SWIGLU;
#pragma unroll
    for (int i = 0; i < kNT; i++) {
      if (swiglu && i == 1) break;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        // Past the last output, or before the first as an unsigned number, nothing is written.
        const uint32_t column = (i == 0 ? column_a : column_b) + lane / 4 + half * 8;
        const uint32_t row = first_row + (column < args.n ? column : 0);
        const float bias = args.bias ? args.bias[row] : 0.0f;
        const auto value = [&](int j, int e) {
          float v = Format::finish(args.scale_a, row, sums[i][j][half * 2 + e]) + bias;
          if (swiglu) {
            const float up = Format::finish(args.scale_b, row, sums[kNT - 1][j][half * 2 + e]);
            v = __fdividef(v, 1.0f + expf(-v)) * up;  // within 2 ulp of the quotient
          }
          return v;
        };
        const uint32_t token = mw * kMT * 8 + lane % 4 * 2;
        if (args.out.room == 0) {
          store_floats(args, column, begin, token, rows, value);
        } else {
          store_operand(args, column, begin, token, rows, lane, value);
        }
      }
    }
  }

  // Writes an output of two tokens of each eight.
  template <class Value>
  __device__ static __forceinline__ void store_floats(const LinearArgs &args, uint32_t column, uint32_t begin,
                                                      uint32_t token, uint32_t rows, Value value) {
    if (column >= args.n) return;
    float *out = static_cast<float *>(args.out.data) + size_t(begin + token) * args.n + column;
#pragma unroll
    for (int j = 0; j < kMT; j++, token += 8, out += size_t(args.n) * 8)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        if (token + e >= rows) continue;
        float *to = out + (e ? args.n : 0);
        const float v = value(j, e);
        *to = args.epilogue == LINEAR_ADD ? *to + v : v;
      }
  }

  // The same, for the next product. Neighbours in a column swap, so that each writes two outputs of one token.
  template <class Value>
  __device__ static __forceinline__ void store_operand(const LinearArgs &args, uint32_t column, uint32_t begin,
                                                       uint32_t token, uint32_t rows, uint32_t lane, Value value) {
    const bool odd = lane / 4 % 2 != 0;
    column -= odd;
    token += odd;
#pragma unroll
    for (int j = 0; j < kMT; j++, token += 8) {
      const float first = value(j, 0), second = value(j, 1);
      const float other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 4);
      const float v[2] = {odd ? other : first, odd ? second : other};
      if (token >= rows || column >= args.n) continue;
      if (column + 1 < args.n) {
        store(args.out, begin + token, args.n, column, v);
      } else {
        store(args.out, begin + token, args.n, column, {v[0]});
      }
    }
  }
};

// ---- The kernel ----

template <class Format, int kNW, int kMW, int kNT, int kMT, int kKS, int kStages>
struct Linear {
  static constexpr int kThreads = kNW * kMW * 32;
  static constexpr int kRows = kMW * kMT * 8;
  static constexpr int kTiles = kNW * kNT;
  static constexpr int kUnits = kKS / 16 / Format::kSteps;  // of a tile in a stage
  static constexpr int kTileBytes = kUnits * 512;
  static constexpr int kWeightBytes = kTiles * kTileBytes;
  using X = Tokens<kRows, kKS>;
  using End = Sums<Format, kThreads, kNT, kMT>;
  static constexpr int kStageBytes = kWeightBytes + X::kBytes;
  static constexpr int kChunks = kTileBytes / 16;                 // of a tile in a stage
  static constexpr int kPasses = kTiles * kChunks / kThreads;     // copies of a thread
  static constexpr int kStride = kThreads / kChunks;              // tiles between two copies of a thread
  static_assert(kKS % 32 == 0 && kUnits >= 1 && kThreads % kChunks == 0 && kTiles % kStride == 0, "");
  static constexpr int kSides = kStride > kNW ? 1 : kNT;          // each with its own address
  static_assert(kStages * kStageBytes <= 99 * 1024, "what the smallest multiprocessors give to a block");

  // Where a thread copies the weights from: its lane's 16 bytes of a unit, in tiles kStride apart. The first kNW tiles
  // of a block are one side; the others follow them, or are of the second weight.
  struct Source {
    const uint4 *side[kSides];
    uint32_t tile[kSides];  // first tile of the thread on that side
    uint32_t left;          // units from the thread's one to the end of a tile
  };

  __device__ static __forceinline__ uint32_t units(const LinearArgs &args) {
    return (args.k + 16 * Format::kSteps - 1) / (16 * Format::kSteps);
  }

  __device__ static __forceinline__ Source source(const LinearArgs &args, uint32_t tile, bool swiglu, uint32_t k) {
    Source from;
    const uint32_t first = k / (16 * Format::kSteps);
    from.left = units(args) - min(units(args), first + threadIdx.x % kChunks / 32);
#pragma unroll
    for (int i = 0; i < kSides; i++) {
      const uint32_t q = i * kNW + threadIdx.x / kChunks;  // of the block
      const bool second = swiglu && q >= kNW;
      from.tile[i] = tile + (second ? q - kNW : q);
      from.side[i] =
          (second ? args.b : args.a) + (size_t(from.tile[i]) * units(args) + first) * 32 + threadIdx.x % kChunks;
    }
    return from;
  }

  // Copies a stage and goes on to the next.
  __device__ static __forceinline__ void copy_weights(const LinearArgs &args, Source &from, uint32_t to) {
#pragma unroll
    for (int j = 0; j < kPasses; j++) {
      const int side = j / (kPasses / kSides);
      const uint32_t skip = j % (kPasses / kSides) * kStride;
      const bool inside = from.left != 0 && from.tile[side] + skip < args.tiles;
      const uint4 *address = from.side[side] + size_t(skip) * units(args) * 32;
      copy_async_16(to + (threadIdx.x + j * kThreads) * 16, inside ? address : args.a, inside);
    }
#pragma unroll
    for (int i = 0; i < kSides; i++) from.side[i] += kUnits * 32;
    from.left -= min(from.left, uint32_t(kUnits));
  }

  __device__ static __forceinline__ void run(const LinearArgs &args) {
    extern __shared__ __align__(1024) uint8_t storage[];
    const uint32_t ring = shared_address(storage);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t nw = warp % kNW, mw = warp / kNW;

    // Blocks that share a part of the weight are neighbours.
    const uint32_t row_block = blockIdx.x % args.row_blocks, rest = blockIdx.x / args.row_blocks;
    const uint32_t part = rest % args.parts, column_block = rest / args.parts, group = blockIdx.y;
    const bool swiglu = args.epilogue == LINEAR_SWIGLU;
    const uint32_t first_row = group * args.n;  // of the weight
    const uint32_t tile = first_row / 16 + column_block * (swiglu ? kNW : kTiles);
    const uint32_t k_begin = part * args.part, k_end = min(args.k, k_begin + args.part);
    const uint32_t stages = (k_end - k_begin + kKS - 1) / kKS;

    Source from = source(args, tile, swiglu, k_begin);

    // The weights do not wait for the number of rows, which is a read away; other blocks may have nothing to do.
    const bool eager = row_block == 0 && args.groups == nullptr;
    uint32_t begin = 0, end;
    if (eager) {
#pragma unroll
      for (int s = 0; s < kStages - 1; s++)
        if (uint32_t(s) < stages) copy_weights(args, from, ring + s * kStageBytes);
    }
    end = weft_rows(args.rows);
    if (args.groups) {
      begin = args.groups[group];
      end = min(end, args.groups[group + 1]);
    }
    begin += row_block * kRows;
    if (begin >= end) {
      copy_commit();
      copy_wait<0>();
      return;
    }
    const uint32_t rows = min(end - begin, uint32_t(kRows));
    typename X::Source tokens = X::template source<kThreads>(args, begin, k_begin);
#pragma unroll
    for (int s = 0; s < kStages - 1; s++) {
      if (uint32_t(s) < stages) {
        const uint32_t to = ring + s * kStageBytes;
        if (!eager) copy_weights(args, from, to);
        X::template copy<kThreads>(args, tokens, to + kWeightBytes, rows);
      }
      copy_commit();
    }

    float sums[kNT][kMT][4];
    clear_sums(sums);

    const uint32_t tile_a = tile + nw, tile_b = swiglu ? tile_a : tile_a + kNW;
    typename Format::Scale scale[kNT], next[kNT];
    auto read_scales = [&](typename Format::Scale(&to)[kNT], uint32_t k) {
      to[0] = Format::scale(args, args.scale_a, tile_a, k, lane);
      if (kNT == 2) to[kNT - 1] = Format::scale(args, swiglu ? args.scale_b : args.scale_a, tile_b, k, lane);
    };
    read_scales(next, k_begin);

    uint32_t now = ring, free = ring + (kStages - 1) * kStageBytes;
#pragma unroll 1
    for (uint32_t stage = 0; stage < stages; stage++) {
      copy_wait<kStages - 2>();
      __syncthreads();  // this stage is there for all, and all have left the stage before it
      if (stage + kStages - 1 < stages) {
        copy_weights(args, from, free);
        X::template copy<kThreads>(args, tokens, free + kWeightBytes, rows);
      }
      copy_commit();
      if (stage % (128 / kKS) == 0) {
#pragma unroll
        for (int i = 0; i < kNT; i++) scale[i] = next[i];
        if (stage + 128 / kKS < stages) read_scales(next, k_begin + stage * kKS + 128);
      }
      multiply(sums, now, nw, mw, lane, scale);
      now += kStageBytes;
      if (now == ring + kStages * kStageBytes) now = ring;
      free += kStageBytes;
      if (free == ring + kStages * kStageBytes) free = ring;
    }
    copy_wait<0>();

    if (args.parts > 1) {
      const uint32_t columns = gridDim.x / (args.parts * args.row_blocks);
      const uint32_t slot = (group * columns + column_block) * args.row_blocks + row_block;
      if (!End::add_parts(args, sums, slot, part, threadIdx.x, mw, rows)) return;
    }
    End::finish(args, sums, tile_a * 16 - first_row, tile_b * 16 - first_row, begin, rows, first_row, mw, lane);
  }

  __device__ static __forceinline__ void multiply(float (&sums)[kNT][kMT][4], uint32_t stage, uint32_t nw, uint32_t mw,
                                                  uint32_t lane, const typename Format::Scale (&scale)[kNT]) {
    constexpr int kSpan = Format::kSteps > 2 ? Format::kSteps * 16 : 32;  // columns of a round: whole units, two steps
    const uint32_t weights = stage + nw * kTileBytes + lane * 16;
#pragma unroll(kNT * kMT > 16 ? 1 : kKS / kSpan)  // a loop where the sums leave few registers
    for (int k = 0; k < kKS; k += kSpan) {
      uint4 unit[kNT][kSpan / 16 / Format::kSteps];
#pragma unroll
      for (int i = 0; i < kNT; i++)
#pragma unroll
        for (int u = 0; u < kSpan / 16 / Format::kSteps; u++)
          unit[i][u] = load_shared_16(weights + i * kNW * kTileBytes + (k / 16 / Format::kSteps + u) * 512);
#pragma unroll
      for (int half = 0; half < kSpan / 32; half++) {
        uint4 a[kNT][2];
#pragma unroll
        for (int i = 0; i < kNT; i++) {
          if (Format::kSteps == 1) {
            a[i][0] = unit[i][0];
            a[i][1] = unit[i][kSpan / 16 / Format::kSteps - 1];
          } else if (half == 0) {
            a[i][0] = Format::template operand<0>(unit[i][0], scale[i]);
            a[i][1] = Format::template operand<1>(unit[i][0], scale[i]);
          } else {
            a[i][0] = Format::template operand<2>(unit[i][0], scale[i]);
            a[i][1] = Format::template operand<3>(unit[i][0], scale[i]);
          }
        }
#pragma unroll
        for (int j = 0; j < kMT; j++) {
          uint32_t b[4];
          X::operand(b, stage + kWeightBytes, (mw * kMT + j) * 8, k + half * 32, lane);
#pragma unroll
          for (int i = 0; i < kNT; i++) {
            mma_bf16(sums[i][j], a[i][0], b[0], b[1]);
            mma_bf16(sums[i][j], a[i][1], b[2], b[3]);
          }
        }
      }
    }
  }
};

// One entry point: the parameters are those of LinearArgs, in its order.
#define WEFT_LINEAR(name, min_blocks, ...) WEFT_LINEAR_ENTRY(name, min_blocks, Linear<__VA_ARGS__>)
#define WEFT_LINEAR_ENTRY(name, min_blocks, ...)                                                                   \
  extern "C" __global__ void __launch_bounds__((__VA_ARGS__::kThreads), min_blocks)                                \
      name(WeftOut out, const uint4 *x, uint32_t room, WeftRows rows, const uint32_t *groups, const uint4 *a,      \
           const uint4 *b, const void *scale_a, const void *scale_b, const float *bias, uint32_t n, uint32_t k,    \
           uint32_t row_blocks, uint32_t tiles, uint32_t part, uint32_t parts, uint32_t epilogue, float4 *partial, \
           uint32_t *arrived) {                                                                                    \
    __VA_ARGS__::run({out, x, room, rows, groups, a, b, scale_a, scale_b, bias, n, k, row_blocks, tiles, part,     \
                      parts, epilogue, partial, arrived});                                                         \
  }
