/* Rows and states of tensors as whole vectors of floats, the rest zero; and back. For `*.kernel.c` only. */
#ifndef MN_ROWS_H
#define MN_ROWS_H

#include <math.h>

#include "common/load.h"
#include "common/row_sums.h"
#include "rules/rule.h"

MN_INLINE int64_t mn_whole(int64_t n) { return (n + MN_W - 1) / MN_W * MN_W; }
MN_INLINE void *mn_base(const mn_tensor *x) { return (void *)(intptr_t)x->at; }

/* A state lies in panels of columns [Kp, width]; the panel at column p begins at S + p Kp. */
enum { MN_PANEL = 4 };                 /* vectors in the widest panel */
MN_INLINE int mn_panel(int64_t left) { /* vectors of the next panel, this many columns before the end */
    return left >= 4 * MN_W ? 4 : left >= 2 * MN_W ? 2 : 1;
}

/* x[.., 0:n] from element `from` on into to[0:whole n]. */
static __attribute__((noinline)) void mn_gather(float *to, const mn_tensor *x, int64_t from, int64_t n,
                                                int64_t stride) {
    const void *p = mn_base(x);
    int64_t whole = mn_whole(n), j = 0;
    if (stride != 1) {
        for (; j < n; j++) to[j] = mn_read_one(p, from + j * stride, (int)x->dtype);
        for (; j < whole; j++) to[j] = 0;
        return;
    }
    for (; j < n; j += MN_W) {
        int64_t left = n - j;
        vf part;
        if (x->dtype == MN_F32)
            part = left < MN_W ? vf_read_n(p, from + j, left, MN_F32) : vf_read(p, from + j, MN_F32);
        else if (x->dtype == MN_BF16)
            part = left < MN_W ? vf_read_n(p, from + j, left, MN_BF16) : vf_read(p, from + j, MN_BF16);
        else part = left < MN_W ? vf_read_n(p, from + j, left, MN_F16) : vf_read(p, from + j, MN_F16);
        vf_store(to + j, part);
    }
}

static __attribute__((noinline)) void mn_scatter(const mn_tensor *x, int64_t to, const float *from, int64_t n,
                                                 int64_t stride) {
    void *p = mn_base(x);
    int64_t j = 0;
    if (stride != 1) {
        for (; j < n; j++) mn_write_one(p, to + j * stride, from[j], (int)x->dtype);
        return;
    }
    for (; j < n; j += MN_W) {
        int64_t left = n - j;
        vf part = vf_load(from + j);
        if (x->dtype == MN_F32)
            left < MN_W ? vf_write_n(p, to + j, part, left, MN_F32) : vf_write(p, to + j, part, MN_F32);
        else if (x->dtype == MN_BF16)
            left < MN_W ? vf_write_n(p, to + j, part, left, MN_BF16) : vf_write(p, to + j, part, MN_BF16);
        else left < MN_W ? vf_write_n(p, to + j, part, left, MN_F16) : vf_write(p, to + j, part, MN_F16);
    }
}

MN_INLINE int64_t mn_place(const mn_tensor *x, int64_t row, int64_t token, int64_t head) {
    return row * x->row + token * x->token + head * x->head;
}
MN_INLINE int mn_plain(const mn_tensor *x, int64_t n) { return x->dtype == MN_F32 && x->channel == 1 && n % MN_W == 0; }
MN_INLINE void mn_get(float *to, const mn_tensor *x, int64_t row, int64_t token, int64_t head, int64_t n) {
    int64_t from = mn_place(x, row, token, head);
    const float *p = (const float *)mn_base(x) + from;
    if (!mn_plain(x, n)) mn_gather(to, x, from, n, x->channel);
    else
        for (int64_t j = 0; j < n; j += MN_W) vf_store(to + j, vf_load(p + j));
}

/* Rows of tokens: in their tensor, or copied. */
typedef struct {
    const float *at;
    int64_t step; /* from one row to the next */
} mn_from;

/* Rows of n channels of `count` tokens from `first` on, as whole vectors: where they lie, if they are such floats,
 * otherwise copies in `room`. */
