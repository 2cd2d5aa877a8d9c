// The machine's memory: filled through its userfaultfd, in blocks. Facts that this rests on (ioctl_userfaultfd(2), and
// the kernel's fs/userfaultfd.c and mm/userfaultfd.c):
// - A range of which a part is present is filled up to that part: EAGAIN with the bytes done, EEXIST when the very first
//   page is present. Nobody is woken for pages that were present: UFFDIO_WAKE does it.
// - EAGAIN with nothing done: a REMOVE event waits to be read. The kernel does not report the fault twice.
// - Whoever removes pages (madvise) goes on, and zaps them, as soon as its event was read. A copy that was decided upon
//   before the event and done after the zap would bring old content back. So events are read only while no fill is under
//   way (`gate`); a fill under the gate is short, and waits for nothing but the kernel.
// - ESRCH: the process is gone. ENOENT: the range is no longer registered.
#pragma once
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>

#include "regions.h"

struct filled {  // bytes
    uint64_t copied, zeroed;
};

void memory_open(int uffd, const struct regions *regions, uint32_t blocks);
int memory_fd(void);

// Fill blocks from `source`, NULL: with zeros. Pages that are present stay; blocks that the machine removed become
// zeros. Whoever waits in the range goes on. Ends the pager when the machine is gone.
void memory_fill(uint32_t first, uint32_t end, const uint8_t *source, struct filled *filled);
void memory_wake(uint32_t block);
bool memory_is_removed(uint32_t block);  // as far as has been heard

// The events that wait, removals among them already heeded; 0: none. One thread only.
uint32_t memory_events(struct uffd_msg *events, uint32_t capacity);
uint32_t memory_block(uint64_t address);  // UINT32_MAX: of nothing that we serve

void memory_release(void);  // from now on the kernel serves it: what is missing is zeros
