// From logits to the log-weights of a distribution: guidance -> temperature -> top-k -> top-p as src/sampling.rs does it.
//
// Log-weights are the CPU's bit for bit: the same operations, none contracted. They are computed anew from the logits in
// every pass over them and never stored. Nothing is sorted: the k-th largest weight, and the probability at which the mass
// reaches p, are found digit by digit (select.cuh).
//
// What differs from the CPU: probabilities (expf within 1 ulp; their total, summed here in a tree and there one after
// another) by less than (vocab + 8) * 2^-24 of themselves, so a token is kept by one and cut by the other only if the mass
// above it is that close to p.
#pragma once
#include "philox.cuh"
#include "select.cuh"

constexpr float MASS = 0x1p56f;  // fixed point of probabilities: 2^16 of them fit, each exact to 2^-56
constexpr uint32_t QUAD = 4;     // tokens that share a block of random words

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

// A float as an unsigned integer of the same order: all bits of the negative ones flipped, the sign of the others.
__device__ __forceinline__ uint32_t order(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

// A probability in fixed point.
__device__ __forceinline__ unsigned long long fixed(float probability) {
  return (unsigned long long)(probability * MASS);
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
          if (quad * QUAD + j < vocabulary.size) visit(order(x.v[j]), 1);
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
    const unsigned long long target = max(fixed(p), 1ull);
    Cut cut;
    const bool reached = find_cut(shared, target, cut, [&](auto visit) {
      probabilities([&](uint32_t, float probability) {
        const unsigned long long mass = fixed(probability);
        if (mass) visit(__float_as_uint(probability), mass);
      });
    });
    law.threshold = reached ? cut.key : 0;
    law.last = 0xffffffffu;
    if (!reached) return;
    // Of the equal ones at the threshold as many as the mass needs.
    const unsigned long long one = fixed(__uint_as_float(cut.key));
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

// The distribution of a draw, whose rows of logits have `vocab` columns, before its cuts are found.
__device__ __forceinline__ Distribution distribution(const WeftDraw &draw, const WeftImage &image, const float *logits,
                                                     uint32_t vocab) {
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
  return law;
}

// Whether a distribution has cuts to be found.
struct Cuts {
  bool top_k, top_p;

  __device__ __forceinline__ Cuts(const Distribution &law, const WeftImage &image)
      : top_k(!law.greedy && image.top_k > 0 && image.top_k < law.vocabulary.size),
        top_p(!law.greedy && image.top_p < 1.0f) {}

  // Finds them, all threads of a block together.
  __device__ __forceinline__ void find(Distribution &law, const WeftImage &image, Shared &shared) const {
    for (int i = 0; i < (law.two ? 2 : 1); ++i) {
      Law one = i == 0 ? law.first : law.second;
      if (law.greedy) law.keep_best(one, shared);
      if (top_k) law.keep_top_k(one, image.top_k, shared);
      if (top_p) law.keep_top_p(one, image.top_p, shared);
      if (i == 0) law.first = one;
      else law.second = one;
    }
    law.nucleus = top_p;
  }
};

// The numbers of a draw.
__device__ __forceinline__ Numbers numbers_of(const WeftDraw &draw, const WeftImage &image, Purpose purpose,
                                              uint32_t round) {
  return {{image.seed_low, image.seed_high}, draw.position, image.stream, purpose | round << 8};
}

// The Gumbel noise of one token.
__device__ __forceinline__ float gumbel_of(const Numbers &numbers, uint32_t token) {
  const uint4 words = numbers.block(token / QUAD);
  const uint32_t low = token & 1 ? words.y : words.x, high = token & 1 ? words.w : words.z;
  return gumbel(token & 2 ? high : low);
}

// Offers weight + noise of a quad's tokens.
__device__ __forceinline__ void offer_quad(Best &best, uint32_t quad, const Floats<4> &weights, const uint4 &words) {
  best.offer(weights.v[0] + gumbel(words.x), quad * QUAD);
  best.offer(weights.v[1] + gumbel(words.y), quad * QUAD + 1);
  best.offer(weights.v[2] + gumbel(words.z), quad * QUAD + 2);
  best.offer(weights.v[3] + gumbel(words.w), quad * QUAD + 3);
}
