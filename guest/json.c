#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 1000 };

static const uint8_t *value_end(const uint8_t *at, const uint8_t *end, int depth);  // NULL: it is none

static const uint8_t *space_end(const uint8_t *at, const uint8_t *end) {
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
        at++;
    return at;
}

// The length of the UTF-8 sequence at `at`; 0: it is none (RFC 3629: no surrogates, nothing longer than needed).
static size_t sequence(const uint8_t *at, const uint8_t *end) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t size = *at < 0x80 ? 1 : *at >> 5 == 6 ? 2 : *at >> 4 == 14 ? 3 : *at >> 3 == 30 ? 4 : 0;
    if (size < 2 || (size_t)(end - at) < size)
        return size == 1;
    uint32_t code = *at & (0x7f >> size);
    for (size_t i = 1; i < size; i++) {
        if (at[i] >> 6 != 2)
            return 0;
        code = code << 6 | (at[i] & 0x3f);
    }
    return code < least[size] || code > 0x10ffff || code >> 11 == 0x1b ? 0 : size;
}

bool utf8_check(const uint8_t *text, size_t size) {
    for (const uint8_t *at = text, *end = text + size; at < end;) {
        size_t length = sequence(at, end);
        if (!length)
            return false;
        at += length;
    }
    return true;
}

static int hex(uint8_t digit) {
    return digit >= '0' && digit <= '9' ? digit - '0' : (digit | 32) >= 'a' && (digit | 32) <= 'f' ? (digit | 32) - 'a' + 10 : -1;
}

static bool is_hex(const uint8_t *at, const uint8_t *end) {
    return end - at >= 4 && hex(at[0]) >= 0 && hex(at[1]) >= 0 && hex(at[2]) >= 0 && hex(at[3]) >= 0;
}

static const uint8_t *text_end(const uint8_t *at, const uint8_t *end) {
    for (at++; at < end && *at != '"';) {
        if (*at < ' ')
            return NULL;
        if (*at != '\\') {
            size_t size = sequence(at, end);
            if (!size)
                return NULL;
            at += size;
        } else if (end - at < 2 || !strchr("\"\\/bfnrtu", at[1]) || (at[1] == 'u' && !is_hex(at + 2, end))) {
            return NULL;
        } else {
            at += at[1] == 'u' ? 6 : 2;
        }
    }
    return at < end ? at + 1 : NULL;
}

static const uint8_t *digits_end(const uint8_t *at, const uint8_t *end) {
    const uint8_t *begun = at;
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at > begun ? at : NULL;
}

static const uint8_t *number_end(const uint8_t *at, const uint8_t *end) {
    if (at < end && *at == '-')
        at++;
    if (at < end && *at == '0')
        at++;
    else if (!(at = digits_end(at, end)))
        return NULL;
    if (at < end && *at == '.' && !(at = digits_end(at + 1, end)))
        return NULL;
    if (at < end && (*at | 32) == 'e') {
        at++;
        if (at < end && (*at == '+' || *at == '-'))
            at++;
        at = digits_end(at, end);
    }
    return at;
}

static const uint8_t *word_end(const uint8_t *at, const uint8_t *end, const char *word) {
    size_t size = strlen(word);
    return (size_t)(end - at) >= size && !memcmp(at, word, size) ? at + size : NULL;
}

// Of a list, or with names of an object.
static const uint8_t *items_end(const uint8_t *at, const uint8_t *end, bool named, int depth) {
    const uint8_t close = named ? '}' : ']';
    at = space_end(at + 1, end);
    if (at < end && *at == close)
        return at + 1;
    for (;;) {
        at = space_end(at, end);
        if (named) {
            if (at >= end || *at != '"' || !(at = text_end(at, end)))
                return NULL;
            at = space_end(at, end);
            if (at >= end || *at++ != ':')
                return NULL;
        }
        at = value_end(at, end, depth + 1);
        if (!at)
            return NULL;
        at = space_end(at, end);
        if (at >= end)
            return NULL;
        if (*at == close)
            return at + 1;
        if (*at++ != ',')
            return NULL;
    }
}

