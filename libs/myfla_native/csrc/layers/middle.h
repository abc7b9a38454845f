/* Whole sequences of a layer, from the results of its projections to the input of its output projection, and the
 * gradients: convolutions of q, k and v, the gated rule or KDA with q and k of length one, a norm with or without gate.
 * Everything is float32. All fields have eight bytes. */
#ifndef MN_MIDDLE_H
#define MN_MIDDLE_H

#include "rules/rule.h"

/* A projection's result, or its gradient [N, T, channels], of packed sequences [T, channels]: tokens lie `token` floats
 * apart. */
typedef struct {
    int64_t at, token;
} mn_projected;

typedef struct {
    mn_projected q, k, v, gate; /* before the convolutions; before the activation of the norm's gate, or missing */
    mn_projected g, beta;       /* [.., HV], KDA: g [.., HV * K]; either may be missing */
} mn_projections;

/* Parameters or their gradients, addresses: of convolutions [D, W], their biases [D] or 0, the gate's A_log [HV] and
 * dt_bias [HV], KDA's [HV * K], or 0; the norm's weight [V] or 0. */
typedef struct {
    int64_t taps[3], biases[3], A_log, dt_bias, norm;
} mn_middle_parameters;

typedef struct {
    int64_t N, T, H, HV, K, V, W, silu;
    int64_t offsets;                /* address of [N + 1] for packed sequences with T tokens together, or 0 */
    int64_t rule, gate, sigmoid;    /* as in mn_rule */
    int64_t activation;             /* of the norm's gate */
    int64_t threads;
    double scale, lower_bound, eps; /* eps: of the norm */
    mn_projections x;
    mn_middle_parameters p;
    int64_t kept;                   /* what the backward needs, in the order of `mn_middle_rooms` */
    int64_t y;                      /* [N, T, HV * V] */
} mn_middle;

typedef struct {
    mn_middle call;
    int64_t dy, room;        /* [N, T, HV * V]; the second receives the gradients before the norm, it may be dy */
    mn_projections dx;       /* receive the gradients */
    mn_middle_parameters dp; /* the same; 0 where the parameter is missing */
} mn_middle_grad;

#endif
