// The guest's door to the host: HTTP on 127.0.0.1:4750, the programs' side of calls.
#define _GNU_SOURCE
#include "calls.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "json.h"

enum {
    CALLS_MAX = 512,
    CALLS_LEAST = 64,  // also in a small machine
    IDLE_MAX = 64,     // connections besides those with a call
    BODIES_MAX = 128 << 20,
    SHARE = 4,         // of the machine's memory, at most this part is for bodies, and this part for answers
    READ = 64 << 10,
    LANE_MAX = 128,
};

static struct watch listener = {.fd = -1};
static uint64_t auto_ordinal;
static uint32_t connection_count, calls_max = CALLS_MAX;
static size_t bodies_max = BODIES_MAX;

uint64_t calls_auto_ordinal(void) { return auto_ordinal; }

void put_string(struct bytes *b, const char *text) { bytes_append(b, text, strlen(text)); }

const char *http_phrase(unsigned status) {
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

void client_close(struct call *call) {
    watch_close(&call->client);
    bytes_free(&call->in);
    bytes_free(&call->out);
    connection_count--;
}

// guestd's own answer, then the end of the connection.
static void answer_here(struct call *call, unsigned status, const char *body) {
    char head[256];
    snprintf(head, sizeof head,
             "HTTP/1.1 %u %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
             http_phrase(status), strlen(body));
    put_string(&call->out, head);
    put_string(&call->out, body);
    call->state = REFUSED;
    http_free(&call->http);
    bytes_free(&call->in);
}

// Whose SDK asks, as far as the request was read: gateway/dialects has the same for what the host refuses.
static bool is_of_anthropic(const struct http *http) {
    static const char messages[] = "/v1/messages";
    size_t size = sizeof messages - 1;
    return http_header(http, "anthropic-version") ||
           (http->path.size >= size && !memcmp(http->path.data, messages, size) &&
            (http->path.size == size || strchr("/?", http->path.data[size])));
}

// In the words of that API; of OpenAI's for everybody else, where Perdure's own calls find what they look for, too.
static void refuse(struct call *call, unsigned status, const char *reason) {
    char body[320];
    const char *kind = "invalid_request_error", *code = "invalid-value";
    bool is_anthropic = is_of_anthropic(&call->http);
    if (status == 413 || status == 431)
        code = "too-large";
    if (status == 413 && is_anthropic)
        kind = "request_too_large";
    if (status >= 500) {
        kind = is_anthropic ? "api_error" : "server_error";
        code = status == 503 ? "unavailable" : "unsupported";
    }
    snprintf(body, sizeof body,
             is_anthropic
                 ? "{\"type\": \"error\", \"error\": {\"message\": \"guestd: %s\", \"type\": \"%s\", \"code\": \"%s\"}}\n"
                 : "{\"error\": {\"message\": \"guestd: %s\", \"type\": \"%s\", \"param\": null, \"code\": \"%s\"}}\n",
             reason, kind, code);
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
    if (!utf8_check(lane->value.data, lane->value.size))
        return false;  // what is not text cannot be told apart on its way to the log
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

static bool is_busy(const struct call *call) { return call->state == ASKED || call->state == ANSWERED; }

static uint32_t busy_count(void) {
    uint32_t count = 0;
    for (const struct call *call = calls; call; call = call->next)
        count += is_busy(call);
    return count;
}

static void request_complete(struct call *call) {
    bool takes_number = slice_is(call->http.path, "/perdure/v1/ordinal");
    if (!takes_number && busy_count() >= calls_max) {  // before it has a number: asked again, it has the same
        refuse(call, 503, "as many calls are open as may be at once");
        return;
    }
    if (!take_key(call)) {
        refuse(call, 400, "Perdure-Lane has 1 to 128 bytes of UTF-8, is not 'auto', and is one of 65,536; "
                          "Perdure-Ordinal is a number, and goes with a lane");
        return;
    }
    if (takes_number) {  // a number to ask with, as often as it takes
        char body[64];
        snprintf(body, sizeof body, "{\"ordinal\": %llu}\n", (unsigned long long)call->ordinal);
        answer_here(call, 200, body);
        return;
    }
    call_begin(call);
}

static void request_step(struct call *call) {
    http_feed(&call->http, &call->in);
    if (call->http.state == HTTP_BAD) {
        refuse(call, (unsigned)call->http.status, call->http.reason);
    } else if (calls_bodies_size() > bodies_max) {
        refuse(call, 503, "the bodies of the open calls are over 128 MiB, or a quarter of the machine's memory");
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
    if (count > 0)
        call->heard_ms = now_ms();
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
    call->heard_ms = now_ms();  // it had nothing to say meanwhile
    call->continued = false;
    request_step(call);  // of what the client sent meanwhile
}

// Write what there is; then let the client's socket wake this call for what can happen next.
void client_step(struct call *call) {
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

// Of those that ask nothing, the one that has said nothing for the longest: whoever opens connections and leaves them so
// shuts nobody out. What waits for its answer stays.
static void forget_stalest(void) {
    struct call *stalest = NULL;
    for (struct call *call = calls; call; call = call->next)
        if (!is_busy(call) && (!stalest || call->heard_ms <= stalest->heard_ms))
            stalest = call;
    if (stalest)
        call_forget(stalest);
}

static void accept_ready(struct watch *watch, uint32_t events) {
    (void)events;
    if (connection_count >= calls_max + IDLE_MAX)
        forget_stalest();
    int yes = 1, fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    struct call *call = allocate(sizeof *call);
    call->next = calls;
    calls = call;
    connection_count++;
    call->heard_ms = now_ms();
    watch_open(&call->client, fd, EPOLLIN, client_ready);
}

// Its memory is the machine's, and outside of what the workload may use: in a small one it takes less.
static void take_share(void) {
    struct sysinfo machine;
    if (sysinfo(&machine))
        return;
    uint64_t share = (uint64_t)machine.totalram * machine.mem_unit / SHARE, windows = share / WINDOW;
    bodies_max = share < BODIES_MAX ? (size_t)share : BODIES_MAX;
    calls_max = windows > CALLS_MAX ? CALLS_MAX : windows < CALLS_LEAST ? CALLS_LEAST : (uint32_t)windows;
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
    take_share();
    watch_open(&listener, fd, EPOLLIN, accept_ready);
    if (guestd.test) {
        printf("http %d\n", ntohs(address.sin_port));
        fflush(stdout);
    }
}
