/* What every file knows: how functions are exported, how numbers are stored, what a call answers. */
#ifndef MN_H
#define MN_H

#include <stdint.h>

#if defined(_WIN32)
#define MN_API __declspec(dllexport)
#else
#define MN_API __attribute__((visibility("default")))
#endif

#define MN_INLINE static inline __attribute__((always_inline, unused))

/* Number formats of tensors; arithmetic is in float whatever they are. */
enum { MN_F32 = 0, MN_BF16 = 1, MN_F16 = 2 };

/* What an exported function returns. */
enum { MN_DONE = 0, MN_NO_MEMORY = 1 };

/* Raised by one whenever the meaning of an exported function changes. */
#define MN_INTERFACE 4

MN_INLINE int64_t mn_min(int64_t a, int64_t b) { return a < b ? a : b; }
MN_INLINE int64_t mn_max(int64_t a, int64_t b) { return a > b ? a : b; }
MN_INLINE int64_t mn_blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }
MN_INLINE int64_t mn_width(int dtype) { return dtype == MN_F32 ? 4 : 2; }

#endif
