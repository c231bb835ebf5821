// What CUDA's compiler and runtime put into kernels: division of 128-bit integers, the heap, managed variables, the
// shared memory that cooperative groups reserve.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

namespace cg = cooperative_groups;
using wide = unsigned __int128;

extern "C" __global__ void divide_wide(const unsigned long long* x, unsigned long long* out) {
  const int i = threadIdx.x;
  const wide a = static_cast<wide>(x[4 * i]) << 64 | x[4 * i + 1], b = static_cast<wide>(x[4 * i + 2]) << 64 | x[4 * i + 3];
  const wide quotient = a / b, rest = a % b;
  out[4 * i] = quotient >> 64;
  out[4 * i + 1] = quotient;
  out[4 * i + 2] = rest >> 64;
  out[4 * i + 3] = rest;
}

struct Shape {
  __device__ virtual ~Shape() {}
  __device__ virtual int area() const = 0;
};

struct Square : Shape {
  int side;
  __device__ explicit Square(int side) : side(side) {}
  __device__ int area() const override { return side * side; }
};

struct Strip : Shape {
  int* lengths;
  int count;
  __device__ explicit Strip(int count) : lengths(new int[count]), count(count) {
    for (int i = 0; i < count; i++) lengths[i] = i;
  }
  __device__ ~Strip() override { delete[] lengths; }
  __device__ int area() const override {
    int sum = 0;
    for (int i = 0; i < count; i++) sum += lengths[i];
    return sum;
  }
};

__managed__ int scale = 3;

extern "C" __global__ void shapes(int* out) {
  const int i = threadIdx.x;
  Shape* shape = i % 2 ? static_cast<Shape*>(new Square(i)) : new Strip(i);
  out[i] = scale * shape->area();
  delete shape;
}

// Sums of 128 threads each, across warps.
extern "C" __global__ void tile_sums(const int* x, int* out) {
  __shared__ cg::block_tile_memory<256> memory;
  auto tile = cg::tiled_partition<128>(cg::this_thread_block(memory));
  out[threadIdx.x] = cg::reduce(tile, x[threadIdx.x], cg::plus<int>());
}
