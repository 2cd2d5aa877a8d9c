// Runs of blocks: what a capture file says of the memory.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { BLOCK = 4096 };
enum { SOURCE_ZERO = 0, SOURCE_TEMPLATE = 1, SOURCE_DATA = 2 };

struct run {
    uint32_t first, length, source;
};

struct runs {
    struct run *run;
    size_t count, capacity;
    uint64_t data_blocks;
};

// Blocks that follow all that were put before; a run that continues the last one becomes part of it.
void runs_put(struct runs *runs, uint32_t first, uint32_t length, uint32_t source);
