/* Norms over groups of channels, with an output gate:
 *     unit = (h - mean) * rstd,  rstd = 1 / sqrt(sum((h - mean)^2) / divisor + eps),  n = unit * weight + bias,  y = n * act(g)
 * A row has D channels in `groups` groups of d; the divisor is d, or 1 for rows of length one. */
#ifndef MN_NORM_H
#define MN_NORM_H

#include "common/pick.h"

enum { MN_NO_GATE = 0, MN_SILU = 1, MN_SIGMOID = 2, MN_NORM_BLOCKS = 128 };

typedef struct {
    const void *h, *g, *dy; /* [rows, D] with a stride of rows; g may be NULL */
    int64_t h_row, g_row, dy_row;
    int h_dtype, g_dtype, dy_dtype, y_dtype;
    const float *weight, *bias; /* [D] or NULL */
    int64_t rows, D, groups;
    float eps, divisor;
    int centred, gate;
    float *mean, *rstd; /* [rows, groups]; mean only if centred */
    void *y;            /* forward: [rows, D]; backward: the gradient of h in its dtype, or NULL */
    void *dg;           /* the gradient of g in its dtype, or NULL */
    int64_t dg_row;
    float *partial;     /* backward: [blocks, 2, D], gradients of weight and bias from each block, or NULL */
    int64_t block;      /* rows in a block */
} mn_norm;

/* See norm.c. */
MN_API int mn_norm_forward(
    const void *h, int64_t h_row, int h_dtype, const void *g, int64_t g_row, int g_dtype, int gate, const void *weight,
    int weight_dtype, const void *bias, int bias_dtype, int64_t rows, int64_t D, int64_t groups, double eps,
    int unit_length, int centred, void *y, int y_dtype, float *mean, float *rstd, int threads);
MN_API int mn_norm_backward(
    const void *dy, int64_t dy_row, int dy_dtype, const void *h, int64_t h_row, int h_dtype, const void *g,
    int64_t g_row, int g_dtype, int gate, const void *weight, int weight_dtype, const void *bias, int bias_dtype,
    int64_t rows, int64_t D, int64_t groups, int unit_length, int centred, const float *mean, const float *rstd,
    void *dh, void *dg, int64_t dg_row, float *dparameters, int threads);

MN_KERNEL(norm_forward, (const mn_norm *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(norm_backward, (const mn_norm *a, int64_t begin, int64_t end, int slot))

#endif
