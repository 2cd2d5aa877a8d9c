// A parser of HTTP/1.1 requests that sees bytes as they come and never waits.
#pragma once
#include "bytes.h"

enum {
    HTTP_HEAD_MAX = 64 << 10,
    HTTP_BODY_MAX = 32 << 20,
    HTTP_HEADERS_MAX = 128,
};

struct http_header {
    struct slice name, value;  // into `head`; the name in lower case
};

struct http {  // all zero: at the start of a request
    enum { HTTP_HEAD, HTTP_BODY, HTTP_CHUNK_SIZE, HTTP_CHUNK_DATA, HTTP_CHUNK_END, HTTP_TRAILER, HTTP_DONE, HTTP_BAD } state;
    struct bytes head, body;
    struct slice method, path;  // into `head`
    int minor;                  // of HTTP/1.x
    struct http_header headers[HTTP_HEADERS_MAX];
    int header_count;
    bool close, wants_continue;  // the client said so
    uint64_t left;               // of the body, or of its current chunk
    int status;                  // HTTP_BAD: what to answer, and why
    const char *reason;
};

void http_feed(struct http *http, struct bytes *in);  // takes from in what belongs to this request
const struct http_header *http_header(const struct http *http, const char *lower_case_name);
void http_free(struct http *http);  // and back to the start
