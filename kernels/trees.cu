// Draft trees: draws the children of a node, and judges siblings by the law of their node. One block for each. And what the
// host asks for to make a tree: the best tokens of a law, and how good they are.
#include "verify.cuh"

// Visits the `count` largest scores, largest first, of equals the lower token first: take(child, best), where a score of
// -inf says that there are no more. After each, only the thread that had it looks at its scores again.
template <typename Scores, typename Take>
__device__ __forceinline__ void take_largest(const Vocabulary &vocabulary, uint32_t count, Shared &shared,
                                             Scores scores, Take take) {
  const auto look = [&](const Best &after) {
    Best best = {-INFINITY, 0};
    vocabulary.each([&](uint32_t quad) {
      const Floats<4> x = scores(quad);
#pragma unroll
      for (uint32_t j = 0; j < QUAD; ++j) {
        const uint32_t token = quad * QUAD + j;
        if (x.v[j] < after.score || (x.v[j] == after.score && token > after.token)) best.offer(x.v[j], token);
      }
    });
    return best;
  };
  // What is looked at first lies behind nothing.
  Best own = {-INFINITY, 0}, best = {INFINITY, 0};
  for (uint32_t child = 0; child < count; ++child) {
    if (child == 0 || best.token / QUAD % blockDim.x == threadIdx.x) own = look(best);
    const Best next = block_best(own, shared);
    take(child, next);
    if (next.score == -INFINITY) own = next;
    else best = next;
  }
}

// A grid of draws, at least as many as the phase's list; those of other rules are none of this kernel's. Tokens are
// [images, positions], `proposals` is [images, positions, vocab], null if no law is kept.
extern "C" __global__ void __launch_bounds__(512, 1)
    children(WeftStep step, uint32_t verdicts, const float *logits, uint32_t vocab, uint32_t positions,
             uint32_t *tokens, float *proposals, WeftDrawn *drawn, WeftChosen *chosen) {
  __shared__ Shared shared;
  if (blockIdx.x >= (verdicts ? step.counts->verdicts : step.counts->drafts)) return;
  const WeftDraw draw = (verdicts ? step.verdicts : step.drafts)[blockIdx.x];
  const bool drawn_from = draw.rule == WEFT_RULE_CHILDREN, foreseen = draw.rule == WEFT_RULE_FORESEE;
  if (!drawn_from && !foreseen && draw.rule != WEFT_RULE_LIKELIEST) return;
  const WeftImage image = step.images[draw.image];
  Distribution law = distribution(draw, image, logits, vocab);
  Cuts(law, image).find(law, image, shared);
  const Numbers noise = foreseen ? numbers_of(draw, image, PURPOSE_TOKEN, 0)
                                 : numbers_of(draw, image, PURPOSE_DRAFT, draw.round);
  const auto score = [&](uint32_t quad) {
    Floats<4> x = law.weights(quad);
    if (draw.rule == WEFT_RULE_LIKELIEST) return x;
    const uint4 words = noise.block(quad);
    x.v[0] += gumbel(words.x), x.v[1] += gumbel(words.y), x.v[2] += gumbel(words.z), x.v[3] += gumbel(words.w);
    return x;
  };
  Softmax p = {law, 0.0f, 0.0f};
  law.softmax(shared, p.top, p.total, [&](uint32_t quad) { return drawn_from ? law.weights(quad) : score(quad); });

  const uint32_t place = draw.image * positions + draw.position;
  // What is foreseen replaces nothing.
  const uint32_t before = foreseen ? WEFT_NONE : tokens[place];
  uint32_t first = 0;
  __syncthreads();  // everyone has read the token
  const auto put = [&](uint32_t child, const Best &best) {
    if (child == 0) first = best.token;
    const bool any = best.score > -INFINITY;
    const uint32_t token = any ? best.token : first;
    if (threadIdx.x != 0) return;
    if (!foreseen) tokens[place + child] = token;
    if (!drawn_from)
      chosen[draw.first + child] = {token, any ? best.score - p.top - logf(p.total) : -INFINITY};
  };
  take_largest(law.vocabulary, draw.count, shared, score, put);
  if (drawn_from) {
    law.vocabulary.each([&](uint32_t quad) {
      Floats<4> x = law.weights(quad);
#pragma unroll
      for (int j = 0; j < 4; ++j) x.v[j] = p.of_weight(x.v[j]);
      law.vocabulary.store(proposals + (size_t)place * vocab, quad, x);
    });
  }
  if (verdicts && threadIdx.x == 0) drawn[blockIdx.x] = {before, first};
}

