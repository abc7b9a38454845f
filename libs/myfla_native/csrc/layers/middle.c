#include "layers/middle.h"

#include <string.h>

#include "common/memory.h"
#include "modules/conv.h"
#include "modules/norm.h"

/* Where parts of `kept` begin. */
typedef struct {
    float *convolved[3], *o, *rstd, *error, *states;
} mn_middle_rooms;

static float *at(int64_t address) { return (float *)(intptr_t)address; }

static int64_t tokens_of(const mn_middle *c) { return c->offsets ? c->T : c->N * c->T; }

static int64_t channels(const mn_middle *c, int part) { return part < 2 ? c->H * c->K : c->HV * c->V; }

static mn_middle_rooms rooms(const mn_middle *c) {
    int64_t tokens = tokens_of(c), keys = tokens * c->H * c->K, values = tokens * c->HV * c->V;
    float *q = at(c->kept), *k = q + keys, *v = k + keys, *o = v + values, *rstd = o + values;
    float *error = rstd + tokens * c->HV;
    return (mn_middle_rooms){{q, k, v}, o, rstd, error, error + values};
}

static mn_tensor rows(const float *x, int64_t T, int64_t token, int64_t size, int64_t channel) {
    return (mn_tensor){(int64_t)(intptr_t)x, T * token, token, size, channel, MN_F32};
}
static mn_tensor without_gaps(const mn_middle *c, const float *x, int64_t heads, int64_t size) {
    return rows(x, c->T, heads * size, size, 1);
}
static mn_tensor of(const mn_middle *c, const mn_projected *x, int64_t size, int64_t channel) {
    return x->at ? rows(at(x->at), c->T, x->token, size, channel) : (mn_tensor){0};
}
static mn_tensor of_gate(const mn_middle *c, const mn_projected *x) {
    return c->rule == MN_KDA ? of(c, x, c->K, 1) : of(c, x, 1, 0);
}

static mn_rule rule_of(const mn_middle *c, const mn_middle_rooms *r) {
    int64_t own = c->rule == MN_KDA ? c->K : 1;
    return (mn_rule){
        .rule = c->rule, .N = c->N, .T = c->T, .H = c->H, .HV = c->HV, .K = c->K, .V = c->V,
        .cu_seqlens = c->offsets, .l2norm = 1, .gate = c->gate, .sigmoid = c->sigmoid, .threads = c->threads, .scale = c->scale,
        .lower_bound = c->lower_bound, .q = without_gaps(c, r->convolved[0], c->H, c->K),
        .k = without_gaps(c, r->convolved[1], c->H, c->K), .v = without_gaps(c, r->convolved[2], c->HV, c->V),
        .g = of_gate(c, &c->x.g), .beta = of(c, &c->x.beta, 1, 0),
        .A_log = c->p.A_log ? (mn_tensor){c->p.A_log, 0, 0, 1, 1, MN_F32} : (mn_tensor){0},
        .dt_bias = c->p.dt_bias ? (mn_tensor){c->p.dt_bias, 0, 0, own, 1, MN_F32} : (mn_tensor){0},
        .o = without_gaps(c, r->o, c->HV, c->V), .error = without_gaps(c, r->error, c->HV, c->V),
        .kept = {(int64_t)(intptr_t)r->states, c->HV * c->K * c->V, c->V, c->K * c->V, 1, MN_F32}};
}

/* The norm's weight for the channels of all heads, or NULL. */
static const float *of_all_heads(const mn_middle *c, float *to) {
    for (int64_t h = 0; c->p.norm && h < c->HV; h++) memcpy(to + h * c->V, at(c->p.norm), (size_t)c->V * 4);
    return c->p.norm ? to : NULL;
}

MN_API int mn_middle_forward(const mn_middle *c) {
    mn_middle_rooms r = rooms(c);
    const mn_projected *x[] = {&c->x.q, &c->x.k, &c->x.v};
    const int64_t *offsets = (const int64_t *)(intptr_t)c->offsets;
    int64_t D = c->HV * c->V;
    int threads = (int)c->threads, status = MN_DONE;
    float *weight = mn_alloc(D * 4);
    if (!weight) return MN_NO_MEMORY;
    for (int i = 0; i < 3 && !status; i++)
        status = mn_conv_forward(at(x[i]->at), c->T * x[i]->token, x[i]->token, MN_F32, NULL, 0, 0, 0,
                                 at(c->p.taps[i]), MN_F32, at(c->p.biases[i]), MN_F32, NULL, 0, offsets, c->N, c->T,
                                 channels(c, i), c->W, (int)c->silu, r.convolved[i], NULL, 0, threads);
    mn_rule rule = rule_of(c, &r);
    if (!status) status = mn_rule_forward(&rule);
    if (!status)
        status = mn_norm_forward(r.o, D, MN_F32, at(c->x.gate.at), c->x.gate.token, MN_F32, (int)c->activation,
                                 of_all_heads(c, weight), MN_F32, NULL, MN_F32, tokens_of(c), D, c->HV, c->eps, 0, 0,
                                 at(c->y), MN_F32, NULL, r.rstd, threads);
    mn_free(weight);
    return status;
}

