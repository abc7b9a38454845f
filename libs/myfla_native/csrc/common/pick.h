/* A kernel exists once for every kind of processor: `*.kernel.c` is compiled with each MN_SUFFIX. */
#ifndef MN_PICK_H
#define MN_PICK_H

#include "common/cpu.h"
#include "common/mn.h"
#include "common/pool.h"

#define MN_JOIN_(a, b) a##_##b
#define MN_JOIN(a, b) MN_JOIN_(a, b)
#define MN_VARIANT(name) MN_JOIN(name, MN_SUFFIX)

#if defined(__x86_64__) && !defined(MN_ONE_VARIANT) /* instrumented builds have one variant, for this processor */
#define MN_KERNEL(name, arguments) \
    void name##_base arguments;    \
    void name##_avx2 arguments;    \
    void name##_avx512 arguments;
#define MN_PICK(name) (mn_level() == MN_AVX512 ? name##_avx512 : mn_level() == MN_AVX2 ? name##_avx2 : name##_base)
#else
#define MN_KERNEL(name, arguments) void name##_base arguments;
#define MN_PICK(name) name##_base
#endif

#endif
