/* The gate and the write strength of tokens of one head, and their gradients. For `*.kernel.c` only. */
#ifndef MN_GATES_H
#define MN_GATES_H

#include "rules/rows.h"

MN_INLINE float mn_gate_rate(const mn_rule *c, int64_t head) { return -expf(mn_one(&c->A_log, 0, 0, head)); }

/* Numbers [n] of tokens `first` and following, zeros up to MN_TOKENS. */
MN_INLINE void mn_get_ones(float *to, const mn_tensor *x, int64_t row, int64_t first, int64_t n, int64_t head) {
    for (int64_t t = 0; t < n; t++) to[t] = mn_one(x, row, first + t, head);
    for (int64_t t = n; t < MN_TOKENS; t++) to[t] = 0;
}

/* The inputs of the activation of n gates, like `mn_get_ones`. */
MN_INLINE void mn_gate_inputs(float *to, const mn_rule *c, int64_t row, int64_t first, int64_t n, int64_t head) {
    mn_get_ones(to, &c->g, row, first, n, head);
    vf bias = vf_set(c->dt_bias.at ? mn_one(&c->dt_bias, 0, 0, head) : 0);
    for (int64_t t = 0; t < n; t += MN_W) vf_store(to + t, vf_load(to + t) + bias);
}

/* Log decays [n] and write strengths [n]; `to` has MN_TOKENS. */
MN_INLINE void mn_log_decays(float *to, const mn_rule *c, int64_t row, int64_t first, int64_t n, int64_t head) {
    if (!c->g.at) mn_zero(to, MN_TOKENS);
    else if (!c->gate) mn_get_ones(to, &c->g, row, first, n, head);
    else {
        float rate = mn_gate_rate(c, head);
        mn_gate_inputs(to, c, row, first, n, head);
        for (int64_t t = 0; t < n; t += MN_W) vf_store(to + t, rate * vf_softplus(vf_load(to + t)));
    }
}
MN_INLINE void mn_strengths(float *to, const mn_rule *c, int64_t row, int64_t first, int64_t n, int64_t head) {
    if (c->beta.at) mn_get_ones(to, &c->beta, row, first, n, head);
    for (int64_t t = 0; !c->beta.at && t < n; t++) to[t] = 1;
    for (int64_t t = 0; c->beta.at && c->sigmoid && t < n; t += MN_W)
        vf_store(to + t, (float)c->sigmoid * vf_sigmoid(vf_load(to + t)));
}

/* From the gradients of n log decays; `gate` sums those of A_log and dt_bias. */
MN_INLINE void mn_put_decays(const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first, int64_t n,
                             int64_t head, const float *decays, double *gate) {
    float found[MN_TOKENS], of_rate[MN_TOKENS], inputs[MN_TOKENS];
    if (!g->dg.at) return;
    memcpy(found, decays, sizeof found);
    if (c->gate) {
        vf rate = vf_set(mn_gate_rate(c, head));
        mn_gate_inputs(inputs, c, row, first, n, head);
        for (int64_t t = 0; t < n; t += MN_W) {
            vf x = vf_load(inputs + t), d = vf_load(found + t) * rate;
            vf_store(of_rate + t, d * vf_softplus(x));
            vf_store(found + t, d * vf_sigmoid(x));
        }
        for (int64_t t = 0; t < n; t++) gate[0] += (double)of_rate[t], gate[1] += (double)found[t];
    }
    for (int64_t t = 0; t < n; t++)
        mn_write_one(mn_base(&g->dg), mn_place(&g->dg, row, first + t, head), found[t], (int)g->dg.dtype);
}
MN_INLINE void mn_put_strengths(const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first, int64_t n,
                                int64_t head, const float *dbeta) {
    float found[MN_TOKENS], inputs[MN_TOKENS];
    if (!g->dbeta.at) return;
    memcpy(found, dbeta, sizeof found);
    if (c->sigmoid) {
        mn_get_ones(inputs, &c->beta, row, first, n, head);
        for (int64_t t = 0; t < n; t += MN_W) {
            vf s = vf_sigmoid(vf_load(inputs + t));
            vf_store(found + t, vf_load(found + t) * ((float)c->sigmoid * s * (1.0f - s)));
        }
    }
    for (int64_t t = 0; t < n; t++)
        mn_write_one(mn_base(&g->dbeta), mn_place(&g->dbeta, row, first + t, head), found[t], (int)g->dbeta.dtype);
}

