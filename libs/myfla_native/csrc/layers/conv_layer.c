#include <math.h>
#include <string.h>

#include "common/memory.h"
#include "layers/steps.h"
#include "modules/norm.h"

/* The convolution of q, k or v, whose result [N, tokens, heads, size] replaces it in the call. */
static void convolve(const mn_conv_layer *c, int which, mn_tensor *x, int64_t tokens, int64_t heads, int64_t size,
                     char *to) {
    int64_t D = tokens * heads * size;
    mn_conv_step job = {(const void *)(intptr_t)x->at, &c->parts[which], to, D, c->W, x->row, (int)x->dtype,
                        (int)c->weight_dtype, (int)c->bias_dtype};
    mn_parallel((mn_task)MN_PICK(conv_step), &job, c->rule.N, mn_max(1, (1 << 14) / D), (int)c->rule.threads);
    *x = (mn_tensor){(int64_t)(intptr_t)to, D, heads * size, size, 1, x->dtype};
}

/* One q, one g and one o for T tokens: all have the same q, the first one has g, o of the last one stays. Where g is a
 * pre-activation, minus infinity is no decay. */
static void spread(mn_rule *rule, char *g) {
    int64_t N = rule->N, T = rule->T, HV = rule->HV, width = mn_width((int)rule->g.dtype);
    const float none = rule->gate ? -INFINITY : 0;
    const uint16_t half = !rule->gate ? 0 : rule->g.dtype == MN_BF16 ? 0xff80 : 0xfc00;
    rule->q.token = rule->o.token = 0;
    if (!rule->g.at) return;
    const void *fill = width == 4 ? (const void *)&none : &half;
    for (int64_t i = 0; i < N * T * HV; i++) memcpy(g + i * width, fill, (size_t)width);
    for (int64_t n = 0; n < N; n++)
        memcpy(g + n * T * HV * width, (const char *)(intptr_t)rule->g.at + n * HV * width, (size_t)(HV * width));
    rule->g = (mn_tensor){(int64_t)(intptr_t)g, T * HV, HV, 1, 0, rule->g.dtype};
}

static int64_t mix_floats(const mn_rule *c, int64_t pairs) {
    int64_t keys = mn_padded(c->K), values = mn_padded(c->V);
    return c->N * c->HV * (4 * keys + values) + mn_slots(c->N * c->H, pairs, (int)c->threads) * mn_max(keys, values);
}

/* Comba, Gated DeltaNet 2: the call becomes one of the DPLR rule. */
static void mix(const mn_conv_layer *c, mn_rule *rule, float *room, int64_t pairs) {
    int64_t keys = mn_padded(rule->K), values = mn_padded(rule->V), heads = rule->N * rule->HV, rows = heads * keys;
    mn_mix job = {c, rule, room, room + rows, room + 2 * rows, room + 3 * rows, room + 4 * rows,
                  room + 4 * rows + heads * values, keys, values};
    mn_parallel((mn_task)MN_PICK(mix), &job, rule->N * rule->H, pairs, (int)rule->threads);
    mn_tensor row = {0, rule->HV * keys, rule->HV * keys, keys, 1, MN_F32};
    rule->q = rule->k = rule->g = rule->beta = rule->b = row;
    rule->q.at = (int64_t)(intptr_t)job.q, rule->k.at = rule->b.at = (int64_t)(intptr_t)job.k;
    rule->beta.at = (int64_t)(intptr_t)job.a, rule->g.at = (int64_t)(intptr_t)job.g;
    if (c->mix == MN_GDN2)
        rule->v = (mn_tensor){(int64_t)(intptr_t)job.v, rule->HV * values, rule->HV * values, values, 1, MN_F32};
    rule->H = rule->HV;
    rule->l2norm = rule->gate = rule->sigmoid = 0;
}

MN_API int mn_conv_layer_step(const mn_conv_layer *c) {
    mn_rule rule = c->rule;
    int dtype = (int)rule.v.dtype, width = (int)mn_width(dtype);
    int64_t N = rule.N, T = rule.T, V = rule.V, pairs = mn_max(1, (1 << 12) / mn_max(rule.K, V));
    int64_t queries = N * rule.H * rule.K * width, values = N * rule.HV * V * width;
    int64_t floats = c->mix ? mix_floats(&rule, pairs) : T > 1 ? N * T * rule.HV : 0;
    char *room = mn_alloc(floats * 4 + (1 + T) * (queries + values));
    if (!room) return MN_NO_MEMORY;
    char *q = room + floats * 4, *k = q + queries, *v = k + T * queries, *o = v + T * values;
    convolve(c, 0, &rule.q, 1, rule.H, rule.K, q);
    convolve(c, 1, &rule.k, T, rule.H, rule.K, k);
    convolve(c, 2, &rule.v, T, rule.HV, V, v);
    rule.o = (mn_tensor){(int64_t)(intptr_t)o, rule.HV * V, rule.HV * V, V, 1, dtype};
    if (T > 1) spread(&rule, room);
    if (c->mix) mix(c, &rule, (float *)(void *)room, pairs);
    int status = mn_rule_forward(&rule);
    if (!status)
        status = mn_norm_forward(
            o, V, dtype, (const void *)(intptr_t)c->gate, V, dtype, (int)c->activation, (const void *)(intptr_t)c->norm,
            (int)c->norm_dtype, NULL, MN_F32, N * rule.HV, V, 1, c->eps, 0, 0, (void *)(intptr_t)c->y, dtype, NULL,
            NULL, (int)rule.threads);
    mn_free(room);
    return status;
}
