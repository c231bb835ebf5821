// Nearest-neighbour upsampling by two of NHWC images.
#include "floats.cuh"

// One thread per vector of N channels of the output.
template <int N>
__device__ __forceinline__ void double_pixels(const float *x, uint32_t vectors, uint32_t width, uint32_t columns,
                                              float *out) {
  const Floats<N> *from = reinterpret_cast<const Floats<N> *>(x);
  Floats<N> *to = reinterpret_cast<Floats<N> *>(out);
  for (uint32_t at = blockIdx.x * blockDim.x + threadIdx.x; at < vectors; at += gridDim.x * blockDim.x) {
    // Rows of all images follow each other: row r of the output shows row r / 2 of the input, whatever the image.
    const uint32_t pixel = at / columns, row = pixel / (2 * width) / 2, col = pixel % (2 * width) / 2;
    to[at] = from[(row * width + col) * columns + at % columns];
  }
}

// `columns` are the vectors of a pixel; `width` is the input's.
extern "C" __global__ void upsample(const float *x, uint32_t vectors, uint32_t width, uint32_t columns, float *out) {
  double_pixels<4>(x, vectors, width, columns, out);
}

extern "C" __global__ void upsample_ragged(const float *x, uint32_t vectors, uint32_t width, uint32_t columns,
                                           float *out) {
  double_pixels<1>(x, vectors, width, columns, out);
}
