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
#include "attention_plan.cuh"

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kStages = 2;

static_assert(kQueries == 16 * kWarps, "each warp has sixteen queries");
static_assert(kChunk == kWarps * WEFT_PAGE, "each warp loads a page of a chunk");

// A key or value of kDim numbers in shared memory and in the cache: kPieces of 16 bytes, the last one padded with zeros.
template <int kDim>
struct Head {
  static constexpr int kPieces = (kDim + 7) / 8;
  static constexpr int kPadded = 8 * kPieces;
  // Depth of the product with the queries: steps of 16, and one of 8 where that leaves a rest.
  static constexpr int kSteps = kPieces / 2;
  static constexpr bool kRest = kPieces % 2 != 0;
  static constexpr int kQueryBytes = kQueries * kPieces * 16;
  static constexpr int kSideBytes = kChunk * kPieces * 16;

  // Pieces are exchanged within groups of so many, less one: eight rows at the same piece, and eight pieces in a row, lie
  // in different banks, whatever power of two divides the row.
  static constexpr uint32_t kSwap = kPieces % 8 == 0 ? 7 : kPieces % 4 == 0 ? 3 : kPieces % 2 == 0 ? 1 : 0;

  // Offset of a piece of a row. Adding 16 rows to it is adding 16 rows of bytes.
  static __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece) {
    const uint32_t swap = kSwap == 7 ? row : kSwap == 3 ? row / 2 : row / 4;
    return (row * kPieces + (piece ^ (swap & kSwap))) * 16;
  }

  // Offset of the piece `2 * step` further, given that of a row's piece 0 or 1: one operation on a register.
  static __device__ __forceinline__ uint32_t further(uint32_t place, uint32_t step) {
    const uint32_t swapped = 2 * step & kSwap;
    return (place ^ 16 * swapped) + 16 * (2 * step - swapped);
  }

  static __device__ __forceinline__ uint32_t rows(uint32_t count) { return count * kPieces * 16; }
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
template <int kDim>
struct State {
  float most[2];
  float sum[2];
  float values[Head<kDim>::kPieces][4];

  __device__ __forceinline__ void clear() {
    most[0] = most[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < Head<kDim>::kPieces; i++) values[i][0] = values[i][1] = values[i][2] = values[i][3] = 0.0f;
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
      for (int i = 0; i < Head<kDim>::kPieces; i++) {
        values[i][2 * half] = merge(values[i][2 * half], part.values[i][2 * half]);
        values[i][2 * half + 1] = merge(values[i][2 * half + 1], part.values[i][2 * half + 1]);
      }
    }
  }
};

template <int kDim>
struct Slice {
  using Of = Head<kDim>;

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

