#include "map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the columns are used as they are in the file");

enum { VERSION = 2, VERSION_WHOLE = 1 };  // the older one, in which no frame can be absent
enum { HEADER = 36, BLOCKS_MAX = 1 << 28, LAYERS_MAX = 4096, PATH_MAX_BYTES = 4096 };
enum { COMPRESSED_MAX = FRAME_BLOCKS_MAX * PAGE + (FRAME_BLOCKS_MAX * PAGE >> 8) + 1024 };  // ZSTD_compressBound

// CRC-32 (IEEE 802.3), eight bytes at a time: a map of a megabyte costs a millisecond, also where all is slow.
static uint32_t crc_table[8][256];

static void crc_prepare(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xEDB88320u & -(crc & 1));
        crc_table[0][byte] = crc;
    }
    for (int slice = 1; slice < 8; slice++)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t before = crc_table[slice - 1][byte];
            crc_table[slice][byte] = before >> 8 ^ crc_table[0][before & 0xFF];
        }
}

static uint32_t crc32_of(uint32_t crc, const uint8_t *data, size_t size) {
    crc = ~crc;
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t low, high;
        memcpy(&low, data, 4);
        memcpy(&high, data + 4, 4);
        low ^= crc;
        crc = crc_table[7][low & 0xFF] ^ crc_table[6][low >> 8 & 0xFF] ^ crc_table[5][low >> 16 & 0xFF] ^
              crc_table[4][low >> 24] ^ crc_table[3][high & 0xFF] ^ crc_table[2][high >> 8 & 0xFF] ^
              crc_table[1][high >> 16 & 0xFF] ^ crc_table[0][high >> 24];
    }
    for (; size; data++, size--)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *data) & 0xFF];
    return ~crc;
}

static uint32_t u32_at(const uint8_t *data) {
    uint32_t value;
    memcpy(&value, data, 4);
    return value;
}

static bool read_head(struct map *map, const char *head, size_t size, uint32_t version) {
    struct json in = {head, head + size, JSON_OK};
    char key[16], path[PATH_MAX_BYTES];
    uint32_t partials = 0;
    json_open(&in, '{');
    for (bool first = true; json_key(&in, &first, key, sizeof key);) {
        if (!strcmp(key, "template") && !map->template) {
            json_string(&in, path, sizeof path);
            map->template = strdup(path);
        } else if (!strcmp(key, "layers") && !map->layers) {
            json_open(&in, '[');
            for (bool begun = true; map->layers < LAYERS_MAX && json_element(&in, ']', &begun);) {
                if (!json_string(&in, path, sizeof path))
                    return false;
                map->layer[map->layers] = strdup(path);
                map->layers++;
            }
        } else if (!strcmp(key, "partial") && !partials) {
            json_open(&in, '[');
            for (bool begun = true; partials < LAYERS_MAX && json_element(&in, ']', &begun);)
                map->partial[partials++] = json_bool(&in);
        } else {
            json_skip(&in);
        }
    }
    return map->template && (version == VERSION_WHOLE || partials == map->layers) && json_is_over(&in);
}

static const char *check(const struct map *map) {
    if (!map->runs || !map->blocks || map->blocks > BLOCKS_MAX || map->first[0] != 0)
        return "the memory map file's runs do not cover the memory";
    for (uint32_t run = 0; run < map->runs; run++) {
        if (map_end(map, run) <= map->first[run] || map_end(map, run) > map->blocks)
            return "the memory map file's runs do not cover the memory";
        if (map->source[run] < SOURCE_FRAME)
            continue;
        uint32_t frame = map->source[run] - SOURCE_FRAME;
        if (frame >= map->frames)
            return "the memory map file names a frame or run that it does not have";
        if ((uint64_t)map->at[run] + map_end(map, run) - map->first[run] > map->frame_blocks[frame])
            return "the memory map file has a run that its frame does not hold";
    }
    for (uint32_t frame = 0; frame < map->frames; frame++) {
        if (map->frame_layer[frame] >= map->layers)
            return "the memory map file names a layer that it does not have";
        if (!map->frame_blocks[frame] || map->frame_blocks[frame] > FRAME_BLOCKS_MAX ||
            map->frame_compressed[frame] > COMPRESSED_MAX || map->frame_offset[frame] > INT64_MAX - COMPRESSED_MAX)
            return "the memory map file has a frame of a size that none has";
        if (map->frame_present[frame] > 1 || (!map->frame_present[frame] && !map->partial[map->frame_layer[frame]]))
            return "the memory map file lacks a frame of a layer that is whole";
        if (map->frame_runs[frame] > map->frame_runs[frame + 1] || map->frame_runs[frame + 1] > map->by_frames)
            return "the memory map file names a frame or run that it does not have";
        for (uint32_t i = map->frame_runs[frame]; i < map->frame_runs[frame + 1]; i++)
            if (map->by_frame[i] >= map->runs || map->source[map->by_frame[i]] != SOURCE_FRAME + frame)
                return "the memory map file gives a frame a run of another";
    }
    return NULL;
}

