// The working set: what an earlier restore touched first. It is taken in batches of that order; within a batch the
// frames are in the order of their files, neighbours in one read: where layers come over a shared folder each read costs
// a millisecond. Before the machine's memory is known they are decompressed and held, from the start of the pager on.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "report.h"
#include "work.h"

enum {
    BATCH = 128,                 // frames and windows
    GAP_MAX = 64 << 10,          // bytes between two frames that one read takes along
    EXTENT_MAX = 1 << 20,        // bytes of one read
    HELD_MAX = 64 << 20,         // bytes decompressed before anyone can take them
};

struct extent {
    uint32_t layer, from, count, batch;  // frames order[from] …
    uint64_t offset;
    uint32_t length;
    size_t size;                // decompressed
    uint8_t *held;              // its content, NULL: none
    uint32_t live;              // frames whose content is needed still
    bool done;                  // decompressing has ended
};

struct window {
    uint32_t block, batch;
};

static const struct map *map;
static uint32_t *order;          // frames
static struct extent *extents;
static struct window *windows;
static uint32_t frame_count, extent_count, window_count, next_extent, next_window;
static size_t held_bytes;
static struct ring waiting;      // extents that are held
static const uint8_t **content;  // by frame: where it is held
static uint32_t *owner;          // by frame: in which extent

struct entry {
    uint32_t frame, batch;
};

static int by_place(const void *left, const void *right) {
    const struct entry *a = left, *b = right;
    if (a->batch != b->batch)
        return a->batch < b->batch ? -1 : 1;
    if (map->frame_layer[a->frame] != map->frame_layer[b->frame])
        return map->frame_layer[a->frame] < map->frame_layer[b->frame] ? -1 : 1;
    uint64_t x = map->frame_offset[a->frame], y = map->frame_offset[b->frame];
    return x < y ? -1 : x > y;
}

static void *table(size_t count, size_t size) {
    void *made = calloc(count + 1, size);
    if (!made)
        fail("machine-failed", "", "the pager finds no memory for its tables");
    return made;
}

// Whether a frame can be read together with an extent; the extent's new length then.
static bool joins(const struct extent *extent, const struct entry *entry, uint64_t *length) {
    uint64_t offset = map->frame_offset[entry->frame], end = extent->offset + extent->length;
    *length = offset + map->frame_compressed[entry->frame] - extent->offset;
    return extent->count && extent->batch == entry->batch && extent->layer == map->frame_layer[entry->frame] &&
           offset >= end && offset - end < GAP_MAX && *length <= EXTENT_MAX;
}

static void make_extents(const struct entry *entries) {
    struct extent *extent = extents;
    for (uint32_t i = 0; i < frame_count; i++) {
        uint32_t frame = entries[i].frame;
        uint64_t length;
        order[i] = frame;
        if (!joins(extent, &entries[i], &length)) {
            extent = &extents[extent_count++];
            *extent = (struct extent){.layer = map->frame_layer[frame], .from = i, .batch = entries[i].batch};
            extent->offset = map->frame_offset[frame];
            length = map->frame_compressed[frame];
        }
        extent->length = (uint32_t)length;
        extent->count++;
        extent->size += frame_size(map, frame);
        owner[frame] = (uint32_t)(extent - extents);
    }
}

void hot_open(const struct map *opened) {
    map = opened;
    uint64_t *seen = table(map->frames / 64 + 1, sizeof *seen);
    struct entry *entries = table(map->hots, sizeof *entries);
    order = table(map->hots, sizeof *order);
    extents = table(map->hots, sizeof *extents);
    windows = table(map->hots, sizeof *windows);
    content = table(map->frames, sizeof *content);
    owner = table(map->frames, sizeof *owner);
    for (uint32_t i = 0, units = 0; i < map->hots; i++) {
        uint32_t block = map->hot[i];
        if (block >= map->blocks)
            continue;
        uint32_t source = map->source[map_run(map, block)], batch = units / BATCH;
        if (source < SOURCE_FRAME) {
            windows[window_count++] = (struct window){block, batch};
        } else {
            uint32_t frame = source - SOURCE_FRAME;
            if (bit_of(seen, frame))
                continue;
            bit_set(seen, frame);
            if (wanted_is_absent(frame))
                wanted_ask(frame, false);
            else
                entries[frame_count++] = (struct entry){frame, batch};
        }
        units++;
    }
    qsort(entries, frame_count, sizeof *entries, by_place);
    make_extents(entries);
    free(entries);
    free(seen);
}

