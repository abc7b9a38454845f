/* The convolution of one token, with the arithmetic of whole sequences, so that the bits are the same. */
#include "common/load.h"
#include "layers/steps.h"

/* Vectors over channels from a row of channels with four taps each, and back: every other element of two vectors,
 * twice. */
#if MN_W == 16
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define FIRST(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define SECOND(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif MN_W == 8
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define FIRST(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define SECOND(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7)
#define FIRST(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define SECOND(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif

/* x[w]: element w of the rows [W] of m channels, which begin at `at`. */
MN_INLINE void get_taps(vf *x, const void *p, int64_t at, int64_t W, int64_t m, int dtype) {
    if (W == 4 && m == MN_W) {
        vf a = vf_read(p, at, dtype), b = vf_read(p, at + MN_W, dtype);
        vf c = vf_read(p, at + 2 * MN_W, dtype), d = vf_read(p, at + 3 * MN_W, dtype);
        vf even = EVEN(a, b), odd = ODD(a, b), even2 = EVEN(c, d), odd2 = ODD(c, d);
        x[0] = EVEN(even, even2), x[1] = EVEN(odd, odd2), x[2] = ODD(even, even2), x[3] = ODD(odd, odd2);
        return;
    }
    for (int64_t w = 0; w < W; w++) {
        float part[MN_W] = {0};
        for (int64_t i = 0; i < m; i++) part[i] = mn_read_one(p, at + i * W + w, dtype);
        x[w] = vf_load(part);
    }
}
MN_INLINE void put_taps(void *p, int64_t at, const vf *x, int64_t W, int64_t m, int dtype) {
    if (W == 4 && m == MN_W) {
        vf even = FIRST(x[0], x[2]), even2 = SECOND(x[0], x[2]), odd = FIRST(x[1], x[3]), odd2 = SECOND(x[1], x[3]);
        vf_write(p, at, FIRST(even, odd), dtype), vf_write(p, at + MN_W, SECOND(even, odd), dtype);
        vf_write(p, at + 2 * MN_W, FIRST(even2, odd2), dtype), vf_write(p, at + 3 * MN_W, SECOND(even2, odd2), dtype);
        return;
    }
    for (int64_t w = 0; w < W; w++) {
        float part[MN_W];
        vf_store(part, x[w]);
        for (int64_t i = 0; i < m; i++) mn_write_one(p, at + i * W + w, part[i], dtype);
    }
}

MN_INLINE void channels(const mn_conv_step *a, int64_t n, int64_t c, int64_t m, int64_t W, int dtype, int weights) {
    vf tap[MN_MOST_TAPS], seen[MN_MOST_TAPS + 1]; /* seen[W]: this token */
    const mn_conv_part *p = a->part;
    const void *state = (const void *)(intptr_t)p->state, *bias = (const void *)(intptr_t)p->bias;
    int64_t at = (n * a->D + c) * W;
    get_taps(tap, (const void *)(intptr_t)p->weight, c * W, W, m, weights);
    get_taps(seen, state, n * p->row + c * W, W, m, dtype);
    seen[W] = m == MN_W ? vf_read(a->x, n * a->row + c, dtype) : vf_read_n(a->x, n * a->row + c, m, dtype);
    vf z = {0};
    if (bias) z = m == MN_W ? vf_read(bias, c, a->bias_dtype) : vf_read_n(bias, c, m, a->bias_dtype);
    for (int64_t w = W; w > 0; w--) z += seen[w] * tap[w - 1];
    if (p->silu) z = z / (1.0f + vf_exp(-z));
    if (m == MN_W) vf_write(a->y, n * a->D + c, z, dtype);
    else vf_write_n(a->y, n * a->D + c, z, m, dtype);
    put_taps((void *)(intptr_t)p->final, at, seen + 1, W, m, dtype);
}

MN_INLINE void rows(const mn_conv_step *a, int64_t begin, int64_t end, int64_t W, int dtype, int weights) {
    for (int64_t n = begin; n < end; n++) {
        int64_t c = 0;
        for (; c + MN_W <= a->D; c += MN_W) channels(a, n, c, MN_W, W, dtype, weights);
        if (c < a->D) channels(a, n, c, a->D - c, W, dtype, weights);
    }
}

void MN_VARIANT(conv_step)(const mn_conv_step *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    if (a->W == 4 && a->dtype == MN_F32 && a->weight_dtype == MN_F32) rows(a, begin, end, 4, MN_F32, MN_F32);
    else rows(a, begin, end, a->W, a->dtype, a->weight_dtype);
}
