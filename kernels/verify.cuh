// Whether a token that was drawn from q passes for one that was drawn from p: the rules of `Test` (src/backend/step.rs) as
// src/backend/cpu/verify.rs does them. The block judges one token; whatever is said of it is the same in all threads.
//
// Masses of several tokens are sums in fixed point: the same whatever the order, and the CPU's wherever the probabilities are.
#pragma once
#include "law.cuh"

// What becomes of a token.
enum class Verdict : uint32_t {
  Keep,
  Correct,  // it is replaced by one of max(0, p - q)
  Redraw,   // it is replaced by one of p
};

// p: the probabilities of a distribution, ranked by its log-weights.
struct Softmax {
  const Distribution &law;
  float top, total;

  __device__ __forceinline__ Vocabulary vocabulary() const { return law.vocabulary; }
  __device__ __forceinline__ Floats<4> weights(uint32_t quad) const { return law.weights(quad); }
  __device__ __forceinline__ float weight(uint32_t token) const { return law.weight(token); }
  __device__ __forceinline__ float of_weight(float weight) const { return expf(weight - top) / total; }
  __device__ __forceinline__ float of(uint32_t token) const { return of_weight(law.weight(token)); }
};

// q: a law that was kept.
struct Kept {
  const float *law;

  __device__ __forceinline__ float of(uint32_t token) const { return law[token]; }
};

// A sum in fixed point as a probability.
__device__ __forceinline__ float unfixed(unsigned long long mass) { return __ull2float_rn(mass) * (1.0f / MASS); }

// The prefix of `count` tokens whose mass does not exceed `bound`: how many they are, and their mass.
template <typename P>
__device__ __forceinline__ uint32_t prefix_within(const P &p, const uint32_t *tokens, uint32_t count,
                                                  unsigned long long bound, unsigned long long &mass, Shared &shared) {
  uint32_t inside = 0;
  mass = 0;
  for (uint32_t first = 0; first < count; first += blockDim.x) {
    const uint32_t at = first + threadIdx.x;
    const unsigned long long mine = at < count ? fixed(p.of(tokens[at])) : 0;
    const unsigned long long upto = mass + block_scan(mine, shared);
    const bool fits = at < count && upto <= bound;
    // Sums do not fall, so those that fit come first.
    const uint32_t fitting = __syncthreads_count(fits);
    if (threadIdx.x == (fitting > 0 ? fitting - 1 : 0)) shared.above = fitting > 0 ? upto : mass;
    __syncthreads();
    mass = shared.above;
    __syncthreads();
    inside += fitting;
    if (fitting < min(blockDim.x, count - first)) break;
  }
  return inside;
}

// The end of so many of the first entries in the order of descending keys and ascending tokens.
struct Rank {
  uint32_t key, last;

  __device__ __forceinline__ bool before(uint32_t other, uint32_t token) const {
    return other > key || (other == key && token <= last);
  }
};

// The first `count` of the tokens that have a rank, of which there are as many: those with weight, by weight.
template <typename P>
__device__ Rank first_ranks(const P &p, uint32_t count, Shared &shared) {
  const auto ranked = [&](auto visit) {
    p.vocabulary().each([&](uint32_t quad) {
      const Floats<4> x = p.weights(quad);
#pragma unroll
      for (uint32_t j = 0; j < QUAD; ++j)
        if (x.v[j] > -INFINITY) visit(quad * QUAD + j, order(x.v[j]));
    });
  };
  Cut cut, last;
  find_cut(shared, count, cut, [&](auto visit) { ranked([&](uint32_t, uint32_t key) { visit(key, 1); }); });
  const uint32_t needed = count - (uint32_t)cut.above;
  if (needed >= cut.at) return {cut.key, 0xffffffffu};
  find_cut(shared, needed, last, [&](auto visit) {
    ranked([&](uint32_t token, uint32_t key) {
      if (key == cut.key) visit(~token, 1);
    });
  });
  return {cut.key, ~last.key};
}

