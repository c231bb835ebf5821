// Draws tokens from logits into the canvas: guidance -> temperature -> top-k -> top-p as src/sampling.rs does it, then the
// rule of each draw.
//
// Log-weights are the CPU's bit for bit: the same operations, none contracted. They are computed anew from the logits in
// every pass over them and never stored. Without top-k and top-p a coupled draw is one pass, shared by several blocks; other
// draws are several passes of one block. Nothing is sorted: the k-th largest weight, and the probability at which the mass
// reaches p, are found digit by digit of their bits, from histograms of counts and of probabilities in fixed point, whose
// sums are exact and so depend on no order.
//
// What differs from the CPU: probabilities (expf within 1 ulp; their total, summed here in a tree and there one after
// another) by less than (vocab + 8) * 2^-24 of themselves, so a token is kept by one and cut by the other only if the mass
// above it is that close to p; and the noise, see philox.cuh.
#include "floats.cuh"
#include "philox.cuh"

constexpr int DIGIT = 11;                // bits of a histogram's index
constexpr uint32_t BINS = 1u << DIGIT;
constexpr float MASS = 0x1p56f;          // fixed point of probabilities: 2^16 of them fit, each exact to 2^-56
constexpr uint32_t QUAD = 4;             // tokens that share a block of random words

// Entries of a vocabulary-sized row at 4 * quad and after; beyond its end there is nothing.
struct Vocabulary {
  uint32_t size;

  __device__ __forceinline__ uint32_t quads() const { return (size + QUAD - 1) / QUAD; }

  __device__ __forceinline__ Floats<4> load(const float *row, uint32_t quad) const {
    if (size % QUAD == 0) return reinterpret_cast<const Floats<4> *>(row)[quad];
    Floats<4> values;
#pragma unroll
    for (uint32_t j = 0; j < QUAD; ++j) values.v[j] = quad * QUAD + j < size ? row[quad * QUAD + j] : 0.0f;
    return values;
  }

  __device__ __forceinline__ void store(float *row, uint32_t quad, const Floats<4> &values) const {
    if (size % QUAD == 0) {
      reinterpret_cast<Floats<4> *>(row)[quad] = values;
      return;
    }
#pragma unroll
    for (uint32_t j = 0; j < QUAD; ++j)
      if (quad * QUAD + j < size) row[quad * QUAD + j] = values.v[j];
  }

  // Calls visit(quad) for the quads of this thread.
  template <typename Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    for (uint32_t quad = threadIdx.x; quad < quads(); quad += blockDim.x) visit(quad);
  }
};

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
  uint32_t low[BINS], high[BINS];  // a 64-bit sum in two words: 32-bit atomics are native, and a carry is a fixed thing
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
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned long long mine = 0;
  for (uint32_t i = 0; i < share; ++i) mine += amount_of(shared, BINS - 1 - (threadIdx.x * share + i));
  unsigned long long upto = mine;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned long long other = __shfl_up_sync(0xffffffffu, upto, distance);
    if (lane >= distance) upto += other;
  }
  if (lane == 31) shared.sums[warp] = upto;
  if (threadIdx.x == 0) shared.flag = 0;
  __syncthreads();
  for (uint32_t w = 0; w < warp; ++w) upto += shared.sums[w];
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

// How one distribution follows from its branches' logits.
struct Law {
  const float *conditional, *unconditional;
  float floor;         // top-k: lower weights are out
  float top, total;    // top-p: of the softmax
  uint32_t threshold;  // top-p: the bits of the lowest probability that is in
  uint32_t last;       // top-p: the last token of that probability that is in
  uint32_t best;       // greedy: the only one that is in
};

// The distribution of a draw: one law or the mean of two.
struct Distribution {
  Vocabulary vocabulary;
  float cfg, temperature;
  bool greedy, nucleus, two;
  Law first, second;

  // Guided and scaled logits.
  __device__ __forceinline__ Floats<4> scaled(const Law &law, uint32_t quad) const {
    Floats<4> x = vocabulary.load(law.conditional, quad);
    if (law.unconditional) {
      const Floats<4> u = vocabulary.load(law.unconditional, quad);
#pragma unroll
      for (int j = 0; j < 4; ++j) x.v[j] = __fadd_rn(u.v[j], __fmul_rn(cfg, __fsub_rn(x.v[j], u.v[j])));
    }
    if (!greedy && temperature != 1.0f) {
#pragma unroll
      for (int j = 0; j < 4; ++j) x.v[j] = __fdiv_rn(x.v[j], temperature);
    }
    return x;
  }

