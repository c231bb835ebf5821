// What the language needs of the machine beside arithmetic: calls, recursion, pointers to functions, local arrays,
// jump tables, constants and variables with initial values, printf, assert, generic addresses.
#include <cassert>
#include <cstdint>
#include <cstdio>

__constant__ float kCoefficients[4] = {1.0f, -0.5f, 0.25f, 2.0f};
__device__ int counter = 7;
__device__ const int* pointer_to_counter = &counter;
__device__ unsigned char letters[] = "weft";

__device__ __noinline__ float horner(float x, const float* c, int n) {
  float sum = 0.0f;
  for (int i = n - 1; i >= 0; i--) sum = sum * x + c[i];
  return sum;
}

__device__ __noinline__ int ackermann(int m, int n) {
  if (m == 0) return n + 1;
  if (n == 0) return ackermann(m - 1, 1);
  return ackermann(m - 1, ackermann(m, n - 1));
}

struct Pair {
  double a;
  int b[3];
};

__device__ __noinline__ Pair rotate(Pair p, int by) {
  Pair q;
  q.a = p.a * by;
  for (int i = 0; i < 3; i++) q.b[i] = p.b[(i + by) % 3];
  return q;
}

extern "C" __global__ void calls(float* y, int* z, double* d, const float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  y[i] = horner(x[i], kCoefficients, 4);
  z[i] = ackermann(i % 3, i % 5) + *pointer_to_counter + letters[i % 4];
  Pair p = {double(x[i]), {i, i + 1, i + 2}};
  p = rotate(p, i % 3 + 1);
  d[i] = p.a + p.b[0] + 10 * p.b[1] + 100 * p.b[2];
}

__device__ __noinline__ int twice(int x) { return 2 * x; }
__device__ __noinline__ int square(int x) { return x * x; }
__device__ __noinline__ int negate(int x) { return -x; }

typedef int (*Function)(int);
__device__ Function table[3] = {twice, square, negate};

extern "C" __global__ void function_pointers(int* y, const int* which, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = table[which[i]](i);
}

// An insertion sort of eight keys in local memory, then a jump table.
extern "C" __global__ void local_arrays(int* out, const int* in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int keys[8];
  int count = 0;
  for (int j = 0; j < 8; j++) {
    const int key = in[i * 8 + j];
    int at = count++;
    while (at > 0 && keys[at - 1] > key) {
      keys[at] = keys[at - 1];
      at--;
    }
    keys[at] = key;
  }
  int result;
  switch (in[i * 8] & 7) {
    case 0: result = keys[0]; break;
    case 1: result = keys[1] * 3; break;
    case 2: result = keys[2] ^ keys[5]; break;
    case 3: result = keys[3] - keys[4]; break;
    case 4: result = __popc(keys[4]); break;
    case 5: result = keys[5] / 7; break;
    case 6: result = keys[6] % 7; break;
    default: result = keys[7] + keys[in[i * 8 + 1] & 7]; break;
  }
  out[i] = result;
}

extern "C" __global__ void prints(int n) {
  if (threadIdx.x < n) printf("thread %d of %s: %5.2f %lld%%\n", int(threadIdx.x), "weft", threadIdx.x * 0.5, -1LL);
}

extern "C" __global__ void asserts(const int* x, int n) {
  if (threadIdx.x < n) assert(x[threadIdx.x] >= 0);
}

extern "C" __global__ void traps(const int* x) {
  if (x[threadIdx.x] < 0) __trap();
}

// The same function on pointers of three spaces.
__device__ __noinline__ int first_plus_last(const int* p, int n) { return p[0] + p[n - 1]; }

extern "C" __global__ void generic_addresses(int* out, const int* in) {
  __shared__ int shared[32];
  int local[4];
  shared[threadIdx.x] = in[threadIdx.x] * 2;
  for (int i = 0; i < 4; i++) local[i] = in[(threadIdx.x + i) % 32];
  __syncthreads();
  const int* places[3] = {in, shared, local};
  const int sizes[3] = {32, 32, 4};
  const int which = threadIdx.x % 3;
  out[threadIdx.x] = first_plus_last(places[which], sizes[which]) + (__isShared(places[which]) ? 1000 : 0);
}

// Divergence that does not close where it opened: loops with breaks, returns inside, votes in between.
extern "C" __global__ void divergence(int* out, const int* in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int x = in[i], steps = 0;
  while (x != 1) {
    if (steps > 200) {
      out[i] = -1;
      return;
    }
    if (x % 2) {
      x = 3 * x + 1;
      if (x < 0) break;
    } else {
      x /= 2;
      if (x % 5 == 3) {
        steps += 10;
        continue;
      }
    }
    steps++;
  }
  out[i] = steps;
}
