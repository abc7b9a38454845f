/* The job of the workers for a call over tokens: the call, and scratch memory for each slot. */
#ifndef MN_TOKEN_JOB_H
#define MN_TOKEN_JOB_H

#include "common/memory.h"
#include "rules/rule.h"

typedef struct {
    const mn_rule *call;
    const mn_rule_grad *grad; /* in the backward */
    float *scratch;
    int64_t floats; /* for each slot */
} mn_token_job;

enum { MN_MOST_W = 16, MN_MOST_SUMS = 5 };

/* Number of floats of a block of tokens, for any width of vectors. */
MN_INLINE int64_t mn_tokens_floats(int64_t K, int64_t V) { return MN_TOKENS * (7 * mn_padded(K) + mn_padded(V)); }
MN_INLINE int64_t mn_forward_floats(int64_t K, int64_t V) {
    return mn_tokens_floats(K, V) + (mn_padded(K) + 2 * MN_TOKENS) * mn_padded(V) + 2 * MN_MOST_W * mn_padded(K);
}

/* How many sums in double a value head has for the gradients of its gate's A_log and dt_bias. */
MN_INLINE int64_t mn_gate_sums(const mn_rule *c) { return !c->gate ? 0 : c->rule == MN_KDA ? 1 + mn_padded(c->K) : 2; }

/* The backward's: states before MN_TOKENS tokens, and the sums of the value heads of a query head (`walk_back.h`). */
enum { MN_BLOCKS = MN_KEPT / MN_TOKENS };
MN_INLINE int64_t mn_walk_floats(const mn_rule *c) {
    int64_t K = mn_padded(c->K), group = c->HV / c->H;
    return (MN_BLOCKS + group) * K * mn_padded(c->V) + (group > 1 ? MN_KEPT * 2 * K : 0) +
           mn_padded(2 * group * mn_gate_sums(c));
}
MN_INLINE int64_t mn_chunk_floats(int64_t K, int64_t V) { return MN_TOKENS * (5 * mn_padded(K) + 6 * mn_padded(V)); }

/* The same for the backward of KDA and DPLR: a block of tokens (`gradients.h`), a chunk (`channel_chunk.h`), two
 * states. */
MN_INLINE int64_t mn_channel_floats(int64_t K, int64_t V) {
    int64_t Kp = mn_padded(K), Vp = mn_padded(V);
    return mn_tokens_floats(K, V) + MN_TOKENS * (5 * Vp + 5 * Kp) + MN_MOST_W * MN_MOST_W * MN_MOST_SUMS +
           (MN_TOKENS + 1) * Kp * 4 * MN_MOST_W + MN_TOKENS * (14 * Kp + 6 * Vp) + 4 * Kp + 2 * Kp * Vp;
}

/* Item i of a job: (sequence, value head) in forward and step, (sequence, query head) in the backward. */
MN_KERNEL(mn_token_forward, (const void *job, int64_t begin, int64_t end, int slot))
MN_KERNEL(mn_chunk_backward, (const void *job, int64_t begin, int64_t end, int slot))
MN_KERNEL(mn_channel_backward, (const void *job, int64_t begin, int64_t end, int slot))
/* T = 1: */
MN_KERNEL(mn_token_step, (const void *job, int64_t begin, int64_t end, int slot))

#endif
