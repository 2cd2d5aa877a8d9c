#include "streams.h"

#include <errno.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <termios.h>
#include <unistd.h>

#include "frames.h"

// Output ------------------------------------------------------------------------------------------------------------

static void output_read(struct output *s) {
    while (!s->ended) {
        size_t room = (s->bulk ? TOOL_WINDOW : WINDOW) - bytes_length(&s->kept), chunk = s->bulk ? TOOL_CHUNK : CHUNK;
        if (!room) {
            watch_for(&s->watch, 0);
            return;
        }
        size_t most = room < chunk ? room : chunk;
        ssize_t count = read(s->watch.fd, bytes_reserve(&s->kept, most), most);
        if (count > 0) {
            s->kept.end += (size_t)count;
            if (s->drain)
                continue;
            break;
        }
        if (!bytes_length(&s->kept))
            bytes_free(&s->kept);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN && !s->drain)
            break;
        watch_close(&s->watch);  // the end of a pipe, EIO: the last holder of a terminal is gone
        s->ended = true;
        return;
    }
    watch_for(&s->watch, EPOLLIN);
}

static void output_ready(struct watch *watch, uint32_t events) {
    (void)events;
    output_read(OWNER(watch, struct output, watch));
}

void output_open(struct output *s, int fd) { watch_open(&s->watch, fd, EPOLLIN, output_ready); }

void output_free(struct output *s) {
    watch_close(&s->watch);
    bytes_free(&s->kept);
}

void output_drain(struct output *s) {
    s->drain = true;
    if (!s->ended && s->watch.fd >= 0)
        output_read(s);
}

void output_rewind(struct output *s) {
    s->sent = s->base;
    s->end_sent = false;
}

uint64_t output_end(const struct output *s) { return s->base + bytes_length(&s->kept); }

void output_acknowledge(struct output *s, uint64_t offset) {
    if (offset <= s->base)
        return;
    if (offset > output_end(s))
        offset = output_end(s);  // the host remembers a future that a restore took back
    bytes_drop(&s->kept, offset - s->base);
    s->base = offset;
    if (s->sent < offset)
        s->sent = offset;
    if (!s->ended && s->watch.fd >= 0)
        output_read(s);
}

bool output_produce(struct output *s, uint64_t process, uint8_t number, bool started, struct bytes *out) {
    uint64_t end = output_end(s);
    if (s->sent < end) {
        size_t chunk = s->bulk ? TOOL_CHUNK : CHUNK, size = end - s->sent < chunk ? end - s->sent : chunk;
        size_t begun = frame_begin(out, OUTPUT);
        put_u64(out, process);
        put_u8(out, number);
        put_u64(out, s->sent);
        bytes_append(out, bytes_head(&s->kept) + (s->sent - s->base), size);
        frame_end(out, begun);
        s->sent += size;
        return true;
    }
    if (s->ended && !s->end_sent && started) {
        size_t begun = frame_begin(out, OUTPUT_END);
        put_u64(out, process);
        put_u8(out, number);
        put_u64(out, end);
        frame_end(out, begun);
        s->end_sent = true;
        return true;
    }
    return false;
}

// Input -------------------------------------------------------------------------------------------------------------

static void input_write(struct input *s) {
    while (bytes_length(&s->kept) && s->watch.fd >= 0) {
        ssize_t count = write(s->watch.fd, bytes_head(&s->kept), bytes_length(&s->kept));
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN) {
            watch_for(&s->watch, EPOLLOUT);
            return;
        }
        if (count < 0) {
            watch_close(&s->watch);  // nobody reads: the rest is thrown away, as a broken pipe does
            break;
        }
        bytes_drop(&s->kept, (size_t)count);
        s->ack_due = true;
    }
    if (s->watch.fd < 0 && bytes_length(&s->kept)) {
        bytes_free(&s->kept);
        s->ack_due = true;
    }
    if (s->ended)
        watch_close(&s->watch);
    else
        watch_for(&s->watch, 0);
}

static void input_ready(struct watch *watch, uint32_t events) {
    struct input *s = OWNER(watch, struct input, watch);
    if (events & EPOLLERR && !s->tty)
        watch_close(watch);
    input_write(s);
}

void input_open(struct input *s, int fd) { watch_open(&s->watch, fd, 0, input_ready); }

void input_free(struct input *s) {
    watch_close(&s->watch);
    bytes_free(&s->kept);
}

void input_start(struct input *s) {
    s->started = true;
    input_write(s);
}

void input_close(struct input *s) {
    watch_close(&s->watch);
    input_start(s);
}

uint64_t input_limit(const struct input *s) { return s->received - bytes_length(&s->kept) + (s->bulk ? TOOL_WINDOW : WINDOW); }

bool input_receive(struct input *s, uint64_t offset, struct slice data) {
    if (offset > s->received)
        return false;
    uint64_t known = s->received - offset;
    if (s->ended || known >= data.size)
        return true;
    bytes_append(&s->kept, data.data + known, data.size - known);
    s->received += data.size - known;
    s->ack_due = true;
    if (s->started)
        input_write(s);
    return true;
}

bool input_finish(struct input *s, uint64_t offset) {
    if (s->ended)
        return true;
    if (offset != s->received)
        return false;
    struct termios terminal;
    if (s->tty && s->watch.fd >= 0 && !tcgetattr(s->watch.fd, &terminal))
        bytes_append(&s->kept, &terminal.c_cc[VEOF], 1);  // what a person would type
    s->ended = true;
    if (s->started)
        input_write(s);
    return true;
}
