#include "buffer.h"

#include <sys/mman.h>

#include "report.h"

uint8_t *pages_map(size_t size) {
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        fail("machine-failed", "Suspend or remove sandboxes.", "the pager finds no memory for %zu bytes", size);
    return data;
}

void pages_unmap(uint8_t *data, size_t size) { munmap(data, size); }

uint8_t *buffer_room(struct buffer *buffer, size_t size) {
    if (size > buffer->capacity) {
        size_t capacity = (size + 0xFFFF) & ~(size_t)0xFFFF;
        if (buffer->data)
            munmap(buffer->data, buffer->capacity);
        buffer->data = pages_map(capacity);
        buffer->capacity = capacity;
    }
    return buffer->data;
}

void buffer_trim(struct buffer *buffer) {
    if (buffer->data)
        madvise(buffer->data, buffer->capacity, MADV_DONTNEED);
}
