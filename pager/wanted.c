// Frames of layers that are only partly here: the keeper is told which are wanted, the node fetches them into the layer's
// file, and says so.
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#include "report.h"
#include "work.h"

enum { NEIGHBOURS = 8 };  // absent frames after a wanted one that are wanted with it

int wanted_signal = -1;

static const struct map *map;
static uint8_t *absent;    // NULL: every frame is here
static uint8_t *urgent;    // a fault waits for it
static int64_t *since_ms;  // when it was asked for
static uint32_t *sorted;   // frames by layer and number
static struct ring unsaid;
static uint32_t outstanding;

int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int by_number(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    if (map->frame_layer[a] != map->frame_layer[b])
        return map->frame_layer[a] < map->frame_layer[b] ? -1 : 1;
    return map->frame_number[a] < map->frame_number[b] ? -1 : map->frame_number[a] > map->frame_number[b];
}

void wanted_open(const struct map *opened) {
    uint32_t here = 0;
    map = opened;
    for (uint32_t frame = 0; frame < map->frames; frame++)
        here += map->frame_present[frame];
    if (here == map->frames)
        return;
    absent = calloc(map->frames, 1);
    urgent = calloc(map->frames, 1);
    since_ms = calloc(map->frames, sizeof *since_ms);
    sorted = calloc(map->frames, sizeof *sorted);
    if (!absent || !urgent || !since_ms || !sorted)
        fail("machine-failed", "", "the pager finds no memory for its tables");
    for (uint32_t frame = 0; frame < map->frames; frame++) {
        absent[frame] = !map->frame_present[frame];
        sorted[frame] = frame;
    }
    qsort(sorted, map->frames, sizeof *sorted, by_number);
}

bool wanted_is_absent(uint32_t frame) { return absent && absent[frame]; }

static void ask(uint32_t frame) {
    if (work.frame[frame] != FRAME_IDLE || !absent[frame])
        return;
    work.frame[frame] = FRAME_WANTED;
    since_ms[frame] = now_ms();
    outstanding++;
    work.figures.wanted++;
    ring_put(&unsaid, frame);
    eventfd_write(wanted_signal, 1);
}

void wanted_ask(uint32_t frame, bool is_urgent) {
    urgent[frame] |= is_urgent;
    ask(frame);
    for (uint32_t next = frame + 1; is_urgent && next < map->frames && next - frame <= NEIGHBOURS; next++)
        ask(next);
}

uint32_t wanted_count(void) { return outstanding; }

bool wanted_say(struct text *line, bool all) {
    uint32_t frame, said = 0;
    text_put(line, "[");
    if (all) {
        for (frame = 0; outstanding && frame < map->frames; frame++)
            if (work.frame[frame] == FRAME_WANTED)
                text_put(line, said++ ? ", [%u, %u]" : "[%u, %u]", map->frame_layer[frame], map->frame_number[frame]);
    } else {
        while (ring_take(&unsaid, &frame))
            text_put(line, said++ ? ", [%u, %u]" : "[%u, %u]", map->frame_layer[frame], map->frame_number[frame]);
    }
    text_put(line, "]");
    return said;
}

static void arrived(uint32_t frame) {
    if (!absent[frame])
        return;
    absent[frame] = 0;
    if (work.frame[frame] != FRAME_WANTED)
        return;
    work.frame[frame] = FRAME_IDLE;
    outstanding--;
    if (urgent[frame])
        ring_put(&work.arrived, frame);
    else if (map->frame_runs[frame] < map->frame_runs[frame + 1])
        ring_put(&work.ahead, map->first[map->by_frame[map->frame_runs[frame]]]);
}

void wanted_have(uint32_t layer, uint64_t number) {
    uint32_t low = 0, high = absent ? map->frames : 0;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, frame = sorted[middle];
        if (map->frame_layer[frame] < layer || (map->frame_layer[frame] == layer && map->frame_number[frame] < number))
            low = middle + 1;
        else
            high = middle;
    }
    for (; absent && low < map->frames; low++) {
        if (map->frame_layer[sorted[low]] != layer || map->frame_number[sorted[low]] != number)
            break;
        arrived(sorted[low]);
    }
}

int64_t wanted_deadline_ms(int64_t timeout_ms, uint32_t *oldest) {
    int64_t deadline = INT64_MAX;
    for (uint32_t frame = 0; outstanding && frame < map->frames; frame++)
        if (work.frame[frame] == FRAME_WANTED && since_ms[frame] + timeout_ms < deadline) {
            deadline = since_ms[frame] + timeout_ms;
            *oldest = frame;
        }
    return deadline;
}
