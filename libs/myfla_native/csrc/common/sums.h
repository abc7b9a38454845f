/* Partial sums of blocks, added in order: the bits do not depend on which thread computed a block. */
#ifndef MN_SUMS_H
#define MN_SUMS_H

#include "common/pick.h"

typedef struct {
    const float *partial; /* [blocks, width] */
    float *total;         /* [width] */
    int64_t blocks, width;
} mn_sums;

MN_KERNEL(add_blocks, (const mn_sums *a, int64_t begin, int64_t end, int slot))

/* total = sum of the blocks. */
MN_INLINE int mn_add_blocks(const float *partial, float *total, int64_t blocks, int64_t width, int threads) {
    mn_sums a = {partial, total, blocks, width};
    return mn_parallel((mn_task)MN_PICK(add_blocks), &a, width, mn_max(1024, (1 << 16) / mn_max(blocks, 1)), threads);
}

#endif
