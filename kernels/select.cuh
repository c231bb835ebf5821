// Selection in a block of threads: the best of scores, and the place where sums of amounts reach a target, which is found
// digit by digit of the keys' bits from histograms. Counts and probabilities in fixed point are summed exactly, so nothing
// depends on an order.
#pragma once
#include "floats.cuh"

constexpr int DIGIT = 11;                // bits of a histogram's index
constexpr uint32_t BINS = 1u << DIGIT;

// A score and its token; of equal scores the lower token is the better.
struct Best {
  float score;
  uint32_t token;

  // Tokens are offered in increasing order.
  __device__ __forceinline__ void offer(float other, uint32_t at) {
    if (other > score) score = other, token = at;
  }

  __device__ __forceinline__ void merge(float other, uint32_t at) {
    if (other > score || (other == score && at < token)) score = other, token = at;
  }

  __device__ __forceinline__ void merge_warp() {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, score, distance);
      const uint32_t at = __shfl_xor_sync(0xffffffffu, token, distance);
      merge(other, at);
    }
  }
};

// What a block shares.
struct Shared {
  // Histograms: a 64-bit sum in two words: 32-bit atomics are native, and a carry is a fixed thing. Sets of up to 2^16
  // things between selections.
  uint32_t low[BINS], high[BINS];
  float floats[32];
  uint32_t tokens[32];
  unsigned long long sums[32];
  unsigned long long above;
  uint32_t digit, flag;
};

// The block's best, in every thread.
__device__ __forceinline__ Best block_best(Best best, Shared &shared) {
  best.merge_warp();
  if (threadIdx.x % 32 == 0) shared.floats[threadIdx.x / 32] = best.score, shared.tokens[threadIdx.x / 32] = best.token;
  __syncthreads();
  const uint32_t warp = threadIdx.x % 32 < blockDim.x / 32 ? threadIdx.x % 32 : 0;
  best = {shared.floats[warp], shared.tokens[warp]};
  best.merge_warp();
  __syncthreads();
  return best;
}

// The sum of the values of the threads up to this one. Whoever uses shared.sums next synchronises first.
__device__ __forceinline__ unsigned long long block_scan(unsigned long long value, Shared &shared) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned long long other = __shfl_up_sync(0xffffffffu, value, distance);
    if (lane >= distance) value += other;
  }
  if (lane == 31) shared.sums[warp] = value;
  __syncthreads();
  for (uint32_t w = 0; w < warp; ++w) value += shared.sums[w];
  return value;
}

// The sum of the values of all threads, in each of them.
__device__ __forceinline__ unsigned long long block_total(unsigned long long value, Shared &shared) {
  value = block_scan(value, shared);
  if (threadIdx.x == blockDim.x - 1) shared.above = value;
  __syncthreads();
  value = shared.above;
  __syncthreads();
  return value;
}

// A key, the amount of all keys above it, and the amount at it.
struct Cut {
  uint32_t key;
  unsigned long long above, at;
};

// Adds to a bin. The sum of a bin is the same whatever the order.
__device__ __forceinline__ void add_amount(Shared &shared, uint32_t bin, unsigned long long amount) {
  const uint32_t low = (uint32_t)amount;
  const uint32_t before = atomicAdd(&shared.low[bin], low);
  const uint32_t high = (uint32_t)(amount >> 32) + (before + low < before ? 1u : 0u);
  if (high) atomicAdd(&shared.high[bin], high);
}

__device__ __forceinline__ unsigned long long amount_of(const Shared &shared, uint32_t bin) {
  return (unsigned long long)shared.high[bin] << 32 | shared.low[bin];
}

// Finds the bin where the sum from the top reaches `target`, into shared.digit and shared.above; shared.flag says that
// there is one.
__device__ __forceinline__ void find_digit(Shared &shared, unsigned long long target) {
  // Thread t takes the bins of rank t * share .. from the top.
  const uint32_t share = BINS / blockDim.x;
  unsigned long long mine = 0;
  for (uint32_t i = 0; i < share; ++i) mine += amount_of(shared, BINS - 1 - (threadIdx.x * share + i));
  if (threadIdx.x == 0) shared.flag = 0;
  const unsigned long long upto = block_scan(mine, shared);
  unsigned long long above = upto - mine;
  if (above < target && target <= upto) {
    for (uint32_t i = 0; i < share; ++i) {
      const uint32_t bin = BINS - 1 - (threadIdx.x * share + i);
      const unsigned long long amount = amount_of(shared, bin);
      if (above < target && target <= above + amount) {
        shared.digit = bin;
        shared.above = above;
        shared.flag = 1;
      }
      above += amount;
    }
  }
  __syncthreads();
}

// The largest key such that the amounts of the keys from it upwards reach `target`. `entries(visit)` calls
// visit(key, amount) for this thread's entries, the same ones each time. False if all amounts together do not reach it.
template <typename Entries>
__device__ bool find_cut(Shared &shared, unsigned long long target, Cut &cut, Entries entries) {
  cut = {0, 0, 0};
  for (int shift = 32 - DIGIT; ; shift = shift > DIGIT ? shift - DIGIT : 0) {
    const int done = shift == 32 - DIGIT ? 32 : shift == 32 - 2 * DIGIT ? 32 - DIGIT : 32 - 2 * DIGIT;
    for (uint32_t bin = threadIdx.x; bin < BINS; bin += blockDim.x) shared.low[bin] = shared.high[bin] = 0;
    __syncthreads();
    const uint32_t width = done - shift;
    entries([&](uint32_t key, unsigned long long amount) {
      if (done == 32 || key >> done == cut.key) add_amount(shared, key >> shift & ((1u << width) - 1), amount);
    });
    __syncthreads();
    find_digit(shared, target - cut.above);
    const bool found = shared.flag;
    const uint32_t digit = shared.digit;
    if (found) {
      cut.key = done == 32 ? digit : cut.key << width | digit;
      cut.above += shared.above;
      cut.at = amount_of(shared, digit);
    }
    __syncthreads();
    if (!found) return false;
    if (shift == 0) return true;
  }
}
