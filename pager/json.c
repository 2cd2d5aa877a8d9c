#include "json.h"

#include <string.h>

enum { DEPTH_MAX = 32 };

static void bad(struct json *in) {
    if (in->state == JSON_OK)
        in->state = JSON_BAD;
}

// The next byte that is not white space, not taken; 0 where there is none.
static char peek(struct json *in) {
    if (in->state != JSON_OK)
        return 0;
    while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r'))
        in->at++;
    if (in->at == in->end) {
        in->state = JSON_SHORT;
        return 0;
    }
    if (*in->at == 0)
        bad(in);
    return *in->at;
}

static bool take(struct json *in, char wanted) {
    if (peek(in) != wanted || in->state != JSON_OK) {
        bad(in);
        return false;
    }
    in->at++;
    return true;
}

void json_open(struct json *in, char bracket) { take(in, bracket); }

bool json_element(struct json *in, char bracket, bool *first) {
    char next = peek(in);
    if (in->state != JSON_OK)
        return false;
    if (next == bracket && *first) {
        in->at++;
        return false;
    }
    if (!*first) {
        if (next == bracket) {
            in->at++;
            return false;
        }
        if (!take(in, ','))
            return false;
    }
    *first = false;
    return true;
}

bool json_key(struct json *in, bool *first, char *key, size_t capacity) {
    if (!json_element(in, '}', first))
        return false;
    json_string(in, key, capacity);
    return take(in, ':');
}

uint64_t json_u64(struct json *in) {
    char next = peek(in);
    uint64_t value = 0;
    const char *from = in->at;
    if (in->state != JSON_OK)
        return 0;
    if (next < '0' || next > '9') {
        bad(in);
        return 0;
    }
    for (; in->at < in->end && *in->at >= '0' && *in->at <= '9'; in->at++) {
        uint64_t digit = (uint64_t)(*in->at - '0');
        if (value > (UINT64_MAX - digit) / 10) {
            bad(in);
            return 0;
        }
        value = value * 10 + digit;
    }
    if (in->at == in->end) {
        in->state = JSON_SHORT;  // a digit may follow
        return 0;
    }
    if ((*from == '0' && in->at - from > 1) || *in->at == '.' || *in->at == 'e' || *in->at == 'E') {
        bad(in);
        return 0;
    }
    return value;
}

static bool literal(struct json *in, const char *word) {
    size_t length = strlen(word), left = (size_t)(in->end - in->at);
    if (in->state != JSON_OK)
        return false;
    if (left < length && memcmp(in->at, word, left) == 0) {
        in->state = JSON_SHORT;
        return false;
    }
    if (left < length || memcmp(in->at, word, length) != 0) {
        bad(in);
        return false;
    }
    in->at += length;
    return true;
}

bool json_bool(struct json *in) {
    bool value = peek(in) == 't';
    return literal(in, value ? "true" : "false") && value;
}

static int hex4(struct json *in) {
    int value = 0;
    for (int i = 0; i < 4; i++, in->at++) {
        if (in->at == in->end) {
            in->state = JSON_SHORT;
            return -1;
        }
        char c = *in->at;
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) {
            bad(in);
            return -1;
        }
        value = value << 4 | digit;
    }
    return value;
}

// A code point as UTF-8 into `out` (4 bytes); its length, 0: it is none.
static size_t utf8(uint32_t point, char *out) {
    if (point >= 0xDC80 && point <= 0xDCFF) {
        out[0] = (char)(point - 0xDC00);
        return 1;
    }
    if (point >= 0xD800 && point <= 0xDFFF)
        return 0;
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    size_t length = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i; i--, point >>= 6)
        out[i] = (char)(0x80 | (point & 0x3F));
    out[0] = (char)((0xF0 << (4 - length)) | point);
    return length;
}

static size_t escape(struct json *in, char *out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (in->at == in->end) {
        in->state = JSON_SHORT;
        return 0;
    }
    char c = *in->at++;
    if (c == 'u') {
        int high = hex4(in);
        if (in->state != JSON_OK)
            return 0;
        uint32_t point = (uint32_t)high;
        if (high >= 0xD800 && high < 0xDC00) {
            if (!literal(in, "\\u"))
                return 0;
            int low = hex4(in);
            if (in->state == JSON_OK && (low < 0xDC00 || low > 0xDFFF))
                bad(in);
            if (in->state != JSON_OK)
                return 0;
            point = 0x10000 + (((uint32_t)high - 0xD800) << 10) + ((uint32_t)low - 0xDC00);
        }
        size_t length = utf8(point, out);
        if (!length)
            bad(in);
        return length;
    }
    const char *found = c ? strchr(from, c) : NULL;
    if (!found) {
        bad(in);
        return 0;
    }
    out[0] = to[found - from];
    return 1;
}

size_t json_string(struct json *in, char *text, size_t capacity) {
    size_t length = 0;
    bool fits = capacity > 0;
    if (capacity)
        text[0] = 0;
    if (!take(in, '"'))
        return 0;
    for (;;) {
        if (in->at == in->end) {
            in->state = JSON_SHORT;
            break;
        }
        char c = *in->at++, decoded[4] = {c};
        if (c == '"')
            break;
        if ((unsigned char)c < 0x20) {
            bad(in);
            break;
        }
        size_t count = c == '\\' ? escape(in, decoded) : 1;
        if (in->state != JSON_OK)
            break;
        if (fits && length + count < capacity && !(count == 1 && !decoded[0]))
            memcpy(text + length, decoded, count);
        else
            fits = false;
        length += count;
    }
    if (in->state != JSON_OK || !fits) {
        if (capacity)
            text[0] = 0;
        return 0;
    }
    text[length] = 0;
    return length;
}

static void number(struct json *in) {  // any, loosely: nobody looks at what is skipped
    const char *from = in->at;
    while (in->at < in->end && *in->at && strchr("+-.0123456789eE", *in->at))
        in->at++;
    if (in->at == in->end)
        in->state = JSON_SHORT;
    else if (in->at == from)
        bad(in);
}

static void skip(struct json *in, int depth) {
    char next = peek(in);
    if (in->state != JSON_OK)
        return;
    if ((next == '[' || next == '{') && depth == DEPTH_MAX) {
        bad(in);
    } else if (next == '[') {
        json_open(in, '[');
        for (bool first = true; json_element(in, ']', &first);)
            skip(in, depth + 1);
    } else if (next == '{') {
        json_open(in, '{');
        for (bool first = true; json_key(in, &first, NULL, 0);)
            skip(in, depth + 1);
    } else if (next == '"') {
        json_string(in, NULL, 0);
    } else if (next == 't' || next == 'f' || next == 'n') {
        literal(in, next == 't' ? "true" : next == 'f' ? "false" : "null");
    } else {
        number(in);
    }
}

void json_skip(struct json *in) { skip(in, 0); }

bool json_is_over(struct json *in) {
    if (in->state != JSON_OK)
        return false;
    for (; in->at < in->end; in->at++)
        if (*in->at != ' ' && *in->at != '\t' && *in->at != '\n' && *in->at != '\r')
            return false;
    return true;
}
