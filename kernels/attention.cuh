// Spatial tree attention over the paged cache: softmax(q K^T / sqrt(d)) V over the slots that a row sees.
//
// What is computed, whatever the launch: the slots of a sequence are cut into parts of WEFT_ATTENTION_SPLIT at absolute
// places (prefix, grid and scratch slots apart). A part runs in chunks of 64 keys through a softmax that carries (largest
// score, sum, weighted values) from chunk to chunk, and the parts are merged in ascending order. A chunk or a part of
// which a row sees nothing leaves that row's numbers as they are, bit by bit, so that a row's result depends on its own
// query and its own keys only.
//
// Who computes it: a block takes up to 64 query vectors (rows of one tile x the query heads that share a key head), so that
// all of them share each load of a key. With few queries a block takes one part, leaves its numbers in memory, and the
// block that finishes last merges (counted by an integer); with many queries a block walks all parts and merges in
// registers. Both give the same bits.
//
// Precision: q is rounded to bf16, scores are f32 sums of the tensor cores, probabilities are 2^x by ex2.approx (at most
// 2 ulp off) rounded to bf16 before they meet the values, and the sum that divides is of the rounded ones.
#pragma once
#include "attention_plan.cuh"

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kStages = 2;

static_assert(kQueries == 16 * kWarps, "each warp has sixteen queries");
static_assert(kChunk == kWarps * WEFT_PAGE, "each warp loads a page of a chunk");

// A row of kPieces times 16 bytes in shared memory.
template <int kPieces>
struct Line {
  // Pieces are exchanged within groups of so many, less one: eight rows at the same piece, and eight pieces in a row, lie
  // in different banks, whatever power of two divides the row.
  static constexpr uint32_t kSwap = kPieces % 8 == 0 ? 7 : kPieces % 4 == 0 ? 3 : kPieces % 2 == 0 ? 1 : 0;

  // Offset of a piece of a row. Adding 16 rows to it is adding 16 rows of bytes.
  static __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece) {
    const uint32_t swap = kSwap == 7 ? row : kSwap == 3 ? row / 2 : row / 4;
    return (row * kPieces + (piece ^ (swap & kSwap))) * 16;
  }

  // Offset of the piece `count` further, given that of piece 0 (or of piece 1, if the count is even): one operation on a
  // register.
  static __device__ __forceinline__ uint32_t further(uint32_t place, uint32_t count) {
    const uint32_t swapped = count & kSwap;
    return (place ^ 16 * swapped) + 16 * (count - swapped);
  }

  static __device__ __forceinline__ uint32_t rows(uint32_t count) { return count * kPieces * 16; }
};

// Heads of kDim numbers whose keys and values take kBytes each: 2 as bf16, 1 as fp8 (e4m3).
template <int kDim, int kBytes>
struct Head {
  // A key or value in the cache and in shared memory, the last piece padded with zeros.
  static constexpr int kPieces = (kDim * kBytes + 15) / 16;
  static constexpr int kPadded = kPieces * 16 / kBytes;
  // Eight dimensions: a piece of a query, a tile of the result.
  static constexpr int kEights = kPadded / 8;
  // Depth of the product with the queries: steps of 16, and one of 8 where that leaves a rest.
  static constexpr int kSteps = kEights / 2;
  static constexpr bool kRest = kEights % 2 != 0;
  static constexpr int kQueryBytes = kQueries * kEights * 16;
  static constexpr int kSideBytes = kChunk * kPieces * 16;

  using Query = Line<kEights>;
  using Key = Line<kPieces>;
};

