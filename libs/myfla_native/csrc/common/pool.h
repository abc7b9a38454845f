/* Splits work over the threads of this library. */
#ifndef MN_POOL_H
#define MN_POOL_H

#include "common/mn.h"

/* Items begin to end (exclusive) of a job. slot: the number of the worker, from 0, and of its scratch area. */
typedef void (*mn_task)(const void *args, int64_t begin, int64_t end, int slot);

/* The largest number of workers for a job; slots are below this. */
int mn_slots(int64_t count, int64_t piece, int threads);

/* Call task for every piece of `piece` items out of `count`, on at most `threads` threads, and wait.
 *
 * Everything runs on the calling thread if there is one piece, or while another thread uses the workers, so no thread
 * waits for them. Results must not depend on which worker gets which piece. Returns MN_DONE. */
int mn_parallel(mn_task task, const void *args, int64_t count, int64_t piece, int threads);

#endif
