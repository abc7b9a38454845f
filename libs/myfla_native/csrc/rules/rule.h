/* The delta rules, token by token over the state S [K, V] of one head:
 *
 *     gated, KDA   S <- d S;  e = v - S^T k;  u = beta e;  S <- S + k u^T;               o = S^T q
 *     DPLR         u = S^T a;                 S <- d S + b u^T + k v^T;                  o = S^T q
 *
 * with d = exp(g): a number (gated delta rule) or one for each key channel (KDA, DPLR, RWKV-7); q includes the scale.
 *
 * N sequences, T tokens of a dense one, H query heads, HV value heads, K key and V value channels; Kp and Vp are K and
 * V rounded up to whole vectors, the rest zero. */
#ifndef MN_RULE_H
#define MN_RULE_H

#include "common/mn.h"
#include "common/pick.h"

enum { MN_GATED = 0, MN_KDA = 1, MN_DPLR = 2 };
enum { MN_SOFTPLUS = 1, MN_BOUNDED = 2 }; /* gates */

/* A tensor [row, token, head, channel], or a state [sequence, head, key, value]. Strides count elements. */
typedef struct {
    int64_t at; /* address, or 0 */
    int64_t row, token, head, channel;
    int64_t dtype;
} mn_tensor;

/* One call. Every field has eight bytes, so that the caller packs it without a compiler's layout rules. */
typedef struct {
    int64_t rule, N, T, H, HV, K, V;
    int64_t cu_seqlens; /* address of [N + 1] int64 for sequences packed in one row, or 0 */
    int64_t l2norm;     /* q and k are divided by sqrt(sum of squares + 1e-6) first */
    int64_t gate;       /* g is a pre-activation. MN_SOFTPLUS: g = -exp(A_log) softplus(g + dt_bias); KDA also has
                           MN_BOUNDED: g = lower_bound sigmoid(exp(A_log) (g + dt_bias)) */
    int64_t sigmoid;    /* beta is a pre-activation: 1: sigmoid(beta), 2: twice that */
    int64_t threads;
    double scale, lower_bound;
    mn_tensor q, k, v;        /* [.., H, K], [.., H, K], [.., HV, V] */
    mn_tensor g;              /* [.., HV] or [.., HV, K] */
    mn_tensor beta;           /* [.., HV]; DPLR: a [.., H, K] */
    mn_tensor b;              /* DPLR: [.., H, K] */
    mn_tensor A_log, dt_bias; /* [HV], KDA's dt_bias [HV, K]; only with gate; MN_BOUNDED: either may be missing,
                                 else dt_bias */
    mn_tensor initial, final; /* [N, HV, K, V]; float32 final, any initial; either may be missing, or be the other */
    mn_tensor o;              /* [.., HV, V] */
    mn_tensor error;          /* e (DPLR: u) [.., HV, V] in float32, kept for the backward; may be missing */
    mn_tensor kept;           /* states [slot, HV, K, V] in float32, with error: see mn_slot */
} mn_rule;

/* The forward keeps the state after every MN_KEPT tokens for the backward, which computes those between again. */
enum { MN_KEPT = 128 };
enum { MN_TOKENS = 16 }; /* tokens that are prepared at a time */

/* The tensors of the backward besides those of the call: gradients in the shapes of their tensors. */
typedef struct {
    mn_rule call;
    mn_tensor go, gfinal;                /* of the outputs; either may be missing */
    mn_tensor dq, dk, dv, dg, dbeta, db; /* dbeta: da for DPLR; all are written completely */
    mn_tensor dA_log, ddt_bias;          /* float32 [N, HV], KDA's ddt_bias [N, HV, K]: of each sequence; with gate */
    mn_tensor dinitial;                  /* float32; may be missing */
} mn_rule_grad;

/* See rules.c. */
MN_API int mn_rule_forward(const mn_rule *call);
MN_API int mn_rule_step(const mn_rule *call);
MN_API int mn_rule_backward(const mn_rule_grad *grad);

/* The number of tokens of sequence n, and the place of its first one. */
MN_INLINE void mn_span(const mn_rule *c, int64_t n, int64_t *row, int64_t *first, int64_t *tokens) {
    const int64_t *cu = (const int64_t *)(intptr_t)c->cu_seqlens;
    *row = cu ? 0 : n;
    *first = cu ? cu[n] : 0;
    *tokens = cu ? cu[n + 1] - cu[n] : c->T;
}

/* Where the state after i * MN_KEPT tokens of sequence n is kept, i > 0. There are N (T / MN_KEPT) slots, for packed
 * sequences T / MN_KEPT + N. */
MN_INLINE int64_t mn_slot(const mn_rule *c, int64_t n, int64_t i) {
    const int64_t *cu = (const int64_t *)(intptr_t)c->cu_seqlens;
    return (cu ? cu[n] / MN_KEPT + n : n * (c->T / MN_KEPT)) + i - 1;
}

#endif
