/* The operations around the rule in a layer of RWKV-7, for one token; the formulas are in `steps.h`. */
#include <math.h>

#include "common/load.h"
#include "common/row_sums.h"
#include "layers/steps.h"

#define READ(p, i, dtype) (m == MN_W ? vf_read(p, i, dtype) : vf_read_n(p, i, m, dtype))
#define WRITE(p, i, x, dtype) (m == MN_W ? vf_write(p, i, x, dtype) : vf_write_n(p, i, x, m, dtype))
#define AT(address) ((const void *)(intptr_t)(address))

static const float strongest = -0.6065306597126334f, shortest = 1e-12f;

void MN_VARIANT(rwkv7_mix)(const mn_rwkv7_mix *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    for (int64_t n = begin; n < end; n++)
        for (int64_t j = 0; j < a->D; j += MN_W) {
            int64_t m = mn_min(MN_W, a->D - j), at = n * a->D + j;
            vf x = READ(a->x, at, a->dtype), last = {0};
            if (a->last) last = READ(a->last, at, a->last_dtype);
            WRITE(a->now, at, x, a->dtype);
            for (int64_t i = 0; i < 6; i++)
                WRITE(a->y, i * a->N * a->D + at, x + (last - x) * READ(a->mix[i], j, a->mix_dtype), a->dtype);
        }
}

/* Log decay, a, b and k of one head. */
MN_INLINE void keys(const mn_rwkv7_step *c, int64_t n, int64_t head, int dtype) {
    int64_t N = c->rule.N, K = c->rule.K, D = c->rule.H * K, first = head * K;
    const void *k = AT(c->rule.k.at);
    const float *k_k = c->parameters + first, *k_a = k_k + D, *r_k = k_a + D;
    float *g = c->own + n * D + first, *remove = g + N * D, *replace = remove + N * D, *key = replace + N * D;
    vf squares = {0}, bonus = {0};
    for (int64_t j = 0; j < K; j += MN_W) {
        int64_t m = mn_min(MN_W, K - j), at = n * D + first + j;
        vf x = READ(k, n * c->rule.k.row + first + j, dtype), unit = x * READ(k_k, j, MN_F32);
        vf rate = vf_sigmoid(READ(AT(c->a), at, dtype));
        vf written = x * (1.0f + (rate - 1.0f) * READ(k_a, j, MN_F32));
        squares += unit * unit;
        bonus += READ(AT(c->rule.q.at), n * c->rule.q.row + first + j, dtype) * written * READ(r_k, j, MN_F32);
        WRITE(g, j, vf_sigmoid(READ(AT(c->w), at, dtype)) * strongest, MN_F32);
        WRITE(remove, j, unit, MN_F32);
        WRITE(replace, j, rate, MN_F32);
        WRITE(key, j, written, MN_F32);
    }
    float square = mn_sum(squares), eps = (float)c->unit_eps;
    float inverse = eps < 0 ? 1 / fmaxf(sqrtf(square), shortest) : 1 / sqrtf(square + eps);
    c->own[N * 4 * D + n * c->rule.H + head] = mn_sum(bonus);
    for (int64_t j = 0; j < K; j += MN_W) {
        int64_t m = mn_min(MN_W, K - j);
        vf unit = READ(remove, j, MN_F32) * inverse;
        WRITE(remove, j, -unit, MN_F32);
        WRITE(replace, j, READ(replace, j, MN_F32) * unit, MN_F32);
    }
}

void MN_VARIANT(rwkv7_before)(const mn_rwkv7_step *c, int64_t begin, int64_t end, int slot) {
    (void)slot;
    int dtype = (int)c->dtype;
    int64_t D = c->rule.H * c->rule.K, E = c->rule.H * c->rule.V;
    float *values = c->own + c->rule.N * 5 * D;
    for (int64_t n = begin; n < end; n++) {
        for (int64_t head = 0; head < c->rule.H; head++) {
            if (dtype == MN_F32) keys(c, n, head, MN_F32);
            else keys(c, n, head, dtype);
        }
        for (int64_t j = 0; j < E; j += MN_W) {
            int64_t m = mn_min(MN_W, E - j), at = n * E + j;
            vf v = READ(AT(c->rule.v.at), n * c->rule.v.row + j, dtype);
            if (c->v_gate) v += (READ(AT(c->v_first), at, dtype) - v) * vf_sigmoid(READ(AT(c->v_gate), at, dtype));
            WRITE(values, at, v, MN_F32);
        }
    }
}

void MN_VARIANT(rwkv7_after)(const mn_rwkv7_step *c, int64_t begin, int64_t end, int slot) {
    (void)slot;
    int64_t N = c->rule.N, H = c->rule.H, V = c->rule.V, D = H * c->rule.K, E = H * V;
    const float *values = c->own + N * 5 * D, *normed = values + 2 * N * E, *bonus = c->own + N * 4 * D;
    for (int64_t n = begin; n < end; n++)
        for (int64_t head = 0; head < H; head++)
            for (int64_t j = 0; j < V; j += MN_W) {
                int64_t m = mn_min(MN_W, V - j), at = n * E + head * V + j;
                vf y = READ(normed, at, MN_F32) + READ(values, at, MN_F32) * bonus[n * H + head];
                WRITE((void *)(intptr_t)c->y, at, y * READ(AT(c->gate), at, (int)c->dtype), (int)c->dtype);
            }
}