MN_INLINE mn_from mn_get_rows(const mn_tensor *x, int64_t row, int64_t first, int64_t count, int64_t head, int64_t n,
                              float *room) {
    int64_t from = mn_place(x, row, first, head), whole = mn_whole(n);
    if (mn_plain(x, n)) return (mn_from){(const float *)mn_base(x) + from, x->token};
    for (int64_t t = 0; t < count; t++) mn_gather(room + t * whole, x, from + t * x->token, n, x->channel);
    return (mn_from){room, whole};
}
/* The same for MN_TOKENS rows, those after `count` zeros. */
MN_INLINE mn_from mn_get_block(const mn_tensor *x, int64_t row, int64_t first, int64_t count, int64_t head, int64_t n,
                               float *room) {
    int64_t whole = mn_whole(n);
    mn_from rows = mn_get_rows(x, row, first, count, head, n, room);
    if (count == MN_TOKENS) return rows;
    for (int64_t t = 0; rows.at != room && t < count; t++)
        for (int64_t j = 0; j < whole; j += MN_W)
            vf_store(room + t * whole + j, vf_load(rows.at + t * rows.step + j));
    memset(room + count * whole, 0, (size_t)((MN_TOKENS - count) * whole) * sizeof *room);
    return (mn_from){room, whole};
}
/* to [count, whole] = rows times factors. */
MN_INLINE void mn_times_rows(float *to, mn_from x, const float *factors, int64_t count, int64_t whole) {
    for (int64_t t = 0; t < count; t++, x.at += x.step, to += whole)
        for (int64_t j = 0; j < whole; j += MN_W) vf_store(to + j, vf_load(x.at + j) * factors[t]);
}
MN_INLINE void mn_put_rows(const mn_tensor *x, int64_t row, int64_t first, int64_t count, int64_t head,
                           const float *from, int64_t n) {
    int64_t to = mn_place(x, row, first, head), whole = mn_whole(n);
    float *p = (float *)mn_base(x) + to;
    int plain = mn_plain(x, n);
    for (int64_t t = 0; t < count; t++, from += whole, to += x->token, p += x->token) {
        for (int64_t j = 0; plain && j < n; j += MN_W) vf_store(p + j, vf_load(from + j));
        if (!plain) mn_scatter(x, to, from, n, x->channel);
    }
}

/* Prefetch MN_TOKENS rows of n channels from `token` on: no processor predicts their addresses. */
MN_INLINE void mn_prefetch_rows(const mn_tensor *x, int64_t row, int64_t token, int64_t head, int64_t n) {
    int64_t width = mn_width((int)x->dtype);
    uintptr_t next = (uintptr_t)x->at + (uintptr_t)(mn_place(x, row, token, head) * width);
    for (int64_t t = 0; t < MN_TOKENS; t++, next += (uintptr_t)(x->token * width))
        for (int64_t i = 0; i < n * width; i += 64) __builtin_prefetch((const void *)(next + (uintptr_t)i));
}

/* Rows to be written: MN_TOKENS rows of floats in their tensor, or in `room` for mn_put_rows. */
typedef struct {
    float *at;
    int64_t step;
} mn_into;
MN_INLINE mn_into mn_rows_in(const mn_tensor *x, int64_t row, int64_t first, int64_t count, int64_t head, int64_t n,
                             float *room) {
    int64_t to = mn_place(x, row, first, head);
    if (count == MN_TOKENS && mn_plain(x, n)) return (mn_into){(float *)mn_base(x) + to, x->token};
    return (mn_into){room, mn_whole(n)};
}

MN_INLINE float mn_one(const mn_tensor *x, int64_t row, int64_t token, int64_t head) {
    return mn_read_one(mn_base(x), mn_place(x, row, token, head), (int)x->dtype);
}

MN_INLINE float mn_dot(const float *a, const float *b, int64_t whole) {
    vf sum = {0};
    for (int64_t j = 0; j < whole; j += MN_W) sum += vf_load(a + j) * vf_load(b + j);
    return mn_sum(sum);
}
MN_INLINE void mn_times(float *a, float factor, int64_t whole) {
    for (int64_t j = 0; j < whole; j += MN_W) vf_store(a + j, vf_load(a + j) * factor);
}
MN_INLINE void mn_zero(float *a, int64_t count) { memset(a, 0, (size_t)count * sizeof *a); }

#endif
