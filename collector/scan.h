// Which blocks of a sparse memory file are zeros, which are the template's, and which are neither.
#pragma once
#include <stdbool.h>

#include "runs.h"

struct extent {  // bytes, whole blocks
    uint64_t begin, end;
};

struct memory {  // a file, mapped; where it has holes the mapping is not touched: in tmpfs that would fill them
    int fd;
    uint64_t size;  // whole blocks
    const uint8_t *data;
    struct extent *extent;  // where it has data, in order, once it is known
    size_t extents;
};

struct memory memory_map(int fd, const char *what);

// Find out where it has data, and have that in the page tables: what is done before there is an order nobody waits for.
void memory_prepare(struct memory *memory);

// `template`: of the same size and prepared, or NULL where there is none. `holes_are_zeros`: then every block is in a
// run. On all threads of the crew (crew.h).
void scan(const struct memory *memory, const struct memory *template, bool holes_are_zeros, struct runs *runs);
