// Growable byte queues, and little-endian numbers put into and taken out of them.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {  // all zero: empty
    uint8_t *data;
    size_t start, end, capacity;
};

void *allocate(size_t size);  // zeroed; no memory: the program ends (in a VM: the VM, with a message on its console)

static inline size_t bytes_length(const struct bytes *b) { return b->end - b->start; }
static inline uint8_t *bytes_head(const struct bytes *b) { return b->data + b->start; }
uint8_t *bytes_reserve(struct bytes *b, size_t size);  // room for size bytes at the end; then add to b->end
void bytes_append(struct bytes *b, const void *data, size_t size);
void bytes_drop(struct bytes *b, size_t size);  // from the front; an empty queue gives its memory back
void bytes_free(struct bytes *b);

void put_u8(struct bytes *b, uint8_t value);
void put_u16(struct bytes *b, uint16_t value);
void put_u32(struct bytes *b, uint32_t value);
void put_u64(struct bytes *b, uint64_t value);
void put_text(struct bytes *b, const void *data, size_t size);  // u32 length, bytes

struct slice {
    const uint8_t *data;
    size_t size;
};

struct reader {  // taking what is not there sets bad and yields zeros
    const uint8_t *at, *end;
    bool bad;
};

uint64_t get_number(struct reader *r, size_t size);  // size: 1, 2, 4 or 8 bytes
struct slice get_text(struct reader *r);
struct slice get_rest(struct reader *r);
bool reader_done(const struct reader *r);  // nothing was missing, nothing is left
char *slice_string(struct slice s);  // NUL-terminated copy, to free
bool slice_is(struct slice s, const char *text);
