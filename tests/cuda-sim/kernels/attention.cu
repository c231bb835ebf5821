// Decoding attention over a paged cache with grouped queries: a block per sequence and query head, an online softmax
// per warp over its pages, then a merge of the warps through shared memory.
#include <cfloat>
#include <cstdint>
#include <cuda_bf16.h>

constexpr int kHead = 64, kPage = 16, kWarps = 4;

// q[seqs][heads][64], k and v cache[pages][16][kv_heads][64], table[seqs][max_pages], lengths[seqs].
extern "C" __global__ void __launch_bounds__(kWarps * 32)
    paged_attention(float* __restrict__ out, const __nv_bfloat16* __restrict__ q, const __nv_bfloat16* __restrict__ k,
                    const __nv_bfloat16* __restrict__ v, const int* __restrict__ table, const int* __restrict__ lengths,
                    int heads, int kv_heads, int max_pages, float scale) {
  __shared__ float shared_out[kWarps][kHead];
  __shared__ float shared_max[kWarps], shared_sum[kWarps];
  const int head = blockIdx.x, seq = blockIdx.y, kv_head = head / (heads / kv_heads);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int length = lengths[seq];

  // A lane owns two of the 64 columns.
  const __nv_bfloat162* qp = reinterpret_cast<const __nv_bfloat162*>(q + (size_t(seq) * heads + head) * kHead);
  float2 query = __bfloat1622float2(qp[lane]);
  query.x *= scale;
  query.y *= scale;

  float top = -FLT_MAX, sum = 0.0f;
  float2 acc = make_float2(0.0f, 0.0f);
  for (int page = warp; page * kPage < length; page += kWarps) {
    const size_t base = size_t(table[seq * max_pages + page]) * kPage;
    const int count = min(kPage, length - page * kPage);
    for (int t = 0; t < count; t++) {
      const size_t row = ((base + t) * kv_heads + kv_head) * kHead;
      const float2 key = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(k + row)[lane]);
      float score = query.x * key.x + query.y * key.y;
#pragma unroll
      for (int delta = 16; delta > 0; delta >>= 1) score += __shfl_xor_sync(0xffffffffu, score, delta);
      const float next = fmaxf(top, score);
      const float keep = __expf(top - next), weight = __expf(score - next);
      const float2 value = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(v + row)[lane]);
      acc.x = acc.x * keep + weight * value.x;
      acc.y = acc.y * keep + weight * value.y;
      sum = sum * keep + weight;
      top = next;
    }
  }

  shared_out[warp][lane * 2] = acc.x;
  shared_out[warp][lane * 2 + 1] = acc.y;
  if (lane == 0) {
    shared_max[warp] = top;
    shared_sum[warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kHead) {
    float all = shared_max[0];
    for (int w = 1; w < kWarps; w++) all = fmaxf(all, shared_max[w]);
    float numerator = 0.0f, denominator = 0.0f;
    for (int w = 0; w < kWarps; w++) {
      const float weight = __expf(shared_max[w] - all);
      numerator += weight * shared_out[w][threadIdx.x];
      denominator += weight * shared_sum[w];
    }
    out[(size_t(seq) * heads + head) * kHead + threadIdx.x] = numerator / denominator;
  }
}
