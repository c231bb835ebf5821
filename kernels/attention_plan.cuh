// Which work an attention launch has, and which keys a block's rows see.
#pragma once
#include "operand.cuh"

namespace {

// Query vectors that a block takes at once, and keys that a stage of its pipeline holds.
constexpr int kQueries = 64;
constexpr int kChunk = 64;
constexpr uint32_t kAll = 0xffffffffu;

static_assert(WEFT_ATTENTION_SPLIT % kChunk == 0, "a part is whole chunks");

struct Params {
  const float *qkv;
  WeftStep step;
  const uint4 *cache;  // of the layer: [page][kv_head][keys, values][16][padded head_dim]
  WeftOut out;
  float *partials;
  uint32_t partial_floats;
  uint32_t *finished;  // zero between launches
  uint32_t finished_len;
  uint32_t kv_heads;
  uint32_t group;  // query heads that share a key head
  uint32_t multiprocessors;
  float scale;        // log2(e) / sqrt(head_dim), times what one of the cache's keys stands for
  float value_scale;  // what one of the cache's values stands for
};

// The work of a launch.
struct Work {
  uint32_t slices;  // of all tiles
  uint32_t parts;   // of all slices
  uint32_t most_parts;
  uint32_t rows;
  bool whole;  // a block takes all parts of a slice

  __device__ __forceinline__ uint32_t items() const { return whole ? slices : parts; }

  // (largest, sum) pairs that are reserved for a query's parts: whole lines of 128 bytes.
  __device__ __forceinline__ uint32_t sums_per_query() const { return (most_parts + 15) / 16 * 16; }
};

// What a block does: some rows of a tile, and some of the parts that its keys are cut into.
struct Plan {
  WeftSequence sequence;
  uint32_t first;  // its rows in the tensors
  uint32_t rows;
  uint32_t queries;
  uint32_t part, end, all_parts;
  uint32_t prefix_parts, grid_parts;
  // Slots that some row sees: prefix and scratch slots below these; grid slots below `above` as far as the frontiers let,
  // and all from `own` to `below`.
  uint32_t prefix, scratch, above, own, below;
};

// What each query sees.
struct Views {
  uint32_t prefix[kQueries];  // prefix slots below this
  uint32_t above[kQueries];   // grid slots below this as far as the frontiers let
  uint32_t below[kQueries];   // all grid slots from `above` to this
};

// Sixty-four slots.
struct Chunk {
  uint32_t kind;  // WeftSlot, or WEFT_NONE after the last
  uint32_t start;
  uint32_t part;
  uint32_t committed[2];  // grid slots that the frontiers let rows below see
};

__device__ __forceinline__ uint32_t lane_index() { return threadIdx.x % 32; }

__device__ __forceinline__ uint32_t parts_of(uint32_t slots) {
  return (slots + WEFT_ATTENTION_SPLIT - 1) / WEFT_ATTENTION_SPLIT;
}

// The bits below `limit` of a word that stands for the slots from `start` on.
__device__ __forceinline__ uint64_t bits_below(uint32_t limit, uint32_t start) {
  const uint32_t count = limit > start ? limit - start : 0;
  return count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
}

// Lays out the work; one warp does it.
struct Planner {
  const Params &p;

  __device__ __forceinline__ uint32_t rows_per_slice() const { return kQueries / p.group; }

  __device__ __forceinline__ uint32_t slices(const WeftTile &tile) const {
    return (tile.rows + rows_per_slice() - 1) / rows_per_slice();
  }

  static __device__ __forceinline__ uint32_t parts(const WeftTile &tile) {
    return parts_of(tile.prefix) + parts_of(tile.end) + parts_of(tile.scratch);
  }

  __device__ __forceinline__ Work survey() const {
    uint32_t slices_sum = 0, parts_sum = 0, most = 0;
    for (uint32_t t = lane_index(); t < p.step.counts->tiles; t += 32) {
      const WeftTile tile = p.step.tiles[t];
      slices_sum += slices(tile);
      parts_sum += slices(tile) * parts(tile);
      most = max(most, parts(tile));
    }
    Work work;
    work.slices = __reduce_add_sync(kAll, slices_sum);
    work.parts = __reduce_add_sync(kAll, parts_sum);
    work.most_parts = __reduce_max_sync(kAll, most);
    work.rows = p.step.counts->rows;
    work.whole = whole(work);
    return work;
  }

