#define _GNU_SOURCE
#include "crew.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { THREADS_MAX = 4 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static int threads, busy;      // beside the main one; those that have not ended the task
static unsigned long task;     // its number
static void (*do_one_of_task)(void *, size_t);
static void *context_of_task;
static size_t count_of_task;
static atomic_size_t next;

static void work(void) {
    for (size_t number; (number = atomic_fetch_add(&next, 1)) < count_of_task;)
        do_one_of_task(context_of_task, number);
}

static void *live(void *none) {
    (void)none;
    unsigned long seen = 0;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (task == seen)
            pthread_cond_wait(&begun, &lock);
        seen = task;
        pthread_mutex_unlock(&lock);
        work();
        pthread_mutex_lock(&lock);
        if (--busy == 0)
            pthread_cond_signal(&ended);
    }
    return NULL;
}

void crew_start(void) {
    cpu_set_t usable;
    int processors = sched_getaffinity(0, sizeof usable, &usable) ? 1 : CPU_COUNT(&usable);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    while (threads + 1 < processors && threads + 1 < THREADS_MAX) {
        pthread_t thread;
        if (pthread_create(&thread, &small, live, NULL) != 0)
            break;  // with fewer it takes longer
        threads++;
    }
    pthread_attr_destroy(&small);
}

void crew_do(size_t count, void (*do_one)(void *context, size_t number), void *context) {
    pthread_mutex_lock(&lock);
    do_one_of_task = do_one;
    context_of_task = context;
    count_of_task = count;
    atomic_store(&next, 0);
    busy = threads;
    task++;
    pthread_cond_broadcast(&begun);
    pthread_mutex_unlock(&lock);
    work();
    pthread_mutex_lock(&lock);
    while (busy)
        pthread_cond_wait(&ended, &lock);
    pthread_mutex_unlock(&lock);
}
