#include "runs.h"

#include <stdlib.h>

#include "report.h"

void runs_put(struct runs *runs, uint32_t first, uint32_t length, uint32_t source) {
    if (source == SOURCE_DATA)
        runs->data_blocks += length;
    struct run *last = runs->count ? &runs->run[runs->count - 1] : NULL;
    if (last && last->source == source && last->first + last->length == first) {
        last->length += length;
        return;
    }
    if (runs->count == runs->capacity) {
        runs->capacity = runs->capacity ? 2 * runs->capacity : 64;
        runs->run = reallocarray(runs->run, runs->capacity, sizeof *runs->run);
        if (!runs->run)
            fail("making the map of a capture");
    }
    runs->run[runs->count++] = (struct run){first, length, source};
}