  // The processed log-weights of a law; -inf for what is out and beyond the vocabulary.
  __device__ __forceinline__ Floats<4> processed(const Law &law, uint32_t quad) const {
    Floats<4> x = scaled(law, quad);
#pragma unroll
    for (uint32_t j = 0; j < QUAD; ++j) {
      const uint32_t token = quad * QUAD + j;
      bool in = token < vocabulary.size && !(x.v[j] < law.floor);
      if (greedy) {
        in = token == law.best;
        x.v[j] = 0.0f;
      } else if (nucleus && in) {
        const uint32_t bits = __float_as_uint(expf(x.v[j] - law.top) / law.total);
        in = bits > law.threshold || (bits == law.threshold && token <= law.last);
      }
      if (!in) x.v[j] = -INFINITY;
    }
    return x;
  }

  // Log-weights of the draw.
  __device__ __forceinline__ Floats<4> weights(uint32_t quad) const {
    Floats<4> x = processed(first, quad);
    if (two) {
      const Floats<4> y = processed(second, quad);
#pragma unroll
      for (int j = 0; j < 4; ++j) x.v[j] = x.v[j] * 0.5f + y.v[j] * 0.5f;
    }
    return x;
  }

  __device__ __forceinline__ float weight(uint32_t token) const {
    const Floats<4> x = weights(token / QUAD);
    const float low = token & 1 ? x.v[1] : x.v[0], high = token & 1 ? x.v[3] : x.v[2];
    return token & 2 ? high : low;
  }

  // Largest weight and sum of exp(weight - largest) over what `of(quad)` gives.
  template <typename Of>
  __device__ __forceinline__ void softmax(Shared &shared, float &top, float &total, Of of) const {
    float largest = -INFINITY, sum = 0.0f;
    vocabulary.each([&](uint32_t quad) {
      const Floats<4> x = of(quad);
#pragma unroll
      for (int j = 0; j < 4; ++j) largest = fmaxf(largest, x.v[j]);
    });
    top = block_max(largest, shared.floats);
    vocabulary.each([&](uint32_t quad) {
      const Floats<4> x = of(quad);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += expf(x.v[j] - top);
    });
    total = block_sum(sum, shared.floats);
  }

  __device__ void keep_best(Law &law, Shared &shared) const {
    Best best = {-INFINITY, 0};
    vocabulary.each([&](uint32_t quad) {
      const Floats<4> x = scaled(law, quad);
#pragma unroll
      for (uint32_t j = 0; j < QUAD; ++j)
        if (quad * QUAD + j < vocabulary.size) best.offer(x.v[j], quad * QUAD + j);
    });
    law.best = block_best(best, shared).token;
  }

  __device__ void keep_top_k(Law &law, uint32_t k, Shared &shared) const {
    Cut cut;
    find_cut(shared, k, cut, [&](auto visit) {
      vocabulary.each([&](uint32_t quad) {
        const Floats<4> x = scaled(law, quad);
#pragma unroll
        for (uint32_t j = 0; j < QUAD; ++j) {
          // Floats in the order of unsigned integers: all bits of the negative ones flipped, the sign of the others.
          const uint32_t bits = __float_as_uint(x.v[j]);
          const uint32_t key = bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
          if (quad * QUAD + j < vocabulary.size) visit(key, 1);
        }
      });
    });
    law.floor = __uint_as_float(cut.key ^ (cut.key & 0x80000000u ? 0x80000000u : 0xffffffffu));
  }

