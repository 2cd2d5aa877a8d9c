#define _GNU_SOURCE
#include "http.h"

#include <string.h>
#include <strings.h>

static void bad(struct http *http, int status, const char *reason) {
    http->state = HTTP_BAD;
    http->status = status;
    http->reason = reason;
    bytes_free(&http->body);
}

void http_free(struct http *http) {
    bytes_free(&http->head);
    bytes_free(&http->body);
    *http = (struct http){0};
}

const struct http_header *http_header(const struct http *http, const char *name) {
    for (int i = 0; i < http->header_count; i++)
        if (slice_is(http->headers[i].name, name))
            return &http->headers[i];
    return NULL;
}

static bool is_token(struct slice s) {
    for (size_t i = 0; i < s.size; i++) {
        uint8_t c = s.data[i];
        if (c <= ' ' || c >= 0x7f || strchr("()<>@,;:\\\"/[]?={}", c))
            return false;
    }
    return s.size;
}

static bool is_clean(struct slice s, uint8_t lowest) {
    for (size_t i = 0; i < s.size; i++)
        if ((s.data[i] < lowest && s.data[i] != '\t') || s.data[i] == 0x7f)
            return false;
    return true;
}

// The bytes of one line without its end; false: no whole line is there.
static bool take_line(const uint8_t **at, const uint8_t *end, struct slice *line) {
    const uint8_t *newline = memchr(*at, '\n', (size_t)(end - *at));
    if (!newline)
        return false;
    *line = (struct slice){*at, (size_t)(newline - *at)};
    if (line->size && line->data[line->size - 1] == '\r')
        line->size--;
    *at = newline + 1;
    return true;
}

static struct slice trim(struct slice s) {
    while (s.size && (*s.data == ' ' || *s.data == '\t')) {
        s.data++;
        s.size--;
    }
    while (s.size && (s.data[s.size - 1] == ' ' || s.data[s.size - 1] == '\t'))
        s.size--;
    return s;
}

static bool parse_request_line(struct http *http, struct slice line) {
    const uint8_t *first = memchr(line.data, ' ', line.size);
    if (!first)
        return false;
    http->method = (struct slice){line.data, (size_t)(first - line.data)};
    struct slice rest = {first + 1, line.size - http->method.size - 1};
    const uint8_t *second = memchr(rest.data, ' ', rest.size);
    if (!second)
        return false;
    http->path = (struct slice){rest.data, (size_t)(second - rest.data)};
    struct slice version = {second + 1, rest.size - http->path.size - 1};
    if (version.size != 8 || memcmp(version.data, "HTTP/1.", 7) || version.data[7] < '0' || version.data[7] > '9')
        return false;
    http->minor = version.data[7] != '0';
    http->close = !http->minor;
    return is_token(http->method) && http->path.size && is_clean(http->path, '!');
}

static bool parse_header(struct http *http, struct slice line) {
    const uint8_t *colon = memchr(line.data, ':', line.size);
    if (!colon)
        return false;
    struct slice name = {line.data, (size_t)(colon - line.data)};
    struct slice value = trim((struct slice){colon + 1, line.size - name.size - 1});
    if (!is_token(name) || !is_clean(value, ' '))
        return false;
    for (size_t i = 0; i < name.size; i++)  // in place: the head is this parser's own copy
        if (name.data[i] >= 'A' && name.data[i] <= 'Z')
            ((uint8_t *)name.data)[i] |= 0x20;
    http->headers[http->header_count++] = (struct http_header){name, value};
    return true;
}

static bool decimal(struct slice s, uint64_t *value) {
    *value = 0;
    for (size_t i = 0; i < s.size; i++) {
        if (s.data[i] < '0' || s.data[i] > '9')
            return false;
        if (*value < UINT64_MAX / 16)
            *value = *value * 10 + s.data[i] - '0';  // beyond that it only has to stay too large
    }
    return s.size;
}

static bool is(struct slice s, const char *text) {
    return s.size == strlen(text) && !strncasecmp((const char *)s.data, text, s.size);
}

static void parse_framing(struct http *http) {
    bool sized = false, chunked = false;
    for (int i = 0; i < http->header_count; i++) {
        struct slice name = http->headers[i].name, value = http->headers[i].value;
        uint64_t size;
        if (slice_is(name, "content-length")) {
            if (!decimal(value, &size) || (sized && size != http->left)) {
                bad(http, 400, "the content-length is not one number");
                return;
            }
            sized = true;
            http->left = size;
        } else if (slice_is(name, "transfer-encoding")) {
            if (chunked || !is(value, "chunked")) {
                bad(http, 501, "the only transfer-encoding understood here is chunked");
                return;
            }
            chunked = true;
        } else if (slice_is(name, "connection")) {
            http->close |= is(value, "close");
        } else if (slice_is(name, "expect")) {
            http->wants_continue = http->minor && is(value, "100-continue");
        }
    }
    if (sized && chunked)
        bad(http, 400, "content-length and transfer-encoding together have no meaning");
    else if (sized && http->left > HTTP_BODY_MAX)
        bad(http, 413, "the body is over 32 MiB");
    else
        http->state = chunked ? HTTP_CHUNK_SIZE : sized && http->left ? HTTP_BODY : HTTP_DONE;
}

