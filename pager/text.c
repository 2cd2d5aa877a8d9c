#include "text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *room(struct text *text, size_t more) {
    if (text->length + more > text->capacity) {
        size_t capacity = text->capacity * 2 > text->length + more ? text->capacity * 2 : text->length + more + 256;
        char *data = realloc(text->data, capacity);
        if (!data) {
            fprintf(stderr, "pager: out of memory\n");
            _Exit(1);
        }
        text->data = data;
        text->capacity = capacity;
    }
    return text->data + text->length;
}

void text_put(struct text *text, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    if (length > 0)
        text->length += (size_t)vsnprintf(room(text, (size_t)length + 1), (size_t)length + 1, format, again);
    va_end(again);
    va_end(args);
}

void text_add(struct text *text, const char *data, size_t length) {
    memcpy(room(text, length + 1), data, length);
    text->length += length;
}

void text_string(struct text *text, const char *value) {
    text_put(text, "\"");
    for (const unsigned char *at = (const unsigned char *)value; *at; at++) {
        if (*at == '"' || *at == '\\')
            text_put(text, "\\%c", *at);
        else if (*at < 0x20)
            text_put(text, "\\u%04x", *at);
        else if (*at < 0x80)
            text_put(text, "%c", *at);
        else
            text_put(text, "\\udc%02x", *at);  // a path need not be UTF-8; the reader joins such bytes again
    }
    text_put(text, "\"");
}

void text_free(struct text *text) {
    free(text->data);
    *text = (struct text){0};
}