/* KDA: what multiplies a channel's softplus, or within the sigmoid its input. */
MN_INLINE float mn_channel_rate(const mn_rule *c, int64_t head) {
    if (c->gate == MN_SOFTPLUS) return mn_gate_rate(c, head);
    return c->A_log.at ? expf(mn_one(&c->A_log, 0, 0, head)) : 1;
}

/* KDA: log decays of n tokens from their pre-activations g, to which the bias [Kp] is added first: inputs [n, Kp]. They
 * are put into `to` [n, Kp], which may be g. */
static __attribute__((noinline, unused)) mn_from mn_open_channels(const mn_rule *c, int64_t head, int64_t n, mn_from g,
                                                                  float *to, float *inputs, float *bias) {
    int64_t Kp = mn_whole(c->K);
    float rate = mn_channel_rate(c, head), bound = (float)c->lower_bound;
    if (c->dt_bias.at) mn_get(bias, &c->dt_bias, 0, 0, head, c->K);
    else mn_zero(bias, Kp);
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < Kp; j += MN_W) {
            vf x = vf_load(g.at + t * g.step + j) + vf_load(bias + j);
            vf_store(inputs + t * Kp + j, x);
            vf_store(to + t * Kp + j, c->gate == MN_SOFTPLUS ? rate * vf_softplus(x) : bound * vf_sigmoid(rate * x));
        }
    return (mn_from){to, Kp};
}

/* KDA: gradients of log decays dg [n, Kp] become those of pre-activations. `sums` [1 + Kp] adds up those of A_log and
 * dt_bias: of a few tokens in float, of all in double. */
static __attribute__((noinline, unused)) void mn_close_channels(const mn_rule *c, int64_t head, int64_t n,
                                                                const float *inputs, float *dg, double *sums) {
    int64_t Kp = mn_whole(c->K);
    float rate = mn_channel_rate(c, head), bound = (float)c->lower_bound;
    vf of_rate = {0};
    for (int64_t j = 0; j < Kp; j += MN_W) {
        vf of_bias = {0};
        for (int64_t i = j; i < n * Kp; i += Kp) {
            vf x = vf_load(inputs + i), d = vf_load(dg + i);
            if (c->gate == MN_SOFTPLUS) {
                of_rate += d * (rate * vf_softplus(x));
                d *= rate * vf_sigmoid(x);
            } else {
                d *= bound * rate * (vf_sigmoid(rate * x) * vf_sigmoid(-rate * x));
                of_rate += d * x;
            }
            of_bias += d;
            vf_store(dg + i, d);
        }
        for (int64_t i = 0; i < MN_W; i++) sums[1 + j + i] += (double)of_bias[i];
    }
    sums[0] += (double)mn_sum(of_rate);
}

/* The sums of a value head over a sequence. */
MN_INLINE void mn_put_gate(const mn_rule *c, const mn_rule_grad *g, int64_t n, int64_t head, const double *sums) {
    int64_t count = c->rule == MN_KDA ? c->K : 1;
    if (g->dA_log.at) mn_write_one(mn_base(&g->dA_log), mn_place(&g->dA_log, n, 0, head), (float)sums[0], MN_F32);
    for (int64_t i = 0; g->ddt_bias.at && i < count; i++)
        mn_write_one(mn_base(&g->ddt_bias), mn_place(&g->ddt_bias, n, 0, head) + i * g->ddt_bias.channel,
                     (float)sums[1 + i], MN_F32);
}

#endif
