// Draws tokens from logits into the canvas: the log-weights of law.cuh, then the rule of each draw.
//
// Without top-k and top-p a coupled draw is one pass over the log-weights, shared by several blocks; other draws are several
// passes of one block. Chains of verdicts are judged in parallel, each as if those before it had kept their tokens, and
// resolved by the block that is done last. The noise differs from the CPU's as philox.cuh says.
#include "verify.cuh"

// argmax(weight + noise) over the quads from `begin` to `end`.
__device__ __forceinline__ Best coupled(const Distribution &law, const Numbers &numbers, uint32_t begin, uint32_t end,
                                        Shared &shared) {
  Best best = {-INFINITY, 0};
  for (uint32_t quad = begin + threadIdx.x; quad < end; quad += blockDim.x)
    offer_quad(best, quad, law.weights(quad), numbers.block(quad));
  return block_best(best, shared);
}

// Whether the token that is there stays, by Rule::Cling, though `best` is the coupled draw's.
__device__ __forceinline__ bool clings(const Distribution &law, const Numbers &noise, const WeftDraw &draw,
                                       uint32_t token, const Best &best) {
  const float weight = law.weight(token);
  const float more_probable = law.weight(best.token) - weight, better = best.score - (weight + gumbel_of(noise, token));
  return better < draw.slack - draw.penalty * fmaxf(more_probable, 0.0f);
}

// The rules that keep p. A draft is argmax(log p + noise); a token that fails is replaced by argmax(log max(0, p - q) +
// noise), q being what was kept before, or by argmax(log p + noise).
__device__ __forceinline__ WeftJudged judged(const Distribution &law, const WeftDraw &draw, const WeftImage &image,
                                             const WeftCodebook &codebook, uint32_t token, float uniform,
                                             const Numbers &numbers, float *kept, Shared &shared) {
  Softmax p = {law, 0.0f, 0.0f};
  law.softmax(shared, p.top, p.total, [&](uint32_t quad) { return law.weights(quad); });
  Verdict verdict = Verdict::Redraw;
  uint32_t without = 0;
  if (draw.rule == WEFT_RULE_AUTO_CORRECT)
    verdict = judge(p, Kept{kept}, token, uniform, image, codebook, without, shared);
  __syncthreads();  // everyone has read q(token)
  const bool correct = verdict == Verdict::Correct, redraw = verdict == Verdict::Redraw || draw.links & WEFT_FOLLOWS;
  if (!correct) without = 0;
  if (without > 0) mark(codebook.neighbours + (size_t)token * codebook.each, without, law.vocabulary.size, shared.low);
  Best corrected = {-INFINITY, 0}, fresh = {-INFINITY, 0};
  law.vocabulary.each([&](uint32_t quad) {
    Floats<4> weights = law.weights(quad), p_of;
#pragma unroll
    for (int j = 0; j < 4; ++j) p_of.v[j] = p.of_weight(weights.v[j]);
    if (correct || redraw) {
      const uint4 words = numbers.block(quad);
      if (redraw) offer_quad(fresh, quad, weights, words);
      if (correct) {
        const Floats<4> q = law.vocabulary.load(kept, quad);
        const uint32_t out = without > 0 ? shared.low[quad / 8] >> quad % 8 * QUAD : 0;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          weights.v[j] = out >> j & 1 ? -INFINITY : logf(fmaxf(p_of.v[j] - q.v[j], 0.0f));
        offer_quad(corrected, quad, weights, words);
      }
    }
    law.vocabulary.store(kept, quad, p_of);
  });
  if (correct) corrected = block_best(corrected, shared);
  if (redraw) fresh = block_best(fresh, shared);
  // Should rounding have left nothing of the residual.
  if (correct && corrected.score == -INFINITY) corrected = coupled(law, numbers, 0, law.vocabulary.quads(), shared);
  return {verdict == Verdict::Keep, verdict == Verdict::Redraw ? fresh.token : corrected.token, fresh.token};
}

// Whether this is the last of so many blocks to arrive; what the others' first threads had written is then there to be read.
__device__ __forceinline__ bool arrives_last(uint32_t *arrived, uint32_t blocks, Shared &shared) {
  if (threadIdx.x == 0) {
    __threadfence();
    shared.flag = atomicInc(arrived, blocks - 1) == blocks - 1;  // which makes it zero again
    __threadfence();
  }
  __syncthreads();
  return shared.flag;
}