  // Parts cost a write and a read of each query's numbers, which is much where queries are many; walking all parts in
  // one block wants enough blocks for the device. A matter of speed alone: the results are the same.
  __device__ __forceinline__ bool whole(const Work &work) const {
    const uint64_t queries = uint64_t(work.rows) * p.kv_heads * p.group;
    const bool fits = queries * (work.most_parts * 128 + 2 * work.sums_per_query()) <= p.partial_floats &&
                      uint64_t(work.rows) * p.kv_heads <= p.finished_len;
    const uint32_t blocks = work.slices * p.kv_heads;
    const bool filled = 5 * blocks >= 2 * p.multiprocessors && work.rows * p.group >= 16 * work.slices;
    return !fits || filled || blocks >= 4 * p.multiprocessors;
  }

  // The tile that holds item `index`, which becomes the index among the tile's items.
  __device__ __forceinline__ uint32_t find(bool whole, uint32_t &index) const {
    for (uint32_t first = 0;; first += 32) {
      const uint32_t t = first + lane_index();
      uint32_t count = 0;
      if (t < p.step.counts->tiles) {
        const WeftTile tile = p.step.tiles[t];
        count = slices(tile) * (whole ? 1 : parts(tile));
      }
      uint32_t sum = count;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const uint32_t other = __shfl_up_sync(kAll, sum, distance);
        if (lane_index() >= distance) sum += other;
      }
      const uint32_t found = __ballot_sync(kAll, sum > index);
      if (found != 0) {
        const int lane = __ffs(found) - 1;
        index -= __shfl_sync(kAll, sum - count, lane);
        return first + lane;
      }
      index -= __shfl_sync(kAll, sum, 31);
    }
  }

  // Item `index` of the work.
  __device__ __forceinline__ void plan(const Work &work, uint32_t index, Plan &plan, Views &views) const {
    const WeftTile tile = p.step.tiles[find(work.whole, index)];
    const WeftSequence sequence = p.step.sequences[tile.sequence];
    const uint32_t all = parts(tile);
    const uint32_t slice = work.whole ? index : index / all;
    const uint32_t skipped = slice * rows_per_slice();
    const uint32_t rows = min(tile.rows - skipped, rows_per_slice());
    uint32_t prefix = 0, above = 0, below = 0, own = kAll;
    // Queries past the last see what the last one sees; nothing is made of them.
    for (uint32_t query = lane_index(); query < kQueries; query += 32) {
      const WeftRow row = p.step.rows[tile.first + skipped + min(query / p.group, rows - 1)];
      const bool of_prefix = row.kind == WEFT_SLOT_PREFIX, of_grid = row.kind == WEFT_SLOT_GRID;
      const uint32_t row_prefix = of_prefix ? row.slot + 1 : sequence.prefix_len;
      const bool blind = of_prefix || row.kind == WEFT_SLOT_OPEN;  // to the grid
      const uint32_t row_above = blind ? 0 : of_grid ? row.slot - row.slot % sequence.width : row.at;
      const uint32_t row_below = blind ? 0 : of_grid ? row.slot + 1 : row.at;
      views.prefix[query] = row_prefix;
      views.above[query] = row_above;
      views.below[query] = row_below;
      prefix = max(prefix, row_prefix);
      above = max(above, row_above);
      below = max(below, row_below);
      if (of_grid) own = min(own, row_above);
    }
    prefix = __reduce_max_sync(kAll, prefix);
    above = __reduce_max_sync(kAll, above);
    below = __reduce_max_sync(kAll, below);
    own = __reduce_min_sync(kAll, own);
    if (lane_index() != 0) return;
    plan.sequence = sequence;
    plan.first = tile.first + skipped;
    plan.rows = rows;
    plan.queries = rows * p.group;
    plan.part = work.whole ? 0 : index % all;
    plan.end = work.whole ? all : plan.part + 1;
    plan.all_parts = all;
    plan.prefix_parts = parts_of(tile.prefix);
    plan.grid_parts = parts_of(tile.end);
    plan.prefix = prefix;
    plan.scratch = tile.scratch;
    plan.above = above;
    plan.own = own;
    plan.below = below;
  }
};

