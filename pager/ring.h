// A queue of numbers that grows.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "report.h"

struct ring {
    uint32_t *items, capacity, head, count;
};

static inline void ring_put(struct ring *ring, uint32_t item) {
    if (ring->count == ring->capacity) {
        uint32_t capacity = ring->capacity ? 2 * ring->capacity : 64, *items = calloc(capacity, sizeof *items);
        if (!items)
            fail("machine-failed", "", "the pager finds no memory for its queues");
        for (uint32_t i = 0; i < ring->count; i++)
            items[i] = ring->items[(ring->head + i) % ring->capacity];
        free(ring->items);
        *ring = (struct ring){items, capacity, 0, ring->count};
    }
    ring->items[(ring->head + ring->count++) % ring->capacity] = item;
}

static inline bool ring_take(struct ring *ring, uint32_t *item) {
    if (!ring->count)
        return false;
    *item = ring->items[ring->head];
    ring->head = (ring->head + 1) % ring->capacity;
    ring->count--;
    return true;
}
