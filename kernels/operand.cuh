// Operands of products: activations as bf16 (nearest even), as the matrix products copy them.
//
// [columns / 32][room][32], the panels of 32 columns padded with zeros. The row of a panel is 64 bytes; its four 16-byte
// chunks are permuted by the row (the 64-byte swizzle of Hopper's matrix descriptors), so that ldmatrix meets no bank
// twice. `room` is that of the tensor, not of a launch: what an op wrote is where the next one looks for it.
#pragma once
#include "common.cuh"

// Where a column of a row is.
__device__ __forceinline__ void *operand_place(const WeftOut &out, uint32_t row, uint32_t column) {
  const uint32_t chunk = column / 8 % 4 ^ row / 2 % 4;
  return static_cast<uint8_t *>(out.data) + (size_t(column / 32) * out.room + row) * 64 + chunk * 16 + column % 8 * 2;
}

// Writes N columns of a row from a multiple of N on; rows have `cols`, a multiple of N.
template <int N>
__device__ __forceinline__ void store(const WeftOut &out, uint32_t row, uint32_t cols, uint32_t column,
                                      const float (&v)[N]) {
  static_assert(N == 1 || N == 2 || N == 4, "");
  if (out.room == 0) {
    float *to = static_cast<float *>(out.data) + size_t(row) * cols + column;
    if constexpr (N == 4) *reinterpret_cast<float4 *>(to) = make_float4(v[0], v[1], v[2], v[3]);
    if constexpr (N == 2) *reinterpret_cast<float2 *>(to) = make_float2(v[0], v[1]);
    if constexpr (N == 1) *to = v[0];
    return;
  }
  void *to = operand_place(out, row, column);
  if constexpr (N == 4) *static_cast<uint2 *>(to) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
  if constexpr (N == 2) *static_cast<uint32_t *>(to) = pack_bf16(v[0], v[1]);
  if constexpr (N == 1) *static_cast<uint16_t *>(to) = uint16_t(pack_bf16(v[0], 0.0f));
}
