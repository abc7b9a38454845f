/* Definitions for every file: exported functions, dtypes of tensors, and results of calls. */
#ifndef MN_H
#define MN_H

#include <stdint.h>

#if defined(_WIN32)
#define MN_API __declspec(dllexport)
#else
#define MN_API __attribute__((visibility("default")))
#endif

#define MN_INLINE static inline __attribute__((always_inline, unused))

/* Dtypes of tensors; arithmetic is always in float. */
enum { MN_F32 = 0, MN_BF16 = 1, MN_F16 = 2 };

/* The results of exported functions. */
enum { MN_DONE = 0, MN_NO_MEMORY = 1 };

/* Increased by one with every change of what an exported function does. */
#define MN_INTERFACE 7

MN_INLINE int64_t mn_min(int64_t a, int64_t b) { return a < b ? a : b; }
MN_INLINE int64_t mn_max(int64_t a, int64_t b) { return a > b ? a : b; }
MN_INLINE int64_t mn_blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }
MN_INLINE int64_t mn_width(int dtype) { return dtype == MN_F32 ? 4 : 2; }

#endif
