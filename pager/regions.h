// What Firecracker says of its memory when it hands the userfaultfd over: one JSON array of regions. It is not trusted.
#pragma once
#include <stdint.h>

#include "json.h"

enum { REGIONS_MAX = 64 };

struct region {
    uint64_t address;     // in Firecracker
    uint32_t first, end;  // blocks of the guest's memory
};

struct regions {
    uint32_t count;
    struct region region[REGIONS_MAX];  // in the order of their blocks
};

// JSON_OK: the regions hold every one of `blocks` once and nothing else, at addresses that do not overlap.
// JSON_BAD: `why` says what is wrong; `layout` is set where it is the memory of another machine.
enum json_state regions_parse(struct regions *regions, const char *text, size_t size, uint32_t blocks, bool *layout,
                              char *why, size_t why_size);
// The block at an address, and the address of a block. The block must be one; an address may be any: UINT32_MAX is none.
uint32_t regions_block(const struct regions *regions, uint64_t address);
const struct region *regions_of(const struct regions *regions, uint32_t block);