  // The smallest set of the most probable whose mass reaches p; of equal ones the lower tokens first.
  __device__ void keep_top_p(Law &law, float p, Shared &shared) const {
    const auto of = [&](uint32_t quad) {
      Floats<4> x = scaled(law, quad);
#pragma unroll
      for (uint32_t j = 0; j < QUAD; ++j)
        if (quad * QUAD + j >= vocabulary.size || x.v[j] < law.floor) x.v[j] = -INFINITY;
      return x;
    };
    softmax(shared, law.top, law.total, of);
    const auto probabilities = [&](auto visit) {
      vocabulary.each([&](uint32_t quad) {
        const Floats<4> x = of(quad);
#pragma unroll
        for (uint32_t j = 0; j < QUAD; ++j) visit(quad * QUAD + j, expf(x.v[j] - law.top) / law.total);
      });
    };
    const unsigned long long target = max((unsigned long long)(p * MASS), 1ull);
    Cut cut;
    const bool reached = find_cut(shared, target, cut, [&](auto visit) {
      probabilities([&](uint32_t, float probability) {
        const unsigned long long mass = (unsigned long long)(probability * MASS);
        if (mass) visit(__float_as_uint(probability), mass);
      });
    });
    law.threshold = reached ? cut.key : 0;
    law.last = 0xffffffffu;
    if (!reached) return;
    // Of the equal ones at the threshold as many as the mass needs.
    const unsigned long long one = (unsigned long long)(__uint_as_float(cut.key) * MASS);
    const unsigned long long needed = (target - cut.above + one - 1) / one;
    if (needed * one >= cut.at) return;
    Cut last;
    const uint32_t threshold = cut.key;
    find_cut(shared, needed, last, [&](auto visit) {
      probabilities([&](uint32_t token, float probability) {
        if (token < vocabulary.size && __float_as_uint(probability) == threshold) visit(~token, 1);
      });
    });
    law.last = ~last.key;
  }
};

// Offers weight + noise of a quad's tokens.
__device__ __forceinline__ void offer_quad(Best &best, uint32_t quad, const Floats<4> &weights, const uint4 &words) {
  best.offer(weights.v[0] + gumbel(words.x), quad * QUAD);
  best.offer(weights.v[1] + gumbel(words.y), quad * QUAD + 1);
  best.offer(weights.v[2] + gumbel(words.z), quad * QUAD + 2);
  best.offer(weights.v[3] + gumbel(words.w), quad * QUAD + 3);
}

// argmax(weight + noise) over the quads from `begin` to `end`.
__device__ __forceinline__ Best coupled(const Distribution &law, const Numbers &numbers, uint32_t begin, uint32_t end,
                                        Shared &shared) {
  Best best = {-INFINITY, 0};
  for (uint32_t quad = begin + threadIdx.x; quad < end; quad += blockDim.x)
    offer_quad(best, quad, law.weights(quad), numbers.block(quad));
  return block_best(best, shared);
}

// The rules that keep p. A draft is argmax(log p + noise); a correction is the token itself if u q(token) < p(token), else
// argmax(log max(0, p - q) + noise), q being what was kept before.
__device__ __forceinline__ uint32_t judged(const Distribution &law, bool correct, uint32_t token, float uniform,
                                           const Numbers &numbers, float *kept, Shared &shared) {
  float top, total;
  law.softmax(shared, top, total, [&](uint32_t quad) { return law.weights(quad); });
  const auto probability = [&](float weight) { return expf(weight - top) / total; };
  const bool keep = correct && uniform * kept[token] < probability(law.weight(token));
  __syncthreads();  // everyone has read q(token)
  Best best = {-INFINITY, 0};
  law.vocabulary.each([&](uint32_t quad) {
    Floats<4> weights = law.weights(quad), p;
#pragma unroll
    for (int j = 0; j < 4; ++j) p.v[j] = probability(weights.v[j]);
    if (!keep) {
      if (correct) {
        const Floats<4> q = law.vocabulary.load(kept, quad);
#pragma unroll
        for (int j = 0; j < 4; ++j) weights.v[j] = logf(fmaxf(p.v[j] - q.v[j], 0.0f));
      }
      offer_quad(best, quad, weights, numbers.block(quad));
    }
    law.vocabulary.store(kept, quad, p);
  });
  return keep ? token : block_best(best, shared).token;
}

