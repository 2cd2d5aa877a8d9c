// The memory map file, decoded: docs/formats/memory-map.md, versions 1 and 2.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PAGE = 4096, FRAME_BLOCKS_MAX = 2048 };
enum { SOURCE_ZERO = 0, SOURCE_TEMPLATE = 1, SOURCE_FRAME = 2 };  // a run of frame g has SOURCE_FRAME + g

struct map {
    uint8_t *bytes;  // the file; the columns point into it
    uint32_t blocks, runs, frames, by_frames, hots, layers;
    char *template;
    char **layer;   // paths
    bool *partial;  // layers of which frames may be absent
    uint32_t *whole;  // frame_present of a file that has no such column
    const uint64_t *frame_offset;
    const uint32_t *first, *source, *at;
    const uint32_t *frame_layer, *frame_compressed, *frame_blocks, *frame_checksum, *frame_number, *frame_present;
    const uint32_t *frame_runs, *by_frame, *hot;
};

// Takes `bytes` (malloc's; freed by map_free, also where it is refused). False: `why` says what is wrong with it.
// After true no column leads out of another, and the runs of each frame fit in it.
bool map_decode(struct map *map, uint8_t *bytes, size_t size, char *why, size_t why_size);
void map_free(struct map *map);

uint32_t map_run(const struct map *map, uint32_t block);                      // the run that holds a block
static inline uint32_t map_end(const struct map *map, uint32_t run) {  // the block after a run
    return run + 1 < map->runs ? map->first[run + 1] : map->blocks;
}
