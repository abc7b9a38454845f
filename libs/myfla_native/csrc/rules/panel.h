/* The operations of a token on nv vectors of the state's columns. Every form uses these, so that all have the same
 * bits. For `*.kernel.c` only. nv, rule and reads are constants where they are called. */
#ifndef MN_PANEL_H
#define MN_PANEL_H

#include "rules/tokens.h"

#if defined(__FMA__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* a b + c, rounded once if the processor supports that. Without this a compiler would do so in some places only. */
MN_INLINE vf vf_fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* r += S^T x, y += S^T z over n key channels, whose rows lie `step` apart. */
MN_INLINE void read_state(const float *S, int64_t step, const float *x, const float *z, int64_t n, vf *r, vf *y,
                          const int nv) {
    for (int64_t i = 0; i < n; i++, S += step)
        for (int j = 0; j < nv; j++) {
            vf s = vf_load(S + j * MN_W);
            r[j] = vf_fma(s, vf_set(x[i]), r[j]);
            y[j] = vf_fma(s, vf_set(z[i]), y[j]);
        }
}

/* to <- d S + w u (+ k v), and the sums that the next token reads. */
MN_INLINE void pass(float *to, const float *S, int64_t to_step, int64_t step, const float *d, const float decay,
                    const float *w, const float *k, const vf *u, const vf *v, const float *x, const float *z, int64_t n,
                    vf *r, vf *y, const int nv, const int rule, const int reads) {
    for (int64_t i = 0; i < n; i++, S += step, to += to_step)
        for (int j = 0; j < nv; j++) {
            vf s = vf_fma(vf_load(S + j * MN_W), vf_set(rule == MN_GATED ? decay : d[i]), u[j] * w[i]);
            if (rule == MN_DPLR) s = vf_fma(v[j], vf_set(k[i]), s);
            vf_store(to + j * MN_W, s);
            if (reads) {
                r[j] = vf_fma(s, vf_set(x[i]), r[j]);
                y[j] = vf_fma(s, vf_set(z[i]), y[j]);
            }
        }
}

/* From the sums r and y that token t has read: u and v for the pass, o and error [C, Vp]. r and y are set to zero. */
MN_INLINE void answer(const mn_tokens *b, int64_t t, int64_t p, int64_t Vp, vf *r, vf *y, vf *u, vf *v, float *o,
                      float *error, const int nv, const int rule) {
    for (int j = 0; j < nv; j++) {
        int64_t at = t * Vp + p + j * MN_W;
        v[j] = vf_load(b->v.at + t * b->v.step + p + j * MN_W);
        vf e = r[j], out = y[j];
        if (rule == MN_GATED) e = vf_fma(-e, vf_set(b->decay[t]), v[j]);
        if (rule == MN_GATED) out *= b->decay[t];
        if (rule == MN_KDA) e = v[j] - e;
        vf_store(error + at, e);
        u[j] = e;
        if (rule != MN_DPLR) u[j] *= b->beta[t];
        out = vf_fma(u[j], vf_set(b->q_write[t]), out);
        if (rule == MN_DPLR) out = vf_fma(v[j], vf_set(b->q_k[t]), out);
        vf_store(o + at, out);
        r[j] = y[j] = (vf){0};
    }
}

#endif
