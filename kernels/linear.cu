// The matrix products with bf16 weights, and the rounding of an input that is no operand yet.
#include "linear.cuh"

// The number in a name is the rows of a block. Names with `_two` multiply two weights side by side (SwiGLU) as well as
// one.
WEFT_LINEAR(weft_linear_8, 4, Bf16, 4, 1, 1, 1, 64, 4)
WEFT_LINEAR(weft_linear_16, 4, Bf16, 4, 1, 1, 2, 64, 4)
WEFT_LINEAR(weft_linear_32, 4, Bf16, 4, 1, 1, 4, 64, 4)
WEFT_LINEAR(weft_linear_two_8, 3, Bf16, 4, 1, 2, 1, 64, 4)
WEFT_LINEAR(weft_linear_two_16, 2, Bf16, 4, 1, 2, 2, 64, 4)
WEFT_LINEAR(weft_linear_two_32, 2, Bf16, 4, 1, 2, 4, 64, 4)
WEFT_LINEAR(weft_linear_two_64, 2, Bf16, 4, 2, 2, 4, 32, 6)
WEFT_LINEAR(weft_linear_two_96, 2, Bf16, 4, 2, 2, 6, 32, 6)
WEFT_LINEAR(weft_linear_two_144, 1, Bf16, 4, 2, 2, 9, 32, 5)
WEFT_LINEAR(weft_linear_two_256, 1, Bf16, 4, 2, 2, 16, 32, 4)

// x [rows][k] f32 to an operand, zeros past its columns included. A thread rounds four columns; the grid covers rows.max.
extern "C" __global__ void __launch_bounds__(256) weft_linear_round(WeftOut out, const float *x, WeftRows rows,
                                                                    uint32_t k) {
  const uint32_t pieces = (k + 31) / 32 * 8, i = blockIdx.x * 256 + threadIdx.x;
  const uint32_t row = i / pieces, column = i % pieces * 4;
  if (row >= weft_rows(rows)) return;
  const float *from = x + size_t(row) * k + column;
  float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (k % 4 == 0) {
    if (column < k) {
      const float4 four = *reinterpret_cast<const float4 *>(from);
      v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (column + j < k) v[j] = from[j];
  }
  store(out, row, k, column, v);
}