/* Gradients [n, apart] of parts of a call become that of the whole, [size]. */
static void add_up(int64_t to, const float *parts, int64_t n, int64_t apart, int64_t size) {
    if (to) memset(at(to), 0, (size_t)size * 4);
    for (int64_t i = 0; to && i < n; i++)
        for (int64_t j = 0; j < size; j++) at(to)[j] += parts[i * apart + j];
}

/* The gradient of the norm: to g->room, that of its gate, and of its weight. room: 3 HV V floats. */
static int norm_back(const mn_middle_grad *g, const mn_middle_rooms *r, float *room) {
    const mn_middle *c = &g->call;
    int64_t D = c->HV * c->V;
    float *found = g->dp.norm ? room + D : NULL;
    int status = mn_norm_backward(
        at(g->dy), D, MN_F32, r->o, D, MN_F32, at(c->x.gate.at), c->x.gate.token, MN_F32, (int)c->activation,
        of_all_heads(c, room), MN_F32, NULL, MN_F32, tokens_of(c), D, c->HV, 0, 0, NULL, r->rstd, at(g->room),
        at(g->dx.gate.at), g->dx.gate.token, found, (int)c->threads);
    if (!status) add_up(g->dp.norm, found, c->HV, c->V, c->V);
    return status;
}

/* Those of the rule, before which g->dx.q, k and v are those behind the convolutions. room: N HV (1 + own) floats. */
static int rule_back(const mn_middle_grad *g, const mn_middle_rooms *r, int64_t own, float *room) {
    const mn_middle *c = &g->call;
    const mn_projections *x = &g->dx;
    float *rates = room, *biases = room + c->N * c->HV;
    mn_rule_grad grad = {
        .call = rule_of(c, r), .go = without_gaps(c, at(g->room), c->HV, c->V), .dq = of(c, &x->q, c->K, 1),
        .dk = of(c, &x->k, c->K, 1), .dv = of(c, &x->v, c->V, 1), .dg = of_gate(c, &x->g),
        .dbeta = of(c, &x->beta, 1, 0)};
    if (g->dp.A_log) grad.dA_log = (mn_tensor){(int64_t)(intptr_t)rates, c->HV, 0, 1, 1, MN_F32};
    if (g->dp.dt_bias) grad.ddt_bias = (mn_tensor){(int64_t)(intptr_t)biases, c->HV * own, 0, own, 1, MN_F32};
    int status = mn_rule_backward(&grad);
    if (!status) {
        add_up(g->dp.A_log, rates, c->N, c->HV, c->HV);
        add_up(g->dp.dt_bias, biases, c->N, c->HV * own, c->HV * own);
    }
    return status;
}

/* Those of the convolution of q, k or v. room: (W + 1) D floats. */
static int conv_back(const mn_middle_grad *g, int part, float *room) {
    const mn_middle *c = &g->call;
    const mn_projected *x[] = {&c->x.q, &c->x.k, &c->x.v}, *dx[] = {&g->dx.q, &g->dx.k, &g->dx.v};
    const int64_t *offsets = (const int64_t *)(intptr_t)c->offsets;
    int64_t D = channels(c, part), W = c->W, apart = dx[part]->token;
    int status = mn_conv_backward(
        at(x[part]->at), c->T * x[part]->token, x[part]->token, MN_F32, at(dx[part]->at), c->T * apart, apart, MN_F32,
        at(c->p.taps[part]), MN_F32, at(c->p.biases[part]), MN_F32, NULL, 0, offsets, c->N, c->T, D, W, (int)c->silu,
        at(dx[part]->at), apart, room, NULL, (int)c->threads);
    if (status) return status;
    for (int64_t w = 0; w < W; w++)
        for (int64_t i = 0; i < D; i++) at(g->dp.taps[part])[i * W + W - 1 - w] = room[w * D + i];
    if (g->dp.biases[part]) memcpy(at(g->dp.biases[part]), room + W * D, (size_t)D * 4);
    return MN_DONE;
}

/* Everything of dx and dp is written. */
MN_API int mn_middle_backward(const mn_middle_grad *g) {
    const mn_middle *c = &g->call;
    mn_middle_rooms r = rooms(c);
    int64_t own = c->rule == MN_KDA ? c->K : 1, D = c->HV * c->V, widest = mn_max(c->H * c->K, D);
    float *room = mn_alloc(4 * mn_max(mn_max(3 * D, (c->W + 1) * widest), c->N * c->HV * (1 + own)));
    int status = room ? norm_back(g, &r, room) : MN_NO_MEMORY;
    if (!status) status = rule_back(g, &r, own, room);
    for (int i = 0; i < 3 && !status; i++) status = conv_back(g, i, room);
    mn_free(room);
    return status;
}
