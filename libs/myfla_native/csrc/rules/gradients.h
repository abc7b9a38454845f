/* The tensors of the backward of a few tokens of one head, token by token. For `*.kernel.c` only. */
#ifndef MN_GRADIENTS_H
#define MN_GRADIENTS_H

#include "rules/tokens.h"

typedef struct {
    mn_tokens in;
    float *go;                     /* [2C, Vp], with the scale; the second half is for results of a chunk */
    float *error, *u, *dv;         /* [C, Vp] */
    float *dq, *dk, *da, *db, *dd; /* [C, Kp]; dd: of the log decay */
    float dbeta[MN_TOKENS], u_out[MN_TOKENS], v_out[MN_TOKENS];
    float *states; /* [C + 1, Kp, 4 W], for the form token by token */
    float *parts;  /* [MN_W, SUMS, MN_W], the same */
} block;

MN_INLINE float *mn_block_in(block *b, float *room, int64_t K, int64_t V, int rule) {
    int64_t keys = MN_TOKENS * mn_padded(K), values = MN_TOKENS * mn_padded(V);
    float *next = mn_tokens_in(&b->in, room, K, V, rule);
    float **of_values[] = {&b->error, &b->dv, &b->u}, **of_keys[] = {&b->dq, &b->dk, &b->da, &b->db, &b->dd};
    for (int i = 0; i < 3; i++, next += values) *of_values[i] = next;
    for (int i = 0; i < 5; i++, next += keys) *of_keys[i] = next;
    if (rule == MN_DPLR) b->u = b->error;
    b->go = next, next += 2 * values;
    b->parts = next, next += MN_W * MN_W * MN_MOST_SUMS;
    b->states = next;
    return next + (MN_TOKENS + 1) * mn_padded(K) * 4 * MN_W;
}

/* Read n tokens and their gates and gradients, and compute u. Tokens after n are filled so that they change nothing. */
MN_INLINE void fill(block *b, const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first, int64_t n,
                    int64_t head, const int rule) {
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V);
    const int v = rule == MN_DPLR ? MN_NEED_V : 0;
    int64_t ahead = g ? 0 : MN_TOKENS;
    if (g) mn_read_tokens(&b->in, c, row, first, n, head, 0, rule, MN_NEED_Q | v);
    else mn_read_tokens(&b->in, c, row, first, n, head, ahead, rule, v);
    for (int64_t t = 0; t < n; t++) {
        mn_get_on(b->error + t * Vp, &c->error, row, first + t, head, c->V, ahead);
        if (rule != MN_DPLR)
            for (int64_t j = t * Vp; j < t * Vp + Vp; j += MN_W)
                vf_store(b->u + j, vf_load(b->error + j) * b->in.beta[t]);
        if (g && g->go.at) mn_get(b->go + t * Vp, &g->go, row, first + t, head, c->V);
        else if (g) mn_zero(b->go + t * Vp, Vp);
        if (g && c->scale != 1) mn_times(b->go + t * Vp, (float)c->scale, Vp);
    }
    mn_no_tokens(&b->in, n, Kp, Vp, rule);
    mn_zero(b->error + n * Vp, (MN_TOKENS - n) * Vp);
    if (rule != MN_DPLR) mn_zero(b->u + n * Vp, (MN_TOKENS - n) * Vp);
    if (g) mn_zero(b->go + n * Vp, (MN_TOKENS - n) * Vp);
}

/* dx - unit along, times factor, into rows of a tensor: gradients before a norm, where factor made `unit` of length
 * one. The rows of dx themselves where there is no norm. */
MN_INLINE void put_keys(const mn_tensor *to, const mn_rule *c, int64_t row, int64_t first, int64_t n, int64_t head,
                        float *dx, const float *unit, const float *factors) {
    int64_t Kp = mn_whole(c->K);
    float parts[MN_TOKENS * MN_W], along[MN_TOKENS];
    for (int64_t t = 0; c->l2norm && t < n; t++) mn_start_dot(parts + t * MN_W, dx + t * Kp, unit + t * Kp, Kp);
    if (c->l2norm) mn_finish_dots(along, parts, n);
    for (int64_t t = 0; t < n; t++) {
        float *from = dx + t * Kp;
        for (int64_t j = 0; c->l2norm && j < Kp; j += MN_W)
            vf_store(from + j, (vf_load(from + j) - vf_load(unit + t * Kp + j) * along[t]) * factors[t]);
        mn_put(to, row, first + t, head, from, c->K);
    }
}

/* Gradients of the inputs from those of the results of `fill`. The heads of a group add dq and dk to sums, [T, 2, Kp];
 * the last head writes them. */
MN_INLINE void hand_back(block *b, const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first, int64_t n,
                         int64_t head, float *sums, double *gate, const int rule) {
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V), group = c->HV / c->H, query = head / group, part = head % group;
    for (int64_t j = 0; part && j < n * Kp; j += MN_W) {
        vf_store(b->dq + j, vf_load(b->dq + j) + vf_load(sums + j));
        vf_store(b->dk + j, vf_load(b->dk + j) + vf_load(sums + MN_TOKENS * Kp + j));
    }
    if (part + 1 == group) {
        put_keys(&g->dq, c, row, first, n, query, b->dq, b->in.q, b->in.q_unit);
        put_keys(&g->dk, c, row, first, n, query, b->dk, b->in.k, b->in.k_unit);
    } else {
        memcpy(sums, b->dq, (size_t)(n * Kp) * sizeof *sums);
        memcpy(sums + MN_TOKENS * Kp, b->dk, (size_t)(n * Kp) * sizeof *sums);
    }
    if (rule == MN_KDA && c->gate) mn_close_channels(c, head, n, b->in.b, b->dd, gate);
    for (int64_t t = 0; t < n; t++) {
        mn_put(&g->dv, row, first + t, head, b->dv + t * Vp, c->V);
        if (rule == MN_DPLR) {
            mn_put(&g->dbeta, row, first + t, query, b->da + t * Kp, c->K);
            mn_put(&g->db, row, first + t, query, b->db + t * Kp, c->K);
        }
        if (g->dg.at) mn_put(&g->dg, row, first + t, head, b->dd + t * Kp, c->K);
    }
    if (rule != MN_DPLR) mn_put_strengths(c, g, row, first, n, head, b->dbeta);
}

#endif