  // The queries as bf16, rows of zeros up to the next sixteen.
  __device__ __forceinline__ void load_queries() const {
    const uint32_t padded = (plan.queries + 15) / 16 * 16, cols = (p.group + 2) * p.kv_heads * kDim;
    for (uint32_t i = threadIdx.x; i < padded * Of::kPieces; i += kThreads) {
      const uint32_t query = i / Of::kPieces, piece = i % Of::kPieces;
      float4 low = make_float4(0, 0, 0, 0), high = low;
      if (query < plan.queries) {
        const float *from = p.qkv + size_t(tensor_row(query)) * cols + head(query) * kDim + 8 * piece;
        low = *reinterpret_cast<const float4 *>(from);
        if (kDim % 8 == 0 || piece + 1 < Of::kPieces) high = *reinterpret_cast<const float4 *>(from + 4);
      }
      const uint32_t to = shared + Of::place(query, piece);
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(pack_bf16(low.x, low.y)),
                   "r"(pack_bf16(low.z, low.w)), "r"(pack_bf16(high.x, high.y)), "r"(pack_bf16(high.z, high.w))
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
                            Of::place(WEFT_PAGE * warp + line % WEFT_PAGE, piece % Of::kPieces);
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
    const uint32_t query = shared + Of::rows(16 * warp), query_lane = Of::place(lane % 16, lane / 16);
    const uint32_t key = keys(stage), key_lane = Of::place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < Of::kSteps; step++) {
      uint32_t q[4];
      load_matrices(q, query + Of::further(query_lane, step));
#pragma unroll
      for (int pair = 0; pair < kChunk / 16; pair++) {
        uint32_t k[4];
        load_matrices(k, key + Of::further(key_lane, step) + Of::rows(16 * pair));
        mma_bf16(scores[2 * pair], make_uint4(q[0], q[1], q[2], q[3]), k[0], k[1]);
        mma_bf16(scores[2 * pair + 1], make_uint4(q[0], q[1], q[2], q[3]), k[2], k[3]);
      }
    }
    if constexpr (Of::kRest) {
      uint32_t q[2];
      load_two_matrices(q, query + Of::place(lane % 16, Of::kPieces - 1));
#pragma unroll
      for (int four = 0; four < kChunk / 32; four++) {
        uint32_t k[4];
        load_matrices(k, key + Of::place(lane, Of::kPieces - 1) + Of::rows(32 * four));
#pragma unroll
        for (int i = 0; i < 4; i++) mma_bf16_8(scores[4 * four + i], q, k[i]);
      }
    }
  }

  // Adds the keys of a stage to the state of this warp's queries.
  __device__ __forceinline__ void attend(State<kDim> &state, const Chunk &chunk, uint32_t stage) const {
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
      for (int i = 0; i < Of::kPieces; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) state.values[i][j] *= keep[j / 2];
      }
    }
    add_values(state, scores, stage);
  }

  __device__ __forceinline__ void add_values(State<kDim> &state, const float (&weights)[kChunk / 8][4],
                                             uint32_t stage) const {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t value = values(stage), value_lane = Of::place(lane % 16, lane / 16);
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
        load_matrices_transposed(v, value + Of::further(value_lane, i / 2) + Of::rows(16 * j));
        mma_bf16(state.values[i], w, v[0], v[1]);
        mma_bf16(state.values[i + 1], w, v[2], v[3]);
      }
      if constexpr (Of::kRest) {
        uint32_t v[2];
        load_two_transposed(v, value + Of::place(lane % 16, Of::kPieces - 1) + Of::rows(16 * j));
        mma_bf16(state.values[Of::kPieces - 1], w, v[0], v[1]);
      }
    }
  }

  __device__ __forceinline__ void store(const State<kDim> &state) const {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t query = 16 * warp + lane / 4 + 8 * half;
      if (query >= plan.queries) continue;
      const float scale = __frcp_rn(state.sum[half]);
      float *to = p.out + tensor_head(query) * kDim + 2 * (lane % 4);
#pragma unroll
      for (int i = 0; i < Of::kPieces; i++) {
        if (kDim % 8 != 0 && 8 * i + 2 * (lane % 4) >= kDim) continue;
        *reinterpret_cast<float2 *>(to + 8 * i) =
            make_float2(__fmul_rn(state.values[i][2 * half], scale), __fmul_rn(state.values[i][2 * half + 1], scale));
      }
    }
  }

  // ---- Parts that blocks leave for each other: (largest, sum) of all, then their values ----

  __device__ __forceinline__ float2 *partial_sums() const { return reinterpret_cast<float2 *>(p.partials); }
  __device__ __forceinline__ float *partial_values(const Work &work) const {
    const size_t count = size_t(work.rows) * (p.kv_heads * p.group) * work.most_parts;
    return p.partials + (2 * count + 3) / 4 * 4;
  }

  __device__ __forceinline__ void leave(const Work &work, const State<kDim> &state) const {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t query = 16 * warp + lane / 4 + 8 * half;
      if (query >= plan.queries) continue;
      const size_t at = tensor_head(query) * work.most_parts + plan.part;
      if (lane % 4 == 0) partial_sums()[at] = make_float2(state.most[half], state.sum[half]);
      float *to = partial_values(work) + at * Of::kPadded + 2 * (lane % 4);
#pragma unroll
      for (int i = 0; i < Of::kPieces; i++) {
        *reinterpret_cast<float2 *>(to + 8 * i) = make_float2(state.values[i][2 * half], state.values[i][2 * half + 1]);
      }
    }
  }

  // Merges all parts of the slice.
  __device__ __forceinline__ void merge_parts(const Work &work) const {
    constexpr uint32_t kQuads = kDim / 4;
    for (uint32_t i = threadIdx.x; i < plan.queries * kQuads; i += kThreads) {
      const uint32_t query = i / kQuads, quad = i % kQuads;
      float most = -INFINITY, sum = 0.0f;
      float4 values = make_float4(0, 0, 0, 0);
      const size_t first = tensor_head(query) * work.most_parts;
      const float4 *from = reinterpret_cast<const float4 *>(partial_values(work)) + first * (Of::kPadded / 4) + quad;
      for (uint32_t part = 0; part < plan.all_parts; part++) {
        const float2 sums = __ldcg(partial_sums() + first + part);
        const float4 of = __ldcg(from + part * (Of::kPadded / 4));
        const Merge merge(most, sums.x);
        most = merge.most;
        sum = merge(sum, sums.y);
        values = make_float4(merge(values.x, of.x), merge(values.y, of.y), merge(values.z, of.z), merge(values.w, of.w));
      }
      const float scale = __frcp_rn(sum);
      float4 *to = reinterpret_cast<float4 *>(p.out + tensor_head(query) * kDim) + quad;
      *to = make_float4(__fmul_rn(values.x, scale), __fmul_rn(values.y, scale), __fmul_rn(values.z, scale),
                        __fmul_rn(values.w, scale));
    }
  }
};

