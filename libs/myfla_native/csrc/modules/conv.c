#include "modules/conv.h"

#include <string.h>

#include "common/floats.h"
#include "common/memory.h"
#include "common/sums.h"

/* weight [D, W] as taps [W, D], newest first, followed by the bias; NULL if there is no memory. */
static float *parameters(const void *weight, int weight_dtype, const void *bias, int bias_dtype, int64_t D, int64_t W) {
    float *taps = mn_alloc((W + 1) * D * 4);
    if (!taps) return NULL;
    mn_floats of_taps = {weight, taps, W, D, weight_dtype}, of_bias = {bias, taps + W * D, 1, D, bias_dtype};
    if (W == 1) of_taps.outer = 1;
    MN_PICK(as_floats)(&of_taps, 0, D, 0);
    if (bias) MN_PICK(as_floats)(&of_bias, 0, D, 0);
    return taps;
}

/* y [tokens, D] and the final state [N, D, W]; either may be NULL. x and residual [B, T, D] by strides. */
MN_API int mn_conv_forward(
    const void *x, int64_t x_batch, int64_t x_token, int dtype, const void *residual, int64_t residual_batch,
    int64_t residual_token, int residual_dtype, const void *weight, int weight_dtype, const void *bias, int bias_dtype,
    const void *state, int state_dtype, const int64_t *offsets, int64_t N, int64_t T, int64_t D, int64_t W, int silu,
    void *y, void *final, int final_dtype, int threads) {
    float *taps = parameters(weight, weight_dtype, bias, bias_dtype, D, W);
    if (!taps) return MN_NO_MEMORY;
    mn_conv a = {
        .sequences = {offsets, N, T}, .x = {x, x_batch, x_token, dtype},
        .residual = {residual, residual_batch, residual_token, residual_dtype}, .state = state,
        .state_dtype = state_dtype, .silu = silu, .tokens = offsets ? T : N * T, .D = D, .W = W, .taps = taps,
        .bias = bias ? taps + W * D : NULL, .y = y, .y_token = D, .final = final, .final_dtype = final_dtype};
    int64_t piece = mn_max(MN_CONV_BLOCK, (1 << 15) / mn_max(D, 1));
    if (y) mn_parallel((mn_task)MN_PICK(conv_forward), &a, a.tokens, piece, threads);
    if (final) mn_parallel((mn_task)MN_PICK(conv_state), &a, N, mn_max(1, (1 << 13) / (D * W + 1)), threads);
    mn_free(taps);
    return MN_DONE;
}

/* A block may write dx where another one reads dy: copies of the rows of dy that follow each block. */
static void copy_after(const mn_conv *a, int64_t blocks) {
    int64_t row = a->D * mn_width(a->dy.dtype);
    for (int64_t i = 0; i < blocks * (a->W - 1); i++) {
        int64_t token = (i / (a->W - 1) + 1) * a->block + i % (a->W - 1);
        if (token >= a->tokens) continue;
        int64_t from = mn_row(&a->dy, &a->sequences, mn_sequence_of(&a->sequences, token), token);
        memcpy(a->after + i * row, (const char *)a->dy.data + from * mn_width(a->dy.dtype), (size_t)row);
    }
}

/* dx [tokens, D] in the dtype of x, its rows dx_token apart; it may be dy. dtaps [W + 1, D], newest first, the last row
 * that of the bias; dstate [N, D, W], zero at first. dx and dstate may be NULL. */
MN_API int mn_conv_backward(
    const void *x, int64_t x_batch, int64_t x_token, int dtype, const void *dy, int64_t dy_batch, int64_t dy_token,
    int dy_dtype, const void *weight, int weight_dtype, const void *bias, int bias_dtype, const void *state,
    int state_dtype, const int64_t *offsets, int64_t N, int64_t T, int64_t D, int64_t W, int silu, void *dx,
    int64_t dx_token, float *dtaps, float *dstate, int threads) {
    int64_t tokens = offsets ? T : N * T;
    /* At most 256 blocks, so that their sums stay small. The number does not depend on the number of threads. */
    int64_t block = mn_max(2, mn_blocks(mn_blocks(tokens, MN_CONV_BLOCK), 256)) * MN_CONV_BLOCK;
    int64_t blocks = mn_blocks(tokens, block), width = (W + 1) * D;
    float *taps = parameters(weight, weight_dtype, bias, bias_dtype, D, W);
    float *partial = mn_alloc(blocks * width * 4);
    int in_place = dx && dx == dy;
    char *after = in_place ? mn_alloc(blocks * (W - 1) * D * mn_width(dy_dtype)) : NULL;
    int status = taps && partial && (after || !in_place) ? MN_DONE : MN_NO_MEMORY;
    if (!status) {
        mn_conv a = {
            .sequences = {offsets, N, T}, .x = {x, x_batch, x_token, dtype}, .dy = {dy, dy_batch, dy_token, dy_dtype},
            .state = state, .state_dtype = state_dtype, .silu = silu, .tokens = tokens, .D = D, .W = W, .taps = taps,
            .bias = bias ? taps + W * D : NULL, .y = dx, .y_token = dx_token, .partial = partial, .block = block,
            .after = after, .dstate = dstate};
        if (after) copy_after(&a, blocks);
        mn_parallel((mn_task)MN_PICK(conv_backward), &a, blocks, 1, threads);
        mn_add_blocks(partial, dtaps, blocks, width, threads);
    }
    mn_free(taps);
    mn_free(after);
    mn_free(partial);
    return status;
}
