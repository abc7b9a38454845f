/* Small parameters as floats, whatever they are stored as. */
#ifndef MN_FLOATS_H
#define MN_FLOATS_H

#include "common/pick.h"

typedef struct {
    const void *from;
    float *to;
    int64_t outer, inner; /* [outer, inner] transposed and its outer axis reversed, or outer = 1: as it is */
    int dtype;
} mn_floats;

MN_KERNEL(as_floats, (const mn_floats *a, int64_t begin, int64_t end, int slot))

#endif