__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two matrices; the addresses of lanes 0 to 15 count.
__device__ __forceinline__ void load_two_transposed(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_two_matrices(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

// d[16][8] += a[16][8] b[8][8].
__device__ __forceinline__ void mma_bf16_8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Two fp8 (e4m3) numbers, each in the low byte of a half, as bf16. Their bits, moved to bf16's places, are the number
// times 2^-120, also where it is subnormal.
__device__ __forceinline__ uint32_t wide_fp8(uint32_t bytes) {
  const uint32_t moved = (bytes & 0x00800080) << 8 | (bytes & 0x007f007f) << 4;
  uint32_t wide;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(wide) : "r"(moved), "r"(0x7b807b80), "r"(0x80008000));
  return wide;
}

// ---- Sums and merges of a softmax ----

// Factors of two states with the largest scores `a` and `b`, for their sum. A state that has seen nothing (minus
// infinity) has factor 0, and the other then has exactly 1.
struct Merge {
  float most, a, b;

  __device__ __forceinline__ Merge(float left, float right) {
    most = fmaxf(left, right);
    const float base = most == -INFINITY ? 0.0f : most;
    a = exp2_approximate(left - base);
    b = exp2_approximate(right - base);
  }

  // Written out, so that the two places that merge round alike.
  __device__ __forceinline__ float operator()(float left, float right) const {
    return __fmaf_rn(right, b, __fmul_rn(left, a));
  }
};

// ---- A slice of a tile ----

// Softmax of a warp's sixteen queries in progress; of each accumulator a lane holds the rows lane / 4 and lane / 4 + 8.
template <int kDim, int kBytes>
struct State {
  float most[2];
  float sum[2];
  float values[Head<kDim, kBytes>::kEights][4];

  __device__ __forceinline__ void clear() {
    most[0] = most[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < Head<kDim, kBytes>::kEights; i++) values[i][0] = values[i][1] = values[i][2] = values[i][3] = 0.0f;
  }

  // The lanes of a row summed their own keys.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += __shfl_xor_sync(kAll, sum[half], 1);
      sum[half] += __shfl_xor_sync(kAll, sum[half], 2);
    }
  }

  // Adds a later part, which is finished.
  __device__ __forceinline__ void merge(const State &part) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Merge merge(most[half], part.most[half]);
      most[half] = merge.most;
      sum[half] = merge(sum[half], part.sum[half]);
#pragma unroll
      for (int i = 0; i < Head<kDim, kBytes>::kEights; i++) {
        values[i][2 * half] = merge(values[i][2 * half], part.values[i][2 * half]);
        values[i][2 * half + 1] = merge(values[i][2 * half + 1], part.values[i][2 * half + 1]);
      }
    }
  }
};

template <int kDim, int kBytes>
struct Slice {
  using Of = Head<kDim, kBytes>;

  const Params &p;
  const Plan &plan;
  const Views &views;
  uint32_t shared;  // queries, then for each stage keys and values

  // Where the numbers of a query are in the tensors: its row, and its head among all heads.
  __device__ __forceinline__ uint32_t tensor_row(uint32_t query) const { return plan.first + query / p.group; }
  __device__ __forceinline__ uint32_t head(uint32_t query) const { return blockIdx.y * p.group + query % p.group; }
  __device__ __forceinline__ size_t tensor_head(uint32_t query) const {
    return size_t(tensor_row(query)) * (p.kv_heads * p.group) + head(query);
  }

  __device__ __forceinline__ uint32_t keys(uint32_t stage) const {
    return shared + Of::kQueryBytes + stage * 2 * Of::kSideBytes;
  }
  __device__ __forceinline__ uint32_t values(uint32_t stage) const { return keys(stage) + Of::kSideBytes; }

  // Eight numbers of a query that exists, from a multiple of four on; zeros past its end.
  __device__ __forceinline__ void load_query(uint32_t query, uint32_t first, uint32_t second, float4 &a, float4 &b) const {
    a = b = make_float4(0, 0, 0, 0);
    if (query >= plan.queries) return;
    const uint32_t cols = (p.group + 2) * p.kv_heads * kDim;
    const float *from = p.qkv + size_t(tensor_row(query)) * cols + head(query) * kDim;
    if (kDim == Of::kPadded || first < kDim) a = *reinterpret_cast<const float4 *>(from + first);
    if (kDim == Of::kPadded || second < kDim) b = *reinterpret_cast<const float4 *>(from + second);
  }

