/* Products of small matrices, C [M, N] from A [M, L] and B [L, N]. M and N are whole vectors; element (i, l) of A lies
 * at A[i * si + l * sl]; rows of B and C are contiguous. For `*.kernel.c` only. */
#ifndef MN_PRODUCTS_H
#define MN_PRODUCTS_H

#include "rules/row_sums.h"

/* mr rows and nv vectors of columns, held in registers. C = factor from + A B. */
MN_INLINE void mn_product_block(int64_t L, const float *A, int64_t si, int64_t sl, const float *B, int64_t ldb,
                                float *C, int64_t ldc, const float *from, float factor, const int mr, const int nv) {
    vf sum[16][4];
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++) sum[i][j] = (vf){0};
    for (int64_t l = 0; l < L; l++, A += sl, B += ldb)
        for (int i = 0; i < mr; i++) {
            float a = A[i * si];
            for (int j = 0; j < nv; j++) sum[i][j] += vf_load(B + j * MN_W) * a;
        }
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++) {
            vf x = sum[i][j];
            if (factor != 0) x += vf_load(from + i * ldc + j * MN_W) * factor;
            vf_store(C + i * ldc + j * MN_W, x);
        }
}

enum { MN_ROWS_OF_4 = 4, MN_ROWS_OF_2 = MN_W == 16 ? 8 : 4, MN_ROWS_OF_1 = MN_W == 16 ? 16 : 4 };

/* C = factor from + A B, or A B alone for factor 0; from lies as C does and may be it. */
static __attribute__((noinline)) void mn_product_from(int64_t M, int64_t N, int64_t L, const float *A, int64_t si,
                                                      int64_t sl, const float *B, int64_t ldb, float *C, int64_t ldc,
                                                      const float *from, float factor) {
    int64_t j = 0;
    if (MN_W == 16)
        for (; j + 4 * MN_W <= N; j += 4 * MN_W)
            for (int64_t i = 0; i < M; i += MN_ROWS_OF_4)
                mn_product_block(L, A + i * si, si, sl, B + j, ldb, C + i * ldc + j, ldc, from + i * ldc + j, factor,
                                 MN_ROWS_OF_4, 4);
    for (; j + 2 * MN_W <= N; j += 2 * MN_W)
        for (int64_t i = 0; i < M; i += MN_ROWS_OF_2)
            mn_product_block(L, A + i * si, si, sl, B + j, ldb, C + i * ldc + j, ldc, from + i * ldc + j, factor,
                             MN_ROWS_OF_2, 2);
    for (; j < N; j += MN_W)
        for (int64_t i = 0; i < M; i += MN_ROWS_OF_1)
            mn_product_block(L, A + i * si, si, sl, B + j, ldb, C + i * ldc + j, ldc, from + i * ldc + j, factor,
                             MN_ROWS_OF_1, 1);
}

MN_INLINE void mn_product(int64_t M, int64_t N, int64_t L, const float *A, int64_t si, int64_t sl, const float *B,
                          int64_t ldb, float *C, int64_t ldc, float factor) {
    mn_product_from(M, N, L, A, si, sl, B, ldb, C, ldc, C, factor);
}

/* to [columns, rows] from a [rows, columns], both whole vectors: in blocks, whose halves change places in turn. */
static __attribute__((noinline)) void mn_transpose(const float *a, int64_t lda, int64_t rows, int64_t columns,
                                                   float *to, int64_t ldt) {
    for (int64_t r = 0; r < rows; r += MN_W)
        for (int64_t c = 0; c < columns; c += MN_W) {
            vf x[MN_W];
            for (int i = 0; i < MN_W; i++) x[i] = vf_load(a + (r + i) * lda + c);
#define MN_EXCHANGE(width)                                                                                             \
    for (int i = 0; i < MN_W; i++)                                                                                     \
        if (!(i & width)) {                                                                                            \
            vf low = MN_LOW_##width(x[i], x[i + width]), high = MN_HIGH_##width(x[i], x[i + width]);                   \
            x[i] = low, x[i + width] = high;                                                                           \
        }
#if MN_W == 16
            MN_EXCHANGE(8)
#endif
#if MN_W >= 8
            MN_EXCHANGE(4)
#endif
            MN_EXCHANGE(2)
            MN_EXCHANGE(1)
#undef MN_EXCHANGE
            for (int i = 0; i < MN_W; i++) vf_store(to + (c + i) * ldt + r, x[i]);
        }
}

#endif
