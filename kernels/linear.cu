// The matrix products with bf16 weights, and the rounding of their input where it is worth a launch.
#include "linear.cuh"

// The number in a name is the rows of a block. Names with `_two` multiply two weights side by side (SwiGLU) as well as
// one. Few rows: f32 input, rounded on the way from shared memory to the tensor cores; more: rounded once, before.
WEFT_LINEAR(weft_linear_8, 4, Bf16, Floats, 4, 1, 1, 1, 64, 4)
WEFT_LINEAR(weft_linear_16, 4, Bf16, Floats, 4, 1, 1, 2, 64, 4)
WEFT_LINEAR(weft_linear_32, 4, Bf16, Rounded, 4, 1, 1, 4, 64, 4)
WEFT_LINEAR(weft_linear_two_8, 3, Bf16, Floats, 4, 1, 2, 1, 64, 4)
WEFT_LINEAR(weft_linear_two_16, 2, Bf16, Floats, 4, 1, 2, 2, 64, 4)
WEFT_LINEAR(weft_linear_two_32, 2, Bf16, Rounded, 4, 1, 2, 4, 64, 4)
WEFT_LINEAR(weft_linear_two_64, 2, Bf16, Rounded, 4, 2, 2, 4, 32, 6)
WEFT_LINEAR(weft_linear_two_96, 2, Bf16, Rounded, 4, 2, 2, 6, 32, 6)
WEFT_LINEAR(weft_linear_two_144, 1, Bf16, Rounded, 4, 2, 2, 9, 32, 5)
WEFT_LINEAR(weft_linear_two_256, 1, Bf16, Rounded, 4, 2, 2, 16, 32, 4)

// x [rows][k] f32 to bf16 panels [k / 32][rows.max][32], the four 16-byte chunks of a row of a panel permuted by the
// row; columns past k are zero. A thread rounds four columns; the grid covers rows.max.
extern "C" __global__ void __launch_bounds__(256) weft_linear_round(uint2 *out, const float *x, WeftRows rows,
                                                                    uint32_t k) {
  const uint32_t pieces = (k + 31) / 32 * 8, i = blockIdx.x * 256 + threadIdx.x;
  const uint32_t row = i / pieces, piece = i % pieces, column = piece * 4;
  if (row >= weft_rows(rows)) return;
  const float *from = x + size_t(row) * k + column;
  float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (k % 4 == 0) {
    if (column < k) v = *reinterpret_cast<const float4 *>(from);
  } else {
    if (column < k) v.x = from[0];
    if (column + 1 < k) v.y = from[1];
    if (column + 2 < k) v.z = from[2];
    if (column + 3 < k) v.w = from[3];
  }
  const uint32_t chunk = piece / 2 % 4 ^ row / 2 % 4;
  out[(size_t(piece / 8) * rows.max + row) * 8 + chunk * 2 + piece % 2] =
      make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
}