  // The queries as bf16, rows of zeros up to the next sixteen. The product with fp8 keys takes sixteen dimensions in
  // another order: of each four, first the first two, eight in all, then the others.
  __device__ __forceinline__ void load_queries() const {
    const uint32_t padded = (plan.queries + 15) / 16 * 16;
    for (uint32_t i = threadIdx.x; i < padded * Of::kEights; i += kThreads) {
      const uint32_t query = i / Of::kEights, piece = i % Of::kEights;
      uint4 packed;
      if constexpr (kBytes == 2) {
        float4 a, b;
        load_query(query, 8 * piece, 8 * piece + 4, a, b);
        packed = make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
      } else {
        float4 a, b, c, d;
        const uint32_t first = piece / 2 * 16;
        load_query(query, first, first + 4, a, b);
        load_query(query, first + 8, first + 12, c, d);
        packed = piece % 2 == 0
                     ? make_uint4(pack_bf16(a.x, a.y), pack_bf16(b.x, b.y), pack_bf16(c.x, c.y), pack_bf16(d.x, d.y))
                     : make_uint4(pack_bf16(a.z, a.w), pack_bf16(b.z, b.w), pack_bf16(c.z, c.w), pack_bf16(d.z, d.w));
      }
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared + Of::Query::place(query, piece)),
                   "r"(packed.x), "r"(packed.y), "r"(packed.z), "r"(packed.w)
                   : "memory");
    }
  }

  // Begins the copy of a chunk to a stage: each warp takes a page, whose keys and values are one run of memory. A page
  // that no row sees is not read.
  __device__ __forceinline__ void load_chunk(Walk &walk, Chunk *ring, uint32_t stage) const {
    uint64_t any = 0;
    const Chunk chunk = walk.next(any);
    if (threadIdx.x == 0) ring[stage] = chunk;
    if (chunk.kind != WEFT_NONE) {
      const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
      const bool wanted = (any >> (WEFT_PAGE * warp) & 0xffff) != 0;
      const uint32_t page = wanted ? p.step.pages[walk.page(chunk) + warp] : 0;
      const uint4 *from = p.cache + (size_t(page) * p.kv_heads + blockIdx.y) * (2 * WEFT_PAGE * Of::kPieces);
#pragma unroll
      for (int i = 0; i < Of::kPieces; i++) {
        const uint32_t piece = 32 * i + lane, line = piece / Of::kPieces;
        const uint32_t to = (line < WEFT_PAGE ? keys(stage) : values(stage)) +
                            Of::Key::place(WEFT_PAGE * warp + line % WEFT_PAGE, piece % Of::kPieces);
        copy_async_16(to, from + piece, wanted);
      }
    }
    copy_commit();
  }

  // scores = queries of this warp times the keys of a stage.
  __device__ __forceinline__ void score(float (&scores)[kChunk / 8][4], uint32_t stage) const {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < kChunk / 8; i++) scores[i][0] = scores[i][1] = scores[i][2] = scores[i][3] = 0.0f;
    const uint32_t query = shared + Of::Query::rows(16 * warp), query_lane = Of::Query::place(lane % 16, lane / 16);
    const uint32_t key = keys(stage);
