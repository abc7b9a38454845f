/* Scratch memory, aligned for vectors. */
#ifndef MN_MEMORY_H
#define MN_MEMORY_H

#include <stddef.h>
#include <stdlib.h>

#include "common/mn.h"

/* `bytes` of memory at a multiple of 64, or NULL. For mn_free. */
MN_INLINE void *mn_alloc(int64_t bytes) {
    size_t size = (size_t)mn_max(bytes, 1);
#if defined(_WIN32)
    return _aligned_malloc(size, 64);
#else
    void *memory = NULL;
    return posix_memalign(&memory, 64, size) ? NULL : memory;
#endif
}

MN_INLINE void mn_free(void *memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

/* `count` floats rounded up to whole cache lines, so that the memory after them is aligned too. */
MN_INLINE int64_t mn_padded(int64_t count) { return (count + 15) / 16 * 16; }

#endif