// Log-weights in memory, and what makes probabilities of them.
struct Stored {
  Vocabulary size;
  const float *row;
  float top, total;

  __device__ __forceinline__ Vocabulary vocabulary() const { return size; }
  __device__ __forceinline__ float of_weight(float weight) const { return expf(weight - top) / total; }
  __device__ __forceinline__ float of(uint32_t token) const { return of_weight(row[token]); }
  __device__ __forceinline__ float weight(uint32_t token) const { return row[token]; }
  __device__ __forceinline__ Floats<4> weights(uint32_t quad) const {
    Floats<4> x = size.load(row, quad);
#pragma unroll
    for (uint32_t j = 0; j < QUAD; ++j)
      if (quad * QUAD + j >= size.size) x.v[j] = -INFINITY;
    return x;
  }
};

// The law of a sibling: what is left of the law that all were drawn from, up to a factor; or the token alone.
struct Sibling {
  const float *left;  // null: the token alone
  float total;
  uint32_t token;

  __device__ __forceinline__ float of_weight(float weight) const { return weight > 0.0f ? weight / total : 0.0f; }
  __device__ __forceinline__ float of(uint32_t other) const {
    if (left) return of_weight(left[other]);
    return other == token ? 1.0f : 0.0f;
  }
};

// Log-weights of max(0, p - q) into `to`, without the tokens that are marked if any are.
__device__ __forceinline__ void store_residual(const Stored &p, const Sibling &q, bool marked, float *to,
                                               Shared &shared) {
  p.size.each([&](uint32_t quad) {
    Floats<4> x = p.weights(quad), y;
    if (q.left) y = p.size.load(q.left, quad);
    const uint32_t out = marked ? shared.low[quad / 8] >> quad % 8 * QUAD : 0;
#pragma unroll
    for (uint32_t j = 0; j < QUAD; ++j) {
      const float other = q.left ? q.of_weight(y.v[j]) : quad * QUAD + j == q.token ? 1.0f : 0.0f;
      x.v[j] = out >> j & 1 ? -INFINITY : logf(fmaxf(p.of_weight(x.v[j]) - other, 0.0f));
    }
    p.size.store(to, quad, x);
  });
}

// Takes a token out of `row`; what is left in all.
__device__ __forceinline__ float take_out(const Vocabulary &vocabulary, float *row, uint32_t token, Shared &shared) {
  float rest = 0.0f;
  vocabulary.each([&](uint32_t quad) {
    const Floats<4> y = vocabulary.load(row, quad);
#pragma unroll
    for (uint32_t j = 0; j < QUAD; ++j)
      if (quad * QUAD + j != token) rest += y.v[j];
    if (quad == token / QUAD) row[token] = 0.0f;
  });
  return block_sum(rest, shared.floats);
}

// The `index`-th number of a position that a test compares with.
__device__ __forceinline__ float uniform_of(const Numbers &numbers, uint32_t index) {
  const uint4 words = numbers.block(index / 4);
  const uint32_t low = index & 1 ? words.y : words.x, high = index & 1 ? words.w : words.z;
  return unit(index & 2 ? high : low);
}

