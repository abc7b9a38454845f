/* One token for each sequence, for decoding: the state is read twice in its tensor and written once. */
#include "rules/panel.h"
#include "rules/token_job.h"

/* The columns from p on, nv vectors of them; rows of the states `step` and `to_step` apart. */
MN_INLINE void columns(const mn_tokens *b, const float *S, float *to, int64_t step, int64_t to_step, int64_t p,
                       int64_t K, int64_t Vp, float *o, float *error, const int nv, const int rule) {
    vf r[8] = {{0}}, y[8] = {{0}}, u[8], v[8];
    read_state(S + p, step, b->read_key, b->read_query, K, r, y, nv);
    answer(b, 0, p, Vp, r, y, u, v, o, error, nv, rule);
    const float *w = rule == MN_DPLR ? b->b : b->k;
    pass(to + p, S + p, to_step, step, b->d, b->decay[0], w, b->k, u, v, NULL, NULL, K, NULL, NULL, nv, rule, 0);
}

MN_INLINE void head(const mn_rule *c, int64_t n, int64_t head, float *room, const int rule) {
    int64_t V = c->V;
    mn_tokens b;
    float *o = mn_tokens_in(&b, room, c->K, V, rule), *error = o + V;
    const float *S = (const float *)mn_base(&c->initial) + mn_place(&c->initial, n, 0, head);
    float *to = (float *)mn_base(&c->final) + mn_place(&c->final, n, 0, head);
    mn_read_tokens(&b, c, n, 0, 1, head, 0, rule, MN_NEED_Q | MN_NEED_V | MN_NEED_READS);
    int64_t p = 0, step = c->initial.token, to_step = c->final.token;
    if (MN_W == 16)
        for (; p + 8 * MN_W <= V; p += 8 * MN_W) columns(&b, S, to, step, to_step, p, c->K, V, o, error, 8, rule);
    for (; p + 4 * MN_W <= V; p += 4 * MN_W) columns(&b, S, to, step, to_step, p, c->K, V, o, error, 4, rule);
    for (; p + 2 * MN_W <= V; p += 2 * MN_W) columns(&b, S, to, step, to_step, p, c->K, V, o, error, 2, rule);
    for (; p < V; p += MN_W) columns(&b, S, to, step, to_step, p, c->K, V, o, error, 1, rule);
    mn_put(&c->o, n, 0, head, o, V);
}

/* Whether a call has one token for each sequence, and float32 states whose rows are whole vectors. */
static int fits(const mn_rule *c) {
    const mn_tensor *a = &c->initial, *b = &c->final;
    int rows = a->dtype == MN_F32 && b->dtype == MN_F32 && a->channel == 1 && b->channel == 1 && c->V % MN_W == 0;
    return c->T == 1 && !c->cu_seqlens && !c->error.at && a->at && b->at && rows;
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
