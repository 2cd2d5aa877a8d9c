#define _GNU_SOURCE
#include "work.h"

#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "report.h"

enum { NICE = 5, WORKERS_MAX = 4, AHEAD_LEAST = 4, AHEAD_MOST = 64, IDLE_MS = 500, WANTED_MOST = 64 };

struct work work = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int own_nice;  // what the whole program was started with

static struct {  // what was brought ahead of a reader in order: blocks [from, next), in so many frames and windows
    uint32_t from, next, size;
} stream;

static void *table(size_t count, size_t size) {
    void *made = calloc(count, size);
    if (!made)
        fail("machine-failed", "", "the pager finds no memory for its tables");
    return made;
}

void work_open(const struct map *map) {
    size_t words = map->blocks / 64 + 1;
    work.map = map;
    work.frame = table(map->frames + 1, 1);
    work.claimed = table(words, sizeof *work.claimed);
    work.filled = table(words, sizeof *work.filled);
    work.woken = table(words, sizeof *work.woken);
}

// Choosing: all of this is locked ------------------------------------------------------------------------------------

uint32_t work_window(uint32_t block, uint32_t *end) {
    uint32_t run = map_run(work.map, block);
    uint32_t size = work.map->source[run] == SOURCE_ZERO ? ZERO_WINDOW : TEMPLATE_WINDOW;
    uint32_t low = block / size * size, high = low + size;
    *end = high < map_end(work.map, run) ? high : map_end(work.map, run);
    return low > work.map->first[run] ? low : work.map->first[run];
}

// Whether a block is in memory, or on its way.
static bool is_begun(uint32_t block) {
    uint32_t source = work.map->source[map_run(work.map, block)], end;
    if (source < SOURCE_FRAME)
        return bit_of(work.claimed, work_window(block, &end));
    return work.frame[source - SOURCE_FRAME] == FRAME_BUSY || work.frame[source - SOURCE_FRAME] == FRAME_PLACED;
}

// Frames and windows from a block on are wanted soon.
static void bring_ahead(uint32_t block, uint32_t units) {
    const struct map *map = work.map;
    stream.from = block;
    for (; units && block < map->blocks; units--) {
        uint32_t run = map_run(map, block), end = map_end(map, run);
        if (map->source[run] < SOURCE_FRAME)
            work_window(block, &end);
        ring_put(&work.ahead, block);
        block = end;
    }
    stream.next = block;
    pthread_cond_broadcast(&work.ready);
}

// A fault came for this block. Where the block before it is there a reader goes through in order: bring what follows,
// the more the longer that goes on, and again before it has reached the end of it.
static void read_ahead(uint32_t block) {
    if (block >= stream.from && block < stream.next) {
        if (block - stream.from < (stream.next - stream.from) / 2)
            return;
        stream.size = 2 * stream.size < AHEAD_MOST ? 2 * stream.size : AHEAD_MOST;
        bring_ahead(stream.next, stream.size);
    } else if (block && !is_begun(block) && is_begun(block - 1)) {
        stream.size = block == stream.next ? 2 * stream.size : AHEAD_LEAST;
        stream.size = stream.size < AHEAD_LEAST ? AHEAD_LEAST : stream.size < AHEAD_MOST ? stream.size : AHEAD_MOST;
        bring_ahead(block, stream.size + 1);
    }
}

// False: nothing is to be done for this fault; whoever is at it already will wake who waits.
static bool for_frame(uint32_t frame, uint32_t block, struct job *job, bool *stale) {
    enum frame_state state = work.frame[frame];
    *stale = state == FRAME_PLACED;
    if (state == FRAME_IDLE && wanted_is_absent(frame)) {
        touched_add(block);
        wanted_ask(frame, true);
    } else if (state == FRAME_WANTED) {
        wanted_ask(frame, true);
    } else if (state == FRAME_IDLE || state == FRAME_HELD) {
        touched_add(block);
        *job = (struct job){.kind = JOB_FRAME, .number = frame};
        if (state == FRAME_HELD)
            job->content = hot_content(frame);
        work.frame[frame] = FRAME_BUSY;
        return true;
    } else if (state == FRAME_BUSY) {
        work.figures.stale_faults++;
    }
    return false;
}