bool map_decode(struct map *map, uint8_t *bytes, size_t size, char *why, size_t why_size) {
    *map = (struct map){.bytes = bytes};
    if (size < HEADER) {
        snprintf(why, why_size, "the memory map file is truncated");
        return false;
    }
    if (memcmp(bytes, "PDMM", 4)) {
        snprintf(why, why_size, "this is not a memory map file");
        return false;
    }
    uint32_t version = u32_at(bytes + 4) & 0xFFFF, head = u32_at(bytes + 8), sum = u32_at(bytes + 32);
    if (version != VERSION && version != VERSION_WHOLE) {
        snprintf(why, why_size, "the memory map file has format version %u, not %d", version, VERSION);
        return false;
    }
    map->blocks = u32_at(bytes + 12);
    map->runs = u32_at(bytes + 16);
    map->frames = u32_at(bytes + 20);
    map->by_frames = u32_at(bytes + 24);
    map->hots = u32_at(bytes + 28);
    uint64_t wanted = HEADER + (uint64_t)head + 8 * (uint64_t)map->frames +
                      4 * (3 * (uint64_t)map->runs + (version == VERSION ? 7 : 6) * (uint64_t)map->frames + 1 +
                           map->by_frames + map->hots);
    if (size != wanted || (HEADER + (uint64_t)head) % 8) {
        snprintf(why, why_size, "the memory map file has %zu bytes where its header asks for %llu", size,
                 (unsigned long long)wanted);
        return false;
    }
    crc_prepare();
    static const uint8_t none[4];
    if (crc32_of(crc32_of(crc32_of(0, bytes, 32), none, 4), bytes + HEADER, size - HEADER) != sum) {
        snprintf(why, why_size, "the memory map file's checksum is wrong");
        return false;
    }
    map->layer = calloc(LAYERS_MAX, sizeof *map->layer);
    map->partial = calloc(LAYERS_MAX, sizeof *map->partial);
    if (!map->layer || !map->partial || !read_head(map, (const char *)bytes + HEADER, head, version)) {
        snprintf(why, why_size, "the memory map file does not name its template and layers");
        return false;
    }
    map->frame_offset = (const uint64_t *)(bytes + HEADER + head);
    const uint32_t *column = (const uint32_t *)(map->frame_offset + map->frames);
    const struct {
        const uint32_t **place;
        uint32_t length;
    } columns[] = {
        {&map->first, map->runs},           {&map->source, map->runs},
        {&map->at, map->runs},              {&map->frame_layer, map->frames},
        {&map->frame_compressed, map->frames}, {&map->frame_blocks, map->frames},
        {&map->frame_checksum, map->frames}, {&map->frame_number, map->frames},
        {&map->frame_present, map->frames}, {&map->frame_runs, map->frames + 1},
        {&map->by_frame, map->by_frames},   {&map->hot, map->hots},
    };
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        *columns[i].place = column;
        column += version == VERSION_WHOLE && columns[i].place == &map->frame_present ? 0 : columns[i].length;
    }
    if (version == VERSION_WHOLE) {
        map->whole = malloc((map->frames + 1) * sizeof *map->whole);
        for (uint32_t frame = 0; map->whole && frame < map->frames; frame++)
            map->whole[frame] = 1;
        map->frame_present = map->whole;
    }
    const char *wrong = map->frame_present ? check(map) : "there is no memory for the memory map";
    if (wrong)
        snprintf(why, why_size, "%s", wrong);
    return !wrong;
}

void map_free(struct map *map) {
    for (uint32_t i = 0; map->layer && i < map->layers; i++)
        free(map->layer[i]);
    free(map->layer);
    free(map->partial);
    free(map->whole);
    free(map->template);
    free(map->bytes);
    *map = (struct map){0};
}

uint32_t map_run(const struct map *map, uint32_t block) {
    uint32_t low = 0, high = map->runs;  // first[low] <= block < first[high]
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (map->first[middle] <= block)
            low = middle;
        else
            high = middle;
    }
    return low;
}
