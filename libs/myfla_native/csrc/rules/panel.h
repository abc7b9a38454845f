/* The parts of a token's work on nv vectors of the state's columns; every form computes with these, so that all give
 * the same bits. For `*.kernel.c` only. nv, rule and reads are constants where they are called. */
#ifndef MN_PANEL_H
#define MN_PANEL_H

#include "rules/tokens.h"

/* r += S^T x, y += S^T z over n key channels, whose rows lie `step` apart. */
MN_INLINE void read_state(const float *S, int64_t step, const float *x, const float *z, int64_t n, vf *r, vf *y,
                          const int nv) {
    for (int64_t i = 0; i < n; i++, S += step)
        for (int j = 0; j < nv; j++) {
            vf s = vf_load(S + j * MN_W);
            r[j] += s * x[i];
            y[j] += s * z[i];
        }
}

/* to <- d S + w u (+ k v), and what the next token reads of it. */
MN_INLINE void pass(float *to, const float *S, int64_t to_step, int64_t step, const float *d, const float decay,
                    const float *w, const float *k, const vf *u, const vf *v, const float *x, const float *z, int64_t n,
                    vf *r, vf *y, const int nv, const int rule, const int reads) {
    for (int64_t i = 0; i < n; i++, S += step, to += to_step)
        for (int j = 0; j < nv; j++) {
            vf write = u[j] * w[i];
            vf s = vf_load(S + j * MN_W) * (rule == MN_GATED ? decay : d[i]) + write;
            if (rule == MN_DPLR) s += v[j] * k[i];
            vf_store(to + j * MN_W, s);
            if (reads) {
                r[j] += s * x[i];
                y[j] += s * z[i];
            }
        }
}

/* What token t makes of what was read, r and y, which begin anew: u and v for the pass, and o and error [C, Vp]. */
MN_INLINE void answer(const mn_tokens *b, int64_t t, int64_t p, int64_t Vp, vf *r, vf *y, vf *u, vf *v, float *o,
                      float *error, const int nv, const int rule) {
    for (int j = 0; j < nv; j++) {
        int64_t at = t * Vp + p + j * MN_W;
        v[j] = vf_load(b->v + at);
        vf e = r[j], out = y[j];
        if (rule == MN_GATED) {
            e *= b->decay[t];
            out *= b->decay[t];
        }
        if (rule != MN_DPLR) e = v[j] - e;
        vf_store(error + at, e);
        u[j] = e;
        if (rule != MN_DPLR) u[j] *= b->beta[t];
        out += u[j] * b->q_write[t];
        if (rule == MN_DPLR) out += v[j] * b->q_k[t];
        vf_store(o + at, out);
        r[j] = y[j] = (vf){0};
    }
}

#endif
