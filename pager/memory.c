#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "map.h"
#include "peer.h"
#include "report.h"

enum {
    COPY_BLOCKS = 64,    // at most so many in one fill under the gate
    ZERO_BLOCKS = 512,
    SPINS = 64,          // tries before a busy address space is given time
    SETTLE_NS = 50000,
    GONE_MS = 1000,      // between a machine that unmaps its memory and its end
};

static int uffd = -1;
static struct regions regions;
static pthread_rwlock_t gate;
static _Atomic uint64_t *removed;  // one bit per block; changed only while the gate is shut
static atomic_bool any_removed;
static atomic_bool released;  // the kernel serves whatever faults: nothing of what is still under way matters

void memory_open(int fd, const struct regions *described, uint32_t blocks) {
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&gate, &attributes);
    uffd = fd;
    regions = *described;
    removed = calloc(blocks / 64 + 1, sizeof *removed);
    if (!removed)
        fail("machine-failed", "", "the pager finds no memory for its tables");
}

int memory_fd(void) { return uffd; }

uint32_t memory_block(uint64_t address) { return regions_block(&regions, address); }

bool memory_is_removed(uint32_t block) {
    return atomic_load_explicit(&any_removed, memory_order_relaxed) &&
           atomic_load_explicit(&removed[block / 64], memory_order_relaxed) >> block % 64 & 1;
}

static uint64_t address_of(uint32_t block) {
    const struct region *region = regions_of(&regions, block);
    return region->address + (uint64_t)(block - region->first) * PAGE;
}

// One ioctl; the bytes done, or -errno.
static int64_t fill_once(uint64_t target, const uint8_t *source, uint64_t length) {
    int64_t done;
    int failed;
    if (source) {
        struct uffdio_copy copy = {.dst = target, .src = (uintptr_t)source, .len = length};
        failed = ioctl(uffd, UFFDIO_COPY, &copy);
        done = copy.copy;
    } else {
        struct uffdio_zeropage zero = {.range = {target, length}};
        failed = ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
        done = zero.zeropage;
    }
    return !failed ? (int64_t)length : done > 0 ? done : -errno;
}

static void settle(unsigned *tries) {
    if (++*tries < SPINS)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = SETTLE_NS}, NULL);
}

static _Noreturn void give_up(int error) {
    if (error == ESRCH || peer_is_gone(GONE_MS))
        leave();
    if (error == EFAULT)
        fail("snapshot-invalid", "The template was damaged after the restore began.", "the template's memory cannot be read");
    fail("machine-failed", "", "the machine's memory cannot be filled: %s", strerror(error));
}

void memory_fill(uint32_t first, uint32_t end, const uint8_t *source, struct filled *filled) {
    unsigned tries = 0;
    while (first < end) {
        const struct region *region = regions_of(&regions, first);
        uint32_t most = source ? COPY_BLOCKS : ZERO_BLOCKS, stop = end < region->end ? end : region->end;
        stop = stop - first > most ? first + most : stop;
        const uint8_t *from = source;
        pthread_rwlock_rdlock(&gate);
        if (source && atomic_load_explicit(&any_removed, memory_order_relaxed)) {
            bool gone = memory_is_removed(first);
            uint32_t same = first + 1;
            while (same < stop && memory_is_removed(same) == gone)
                same++;
            stop = same;
            from = gone ? NULL : source;
        }
        int64_t done = fill_once(address_of(first), from, (uint64_t)(stop - first) * PAGE);
        pthread_rwlock_unlock(&gate);
        if (done == -EEXIST) {
            memory_wake(first);
            done = PAGE;
        } else if (done > 0) {
            *(from ? &filled->copied : &filled->zeroed) += (uint64_t)done;
        }
        if (done > 0) {
            tries = 0;
            first += (uint32_t)(done / PAGE);
            source = source ? source + done : NULL;
        } else if (done == -ENOENT && atomic_load(&released)) {
            return;
        } else if (done == -EAGAIN || done == -EINTR) {
            settle(&tries);
        } else {
            give_up((int)-done);
        }
    }
}

void memory_wake(uint32_t block) {
    struct uffdio_range range = {address_of(block), PAGE};
    ioctl(uffd, UFFDIO_WAKE, &range);
}

static void remember_removed(uint64_t start, uint64_t end) {
    atomic_store_explicit(&any_removed, true, memory_order_relaxed);
    for (uint32_t i = 0; i < regions.count; i++) {
        const struct region *region = &regions.region[i];
        uint64_t low = start > region->address ? start - region->address : 0;
        uint64_t high = end > region->address ? end - region->address : 0;
        uint64_t length = (uint64_t)(region->end - region->first) * PAGE;
        low = low < length ? low : length;
        high = high < length ? high : length;
        uint32_t block = region->first + (uint32_t)(low / PAGE), stop = region->first + (uint32_t)(high / PAGE);
        while (block < stop) {  // a word at a time: a balloon may take gigabytes
            uint32_t here = block % 64, count = 64 - here < stop - block ? 64 - here : stop - block;
            uint64_t bits = (count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1) << here;
            atomic_fetch_or_explicit(&removed[block / 64], bits, memory_order_relaxed);
            block += count;
        }
    }
}

uint32_t memory_events(struct uffd_msg *events, uint32_t capacity) {
    pthread_rwlock_wrlock(&gate);
    ssize_t size = read(uffd, events, capacity * sizeof *events);
    int error = errno;
    uint32_t count = size > 0 ? (uint32_t)((size_t)size / sizeof *events) : 0;
    for (uint32_t i = 0; i < count; i++)
        if (events[i].event == UFFD_EVENT_REMOVE)
            remember_removed(events[i].arg.remove.start, events[i].arg.remove.end);
    pthread_rwlock_unlock(&gate);
    if (size < 0 && error != EAGAIN && error != EINTR)
        fail("machine-failed", "", "events of the machine's memory cannot be read: %s", strerror(error));
    return count;
}

static struct uffdio_range whole(const struct region *region) {
    return (struct uffdio_range){region->address, (uint64_t)(region->end - region->first) * PAGE};
}

void memory_release(void) {
    atomic_store(&released, true);
    for (uint32_t i = 0; i < regions.count; i++) {
        struct uffdio_range range = whole(&regions.region[i]);
        if (ioctl(uffd, UFFDIO_UNREGISTER, &range) < 0)
            give_up(errno);
    }
    // The kernel wakes who waits before it lets go of the range, and with its locks per mapping (since 6.4) a fault may still
    // slip in between, to wait for ever. Now none can any more.
    for (uint32_t i = 0; i < regions.count; i++) {
        struct uffdio_range range = whole(&regions.region[i]);
        ioctl(uffd, UFFDIO_WAKE, &range);
    }
    // A removal that began before may still wait for its event to be read, and would wait for ever. While one does, any
    // fill is refused with EAGAIN before anything else about it is looked at.
    for (unsigned tries = 0; fill_once(0, (const uint8_t *)PAGE, PAGE) == -EAGAIN;) {
        struct uffd_msg event;
        memory_events(&event, 1);
        settle(&tries);
    }
}
