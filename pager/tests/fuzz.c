// fuzz SECONDS [SEED]: mutated and random input for the parsers of what others write: JSON, Firecracker's regions, memory
// map files. What it looks for: reports of the sanitizers, and what must hold of whatever was accepted.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../json.h"
#include "../map.h"
#include "../regions.h"

static uint64_t state;
static uint64_t maps, regions_seen;  // that were accepted: a fuzzer that gets nothing through proves nothing

static uint64_t draw(void) {  // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static size_t below(size_t limit) { return limit ? draw() % limit : 0; }

#define MUST(condition)                                                     \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                        \
        }                                                                   \
    } while (0)

static const char *const texts[] = {
    "[{\"base_host_virt_addr\": 139642271694848, \"size\": 1048576, \"offset\": 0, \"page_size\": 4096}]",
    "[{\"base_host_virt_addr\":139642271694848,\"size\":524288,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096},"
    "{\"base_host_virt_addr\":139642371694592,\"size\":524288,\"offset\":524288,\"page_size\":4}]",
    "{\"op\": \"have\", \"frames\": [[0, 17], [1, 4294967295]], \"x\": [null, true, -1.5e3, \"\\u00e9\\ud83d\\ude00\\udc80\"]}",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
};

static void mutate(uint8_t *data, size_t *size, size_t capacity) {
    static const char *const words[] = {"\"", "\\u", "\\", "[", "]", "{", "}", ",", ":", "18446744073709551615", "0", "\xff", "1e9"};
    for (size_t times = below(6); times--;) {
        size_t at = below(*size);
        switch (below(5)) {
        case 0:
            if (*size)
                data[at] ^= (uint8_t)(1 << below(8));
            break;
        case 1:
            if (*size)
                data[at] = (uint8_t)draw();
            break;
        case 2: *size = at; break;
        case 3: {
            const char *word = words[below(sizeof words / sizeof *words)];
            size_t length = strlen(word);
            if (*size + length < capacity) {
                memmove(data + at + length, data + at, *size - at);
                memcpy(data + at, word, length);
                *size += length;
            }
            break;
        }
        default: {
            size_t length = below(*size - at);
            if (length && *size + length < capacity) {  // a stretch of it once more
                memmove(data + at + length, data + at, *size - at);
                *size += length;
            }
        }
        }
    }
}

// In memory of exactly its size, so that a sanitizer sees one byte too far.
static char *copy_of(const void *data, size_t size) {
    char *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    return copy;
}

static void take_all(struct json *in) {
    char word[8];
    switch (below(6)) {
    case 0: json_u64(in); break;
    case 1: json_bool(in); break;
    case 2: MUST(json_string(in, word, sizeof word) < sizeof word && memchr(word, 0, sizeof word)); break;
    case 3:
        json_open(in, '[');
        for (bool first = true; json_element(in, ']', &first);)
            take_all(in);
        break;
    case 4:
        json_open(in, '{');
        for (bool first = true; json_key(in, &first, word, sizeof word);)
            take_all(in);
        break;
    default: json_skip(in);
    }
}

static void fuzz_json(void) {
    static uint8_t data[4096];
    const char *text = texts[below(sizeof texts / sizeof *texts)];
    size_t size = strlen(text);
    memcpy(data, text, size);
    mutate(data, &size, sizeof data);
    char *copy = copy_of(data, size);
    struct json in = {copy, copy + size, JSON_OK};
    if (below(2))
        json_skip(&in);
    else
        take_all(&in);
    MUST(in.at >= copy && in.at <= copy + size);
    json_is_over(&in);
    free(copy);
}

