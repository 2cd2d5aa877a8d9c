// The guest's door to the host: HTTP on 127.0.0.1:4750. A request that is complete becomes a call; it stays here, whole,
// until its answer is, and every new connection to the host asks it again from the offset reached. The program that
// asked sees one ordinary HTTP answer, however many snapshots, restores and nodes lie between its first and last byte.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guestd.h"
#include "http.h"

enum { CONNECTIONS = 512, BODIES_MAX = 128 << 20, READ = 64 << 10, LANE_MAX = 128 };

struct call {
    struct call *next;
    struct watch client;
    struct bytes in;   // of the client, beyond this request
    struct bytes out;  // to the client, framed
    struct http http;
    enum {
        READING,   // a request
        ASKED,     // the host has it to answer
        ANSWERED,  // the answer has come whole; the client still takes it
        REFUSED,   // an error was answered; what else the client sends is thrown away
    } state;
    bool continued;
    uint64_t id, ordinal;
    struct slice lane;
    bool auto_lane, numbered_here;  // the client named neither; a lane alone, and hears the number
    bool opened;           // CALL_OPEN went out on this connection to the host
    uint64_t body_sent;    // of the request's, on this connection to the host
    bool head_received, chunked, no_body, last_chunk_sent;
    struct bytes answer;   // received, not yet framed for the client
    uint64_t received, taken, taken_told;  // offsets in the answer's body
    size_t framed;         // bytes of the answer's body in out
    uint64_t length_left;  // of the content-length that the host promised
    bool sized;
};

static struct call *calls;
static struct watch listener = {.fd = -1};
static uint64_t last_id, auto_ordinal;
static uint32_t connection_count;
static const char *const hop_by_hop[] = {"connection", "keep-alive", "transfer-encoding", "upgrade", NULL};

static void client_ready(struct watch *watch, uint32_t events);
static void client_step(struct call *call);

uint64_t calls_auto_ordinal(void) { return auto_ordinal; }

uint32_t calls_count(void) {
    uint32_t count = 0;
    for (struct call *call = calls; call; call = call->next)
        count += call->state == ASKED;
    return count;
}

static size_t bodies_size(void) {
    size_t size = 0;
    for (struct call *call = calls; call; call = call->next)
        size += bytes_length(&call->http.body);
    return size;
}

static struct call *find(uint64_t id) {
    for (struct call *call = calls; call; call = call->next)
        if (call->id == id && call->state == ASKED)
            return call;
    return NULL;
}

static void call_forget(struct call *call) {
    struct call **link = &calls;
    while (*link != call)
        link = &(*link)->next;
    *link = call->next;
    if (call->opened && call->state == ASKED && channel_is_up()) {
        size_t begun = frame_begin(channel_out(), CALL_CANCEL);
        put_u64(channel_out(), call->id);
        frame_end(channel_out(), begun);
    }
    watch_close(&call->client);
    bytes_free(&call->in);
    bytes_free(&call->out);
    bytes_free(&call->answer);
    http_free(&call->http);
    free(call);
    connection_count--;
}

static void put_string(struct bytes *b, const char *text) { bytes_append(b, text, strlen(text)); }

