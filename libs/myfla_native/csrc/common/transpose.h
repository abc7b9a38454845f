/* Transposes matrices. For `*.kernel.c` only. */
#ifndef MN_TRANSPOSE_H
#define MN_TRANSPOSE_H

#include "common/row_sums.h"

/* to [columns, rows] from a [rows, columns], both whole vectors: in blocks, by exchanging their halves repeatedly. */
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

/* Columns of a state whose keys lie beside each other, x [columns, n], `apart` from one to the next, as a panel
 * [n, width]; and back. */
MN_INLINE void mn_turn_in(float *panel, int64_t width, const float *x, int64_t apart, int64_t columns, int64_t n) {
    int64_t whole = columns / MN_W * MN_W, keys = n / MN_W * MN_W;
    mn_transpose(x, apart, whole, keys, panel, width);
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = j < whole ? keys : 0; i < n; i++) panel[i * width + j] = x[j * apart + i];
}
MN_INLINE void mn_turn_out(float *x, int64_t apart, const float *panel, int64_t width, int64_t columns, int64_t n) {
    int64_t whole = columns / MN_W * MN_W, keys = n / MN_W * MN_W;
    for (int64_t j = 0; j < whole; j += MN_W) mn_transpose(panel + j, width, keys, MN_W, x + j * apart, apart);
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = j < whole ? keys : 0; i < n; i++) x[j * apart + i] = panel[i * width + j];
}

#endif
