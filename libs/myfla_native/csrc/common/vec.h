/* Vectors of MN_W floats, in the extensions that GCC and Clang share; for `*.kernel.c` only. */
#ifndef MN_VEC_H
#define MN_VEC_H

#include <string.h>

#include "common/mn.h"
#include "common/pick.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define MN_W 16
#elif defined(__AVX2__)
#define MN_W 8
#else
#define MN_W 4 /* SSE2, NEON */
#endif

typedef float vf __attribute__((vector_size(4 * MN_W), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * MN_W), aligned(4), may_alias));

MN_INLINE vf vf_set(float x) { return x - (vf){0}; } /* + 0 would be a real addition: -0 + 0 is 0 */
MN_INLINE vf vf_load(const float *p) { return *(const vf *)p; }
MN_INLINE void vf_store(float *p, vf x) { *(vf *)p = x; }

/* The first n elements of a vector, zeros after them. No memory beyond them is accessed. */
MN_INLINE vf vf_load_n(const float *p, int64_t n) {
    vf x = {0};
    memcpy(&x, p, (size_t)n * 4);
    return x;
}
MN_INLINE void vf_store_n(float *p, vf x, int64_t n) { memcpy(p, &x, (size_t)n * 4); }

MN_INLINE vf vf_bits(vi x) { return (vf)x; }
MN_INLINE vi vi_bits(vf x) { return (vi)x; }

/* a where a comparison holds, else b. */
MN_INLINE vf vf_select(vi mask, vf a, vf b) { return vf_bits((vi_bits(a) & mask) | (vi_bits(b) & ~mask)); }

/* x, but not below `least` and not above `most`; NaN stays NaN. */
MN_INLINE vf vf_within(float least, float most, vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)vf_set(most), _mm512_max_ps((__m512)vf_set(least), (__m512)x));
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)vf_set(most), _mm256_max_ps((__m256)vf_set(least), (__m256)x));
#else
    x = vf_select(x < vf_set(least), vf_set(least), x);
    return vf_select(x > vf_set(most), vf_set(most), x);
#endif
}

/* e^x to within two units of the last place: 2^n e^f with |f| <= log(2) / 2. Overflow is inf, NaN stays NaN. */
MN_INLINE vf vf_exp(vf x) {
    const vf magic = vf_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer, in the low bits */
    x = vf_within(-104.0f, 89.0f, x);
    vf rounded = x * 1.44269504088896341f + magic;
    vf n = rounded - magic;
    vf f = x - n * 0.693359375f;
    f = f + n * 2.12194440e-4f;
    vf p = vf_set(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vi whole = vi_bits(rounded) - vi_bits(magic);
    vi half = whole >> 1; /* in two steps, so that neither factor leaves the range of normal numbers */
    return p * vf_bits((half + 127) << 23) * vf_bits((whole - half + 127) << 23);
#endif
}

MN_INLINE vf vf_sigmoid(vf x) { return 1.0f / (1.0f + vf_exp(-x)); }

/* log(1 + e^x), with the relative accuracy of vf_exp: max(x, 0) + log(1 + y), y = e^-|x|, where log(1 + y) is the series
 * of 2 artanh(s), s = y / (2 + y) <= 1 / 3. */
MN_INLINE vf vf_softplus(vf x) {
    vi positive = x > vf_set(0);
    vf y = vf_exp(vf_select(positive, -x, x)), s = y / (2.0f + y), z = s * s;
    vf p = vf_set(1.0f / 15);
    p = p * z + 1.0f / 13;
    p = p * z + 1.0f / 11;
    p = p * z + 1.0f / 9;
    p = p * z + 1.0f / 7;
    p = p * z + 1.0f / 5;
    p = p * z + 1.0f / 3;
    return vf_select(positive, x, vf_set(0)) + (2.0f * s + 2.0f * s * z * p);
}

#endif
