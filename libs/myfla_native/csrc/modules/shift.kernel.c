#include "modules/shift.h"

#include "common/load.h"

/* to = a - b, D numbers each; NULL is zero. */
MN_INLINE void subtract(void *to, int64_t at, const void *p, int64_t i, int p_dtype, const void *q, int64_t k, int q_dtype, int64_t D, int dtype) {
    int64_t j = 0;
    for (; j + MN_W <= D; j += MN_W) {
        vf x = p ? vf_read(p, i + j, p_dtype) : vf_set(0), y = q ? vf_read(q, k + j, q_dtype) : vf_set(0);
        vf_write(to, at + j, x - y, dtype);
    }
    if (j < D) {
        vf x = p ? vf_read_n(p, i + j, D - j, p_dtype) : vf_set(0), y = q ? vf_read_n(q, k + j, D - j, q_dtype) : vf_set(0);
        vf_write_n(to, at + j, x - y, D - j, dtype);
    }
}

MN_INLINE void copy(void *to, int64_t at, const void *from, int64_t i, int from_dtype, int64_t D, int dtype) {
    subtract(to, at, from, i, from_dtype, NULL, 0, dtype, D, dtype);
}

/* Tokens begin .. end. */
void MN_VARIANT(shift_forward)(const mn_shift *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    int dtype = a->x.dtype;
    int64_t n = 0, first = 0, last = 0;
    for (int64_t t = begin; t < end; t++) {
        if (t >= last) {
            n = mn_sequence_of(&a->sequences, t);
            first = mn_sequence_begin(&a->sequences, n);
            last = mn_sequence_end(&a->sequences, n);
        }
        int64_t at = mn_row(&a->x, &a->sequences, n, t);
        if (t > first) subtract(a->y, t * a->D, a->x.data, at - a->x.token, dtype, a->x.data, at, dtype, a->D, dtype);
        else subtract(a->y, t * a->D, a->beside, n * a->D, a->beside_dtype, a->x.data, at, dtype, a->D, dtype);
    }
}

/* dx[t] = ddelta[t+1] - ddelta[t], and at the last token dlast - ddelta[t]. */
void MN_VARIANT(shift_backward)(const mn_shift *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    int dtype = a->x.dtype;
    int64_t n = 0, last = 0;
    for (int64_t t = begin; t < end; t++) {
        if (t >= last) {
            n = mn_sequence_of(&a->sequences, t);
            last = mn_sequence_end(&a->sequences, n);
        }
        int64_t at = mn_row(&a->x, &a->sequences, n, t);
        if (t + 1 < last) subtract(a->y, t * a->D, a->x.data, at + a->x.token, dtype, a->x.data, at, dtype, a->D, dtype);
        else subtract(a->y, t * a->D, a->beside, n * a->D, a->beside_dtype, a->x.data, at, dtype, a->D, dtype);
    }
}

/* The last token of sequences begin .. end (of an empty one its cache); backward (without y): the gradient of the first
 * token. */
void MN_VARIANT(shift_last)(const mn_shift *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    for (int64_t n = begin; n < end; n++) {
        int64_t first = mn_sequence_begin(&a->sequences, n), last = mn_sequence_end(&a->sequences, n);
        if (first == last) copy(a->last, n * a->D, a->beside, n * a->D, a->beside_dtype, a->D, a->x.dtype);
        else copy(a->last, n * a->D, a->x.data, mn_row(&a->x, &a->sequences, n, a->y ? last - 1 : first), a->x.dtype, a->D, a->x.dtype);
    }
}
