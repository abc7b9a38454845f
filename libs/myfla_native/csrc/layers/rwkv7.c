#include "common/floats.h"
#include "common/memory.h"
#include "layers/steps.h"
#include "modules/norm.h"

MN_API int mn_rwkv7_mix_step(
    const void *x, int dtype, const void *last, int last_dtype, const void *r, const void *w, const void *k,
    const void *v, const void *a, const void *g, int mix_dtype, int64_t N, int64_t D, void *y, void *now, int threads) {
    mn_rwkv7_mix job = {x, last, {r, w, k, v, a, g}, y, now, N, D, dtype, last_dtype, mix_dtype};
    mn_parallel((mn_task)MN_PICK(rwkv7_mix), &job, N, mn_max(1, (1 << 13) / D), threads);
    return MN_DONE;
}

static mn_tensor of(const float *x, int64_t D, int64_t size) {
    return (mn_tensor){(int64_t)(intptr_t)x, D, D, size, 1, MN_F32};
}

MN_API int mn_rwkv7_layer_step(const mn_rwkv7_step *given) {
    mn_rwkv7_step c = *given;
    mn_rule *rule = &c.rule;
    int64_t N = rule->N, H = rule->H, D = H * rule->K, E = H * rule->V, threads = rule->threads;
    int64_t piece = mn_max(1, (1 << 12) / (D + E));
    float *parameters = mn_alloc(3 * D * 4), *own = mn_alloc(N * (5 * D + 3 * E) * 4);
    int status = parameters && own ? MN_DONE : MN_NO_MEMORY;
    if (!status) {
        int64_t from[3] = {c.k_k, c.k_a, c.r_k};
        for (int i = 0; i < 3; i++) {
            mn_floats job = {(const void *)(intptr_t)from[i], parameters + i * D, 1, D, (int)c.parameter_dtype};
            MN_PICK(as_floats)(&job, 0, D, 0);
        }
        c.parameters = parameters, c.own = own;
        mn_parallel((mn_task)MN_PICK(rwkv7_before), &c, N, piece, (int)threads);
        float *values = own + N * 5 * D;
        rule->g = of(own, D, rule->K), rule->beta = of(own + N * D, D, rule->K), rule->b = of(own + 2 * N * D, D, rule->K);
        rule->k = of(own + 3 * N * D, D, rule->K);
        rule->v = of(values, E, rule->V), rule->o = of(values + N * E, E, rule->V);
        status = mn_rule_step(rule);
    }
    if (!status) {
        float *o = own + N * (5 * D + E);
        status = mn_norm_forward(
            o, E, MN_F32, NULL, 0, 0, 0, (const void *)(intptr_t)c.norm_weight, (int)c.parameter_dtype,
            (const void *)(intptr_t)c.norm_bias, (int)c.parameter_dtype, N, E, H, c.norm_eps, 0, 1, o + N * E, MN_F32,
            NULL, NULL, (int)threads);
    }
    if (!status) mn_parallel((mn_task)MN_PICK(rwkv7_after), &c, N, piece, (int)threads);
    mn_free(parameters);
    mn_free(own);
    return status;
}
