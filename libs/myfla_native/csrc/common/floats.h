/* Small parameters of any dtype as floats. */
#ifndef MN_FLOATS_H
#define MN_FLOATS_H

#include "common/pick.h"

typedef struct {
    const void *from;
    float *to;
    int64_t outer, inner; /* [outer, inner] transposed, with its outer axis reversed; unchanged if outer = 1 */
    int dtype;
} mn_floats;

MN_KERNEL(as_floats, (const mn_floats *a, int64_t begin, int64_t end, int slot))

#endif
