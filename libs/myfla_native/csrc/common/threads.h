/* Mutex, condition and thread of POSIX and Windows under common names. */
#ifndef MN_THREADS_H
#define MN_THREADS_H

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

typedef SRWLOCK mn_mutex;
typedef CONDITION_VARIABLE mn_cond;
#define MN_MUTEX_INIT SRWLOCK_INIT
#define MN_COND_INIT CONDITION_VARIABLE_INIT
static inline void mn_lock(mn_mutex *m) { AcquireSRWLockExclusive(m); }
static inline int mn_try_lock(mn_mutex *m) { return TryAcquireSRWLockExclusive(m); }
static inline void mn_unlock(mn_mutex *m) { ReleaseSRWLockExclusive(m); }
static inline void mn_wait(mn_cond *c, mn_mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
static inline void mn_wake_all(mn_cond *c) { WakeAllConditionVariable(c); }

typedef DWORD mn_thread_result;
#define MN_THREAD_CALL WINAPI

/* 1 if the thread runs. */
static inline int mn_start(mn_thread_result(MN_THREAD_CALL *body)(void *), void *given) {
    HANDLE thread = CreateThread(NULL, 0, body, given, 0, NULL);
    if (!thread) return 0;
    CloseHandle(thread);
    return 1;
}

#else

#include <pthread.h>
#include <signal.h>

typedef pthread_mutex_t mn_mutex;
typedef pthread_cond_t mn_cond;
#define MN_MUTEX_INIT PTHREAD_MUTEX_INITIALIZER
#define MN_COND_INIT PTHREAD_COND_INITIALIZER
static inline void mn_lock(mn_mutex *m) { pthread_mutex_lock(m); }
static inline int mn_try_lock(mn_mutex *m) { return pthread_mutex_trylock(m) == 0; }
static inline void mn_unlock(mn_mutex *m) { pthread_mutex_unlock(m); }
static inline void mn_wait(mn_cond *c, mn_mutex *m) { pthread_cond_wait(c, m); }
static inline void mn_wake_all(mn_cond *c) { pthread_cond_broadcast(c); }

typedef void *mn_thread_result;
#define MN_THREAD_CALL

/* 1 if the thread runs. It blocks signals, which are for the interpreter's main thread. */
static inline int mn_start(mn_thread_result(MN_THREAD_CALL *body)(void *), void *given) {
    pthread_t thread;
    pthread_attr_t how;
    sigset_t every, before;
    int failed;
    if (pthread_attr_init(&how)) return 0;
    pthread_attr_setdetachstate(&how, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&how, (size_t)1 << 21); /* on some systems the default stack of threads is very small */
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    failed = pthread_create(&thread, &how, body, given);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&how);
    return !failed;
}

#endif
#endif
