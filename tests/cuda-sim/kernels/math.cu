// Arithmetic as compilers expand it: the library's functions, divisions, narrow floats.
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// out[function][n]: the functions of the switch below, one after another.
extern "C" __global__ void functions_f32(float* out, const float* x, const float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = x[i], b = y[i];
  out[i] = expf(a);
  out[n + i] = logf(fabsf(a));
  out[2 * n + i] = sinf(a);
  out[3 * n + i] = cosf(a);
  out[4 * n + i] = powf(fabsf(a), b);
  out[5 * n + i] = tanhf(a);
  out[6 * n + i] = erff(a);
  out[7 * n + i] = a / b;
  out[8 * n + i] = sqrtf(fabsf(a));
  out[9 * n + i] = rsqrtf(fabsf(a));
  out[10 * n + i] = fmodf(a, b);
  out[11 * n + i] = log1pf(fabsf(a));
  out[12 * n + i] = cbrtf(a);
  out[13 * n + i] = exp2f(b);
  out[14 * n + i] = atan2f(a, b);
  out[15 * n + i] = __expf(b);
  out[16 * n + i] = __sinf(b);
  out[17 * n + i] = __logf(fabsf(a));
  out[18 * n + i] = __fdividef(a, b);
  out[19 * n + i] = a / (1.0f + expf(-a));
}

// out[function][n], results that are exact: roundings, comparisons, neighbours.
extern "C" __global__ void exact_f32(float* out, const float* x, const float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = x[i], b = y[i];
  out[i] = floorf(a);
  out[n + i] = ceilf(a);
  out[2 * n + i] = truncf(a);
  out[3 * n + i] = rintf(a);
  out[4 * n + i] = roundf(a);
  out[5 * n + i] = fmaxf(a, b);
  out[6 * n + i] = fminf(a, b);
  out[7 * n + i] = copysignf(a, b);
  out[8 * n + i] = fmaf(a, b, a);
  out[9 * n + i] = __fadd_rz(a, b);
  out[10 * n + i] = __fmul_ru(a, b);
  out[11 * n + i] = __frcp_rn(b);
  out[12 * n + i] = __fsqrt_rd(fabsf(a));
  out[13 * n + i] = __saturatef(a);
  out[14 * n + i] = ldexpf(a, int(b));
  out[15 * n + i] = float(__float2int_rn(a));
  out[16 * n + i] = float(__float2uint_rz(a));
  out[17 * n + i] = isnan(a) ? 1.0f : isinf(b) ? 2.0f : 3.0f;
  out[18 * n + i] = __fdiv_rn(a, b);
  out[19 * n + i] = __fsub_rd(a, b);
}

extern "C" __global__ void functions_f64(double* out, const double* x, const double* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const double a = x[i], b = y[i];
  out[i] = exp(a);
  out[n + i] = log(fabs(a));
  out[2 * n + i] = a / b;
  out[3 * n + i] = sqrt(fabs(a));
  out[4 * n + i] = fma(a, b, a);
  out[5 * n + i] = double(float(a));
  out[6 * n + i] = double(static_cast<long long>(a));
  out[7 * n + i] = rint(b);
}

// Integer arithmetic on 32 and 64 bits; b is never zero.
extern "C" __global__ void integers(unsigned long long* out, const unsigned long long* x, const unsigned long long* y,
                                    int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned long long a = x[i], b = y[i];
  const long long sa = a, sb = b;
  const int ia = a, ib = b;
  const unsigned ua = a, ub = b;
  const int shift = b & 63;
  out[i] = a / b;
  out[n + i] = sa % sb;
  out[2 * n + i] = __umul64hi(a, b);
  out[3 * n + i] = __mul64hi(sa, sb);
  out[4 * n + i] = (a << shift) ^ (a >> shift) ^ (sa >> shift);
  out[5 * n + i] = ub ? ua / ub : 0;
  out[6 * n + i] = ib ? static_cast<unsigned>(ia % ib) : 0;
  out[7 * n + i] = __popcll(a) + 100 * __clzll(b) + 10000 * __ffsll(a);
  out[8 * n + i] = __brevll(a);
  out[9 * n + i] = __byte_perm(ua, ub, 0x3715) | static_cast<unsigned long long>(__funnelshift_l(ua, ub, shift)) << 32;
  out[10 * n + i] = static_cast<unsigned>(__vadd4(ua, ub)) | static_cast<unsigned long long>(__vmaxs2(ua, ub)) << 32;
  out[11 * n + i] = static_cast<unsigned>(__sad(ia, ib, ua)) +
                    (static_cast<unsigned long long>(__uhadd(ua, ub)) << 32);
  out[12 * n + i] = static_cast<unsigned short>(ua) * static_cast<unsigned short>(ub) + (ua & 0xff) % 37;
  const unsigned __int128 wide = static_cast<unsigned __int128>(a) * b + a;
  out[13 * n + i] = static_cast<unsigned long long>(wide >> 64) ^ static_cast<unsigned long long>(wide);
}

// out[function][n] of f16 and bf16 values, as their bits.
extern "C" __global__ void halves(uint16_t* out, const uint16_t* x, const uint16_t* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const __half a = __ushort_as_half(x[i]), b = __ushort_as_half(y[i]);
  const __nv_bfloat16 c = __ushort_as_bfloat16(x[i]), d = __ushort_as_bfloat16(y[i]);
  out[i] = __half_as_ushort(__hadd(a, b));
  out[n + i] = __half_as_ushort(__hmul(a, b));
  out[2 * n + i] = __half_as_ushort(__hfma(a, b, a));
  out[3 * n + i] = __half_as_ushort(__hmax(a, b));
  out[4 * n + i] = __half_as_ushort(__hmin_nan(a, b));
  out[5 * n + i] = __half_as_ushort(__hfma_relu(a, b, a));
  out[6 * n + i] = __half_as_ushort(__hadd_sat(a, b));
  out[7 * n + i] = __half_as_ushort(hrint(a));
  out[8 * n + i] = __bfloat16_as_ushort(__hadd(c, d));
  out[9 * n + i] = __bfloat16_as_ushort(__hmul(c, d));
  out[10 * n + i] = __bfloat16_as_ushort(__hfma(c, d, c));
  out[11 * n + i] = __bfloat16_as_ushort(__hmax(c, d));
  out[12 * n + i] = __hlt(a, b) | __hge(a, b) << 1 | __hneu(a, b) << 2 | __hlt(c, d) << 3 | __heq(c, d) << 4;
  out[13 * n + i] = static_cast<uint16_t>(__half2short_rd(a));
  out[14 * n + i] = __half_as_ushort(__ushort2half_rn(y[i]));
  out[15 * n + i] = __bfloat16_as_ushort(__float2bfloat16_rz(__half2float(a)));
}
