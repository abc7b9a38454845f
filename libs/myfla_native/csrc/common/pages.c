/* Pages of memory. */
#include "common/mn.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

/* Asks for huge pages in new memory, where the system has them: whole small pages are touched one by one otherwise. */
MN_API int mn_huge_pages(void *at, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)at + page - 1) / page * page, end = ((uintptr_t)at + (uintptr_t)bytes) / page * page;
    if (end > first) madvise((void *)first, end - first, MADV_HUGEPAGE); /* advice: a refusal changes no result */
#else
    (void)at, (void)bytes;
#endif
    return MN_DONE;
}
