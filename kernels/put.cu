// Puts the tokens that the host chose into the canvas, and the laws that have them alone into the proposals.
#include "law.cuh"

// One block per put; a step names a position at most once. `proposals` is [images, positions, vocab], null without.
extern "C" __global__ void __launch_bounds__(512)
    put(WeftStep step, uint32_t vocab, uint32_t positions, uint32_t *tokens, float *proposals) {
  if (blockIdx.x >= step.counts->puts) return;
  const WeftPut put = step.puts[blockIdx.x];
  const size_t place = (size_t)put.image * positions + put.position;
  if (threadIdx.x == 0) tokens[place] = put.token;
  if (!proposals) return;
  const Vocabulary vocabulary = {vocab};
  vocabulary.each([&](uint32_t quad) {
    Floats<4> law;
#pragma unroll
    for (uint32_t j = 0; j < QUAD; ++j) law.v[j] = quad * QUAD + j == put.token ? 1.0f : 0.0f;
    vocabulary.store(proposals + place * vocab, quad, law);
  });
}
