/* One token for each sequence, for decoding: the state is read twice in its tensor and written once. */
#include "common/transpose.h"
#include "rules/panel.h"
#include "rules/token_job.h"

/* The columns from p on, nv vectors of them, at S and to; rows of the states `step` and `to_step` apart. */
MN_INLINE void columns(const mn_tokens *b, const float *S, float *to, int64_t step, int64_t to_step, int64_t p,
                       int64_t K, int64_t Vp, float *o, float *error, const int nv, const int rule) {
    vf r[8] = {{0}}, y[8] = {{0}}, u[8], v[8];
    read_state(S, step, b->read_key, b->read_query, K, r, y, nv);
    answer(b, 0, p, Vp, r, y, u, v, o, error, nv, rule);
    const float *w = rule == MN_DPLR ? b->b : b->k;
    pass(to, S, to_step, step, b->d, b->decay[0], w, b->k, u, v, NULL, NULL, K, NULL, NULL, nv, rule, 0);
}

/* The pass of `panel.h` over `columns` rows of a state whose keys lie beside each other, with the same bits. */
MN_INLINE void pass_rows(float *to, int64_t to_apart, const float *S, const float *d, float decay, const float *w,
                         const float *k, const float *u, const float *v, int64_t columns, int64_t n, const int rule) {
    for (int64_t j = 0; j < columns; j++, S += n, to += to_apart)
        for (int64_t i = 0; i < n; i += MN_W) {
            int64_t left = n - i;
            vf s = left < MN_W ? vf_load_n(S + i, left) : vf_load(S + i);
            s = vf_fma(s, rule == MN_GATED ? vf_set(decay) : vf_load(d + i), vf_set(u[j]) * vf_load(w + i));
            if (rule == MN_DPLR) s = vf_fma(vf_set(v[j]), vf_load(k + i), s);
            if (left < MN_W) vf_store_n(to + i, s, left);
            else vf_store(to + i, s);
        }
}

/* nv vectors of columns from p on of a state whose keys lie beside each other: they are read through a copy, in the
 * order of memory, and turned for the sums. */
MN_INLINE void turned(const mn_tokens *b, const mn_rule *c, const float *S, float *to, float *room, int64_t p, float *o,
                      float *error, const int nv, const int rule) {
    int64_t K = c->K, width = nv * MN_W, from = c->initial.channel, to_apart = c->final.channel;
    float *rows = room + width * K, of_u[2 * MN_W], of_v[2 * MN_W];
    int64_t all = from == K ? width : 1; /* rows that lie without gaps */
    vf r[2] = {{0}}, y[2] = {{0}}, u[2], v[2];
    for (int64_t j = 0; j < width; j += all)
        memcpy(rows + j * K, S + (p + j) * from, (size_t)(all * K) * sizeof *rows);
    mn_turn_in(room, width, rows, K, width, K);
    read_state(room, width, b->read_key, b->read_query, K, r, y, nv);
    answer(b, 0, p, c->V, r, y, u, v, o, error, nv, rule);
    for (int j = 0; j < nv; j++) vf_store(of_u + j * MN_W, u[j]), vf_store(of_v + j * MN_W, v[j]);
    const float *w = rule == MN_DPLR ? b->b : b->k;
    pass_rows(to + p * to_apart, to_apart, rows, b->d, b->decay[0], w, b->k, of_u, of_v, width, K, rule);
}

MN_INLINE void head(const mn_rule *c, int64_t n, int64_t head, float *room, const int rule) {
    int64_t V = c->V;
    mn_tokens b;
    float *o = mn_tokens_in(&b, room, c->K, V, rule), *error = o + V;
    const float *S = (const float *)mn_base(&c->initial) + mn_place(&c->initial, n, 0, head);
    float *to = (float *)mn_base(&c->final) + mn_place(&c->final, n, 0, head);
    mn_read_tokens(&b, c, n, 0, 1, head, rule);
    int64_t p = 0, step = c->initial.token, to_step = c->final.token;
#define MN_COLUMNS(nv)                                                                                                 \
    for (; p + nv * MN_W <= V; p += nv * MN_W)                                                                         \
        columns(&b, S + p, to + p, step, to_step, p, c->K, V, o, error, nv, rule);
    if (c->initial.channel != 1) {
        for (; p + 2 * MN_W <= V; p += 2 * MN_W) turned(&b, c, S, to, error + V, p, o, error, 2, rule);
        for (; p < V; p += MN_W) turned(&b, c, S, to, error + V, p, o, error, 1, rule);
    } else {
        if (MN_W == 16) MN_COLUMNS(8)
        MN_COLUMNS(4)
        MN_COLUMNS(2)
        MN_COLUMNS(1)
    }
#undef MN_COLUMNS
    mn_put_rows(&c->o, n, 0, 1, head, o, V);
}

/* Whether a call has one token for each sequence, and float32 states of whole vectors of value channels, both with
 * values or both with keys beside each other. */
static int fits(const mn_rule *c) {
    const mn_tensor *a = &c->initial, *b = &c->final;
    int rows = (a->channel == 1 && b->channel == 1) || (a->token == 1 && b->token == 1 && a->channel != 1);
    int whole = a->dtype == MN_F32 && b->dtype == MN_F32 && c->V % MN_W == 0;
    return c->T == 1 && !c->cu_seqlens && !c->error.at && a->at && b->at && rows && whole;
}

void MN_VARIANT(mn_token_step)(const void *args, int64_t begin, int64_t end, int slot) {
    const mn_token_job *job = args;
    const mn_rule *c = job->call;
    float *room = job->scratch + slot * job->floats;
    if (!fits(c)) {
        MN_VARIANT(mn_token_forward)(args, begin, end, slot);
        return;
    }
    for (int64_t i = begin; i < end; i++) {
        if (c->rule == MN_GATED) head(c, i / c->HV, i % c->HV, room, MN_GATED);
        else if (c->rule == MN_KDA) head(c, i / c->HV, i % c->HV, room, MN_KDA);
        else head(c, i / c->HV, i % c->HV, room, MN_DPLR);
    }
}