static bool take_fault(struct job *job) {
    uint32_t block;
    while (ring_take(&work.faults, &block)) {
        uint32_t run = map_run(work.map, block), source = work.map->source[run];
        bool stale = false;
        work.figures.faults++;
        if (memory_is_removed(block)) {
            *job = (struct job){.kind = JOB_BLOCK, .number = block};
            return true;
        }
        read_ahead(block);
        if (source >= SOURCE_FRAME) {
            if (for_frame(source - SOURCE_FRAME, block, job, &stale))
                return true;
        } else {
            uint32_t end;
            if (work_take_window(block, job)) {
                touched_add(block);
                return true;
            }
            stale = bit_of(work.filled, work_window(block, &end));
            work.figures.stale_faults += !stale;
        }
        if (!stale)
            continue;
        work.figures.stale_faults++;
        // It came while its content was on the way: who waits may go on. If it comes again, the page is really not there.
        *job = (struct job){.kind = bit_of(work.woken, block) ? JOB_BLOCK : JOB_WAKE, .number = block};
        if (job->kind == JOB_WAKE)
            bit_set(work.woken, block);
        else
            bit_clear(work.woken, block);
        return true;
    }
    return false;
}

// A frame that nobody is at yet.
static bool take_frame(uint32_t frame, struct job *job) {
    if (work.frame[frame] != FRAME_IDLE)
        return false;
    if (wanted_is_absent(frame)) {
        wanted_ask(frame, false);
        return false;
    }
    work.frame[frame] = FRAME_BUSY;
    *job = (struct job){.kind = JOB_FRAME, .number = frame};
    return true;
}

bool work_take_window(uint32_t block, struct job *job) {
    uint32_t end, first = work_window(block, &end);
    if (bit_of(work.claimed, first))
        return false;
    bit_set(work.claimed, first);
    *job = (struct job){.kind = JOB_WINDOW, .number = first, .end = end};
    return true;
}

static bool take_arrived(struct job *job) {
    uint32_t frame;
    while (ring_take(&work.arrived, &frame))
        if (take_frame(frame, job))
            return true;
    return false;
}

static bool take_ahead(struct job *job) {
    uint32_t block;
    while (ring_take(&work.ahead, &block)) {
        uint32_t source = work.map->source[map_run(work.map, block)];
        if (source < SOURCE_FRAME ? work_take_window(block, job) : take_frame(source - SOURCE_FRAME, job))
            return true;
    }
    return false;
}

static bool take_rest(struct job *job) {
    const struct map *map = work.map;
    while (work.populate_run < map->runs) {
        uint32_t run = work.populate_run, source = map->source[run], end;
        uint32_t block = work.populate_block > map->first[run] ? work.populate_block : map->first[run];
        if (source == SOURCE_TEMPLATE && block < map_end(map, run)) {
            work_window(block, &end);
            work.populate_block = end;
            if (work_take_window(block, job))
                return true;
            continue;
        }
        if (source >= SOURCE_FRAME) {
            uint32_t frame = source - SOURCE_FRAME;
            if (work.frame[frame] == FRAME_IDLE && wanted_is_absent(frame) && wanted_count() >= WANTED_MOST)
                return false;  // what the node fetches first is wanted first
            if (take_frame(frame, job)) {
                work.populate_run++;
                return true;
            }
        }
        work.populate_run++;  // zeros need no filling: they are what is found where nothing was
    }
    return false;
}

static bool choose(struct job *job) {
    if (work.serving && (take_fault(job) || take_arrived(job) || take_ahead(job)))
        return true;
    if (!hot_take(job) && !(work.serving && work.populating && take_rest(job)))
        return false;
    job->patient = true;
    return true;
}

bool work_is_complete(void) {
    pthread_mutex_lock(&work.lock);
    bool complete = work.serving && work.populating && !work.busy && work.populate_run == work.map->runs &&
                    !work.faults.count && !work.arrived.count && !work.ahead.count && !wanted_count() && hot_is_done();
    pthread_mutex_unlock(&work.lock);
    return complete;
}

