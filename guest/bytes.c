#include "bytes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALLEST = 512 };

static void *out_of_memory(size_t size) {
    fprintf(stderr, "guestd: no memory for %zu bytes\n", size);
    abort();
}

void *allocate(size_t size) {
    void *data = calloc(1, size);
    return data ? data : out_of_memory(size);
}

uint8_t *bytes_reserve(struct bytes *b, size_t size) {
    if (b->capacity - b->end >= size)
        return b->data + b->end;
    size_t length = bytes_length(b);
    if (b->start && b->capacity - length >= size && b->start >= length) {  // half is free: moving pays
        memcpy(b->data, b->data + b->start, length);
    } else {
        size_t capacity = b->capacity ? b->capacity : SMALLEST;
        while (capacity - length < size)
            capacity *= 2;
        uint8_t *data = malloc(capacity);
        if (!data)
            out_of_memory(capacity);
        if (length)
            memcpy(data, bytes_head(b), length);
        free(b->data);
        b->data = data;
        b->capacity = capacity;
    }
    b->start = 0;
    b->end = length;
    return b->data + length;
}

void bytes_append(struct bytes *b, const void *data, size_t size) {
    if (!size)
        return;
    memcpy(bytes_reserve(b, size), data, size);
    b->end += size;
}

void bytes_drop(struct bytes *b, size_t size) {
    b->start += size;
    if (b->start == b->end)
        bytes_free(b);
}

void bytes_free(struct bytes *b) {
    free(b->data);
    *b = (struct bytes){0};
}

static void put_number(struct bytes *b, uint64_t value, size_t size) {
    uint8_t *to = bytes_reserve(b, size);
    for (size_t i = 0; i < size; i++)
        to[i] = (uint8_t)(value >> 8 * i);
    b->end += size;
}

void put_u8(struct bytes *b, uint8_t value) { put_number(b, value, 1); }
void put_u16(struct bytes *b, uint16_t value) { put_number(b, value, 2); }
void put_u32(struct bytes *b, uint32_t value) { put_number(b, value, 4); }
void put_u64(struct bytes *b, uint64_t value) { put_number(b, value, 8); }

void put_text(struct bytes *b, const void *data, size_t size) {
    put_u32(b, (uint32_t)size);
    bytes_append(b, data, size);
}

uint64_t get_number(struct reader *r, size_t size) {
    if (r->bad || (size_t)(r->end - r->at) < size) {
        r->bad = true;
        return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++)
        value |= (uint64_t)r->at[i] << 8 * i;
    r->at += size;
    return value;
}

struct slice get_text(struct reader *r) {
    size_t size = get_number(r, 4);
    if (r->bad || (size_t)(r->end - r->at) < size) {
        r->bad = true;
        return (struct slice){r->end, 0};
    }
    struct slice found = {r->at, size};
    r->at += size;
    return found;
}

struct slice get_rest(struct reader *r) {
    struct slice found = {r->at, r->bad ? 0 : (size_t)(r->end - r->at)};
    r->at = r->end;
    return found;
}

bool reader_done(const struct reader *r) { return !r->bad && r->at == r->end; }

char *slice_string(struct slice s) {
    char *copy = allocate(s.size + 1);
    if (s.size)
        memcpy(copy, s.data, s.size);
    return copy;
}

bool slice_is(struct slice s, const char *text) { return s.size == strlen(text) && !memcmp(s.data, text, s.size); }
