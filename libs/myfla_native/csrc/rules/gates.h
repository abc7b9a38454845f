/* The gate and the write strength of one token and head, and their gradients. For `*.kernel.c` only. */
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
MN_INLINE void mn_put_gate(const mn_rule *c, const mn_rule_grad *g, int64_t n, int64_t head, const double *gate) {
    (void)c;
    if (g->dA_log.at) mn_write_one(mn_base(&g->dA_log), mn_place(&g->dA_log, n, 0, head), (float)gate[0], MN_F32);
    if (g->ddt_bias.at) mn_write_one(mn_base(&g->ddt_bias), mn_place(&g->ddt_bias, n, 0, head), (float)gate[1], MN_F32);
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
