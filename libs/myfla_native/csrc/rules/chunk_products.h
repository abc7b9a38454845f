/* Products of matrices with C = MN_TOKENS columns or terms, in registers. For `*.kernel.c` only. */
#ifndef MN_CHUNK_PRODUCTS_H
#define MN_CHUNK_PRODUCTS_H

#include "common/products.h"
#include "rules/chunk.h"

/* [2C, C] sums over L: columns 0 .. 2C of T by columns `of` .. of + C. Sums of sums of SUMMED: fewer roundings, which
 * gradients of decays would show. */
MN_INLINE void scores(const float *T, int64_t step, int64_t of, int64_t L, float *to) {
    enum { ROWS = MN_W == 16 ? 16 : 4, PARTS = C / MN_W, SUMMED = 32 };
    for (int i = 0; i < 2 * C; i += ROWS)
        for (int64_t first = 0; first < L; first += SUMMED) {
            vf sum[ROWS][PARTS];
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < PARTS; j++) sum[r][j] = (vf){0};
            const float *a = T + first * step + i, *b = T + first * step + of;
            for (int64_t l = first; l < mn_min(L, first + SUMMED); l++, a += step, b += step)
                for (int r = 0; r < ROWS; r++)
                    for (int j = 0; j < PARTS; j++) sum[r][j] += vf_load(b + j * MN_W) * a[r];
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < PARTS; j++) {
                    float *at = to + (i + r) * C + j * MN_W;
                    if (first) sum[r][j] += vf_load(at);
                    vf_store(at, sum[r][j]);
                }
        }
}

enum { CHANNELS = MN_W == 16 ? 8 : 4 }; /* of keys, so rows of a state, taken at a time */

/* nv vectors of CHANNELS rows of a state [.., Vp]: to = factor from + a b, with a [CHANNELS, 2C] and b [C, Vp], or two
 * of those, one above the other: then the sum of S from is added to `inner`. */
MN_INLINE void update_part(float *to, const float *from, float factor, const float *a, mn_from b, mn_from b2,
                           int64_t Vp, const float *S, vf *inner, const int nv, const int two) {
    vf sum[CHANNELS][2], part = {0};
    for (int i = 0; i < CHANNELS; i++)
        for (int j = 0; j < nv; j++) sum[i][j] = (vf){0};
    for (int l = 0; l < C; l++)
        for (int i = 0; i < CHANNELS; i++)
            for (int j = 0; j < nv; j++) sum[i][j] += vf_load(b.at + l * b.step + j * MN_W) * a[i * 2 * C + l];
    for (int l = 0; two && l < C; l++)
        for (int i = 0; i < CHANNELS; i++)
            for (int j = 0; j < nv; j++) sum[i][j] += vf_load(b2.at + l * b2.step + j * MN_W) * a[i * 2 * C + C + l];
    for (int i = 0; i < CHANNELS; i++)
        for (int j = 0; j < nv; j++) {
            int64_t at = i * Vp + j * MN_W;
            vf old = vf_load(from + at);
            if (two) part += vf_load(S + at) * old;
            vf_store(to + at, sum[i][j] + old * factor);
        }
    if (two) *inner += part; /* sums of sums: fewer roundings */
}
MN_INLINE void update(float *to, const float *from, float factor, const float *a, mn_from b, mn_from b2, int64_t Vp,
                      const float *S, vf *inner, mn_errands *errands, const int two) {
    for (int64_t p = 0; p < Vp; p += 2 * MN_W, b.at += 2 * MN_W, b2.at += 2 * MN_W) {
        if (two && p + 2 * MN_W <= Vp) mn_ask(errands);
        if (p + 2 * MN_W <= Vp) update_part(to + p, from + p, factor, a, b, b2, Vp, S + p, inner, 2, two);
        else update_part(to + p, from + p, factor, a, b, b2, Vp, S + p, inner, 1, two);
    }
}

