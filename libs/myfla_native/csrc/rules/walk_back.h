/* The order of the backward pass, for every form: chunks of a sequence from the last to the first, and in each the
 * value heads of one query head. For `*.kernel.c` only.
 *
 * The forward has kept the state before every MN_KEPT tokens. The states before every MN_TOKENS of these are computed
 * again and used from the last to the first, while they stay in the cache. */
#ifndef MN_WALK_BACK_H
#define MN_WALK_BACK_H

#include "rules/gates.h"
#include "rules/token_job.h"

/* MN_TOKENS or, at the end of a sequence, `count` tokens of a value head. */
typedef struct {
    int64_t row, first, count, head;
} mn_part;

/* The state after whole MN_TOKENS tokens from S before. */
typedef void mn_advance(void *block, const mn_rule *c, mn_part at, const float *S, float *next);

/* Gradients of the tokens; D, that of the state after them, becomes that of S before. Value heads add the gradients of
 * shared q and k to `sums` [MN_TOKENS, 2, Kp] in a layout that each form chooses; the last head writes them. */
typedef void mn_retreat(void *block, const mn_rule *c, const mn_rule_grad *g, mn_part at, const float *S, float *D,
                        float *sums, double *gate);

/* How states lie in scratch memory. */
typedef void mn_read_state(float *S, const mn_tensor *x, int64_t n, int64_t head, int64_t K, int64_t V);
typedef void mn_write_state(const mn_tensor *x, int64_t n, int64_t head, const float *S, int64_t K, int64_t V);

/* Gradients of the value heads of query head `query` in sequence n. */
MN_INLINE void mn_walk_back(void *block, const mn_token_job *job, int64_t n, int64_t query, float *room,
                            mn_advance *advance, mn_retreat *retreat, mn_read_state *get, mn_write_state *put) {
    const mn_rule *c = job->call;
    const mn_rule_grad *g = job->grad;
    int64_t Kp = mn_whole(c->K), size = Kp * mn_whole(c->V), group = c->HV / c->H, row, first, tokens;
    float *states = room, *D = states + MN_BLOCKS * size, *sums = D + group * size;
    double *gate = (double *)(void *)(sums + (group > 1 ? MN_KEPT * 2 * Kp : 0));
    mn_span(c, n, &row, &first, &tokens);
    for (int64_t j = 0; j < group; j++) get(D + j * size, &g->gfinal, n, query * group + j, c->K, c->V);
    int64_t of_gate = mn_gate_sums(c);
    for (int64_t j = 0; j < group * of_gate; j++) gate[j] = 0;
    for (int64_t i = mn_blocks(tokens, MN_KEPT) - 1; i >= 0; i--)
        for (int64_t j = 0; j < group; j++) {
            int64_t begin = i * MN_KEPT, blocks = mn_blocks(mn_min(MN_KEPT, tokens - begin), MN_TOKENS);
            mn_part at = {row, first + begin, MN_TOKENS, query * group + j};
            if (i) get(states, &c->kept, mn_slot(c, n, i), at.head, c->K, c->V);
            else get(states, &c->initial, n, at.head, c->K, c->V);
            for (int64_t b = 0; b + 1 < blocks; b++, at.first += MN_TOKENS)
                advance(block, c, at, states + b * size, states + (b + 1) * size);
            for (int64_t b = blocks - 1; b >= 0; b--, at.first -= MN_TOKENS) {
                at.count = mn_min(MN_TOKENS, first + tokens - at.first);
                retreat(block, c, g, at, states + b * size, D + j * size, sums + b * MN_TOKENS * 2 * Kp,
                        gate + j * of_gate);
            }
        }
    for (int64_t j = 0; j < group; j++) {
        put(&g->dinitial, n, query * group + j, D + j * size, c->K, c->V);
        if (c->gate) mn_put_gate(c, g, n, query * group + j, gate + j * of_gate);
    }
}

#endif
