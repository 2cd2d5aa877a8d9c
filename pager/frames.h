// Frames of layers: read from their files, decompressed, verified.
#pragma once
#include "buffer.h"
#include "map.h"

struct lane {  // what one worker thread works with
    void *zstd;
    int nice;  // of the thread, beyond the program's own
    struct buffer frame, content, extent;
};

// Open every layer and map the template. Ends the pager where one is not there, or the template has another size.
void frames_open(const struct map *map, const char *template);
const uint8_t *template_at(uint32_t block);
void template_trim(void);  // our page table entries for it; its pages are the page cache's

// The content of a frame, in the lane's buffer until the next call. Ends the pager where it does not verify.
const uint8_t *frame_content(struct lane *lane, uint32_t frame);
// The same from bytes that were read before (`got` of them, from the frame's start on), into `content`.
void frame_decompress(struct lane *lane, uint32_t frame, const uint8_t *bytes, size_t got, uint8_t *content);
size_t layer_read(uint32_t layer, uint64_t offset, uint8_t *bytes, size_t size);  // less where the file ends
static inline size_t frame_size(const struct map *map, uint32_t frame) { return (size_t)map->frame_blocks[frame] * PAGE; }