// Squared distance of two vectors, the CPU's bits (src/backend/codebook.rs): a lane adds the squares of every 32nd
// dimension, then lanes are added in pairs. The warp's result, in every lane.
__device__ __forceinline__ float squared_distance(const WeftCodebook &codebook, uint32_t a, uint32_t b) {
  const float *from = codebook.vectors + (size_t)a * codebook.dim, *to = codebook.vectors + (size_t)b * codebook.dim;
  float sum = 0.0f;
  for (uint32_t i = threadIdx.x % 32; i < codebook.dim; i += 32) {
    const float difference = __fsub_rn(from[i], to[i]);
    sum = __fadd_rn(sum, __fmul_rn(difference, difference));
  }
  return warp_sum(sum);
}

// Masses, by p and by q, of the group of a token, without it.
template <typename P, typename Q>
__device__ __forceinline__ void group_masses(const P &p, const Q &q, uint32_t token, const WeftImage &image,
                                             const WeftCodebook &codebook, float &by_p, float &by_q, Shared &shared) {
  by_p = by_q = 0.0f;
  const float own = p.weight(token);
  if (own == -INFINITY || image.size == 1) return;
  // Its rank, and how many have one.
  unsigned long long counted = 0;
  p.vocabulary().each([&](uint32_t quad) {
    const Floats<4> x = p.weights(quad);
#pragma unroll
    for (uint32_t j = 0; j < QUAD; ++j) {
      if (x.v[j] == -INFINITY) continue;
      const uint32_t key = order(x.v[j]);
      const bool better = key > order(own) || (key == order(own) && quad * QUAD + j < token);
      counted += 1ull << 32 | (better ? 1u : 0u);
    }
  });
  counted = block_total(counted, shared);
  const uint32_t rank = (uint32_t)counted, ranks = (uint32_t)(counted >> 32), above = (image.size - 1) / 2;
  const uint32_t size = min(image.size, ranks), first = min(rank > above ? rank - above : 0u, ranks - size);
  const Rank end = first_ranks(p, first + size, shared);
  Rank begin = {0xffffffffu, 0};
  if (first > 0) begin = first_ranks(p, first, shared);
  // The others of the group whose probability is near, in any order.
  uint32_t *members = shared.low;
  const float probability = p.of_weight(own);
  if (threadIdx.x == 0) shared.flag = 0;
  __syncthreads();
  p.vocabulary().each([&](uint32_t quad) {
    const Floats<4> x = p.weights(quad);
#pragma unroll
    for (uint32_t j = 0; j < QUAD; ++j) {
      const uint32_t other = quad * QUAD + j, key = order(x.v[j]);
      const bool inside = x.v[j] > -INFINITY && end.before(key, other) && !(first > 0 && begin.before(key, other));
      if (inside && other != token && fabsf(p.of_weight(x.v[j]) - probability) < image.bound)
        members[atomicAdd(&shared.flag, 1u)] = other;
    }
  });
  __syncthreads();
  const uint32_t count = shared.flag;
  unsigned long long mine_p = 0, mine_q = 0;
  for (uint32_t at = threadIdx.x / 32; at < count; at += blockDim.x / 32) {
    const uint32_t other = members[at];
    if (image.distance < INFINITY && !(squared_distance(codebook, other, token) < image.distance)) continue;
    if (threadIdx.x % 32 == 0) mine_p += fixed(p.of(other)), mine_q += fixed(q.of(other));
  }
  by_p = unfixed(block_total(mine_p, shared));
  by_q = unfixed(block_total(mine_q, shared));
}