// Its first line, where that is whole, says what was asked all the same.
static void bad_head(struct http *http, const struct bytes *in, const char *reason) {
    const uint8_t *at = bytes_head(in);
    struct slice line;
    if (take_line(&at, in->data + in->end, &line)) {
        bytes_append(&http->head, line.data, line.size);
        parse_request_line(http, (struct slice){bytes_head(&http->head), line.size});
    }
    bad(http, 431, reason);
}

static void parse_head(struct http *http, struct bytes *in) {
    while (bytes_length(in) && !bytes_length(&http->head) && (*bytes_head(in) == '\r' || *bytes_head(in) == '\n'))
        bytes_drop(in, 1);  // RFC 9112, 2.2: empty lines before a request are skipped
    const uint8_t *at = bytes_head(in), *end = in->data + in->end;
    struct slice line;
    size_t lines = 0;
    while (true) {
        if (!bytes_length(in) || !take_line(&at, end, &line)) {
            if (bytes_length(in) > HTTP_HEAD_MAX)
                bad_head(http, in, "the request's head is over 64 KiB");
            return;
        }
        if (!line.size)
            break;
        if (++lines > HTTP_HEADERS_MAX)
            break;  // also where the head's end has not come: it is looked through again with each piece of it
    }
    size_t size = (size_t)(at - bytes_head(in));
    if (size > HTTP_HEAD_MAX || lines > HTTP_HEADERS_MAX) {
        bad_head(http, in, "the request's head has over 64 KiB or 128 lines");
        return;
    }
    bytes_append(&http->head, bytes_head(in), size);
    bytes_drop(in, size);
    at = bytes_head(&http->head);
    end = http->head.data + http->head.end;
    if (!take_line(&at, end, &line) || !parse_request_line(http, line)) {
        bad(http, 400, "the request line is not METHOD PATH HTTP/1.1");
        return;
    }
    while (take_line(&at, end, &line) && line.size)
        if (!parse_header(http, line)) {
            bad(http, 400, "a header is malformed");
            return;
        }
    parse_framing(http);
}

static void take_body(struct http *http, struct bytes *in) {
    size_t size = bytes_length(in) < http->left ? bytes_length(in) : (size_t)http->left;
    bytes_append(&http->body, bytes_head(in), size);
    bytes_drop(in, size);
    http->left -= size;
    if (!http->left)
        http->state = http->state == HTTP_BODY ? HTTP_DONE : HTTP_CHUNK_END;
}

static void parse_chunk_size(struct http *http, struct slice line) {
    uint64_t size = 0;
    size_t digits = 0;
    for (; digits < line.size; digits++) {
        uint8_t c = line.data[digits] | 0x20;
        if ((c < '0' || c > '9') && (c < 'a' || c > 'f'))
            break;
        if (digits > 8) {
            bad(http, 413, "the body is over 32 MiB");
            return;
        }
        size = size << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    struct slice extension = trim((struct slice){line.data + digits, line.size - digits});
    if (!digits || (extension.size && *extension.data != ';')) {
        bad(http, 400, "a chunk's size is not a hexadecimal number");
    } else if (size + bytes_length(&http->body) > HTTP_BODY_MAX) {
        bad(http, 413, "the body is over 32 MiB");
    } else {
        http->left = size;
        http->state = size ? HTTP_CHUNK_DATA : HTTP_TRAILER;
    }
}

// The line-wise states of a chunked body; false: no whole line is there.
static bool parse_chunk_line(struct http *http, struct bytes *in) {
    const uint8_t *at = bytes_head(in);
    struct slice line;
    if (!take_line(&at, in->data + in->end, &line)) {
        if (bytes_length(in) > HTTP_HEAD_MAX)
            bad(http, 400, "a line of the chunked body is over 64 KiB");
        return false;
    }
    if (http->state == HTTP_CHUNK_SIZE)
        parse_chunk_size(http, line);
    else if (http->state == HTTP_CHUNK_END && line.size)
        bad(http, 400, "a chunk is longer than its size");
    else if (http->state == HTTP_CHUNK_END)
        http->state = HTTP_CHUNK_SIZE;
    else if (!line.size)
        http->state = HTTP_DONE;  // trailers are read and dropped
    bytes_drop(in, (size_t)(at - bytes_head(in)));
    return true;
}

void http_feed(struct http *http, struct bytes *in) {
    while (bytes_length(in)) {
        switch (http->state) {
        case HTTP_HEAD:
            parse_head(http, in);
            if (http->state == HTTP_HEAD)
                return;
            break;
        case HTTP_BODY:
        case HTTP_CHUNK_DATA: take_body(http, in); break;
        case HTTP_CHUNK_SIZE:
        case HTTP_CHUNK_END:
        case HTTP_TRAILER:
            if (!parse_chunk_line(http, in))
                return;
            break;
        case HTTP_DONE:
        case HTTP_BAD: return;
        }
    }
}
