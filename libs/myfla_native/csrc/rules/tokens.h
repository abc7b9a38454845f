/* A few tokens of one head, read, normalised and gated for the recurrence. For `*.kernel.c` only. */
#ifndef MN_TOKENS_H
#define MN_TOKENS_H

#include "common/row_sums.h"
#include "rules/gates.h"
#include "rules/rows.h"
#include "rules/token_job.h"

typedef struct {
    float *q, *k;      /* [C, Kp], q with the scale if states are read */
    float *a, *b;      /* [C, Kp] DPLR; KDA's gate: a is its bias [Kp], b its inputs */
    float *d;          /* [C, Kp] decay of each channel; KDA, DPLR */
    float *read_key;   /* [C, Kp] reads u or e from the state before it decays: k d; gated: k, DPLR: a */
    float *read_query; /* [C, Kp] q d; gated: q */
    mn_from v;         /* [C, Vp] */
    float *own_v;      /* [C, Vp] */
    float decay[MN_TOKENS], beta[MN_TOKENS];
    float q_unit[MN_TOKENS], k_unit[MN_TOKENS]; /* the factors that made q and k of length one */
    float q_write[MN_TOKENS], q_k[MN_TOKENS];   /* q k; DPLR: q b, q k */
} mn_tokens;

MN_INLINE float *mn_tokens_in(mn_tokens *b, float *room, int64_t K, int64_t V, int rule) {
    int64_t rows = MN_TOKENS * mn_padded(K);
    b->q = room;
    b->k = room + rows;
    b->a = room + 2 * rows;
    b->b = room + 3 * rows;
    b->d = room + 4 * rows;
    b->read_key = rule == MN_KDA ? room + 5 * rows : rule == MN_GATED ? b->k : b->a;
    b->read_query = rule == MN_GATED ? b->q : room + 6 * rows;
    b->own_v = room + 7 * rows;
    return room + mn_tokens_floats(K, V);
}

/* Products of rows of n tokens, many sums at once. */
MN_INLINE void mn_dots(float *out, mn_from a, mn_from b, int64_t n, int64_t whole) {
    float parts[MN_TOKENS * MN_W];
    for (int64_t t = 0; t < n; t++, a.at += a.step, b.at += b.step) {
        vf sum = vf_load(a.at) * vf_load(b.at);
        for (int64_t j = MN_W; j < whole; j += MN_W) sum += vf_load(a.at + j) * vf_load(b.at + j);
        vf_store(parts + t * MN_W, sum);
    }
    int64_t t = 0;
    for (; t + MN_W <= n; t += MN_W) vf_store(out + t, mn_sums(parts + t * MN_W, MN_W));
    for (; n % MN_W && t < n; t++) out[t] = mn_sum(vf_load(parts + t * MN_W));
}

/* The factors that make rows of length one. */
MN_INLINE void mn_units(float *out, mn_from x, int64_t n, int64_t whole, int64_t l2norm) {
    if (l2norm) mn_dots(out, x, x, n, whole);
    for (int64_t t = 0; t < n; t++) out[t] = l2norm ? 1 / sqrtf(out[t] + 1e-6f) : 1;
}

/* Tokens first to first + n of a row, for value head `head`, and what they read from states. rule is a constant where
 * it is called. */
MN_INLINE void mn_read_tokens(mn_tokens *to, const mn_rule *c, int64_t row, int64_t first, int64_t n, int64_t head,
                              const int rule) {
    int64_t Kp = mn_whole(c->K), query = head / (c->HV / c->H);
    float of_q[MN_TOKENS], ones[MN_TOKENS];
    mn_from q = mn_get_rows(&c->q, row, first, n, query, c->K, to->q), g = {NULL, 0};
    mn_from k = mn_get_rows(&c->k, row, first, n, query, c->K, to->k), a = g, b = g;
    to->v = mn_get_rows(&c->v, row, first, n, head, c->V, to->own_v);
    mn_units(to->q_unit, q, n, Kp, c->l2norm);
    mn_units(to->k_unit, k, n, Kp, c->l2norm);
    mn_dots(to->q_k, q, k, n, Kp);
    if (rule == MN_DPLR) {
        a = mn_get_rows(&c->beta, row, first, n, query, c->K, to->a);
        b = mn_get_rows(&c->b, row, first, n, query, c->K, to->b);
        mn_dots(to->q_write, q, b, n, Kp);
    }
    for (int64_t t = 0; t < n; t++) {
        of_q[t] = to->q_unit[t] * (float)c->scale;
        ones[t] = 1;
        to->q_k[t] *= of_q[t] * to->k_unit[t];
        if (rule == MN_DPLR) to->q_write[t] *= of_q[t];
        else to->q_write[t] = to->q_k[t];
    }
    if (rule == MN_GATED) mn_log_decays(to->decay, c, row, first, n, head);
    if (rule != MN_DPLR) mn_strengths(to->beta, c, row, first, n, head);
    mn_times_rows(to->k, k, to->k_unit, n, Kp);
    if (rule == MN_DPLR) mn_times_rows(to->a, a, ones, n, Kp);
    if (rule == MN_DPLR) mn_times_rows(to->b, b, ones, n, Kp);
    if (rule == MN_GATED) {
        mn_times_rows(to->q, q, of_q, n, Kp);
        for (int64_t t = 0; t < n; t += MN_W) {
            int64_t left = mn_min(MN_W, n - t);
            vf_store_n(to->decay + t, vf_exp(vf_load_n(to->decay + t, left)), left);
        }
        return;
    }
    g = mn_get_rows(&c->g, row, first, n, head, c->K, to->d);
    if (rule == MN_KDA && c->gate) g = mn_open_channels(c, head, n, g, to->d, to->b, to->a);
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < Kp; j += MN_W) {
            int64_t at = t * Kp + j;
            vf decay = vf_exp(vf_load(g.at + t * g.step + j));
            vf_store(to->d + at, decay);
            vf_store(to->read_query + at, decay * (vf_load(q.at + t * q.step + j) * of_q[t]));
            if (rule == MN_KDA) vf_store(to->read_key + at, decay * vf_load(to->k + at));
        }
}

#endif
