/* Products of matrices in registers. For `*.kernel.c` only. */
#ifndef MN_PRODUCTS_H
#define MN_PRODUCTS_H

#include "common/vec.h"

/* Loops over registers are unrolled: otherwise a compiler may keep the registers in memory. */
#if defined(__clang__)
#define MN_UNROLL _Pragma("unroll")
#else
#define MN_UNROLL _Pragma("GCC unroll 16")
#endif

/* A block of a product: MN_ROWS rows of nv <= MN_WIDE vectors, sum[r * nv + j]. nv is a constant where it is called. */
enum { MN_ROWS = MN_W == 16 ? 8 : 4, MN_WIDE = 2, MN_SUMS = MN_ROWS * MN_WIDE };

MN_INLINE void mn_clear(vf *sum, const int nv) {
    MN_UNROLL
    for (int i = 0; i < MN_ROWS * nv; i++) sum[i] = (vf){0};
}
MN_INLINE void mn_add(vf *sum, const float *from, int64_t step, const int nv) {
    MN_UNROLL
    for (int i = 0; i < MN_ROWS * nv; i++) sum[i] += vf_load(from + i / nv * step + i % nv * MN_W);
}
MN_INLINE void mn_give(float *to, int64_t step, const vf *sum, const int nv) {
    MN_UNROLL
    for (int i = 0; i < MN_ROWS * nv; i++) vf_store(to + i / nv * step + i % nv * MN_W, sum[i]);
}
/* Columns multiplied by their factors. */
MN_INLINE void mn_scale(vf *sum, const float *factors, const int nv) {
    MN_UNROLL
    for (int i = 0; i < MN_ROWS * nv; i++) sum[i] *= vf_load(factors + i % nv * MN_W);
}

/* sum += a b over L terms: element (r, l) of a is a[r * row + l * term]; rows of b lie `step` apart. */
MN_INLINE void mn_multiply(vf *sum, const float *a, int64_t row, int64_t term, const float *b, int64_t step, int64_t L,
                           const int nv) {
    for (int64_t l = 0; l < L; l++, a += term, b += step) {
        vf x[MN_WIDE];
        MN_UNROLL
        for (int j = 0; j < nv; j++) x[j] = vf_load(b + j * MN_W);
        MN_UNROLL
        for (int i = 0; i < MN_ROWS * nv; i++) sum[i] += x[i % nv] * a[i / nv * row];
    }
}

/* A statement for every block of a matrix [rows, n]: it can use the block's place (i, j) and nv. */
#define MN_EACH_BLOCK(rows, n, statement)                                                                              \
    for (int64_t j = 0, wide; j < (n); j += (wide ? MN_WIDE : 1) * MN_W) {                                             \
        wide = j + MN_WIDE * MN_W <= (n);                                                                              \
        for (int64_t i = 0; i < (rows); i += MN_ROWS) {                                                                \
            if (wide) {                                                                                                \
                enum { nv = MN_WIDE };                                                                                 \
                statement;                                                                                             \
            } else {                                                                                                   \
                enum { nv = 1 };                                                                                       \
                statement;                                                                                             \
            }                                                                                                          \
        }                                                                                                              \
    }

/* to = a b over L terms. Sums of sums of MN_SUMMED: fewer roundings, which gradients of decays would show. */
enum { MN_SUMMED = 32 };
MN_INLINE void mn_product_block(float *to, int64_t to_step, const float *a, int64_t row, int64_t term, const float *b,
                                int64_t step, int64_t L, const int nv) {
    for (int64_t l = 0; l < L; l += MN_SUMMED) {
        vf sum[MN_SUMS];
        mn_clear(sum, nv);
        mn_multiply(sum, a + l * term, row, term, b + l * step, step, mn_min(L - l, MN_SUMMED), nv);
        if (l) mn_add(sum, to, to_step, nv);
        mn_give(to, to_step, sum, nv);
    }
}

#endif
