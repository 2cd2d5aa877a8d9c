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

struct scan {
    const struct memory *memory, *template;
    bool holes_are_zeros;
    struct runs *part;
};

struct extent {  // the extent of data that holds a place, or the first one after it
    uint64_t begin, end;
};

struct memory memory_map(int fd, const char *what) {
    struct memory memory = {.fd = fd};
    struct stat found;
    if (fstat(fd, &found) < 0)
        fail(what);
    memory.size = (uint64_t)found.st_size;
    if (!memory.size || memory.size % BLOCK || memory.size / BLOCK > BLOCKS_MAX) {
        errno = EINVAL;
        fail(what);
    }
    void *data = mmap(NULL, memory.size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        fail(what);
    memory.data = data;
    return memory;
}

// The extent at a place or after it, in whole blocks; an empty one at the end of the file where none is left.
static void find(const struct memory *memory, uint64_t at, struct extent *extent) {
    if (at < extent->end)
        return;
    *extent = (struct extent){memory->size, memory->size};
    if (at >= memory->size)
        return;
    off_t begin = lseek(memory->fd, (off_t)at, SEEK_DATA);
    if (begin < 0 && errno == ENXIO)
        return;
    off_t end = begin < 0 ? -1 : lseek(memory->fd, begin, SEEK_HOLE);
    if (end < 0)
        fail("where a memory file has data cannot be found out");
    extent->begin = (uint64_t)begin / BLOCK * BLOCK;
    extent->end = ((uint64_t)end + BLOCK - 1) / BLOCK * BLOCK;
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

static uint32_t source_of(const struct scan *scan, uint64_t at, struct extent *base) {
    const uint8_t *block = scan->memory->data + at;
    if (is_zero(block))
        return SOURCE_ZERO;
    if (!scan->template)
        return SOURCE_DATA;
    find(scan->template, at, base);
    bool held = at >= base->begin && at < base->end;
    return held && is_same(block, scan->template->data + at) ? SOURCE_TEMPLATE : SOURCE_DATA;
}

static void scan_part(void *context, size_t number) {
    const struct scan *scan = context;
    uint64_t seen = number * PART, stop = seen + PART < scan->memory->size ? seen + PART : scan->memory->size;
    struct extent data = {0}, base = {0};
    while (seen < stop) {
        find(scan->memory, seen, &data);
        uint64_t begin = data.begin > seen ? data.begin : seen, end = data.end;
        if (begin > stop)
            begin = stop;
        if (end > stop)
            end = stop;
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
        fail("there is no memory for the map of a capture");
    crew_do(parts, scan_part, &scan);
    for (size_t number = 0; number < parts; number++) {
        const struct runs *part = &scan.part[number];
        for (size_t i = 0; i < part->count; i++)
            runs_put(runs, part->run[i].first, part->run[i].length, part->run[i].source);
        free(part->run);
    }
    free(scan.part);
}
