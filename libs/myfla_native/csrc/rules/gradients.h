/* The tensors of the backward of a few tokens of one head of KDA or DPLR. For `*.kernel.c` only. */
#ifndef MN_GRADIENTS_H
#define MN_GRADIENTS_H

#include "rules/tokens.h"

enum { C = MN_TOKENS };

typedef struct {
    mn_tokens in;                  /* without reads; d only for going token by token */
    mn_from log, error, u;         /* log decays [C, Kp]; [C, Vp] */
    float *own_error, *own_u;      /* [C, Vp] */
    float *go;                     /* [2C, Vp], with the scale; the second half is for results of a chunk */
    float *dv;                     /* [C, Vp] */
    float *dq, *dk, *da, *db, *dd; /* [C, Kp]; dd: of the log decay */
    mn_into to_q, to_k, to_a, to_b, to_d, to_v; /* these, or the rows of their tensors */
    float dbeta[C], u_out[C], v_out[C];
    float *states; /* [C + 1, Kp, 4 W], for the form token by token */
    float *parts;  /* [MN_W, SUMS, MN_W], the same */
} block;

MN_INLINE float *mn_block_in(block *b, float *room, int64_t K, int64_t V, int rule) {
    int64_t keys = C * mn_padded(K), values = C * mn_padded(V);
    float *next = mn_tokens_in(&b->in, room, K, V, rule);
    float **of_values[] = {&b->own_error, &b->dv, &b->own_u}, **of_keys[] = {&b->dq, &b->dk, &b->da, &b->db, &b->dd};
    for (int i = 0; i < 3; i++, next += values) *of_values[i] = next;
    for (int i = 0; i < 5; i++, next += keys) *of_keys[i] = next;
    b->go = next, next += 2 * values;
    b->parts = next, next += MN_W * MN_W * MN_MOST_SUMS;
    b->states = next;
    return next + (C + 1) * mn_padded(K) * 4 * MN_W;
}

/* Prefetch what the next call of `fill_writes` reads. */
MN_INLINE void prefetch_writes(const mn_rule *c, int64_t row, int64_t first, int64_t head, const int rule) {
    int64_t query = head / (c->HV / c->H);
    mn_prefetch_rows(&c->k, row, first, query, c->K);
    mn_prefetch_rows(&c->error, row, first, head, c->V);
    mn_prefetch_rows(&c->g, row, first, head, c->K);
    if (rule != MN_DPLR) return;
    mn_prefetch_rows(&c->b, row, first, query, c->K);
    mn_prefetch_rows(&c->v, row, first, head, c->V);
}

/* What C tokens write into the state, and their log decays. k has yet to be multiplied by its units. */
MN_INLINE mn_from fill_writes(block *b, const mn_rule *c, int64_t row, int64_t first, int64_t n, int64_t head,
                              const int rule) {
    int64_t query = head / (c->HV / c->H);
    mn_from k = mn_get_block(&c->k, row, first, n, query, c->K, b->in.k);
    mn_units(b->in.k_unit, k, C, mn_whole(c->K), c->l2norm);
    b->log = mn_get_block(&c->g, row, first, n, head, c->K, b->in.d);
    if (rule == MN_KDA && c->gate) b->log = mn_open_channels(c, head, n, b->log, b->in.d, b->in.b, b->in.a);
    b->error = mn_get_block(&c->error, row, first, n, head, c->V, b->own_error);
    if (rule == MN_DPLR) b->in.v = mn_get_block(&c->v, row, first, n, head, c->V, b->in.own_v);
    if (rule != MN_DPLR) mn_strengths(b->in.beta, c, row, first, n, head);
    for (int64_t t = n; rule != MN_DPLR && t < C; t++) b->in.beta[t] = 0;
    return k;
}

/* Read n tokens and their gates and gradients, and compute u. Tokens after n are filled so that they change nothing. */
MN_INLINE void fill(block *b, const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first, int64_t n,
                    int64_t head, const int rule) {
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V), query = head / (c->HV / c->H);
    float ones[C], scale[C];
    for (int t = 0; t < C; t++) ones[t] = 1, scale[t] = (float)c->scale;
    mn_times_rows(b->in.k, fill_writes(b, c, row, first, n, head, rule), b->in.k_unit, C, Kp);
    mn_from q = mn_get_block(&c->q, row, first, n, query, c->K, b->in.q);
    mn_units(b->in.q_unit, q, C, Kp, c->l2norm);
    mn_times_rows(b->in.q, q, b->in.q_unit, C, Kp);
    b->u = b->error;
    if (rule == MN_DPLR) {
        mn_times_rows(b->in.a, mn_get_block(&c->beta, row, first, n, query, c->K, b->in.a), ones, C, Kp);
        mn_times_rows(b->in.b, mn_get_block(&c->b, row, first, n, query, c->K, b->in.b), ones, C, Kp);
    } else {
        mn_times_rows(b->own_u, b->error, b->in.beta, C, Vp);
        b->u = (mn_from){b->own_u, Vp};
    }
    if (g->go.at) mn_times_rows(b->go, mn_get_block(&g->go, row, first, n, head, c->V, b->go), scale, C, Vp);
    else mn_zero(b->go, C * Vp);
}