/* x from its last token to its first, and the gradients of beta: see the formulas of the backward. */
MN_INLINE void solve(chunk *x, const float *G, int64_t Kp, int64_t Vp) {
    enum { ROWS = MN_W == 16 ? 16 : 8 };
    for (int i = 0; i < C; i++) vf_store(x->parts + i * MN_W, (vf){0});
    for (int64_t j = 0; j < Vp; j += MN_W)
        for (int first = C - ROWS; first >= 0; first -= ROWS) {
            const float *k = x->qk + C + first, *P = x->PN + first, *N = x->PN + C * C + first;
            vf y[ROWS];
            for (int i = 0; i < ROWS; i++) y[i] = (vf){0};
            for (int64_t l = 0; l < Kp; l++, k += 2 * C) {
                vf g = vf_load(G + l * Vp + j);
                MN_UNROLL
                for (int i = 0; i < ROWS; i++) y[i] += g * k[i];
            }
            MN_UNROLL
            for (int i = 0; i < ROWS; i++) y[i] *= x->fall[first + i];
            for (int l = first; l < C; l++) {
                vf go = vf_load(x->go.at + l * x->go.step + j);
                MN_UNROLL
                for (int i = 0; i < ROWS; i++) y[i] += go * P[l * C + i];
            }
            for (int l = first + ROWS; l < C; l++) {
                vf later = vf_load(x->x.at + l * x->x.step + j);
                MN_UNROLL
                for (int i = 0; i < ROWS; i++) y[i] -= later * N[l * C + i];
            }
            MN_UNROLL
            for (int i = ROWS - 1; i >= 0; i--) {
                int t = first + i;
                vf e = vf_load(x->error.at + t * x->error.step + j), solution = y[i] * x->beta[t];
                vf_store(x->parts + t * MN_W, vf_load(x->parts + t * MN_W) + y[i] * e);
                vf_store(x->x.at + t * x->x.step + j, solution);
                MN_UNROLL
                for (int l = 0; l < i; l++) y[l] -= solution * N[t * C + l];
            }
        }
    for (int i = 0; i < C; i += MN_W) vf_store(x->dbeta + i, mn_sums(x->parts + i * MN_W, MN_W));
}

/* Gradients of q and k in CHANNELS channels of MN_W tokens from j on, without and with what passes through P and N.
 * S and G are the channels' rows of the state before and of the gradient after; `rises` is of length 2C. */
MN_INLINE void gradients_of_channels(chunk *x, const float *S, const float *G, int64_t Vp, const float *qk,
                                     float *dqk, const float *rises, int j, vf *risen, vf *fallen) {
    vf dq[CHANNELS], dk[CHANNELS], of_u[CHANNELS];
    MN_UNROLL
    for (int i = 0; i < CHANNELS; i++) dq[i] = dk[i] = of_u[i] = (vf){0};
    const float *out = x->out + j, *S4 = S + 4 * Vp, *G4 = G + 4 * Vp;
    if (MN_W < 16) mn_ask(&x->errands); /* within the loop there are not enough registers for it */
    for (int64_t v = 0; v < Vp; v++, out += 3 * C) {
        if (MN_W == 16 && v % MN_ASKED == 0) mn_ask(&x->errands);
        vf go = vf_load(out), solution = vf_load(out + C), u = vf_load(out + 2 * C);
        MN_UNROLL
        for (int i = 0; i < CHANNELS; i++) {
            float s = i < 4 ? S[i * Vp + v] : S4[(i - 4) * Vp + v], g = i < 4 ? G[i * Vp + v] : G4[(i - 4) * Vp + v];
            dq[i] += go * s;
            dk[i] += solution * s;
            of_u[i] += u * g;
        }
    }
    vf of_rise = {0}, of_fall = {0};
    vf rise_q = vf_load(rises + j), rise_k = vf_load(rises + C + j), fall = vf_load(x->fall + j);
    MN_UNROLL
    for (int i = 0; i < CHANNELS; i++) {
        vf q = vf_load(qk + i * 2 * C + j), k = vf_load(qk + i * 2 * C + C + j);
        dq[i] *= rise_q;
        dk[i] *= rise_k;
        of_u[i] *= fall;
        of_rise += dq[i] * q + dk[i] * k;
        of_fall += of_u[i] * k;
        dk[i] += of_u[i];
    }
    *risen += of_rise;
    *fallen += of_fall;
    const float *mix = x->mix + j;
    for (int l = 0; l < C; l++, mix += 3 * C) {
        vf of_P = vf_load(mix), turned = vf_load(mix + C), of_N = vf_load(mix + 2 * C);
        MN_UNROLL
        for (int i = 0; i < CHANNELS; i++) {
            float q = qk[i * 2 * C + l], k = qk[i * 2 * C + C + l];
            dq[i] += of_P * k;
            dk[i] += turned * q;
            dk[i] += of_N * k;
        }
    }
    MN_UNROLL
    for (int i = 0; i < CHANNELS; i++) {
        vf_store(dqk + i * 2 * C + j, dq[i]);
        vf_store(dqk + i * 2 * C + C + j, dk[i]);
    }
}

#endif
