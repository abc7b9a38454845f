/* The state of a head in scratch memory, transposed: a row for each value channel, [Vp, Kp]. For `*.kernel.c` only. */
#ifndef MN_TURNED_STATES_H
#define MN_TURNED_STATES_H

#include "common/transpose.h"
#include "rules/rows.h"

static void mn_get_turned(float *S, const mn_tensor *x, int64_t n, int64_t head, int64_t K, int64_t V) {
    int64_t Kp = mn_whole(K), Vp = mn_whole(V), from = n * x->row + head * x->head;
    float part[MN_W * MN_W];
    if (!x->at || V < Vp) mn_zero(S, Kp * Vp);
    if (!x->at) return;
    if (x->channel != 1 && x->token == 1) { /* value first */
        for (int64_t j = 0; j < V; j++) mn_gather(S + j * Kp, x, from + j * x->channel, K, 1);
        return;
    }
    for (int64_t j = 0; j < V; j += MN_W)
        for (int64_t i = 0; i < Kp; i += MN_W) {
            for (int64_t r = 0; r < MN_W; r++) {
                if (i + r < K) mn_gather(part + r * MN_W, x, from + (i + r) * x->token + j * x->channel,
                                         mn_min(MN_W, V - j), x->channel);
                else vf_store(part + r * MN_W, (vf){0});
            }
            mn_transpose(part, MN_W, MN_W, MN_W, S + j * Kp + i, Kp);
        }
}

static void mn_put_turned(const mn_tensor *x, int64_t n, int64_t head, const float *S, int64_t K, int64_t V) {
    int64_t Kp = mn_whole(K), to = n * x->row + head * x->head;
    float part[MN_W * MN_W];
    if (!x->at) return;
    if (x->channel != 1 && x->token == 1) {
        for (int64_t j = 0; j < V; j++) mn_scatter(x, to + j * x->channel, S + j * Kp, K, 1);
        return;
    }
    for (int64_t j = 0; j < V; j += MN_W)
        for (int64_t i = 0; i < Kp; i += MN_W) {
            mn_transpose(S + j * Kp + i, Kp, MN_W, MN_W, part, MN_W);
            for (int64_t r = 0; r < mn_min(MN_W, K - i); r++)
                mn_scatter(x, to + (i + r) * x->token + j * x->channel, part + r * MN_W, mn_min(MN_W, V - j),
                           x->channel);
        }
}

#endif
