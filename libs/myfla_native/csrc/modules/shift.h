/* Token shift: delta[t] = x[t-1] - x[t], where the token before a sequence's first is its cache or zero. */
#ifndef MN_SHIFT_H
#define MN_SHIFT_H

#include "common/pick.h"
#include "common/sequences.h"

typedef struct {
    mn_sequences sequences;
    mn_rows x;          /* backward: the gradient of delta */
    const void *beside; /* [N, D]: the cache, or NULL; backward: the gradient of the last tokens */
    int beside_dtype;
    int64_t D;
    void *y;    /* [tokens, D] in the dtype of x: delta; backward: the gradient of x */
    void *last; /* [N, D] in the dtype of x: the last tokens; backward: the gradient of the cache */
} mn_shift;

MN_KERNEL(shift_forward, (const mn_shift *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(shift_backward, (const mn_shift *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(shift_last, (const mn_shift *a, int64_t begin, int64_t end, int slot))

#endif
