#define _GNU_SOURCE
#include "scan.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crew.h"
#include "report.h"

enum { BLOCKS_MAX = 1 << 28, PART = 8 << 20 };  // a part: bytes that one thread takes at a time

#ifndef MADV_POPULATE_READ
enum { MADV_POPULATE_READ = 22 };  // <linux/mman.h>; not in every C library
#endif

struct scan {
    const struct memory *memory, *template;
    bool holes_are_zeros;
    struct runs *part;
};

struct memory memory_map(int fd, const char *what) {
    struct memory memory = {.fd = fd};
    struct stat found;
    if (fstat(fd, &found) < 0)
        fail(what);
    memory.size = (uint64_t)found.st_size;
    if (!S_ISREG(found.st_mode) || !memory.size || memory.size % BLOCK || memory.size / BLOCK > BLOCKS_MAX) {
        errno = EINVAL;
        fail(what);
    }
    void *data = mmap(NULL, memory.size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        fail(what);
    memory.data = data;
    return memory;
}

// The extent of data that holds a place, or the first one after it; an empty one at the end of the file: none is left.
static struct extent extent_at(const struct memory *memory, uint64_t at) {
    off_t begin = at < memory->size ? lseek(memory->fd, (off_t)at, SEEK_DATA) : -1;
    if (begin < 0 && (at >= memory->size || errno == ENXIO))
        return (struct extent){memory->size, memory->size};
    off_t end = begin < 0 ? -1 : lseek(memory->fd, begin, SEEK_HOLE);
    if (end < 0)
        fail("finding out where a memory file has data");
    return (struct extent){(uint64_t)begin / BLOCK * BLOCK, ((uint64_t)end + BLOCK - 1) / BLOCK * BLOCK};
}

void memory_prepare(struct memory *memory) {
    size_t capacity = 0;
    for (uint64_t at = 0;;) {
        struct extent found = extent_at(memory, at);
        if (found.begin == found.end)
            return;
        if (memory->extents == capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            memory->extent = reallocarray(memory->extent, capacity, sizeof found);
            if (!memory->extent)
                fail("making the map of the template");
        }
        memory->extent[memory->extents++] = found;
        // before Linux 5.14 there is no such advice: then each page is a fault
        madvise((void *)(uintptr_t)(memory->data + found.begin), found.end - found.begin, MADV_POPULATE_READ);
        at = found.end;
    }
}

// The first extent that ends after a place.
static size_t extent_after(const struct memory *memory, uint64_t at) {
    size_t low = 0, high = memory->extents;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (memory->extent[middle].end > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

// Few branches, and words of 8 bytes: what is quick everywhere, also where there are no vectors.
static bool is_zero(const uint8_t *block) {
    const uint64_t *word = (const uint64_t *)block;
    for (size_t i = 0; i < BLOCK / 8; i += 8)
        if (word[i] | word[i + 1] | word[i + 2] | word[i + 3] | word[i + 4] | word[i + 5] | word[i + 6] | word[i + 7])
            return false;
    return true;
}

static bool is_same(const uint8_t *one, const uint8_t *other) {
    const uint64_t *a = (const uint64_t *)one, *b = (const uint64_t *)other;
    for (size_t i = 0; i < BLOCK / 8; i += 8)
        if ((a[i] ^ b[i]) | (a[i + 1] ^ b[i + 1]) | (a[i + 2] ^ b[i + 2]) | (a[i + 3] ^ b[i + 3]) |
            (a[i + 4] ^ b[i + 4]) | (a[i + 5] ^ b[i + 5]) | (a[i + 6] ^ b[i + 6]) | (a[i + 7] ^ b[i + 7]))
            return false;
    return true;
}

// `base`: an extent of the template that does not end after the one of this block; it moves on.
static uint32_t source_of(const struct scan *scan, uint64_t at, size_t *base) {
    const uint8_t *block = scan->memory->data + at;
    const struct memory *template = scan->template;
    if (is_zero(block))
        return SOURCE_ZERO;
    if (!template)
        return SOURCE_DATA;
    while (*base < template->extents && template->extent[*base].end <= at)
        (*base)++;
    bool held = *base < template->extents && template->extent[*base].begin <= at;
    return held && is_same(block, template->data + at) ? SOURCE_TEMPLATE : SOURCE_DATA;
}

static void scan_part(void *context, size_t number) {
    const struct scan *scan = context;
    uint64_t seen = number * PART, stop = seen + PART < scan->memory->size ? seen + PART : scan->memory->size;
    size_t base = scan->template ? extent_after(scan->template, seen) : 0;
    while (seen < stop) {
        struct extent data = extent_at(scan->memory, seen);
        uint64_t begin = data.begin < stop ? data.begin : stop, end = data.end < stop ? data.end : stop;
        if (scan->holes_are_zeros && begin > seen)
            runs_put(&scan->part[number], (uint32_t)(seen / BLOCK), (uint32_t)((begin - seen) / BLOCK), SOURCE_ZERO);
        for (uint64_t at = begin; at < end; at += BLOCK)
            runs_put(&scan->part[number], (uint32_t)(at / BLOCK), 1, source_of(scan, at, &base));
        seen = end;
    }
}

void scan(const struct memory *memory, const struct memory *template, bool holes_are_zeros, struct runs *runs) {
    size_t parts = (size_t)((memory->size + PART - 1) / PART);
    struct scan scan = {memory, template, holes_are_zeros, calloc(parts, sizeof *scan.part)};
    if (!scan.part)
        fail("making the map of a capture");
    crew_do(parts, scan_part, &scan);
    for (size_t number = 0; number < parts; number++) {
        const struct runs *part = &scan.part[number];
        for (size_t i = 0; i < part->count; i++)
            runs_put(runs, part->run[i].first, part->run[i].length, part->run[i].source);
        free(part->run);
    }
    free(scan.part);
}
