/* The exported calls of the rules. */
#include <string.h>

#include "common/memory.h"
#include "rules/token_job.h"

static int run(mn_task task, mn_token_job *job, int64_t items) {
    int64_t threads = job->call->threads;
    int slots = mn_slots(items, 1, (int)threads);
    job->scratch = mn_alloc(slots * job->floats * (int64_t)sizeof(float));
    if (!job->scratch) return MN_NO_MEMORY;
    int status = mn_parallel(task, job, items, 1, (int)threads);
    mn_free(job->scratch);
    return status;
}

MN_API int mn_rule_forward(const mn_rule *call) {
    mn_token_job job = {.call = call};
    job.floats = mn_forward_floats(call->K, call->V);
    return run((mn_task)MN_PICK(mn_token_forward), &job, call->N * call->HV);
}

MN_API int mn_rule_backward(const mn_rule_grad *grad) {
    const mn_rule *call = &grad->call;
    mn_token_job job = {.call = call, .grad = grad};
    for (int64_t n = 0, row, first, tokens; n < call->N; n++) {
        mn_span(call, n, &row, &first, &tokens);
        job.tokens = mn_max(job.tokens, tokens);
    }
    job.floats = mn_backward_floats(call, job.tokens);
    return run((mn_task)MN_PICK(mn_token_backward), &job, call->N * call->H);
}
