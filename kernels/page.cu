// Copies a page of the cache in all layers.
#include "common.cuh"

// A block per layer; a layer is `pages` pages of `pieces` times 16 bytes.
extern "C" __global__ void __launch_bounds__(256)
    copy_page(uint4 *cache, uint32_t pages, uint32_t pieces, uint32_t from, uint32_t to) {
  const size_t layer = size_t(blockIdx.x) * pages;
  const uint4 *source = cache + (layer + from) * pieces;
  uint4 *target = cache + (layer + to) * pieces;
  for (uint32_t i = threadIdx.x; i < pieces; i += blockDim.x) target[i] = source[i];
}
