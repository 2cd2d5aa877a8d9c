#include "events.h"

#include <poll.h>
#include <pthread.h>
#include <string.h>

#include "memory.h"
#include "report.h"
#include "work.h"

enum { EVENTS = 64 };

static void *run_events(void *unused) {
    static struct uffd_msg events[EVENTS];
    (void)unused;
    for (;;) {
        uint32_t blocks[EVENTS], count = 0;
        struct pollfd waiting = {.fd = memory_fd(), .events = POLLIN};
        poll(&waiting, 1, -1);
        uint32_t read = memory_events(events, EVENTS);
        for (uint32_t i = 0; i < read; i++) {
            if (events[i].event == UFFD_EVENT_REMOVE)
                continue;
            if (events[i].event != UFFD_EVENT_PAGEFAULT)
                fail("machine-failed", "", "the machine's memory changed in a way that is not served (event %#x)",
                     events[i].event);
            uint32_t block = memory_block(events[i].arg.pagefault.address);
            if (block == UINT32_MAX)
                fail("machine-failed", "", "a fault at %#llx, outside of the machine's memory",
                     (unsigned long long)events[i].arg.pagefault.address);
            blocks[count++] = block;
        }
        work_faults(blocks, count);
    }
    return NULL;
}

void events_start(void) {
    pthread_t thread;
    int error = pthread_create(&thread, NULL, run_events, NULL);
    if (error)
        fail("machine-failed", "", "the pager cannot start a thread: %s", strerror(error));
}
