/* Causal depthwise convolution: z[t] = bias + sum_s tap[s] x[t-s], y = act(z) + residual; D channels, W taps. */
#ifndef MN_CONV_H
#define MN_CONV_H

#include "common/pick.h"
#include "common/sequences.h"

enum { MN_MOST_TAPS = 16, MN_CONV_BLOCK = 32 };

typedef struct {
    mn_sequences sequences;
    mn_rows x, dy, residual; /* residual.data and state may be NULL */
    const void *state;       /* [N, D, W], the inputs before the first token, newest last */
    int state_dtype, silu;
    int64_t tokens, D, W;
    const float *taps; /* [W, D], row s has the tap of the input s tokens before */
    const float *bias; /* [D] or NULL */
    void *y;           /* [tokens, D] in the dtype of x; in the backward pass dx, or NULL */
    int64_t y_token;   /* the distance of its rows */
    void *final;       /* [N, D, W] in `final_dtype` */
    int final_dtype;
    float *partial; /* backward: [blocks, W + 1, D], gradients of the taps and of the bias from each block */
    int64_t block;  /* tokens in a block, a multiple of MN_CONV_BLOCK */
    char *after;    /* backward in place: dy of the W - 1 tokens after each block [blocks, W - 1, D]; else NULL */
    float *dstate;  /* backward: [N, D, W] or NULL */
} mn_conv;

/* See conv.c. */
MN_API int mn_conv_forward(
    const void *x, int64_t x_batch, int64_t x_token, int dtype, const void *residual, int64_t residual_batch,
    int64_t residual_token, int residual_dtype, const void *weight, int weight_dtype, const void *bias, int bias_dtype,
    const void *state, int state_dtype, const int64_t *offsets, int64_t N, int64_t T, int64_t D, int64_t W, int silu,
    void *y, void *final, int final_dtype, int threads);
MN_API int mn_conv_backward(
    const void *x, int64_t x_batch, int64_t x_token, int dtype, const void *dy, int64_t dy_batch, int64_t dy_token,
    int dy_dtype, const void *weight, int weight_dtype, const void *bias, int bias_dtype, const void *state,
    int state_dtype, const int64_t *offsets, int64_t N, int64_t T, int64_t D, int64_t W, int silu, void *dx,
    int64_t dx_token, float *dtaps, float *dstate, int threads);

MN_KERNEL(conv_forward, (const mn_conv *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(conv_state, (const mn_conv *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(conv_backward, (const mn_conv *a, int64_t begin, int64_t end, int slot))

#endif
