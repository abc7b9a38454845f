/* Work split over a few threads of our own. */
#ifndef MN_POOL_H
#define MN_POOL_H

#include "common/mn.h"

/* Items begin to end (exclusive) of a job. slot: which worker, from 0, so which scratch area. */
typedef void (*mn_task)(const void *args, int64_t begin, int64_t end, int slot);

/* How many workers a job gets at most: slots are below this. */
int mn_slots(int64_t count, int64_t piece, int threads);

/* Call task for every piece of `piece` items out of `count`, on at most `threads` threads, and wait.
 *
 * Everything runs on the calling thread if there is one piece, or while another thread has the workers: nobody waits
 * for them. Which worker gets which piece is open, so no result may depend on it. Answers MN_DONE. */
int mn_parallel(mn_task task, const void *args, int64_t count, int64_t piece, int threads);

#endif
