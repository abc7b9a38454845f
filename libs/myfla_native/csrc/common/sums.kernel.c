#include "common/sums.h"

#include "common/vec.h"

void MN_VARIANT(add_blocks)(const mn_sums *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    int64_t j = begin;
    for (; j + MN_W <= end; j += MN_W) {
        vf sum = vf_set(0);
        for (int64_t b = 0; b < a->blocks; b++) sum += vf_load(a->partial + b * a->width + j);
        vf_store(a->total + j, sum);
    }
    for (; j < end; j++) {
        float sum = 0;
        for (int64_t b = 0; b < a->blocks; b++) sum += a->partial[b * a->width + j];
        a->total[j] = sum;
    }
}