// Judges siblings; which passes and the token, WEFT_NONE and a token of what is left if none does. `rows` has room for
// three rows; `kept` is the law that the siblings were drawn from, null if each has a law of its own.
__device__ __forceinline__ WeftDrawn judge_siblings(const Distribution &law, const WeftDraw &draw, const WeftImage &image,
                                                    const WeftCodebook &codebook, const uint32_t *tokens,
                                                    const float *kept, float *rows, Shared &shared) {
  const Vocabulary vocabulary = law.vocabulary;
  float *next = rows + vocabulary.size, *others = next + vocabulary.size;
  vocabulary.each([&](uint32_t quad) {
    vocabulary.store(rows, quad, law.weights(quad));
    if (kept) vocabulary.store(others, quad, vocabulary.load(kept, quad));
  });
  const auto softmax = [&](Stored &of) {
    __syncthreads();  // the row is written
    law.softmax(shared, of.top, of.total, [&](uint32_t quad) { return of.weights(quad); });
  };
  Stored p = {vocabulary, rows, 0.0f, 0.0f};
  softmax(p);
  float total = 1.0f;
  const Numbers numbers = numbers_of(draw, image, PURPOSE_ACCEPT, draw.round);
  for (uint32_t child = 0; child < draw.count; ++child) {
    const uint32_t token = tokens[child];
    const Sibling q = {kept ? others : nullptr, total, token};
    if (q.of(token) == 0.0f) continue;  // q had no more
    uint32_t without = 0;
    const Verdict verdict = judge(p, q, token, uniform_of(numbers, child), image, codebook, without, shared);
    if (verdict == Verdict::Keep) return {child, token};
    __syncthreads();  // everyone has read the rows
    if (verdict == Verdict::Correct) {
      if (without > 0) mark(codebook.neighbours + (size_t)token * codebook.each, without, vocabulary.size, shared.low);
      store_residual(p, q, without > 0, next, shared);
      Stored left = {vocabulary, next, 0.0f, 0.0f};
      softmax(left);
      // Should rounding have left nothing, p stays.
      if (left.top > -INFINITY) {
        next = const_cast<float *>(p.row);
        p = left;
      }
    }
    if (kept) {
      total = take_out(vocabulary, others, token, shared);
      __syncthreads();  // it is out
    }
  }
  const Numbers noise = numbers_of(draw, image, PURPOSE_RESIDUAL, draw.round);
  Best best = {-INFINITY, 0};
  vocabulary.each([&](uint32_t quad) { offer_quad(best, quad, p.weights(quad), noise.block(quad)); });
  return {WEFT_NONE, block_best(best, shared).token};
}

__device__ __forceinline__ bool judges_siblings(const WeftDraw &draw) {
  return draw.rule == WEFT_RULE_SIBLINGS || draw.rule == WEFT_RULE_CHOSEN;
}

// How many verdicts before this block's are of siblings.
__device__ __forceinline__ uint32_t siblings_before(const WeftStep &step) {
  uint32_t before = 0;
  for (uint32_t first = 0; first < blockIdx.x; first += blockDim.x) {
    const uint32_t at = first + threadIdx.x;
    before += __syncthreads_count(at < blockIdx.x && judges_siblings(step.verdicts[at]));
  }
  return before;
}

// A grid of verdicts, at least as many as the list; those of other rules are none of this kernel's. Tokens are
// [images, positions], `proposals` is [images, positions, vocab], null if all siblings were chosen; `rows` is
// [verdicts of siblings, 3, vocab].
extern "C" __global__ void __launch_bounds__(512, 1)
    siblings(WeftStep step, const float *logits, uint32_t vocab, uint32_t positions, const uint32_t *tokens,
             const float *proposals, float *rows, WeftDrawn *drawn, WeftCodebook codebook) {
  __shared__ Shared shared;
  if (blockIdx.x >= step.counts->verdicts) return;
  const WeftDraw draw = step.verdicts[blockIdx.x];
  if (!judges_siblings(draw)) return;
  float *own = rows + (size_t)siblings_before(step) * 3 * vocab;
  const WeftImage image = step.images[draw.image];
  Distribution law = distribution(draw, image, logits, vocab);
  Cuts(law, image).find(law, image, shared);
  const uint32_t place = draw.image * positions + draw.first;
  // A leaf has no place.
  const bool kept = draw.rule == WEFT_RULE_SIBLINGS && draw.count > 0;
  const WeftDrawn result = judge_siblings(law, draw, image, codebook, tokens + place,
                                          kept ? proposals + (size_t)place * vocab : nullptr,
                                          own, shared);
  if (threadIdx.x == 0) drawn[blockIdx.x] = result;
}
