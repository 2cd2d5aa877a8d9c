// Lanes that programs name and guestd counts: the next ordinal of each, in the machine's memory, so that a restore
// rewinds them.
#include <stdlib.h>
#include <string.h>

#include "guestd.h"

enum { BUCKETS = 1024, LANES_MAX = 1 << 16 };

struct lane {
    struct lane *next;
    uint64_t ordinal;
    size_t size;
    uint8_t name[];
};

static struct lane *buckets[BUCKETS];
static uint32_t lane_count;

static uint32_t bucket_of(struct slice name) {
    uint32_t hash = 2166136261u;  // FNV-1a
    for (size_t i = 0; i < name.size; i++)
        hash = (hash ^ name.data[i]) * 16777619u;
    return hash % BUCKETS;
}

bool lane_take(struct slice name, uint64_t *ordinal) {
    struct lane **bucket = &buckets[bucket_of(name)];
    for (struct lane *lane = *bucket; lane; lane = lane->next)
        if (lane->size == name.size && !memcmp(lane->name, name.data, name.size)) {
            *ordinal = ++lane->ordinal;
            return true;
        }
    if (lane_count == LANES_MAX)
        return false;
    struct lane *lane = allocate(sizeof *lane + name.size);
    memcpy(lane->name, name.data, name.size);
    lane->size = name.size;
    lane->next = *bucket;
    *bucket = lane;
    lane_count++;
    *ordinal = 0;
    return true;
}
