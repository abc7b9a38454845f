/* Sums over the elements of a vector, for many vectors at once. For `*.kernel.c` only. */
#ifndef MN_ROW_SUMS_H
#define MN_ROW_SUMS_H

#include "common/vec.h"

#if MN_W == 16
#define MN_LOW_8(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define MN_HIGH_8(a, b) __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define MN_LOW_4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
#define MN_HIGH_4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define MN_LOW_2(a, b) __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define MN_HIGH_2(a, b) __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define MN_LOW_1(a, b) __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define MN_HIGH_1(a, b) __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
#elif MN_W == 8
#define MN_LOW_4(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define MN_HIGH_4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#define MN_LOW_2(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define MN_HIGH_2(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define MN_LOW_1(a, b) __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14)
#define MN_HIGH_1(a, b) __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15)
#else
#define MN_LOW_2(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define MN_HIGH_2(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#define MN_LOW_1(a, b) __builtin_shufflevector(a, b, 0, 4, 2, 6)
#define MN_HIGH_1(a, b) __builtin_shufflevector(a, b, 1, 5, 3, 7)
#endif

/* Element i of the result is the sum of parts[i * stride ... + MN_W]. Halves of two vectors are added at a time, so
 * that after log2(MN_W) rounds every place holds one sum. */
MN_INLINE vf mn_sums(const float *parts, int64_t stride) {
    vf x[MN_W];
    for (int i = 0; i < MN_W; i++) x[i] = vf_load(parts + i * stride);
#if MN_W == 16
    for (int i = 0; i < 8; i++) x[i] = MN_LOW_8(x[i], x[i + 8]) + MN_HIGH_8(x[i], x[i + 8]);
#endif
#if MN_W >= 8
    for (int i = 0; i < 4; i++) x[i] = MN_LOW_4(x[i], x[i + 4]) + MN_HIGH_4(x[i], x[i + 4]);
#endif
    for (int i = 0; i < 2; i++) x[i] = MN_LOW_2(x[i], x[i + 2]) + MN_HIGH_2(x[i], x[i + 2]);
    return MN_LOW_1(x[0], x[1]) + MN_HIGH_1(x[0], x[1]);
}

/* The same for one vector, with the same additions. */
MN_INLINE float mn_sum(vf x) {
#if MN_W == 16
    x = MN_LOW_8(x, x) + MN_HIGH_8(x, x);
#endif
#if MN_W >= 8
    x = MN_LOW_4(x, x) + MN_HIGH_4(x, x);
#endif
    x = MN_LOW_2(x, x) + MN_HIGH_2(x, x);
    x = MN_LOW_1(x, x) + MN_HIGH_1(x, x);
    return x[0];
}

#endif
