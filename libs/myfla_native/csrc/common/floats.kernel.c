#include "common/floats.h"

#include "common/load.h"

/* Columns begin .. end of `inner`. */
void MN_VARIANT(as_floats)(const mn_floats *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    if (a->outer == 1) {
        mn_read(a->to + begin, a->from, begin, end - begin, a->dtype);
        return;
    }
    for (int64_t j = begin; j < end; j++)
        for (int64_t i = 0; i < a->outer; i++)
            a->to[(a->outer - 1 - i) * a->inner + j] = mn_read_one(a->from, j * a->outer + i, a->dtype);
}
