#include "modules/shift.h"

/* Backward or forward; `y` and `last` as in `mn_shift`, last may be NULL. */
static int run(mn_shift *a, int64_t tokens, int backward, int threads) {
    int64_t piece = mn_max(1, (1 << 14) / mn_max(a->D, 1));
    if (backward) mn_parallel((mn_task)MN_PICK(shift_backward), a, tokens, piece, threads);
    else mn_parallel((mn_task)MN_PICK(shift_forward), a, tokens, piece, threads);
    if (backward) a->y = 0; /* from here on the first tokens */
    if (a->last) mn_parallel((mn_task)MN_PICK(shift_last), a, a->sequences.count, piece, threads);
    return MN_DONE;
}

/* delta [tokens, D] and last [N, D], in the dtype of x; cache [N, D] may be NULL. */
MN_API int mn_shift_forward(
    const void *x, int64_t x_batch, int64_t x_token, int dtype, const void *cache, int cache_dtype,
    const int64_t *offsets, int64_t N, int64_t T, int64_t D, void *delta, void *last, int threads) {
    mn_shift a = {{offsets, N, T}, {x, x_batch, x_token, dtype}, cache, cache_dtype, D, delta, last};
    return run(&a, offsets ? T : N * T, 0, threads);
}

/* dx [tokens, D] and dcache [N, D] (or NULL), in the dtype of ddelta; dlast [N, D]. */
MN_API int mn_shift_backward(
    const void *ddelta, int64_t batch, int64_t token, int dtype, const void *dlast, int dlast_dtype,
    const int64_t *offsets, int64_t N, int64_t T, int64_t D, void *dx, void *dcache, int threads) {
    mn_shift a = {{offsets, N, T}, {ddelta, batch, token, dtype}, dlast, dlast_dtype, D, dx, dcache};
    return run(&a, offsets ? T : N * T, 1, threads);
}
