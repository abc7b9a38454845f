/* The exported calls of the rules. */
#include "common/memory.h"
#include "rules/token_job.h"

enum {
    PIECE = 1 << 14, /* the smallest number of multiplications in a piece */
    SHARE = 1 << 19  /* multiplications for each further thread */
};

/* Run the call in `items` equal parts, each with this many multiplications. */
static int run(mn_task task, mn_token_job *job, int64_t items, int64_t work) {
    int64_t threads = mn_min(job->call->threads, mn_max(1, items * work / SHARE));
    int64_t piece = mn_max(1, mn_min(PIECE / mn_max(work, 1), items / mn_max(threads, 1)));
    job->scratch = mn_alloc(mn_slots(items, piece, (int)threads) * job->floats * (int64_t)sizeof(float));
    if (!job->scratch) return MN_NO_MEMORY;
    int status = mn_parallel(task, job, items, piece, (int)threads);
    mn_free(job->scratch);
    return status;
}

static int64_t tokens_of(const mn_rule *c) { return c->cu_seqlens ? mn_blocks(c->T, mn_max(c->N, 1)) : c->T; }

static int forward(const mn_rule *call, mn_task task) {
    mn_token_job job = {.call = call};
    job.floats = mn_forward_floats(call->K, call->V);
    return run(task, &job, call->N * call->HV, 4 * tokens_of(call) * call->K * call->V);
}

/* Whole sequences. */
MN_API int mn_rule_forward(const mn_rule *call) {
    return forward(call, call->T == 1 ? (mn_task)MN_PICK(mn_token_step) : (mn_task)MN_PICK(mn_token_forward));
}

/* One token for each sequence, T = 1: the same for callers that know this. */
MN_API int mn_rule_step(const mn_rule *call) { return forward(call, (mn_task)MN_PICK(mn_token_step)); }

/* Gradients of mn_rule_forward, which has kept `error`. */
MN_API int mn_rule_backward(const mn_rule_grad *grad) {
    const mn_rule *call = &grad->call;
    mn_token_job job = {.call = call, .grad = grad};
    int chunks = call->rule == MN_GATED;
    job.floats = mn_walk_floats(call);
    job.floats += chunks ? mn_chunk_floats(call->K, call->V) : mn_channel_floats(call->K, call->V);
    mn_task task = chunks ? (mn_task)MN_PICK(mn_chunk_backward) : (mn_task)MN_PICK(mn_channel_backward);
    return run(task, &job, call->N * call->H, 12 * tokens_of(call) * call->K * call->V);
}
