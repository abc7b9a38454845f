/* The gate and the write strength of tokens of one head, and their gradients. For `*.kernel.c` only. */
#ifndef MN_GATES_H
#define MN_GATES_H

#include "rules/rows.h"

MN_INLINE float mn_softplus(float x) { return x > 20 ? x : log1pf(expf(x)); }
MN_INLINE float mn_sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* The input of the gate's activation. */
MN_INLINE float mn_gate_input(const mn_rule *c, int64_t row, int64_t token, int64_t head) {
    float g = mn_one(&c->g, row, token, head);
    return c->dt_bias.at ? g + mn_one(&c->dt_bias, 0, 0, head) : g;
}
MN_INLINE float mn_gate_rate(const mn_rule *c, int64_t head) { return -expf(mn_one(&c->A_log, 0, 0, head)); }

MN_INLINE float mn_log_decay(const mn_rule *c, int64_t row, int64_t token, int64_t head) {
    if (!c->g.at) return 0;
    if (!c->gate) return mn_one(&c->g, row, token, head);
    return mn_gate_rate(c, head) * mn_softplus(mn_gate_input(c, row, token, head));
}
MN_INLINE float mn_strength(const mn_rule *c, int64_t row, int64_t token, int64_t head) {
    if (!c->beta.at) return 1;
    float beta = mn_one(&c->beta, row, token, head);
    return c->sigmoid ? (float)c->sigmoid * mn_sigmoid(beta) : beta;
}

/* From the gradient of the log decay; `gate` sums those of A_log and dt_bias. */
MN_INLINE void mn_put_decay(const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t token, int64_t head,
                            float decay, double *gate) {
    if (c->gate) {
        float x = mn_gate_input(c, row, token, head), rate = mn_gate_rate(c, head);
        gate[0] += (double)(decay * rate * mn_softplus(x));
        decay *= rate * mn_sigmoid(x);
        gate[1] += (double)decay;
    }
    mn_write_one(mn_base(&g->dg), mn_place(&g->dg, row, token, head), decay, (int)g->dg.dtype);
}

/* KDA: what multiplies a channel's softplus, or within the sigmoid its input. */
MN_INLINE float mn_channel_rate(const mn_rule *c, int64_t head) {
    if (c->gate == MN_SOFTPLUS) return mn_gate_rate(c, head);
    return c->A_log.at ? expf(mn_one(&c->A_log, 0, 0, head)) : 1;
}

/* KDA: log decays g [n, Kp] from pre-activations, to which the bias [Kp] is added first: inputs [n, Kp]. */
static __attribute__((noinline, unused)) void mn_open_channels(const mn_rule *c, int64_t head, int64_t n, float *g,
                                                               float *inputs, float *bias) {
    int64_t Kp = mn_whole(c->K);
    float rate = mn_channel_rate(c, head), bound = (float)c->lower_bound;
    if (c->dt_bias.at) mn_get(bias, &c->dt_bias, 0, 0, head, c->K);
    else mn_zero(bias, Kp);
    for (int64_t i = 0; i < n * Kp; i += Kp)
        for (int64_t j = 0; j < Kp; j += MN_W) {
            vf x = vf_load(g + i + j) + vf_load(bias + j);
            vf_store(inputs + i + j, x);
            vf_store(g + i + j, c->gate == MN_SOFTPLUS ? rate * vf_softplus(x) : bound * vf_sigmoid(rate * x));
        }
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
MN_INLINE void mn_put_strength(const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t token, int64_t head,
                               float dbeta) {
    if (c->sigmoid) {
        float s = mn_sigmoid(mn_one(&c->beta, row, token, head));
        dbeta *= (float)c->sigmoid * s * (1 - s);
    }
    mn_write_one(mn_base(&g->dbeta), mn_place(&g->dbeta, row, token, head), dbeta, (int)g->dbeta.dtype);
}

#endif
