// Memory of a thread for bytes on their way: given back to the kernel when there is nothing to do.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct buffer {
    uint8_t *data;
    size_t capacity;
};

uint8_t *pages_map(size_t size);  // fails the pager where there is no memory
void pages_unmap(uint8_t *data, size_t size);
uint8_t *buffer_room(struct buffer *buffer, size_t size);  // at least so much; what was in it is gone
void buffer_trim(struct buffer *buffer);
