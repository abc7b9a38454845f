/* The state of a head in scratch memory, in panels. For `*.kernel.c` only. */
#ifndef MN_STATES_H
#define MN_STATES_H

#include "common/transpose.h"
#include "rules/rows.h"

static void mn_get_state(float *S, const mn_tensor *x, int64_t n, int64_t head, int64_t K, int64_t V) {
    int64_t Kp = mn_whole(K), Vp = mn_whole(V), from = n * x->row + head * x->head;
    if (!x->at || K < Kp || V < Vp) mn_zero(S, Kp * Vp);
    if (!x->at) return;
    for (int64_t p = 0, width; p < Vp; p += width) {
        width = MN_W * mn_panel(Vp - p);
        int64_t columns = mn_min(width, V - p);
        float *to = S + p * Kp;
        if (x->channel == 1 || x->token != 1) {
            for (int64_t i = 0; i < K; i++)
                mn_gather(to + i * width, x, from + i * x->token + p * x->channel, columns, x->channel);
        } else if (x->dtype == MN_F32) { /* value first */
            mn_turn_in(to, width, (const float *)mn_base(x) + from + p * x->channel, x->channel, columns, K);
        } else {
            for (int64_t j = 0; j < columns; j++)
                for (int64_t i = 0; i < K; i++)
                    to[i * width + j] = mn_read_one(mn_base(x), from + (p + j) * x->channel + i, (int)x->dtype);
        }
    }
}

static void mn_put_state(const mn_tensor *x, int64_t n, int64_t head, const float *S, int64_t K, int64_t V) {
    int64_t Kp = mn_whole(K), Vp = mn_whole(V), to = n * x->row + head * x->head;
    if (!x->at) return;
    for (int64_t p = 0, width; p < Vp; p += width) {
        width = MN_W * mn_panel(Vp - p);
        int64_t columns = mn_min(width, V - p);
        const float *from = S + p * Kp;
        if (x->channel == 1 || x->token != 1) {
            for (int64_t i = 0; i < K; i++)
                mn_scatter(x, to + i * x->token + p * x->channel, from + i * width, columns, x->channel);
        } else if (x->dtype == MN_F32) {
            mn_turn_out((float *)mn_base(x) + to + p * x->channel, x->channel, from, width, columns, K);
        } else {
            for (int64_t j = 0; j < columns; j++)
                for (int64_t i = 0; i < K; i++)
                    mn_write_one(mn_base(x), to + (p + j) * x->channel + i, from[i * width + j], (int)x->dtype);
        }
    }
}

#endif
