// Lanes that talk: shuffles of every kind and width, votes, matches, reductions, under full and partial masks.
#include <cstdint>

extern "C" __global__ void lanes(int* out, const int* in) {
  const int lane = threadIdx.x % 32, value = in[threadIdx.x];
  int* row = out + threadIdx.x * 16;
  const uint32_t full = 0xffffffffu;
  row[0] = __shfl_sync(full, value, (lane * 7 + 3) % 32);
  row[1] = __shfl_sync(full, value, lane, 8);
  row[2] = __shfl_up_sync(full, value, 3, 16);
  row[3] = __shfl_down_sync(full, value, 5, 8);
  row[4] = __shfl_xor_sync(full, value, 9);
  row[5] = __ballot_sync(full, value & 1);
  row[6] = __all_sync(full, value >= 0) | __any_sync(full, value > 90) << 1;
  row[7] = __match_any_sync(full, value % 4);
  int same;
  row[8] = __match_all_sync(full, value / 1000, &same);
  row[9] = same;
  row[10] = __reduce_add_sync(full, value);
  row[11] = __reduce_min_sync(full, value - 50);
  row[12] = __reduce_xor_sync(full, unsigned(value));
  row[13] = row[14] = row[15] = -1;
  if (lane % 3 == 1) {
    const uint32_t some = __activemask();
    row[13] = some;
    row[14] = __reduce_max_sync(some, value);
    row[15] = __shfl_sync(some, value, 4);
  }
}

// 64-bit values and predicates through shuffles.
extern "C" __global__ void wide_lanes(long long* out, const long long* in) {
  const long long value = in[threadIdx.x];
  long long sum = value;
  for (int delta = 1; delta < 32; delta *= 2) {
    const long long other = __shfl_up_sync(0xffffffffu, sum, delta);
    if (threadIdx.x % 32 >= delta) sum += other;
  }
  out[threadIdx.x] = sum;
}

// A bitonic sort of 1024 keys by one block.
extern "C" __global__ void __launch_bounds__(512) bitonic_sort(uint32_t* keys) {
  __shared__ uint32_t shared[1024];
  for (int i = threadIdx.x; i < 1024; i += 512) shared[i] = keys[blockIdx.x * 1024 + i];
  for (int size = 2; size <= 1024; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      const int i = 2 * threadIdx.x - (threadIdx.x & (stride - 1));
      const uint32_t a = shared[i], b = shared[i + stride];
      if ((a > b) == ((i & size) == 0)) {
        shared[i] = b;
        shared[i + stride] = a;
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 1024; i += 512) keys[blockIdx.x * 1024 + i] = shared[i];
}

// y = x transposed through a padded tile.
extern "C" __global__ void transpose(float* y, const float* x, int rows, int cols) {
  __shared__ float tile[32][33];
  for (int j = threadIdx.y; j < 32; j += blockDim.y) {
    const int row = blockIdx.y * 32 + j, col = blockIdx.x * 32 + threadIdx.x;
    if (row < rows && col < cols) tile[j][threadIdx.x] = x[row * cols + col];
  }
  __syncthreads();
  for (int j = threadIdx.y; j < 32; j += blockDim.y) {
    const int row = blockIdx.x * 32 + j, col = blockIdx.y * 32 + threadIdx.x;
    if (row < cols && col < rows) y[row * rows + col] = tile[threadIdx.x][j];
  }
}
