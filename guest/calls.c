// Calls at the host. A request that is complete becomes a call; it stays here, whole, until its answer is, and every new
// connection to the host asks it again from the offset reached. The program that asked sees one ordinary HTTP answer,
// however many snapshots, restores and nodes lie between its first and last byte.
#include "calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct call *calls;
static uint64_t last_id;
static const char *const hop_by_hop[] = {"connection", "keep-alive", "transfer-encoding", "upgrade", NULL};

uint32_t calls_count(void) {
    uint32_t count = 0;
    for (struct call *call = calls; call; call = call->next)
        count += call->state == ASKED;
    return count;
}

size_t calls_bodies_size(void) {
    size_t size = 0;
    for (struct call *call = calls; call; call = call->next)
        size += bytes_length(&call->http.body) + bytes_length(&call->in);
    return size;
}

static struct call *find(uint64_t id) {
    for (struct call *call = calls; call; call = call->next)
        if (call->id == id && call->state == ASKED)
            return call;
    return NULL;
}

void call_forget(struct call *call) {
    struct call **link = &calls;
    while (*link != call)
        link = &(*link)->next;
    *link = call->next;
    if (call->opened && call->state == ASKED && channel_is_up()) {
        size_t begun = frame_begin(channel_out(), CALL_CANCEL);
        put_u64(channel_out(), call->id);
        frame_end(channel_out(), begun);
    }
    client_close(call);
    bytes_free(&call->answer);
    http_free(&call->http);
    free(call);
}

void call_begin(struct call *call) {
    call->id = ++last_id;
    call->state = ASKED;
    call->opened = call->head_received = call->chunked = call->no_body = call->sized = call->last_chunk_sent = false;
    call->body_sent = call->received = call->taken = call->taken_told = 0;
    call->framed = 0;
}

// To the host -------------------------------------------------------------------------------------------------------

void calls_rewind(void) {
    for (struct call *call = calls; call; call = call->next) {
        call->opened = false;
        call->body_sent = 0;
    }
}

static void produce_open(struct call *call, struct bytes *out) {
    size_t begun = frame_begin(out, CALL_OPEN);
    put_u64(out, call->id);
    put_text(out, call->lane.data, call->lane.size);
    put_u64(out, call->ordinal);
    put_text(out, call->http.method.data, call->http.method.size);
    put_text(out, call->http.path.data, call->http.path.size);
    put_u32(out, (uint32_t)call->http.header_count);
    for (int i = 0; i < call->http.header_count; i++) {
        put_text(out, call->http.headers[i].name.data, call->http.headers[i].name.size);
        put_text(out, call->http.headers[i].value.data, call->http.headers[i].value.size);
    }
    put_u64(out, bytes_length(&call->http.body));
    put_u64(out, call->received);
    frame_end(out, begun);
    call->opened = true;
    call->taken_told = 0;  // the host takes the window to begin at 0 until it is told
}

static bool call_produce(struct call *call, struct bytes *out) {
    size_t size = bytes_length(&call->http.body), left = size - (size_t)call->body_sent;
    if (!call->opened) {
        produce_open(call, out);
        return true;
    }
    if (left) {
        size_t begun = frame_begin(out, CALL_BODY);
        size_t count = left < CHUNK ? left : CHUNK;
        put_u64(out, call->id);
        put_u64(out, call->body_sent);
        bytes_append(out, bytes_head(&call->http.body) + call->body_sent, count);
        frame_end(out, begun);
        call->body_sent += count;
        return true;
    }
    if (call->taken != call->taken_told) {
        size_t begun = frame_begin(out, CALL_ACK);
        put_u64(out, call->id);
        put_u64(out, call->taken);
        frame_end(out, begun);
        call->taken_told = call->taken;
    }
    return false;
}

bool calls_produce(struct bytes *out) {
    bool produced = false;
    for (struct call *call = calls; call; call = call->next)
        if (call->state == ASKED)
            produced |= call_produce(call, out);
    return produced;
}

// From the host -----------------------------------------------------------------------------------------------------

