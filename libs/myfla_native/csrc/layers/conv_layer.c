#include "common/memory.h"
#include "layers/steps.h"

int mn_rule_step(const mn_rule *call);
int mn_norm_forward(
    const void *h, int64_t h_row, int h_dtype, const void *g, int64_t g_row, int g_dtype, int gate, const void *weight,
    int weight_dtype, const void *bias, int bias_dtype, int64_t rows, int64_t D, int64_t groups, double eps,
    int unit_length, int centred, void *y, int y_dtype, float *mean, float *rstd, int threads);

/* The convolution of q, k or v, whose result replaces it in the call. */
static void convolve(const mn_conv_layer *c, int which, mn_tensor *x, int64_t heads, int64_t size, char *to) {
    int64_t D = heads * size;
    mn_conv_step job = {(const void *)(intptr_t)x->at, &c->parts[which], to, D, c->W, x->row, (int)x->dtype,
                        (int)c->weight_dtype, (int)c->bias_dtype};
    mn_parallel((mn_task)MN_PICK(conv_step), &job, c->rule.N, mn_max(1, (1 << 14) / D), (int)c->rule.threads);
    *x = (mn_tensor){(int64_t)(intptr_t)to, D, D, size, 1, x->dtype};
}

MN_API int mn_conv_layer_step(const mn_conv_layer *c) {
    mn_rule rule = c->rule;
    int dtype = (int)rule.v.dtype;
    int64_t N = rule.N, V = rule.V, keys = N * rule.H * rule.K * mn_width(dtype), values = N * rule.HV * V * mn_width(dtype);
    char *room = mn_alloc(2 * keys + 2 * values);
    if (!room) return MN_NO_MEMORY;
    convolve(c, 0, &rule.q, rule.H, rule.K, room);
    convolve(c, 1, &rule.k, rule.H, rule.K, room + keys);
    convolve(c, 2, &rule.v, rule.HV, V, room + 2 * keys);
    char *o = room + 2 * keys + values;
    rule.o = (mn_tensor){(int64_t)(intptr_t)o, rule.HV * V, rule.HV * V, V, 1, dtype};
    int status = mn_rule_step(&rule);
    if (!status)
        status = mn_norm_forward(
            o, V, dtype, (const void *)(intptr_t)c->gate, V, dtype, (int)c->activation, (const void *)(intptr_t)c->norm,
            (int)c->norm_dtype, NULL, MN_F32, N * rule.HV, V, 1, c->eps, 0, 0, (void *)(intptr_t)c->y, dtype, NULL, NULL,
            (int)rule.threads);
    mn_free(room);
    return status;
}
