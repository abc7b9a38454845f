/* C = MN_TOKENS tokens of one value head: the inputs and results of the backward in chunks. For `*.kernel.c` only.
 *
 * Where tokens meet tokens, or channels of states, they lie in columns: a vector is one channel of MN_W tokens. */
#ifndef MN_CHUNK_H
#define MN_CHUNK_H

#include "common/transpose.h"
#include "rules/errands.h"
#include "rules/gates.h"
#include "rules/walk_back.h"

enum { C = MN_TOKENS };

typedef struct {
    float *qk, *dqk;                     /* [Kp, 2C] q and k of length one, and the gradients of those */
    float *out;                          /* [Vp, 3C] go, x, u */
    mn_from go, error;                   /* [C, Vp] */
    mn_into x;                         /* [C, Vp] in the tensor dv, if possible */
    float *own_go, *own_error, *own_x;   /* [C, Vp] */
    float *row;                          /* [C, Kp] q, k and their gradients, where tensors have other rows */
    float decay[C], beta[C], q_unit[C], k_unit[C], dbeta[C], ddecay[C];
    float rise[C], fall[C], D[C * C];
    float PN[2 * C * C], dPN[2 * C * C]; /* P over N; gradients of those before the decays */
    float mix[3 * C * C];                /* [C, 3C] dP^T, dP, dN + dN^T */
    float parts[C * MN_W];
    mn_errands errands; /* done during the products */
} chunk;

MN_INLINE float *mn_chunk_in(chunk *x, float *next, int64_t K, int64_t V) {
    int64_t Kp = mn_padded(K), Vp = mn_padded(V);
    x->qk = next, next += 2 * C * Kp;
    x->dqk = next, next += 2 * C * Kp;
    x->row = next, next += C * Kp;
    x->out = next, next += 3 * C * Vp;
    x->own_go = next, next += C * Vp;
    x->own_error = next, next += C * Vp;
    x->own_x = next, next += C * Vp;
    return next;
}

/* Read from place C - i on, these are zeros with a one at i, and ones before i followed by zeros. */
static const float ONE_AT[2 * C] = {[C] = 1};
static const float ONES_BEFORE[2 * C] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* q or k of tokens, as columns of T [Kp, 2C]; `unit` has the factors that make them of length one. */
MN_INLINE void take_columns(chunk *x, float *T, float *unit, const mn_tensor *from, mn_part at, int64_t head,
                            const mn_rule *c) {
    int64_t Kp = mn_whole(c->K);
    mn_from rows = mn_get_block(from, at.row, at.first, at.count, head, c->K, x->row);
    mn_transpose(rows.at, rows.step, C, Kp, T, 2 * C);
    for (int j = 0; j < C; j += MN_W) {
        vf sum[4] = {{0}};
        for (int64_t i = 0; c->l2norm && i < Kp; i += 4)
            for (int m = 0; m < 4; m++) {
                vf a = vf_load(T + (i + m) * 2 * C + j);
                sum[m] += a * a;
            }
        vf_store(unit + j, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
    for (int j = 0; j < C; j++) unit[j] = c->l2norm ? 1 / sqrtf(unit[j] + 1e-6f) : 1;
}

/* Columns of T [whole, step], each multiplied by its factor. */
MN_INLINE void times_columns(float *T, int64_t whole, int64_t step, const float *factors) {
    for (int64_t i = 0; i < whole; i++, T += step)
        for (int j = 0; j < C; j += MN_W) vf_store(T + j, vf_load(T + j) * vf_load(factors + j));
}

/* Gates of `count` tokens, for the rest ones that change nothing; and the products of decays. */
MN_INLINE void decays(chunk *x, const mn_rule *c, int64_t row, int64_t first, int64_t count, int64_t head) {
    mn_log_decays(x->decay, c, row, first, count, head);
    mn_strengths(x->beta, c, row, first, count, head);
    for (int64_t t = count; t < C; t++) x->decay[t] = x->beta[t] = 0;
    for (int t = 0; t < C; t += MN_W) vf_store(x->decay + t, vf_exp(vf_load(x->decay + t)));
    vf above[C / MN_W] = {{0}};
    float rise = 1;
    for (int i = 0; i < C; i++) {
        x->rise[i] = rise *= x->decay[i];
        for (int j = 0; j < C / MN_W; j++) {
            above[j] = above[j] * x->decay[i] + vf_load(ONE_AT + C - i + j * MN_W);
            vf_store(x->D + i * C + j * MN_W, above[j]);
        }
    }
    memcpy(x->fall, x->D + (C - 1) * C, sizeof x->fall);
}

#endif