static bool is_hop_by_hop(struct slice name) {
    for (const char *const *known = hop_by_hop; *known; known++)
        if (name.size == strlen(*known) && !strncasecmp((const char *)name.data, *known, name.size))
            return true;
    return false;
}

static bool is_one_line(struct slice s) {
    for (size_t i = 0; i < s.size; i++)
        if (s.data[i] == '\r' || s.data[i] == '\n' || !s.data[i])
            return false;
    return true;
}

static void put_head(struct call *call, unsigned status, struct reader *headers) {
    char line[64];
    snprintf(line, sizeof line, "HTTP/1.1 %u %s\r\n", status, http_phrase(status));
    put_string(&call->out, line);
    for (uint64_t count = get_number(headers, 4); count--;) {
        struct slice name = get_text(headers), value = get_text(headers);
        if (is_hop_by_hop(name) || !name.size || !is_one_line(name) || !is_one_line(value))
            continue;
        if (name.size == 14 && !strncasecmp((const char *)name.data, "content-length", 14)) {
            char *text = slice_string(value);
            call->sized = true;
            call->length_left = strtoull(text, NULL, 10);
            free(text);
        }
        bytes_append(&call->out, name.data, name.size);
        put_string(&call->out, ": ");
        bytes_append(&call->out, value.data, value.size);
        put_string(&call->out, "\r\n");
    }
    if (call->numbered_here) {
        snprintf(line, sizeof line, "Perdure-Ordinal: %llu\r\nPerdure-Lane: ", (unsigned long long)call->ordinal);
        put_string(&call->out, line);
        bytes_append(&call->out, call->lane.data, call->lane.size);
        put_string(&call->out, "\r\n");
    }
    call->no_body = slice_is(call->http.method, "HEAD") || status == 204 || status == 304;
    call->chunked = !call->sized && !call->no_body && call->http.minor;
    if (call->chunked)
        put_string(&call->out, "Transfer-Encoding: chunked\r\n");
    if (call->http.close || (!call->sized && !call->chunked && !call->no_body))
        put_string(&call->out, "Connection: close\r\n");
    put_string(&call->out, "\r\n");
}

bool calls_head(struct reader *frame) {
    struct call *call = find(get_number(frame, 8));
    unsigned status = (unsigned)get_number(frame, 2);
    if (frame->bad || status < 200 || status > 599)
        return false;
    if (!call || call->head_received)
        return true;  // the client hung up; or it is answered again, and this part it has
    struct reader check = *frame;
    for (uint64_t count = get_number(&check, 4); count-- && !check.bad;) {
        get_text(&check);
        get_text(&check);
    }
    if (!reader_done(&check))
        return false;
    call->head_received = true;
    put_head(call, status, frame);
    client_step(call);
    return true;
}

bool calls_data(struct reader *frame) {
    struct call *call = find(get_number(frame, 8));
    uint64_t offset = get_number(frame, 8);
    struct slice data = get_rest(frame);
    if (frame->bad)
        return false;
    if (!call)
        return true;
    if (!call->head_received || offset > call->received)
        return false;
    uint64_t known = call->received - offset;
    if (known >= data.size)
        return true;
    if (call->received + data.size - known > call->taken + WINDOW)
        return false;  // the host does not keep to the window
    bytes_append(&call->answer, data.data + known, data.size - known);
    call->received += data.size - known;
    client_step(call);
    return true;
}

bool calls_end(struct reader *frame) {
    struct call *call = find(get_number(frame, 8));
    uint64_t offset = get_number(frame, 8);
    if (frame->bad)
        return false;
    if (!call)
        return true;
    if (!call->head_received || offset != call->received)
        return false;
    call->state = ANSWERED;
    client_step(call);
    return true;
}

bool calls_abort(struct reader *frame) {
    struct call *call = find(get_number(frame, 8));
    if (frame->bad)
        return false;
    if (call) {
        call->opened = false;  // the host needs no CALL_CANCEL
        call_forget(call);     // an answer that breaks off is all that HTTP has to say this
    }
    return true;
}