#pragma unroll
    for (int step = 0; step < Of::kSteps; step++) {
      uint32_t q[4];
      load_matrices(q, query + Of::Query::further(query_lane, 2 * step));
      const uint4 queries = make_uint4(q[0], q[1], q[2], q[3]);
      if constexpr (kBytes == 2) {
        const uint32_t key_lane = Of::Key::place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
        for (int pair = 0; pair < kChunk / 16; pair++) {
          uint32_t k[4];
          load_matrices(k, key + Of::Key::further(key_lane, 2 * step) + Of::Key::rows(16 * pair));
          mma_bf16(scores[2 * pair], queries, k[0], k[1]);
          mma_bf16(scores[2 * pair + 1], queries, k[2], k[3]);
        }
      } else {
        // A lane has four dimensions in a row of each key.
        const uint32_t key_lane = Of::Key::place(lane, 0);
#pragma unroll
        for (int four = 0; four < kChunk / 32; four++) {
          uint32_t k[4];
          load_matrices(k, key + Of::Key::further(key_lane, step) + Of::Key::rows(32 * four));
#pragma unroll
          for (int i = 0; i < 4; i++) {
            mma_bf16(scores[4 * four + i], queries, wide_fp8(__byte_perm(k[i], 0, 0x4140)),
                     wide_fp8(__byte_perm(k[i], 0, 0x4342)));
          }
        }
      }
    }
    if constexpr (kBytes == 2 && Of::kRest) {
      uint32_t q[2];
      load_two_matrices(q, query + Of::Query::place(lane % 16, Of::kEights - 1));
#pragma unroll
      for (int four = 0; four < kChunk / 32; four++) {
        uint32_t k[4];
        load_matrices(k, key + Of::Key::place(lane, Of::kPieces - 1) + Of::Key::rows(32 * four));
#pragma unroll
        for (int i = 0; i < 4; i++) mma_bf16_8(scores[4 * four + i], q, k[i]);
      }
    }
  }

  // Adds the keys of a stage to the state of this warp's queries.
  __device__ __forceinline__ void attend(State<kDim, kBytes> &state, const Chunk &chunk, uint32_t stage) const {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float scores[kChunk / 8][4];
    score(scores, stage);

    // The slots that this lane's two queries see.
    uint64_t seen[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      seen[half] = visible(p, plan, views, chunk, 16 * warp + lane / 4 + 8 * half);
    }
    if (!__all_sync(kAll, (seen[0] & seen[1]) == ~uint64_t(0))) {
      const uint32_t shift = 2 * (lane % 4);
      seen[0] >>= shift;
      seen[1] >>= shift;
#pragma unroll
      for (int i = 0; i < kChunk / 8; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          if (!(seen[j / 2] >> (8 * i + j % 2) & 1)) scores[i][j] = -INFINITY;
        }
      }
    }

    float keep[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = -INFINITY;
#pragma unroll
      for (int i = 0; i < kChunk / 8; i++) most = fmaxf(most, fmaxf(scores[i][2 * half], scores[i][2 * half + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAll, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAll, most, 2));
      most = fmaxf(state.most[half], most * p.scale);
      const float base = most == -INFINITY ? 0.0f : most;
      keep[half] = exp2_approximate(state.most[half] - base);
      state.most[half] = most;
#pragma unroll
      for (int i = 0; i < kChunk / 8; i++) {
        scores[i][2 * half] = exp2_approximate(__fmaf_rn(scores[i][2 * half], p.scale, -base));
        scores[i][2 * half + 1] = exp2_approximate(__fmaf_rn(scores[i][2 * half + 1], p.scale, -base));
      }
      state.sum[half] *= keep[half];
    }
    if (!__all_sync(kAll, keep[0] == 1.0f && keep[1] == 1.0f)) {
#pragma unroll
      for (int i = 0; i < Of::kEights; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) state.values[i][j] *= keep[j / 2];
      }
    }
    add_values(state, scores, stage);
  }

  __device__ __forceinline__ void add_values(State<kDim, kBytes> &state, const float (&weights)[kChunk / 8][4],
                                             uint32_t stage) const {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t value = values(stage), value_lane = Of::Key::place(lane % 16, lane / 16);
#pragma unroll
    for (int j = 0; j < kChunk / 16; j++) {
      const uint4 w = make_uint4(pack_bf16(weights[2 * j][0], weights[2 * j][1]),
                                 pack_bf16(weights[2 * j][2], weights[2 * j][3]),
                                 pack_bf16(weights[2 * j + 1][0], weights[2 * j + 1][1]),
                                 pack_bf16(weights[2 * j + 1][2], weights[2 * j + 1][3]));
      state.sum[0] += (low_bf16(w.x) + high_bf16(w.x)) + (low_bf16(w.z) + high_bf16(w.z));
      state.sum[1] += (low_bf16(w.y) + high_bf16(w.y)) + (low_bf16(w.w) + high_bf16(w.w));
#pragma unroll
      for (int i = 0; i + 1 < Of::kPieces; i += 2) {
        uint32_t v[4];
        load_matrices_transposed(v, value + Of::Key::further(value_lane, i) + Of::Key::rows(16 * j));
        add_piece(state, i, w, v[0], v[1]);
        add_piece(state, i + 1, w, v[2], v[3]);
      }
      if constexpr (Of::kPieces % 2 != 0) {
        uint32_t v[2];
        load_two_transposed(v, value + Of::Key::place(lane % 16, Of::kPieces - 1) + Of::Key::rows(16 * j));
        add_piece(state, Of::kPieces - 1, w, v[0], v[1]);
      }
    }
  }

  // Of a piece of fp8 values a lane has two dimensions side by side: the even ones are one tile, the odd ones the next.
  static __device__ __forceinline__ void add_piece(State<kDim, kBytes> &state, int piece, uint4 weights, uint32_t low,
                                                   uint32_t high) {
    if constexpr (kBytes == 2) {
      mma_bf16(state.values[piece], weights, low, high);
    } else {
      mma_bf16(state.values[2 * piece], weights, wide_fp8(low & 0x00ff00ff), wide_fp8(high & 0x00ff00ff));
      mma_bf16(state.values[2 * piece + 1], weights, wide_fp8(low >> 8 & 0x00ff00ff), wide_fp8(high >> 8 & 0x00ff00ff));
    }
  }

  // Writes a query's numbers, times `scale`, from `column` of a row on: kDim of them, or all with their padding.
  static __device__ __forceinline__ void write(const State<kDim, kBytes> &state, int half, float scale,
                                               const WeftOut &out, uint32_t row, uint32_t cols, uint32_t column,
                                               int length) {
    const uint32_t lane = threadIdx.x % 32;
    if constexpr (kBytes == 2) {
#pragma unroll
      for (int i = 0; i < Of::kEights; i++) {
        const int at = 8 * i + 2 * (lane % 4);
        if (kDim != Of::kPadded && at >= length) continue;
        const float v[2] = {__fmul_rn(state.values[i][2 * half], scale), __fmul_rn(state.values[i][2 * half + 1], scale)};
        ::store(out, row, cols, column + at, v);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Of::kEights; i += 2) {
        const int at = 8 * i + 4 * (lane % 4);
        if (kDim != Of::kPadded && at >= length) continue;
        const float v[4] = {
            __fmul_rn(state.values[i][2 * half], scale), __fmul_rn(state.values[i + 1][2 * half], scale),
            __fmul_rn(state.values[i][2 * half + 1], scale), __fmul_rn(state.values[i + 1][2 * half + 1], scale)};
        ::store(out, row, cols, column + at, v);
      }
    }
  }

  __device__ __forceinline__ uint32_t out_cols() const { return p.kv_heads * p.group * kDim; }

  __device__ __forceinline__ void store(const State<kDim, kBytes> &state) const {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t query = 16 * warp + lane / 4 + 8 * half;
      if (query >= plan.queries) continue;
      const float scale = __fmul_rn(__frcp_rn(state.sum[half]), p.value_scale);
      write(state, half, scale, p.out, tensor_row(query), out_cols(), head(query) * kDim, kDim);
    }
  }

  // ---- Parts that blocks leave for each other: (largest, sum) of all queries' parts, then their values. What one query
  // leaves is whole lines of the level 2 cache. ----

  static constexpr int kLeft = (Of::kPadded + 31) / 32 * 32;  // floats of a query's part

  __device__ __forceinline__ float2 *partial_sums(const Work &work, size_t query) const {
    return reinterpret_cast<float2 *>(p.partials) + query * work.sums_per_query();
  }
  __device__ __forceinline__ float *partial_values(const Work &work, size_t query) const {
    const size_t queries = size_t(work.rows) * (p.kv_heads * p.group);
    return p.partials + 2 * queries * work.sums_per_query() + query * work.most_parts * kLeft;
  }

  __device__ __forceinline__ void leave(const Work &work, const State<kDim, kBytes> &state) const {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t query = 16 * warp + lane / 4 + 8 * half;
      if (query >= plan.queries) continue;
      const size_t of = tensor_head(query);
      if (lane % 4 == 0) partial_sums(work, of)[plan.part] = make_float2(state.most[half], state.sum[half]);
      write(state, half, 1.0f, {partial_values(work, of), 0}, plan.part, kLeft, 0, Of::kPadded);
    }
  }

  // Merges all parts of the slice.
  __device__ __forceinline__ void merge_parts(const Work &work) const {
    constexpr uint32_t kQuads = kDim / 4;
    for (uint32_t i = threadIdx.x; i < plan.queries * kQuads; i += kThreads) {
      const uint32_t query = i / kQuads, quad = i % kQuads;
      float most = -INFINITY, sum = 0.0f;
      float4 values = make_float4(0, 0, 0, 0);
      const float2 *sums_of = partial_sums(work, tensor_head(query));
      const float4 *from = reinterpret_cast<const float4 *>(partial_values(work, tensor_head(query))) + quad;
      for (uint32_t part = 0; part < plan.all_parts; part++) {
        const float2 sums = __ldcg(sums_of + part);
        const float4 of = __ldcg(from + part * (kLeft / 4));
        const Merge merge(most, sums.x);
        most = merge.most;
        sum = merge(sum, sums.y);
        values = make_float4(merge(values.x, of.x), merge(values.y, of.y), merge(values.z, of.z), merge(values.w, of.w));
      }
      const float scale = __fmul_rn(__frcp_rn(sum), p.value_scale);
      const float v[4] = {__fmul_rn(values.x, scale), __fmul_rn(values.y, scale), __fmul_rn(values.z, scale),
                          __fmul_rn(values.w, scale)};
      ::store(p.out, tensor_row(query), out_cols(), head(query) * kDim + 4 * quad, v);
    }
  }

  // Gives up what merge_parts read: nobody reads it again, so it need not go from the cache to memory.
  __device__ __forceinline__ void discard_parts(const Work &work) const {
    const uint32_t of_values = plan.all_parts * (kLeft / 32), lines = of_values + (plan.all_parts + 15) / 16;
    for (uint32_t i = threadIdx.x; i < plan.queries * lines; i += kThreads) {
      const size_t query = tensor_head(i / lines);
      const uint32_t line = i % lines;
      discard_line(line < of_values ? partial_values(work, query) + line * 32
                                    : reinterpret_cast<float *>(partial_sums(work, query)) + (line - of_values) * 32);
    }
  }
};

