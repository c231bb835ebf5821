// Fused element-wise passes of the transformer for CPU training. bf16 in memory, f32 inside.
// Compiled by kernels.py with gcc -O3 -march=native -ffast-math (gcc vectorises the loops).
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float up(bf16 v) { uint32_t u = (uint32_t)v << 16; float f; memcpy(&f, &u, 4); return f; }
static inline bf16 down(float f) {
    uint32_t u; memcpy(&u, &f, 4);
    return (bf16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// y = x * rstd * w over rows of d; rstd [n] is kept for the backward pass
void rms_forward(const bf16 *x, const float *w, bf16 *y, float *rstd, long n, long d) {
    for (long i = 0; i < n; i++, x += d, y += d) {
        float s = 0;
        for (long j = 0; j < d; j++) { float v = up(x[j]); s += v * v; }
        float r = rstd[i] = 1 / sqrtf(s / d + 1e-5f);
        for (long j = 0; j < d; j++) y[j] = down(up(x[j]) * r * w[j]);
    }
}

void rms_backward(const bf16 *dy, const bf16 *x, const float *w, const float *rstd, bf16 *dx, float *dw, long n, long d) {
    for (long i = 0; i < n; i++, x += d, dy += d, dx += d) {
        float r = rstd[i], s = 0;
        for (long j = 0; j < d; j++) {
            float g = up(dy[j]), v = up(x[j]) * r;
            dw[j] += g * v;
            s += g * w[j] * v;
        }
        s /= d;
        for (long j = 0; j < d; j++) dx[j] = down((up(dy[j]) * w[j] - s * up(x[j]) * r) * r);
    }
}

// RMS norm of one head's 64 numbers, 2D rotary embedding and scale; cs cosines, sn signed sines; pairs (j, j^16)
static inline float rope_row(const bf16 *x, const float *w, const float *c, const float *s, float scale, bf16 *y) {
    float t[64], q = 0;
    for (int j = 0; j < 64; j++) { t[j] = up(x[j]); q += t[j] * t[j]; }
    float r = 1 / sqrtf(q / 64 + 1e-5f);
    for (int j = 0; j < 64; j++) t[j] *= r * w[j] * scale;
    for (int g = 0; g < 64; g += 32) for (int j = 0; j < 16; j++) {
        y[g + j] = down(t[g + j] * c[g + j] + t[g + j + 16] * s[g + j]);
        y[g + j + 16] = down(t[g + j + 16] * c[g + j + 16] + t[g + j] * s[g + j + 16]);
    }
    return r;
}

static inline void rope_row_back(const bf16 *dy, const bf16 *x, const float *w, const float *c, const float *s, float scale,
                                 float r, bf16 *dx, float *dw) {
    float g[64], v[64], dot = 0;
    for (int a = 0; a < 64; a += 32) for (int j = 0; j < 16; j++) {
        float d0 = up(dy[a + j]), d1 = up(dy[a + j + 16]);
        g[a + j] = (d0 * c[a + j] + d1 * s[a + j + 16]) * scale;
        g[a + j + 16] = (d1 * c[a + j + 16] + d0 * s[a + j]) * scale;
    }
    for (int j = 0; j < 64; j++) { v[j] = up(x[j]) * r; dw[j] += g[j] * v[j]; g[j] *= w[j]; dot += g[j] * v[j]; }
    dot /= 64;
    for (int j = 0; j < 64; j++) dx[j] = down((g[j] - dot * v[j]) * r);
}

// x [b,l,3,h,64] -> q (scaled by 1/8), k, v [b,h,l,64]: head norm and rotary on q and k; rstd [b,l,2,h]; cs, sn [l,64]
void qkv_forward(const bf16 *x, const float *wq, const float *wk, const float *cs, const float *sn, bf16 *q, bf16 *k,
                 bf16 *v, float *rstd, long b, long l, long h) {
    for (long i = 0; i < b; i++) for (long p = 0; p < l; p++) for (long a = 0; a < h; a++) {
        const bf16 *xi = x + (i * l + p) * 3 * h * 64 + a * 64;
        long to = ((i * h + a) * l + p) * 64;
        float *r = rstd + (i * l + p) * 2 * h + a;
        r[0] = rope_row(xi, wq, cs + p * 64, sn + p * 64, .125f, q + to);
        r[h] = rope_row(xi + h * 64, wk, cs + p * 64, sn + p * 64, 1, k + to);
        memcpy(v + to, xi + 2 * h * 64, 128);
    }
}

void qkv_backward(const bf16 *dq, const bf16 *dk, const bf16 *dv, const bf16 *x, const float *wq, const float *wk,
                  const float *cs, const float *sn, const float *rstd, bf16 *dx, float *dwq, float *dwk, long b, long l, long h) {
    for (long i = 0; i < b; i++) for (long p = 0; p < l; p++) for (long a = 0; a < h; a++) {
        long at = (i * l + p) * 3 * h * 64 + a * 64, from = ((i * h + a) * l + p) * 64;
        const float *r = rstd + (i * l + p) * 2 * h + a;
        rope_row_back(dq + from, x + at, wq, cs + p * 64, sn + p * 64, .125f, r[0], dx + at, dwq);
        rope_row_back(dk + from, x + at + h * 64, wk, cs + p * 64, sn + p * 64, 1, r[h], dx + at + h * 64, dwk);
        memcpy(dx + at + 2 * h * 64, dv + from, 128);
    }
}

// In-place causal softmax of scores s [b,h,rows,cols]; row i is position first + i and sees key j if
// j <= first + i and (j < length[b] or j >= prefix)
void softmax_forward(bf16 *s, const long *length, long prefix, long first, long b, long h, long rows, long cols) {
    float t[1024];
    for (long i = 0; i < b; i++) for (long k = 0; k < h; k++) for (long row = 0; row < rows; row++) {
        bf16 *x = s + ((i * h + k) * rows + row) * cols;
        long end = first + row + 1;
        float m = -1e30f, z = 0;
        for (long j = 0; j < end; j++) t[j] = up(x[j]);
        for (long j = length[i]; j < prefix && j < end; j++) t[j] = -1e30f;
        for (long j = 0; j < end; j++) m = t[j] > m ? t[j] : m;
        for (long j = 0; j < end; j++) { t[j] = expf(t[j] - m); }
        for (long j = length[i]; j < prefix && j < end; j++) t[j] = 0;
        for (long j = 0; j < end; j++) z += t[j];
        z = 1 / z;
        for (long j = 0; j < end; j++) x[j] = down(t[j] * z);
        for (long j = end; j < cols; j++) x[j] = 0;
    }
}

// In place: d = p * (d - sum(p * d)) over rows of cols
void softmax_backward(const bf16 *p, bf16 *d, long n, long cols) {
    for (long i = 0; i < n; i++, p += cols, d += cols) {
        float s = 0;
        for (long j = 0; j < cols; j++) s += up(p[j]) * up(d[j]);
        for (long j = 0; j < cols; j++) d[j] = down(up(p[j]) * (up(d[j]) - s));
    }
}

// x [n,2,m] -> y [n,m] = silu(x0) * x1
void swiglu_forward(const bf16 *x, bf16 *y, long n, long m) {
    for (long i = 0; i < n; i++, x += 2 * m, y += m)
        for (long j = 0; j < m; j++) { float v = up(x[j]); y[j] = down(v / (1 + expf(-v)) * up(x[m + j])); }
}

void swiglu_backward(const bf16 *dy, const bf16 *x, bf16 *dx, long n, long m) {
    for (long i = 0; i < n; i++, x += 2 * m, dx += 2 * m, dy += m)
        for (long j = 0; j < m; j++) {
            float g = up(dy[j]), v = up(x[j]), s = 1 / (1 + expf(-v));
            dx[j] = down(g * up(x[m + j]) * s * (1 + v * (1 - s)));
            dx[m + j] = down(g * v * s);
        }
}

// One query per sequence against its cache: q [b,h,64] (scaled), k, v [b,h,room,64], out [b,h,64]; keys as in
// softmax_forward with `count` positions filled
void attend_one(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, const long *length, long prefix, long count,
                long room, long b, long h) {
    float t[1024], qf[64], o[64];
    for (long i = 0; i < b * h; i++) {
        const bf16 *ki = k + i * room * 64, *vi = v + i * room * 64;
        float m = -1e30f, z = 0;
        for (int d = 0; d < 64; d++) { qf[d] = up(q[i * 64 + d]); o[d] = 0; }
        for (long j = 0; j < count; j++) {
            float s = 0;
            for (int d = 0; d < 64; d++) s += qf[d] * up(ki[j * 64 + d]);
            t[j] = s;
        }
        for (long j = length[i / h]; j < prefix && j < count; j++) t[j] = -1e30f;
        for (long j = 0; j < count; j++) m = t[j] > m ? t[j] : m;
        for (long j = 0; j < count; j++) { t[j] = expf(t[j] - m); z += t[j]; }
        for (long j = 0; j < count; j++) for (int d = 0; d < 64; d++) o[d] += t[j] * up(vi[j * 64 + d]);
        for (int d = 0; d < 64; d++) out[i * 64 + d] = down(o[d] / z);
    }
}
