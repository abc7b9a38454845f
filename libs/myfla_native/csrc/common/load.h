/* Loads numbers of any dtype as vectors of floats; `dtype` is a constant where speed matters. For `*.kernel.c` only. */
#ifndef MN_LOAD_H
#define MN_LOAD_H

#include "common/vec.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

typedef uint16_t vh __attribute__((vector_size(2 * MN_W), aligned(2), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * MN_W), aligned(4), may_alias));

MN_INLINE float mn_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    float x;
    if (rest >= 0x7c00) {
        bits = sign | 0x7f800000 | rest << 13;
    } else if (rest >= 0x0400) {
        bits = sign | ((rest << 13) + 0x38000000);
    } else { /* below the normal numbers: rest * 2^-24 */
        x = (float)rest * 5.9604644775390625e-8f;
        memcpy(&bits, &x, 4);
        bits |= sign;
    }
    memcpy(&x, &bits, 4);
    return x;
}

MN_INLINE uint16_t mn_to_f16(float x) {
    uint32_t bits, rest;
    uint16_t sign;
    memcpy(&bits, &x, 4);
    sign = (uint16_t)(bits >> 16 & 0x8000);
    rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and more: infinity */
    if (rest >= 0x38800000) return (uint16_t)(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
    memcpy(&x, &rest, 4);
    x += 0.5f; /* its last place is then 2^-24, the step of the small halves: the addition rounds */
    memcpy(&rest, &x, 4);
    return (uint16_t)(sign | (rest - 0x3f000000));
}

MN_INLINE vf vf_from_f16(vh h) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps((__m128i)h);
#else
    vf x;
    for (int i = 0; i < MN_W; i++) x[i] = mn_from_f16(h[i]);
    return x;
#endif
}

MN_INLINE vh vh_to_f16(vf x) {
#if defined(__AVX512F__)
    return (vh)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (vh)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#else
    vh h;
    for (int i = 0; i < MN_W; i++) h[i] = mn_to_f16(x[i]);
    return h;
#endif
}

MN_INLINE vf vf_from_bf16(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }

MN_INLINE vh vh_to_bf16(vf x) { /* to nearest, ties to even; NaN stays NaN */
    vu bits = (vu)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    vu quiet = (bits >> 16) | 0x40, is_nan = (vu)(x != x);
    return __builtin_convertvector((quiet & is_nan) | (rounded & ~is_nan), vh);
}

/* MN_W numbers from place i on. */
MN_INLINE vf vf_read(const void *p, int64_t i, int dtype) {
    if (dtype == MN_F32) return vf_load((const float *)p + i);
    vh h = *(const vh *)((const uint16_t *)p + i);
    return dtype == MN_BF16 ? vf_from_bf16(h) : vf_from_f16(h);
}
MN_INLINE void vf_write(void *p, int64_t i, vf x, int dtype) {
    if (dtype == MN_F32) vf_store((float *)p + i, x);
    else *(vh *)((uint16_t *)p + i) = dtype == MN_BF16 ? vh_to_bf16(x) : vh_to_f16(x);
}

/* The same for the first n of them, zeros after. */
MN_INLINE vf vf_read_n(const void *p, int64_t i, int64_t n, int dtype) {
    if (dtype == MN_F32) return vf_load_n((const float *)p + i, n);
    vh h = {0};
    memcpy(&h, (const uint16_t *)p + i, (size_t)n * 2);
    return dtype == MN_BF16 ? vf_from_bf16(h) : vf_from_f16(h);
}
MN_INLINE void vf_write_n(void *p, int64_t i, vf x, int64_t n, int dtype) {
    if (dtype == MN_F32) {
        vf_store_n((float *)p + i, x, n);
    } else {
        vh h = dtype == MN_BF16 ? vh_to_bf16(x) : vh_to_f16(x);
        memcpy((uint16_t *)p + i, &h, (size_t)n * 2);
    }
}

/* One number. */
MN_INLINE float mn_read_one(const void *p, int64_t i, int dtype) {
    if (dtype == MN_F32) return ((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    if (dtype == MN_F16) return mn_from_f16(h);
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
MN_INLINE void mn_write_one(void *p, int64_t i, float x, int dtype) {
    if (dtype == MN_F32) ((float *)p)[i] = x;
    else vf_write_n(p, i, vf_set(x), 1, dtype);
}

MN_INLINE void mn_read(float *to, const void *from, int64_t i, int64_t n, int dtype) {
    int64_t j = 0;
    for (; j + MN_W <= n; j += MN_W) vf_store(to + j, vf_read(from, i + j, dtype));
    if (j < n) vf_store_n(to + j, vf_read_n(from, i + j, n - j, dtype), n - j);
}
MN_INLINE void mn_write(void *to, int64_t i, const float *from, int64_t n, int dtype) {
    int64_t j = 0;
    for (; j + MN_W <= n; j += MN_W) vf_write(to, i + j, vf_load(from + j), dtype);
    if (j < n) vf_write_n(to, i + j, vf_load_n(from + j, n - j), n - j, dtype);
}

#endif