// The best of all blocks of a draw, in the block that arrives last; the others learn that they are not it.
__device__ __forceinline__ bool merge_blocks(Best &best, Best *partial, uint32_t *arrived, Shared &shared) {
  if (gridDim.x == 1) return true;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = best;
    __threadfence();
    shared.flag = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;  // which makes it zero again
  }
  __syncthreads();
  if (!shared.flag) return false;
  if (threadIdx.x == 0) {
    __threadfence();
    best = {-INFINITY, 0};
    for (uint32_t block = 0; block < gridDim.x; ++block) {
      const float score = __ldcg(&partial[block].score);
      best.merge(score, __ldcg(&partial[block].token));
    }
  }
  return true;
}

// A grid of (blocks of a draw, draws), which is at least as large as the phase's list. Tokens are [images, positions];
// `proposals` is [images, positions, vocab], null without proposals; `partial` has a place for each block of each position and
// `arrived` one for each position, zero between launches. A phase draws a position at most once.
extern "C" __global__ void __launch_bounds__(512, 1)
    draw(WeftStep step, uint32_t verdicts, const float *logits, uint32_t vocab, uint32_t positions, uint32_t *tokens,
         float *proposals, Best *partial, uint32_t *arrived, WeftDrawn *drawn) {
  __shared__ Shared shared;
  if (blockIdx.y >= (verdicts ? step.counts->verdicts : step.counts->drafts)) return;
  const WeftDraw draw = (verdicts ? step.verdicts : step.drafts)[blockIdx.y];
  const WeftImage image = step.images[draw.image];
  const uint32_t place = draw.image * positions + draw.position;

  Distribution law;
  law.vocabulary = {vocab};
  law.cfg = image.cfg;
  law.temperature = image.temperature;
  law.greedy = image.temperature == 0.0f;
  law.two = draw.conditional[1] != WEFT_NONE;
  law.nucleus = false;
  const auto row = [&](uint32_t index) { return index == WEFT_NONE ? nullptr : logits + (size_t)index * vocab; };
  law.first = {row(draw.conditional[0]), row(draw.unconditional[0]), -INFINITY, 0.0f, 0.0f, 0, 0, 0};
  law.second = {row(draw.conditional[1]), row(draw.unconditional[1]), -INFINITY, 0.0f, 0.0f, 0, 0, 0};

  const bool top_k = !law.greedy && image.top_k > 0 && image.top_k < vocab;
  const bool top_p = !law.greedy && image.top_p < 1.0f;
  const bool shared_by_blocks = !law.greedy && !top_k && !top_p && draw.rule == WEFT_RULE_COUPLED;
  if (!shared_by_blocks && blockIdx.x > 0) return;

  for (int i = 0; i < (law.two ? 2 : 1); ++i) {
    Law one = i == 0 ? law.first : law.second;
    if (law.greedy) law.keep_best(one, shared);
    if (top_k) law.keep_top_k(one, image.top_k, shared);
    if (top_p) law.keep_top_p(one, image.top_p, shared);
    if (i == 0) law.first = one;
    else law.second = one;
  }
  law.nucleus = top_p;

  const auto numbers = [&](Purpose purpose, uint32_t round) {
    return Numbers{{image.seed_low, image.seed_high}, draw.position, image.stream, purpose | round << 8};
  };
  uint32_t after;
  if (draw.rule == WEFT_RULE_COUPLED) {
    const uint32_t blocks = shared_by_blocks ? gridDim.x : 1;
    const uint32_t share = (law.vocabulary.quads() + blocks - 1) / blocks;
    const uint32_t begin = blockIdx.x * share, end = min(begin + share, law.vocabulary.quads());
    Best best = coupled(law, numbers(PURPOSE_TOKEN, 0), begin, end, shared);
    if (shared_by_blocks &&
        !merge_blocks(best, partial + (size_t)place * gridDim.x, arrived + place, shared))
      return;
    after = best.token;
  } else {
    const bool correct = draw.rule == WEFT_RULE_AUTO_CORRECT;
    const float uniform = unit(numbers(PURPOSE_ACCEPT, draw.round).block(0).x);
    const Numbers noise = numbers(correct ? PURPOSE_RESIDUAL : PURPOSE_DRAFT, draw.round);
    float *kept = proposals + (size_t)place * vocab;
    after = judged(law, correct, tokens[place], uniform, noise, kept, shared);
  }
  if (threadIdx.x == 0) {
    if (verdicts) drawn[blockIdx.y] = {tokens[place], after};
    tokens[place] = after;
  }
}
