// fuzz SECONDS SEED: mutated and random input for the parsers of frames, HTTP and JSON, cut at random places. What it
// looks for: reports of the sanitizers, and what must hold for any input (a parser takes no more than it was given, says
// the same however the input was cut, and never gives out a slice that is not in its own memory).
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../frames.h"
#include "../http.h"
#include "../json.h"

static uint64_t state;

static uint64_t draw(void) {  // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static size_t below(size_t limit) { return limit ? draw() % limit : 0; }

#define MUST(condition)                                                        \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);    \
            abort();                                                           \
        }                                                                      \
    } while (0)

static const char *const requests[] = {
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /v1/chat HTTP/1.1\r\nContent-Length: 5\r\nPerdure-Lane: main\r\nPerdure-Ordinal: 7\r\n\r\nhelloGET / HTTP/1.0\r\n\r\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5;x=y\r\nhello\r\n1f\r\n"
    "0123456789012345678901234567890\r\n0\r\nTrailer: x\r\n\r\n",
    "PUT /a%20b?c HTTP/1.0\r\nContent-Length: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    "\r\n\nDELETE * HTTP/1.1\nContent-Length: 00000000000000000003\n\nabc",
    "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
};

static void mutate(uint8_t *data, size_t *size, size_t capacity) {
    static const char *const words[] = {"\r\n", "\n", ":", " ", "0", "ffffffff", "chunked", "Content-Length: 3\r\n", "\0", "\xff"};
    for (size_t times = below(6); times--;) {
        size_t at = below(*size);
        switch (below(5)) {
        case 0:
            if (*size)
                data[at] ^= (uint8_t)(1 << below(8));
            break;
        case 1:
            if (*size)
                data[at] = (uint8_t)draw();
            break;
        case 2: *size = at; break;
        case 3: {
            const char *word = words[below(sizeof words / sizeof *words)];
            size_t length = strlen(word);
            if (*size + length < capacity) {
                memmove(data + at + length, data + at, *size - at);
                memcpy(data + at, word, length);
                *size += length;
            }
            break;
        }
        default: {
            size_t length = below(*size - at);
            if (length && *size + length < capacity) {  // a stretch of it once more
                memmove(data + at + length, data + at, *size - at);
                *size += length;
            }
        }
        }
    }
}

static void is_inside(const struct http *http, struct slice s) {
    MUST(s.data >= http->head.data && s.data + s.size <= http->head.data + http->head.end);
}

static uint64_t mix(uint64_t hash, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return hash;
}

// What a client's bytes mean, one request after the other, when they come in pieces of up to `piece` bytes.
static uint64_t parse(const uint8_t *data, size_t size, size_t piece) {
    struct http http = {0};
    struct bytes in = {0};
    uint64_t meaning = 14695981039346656037u;
    for (size_t at = 0; at < size && http.state != HTTP_BAD;) {
        size_t count = 1 + below(piece);
        count = count < size - at ? count : size - at;
        bytes_append(&in, data + at, count);
        at += count;
        for (size_t before = 0; bytes_length(&in) && bytes_length(&in) != before;) {
            before = bytes_length(&in);
            http_feed(&http, &in);
            MUST(bytes_length(&in) <= before && bytes_length(&http.body) <= HTTP_BODY_MAX);
            if (http.state == HTTP_DONE) {
                is_inside(&http, http.method);
                is_inside(&http, http.path);
                for (int i = 0; i < http.header_count; i++) {
                    is_inside(&http, http.headers[i].name);
                    is_inside(&http, http.headers[i].value);
                }
                meaning = mix(meaning, http.path.data, http.path.size);
                meaning = mix(meaning, bytes_head(&http.body), bytes_length(&http.body));
                http_free(&http);
            } else if (http.state == HTTP_BAD) {
                MUST(http.status >= 400 && http.status < 600 && http.reason);
                meaning = mix(meaning, &http.status, sizeof http.status);
                break;
            }
        }
    }
    http_free(&http);
    bytes_free(&in);
    return meaning;
}