// Runs a plan through the pipeline; `state` is then the part that it ends in, `total` the parts before it.
template <int kDim>
__device__ __forceinline__ void run(const Slice<kDim> &slice, Chunk *ring, State<kDim> &total, State<kDim> &state) {
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

template <int kDim>
__device__ __forceinline__ void attend_all(const Params &p) {
  extern __shared__ __align__(128) uint8_t dynamic_shared[];
  __shared__ Work work;
  __shared__ Plan plan;
  __shared__ Views views;
  __shared__ Chunk ring[kStages];
  __shared__ bool last;

  const Planner planner{p};
  const Slice<kDim> slice{p, plan, views, shared_address(dynamic_shared)};
  if (threadIdx.x < 32) {
    const Work surveyed = planner.survey();
    if (threadIdx.x == 0) work = surveyed;
  }
  __syncthreads();
  for (uint32_t index = blockIdx.x; index < work.items(); index += gridDim.x) {
    if (threadIdx.x < 32) planner.plan(work, index, plan, views);
    __syncthreads();
    slice.load_queries();  // seen by all after the pipeline's first barrier
    State<kDim> total, state;
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
      }
    }
    __syncthreads();  // shared memory is free again
  }
}

}  // namespace

#define WEFT_ATTENTION(kDim)                                                                                        \
  extern "C" __global__ void __launch_bounds__(kThreads, 2)                                                         \
      attention_##kDim(const float *qkv, WeftStep step, const uint4 *cache, float *out, float *partials,            \
                       uint32_t partial_floats, uint32_t *finished, uint32_t finished_len, uint32_t kv_heads,       \
                       uint32_t group, uint32_t multiprocessors, float scale) {                                     \
    attend_all<kDim>({qkv, step, cache, out, partials, partial_floats, finished, finished_len, kv_heads, group,     \
                      multiprocessors, scale});                                                                     \
  }

WEFT_ATTENTION(64)
WEFT_ATTENTION(80)
WEFT_ATTENTION(96)
WEFT_ATTENTION(100)
WEFT_ATTENTION(128)