// Doing: none of this is locked --------------------------------------------------------------------------------------

static void do_job(struct lane *lane, const struct job *job) {
    switch (job->kind) {
    case JOB_FRAME: place_frame_job(lane, job); break;
    case JOB_WINDOW: place_window(job); break;
    case JOB_BLOCK: place_block(lane, job->number); break;
    case JOB_WAKE: memory_wake(job->number); break;
    case JOB_EXTENT: hot_extent(lane, job->number); break;
    case JOB_HELD: hot_held(lane, job->number); break;
    }
}

// What nobody waits for yet must not take the processor from the machine, or from faults. (CAP_SYS_NICE is needed for
// the way back: without it, it stays as it is.)
static void be_nice(struct lane *lane, int nice) {
    if (lane->nice != nice && geteuid() == 0 && setpriority(PRIO_PROCESS, (id_t)gettid(), own_nice + nice) == 0)
        lane->nice = nice;
}

void work_urgent(struct lane *lane) {
    struct job job;
    int nice = lane->nice;
    for (;;) {
        pthread_mutex_lock(&work.lock);
        bool found = work.serving && (take_fault(&job) || take_arrived(&job));
        pthread_mutex_unlock(&work.lock);
        if (!found)
            break;
        be_nice(lane, 0);
        do_job(lane, &job);
    }
    be_nice(lane, nice);
}

static void trim(struct lane *lane) {
    buffer_trim(&lane->frame);
    buffer_trim(&lane->content);
    buffer_trim(&lane->extent);
    template_trim();
}

static void *run_worker(void *unused) {
    struct lane lane = {0};
    struct job job;
    bool trimmed = true;
    (void)unused;
    pthread_mutex_lock(&work.lock);
    for (;;) {
        while (!choose(&job)) {
            if (work.populating)
                eventfd_write(wanted_signal, 1);  // whether it is complete is looked at by who says so
            struct timespec until;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_sec += IDLE_MS / 1000;
            until.tv_nsec += IDLE_MS % 1000 * 1000000;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            if (trimmed) {
                pthread_cond_wait(&work.ready, &work.lock);
            } else if (pthread_cond_timedwait(&work.ready, &work.lock, &until)) {
                trim(&lane);
                trimmed = true;
            }
        }
        trimmed = false;
        work.busy++;
        pthread_mutex_unlock(&work.lock);
        be_nice(&lane, job.patient ? NICE : 0);
        do_job(&lane, &job);
        pthread_mutex_lock(&work.lock);
        work.busy--;
    }
    return NULL;
}

void work_start(void) {
    cpu_set_t usable;
    own_nice = getpriority(PRIO_PROCESS, 0);
    int count = sched_getaffinity(0, sizeof usable, &usable) ? 1 : CPU_COUNT(&usable);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&work.ready, &attributes);
    for (int i = 0; i < (count < WORKERS_MAX ? count : WORKERS_MAX); i++) {
        pthread_t thread;
        int error = pthread_create(&thread, NULL, run_worker, NULL);
        if (error && !i)
            fail("machine-failed", "", "the pager cannot start a thread: %s", strerror(error));
    }
}

void work_serve(void) {
    pthread_mutex_lock(&work.lock);
    work.serving = true;
    touched_begin();
    pthread_cond_broadcast(&work.ready);
    pthread_mutex_unlock(&work.lock);
}

void work_faults(const uint32_t *blocks, uint32_t count) {
    pthread_mutex_lock(&work.lock);
    for (uint32_t i = 0; i < count; i++)
        ring_put(&work.faults, blocks[i]);
    pthread_mutex_unlock(&work.lock);
    if (count > 1)
        pthread_cond_broadcast(&work.ready);
    else if (count)
        pthread_cond_signal(&work.ready);
}

void work_populate(void) {
    pthread_mutex_lock(&work.lock);
    work.populating = true;
    pthread_cond_broadcast(&work.ready);
    pthread_mutex_unlock(&work.lock);
}