// Runs a plan through the pipeline; `state` is then the part that it ends in, `total` the parts before it.
template <int kDim, int kBytes>
__device__ __forceinline__ void run(const Slice<kDim, kBytes> &slice, Chunk *ring, State<kDim, kBytes> &total, State<kDim, kBytes> &state) {
  const bool busy = 16 * (threadIdx.x / 32) < slice.plan.queries;
  Walk walk(slice.p.step, slice.plan);
#pragma unroll
  for (uint32_t stage = 0; stage < kStages; stage++) slice.load_chunk(walk, ring, stage);
  uint32_t part = slice.plan.part;
  for (uint32_t stage = 0;; stage = (stage + 1) % kStages) {
    copy_wait<kStages - 1>();
    __syncthreads();
    const Chunk chunk = ring[stage];
    if (chunk.kind == WEFT_NONE) break;
    if (busy) {
      if (chunk.part != part) {
        state.finish();
        total.merge(state);
        state.clear();
        part = chunk.part;
      }
      slice.attend(state, chunk, stage);
    }
    __syncthreads();  // all are done with the stage
    slice.load_chunk(walk, ring, stage);
  }
  state.finish();
}

template <int kDim, int kBytes>
__device__ __forceinline__ void attend_all(const Params &p) {
  extern __shared__ __align__(128) uint8_t dynamic_shared[];
  __shared__ Work work;
  __shared__ Plan plan;
  __shared__ Views views;
  __shared__ Chunk ring[kStages];
  __shared__ bool last;

  const Planner planner{p};
  const Slice<kDim, kBytes> slice{p, plan, views, shared_address(dynamic_shared)};
  if (threadIdx.x < 32) {
    const Work surveyed = planner.survey();
    if (threadIdx.x == 0) work = surveyed;
  }
  __syncthreads();
  for (uint32_t index = blockIdx.x; index < work.items(); index += gridDim.x) {
    if (threadIdx.x < 32) planner.plan(work, index, plan, views);
    __syncthreads();
    slice.load_queries();  // seen by all after the pipeline's first barrier
    State<kDim, kBytes> total, state;
    total.clear();
    state.clear();
    run(slice, ring, total, state);
    if (plan.end - plan.part == plan.all_parts) {
      total.merge(state);
      slice.store(total);
    } else {
      slice.leave(work, state);
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        uint32_t *finished = p.finished + size_t(plan.first) * p.kv_heads + blockIdx.y;
        last = atomicAdd(finished, 1) + 1 == plan.all_parts;
        if (last) atomicExch(finished, 0);
      }
      __syncthreads();
      if (last) {
        __threadfence();
        slice.merge_parts(work);
        __syncthreads();  // all have read them
        slice.discard_parts(work);
      }
    }
    __syncthreads();  // shared memory is free again
  }
}

}  // namespace

#define WEFT_ATTENTION(kName, kDim, kBytes)                                                                          \
  extern "C" __global__ void __launch_bounds__(kThreads, 2)                                                          \
      kName(const float *qkv, WeftStep step, const uint4 *cache, WeftOut out, float *partials,                        \
            uint32_t partial_floats, uint32_t *finished, uint32_t finished_len, uint32_t kv_heads, uint32_t group,   \
            uint32_t multiprocessors, float scale, float value_scale) {                                              \
    attend_all<kDim, kBytes>({qkv, step, cache, out, partials, partial_floats, finished, finished_len, kv_heads,     \
                              group, multiprocessors, scale, value_scale});                                          \
  }
