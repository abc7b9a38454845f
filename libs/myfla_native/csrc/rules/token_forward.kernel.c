/* Token by token: a panel of the state's columns stays in the first-level cache, and is read and written once for each
 * token.
 *
 * While it writes token t's state, a pass computes the sums that token t + 1 reads. */
#include "rules/errands.h"
#include "rules/panel.h"
#include "rules/states.h"
#include "rules/token_job.h"

/* n tokens over the panel of nv vectors at column p; o and error are [C, Vp]. */
MN_INLINE void panel(float *S, const mn_tokens *b, int64_t n, int64_t p, int64_t Kp, int64_t Vp, float *o, float *error,
                     mn_errands *errands, const int nv, const int rule) {
    vf r[4] = {{0}}, y[4] = {{0}};
    read_state(S, nv * MN_W, b->read_key, b->read_query, Kp, r, y, nv);
    for (int64_t t = 0; t < n; t++) {
        vf u[4], v[4];
        mn_ask(errands);
        answer(b, t, p, Vp, r, y, u, v, o, error, nv, rule);
        const float *d = b->d + t * Kp, *k = b->k + t * Kp, *w = rule == MN_DPLR ? b->b + t * Kp : k;
        const float *x = b->read_key + (t + 1) * Kp, *z = b->read_query + (t + 1) * Kp;
        if (t + 1 < n) pass(S, S, nv * MN_W, nv * MN_W, d, b->decay[t], w, k, u, v, x, z, Kp, r, y, nv, rule, 1);
        else pass(S, S, nv * MN_W, nv * MN_W, d, b->decay[t], w, k, u, v, x, z, Kp, r, y, nv, rule, 0);
    }
}

/* The rows that are prefetched during `panels` passes over a block's tokens: its outputs, and the next tokens. */
MN_INLINE void expect(mn_errands *list, const mn_rule *c, int64_t row, int64_t first, int64_t count, int64_t head,
                      int64_t panels, const int rule) {
    int64_t query = head / (c->HV / c->H), next = first + count;
    list->count = list->at = list->row = 0;
    mn_expect(list, &c->k, row, next, query, c->K);
    if (rule != MN_GATED) mn_expect(list, &c->g, row, next, head, c->K);
    mn_expect(list, &c->q, row, next, query, c->K);
    if (rule == MN_DPLR) mn_expect(list, &c->beta, row, next, query, c->K);
    if (rule == MN_DPLR) mn_expect(list, &c->b, row, next, query, c->K);
    mn_expect(list, &c->v, row, next, head, c->V);
    mn_expect(list, &c->o, row, first, head, c->V);
    mn_expect(list, &c->error, row, first, head, c->V);
    mn_share(list, count * panels);
}

MN_INLINE void sequence(const mn_rule *c, int64_t n, int64_t head, float *room, const int rule) {
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V), row, first, tokens;
    mn_errands errands;
    mn_tokens b;
    float *S = mn_tokens_in(&b, room, c->K, c->V, rule), *o = S + Kp * Vp, *error = o + MN_TOKENS * Vp;
    mn_span(c, n, &row, &first, &tokens);
    mn_get_state(S, &c->initial, n, head, c->K, c->V);
    for (int64_t begin = 0; begin < tokens; begin += MN_TOKENS) {
        int64_t count = mn_min(MN_TOKENS, tokens - begin);
        if (c->error.at && begin && begin % MN_KEPT == 0)
            mn_put_state(&c->kept, mn_slot(c, n, begin / MN_KEPT), head, S, c->K, c->V);
        mn_read_tokens(&b, c, row, first + begin, count, head, rule);
        expect(&errands, c, row, first + begin, count, head, mn_blocks(Vp, MN_PANEL * MN_W), rule);
        for (int64_t p = 0; p < Vp;) {
            int nv = mn_panel(Vp - p);
            if (nv == 4) panel(S + p * Kp, &b, count, p, Kp, Vp, o, error, &errands, 4, rule);
            else if (nv == 2) panel(S + p * Kp, &b, count, p, Kp, Vp, o, error, &errands, 2, rule);
            else panel(S + p * Kp, &b, count, p, Kp, Vp, o, error, &errands, 1, rule);
            p += nv * MN_W;
        }
        mn_put_rows(&c->o, row, first + begin, count, head, o, c->V);
        if (c->error.at) mn_put_rows(&c->error, row, first + begin, count, head, error, c->V);
    }
    mn_put_state(&c->final, n, head, S, c->K, c->V);
}

void MN_VARIANT(mn_token_forward)(const void *args, int64_t begin, int64_t end, int slot) {
    const mn_token_job *job = args;
    const mn_rule *c = job->call;
    float *room = job->scratch + slot * job->floats;
    for (int64_t i = begin; i < end; i++) {
        if (c->rule == MN_GATED) sequence(c, i / c->HV, i % c->HV, room, MN_GATED);
        else if (c->rule == MN_KDA) sequence(c, i / c->HV, i % c->HV, room, MN_KDA);
        else sequence(c, i / c->HV, i % c->HV, room, MN_DPLR);
    }
}
