// The next working set: what was pushed at this restore, and what was missing then, in the order of its first touch.
#include <stdlib.h>
#include <time.h>

#include "report.h"
#include "work.h"

enum { UNITS_MAX = 4096, RECORD_S = 20 };  // faults within this time belong to it (emulated guests are slow)

static const struct map *map;
static uint32_t touched[UNITS_MAX], count;
static time_t until;

static time_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

void touched_open(const struct map *opened) { map = opened; }

void touched_begin(void) { until = now() + RECORD_S; }

void touched_add(uint32_t block) {
    if (count < UNITS_MAX && now() < until)
        touched[count++] = block;
}

void touched_list(struct text *line) {
    uint32_t total = (map ? map->hots : 0) + count, known = 0;
    uint32_t *list = calloc(total + 1, sizeof *list);
    uint64_t *seen = calloc((map ? map->blocks : 0) / 64 + 1, sizeof *seen);
    if (!list || !seen)
        fail("machine-failed", "", "the pager finds no memory for its report");
    for (uint32_t i = 0; i < total; i++) {
        uint32_t block = i < total - count ? map->hot[i] : touched[i - (total - count)];
        if (block < map->blocks && !bit_of(seen, block)) {
            bit_set(seen, block);
            list[known++] = block;
        }
    }
    text_put(line, "[");
    for (uint32_t i = known > UNITS_MAX ? known - UNITS_MAX : 0, first = i; i < known; i++)
        text_put(line, i == first ? "%u" : ", %u", list[i]);
    text_put(line, "]");
    free(list);
    free(seen);
}
