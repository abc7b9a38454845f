/* Tokens of several sequences as one row of numbers 0 .. tokens: a batch laid end to end, or packed sequences. */
#ifndef MN_SEQUENCES_H
#define MN_SEQUENCES_H

#include <stddef.h>

#include "common/mn.h"

typedef struct {
    const int64_t *offsets; /* [count + 1] of packed sequences, or NULL: `count` sequences of `length` tokens each */
    int64_t count, length;
} mn_sequences;

MN_INLINE int64_t mn_sequence_begin(const mn_sequences *s, int64_t n) { return s->offsets ? s->offsets[n] : n * s->length; }
MN_INLINE int64_t mn_sequence_end(const mn_sequences *s, int64_t n) { return mn_sequence_begin(s, n + 1); }

/* The sequence that a token belongs to. */
MN_INLINE int64_t mn_sequence_of(const mn_sequences *s, int64_t token) {
    int64_t low = 0, high = s->count;
    if (!s->offsets) return token / s->length;
    while (high - low > 1) { /* the last one that begins at the token or before */
        int64_t middle = low + (high - low) / 2;
        if (s->offsets[middle] <= token) low = middle;
        else high = middle;
    }
    return low;
}

/* Rows of a tensor [B, T, D] by token number: element strides of a sequence and of a token; packed: B = 1. */
typedef struct {
    const void *data;
    int64_t batch, token;
    int dtype;
} mn_rows;

MN_INLINE int64_t mn_row(const mn_rows *r, const mn_sequences *s, int64_t n, int64_t token) {
    return s->offsets ? token * r->token : n * r->batch + (token - n * s->length) * r->token;
}

#endif
