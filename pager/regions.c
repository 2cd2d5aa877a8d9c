#include "regions.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "map.h"

static const uint64_t ADDRESS_MAX = UINT64_C(1) << 57;  // user space of a 64-bit machine

struct described {
    uint64_t address, size, offset, page_size;
    bool has_address, has_size, has_offset;
};

static void read_region(struct json *in, struct described *region) {
    char key[32];
    *region = (struct described){.page_size = PAGE};
    json_open(in, '{');
    for (bool first = true; json_key(in, &first, key, sizeof key);) {
        if (!strcmp(key, "base_host_virt_addr")) {
            region->address = json_u64(in);
            region->has_address = true;
        } else if (!strcmp(key, "size")) {
            region->size = json_u64(in);
            region->has_size = true;
        } else if (!strcmp(key, "offset")) {
            region->offset = json_u64(in);
            region->has_offset = true;
        } else if (!strcmp(key, "page_size")) {
            region->page_size = json_u64(in);
        } else {
            json_skip(in);
        }
    }
}

static const char *check_region(const struct described *region) {
    if (!region->has_address || !region->has_size || !region->has_offset)
        return "a region lacks its address, size or offset";
    if (region->page_size != PAGE && region->page_size != PAGE >> 10)  // some versions gave KiB
        return "pages of another size than 4096 bytes are not served";
    if (region->address % PAGE || region->size % PAGE || region->offset % PAGE)
        return "a region does not begin and end with a page";
    if (!region->size || region->address >= ADDRESS_MAX || region->size > ADDRESS_MAX - region->address ||
        region->offset >= ADDRESS_MAX)
        return "a region is empty, or beyond what a process can have";
    return NULL;
}

static int by_offset(const void *left, const void *right) {
    const struct described *a = left, *b = right;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

enum json_state regions_parse(struct regions *regions, const char *text, size_t size, uint32_t blocks, bool *layout,
                              char *why, size_t why_size) {
    struct json in = {text, text + size, JSON_OK};
    struct described described[REGIONS_MAX];
    uint32_t count = 0;
    uint64_t total = 0;
    const char *wrong = NULL;
    *layout = false;
    json_open(&in, '[');
    for (bool first = true; !wrong && json_element(&in, ']', &first);) {
        if (count == REGIONS_MAX) {
            wrong = "there are too many regions";
            break;
        }
        read_region(&in, &described[count]);
        if (in.state == JSON_OK && !(wrong = check_region(&described[count])))
            total += described[count++].size / PAGE;
    }
    if (!wrong && in.state == JSON_SHORT)
        return JSON_SHORT;
    if (!wrong && (in.state == JSON_BAD || !json_is_over(&in)))
        wrong = "it is not one JSON array of regions";
    if (!wrong && total != blocks) {
        *layout = true;
        snprintf(why, why_size, "the machine has %llu bytes of memory, the snapshot %llu: another layout",
                 (unsigned long long)total * PAGE, (unsigned long long)blocks * PAGE);
        return JSON_BAD;
    }
    if (!wrong)
        qsort(described, count, sizeof *described, by_offset);
    uint64_t place = 0;
    for (uint32_t i = 0; !wrong && i < count; i++) {
        if (described[i].offset != place)
            wrong = "the regions overlap, or leave a gap";
        for (uint32_t j = 0; j < i; j++)
            if (described[i].address < described[j].address + described[j].size &&
                described[j].address < described[i].address + described[i].size)
                wrong = "the regions overlap in the machine";
        regions->region[i] = (struct region){
            described[i].address,
            (uint32_t)(place / PAGE),
            (uint32_t)((place + described[i].size) / PAGE),
        };
        place += described[i].size;
    }
    regions->count = count;
    if (wrong)
        snprintf(why, why_size, "Firecracker's handshake with the pager does not read: %s", wrong);
    return wrong ? JSON_BAD : JSON_OK;
}

uint32_t regions_block(const struct regions *regions, uint64_t address) {
    for (uint32_t i = 0; i < regions->count; i++) {
        const struct region *region = &regions->region[i];
        if (address >= region->address && (address - region->address) / PAGE < region->end - region->first)
            return region->first + (uint32_t)((address - region->address) / PAGE);
    }
    return UINT32_MAX;
}

const struct region *regions_of(const struct regions *regions, uint32_t block) {
    const struct region *region = regions->region;
    while (block >= region->end)
        region++;
    return region;
}
