/* Which of the compiled variants this processor can run. */
#ifndef MN_CPU_H
#define MN_CPU_H

#include "common/mn.h"

enum { MN_BASE = 0, MN_AVX2 = 1, MN_AVX512 = 2 };

/* The variant in use: the best one, or a lower one that was selected. */
int mn_level(void);

#endif