static const uint8_t *value_end(const uint8_t *at, const uint8_t *end, int depth) {
    at = space_end(at, end);
    if (at >= end || depth > DEPTH_MAX)
        return NULL;
    switch (*at) {
    case '"': return text_end(at, end);
    case '{': return items_end(at, end, true, depth);
    case '[': return items_end(at, end, false, depth);
    case 't': return word_end(at, end, "true");
    case 'f': return word_end(at, end, "false");
    case 'n': return word_end(at, end, "null");
    default: return number_end(at, end);
    }
}

bool json_check(struct slice text) {
    const uint8_t *end = text.data + text.size, *at = value_end(text.data, end, 0);
    return at && space_end(at, end) == end;
}

struct slice json_member(struct slice object, const char *name) {
    const uint8_t *end = object.data + object.size, *at = space_end(object.data, end);
    struct slice none = {0};
    if (at >= end || *at != '{')
        return none;
    for (at = space_end(at + 1, end); at < end && *at == '"'; at = space_end(at + 1, end)) {
        struct bytes found = {0};
        const uint8_t *begun = at;
        at = text_end(at, end);
        json_decode(&found, (struct slice){begun, (size_t)(at - begun)});
        bool same = bytes_length(&found) == strlen(name) && !memcmp(bytes_head(&found), name, strlen(name));
        bytes_free(&found);
        begun = space_end(space_end(at, end) + 1, end);
        at = value_end(begun, end, 0);
        if (same)
            return (struct slice){begun, (size_t)(at - begun)};
        at = space_end(at, end);
        if (*at == '}')
            break;
    }
    return none;
}

struct slice json_item(struct slice list, size_t index) {
    const uint8_t *end = list.data + list.size, *at = space_end(list.data, end);
    struct slice none = {0};
    if (at >= end || *at != '[' || *space_end(at + 1, end) == ']')
        return none;
    for (;; index--) {
        const uint8_t *begun = space_end(at + 1, end);
        at = value_end(begun, end, 0);
        if (!index)
            return (struct slice){begun, (size_t)(at - begun)};
        at = space_end(at, end);
        if (*at == ']')
            return none;
    }
}

bool json_is_text(struct slice value) { return value.size && *value.data == '"'; }

static void put_code(struct bytes *out, uint32_t code) {
    uint8_t text[4];
    size_t size = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const uint8_t first[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = size; i-- > 1; code >>= 6)
        text[i] = (uint8_t)(0x80 | (code & 0x3f));
    text[0] = (uint8_t)(first[size] | code);
    bytes_append(out, text, size);
}

static uint32_t unit(const uint8_t *at) {
    return (uint32_t)(hex(at[0]) << 12 | hex(at[1]) << 8 | hex(at[2]) << 4 | hex(at[3]));
}

void json_decode(struct bytes *out, struct slice value) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const uint8_t *at = value.data + 1, *end = value.data + value.size - 1;
    while (at < end) {
        if (*at != '\\') {
            bytes_append(out, at++, 1);
        } else if (at[1] != 'u') {
            bytes_append(out, &to[strchr(from, at[1]) - from], 1);
            at += 2;
        } else {
            uint32_t code = unit(at + 2);
            at += 6;
            bool paired = code >> 10 == 0x36 && end - at >= 6 && at[0] == '\\' && at[1] == 'u' && unit(at + 2) >> 10 == 0x37;
            if (paired) {
                code = 0x10000 + ((code & 0x3ff) << 10 | (unit(at + 2) & 0x3ff));
                at += 6;
            }
            put_code(out, code >> 11 == 0x1b ? 0xfffd : code);  // half a pair is no text
        }
    }
}

void json_put(struct bytes *out, const void *text, size_t size) {
    const uint8_t *at = text, *end = at + size;
    char escape[8];
    bytes_append(out, "\"", 1);
    while (at < end) {
        size_t length = sequence(at, end);
        if (!length) {
            put_code(out, 0xfffd);
            at++;
        } else if (*at == '"' || *at == '\\' || *at < ' ') {
            int count = *at < ' ' ? snprintf(escape, sizeof escape, "\\u%04x", *at) : snprintf(escape, sizeof escape, "\\%c", *at);
            bytes_append(out, escape, (size_t)count);
            at++;
        } else {
            bytes_append(out, at, length);
            at += length;
        }
    }
    bytes_append(out, "\"", 1);
}
