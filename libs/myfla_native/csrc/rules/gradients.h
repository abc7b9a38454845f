/* The backward of a few tokens of one head, token by token: what it reads and hands back. `*.kernel.c` only. */
#ifndef MN_GRADIENTS_H
#define MN_GRADIENTS_H

#include "rules/tokens.h"

typedef struct {
    mn_tokens in;
    float *go, *error, *u;         /* [C, Vp] */
    float *dv;                     /* [C, Vp] */
    float *dq, *dk, *da, *db, *dd; /* [C, Kp]; dd: of the log decay */
    float dbeta[MN_TOKENS], u_out[MN_TOKENS], v_out[MN_TOKENS];
    float *states; /* [C + 1, Kp, 4 W] */
    float *parts;  /* [MN_W, SUMS, MN_W] */
} block;

/* Read n tokens and what belongs to them; u is made, the gradients begin at zero. */
MN_INLINE void fill(block *b, const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first, int64_t n,
                    int64_t head, const int rule) {
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V);
    int64_t ahead = g ? -MN_TOKENS : MN_TOKENS; /* the backward itself goes from the end to the beginning */
    if (g)
        mn_read_tokens(&b->in, c, row, first, n, head, ahead, rule,
                       rule == MN_DPLR ? MN_NEED_Q | MN_NEED_V : MN_NEED_Q);
    else mn_read_tokens(&b->in, c, row, first, n, head, ahead, rule, rule == MN_DPLR ? MN_NEED_V : 0);
    for (int64_t t = 0; t < n; t++) {
        mn_get_on(b->error + t * Vp, &c->error, row, first + t, head, c->V, ahead);
        if (rule != MN_DPLR)
            for (int64_t j = t * Vp; j < t * Vp + Vp; j += MN_W)
                vf_store(b->u + j, vf_load(b->error + j) * b->in.beta[t]);
        if (g && g->go.at) mn_get_on(b->go + t * Vp, &g->go, row, first + t, head, c->V, ahead);
        else if (g) mn_zero(b->go + t * Vp, Vp);
        b->dbeta[t] = 0;
    }
    if (!g) return;
    mn_zero(b->dq, n * Kp);
    mn_zero(b->dk, n * Kp);
    mn_zero(b->dd, n * Kp);
    if (rule == MN_DPLR) mn_zero(b->da, n * Kp), mn_zero(b->db, n * Kp);
}

/* The gradient of x from that of x * factor, where factor made it of length one; unit is that. */
MN_INLINE void undo_unit(float *dx, const float *unit, float factor, int64_t whole) {
    float along = mn_dot(dx, unit, whole);
    for (int64_t j = 0; j < whole; j += MN_W) vf_store(dx + j, (vf_load(dx + j) - vf_load(unit + j) * along) * factor);
}

/* Gradients of the inputs from those of what `fill` made of them. The heads of a group add to dq and dk in sums,
 * [T, 2, Kp]; the last writes them. */
MN_INLINE void hand_back(block *b, const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first, int64_t n,
                         int64_t head, float *sums, const int rule) {
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V), group = c->HV / c->H, query = head / group, part = head % group;
    float scale = (float)c->scale;
    for (int64_t t = 0; t < n; t++) {
        float *dq = b->dq + t * Kp, *dk = b->dk + t * Kp, *sum = sums + t * 2 * Kp;
        if (group > 1) {
            for (int64_t j = 0; part && j < Kp; j += MN_W) {
                vf_store(dq + j, vf_load(dq + j) + vf_load(sum + j));
                vf_store(dk + j, vf_load(dk + j) + vf_load(sum + Kp + j));
            }
            if (part + 1 < group) {
                memcpy(sum, dq, (size_t)Kp * 4);
                memcpy(sum + Kp, dk, (size_t)Kp * 4);
            }
        }
        if (part + 1 == group) {
            if (c->l2norm) {
                float *q = b->in.q + t * Kp;
                mn_get(q, &c->q, row, first + t, query, c->K);
                mn_times(q, b->in.q_unit[t], Kp);
                undo_unit(dq, q, b->in.q_unit[t], Kp);
                undo_unit(dk, b->in.k + t * Kp, b->in.k_unit[t], Kp);
            }
            mn_times(dq, scale, Kp);
            mn_put(&g->dq, row, first + t, query, dq, c->K);
            mn_put(&g->dk, row, first + t, query, dk, c->K);
        }
        mn_put(&g->dv, row, first + t, head, b->dv + t * Vp, c->V);
        if (rule == MN_DPLR) {
            mn_put(&g->dbeta, row, first + t, query, b->da + t * Kp, c->K);
            mn_put(&g->db, row, first + t, query, b->db + t * Kp, c->K);
        }
        if (g->dg.at) mn_put(&g->dg, row, first + t, head, b->dd + t * Kp, c->K);
        if (rule != MN_DPLR && g->dbeta.at) mn_put_strength(c, g, row, first + t, head, b->dbeta[t]);
    }
}

#endif
