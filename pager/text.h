// Text that grows: lines of JSON to write.
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct text {
    char *data;
    size_t length, capacity;
};

void text_put(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_add(struct text *text, const char *data, size_t length);
void text_string(struct text *text, const char *value);  // as a JSON string; bytes that are no ASCII one by one
void text_free(struct text *text);