static void fuzz_http(void) {
    static uint8_t data[4096];
    const char *request = requests[below(sizeof requests / sizeof *requests)];
    size_t size = strlen(request);
    memcpy(data, request, size);
    mutate(data, &size, sizeof data);
    MUST(parse(data, size, size) == parse(data, size, 1 + below(7)));
}

static void fuzz_frames(void) {
    struct bytes in = {0};
    for (size_t frames = below(4); frames--;) {
        size_t begun = frame_begin(&in, (enum frame_type)(CONFIGURE + below(16)));
        for (size_t fields = below(6); fields--;) {
            if (below(2))
                put_u64(&in, draw());
            else
                put_text(&in, "some text of a frame", below(20));
        }
        frame_end(&in, begun);
    }
    if (bytes_length(&in)) {
        size_t size = bytes_length(&in);
        uint8_t *room = bytes_reserve(&in, 256);
        (void)room;
        mutate(bytes_head(&in), &size, size + 256);
        in.end = in.start + size;
    }
    uint8_t type;
    struct reader frame;
    for (size_t size; bytes_length(&in) && frame_next(&in, &type, &frame, &size) == 1; bytes_drop(&in, size)) {
        MUST(size <= bytes_length(&in));
        while (!frame.bad && frame.at < frame.end) {
            struct slice text = {0};
            switch (below(4)) {
            case 0: get_number(&frame, 8); break;
            case 1: get_number(&frame, 1); break;
            case 2: text = get_text(&frame); break;
            default: text = get_rest(&frame);
            }
            if (text.size)
                MUST(text.data >= bytes_head(&in) && text.data + text.size <= bytes_head(&in) + size);
            free(slice_string(text));
        }
        if (frame.bad)
            MUST(!get_number(&frame, 8) && !get_text(&frame).size && !get_rest(&frame).size);
    }
    bytes_free(&in);
}

// What is JSON can be looked into, and a text that is written is read back.
static void fuzz_json(void) {
    static const char *const values[] = {
        "{\"a\": [1, -2.5e+3, true, null], \"b\\u0041\": \"\\ud83e\\udd89 \\n\"}", "[[{}], \"x\", {\"\": {\"a\": false}}]",
        "{\"error\": {\"message\": \"\xc3\xa9\xe2\x82\xac\xf0\x9f\xa6\x89\"}, \"a\":0}", " \"\\u00e9\\ud800x\" ",
    };
    const char *value = values[below(sizeof values / sizeof *values)];
    size_t size = strlen(value), capacity = size + 256;
    uint8_t *data = allocate(capacity);
    memcpy(data, value, size);
    mutate(data, &size, capacity);
    uint8_t *exact = allocate(size + !size);  // so that a byte too many is seen
    memcpy(exact, data, size);
    struct slice text = {exact, size};
    struct bytes written = {0}, read = {0};
    if (json_check(text)) {
        struct slice found = json_member(text, below(2) ? "a" : "error");
        if (found.data)
            MUST(found.data > exact && found.data + found.size < exact + size && json_check(found));
        if (json_is_text(found))
            json_decode(&read, found);
        struct slice item = json_item(found.data ? found : text, below(3));
        if (item.data)
            MUST(item.data > exact && item.data + item.size < exact + size && json_check(item));
    }
    bytes_free(&read);
    json_put(&written, exact, size);
    struct slice string = {bytes_head(&written), bytes_length(&written)};
    MUST(json_check(string) && json_is_text(string));
    json_decode(&read, string);
    if (utf8_check(exact, size))
        MUST(bytes_length(&read) == size && (!size || !memcmp(bytes_head(&read), exact, size)));
    bytes_free(&read);
    bytes_free(&written);
    free(exact);
    free(data);
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    state = argc > 2 ? strtoull(argv[2], NULL, 0) | 1 : (uint64_t)time(NULL) | 1;
    printf("seed %llu\n", (unsigned long long)state);
    fflush(stdout);
    uint64_t rounds = 0;
    for (clock_t end = clock() + (clock_t)(seconds * CLOCKS_PER_SEC); clock() < end; rounds++) {
        fuzz_http();
        fuzz_frames();
        fuzz_json();
    }
    printf("%llu rounds\n", (unsigned long long)rounds);
    return 0;
}