// Walks the chunks of a plan that any of its rows sees. Whole warps walk together.
struct Walk {
  const WeftStep &step;
  const Plan &plan;
  uint32_t part, start;  // `start` counts from the beginning of the part

  __device__ __forceinline__ Walk(const WeftStep &step, const Plan &plan)
      : step(step), plan(plan), part(plan.part), start(0) {}

  // Which of 32 grid slots the frontiers let rows below see.
  __device__ __forceinline__ uint32_t committed(uint32_t first) const {
    const uint32_t slot = first + lane_index(), width = plan.sequence.width, row = slot / width;
    const bool inside = row < plan.sequence.height;
    return __ballot_sync(kAll, inside && slot - row * width < step.frontiers[plan.sequence.frontier + row]);
  }

  // The next chunk, and which of its slots any row may see.
  __device__ __forceinline__ Chunk next(uint64_t &any) {
    Chunk next;
    next.committed[0] = next.committed[1] = kAll;
    while (part < plan.end) {
      uint32_t first = part, limit = plan.prefix;
      next.kind = WEFT_SLOT_PREFIX;
      if (part >= plan.prefix_parts + plan.grid_parts) {
        next.kind = WEFT_SLOT_SCRATCH, limit = plan.scratch, first -= plan.prefix_parts + plan.grid_parts;
      } else if (part >= plan.prefix_parts) {
        next.kind = WEFT_SLOT_GRID, limit = max(plan.above, plan.below), first -= plan.prefix_parts;
      }
      next.start = first * WEFT_ATTENTION_SPLIT + start;
      next.part = part;
      if (start == WEFT_ATTENTION_SPLIT || next.start >= limit) {
        part++;
        start = 0;
        continue;
      }
      start += kChunk;
      any = bits_below(limit, next.start);
      if (next.kind == WEFT_SLOT_GRID) {
        next.committed[0] = committed(next.start);
        next.committed[1] = committed(next.start + 32);
        const uint64_t filled = uint64_t(next.committed[1]) << 32 | next.committed[0];
        any = (filled & bits_below(plan.above, next.start)) |
              (bits_below(plan.below, next.start) & ~bits_below(plan.own, next.start));
      }
      if (any != 0) return next;
    }
    next.kind = WEFT_NONE;
    return next;
  }

  // Index in WeftStep.pages of a chunk's first page.
  __device__ __forceinline__ uint32_t page(const Chunk &chunk) const {
    const uint32_t first = chunk.kind == WEFT_SLOT_PREFIX ? plan.sequence.prefix_pages
                           : chunk.kind == WEFT_SLOT_GRID ? plan.sequence.grid_pages
                                                          : plan.sequence.scratch_pages;
    return first + chunk.start / WEFT_PAGE;
  }
};

// Which slots of a chunk a query sees.
__device__ __forceinline__ uint64_t visible(const Params &p, const Plan &plan, const Views &views, const Chunk &chunk,
                                            uint32_t query) {
  if (chunk.kind == WEFT_SLOT_PREFIX) return bits_below(views.prefix[query], chunk.start);
  if (chunk.kind == WEFT_SLOT_SCRATCH) {
    // Only rows of a draft tree see draft nodes.
    const WeftRow &row = p.step.rows[plan.first + min(query / p.group, plan.rows - 1)];
    if (row.kind != WEFT_SLOT_SCRATCH) return 0;
    return uint64_t(row.ancestors[chunk.start / 32 + 1]) << 32 | row.ancestors[chunk.start / 32];
  }
  const uint64_t committed = uint64_t(chunk.committed[1]) << 32 | chunk.committed[0];
  const uint64_t above = bits_below(views.above[query], chunk.start);
  return (committed & above) | (bits_below(views.below[query], chunk.start) & ~above);
}

}  // namespace