// The best of all blocks of a draw, in the block that arrives last; the others learn that they are not it.
__device__ __forceinline__ bool merge_blocks(Best &best, Best *partial, uint32_t *arrived, Shared &shared) {
  if (gridDim.x == 1) return true;
  if (threadIdx.x == 0) partial[blockIdx.x] = best;
  if (!arrives_last(arrived, gridDim.x, shared)) return false;
  if (threadIdx.x == 0) {
    best = {-INFINITY, 0};
    for (uint32_t block = 0; block < gridDim.x; ++block) {
      const float score = __ldcg(&partial[block].score);
      best.merge(score, __ldcg(&partial[block].token));
    }
  }
  return true;
}

// A grid of (blocks of a draw, draws), which is at least as large as the phase's list. Tokens are [images, positions];
// `proposals` is [images, positions, vocab], null without proposals; `partial` has a place for each block of each position,
// `arrived` has one for each position and before them one for chains, zero between launches, `judged` has one for each draw.
// A phase draws a position at most once.
extern "C" __global__ void __launch_bounds__(512, 1)
    draw(WeftStep step, uint32_t verdicts, const float *logits, uint32_t vocab, uint32_t positions, uint32_t *tokens,
         float *proposals, Best *partial, uint32_t *arrived, WeftJudged *judgements, WeftDrawn *drawn,
         WeftCodebook codebook) {
  __shared__ Shared shared;
  if (blockIdx.y >= (verdicts ? step.counts->verdicts : step.counts->drafts)) return;
  const WeftDraw *draws = verdicts ? step.verdicts : step.drafts;
  const WeftDraw draw = draws[blockIdx.y];
  if (draw.rule > WEFT_RULE_AUTO_CORRECT) return;  // trees.cu
  const WeftImage image = step.images[draw.image];
  const uint32_t place = draw.image * positions + draw.position;

  Distribution law = distribution(draw, image, logits, vocab);
  const Cuts cuts(law, image);
  const bool shared_by_blocks = !law.greedy && !cuts.top_k && !cuts.top_p && draw.rule == WEFT_RULE_COUPLED;
  if (!shared_by_blocks && blockIdx.x > 0) return;

  cuts.find(law, image, shared);

  uint32_t after;
  bool failed = false;
  if (draw.rule == WEFT_RULE_COUPLED) {
    const uint32_t blocks = shared_by_blocks ? gridDim.x : 1;
    const uint32_t share = (law.vocabulary.quads() + blocks - 1) / blocks;
    const uint32_t begin = blockIdx.x * share, end = min(begin + share, law.vocabulary.quads());
    const Numbers noise = numbers_of(draw, image, PURPOSE_TOKEN, 0);
    Best best = coupled(law, noise, begin, end, shared);
    if (shared_by_blocks &&
        !merge_blocks(best, partial + (size_t)place * gridDim.x, arrived + 1 + place, shared))
      return;
    after = best.token;
    if (threadIdx.x == 0 && draw.slack > 0.0f) {
      const uint32_t token = tokens[place];
      if (clings(law, noise, draw, token, best)) after = token;
    }
  } else {
    const bool correct = draw.rule == WEFT_RULE_AUTO_CORRECT;
    const float uniform = unit(numbers_of(draw, image, PURPOSE_ACCEPT, draw.round).block(0).x);
    const Numbers noise = numbers_of(draw, image, correct ? PURPOSE_RESIDUAL : PURPOSE_DRAFT, draw.round);
    float *kept = proposals + (size_t)place * vocab;
    const uint32_t token = tokens[place];
    const WeftJudged result = judged(law, draw, image, codebook, token, uniform, noise, kept, shared);
    if (draw.links) {
      if (threadIdx.x == 0) judgements[blockIdx.y] = result;
      if (arrives_last(arrived, step.counts->chained, shared))
        resolve_chains(draws, step.images, step.counts->verdicts, judgements, positions, tokens, drawn, shared);
      return;
    }
    after = result.kept ? token : result.corrected;
    failed = correct && !result.kept && image.test == WEFT_TEST_THRESHOLD;
  }
  if (threadIdx.x == 0) {
    const uint32_t before = tokens[place];
    if (verdicts) drawn[blockIdx.y] = {failed && before == after ? WEFT_NONE : before, after};
    tokens[place] = after;
  }
}