// Judges a token; q is the law that it was drawn from. Of what corrects it, the first `without` of its neighbours are no
// part.
template <typename P, typename Q>
__device__ __forceinline__ Verdict judge(const P &p, const Q &q, uint32_t token, float uniform,
                                         const WeftImage &image, const WeftCodebook &codebook, uint32_t &without,
                                         Shared &shared) {
  const uint32_t *nearest = codebook.neighbours + (size_t)token * codebook.each;
  float passing = p.of(token), of = q.of(token);
  without = 0;
  if (image.test == WEFT_TEST_GROUPED) {
    float by_p, by_q;
    group_masses(p, q, token, image, codebook, by_p, by_q, shared);
    passing += by_p, of += by_q;
  } else if (image.test != WEFT_TEST_TOKEN) {
    unsigned long long bound = ~0ull, mass;
    if (image.test == WEFT_TEST_POOLED_MASS) bound = fixed(image.bound);
    if (image.test == WEFT_TEST_POOLED_RATIO) bound = fixed(__fmul_rn(__fsub_rn(image.bound, 1.0f), passing));
    without = prefix_within(p, nearest, image.size, bound, mass, shared);
    passing += unfixed(mass);
    if (image.test == WEFT_TEST_THRESHOLD) {
      without = 0;
      return passing >= image.bound ? Verdict::Keep : Verdict::Redraw;
    }
  }
  return uniform * of < passing ? Verdict::Keep : Verdict::Correct;
}

// Marks tokens in a set of bits, one for each of the vocabulary.
__device__ __forceinline__ void mark(const uint32_t *tokens, uint32_t count, uint32_t vocab, uint32_t *bits) {
  for (uint32_t word = threadIdx.x; word < (vocab + 31) / 32; word += blockDim.x) bits[word] = 0;
  __syncthreads();
  for (uint32_t at = threadIdx.x; at < count; at += blockDim.x) atomicOr(bits + tokens[at] / 32, 1u << tokens[at] % 32);
  __syncthreads();
}

// Resolves the chains of a list of draws that were judged one by one: a token that follows one that failed, or that was not
// judged itself, is drawn anew. Done by one block.
__device__ __forceinline__ void resolve_chains(const WeftDraw *draws, const WeftImage *images, uint32_t count,
                                               const WeftJudged *judged, uint32_t positions, uint32_t *tokens,
                                               WeftDrawn *drawn, Shared &shared) {
  uint32_t *follows = shared.low, *kept = shared.high;
  for (uint32_t first = 0; first < count; first += blockDim.x) {
    const uint32_t at = first + threadIdx.x;
    const uint32_t links = at < count ? draws[at].links : 0;
    const uint32_t follow = __ballot_sync(0xffffffffu, links & WEFT_FOLLOWS);
    const uint32_t keep = __ballot_sync(0xffffffffu, links && __ldcg(&judged[at].kept));
    if (threadIdx.x % 32 == 0) follows[at / 32] = follow, kept[at / 32] = keep;
  }
  __syncthreads();
  for (uint32_t at = threadIdx.x; at < count; at += blockDim.x) {
    const WeftDraw draw = draws[at];
    if (!draw.links) continue;
    // The head of its chain is the last that follows none; one between them that failed decides.
    bool alive = true;
    for (uint32_t word = at / 32, upto = (2u << at % 32) - 1; ; --word, upto = 0xffffffffu) {
      const uint32_t heads = ~follows[word] & upto;
      const uint32_t failed = ~kept[word] & upto & (word == at / 32 ? ~(1u << at % 32) : 0xffffffffu);
      const uint32_t since = heads ? 31 - __clz(heads) : 0;
      alive = failed >> since == 0;
      if (!alive || heads || word == 0) break;
    }
    const uint32_t place = draw.image * positions + draw.position, before = tokens[place];
    uint32_t after = __ldcg(&judged[at].fresh);
    if (alive && __ldcg(&judged[at].kept)) after = before;
    else if (alive) after = __ldcg(&judged[at].corrected);
    const bool failed = alive && !__ldcg(&judged[at].kept) && images[draw.image].test == WEFT_TEST_THRESHOLD;
    drawn[at] = {failed && before == after ? WEFT_NONE : before, after};
    tokens[place] = after;
  }
}
