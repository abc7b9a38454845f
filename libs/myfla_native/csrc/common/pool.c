/* The workers are started when first needed, sleep between jobs, and end with the process.
 *
 * They do one job at a time: a thread that finds `owner` taken computes alone. A child of fork() has none of its
 * parent's threads, and its locks are in an unknown state; `reset` initialises all of it. */
#include "common/pool.h"

#include <stddef.h>

#include "common/threads.h"

enum { MOST_WORKERS = 255, SPINS = 1500 };

typedef struct {
    mn_task task;
    const void *args;
    int64_t count, piece;
    int64_t next; /* first item that nobody has taken */
} job;

static mn_mutex owner = MN_MUTEX_INIT;
static mn_mutex lock = MN_MUTEX_INIT; /* over all below */
static mn_cond wake = MN_COND_INIT, done = MN_COND_INIT;
static int workers, wanted, busy;
static uint64_t round_number;
static job current;

static void run(job *j, int slot) {
    for (;;) {
        int64_t begin = __atomic_fetch_add(&j->next, j->piece, __ATOMIC_RELAXED);
        if (begin >= j->count) return;
        j->task(j->args, begin, mn_min(begin + j->piece, j->count), slot);
    }
}

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static mn_thread_result MN_THREAD_CALL work(void *given) {
    int number = (int)(intptr_t)given;
    uint64_t seen = 0;
    mn_lock(&lock);
    for (;;) {
        while (round_number == seen || number > wanted) {
            seen = round_number;
            mn_unlock(&lock);
            for (int i = 0; i < SPINS && __atomic_load_n(&round_number, __ATOMIC_RELAXED) == seen; i++) pause_briefly();
            mn_lock(&lock);
            if (round_number == seen) mn_wait(&wake, &lock);
        }
        seen = round_number;
        mn_unlock(&lock);
        run(&current, number);
        mn_lock(&lock);
        if (__atomic_sub_fetch(&busy, 1, __ATOMIC_RELEASE) == 0) mn_wake_all(&done);
    }
    return 0;
}

#if !defined(_WIN32)
static void reset(void) {
    static const mn_mutex fresh = MN_MUTEX_INIT;
    static const mn_cond unused = MN_COND_INIT;
    owner = lock = fresh;
    wake = done = unused;
    workers = wanted = busy = 0;
    round_number = 0;
}
#endif

/* Start workers until there are `count`, or as many as the system allows. The caller must hold `owner`. */
static int at_least(int count) {
    if (workers < count) {
#if !defined(_WIN32)
        static int registered; /* a child keeps its parent's handlers */
        if (!registered) registered = pthread_atfork(NULL, NULL, reset) == 0;
        if (!registered) return 0;
#endif
        while (workers < count && mn_start(work, (void *)(intptr_t)(workers + 1))) workers++;
    }
    return (int)mn_min(count, workers);
}

int mn_slots(int64_t count, int64_t piece, int threads) {
    return (int)mn_max(1, mn_min(mn_min(threads, MOST_WORKERS + 1), mn_blocks(count, piece)));
}

int mn_parallel(mn_task task, const void *args, int64_t count, int64_t piece, int threads) {
    int others = mn_slots(count, piece, threads) - 1;
    if (count <= 0) return MN_DONE;
    if (others < 1 || !mn_try_lock(&owner)) {
        for (int64_t i = 0; i < count; i += piece) task(args, i, mn_min(i + piece, count), 0);
        return MN_DONE;
    }
    others = at_least(others);
    mn_lock(&lock);
    current = (job){task, args, count, piece, 0};
    wanted = others;
    busy = others;
    __atomic_add_fetch(&round_number, 1, __ATOMIC_RELEASE);
    if (others) mn_wake_all(&wake);
    mn_unlock(&lock);
    run(&current, 0);
    for (int i = 0; i < SPINS && __atomic_load_n(&busy, __ATOMIC_ACQUIRE); i++) pause_briefly();
    mn_lock(&lock);
    while (busy) mn_wait(&done, &lock);
    mn_unlock(&lock);
    mn_unlock(&owner);
    return MN_DONE;
}