static void fuzz_regions(void) {
    static uint8_t data[4096];
    const char *text = texts[below(2)];
    size_t size = strlen(text);
    memcpy(data, text, size);
    mutate(data, &size, sizeof data);
    char *copy = copy_of(data, size), why[256];
    struct regions regions;
    bool layout;
    enum json_state parsed = regions_parse(&regions, copy, size, 256, &layout, why, sizeof why);
    if (parsed == JSON_OK) {
        uint32_t next = 0;
        regions_seen++;
        for (uint32_t i = 0; i < regions.count; i++) {
            MUST(regions.region[i].first == next && regions.region[i].end > next);
            next = regions.region[i].end;
        }
        MUST(next == 256);
        for (uint32_t block = 0; block < 256; block++) {
            const struct region *region = regions_of(&regions, block);
            MUST(regions_block(&regions, region->address + (uint64_t)(block - region->first) * PAGE + 5) == block);
        }
        regions_block(&regions, draw());
    } else if (parsed == JSON_SHORT) {
        // Whatever is short may become complete, so it must not be refused with less of it either.
        size_t less = below(size + 1);
        MUST(regions_parse(&regions, copy, less, 256, &layout, why, sizeof why) == JSON_SHORT);
    }
    free(copy);
}

static uint32_t crc_of(const uint8_t *data, size_t size) {  // bit by bit, as the standard has it
    uint32_t crc = ~0u;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xEDB88320u & -(crc & 1));
    }
    return ~crc;
}

static void put(uint8_t **at, uint32_t value) {
    memcpy(*at, &value, 4);
    *at += 4;
}

// A map of four runs, two of frames; then mutated, and its checksum made right again.
static void fuzz_map(void) {
    static const char head[] = "{\"template\": \"/t\", \"layers\": [\"/a\", \"/b\"], \"partial\": [false, true]}           ";
    uint8_t data[1024] = {0}, *at = data;
    uint32_t length = (uint32_t)sizeof head - 1;
    length -= (36 + length) % 8;
    memcpy(at, "PDMM\2\0\0\0", 8);
    at += 8;
    const uint32_t counts[] = {length, 100, 4, 2, 2, 3, 0};
    for (size_t i = 0; i < 7; i++)
        put(&at, counts[i]);
    memcpy(at, head, length);
    at += length;
    const uint32_t columns[] = {
        64, 0, 128, 0,                               // offsets
        0, 10, 20, 30, 0, 2, 1, 3, 0, 4, 0, 0,       // first, source, at
        0, 1, 500, 600, 16, 70, 7, 8, 0, 5, 1, 0,    // layer, compressed, blocks, checksum, number, present
        0, 1, 2, 1, 3, 99, 0, 7,                     // runs of frames, by frame, hot
    };
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        put(&at, columns[i]);
    size_t size = (size_t)(at - data);
    if (below(16)) {
        mutate(data, &size, sizeof data);
        if (below(2) && size >= 36)
            data[below(36)] = (uint8_t)below(8);
    }
    if (below(8) && size >= 36) {
        memset(data + 32, 0, 4);
        uint32_t sum = crc_of(data, size);
        memcpy(data + 32, &sum, 4);
    }
    struct map map;
    char why[256];
    bool good = map_decode(&map, (uint8_t *)copy_of(data, size), size, why, sizeof why);
    if (good) {
        maps++;
        for (uint32_t block = 0; block < map.blocks && block < 1000; block++) {
            uint32_t run = map_run(&map, block);
            MUST(map.first[run] <= block && block < map_end(&map, run));
        }
        for (uint32_t frame = 0; frame < map.frames; frame++)
            for (uint32_t i = map.frame_runs[frame]; i < map.frame_runs[frame + 1]; i++) {
                uint32_t run = map.by_frame[i];
                MUST(map.at[run] + map_end(&map, run) - map.first[run] <= map.frame_blocks[frame]);
            }
        MUST(map.template && (!map.layers || map.layer[map.layers - 1]));
    }
    map_free(&map);
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 3;
    state = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL);
    state = state ? state : 1;
    printf("seed %llu\n", (unsigned long long)state);
    fflush(stdout);
    struct timespec began, now;
    clock_gettime(CLOCK_MONOTONIC, &began);
    uint64_t rounds = 0;
    do {
        for (int i = 0; i < 1000; i++, rounds++) {
            fuzz_json();
            fuzz_regions();
            fuzz_map();
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - began.tv_sec) + (double)(now.tv_nsec - began.tv_nsec) / 1e9 < seconds);
    printf("%llu rounds, %llu maps and %llu lists of regions accepted\n", (unsigned long long)rounds, (unsigned long long)maps,
           (unsigned long long)regions_seen);
    MUST(maps > rounds / 100 && regions_seen > rounds / 100);
    return 0;
}
