// Requests outlive connections: the host asks again after each reconnect, so the newest ones are remembered.
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "guestd.h"

enum { REMEMBERED = 128, MESSAGE = 256 };

static struct request {
    uint64_t request;
    bool known, done;
    unsigned code;
    uint32_t value;
    char message[MESSAGE];
} requests[REMEMBERED];
static unsigned next;

static struct request *find(uint64_t request) {
    for (int i = 0; i < REMEMBERED; i++)
        if (requests[i].known && requests[i].request == request)
            return &requests[i];
    return NULL;
}

static void reply(const struct request *r) {
    if (!channel_is_up())
        return;  // the host asks again
    struct bytes *out = channel_out();
    size_t begun = frame_begin(out, REPLY);
    put_u64(out, r->request);
    put_u16(out, (uint16_t)r->code);
    put_u32(out, r->value);
    put_text(out, r->message, strlen(r->message));
    frame_end(out, begun);
}

static struct request *remember(uint64_t request) {
    struct request *r = &requests[next++ % REMEMBERED];
    *r = (struct request){.request = request, .known = true};
    return r;
}

bool request_begin(uint64_t request) {
    const struct request *r = find(request);
    if (!r) {
        remember(request);
        return true;
    }
    if (r->done)
        reply(r);
    return false;
}

void request_answer(uint64_t request, const char *message) {
    struct request r = {.request = request};
    snprintf(r.message, sizeof r.message, "%s", message);
    reply(&r);
}

void request_done(uint64_t request, unsigned code, uint32_t value, const char *format, ...) {
    struct request *r = find(request);
    if (!r)
        r = remember(request);  // it took so long that 128 others came after it
    r->done = true;
    r->code = code;
    r->value = value;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->message, sizeof r->message, format, arguments);
    va_end(arguments);
    reply(r);
}