/* Choose where gradients are written that nothing else is done with: into the tensors if `direct`. */
MN_INLINE void aim(block *b, const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first, int64_t n,
                   int64_t head, int direct, const int rule) {
    int64_t Kp = mn_whole(c->K), query = head / (c->HV / c->H), K = c->K;
    b->to_v = (mn_into){b->dv, mn_whole(c->V)};
    b->to_q = (mn_into){b->dq, Kp}, b->to_k = (mn_into){b->dk, Kp}, b->to_d = (mn_into){b->dd, Kp};
    b->to_a = (mn_into){b->da, Kp}, b->to_b = (mn_into){b->db, Kp};
    if (!direct) return;
    b->to_v = mn_rows_in(&g->dv, row, first, n, head, c->V, b->dv);
    if (g->dg.at && !c->gate) b->to_d = mn_rows_in(&g->dg, row, first, n, head, K, b->dd);
    if (rule == MN_DPLR) {
        b->to_a = mn_rows_in(&g->dbeta, row, first, n, query, K, b->da);
        b->to_b = mn_rows_in(&g->db, row, first, n, query, K, b->db);
    }
    if (c->l2norm || c->HV > c->H) return;
    b->to_q = mn_rows_in(&g->dq, row, first, n, query, K, b->dq);
    b->to_k = mn_rows_in(&g->dk, row, first, n, query, K, b->dk);
}

/* dx - unit along, times factor, into rows of a tensor: gradients before a norm, where factor made `unit` of length
 * one. The rows of dx themselves where there is no norm. */
MN_INLINE void put_keys(const mn_tensor *to, const mn_rule *c, int64_t row, int64_t first, int64_t n, int64_t head,
                        float *dx, const float *unit, const float *factors) {
    int64_t Kp = mn_whole(c->K);
    mn_into out = mn_rows_in(to, row, first, n, head, c->K, dx);
    float along[C];
    if (c->l2norm) {
        mn_dots(along, (mn_from){dx, Kp}, (mn_from){unit, Kp}, n, Kp);
        for (int64_t t = 0; t < n; t++)
            for (int64_t j = 0, at = t * Kp; j < Kp; j += MN_W, at += MN_W)
                vf_store(out.at + t * out.step + j, (vf_load(dx + at) - vf_load(unit + at) * along[t]) * factors[t]);
        if (out.at != dx) return;
    }
    mn_put_rows(to, row, first, n, head, dx, c->K);
}

/* Gradients of the inputs from those of the results of `fill`. The heads of a group add dq and dk to sums, [T, 2, Kp];
 * the last head writes them. */
MN_INLINE void hand_back(block *b, const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first, int64_t n,
                         int64_t head, float *sums, double *gate, const int rule) {
    int64_t Kp = mn_whole(c->K), group = c->HV / c->H, query = head / group, part = head % group;
    for (int64_t j = 0; part && j < n * Kp; j += MN_W) {
        vf_store(b->dq + j, vf_load(b->dq + j) + vf_load(sums + j));
        vf_store(b->dk + j, vf_load(b->dk + j) + vf_load(sums + C * Kp + j));
    }
    if (part + 1 == group) {
        if (b->to_q.at == b->dq) put_keys(&g->dq, c, row, first, n, query, b->dq, b->in.q, b->in.q_unit);
        if (b->to_k.at == b->dk) put_keys(&g->dk, c, row, first, n, query, b->dk, b->in.k, b->in.k_unit);
    } else {
        memcpy(sums, b->dq, (size_t)(n * Kp) * sizeof *sums);
        memcpy(sums + C * Kp, b->dk, (size_t)(n * Kp) * sizeof *sums);
    }
    if (rule == MN_KDA && c->gate) mn_close_channels(c, head, n, b->in.b, b->dd, gate);
    if (b->to_v.at == b->dv) mn_put_rows(&g->dv, row, first, n, head, b->dv, c->V);
    if (rule == MN_DPLR && b->to_a.at == b->da) mn_put_rows(&g->dbeta, row, first, n, query, b->da, c->K);
    if (rule == MN_DPLR && b->to_b.at == b->db) mn_put_rows(&g->db, row, first, n, query, b->db, c->K);
    if (g->dg.at && b->to_d.at == b->dd) mn_put_rows(&g->dg, row, first, n, head, b->dd, c->K);
    if (rule != MN_DPLR) mn_put_strengths(c, g, row, first, n, head, b->dbeta);
}

#endif
