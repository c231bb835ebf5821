// The numbers of src/rng.rs: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), keyed by
// seed, image, position, purpose and round.
#pragma once
#include <stdint.h>

// What a number is drawn for: `Purpose` of src/rng.rs.
enum Purpose {
  PURPOSE_TOKEN = 0,
  PURPOSE_DRAFT = 1,
  PURPOSE_ACCEPT = 2,
  PURPOSE_RESIDUAL = 3,
  PURPOSE_DENOISE = 6
};

// The numbers of one position of an image for one purpose.
struct Numbers {
  uint32_t key[2];
  uint32_t position, image, purpose;

  // Block `index` of four words.
  __device__ __forceinline__ uint4 block(uint32_t index) const {
    uint4 c = make_uint4(index, position, image, purpose);
    uint32_t k0 = key[0], k1 = key[1];
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      if (round > 0) k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
      const uint32_t high0 = __umulhi(0xd2511f53u, c.x), low0 = 0xd2511f53u * c.x;
      const uint32_t high1 = __umulhi(0xcd9e8d57u, c.z), low1 = 0xcd9e8d57u * c.z;
      c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
    }
    return c;
  }
};

// Uniform in (0, 1), the same bits as on the CPU.
__device__ __forceinline__ float unit(uint32_t word) {
  return fminf(__fmul_rn(__fadd_rn(__uint2float_rn(word), 0.5f), 1.0f / 4294967296.0f), 0x1.fffffep-1f);
}

// Standard Gumbel variable -ln(-ln(1 - w)). With e = -ln(1 - w): log1pf and logf are within 1 ulp, the CPU's ln_1p and ln
// within 2 and 1; e is off by at most 3 ulp, that is by 3 * 2^-23 of it, which shifts the result by as much; the logarithms
// differ by at most 2 ulp of the result, whose size is at most 23. So CPU and device differ by at most
// 3 * 2^-23 + 2 ulp(23) = 4.2e-6, and for results below 4 in size by 8.4e-7.
__device__ __forceinline__ float gumbel(uint32_t word) { return -logf(-log1pf(-unit(word))); }
