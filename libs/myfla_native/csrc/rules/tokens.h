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
    float *v;          /* [C, Vp] */
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
    b->v = room + 7 * rows;
    return room + mn_tokens_floats(K, V);
}

/* Products of rows, for many tokens at once: the partial sums of each lie in parts[t], the sums go to out. */
MN_INLINE void mn_finish_dots(float *out, float *parts, int64_t n) {
    int64_t t = 0;
    for (; t + MN_W <= n; t += MN_W) vf_store(out + t, mn_sums(parts + t * MN_W, MN_W));
    for (; n % MN_W && t < n; t++) out[t] = mn_sum(vf_load(parts + t * MN_W));
}
MN_INLINE void mn_start_dot(float *part, const float *a, const float *b, int64_t whole) {
    vf sum = vf_load(a) * vf_load(b);
    for (int64_t j = MN_W; j < whole; j += MN_W) sum += vf_load(a + j) * vf_load(b + j);
    vf_store(part, sum);
}

/* The factors that make rows of length one, from their products with themselves. */
MN_INLINE void mn_unit(float *out, float *parts, int64_t n, int64_t l2norm) {
    if (l2norm) mn_finish_dots(out, parts, n);
    for (int64_t t = 0; t < n; t++) out[t] = l2norm ? 1 / sqrtf(out[t] + 1e-6f) : 1;
}

/* Tokens first to first + n of a row, for value head `head`; the next ones are `ahead` tokens further on, unless that
 * is zero. rule and the flags are constants where it is called. */
enum { MN_NEED_Q = 1, MN_NEED_V = 2, MN_NEED_READS = 4 }; /* reads: what a token reads from a state, with Q */
MN_INLINE void mn_read_tokens(mn_tokens *to, const mn_rule *c, int64_t row, int64_t first, int64_t n, int64_t head,
                              int64_t ahead, const int rule, const int need) {
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V), query = head / (c->HV / c->H);
    float qq[MN_TOKENS * MN_W] = {0}, kk[MN_TOKENS * MN_W] = {0}, qk[MN_TOKENS * MN_W], qb[MN_TOKENS * MN_W];
    for (int64_t t = 0; t < n; t++) {
        float *q = to->q + t * Kp, *k = to->k + t * Kp;
        mn_get_on(k, &c->k, row, first + t, query, c->K, ahead);
        if (c->l2norm) mn_start_dot(kk + t * MN_W, k, k, Kp);
        if (need & MN_NEED_V) mn_get_on(to->v + t * Vp, &c->v, row, first + t, head, c->V, ahead);
        if (need & MN_NEED_Q) {
            mn_get_on(q, &c->q, row, first + t, query, c->K, ahead);
            if (need & MN_NEED_READS) mn_start_dot(qk + t * MN_W, q, k, Kp);
            if (c->l2norm) mn_start_dot(qq + t * MN_W, q, q, Kp);
        }
        if (rule == MN_DPLR) {
            mn_get_on(to->b + t * Kp, &c->b, row, first + t, query, c->K, ahead);
            if (need & MN_NEED_Q) {
                mn_get_on(to->a + t * Kp, &c->beta, row, first + t, query, c->K, ahead);
                if (need & MN_NEED_READS) mn_start_dot(qb + t * MN_W, q, to->b + t * Kp, Kp);
            }
        }
        if (rule != MN_GATED) mn_get_on(to->d + t * Kp, &c->g, row, first + t, head, c->K, ahead);
    }
    if (rule == MN_GATED) mn_log_decays(to->decay, c, row, first, n, head);
    if (rule != MN_DPLR) mn_strengths(to->beta, c, row, first, n, head);
    if (rule == MN_KDA && c->gate) mn_open_channels(c, head, n, to->d, to->b, to->a);
    if (need & MN_NEED_READS) mn_finish_dots(to->q_k, qk, n);
    if (need & MN_NEED_READS && rule == MN_DPLR) mn_finish_dots(to->q_write, qb, n);
    if (need & MN_NEED_Q) mn_unit(to->q_unit, qq, n, c->l2norm);
    mn_unit(to->k_unit, kk, n, c->l2norm);
    for (int64_t t = 0; t < n; t++) {
        float of_q = need & MN_NEED_READS ? to->q_unit[t] * (float)c->scale : to->q_unit[t];
        if (c->l2norm) mn_times(to->k + t * Kp, to->k_unit[t], Kp);
        if (need & MN_NEED_READS) {
            to->q_k[t] *= of_q * to->k_unit[t];
            if (rule == MN_DPLR) to->q_write[t] *= of_q;
            else to->q_write[t] = to->q_k[t];
        }
        if (need & MN_NEED_READS || (need & MN_NEED_Q && c->l2norm)) mn_times(to->q + t * Kp, of_q, Kp);
        for (int64_t j = t * Kp; rule != MN_GATED && j < t * Kp + Kp; j += MN_W) {
            vf decay = vf_exp(vf_load(to->d + j));
            vf_store(to->d + j, decay);
            if (need & MN_NEED_READS) vf_store(to->read_query + j, decay * vf_load(to->q + j));
            if (need & MN_NEED_READS && rule == MN_KDA) vf_store(to->read_key + j, decay * vf_load(to->k + j));
        }
    }
    if (rule == MN_GATED)
        for (int64_t t = 0; t < n; t += MN_W) {
            int64_t left = mn_min(MN_W, n - t);
            vf_store_n(to->decay + t, vf_exp(vf_load_n(to->decay + t, left)), left);
        }
}

/* Tokens n to MN_TOKENS are set so that they do not change the state. */
MN_INLINE void mn_no_tokens(mn_tokens *to, int64_t n, int64_t Kp, int64_t Vp, const int rule) {
    float *rows[] = {to->q, to->k, to->a, to->b};
    for (int i = 0; i < (rule == MN_DPLR ? 4 : 2); i++) mn_zero(rows[i] + n * Kp, (MN_TOKENS - n) * Kp);
    mn_zero(to->v + n * Vp, (MN_TOKENS - n) * Vp);
    for (int64_t j = n * Kp; j < MN_TOKENS * Kp; j++) to->d[j] = 1;
    for (int64_t t = n; t < MN_TOKENS; t++) to->beta[t] = 0;
}

#endif
