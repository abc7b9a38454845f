#include "modules/norm.h"

#include "common/floats.h"
#include "common/memory.h"
#include "common/sums.h"

/* Float copies of weight and bias in one allocation, or the originals if they are floats; the caller frees *memory. */
static int parameters(mn_norm *a, const void *weight, int weight_dtype, const void *bias, int bias_dtype, void **memory) {
    int64_t D = a->D;
    *memory = NULL;
    a->weight = weight_dtype == MN_F32 ? weight : NULL;
    a->bias = bias_dtype == MN_F32 ? bias : NULL;
    if ((weight && !a->weight) || (bias && !a->bias)) {
        float *copy = *memory = mn_alloc(2 * D * 4);
        if (!copy) return MN_NO_MEMORY;
        mn_floats of_weight = {weight, copy, 1, D, weight_dtype}, of_bias = {bias, copy + D, 1, D, bias_dtype};
        if (weight && !a->weight) MN_PICK(as_floats)(&of_weight, 0, D, 0), a->weight = copy;
        if (bias && !a->bias) MN_PICK(as_floats)(&of_bias, 0, D, 0), a->bias = copy + D;
    }
    return MN_DONE;
}

/* y [rows, D], and for the backward pass rstd and (centred) mean [rows, groups]; rstd may be NULL, mean where unused.
 * unit_length: makes rows of length one, with the sum of squares not divided. */
MN_API int mn_norm_forward(
    const void *h, int64_t h_row, int h_dtype, const void *g, int64_t g_row, int g_dtype, int gate, const void *weight,
    int weight_dtype, const void *bias, int bias_dtype, int64_t rows, int64_t D, int64_t groups, double eps,
    int unit_length, int centred, void *y, int y_dtype, float *mean, float *rstd, int threads) {
    mn_norm a = {
        .h = h, .g = g, .h_row = h_row, .g_row = g_row, .h_dtype = h_dtype, .g_dtype = g_dtype, .y_dtype = y_dtype,
        .rows = rows, .D = D, .groups = groups, .eps = (float)eps, .divisor = unit_length ? 1 : (float)(D / groups),
        .centred = centred, .gate = g ? gate : MN_NO_GATE, .mean = mean, .rstd = rstd, .y = y};
    void *memory;
    if (parameters(&a, weight, weight_dtype, bias, bias_dtype, &memory)) return MN_NO_MEMORY;
    mn_parallel((mn_task)MN_PICK(norm_forward), &a, rows, mn_max(1, (1 << 13) / D), threads);
    mn_free(memory);
    return MN_DONE;
}

/* dh and dg [rows, D] in the dtypes of h and g, each may be NULL; dh may be dy, the rows of dg lie dg_row apart.
 * dparameters [2, D]: of weight and bias, or NULL. */
MN_API int mn_norm_backward(
    const void *dy, int64_t dy_row, int dy_dtype, const void *h, int64_t h_row, int h_dtype, const void *g,
    int64_t g_row, int g_dtype, int gate, const void *weight, int weight_dtype, const void *bias, int bias_dtype,
    int64_t rows, int64_t D, int64_t groups, int unit_length, int centred, const float *mean, const float *rstd,
    void *dh, void *dg, int64_t dg_row, float *dparameters, int threads) {
    mn_norm a = {
        .h = h, .g = g, .dy = dy, .h_row = h_row, .g_row = g_row, .dy_row = dy_row, .h_dtype = h_dtype,
        .g_dtype = g_dtype, .dy_dtype = dy_dtype, .rows = rows, .D = D, .groups = groups,
        .divisor = unit_length ? 1 : (float)(D / groups), .centred = centred, .gate = g ? gate : MN_NO_GATE,
        .mean = (float *)mean, .rstd = (float *)rstd, .y = dh, .dg = dg, .dg_row = dg_row};
    /* Few enough blocks for their sums, each large enough for a thread. The number does not depend on the number of
     * threads. */
    a.block = mn_max(mn_max(1, (1 << 13) / D), mn_blocks(rows, MN_NORM_BLOCKS));
    int64_t blocks = mn_blocks(rows, a.block);
    void *memory;
    if (parameters(&a, weight, weight_dtype, bias, bias_dtype, &memory)) return MN_NO_MEMORY;
    if (dparameters) a.partial = mn_alloc(blocks * 2 * D * 4);
    int status = dparameters && !a.partial ? MN_NO_MEMORY : MN_DONE;
    if (!status) {
        mn_parallel((mn_task)MN_PICK(norm_backward), &a, blocks, 1, threads);
        if (dparameters) mn_add_blocks(a.partial, dparameters, blocks, 2 * D, threads);
    }
    mn_free(a.partial);
    mn_free(memory);
    return status;
}
