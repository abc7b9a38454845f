#include "common/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t enabled_state(void) { /* which registers the operating system saves */
    uint32_t low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int best(void) {
    uint32_t a, b, c, d, first, second;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return MN_BASE;
    first = c;
    if (!(first >> 27 & 1) || (enabled_state() & 6) != 6) return MN_BASE;    /* OSXSAVE; xmm and ymm */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return MN_BASE;
    second = b;
    if (!(first >> 12 & 1) || !(first >> 29 & 1) || !(second >> 5 & 1)) return MN_BASE; /* FMA, F16C, AVX2 */
    if ((enabled_state() & 0xe0) != 0xe0) return MN_AVX2;                               /* zmm and masks */
    if (!(second >> 16 & 1) || !(second >> 17 & 1) || !(second >> 30 & 1) || !(second >> 31 & 1)) return MN_AVX2;
    return MN_AVX512; /* F, DQ, BW, VL */
}

static int of_amd(void) {
    uint32_t a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == 0x68747541 && d == 0x69746e65 && c == 0x444d4163; /* AuthenticAMD */
}
#else
static int best(void) { return MN_BASE; }
static int of_amd(void) { return 0; }
#endif

static int level = -1;

int mn_level(void) {
    int found = __atomic_load_n(&level, __ATOMIC_RELAXED);
    if (found < 0) __atomic_store_n(&level, found = best(), __ATOMIC_RELAXED);
    return found;
}

/* Use a lower variant, for tests; a negative number selects the best. Returns the variant that is now in use. */
MN_API int mn_set_level(int wanted) {
    int most = best();
    __atomic_store_n(&level, wanted < 0 || wanted > most ? most : wanted, __ATOMIC_RELAXED);
    return mn_level();
}

/* Whether the products of `products/joint.h` are faster here than those of the usual BLAS. */
MN_API int mn_products_pay(void) { return of_amd() && mn_level() != MN_BASE; }

MN_API int mn_interface(void) { return MN_INTERFACE; }
