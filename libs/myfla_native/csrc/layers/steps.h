/* One token of a whole layer for each of N rows, from the results of its projections to the input of its output
 * projection. */
#ifndef MN_STEPS_H
#define MN_STEPS_H

#include "modules/conv.h"
#include "rules/rule.h"

/* A convolution's step: y = act(conv(x)) and the state with one more input. */
typedef struct {
    int64_t weight, bias; /* addresses of [D, W] and [D]; no bias: 0 */
    int64_t state, row;   /* of [N, D, W] in the dtype of x; the distance of its rows in elements */
    int64_t final;        /* of [N, D, W] in the dtype of x; other memory than the old one */
    int64_t silu;
} mn_conv_part;

/* What becomes of the convolutions' results before a rule reads them. For each query head, |.| a row over its length,
 *
 *     MN_COMBA  p = k sigmoid(inner), q <- q - output p;  DPLR with q = |q|, a = -|p|, b = k = beta |k|
 *     MN_GDN2   q, k <- |q|, |k|;  DPLR with a = -(erase k) e^g, b = k, v = v sigmoid(write)
 *
 * where g, beta and erase are the rule's g, beta and b behind their activations. */
enum { MN_COMBA = 1, MN_GDN2 = 2 };

/* Convolutions of q, k and v, a rule, a norm with or without gate. The gated rule may take T keys, values and betas for
 * one query and decay (products of Householder matrices). All fields have eight bytes. */
typedef struct {
    mn_rule rule; /* its q, k and v are the inputs of the convolutions: rows [T * heads * channels] without gaps */
    mn_conv_part parts[3];
    int64_t W, weight_dtype, bias_dtype;
    int64_t gate, activation; /* [N, HV * V] in the dtype of v, or 0; `MN_SILU`, `MN_SIGMOID` */
    int64_t norm, norm_dtype; /* [V] or 0 */
    int64_t y;                /* [N, HV * V] in the dtype of v */
    double eps;
    int64_t mix;              /* MN_COMBA, MN_GDN2 or 0 */
    mn_tensor write;          /* [N, HV, V], MN_GDN2 */
    mn_tensor inner, output;  /* [H] by `head`, MN_COMBA; either may be missing */
} mn_conv_layer;

/* That, and where it puts its rows: of every value head and row padded to whole cache lines. */
typedef struct {
    const mn_conv_layer *layer;
    const mn_rule *rule; /* with the convolutions' results */
    float *q, *k, *a, *g, *v, *own;
    int64_t keys, values; /* floats from one head to the next: of q, k, a and g; of v and own, one row for each thread */
} mn_mix;

/* RWKV-7: with rate = sigmoid(a), per head kk = k k_k / |k k_k|,
 *     v <- v + (v_first - v) sigmoid(v_gate);  g = strongest sigmoid(w);  a <- -kk, b = kk rate, k <- k (1 + (rate - 1) k_a)
 *     y = (groupnorm(o) + (sum r k r_k) v) gate
 * around the rule. Every [N, D] is without gaps; rows of keys are H * K long, of values H * V. */
typedef struct {
    mn_rule rule;                 /* with tensors q (r), k, v, initial and final; k and v as before these formulas */
    int64_t w, a, gate;           /* [N, H K], [N, H K], [N, H V]: before their activations; the gate after it */
    int64_t v_first, v_gate;      /* [N, H V], or 0 both */
    int64_t dtype;                /* of all above */
    int64_t k_k, k_a, r_k;        /* [H K] */
    int64_t norm_weight, norm_bias; /* [H V] or 0 */
    int64_t parameter_dtype;
    int64_t y;                    /* [N, H V] in `dtype` */
    double norm_eps, unit_eps;    /* unit_eps: added to |k k_k|^2; below 0: lengths under 1e-12 count as 1e-12 */
    float *own;                   /* [N, 5 H K + 3 H V]: log decay, a, b, k, r k r_k; v, o, its norm; made here */
    const float *parameters;      /* k_k, k_a, r_k as floats, made here */
} mn_rwkv7_step;

/* Six mixtures of a token with the one before it: x + (last - x) mix. */
typedef struct {
    const void *x, *last, *mix[6]; /* [N, D], [N, D] or NULL, [D] */
    void *y, *now;                 /* [6, N, D], and x again [N, D] */
    int64_t N, D;
    int dtype, last_dtype, mix_dtype;
} mn_rwkv7_mix;

typedef struct {
    const void *x;
    const mn_conv_part *part;
    void *y;
    int64_t D, W, row;
    int dtype, weight_dtype, bias_dtype;
} mn_conv_step;

MN_KERNEL(conv_step, (const mn_conv_step *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(mix, (const mn_mix *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(rwkv7_mix, (const mn_rwkv7_mix *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(rwkv7_before, (const mn_rwkv7_step *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(rwkv7_after, (const mn_rwkv7_step *a, int64_t begin, int64_t end, int slot))

#endif