// The next window that nobody has filled.
static bool take_window(struct job *job) {
    while (next_window < window_count) {
        if (!work_take_window(windows[next_window++].block, job))
            continue;
        job->hot = true;
        return true;
    }
    return false;
}

bool hot_take(struct job *job) {
    uint32_t held_batch = waiting.count ? extents[waiting.items[waiting.head]].batch : UINT32_MAX;
    uint32_t read_batch = next_extent < extent_count ? extents[next_extent].batch : UINT32_MAX;
    if (work.serving) {
        uint32_t window_batch = next_window < window_count ? windows[next_window].batch : UINT32_MAX;
        if (window_batch <= held_batch && window_batch <= read_batch && take_window(job))
            return true;
        if (held_batch <= read_batch && waiting.count) {
            *job = (struct job){.kind = JOB_HELD};
            return ring_take(&waiting, &job->number);
        }
    }
    if (next_extent < extent_count && (work.serving || !held_bytes || held_bytes + extents[next_extent].size <= HELD_MAX)) {
        struct extent *extent = &extents[next_extent];
        if (!work.serving) {
            extent->held = pages_map(extent->size);
            held_bytes += extent->size;
        }
        *job = (struct job){.kind = JOB_EXTENT, .number = next_extent++};
        return true;
    }
    return work.serving && take_window(job);
}

bool hot_is_done(void) { return next_extent == extent_count && next_window == window_count && !waiting.count; }

static void release(struct extent *extent) {
    if (!extent->held || !extent->done || extent->live)
        return;
    pages_unmap(extent->held, extent->size);
    held_bytes -= extent->size;
    extent->held = NULL;
}

const uint8_t *hot_content(uint32_t frame) { return content[frame]; }

void hot_used(uint32_t frame) {
    struct extent *extent = &extents[owner[frame]];
    extent->live--;
    release(extent);
}

// True: it is ours to bring; `held`: into memory that is kept until the machine's is known.
static bool begin(uint32_t frame, const struct extent *extent, bool *held) {
    pthread_mutex_lock(&work.lock);
    bool ours = work.frame[frame] == FRAME_IDLE;
    if (ours)
        work.frame[frame] = FRAME_BUSY;
    *held = !work.serving && extent->held;
    pthread_mutex_unlock(&work.lock);
    return ours;
}

static void hold(uint32_t frame, struct extent *extent, const uint8_t *place) {
    pthread_mutex_lock(&work.lock);
    content[frame] = place;
    extent->live++;
    work.figures.decompressed++;
    work.frame[frame] = FRAME_HELD;
    pthread_mutex_unlock(&work.lock);
}

void hot_extent(struct lane *lane, uint32_t number) {
    struct extent *extent = &extents[number];
    uint8_t *bytes = buffer_room(&lane->extent, extent->length), *place = extent->held;
    size_t got = layer_read(extent->layer, extent->offset, bytes, extent->length);
    for (uint32_t i = extent->from; i < extent->from + extent->count; i++) {
        uint32_t frame = order[i];
        size_t at = map->frame_offset[frame] - extent->offset;
        bool held;
        work_urgent(lane);
        if (!begin(frame, extent, &held))
            continue;
        uint8_t *target = held ? place : buffer_room(&lane->content, frame_size(map, frame));
        frame_decompress(lane, frame, bytes + at, got > at ? got - at : 0, target);
        if (held) {
            hold(frame, extent, target);
            place += frame_size(map, frame);
        } else {
            place_frame(lane, frame, target, true);
            pthread_mutex_lock(&work.lock);
            work.figures.decompressed++;
            pthread_mutex_unlock(&work.lock);
        }
    }
    pthread_mutex_lock(&work.lock);
    extent->done = true;
    bool place_now = extent->live && work.serving;
    if (extent->live && !work.serving)
        ring_put(&waiting, number);
    release(extent);
    pthread_mutex_unlock(&work.lock);
    if (place_now)
        hot_held(lane, number);
}

void hot_held(struct lane *lane, uint32_t number) {
    struct extent *extent = &extents[number];
    for (uint32_t i = extent->from; i < extent->from + extent->count; i++) {
        uint32_t frame = order[i];
        work_urgent(lane);
        pthread_mutex_lock(&work.lock);
        bool ours = work.frame[frame] == FRAME_HELD;
        if (ours)
            work.frame[frame] = FRAME_BUSY;
        pthread_mutex_unlock(&work.lock);
        if (!ours)
            continue;
        place_frame(lane, frame, content[frame], true);
        pthread_mutex_lock(&work.lock);
        hot_used(frame);
        pthread_mutex_unlock(&work.lock);
    }
}