static const char *phrase(unsigned status) {
    static const struct {
        unsigned status;
        const char *phrase;
    } known[] = {
        {200, "OK"}, {201, "Created"}, {202, "Accepted"}, {204, "No Content"}, {400, "Bad Request"}, {401, "Unauthorized"},
        {403, "Forbidden"}, {404, "Not Found"}, {409, "Conflict"}, {413, "Content Too Large"}, {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"}, {500, "Internal Server Error"}, {501, "Not Implemented"},
        {502, "Bad Gateway"}, {503, "Service Unavailable"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].status == status)
            return known[i].phrase;
    return "Status";
}

// guestd's own answer, then the end of the connection.
static void answer_here(struct call *call, unsigned status, const char *body) {
    char head[256];
    snprintf(head, sizeof head,
             "HTTP/1.1 %u %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
             phrase(status), strlen(body));
    put_string(&call->out, head);
    put_string(&call->out, body);
    call->state = REFUSED;
    http_free(&call->http);
    bytes_free(&call->in);
}

static void refuse(struct call *call, unsigned status, const char *reason) {
    char body[256];
    snprintf(body, sizeof body, "{\"error\": {\"code\": \"invalid-value\", \"message\": \"guestd: %s\"}}\n", reason);
    answer_here(call, status, body);
}

// From the client ---------------------------------------------------------------------------------------------------

// The lane and ordinal that the client named; of a lane alone the next, of neither the next of lane "auto". False: what it
// named is not valid.
static bool take_key(struct call *call) {
    const struct http_header *lane = http_header(&call->http, "perdure-lane");
    const struct http_header *ordinal = http_header(&call->http, "perdure-ordinal");
    call->auto_lane = !lane && !ordinal;
    call->numbered_here = false;
    if (call->auto_lane) {
        call->ordinal = ++auto_ordinal;
        call->lane = (struct slice){(const uint8_t *)"auto", 4};
        return true;
    }
    if (!lane || !lane->value.size || lane->value.size > LANE_MAX || slice_is(lane->value, "auto") ||
        (ordinal && (!ordinal->value.size || ordinal->value.size > 18)))
        return false;
    for (size_t i = 0; i < lane->value.size; i++)
        if (lane->value.data[i] <= ' ')
            return false;
    call->lane = lane->value;
    call->numbered_here = !ordinal;
    if (!ordinal)
        return lane_take(lane->value, &call->ordinal);
    call->ordinal = 0;
    for (size_t i = 0; i < ordinal->value.size; i++) {
        if (ordinal->value.data[i] < '0' || ordinal->value.data[i] > '9')
            return false;
        call->ordinal = call->ordinal * 10 + ordinal->value.data[i] - '0';
    }
    return true;
}

static void request_complete(struct call *call) {
    if (!take_key(call)) {
        refuse(call, 400, "Perdure-Lane has 1 to 128 characters, is not 'auto', and is one of 65,536; "
                          "Perdure-Ordinal is a number, and goes with a lane");
        return;
    }
    if (slice_is(call->http.path, "/perdure/v1/ordinal")) {  // a number to ask with, as often as it takes
        char body[64];
        snprintf(body, sizeof body, "{\"ordinal\": %llu}\n", (unsigned long long)call->ordinal);
        answer_here(call, 200, body);
        return;
    }
    call->id = ++last_id;
    call->state = ASKED;
    call->opened = call->head_received = call->chunked = call->no_body = call->sized = call->last_chunk_sent = false;
    call->body_sent = call->received = call->taken = call->taken_told = 0;
    call->framed = 0;
}

static void request_step(struct call *call) {
    http_feed(&call->http, &call->in);
    if (call->http.state == HTTP_BAD) {
        refuse(call, (unsigned)call->http.status, call->http.reason);
    } else if (bodies_size() > BODIES_MAX) {
        refuse(call, 503, "the bodies of the open calls are over 128 MiB");
    } else if (call->http.state == HTTP_DONE) {
        request_complete(call);
    } else if (call->http.wants_continue && !call->continued) {
        call->continued = true;
        put_string(&call->out, "HTTP/1.1 100 Continue\r\n\r\n");
    }
}

// False: the client is gone.
static bool client_read(struct call *call) {
    struct bytes ignored = {0}, *in = call->state == READING ? &call->in : &ignored;
    ssize_t count = recv(call->client.fd, bytes_reserve(in, READ), READ, 0);
    if (count > 0 && in == &call->in)
        in->end += (size_t)count;
    else if (!bytes_length(in))
        bytes_free(in);
    return count > 0 || (count < 0 && (errno == EAGAIN || errno == EINTR));
}

// To the client -----------------------------------------------------------------------------------------------------

static void frame_answer(struct call *call) {
    size_t size = bytes_length(&call->answer) < CHUNK ? bytes_length(&call->answer) : CHUNK;
    char head[16];
    if (!size)
        return;
    if (call->sized && size > call->length_left)
        size = (size_t)call->length_left;  // beyond what was promised: dropped with the rest below
    if (size && !call->no_body) {
        if (call->chunked) {
            snprintf(head, sizeof head, "%zx\r\n", size);
            put_string(&call->out, head);
        }
        bytes_append(&call->out, bytes_head(&call->answer), size);
        if (call->chunked)
            put_string(&call->out, "\r\n");
        call->length_left -= call->sized ? size : 0;
    } else {
        size = bytes_length(&call->answer);
    }
    bytes_drop(&call->answer, size);
    call->framed += size;
}

static void answer_complete(struct call *call) {
    bool cut = call->sized && call->length_left && !call->no_body;  // the host's answer was shorter than it promised
    bool last = call->http.close || cut || (!call->sized && !call->chunked && !call->no_body);
    http_free(&call->http);
    bytes_free(&call->answer);
    if (last) {
        call->state = REFUSED;
        shutdown(call->client.fd, SHUT_WR);
        return;
    }
    call->state = READING;
    call->continued = false;
    request_step(call);  // of what the client sent meanwhile
}

// Write what there is; then let the client's socket wake this call for what can happen next.
static void client_step(struct call *call) {
    for (;;) {
        if (!bytes_length(&call->out)) {
            call->taken += call->framed;
            call->framed = 0;
            if (call->state == ANSWERED && !bytes_length(&call->answer)) {
                if (call->chunked && !call->last_chunk_sent) {
                    put_string(&call->out, "0\r\n\r\n");
                    call->last_chunk_sent = true;
                } else {
                    answer_complete(call);
                }
            } else if (call->state == ASKED || call->state == ANSWERED) {
                frame_answer(call);
            }
            if (!bytes_length(&call->out)) {
                if (call->framed)
                    continue;
                break;
            }
        }
        ssize_t count = send(call->client.fd, bytes_head(&call->out), bytes_length(&call->out), MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN) {
            watch_for(&call->client, EPOLLOUT | EPOLLRDHUP);
            return;
        }
        if (count < 0) {
            call_forget(call);
            return;
        }
        bytes_drop(&call->out, (size_t)count);
    }
    if (call->state == REFUSED)
        shutdown(call->client.fd, SHUT_WR);
    // While a call is open its client only has to stay: what it sends early waits in its socket.
    watch_for(&call->client, call->state == READING || call->state == REFUSED ? EPOLLIN : EPOLLRDHUP);
}

static void client_ready(struct watch *watch, uint32_t events) {
    struct call *call = OWNER(watch, struct call, client);
    bool reads = call->state == READING || call->state == REFUSED;
    if (events & (EPOLLHUP | EPOLLERR) || (reads && events & EPOLLIN && !client_read(call)) ||
        (!reads && events & EPOLLRDHUP)) {
        call_forget(call);
        return;
    }
    if (call->state == READING)
        request_step(call);
    client_step(call);
}

static void accept_ready(struct watch *watch, uint32_t events) {
    (void)events;
    int yes = 1, fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    struct call *call = allocate(sizeof *call);
    call->next = calls;
    calls = call;
    watch_open(&call->client, fd, EPOLLIN, client_ready);
    if (++connection_count > CONNECTIONS) {
        refuse(call, 503, "512 connections are open already");
        client_step(call);
    }
}

void calls_open(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128) ||
        getsockname(fd, (struct sockaddr *)&address, &size)) {
        complain("calls will not work: port %d: %s", port, strerror(errno));
        return;
    }
    watch_open(&listener, fd, EPOLLIN, accept_ready);
    if (guestd.test) {
        printf("http %d\n", ntohs(address.sin_port));
        fflush(stdout);
    }
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
    snprintf(line, sizeof line, "HTTP/1.1 %u %s\r\n", status, phrase(status));
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
